//! Row 61 by the file system exerciser: fsx does random reads and writes, also through mappings, truncates, punches,
//! allocates, copies ranges, drops pages and opens anew, and knows of each byte what it must be. Here on buckets of
//! every method and several chunk sizes. `make test` installs the program into target/tools.
//!
//! SSEFS_FSX_SEED is the first seed (default 1), SSEFS_FSX_OPS the operations of one run (default 3600), and
//! SSEFS_FSX_RUN=METHOD:CHUNK:FILE:SEED, as a failure prints it, repeats one run.

#[path = "common/mount.rs"]
mod mount;
#[path = "common/run.rs"]
mod run;
#[path = "common/sys.rs"]
mod sys;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use mount::{Mount, number};

/// 32 runs make more than 100,000 operations.
const OPS: u64 = 3600;
const CHUNKS: [&str; 4] = ["4K", "16K", "64K", "256K"];
const SEEDS: u64 = 2;
/// fsx does thousands of operations a second; a hundred are slow even on a busy machine.
const OPS_A_SECOND_MIN: u64 = 20;

/// Largest file and largest operation. The large one crosses the leaves of a map, which are 1 MiB.
#[derive(Clone, Copy, PartialEq)]
enum File {
    Small,
    Large,
}

/// One call of fsx on a bucket of its own, with all that decides it.
#[derive(Clone)]
struct Run {
    rule: String,
    chunk: String,
    file: File,
    seed: u64,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rule = if self.rule.is_empty() { "none" } else { &self.rule };
        let file = if self.file == File::Small { "small" } else { "large" };
        write!(f, "{rule}:{}:{file}:{}", self.chunk, self.seed)
    }
}

impl Run {
    fn parse(text: &str) -> Option<Run> {
        // The method may have colons of its own.
        let &[seed, file, chunk, rule] = &text.rsplitn(4, ':').collect::<Vec<_>>()[..] else { return None };
        let rule = if rule == "none" { "" } else { rule }.to_string();
        let file = if file == "large" { File::Large } else { File::Small };
        Some(Run { rule, chunk: chunk.to_string(), file, seed: seed.parse().ok()? })
    }

    /// fsx's settings. Much dropping of pages, or the kernel's cache answers the reads; few syncs, which take time.
    fn settings(&self) -> String {
        let (flen, max) = match self.file {
            File::Small => (256 << 10, 64 << 10),
            File::Large => (2_600_000, 300_000),
        };
        format!(
            "flen = {flen}\n[opsize]\nmax = {max}\n[weights]\nread = 10\nwrite = 10\nmapread = 10\nmapwrite = 10\n\
             truncate = 6\npunch_hole = 8\nposix_fallocate = 4\ncopy_file_range = 8\nsendfile = 4\ninvalidate = 4\n\
             posix_fadvise = 16\nclose_open = 4\nfsync = 0.5\nfdatasync = 0.5\n"
        )
    }

    fn go(&self, fsx: &Path, ops: u64) {
        let limit = Duration::from_secs(120 + ops / OPS_A_SECOND_MIN);
        let builder = Mount::builder().chunk_size(&self.chunk).limit(limit * 2);
        let mut m = match self.rule.as_str() {
            "" => builder,
            "SSE-C" => builder.customer(),
            rule => builder.rule(rule),
        }
        .mount();
        let (seed, ops) = (self.seed.to_string(), ops.to_string());
        let settings = m.beside("fsx.toml");
        fs::write(&settings, self.settings()).unwrap();
        let mut c = Command::new(fsx);
        c.args(["-S", &seed, "-N", &ops, "-f"]).arg(&settings).arg("-P").arg(m.beside("")).arg(m.at("f"));
        let ran = run::run_within(&mut c, limit);
        // What fsx prints when it fails is its seed and the log of its last operations.
        assert!(
            ran.code == Some(0) && ran.stdout.contains("A-OK"),
            "fsx failed; again with: SSEFS_FSX_RUN={self} SSEFS_FSX_OPS={ops} cargo test --release --test fsx\n\
             {}{}",
            ran.stderr,
            ran.stdout
        );
        // What it left must be the same for a process that has nothing in memory.
        let left = fs::read(m.at("f")).unwrap();
        m.remount();
        assert!(fs::read(m.at("f")).unwrap() == left, "{self}: the file differs after a remount");
    }
}

/// The pinned program, from where `make test` puts it.
fn program() -> PathBuf {
    let at = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin/fsx");
    assert!(at.exists(), "{} is not there: make tools installs it, and so does make test", at.display());
    at
}

fn runs_of(rule: &str) {
    let (fsx, ops) = (program(), number("SSEFS_FSX_OPS", OPS));
    if let Ok(text) = std::env::var("SSEFS_FSX_RUN") {
        let run = Run::parse(&text).expect("SSEFS_FSX_RUN is METHOD:CHUNK:FILE:SEED");
        if run.rule == rule {
            run.go(&fsx, ops);
        }
        return;
    }
    let first = number("SSEFS_FSX_SEED", 1);
    for (i, chunk) in CHUNKS.iter().enumerate() {
        for seed in (0..SEEDS).map(|n| first + i as u64 * SEEDS + n) {
            let file = if seed % 2 == 0 { File::Large } else { File::Small };
            Run { rule: rule.to_string(), chunk: chunk.to_string(), file, seed }.go(&fsx, ops);
        }
    }
}

#[test]
fn r61_fsx_finds_every_byte_of_a_plain_object() {
    runs_of("");
}

#[test]
fn r61_fsx_finds_every_byte_under_aes256() {
    runs_of("AES256");
}

#[test]
fn r61_fsx_finds_every_byte_under_kms() {
    runs_of("KMS");
}

#[test]
fn r61_fsx_finds_every_byte_under_kms_with_sm4() {
    runs_of("KMS::SM4");
}

#[test]
fn r61_fsx_finds_every_byte_under_a_customer_key() {
    runs_of("SSE-C");
}
