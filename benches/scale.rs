//! How ssefs grows: a bucket is filled through a real mount, and at marks it is looked at what creating, mounting, syncing
//! and listing cost by then, in time, memory and space. `make scale`; docs/PERFORMANCE.md says how to read the figures.
//! Nothing is asserted but that what was written is there.
//!
//! `SSEFS_SCALE_FILES` says how many files (default 1,000,000), TMPDIR where store and mount lie,
//! `SSEFS_SCALE_OUT` where scale.csv and scale.svg go (default docs).

#[path = "scale/figures.rs"]
mod figures;
#[path = "../tests/common/mount.rs"]
mod mount;
#[path = "../tests/common/run.rs"]
mod run;
#[path = "scale/svg.rs"]
mod svg;
#[path = "../tests/common/sys.rs"]
mod sys;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use figures::{Big, Figures, Row};
use mount::{Mount, run_within};

const MARKS: [u64; 5] = [1_000, 10_000, 100_000, 300_000, 1_000_000];
const FILES_A_DIR: u64 = 1000;
const FILE_BYTES: usize = 1024;
const WRITERS: usize = 4;
/// Directories of the cold `find`.
const FIND_DIRS: u64 = 10;
const PROBES: usize = 9;
const SYNCS: usize = 31;
const COPY_BYTES: u64 = 2 << 30;
const SPARSE_BYTES: u64 = 100 << 30;
const SPARSE_WRITES: u64 = 4000;
/// No run takes this long; one that does is stuck.
const LIMIT: Duration = Duration::from_secs(3 * 3600);

/// SIGINT and SIGTERM: the bench unwinds, so that mount, process and store go with it.
static STOP: std::sync::LazyLock<std::sync::Arc<AtomicBool>> = std::sync::LazyLock::new(Default::default);

fn go_on() {
    assert!(!STOP.load(Ordering::Relaxed), "interrupted");
}

fn main() {
    if !std::env::args().any(|a| a == "--bench") {
        return println!("scale: runs under cargo bench (make scale) only");
    }
    for signal in [libc::SIGINT, libc::SIGTERM] {
        signal_hook::flag::register(signal, STOP.clone()).expect("a signal handler");
    }
    let files =
        std::env::var("SSEFS_SCALE_FILES").map_or(1_000_000, |v| v.parse().expect("SSEFS_SCALE_FILES: a number"));
    let files = u64::max(files, 2 * FILES_A_DIR).next_multiple_of(FILES_A_DIR);
    let out = PathBuf::from(std::env::var("SSEFS_SCALE_OUT").unwrap_or_else(|_| "docs".into()));
    fs::create_dir_all(&out).expect("the directory of the figures");

    let mut bench = Bench::new();
    let mut rows = Vec::new();
    println!("{}", figures::head());
    for mark in MARKS.into_iter().filter(|m| *m < files).chain([files]) {
        let row = bench.mark(mark);
        println!("{}", row.line());
        rows.push(row);
    }
    let big = bench.big();
    let figures = Figures { rows, big, file_bytes: FILE_BYTES as u64 };
    println!("\n{}", figures.summary());
    fs::write(out.join("scale.csv"), figures.csv()).expect("scale.csv");
    fs::write(out.join("scale.svg"), svg::draw(&figures)).expect("scale.svg");
    println!("\nwritten: {0}/scale.csv, {0}/scale.svg", out.display());
}

struct Bench {
    mount: Mount,
    /// Files that the writers have made; each further one is in `extra`.
    filled: u64,
    extra: u64,
}

impl Bench {
    fn new() -> Bench {
        let mut mount = Mount::builder().rule("AES256").limit(LIMIT).mount();
        // The check of a million files is not what is measured here; tests look at soundness.
        mount.no_check_at_end();
        Bench { mount, filled: 0, extra: 0 }
    }

    fn mark(&mut self, mark: u64) -> Row {
        let from = self.filled;
        let took = self.fill(mark);
        let creates_per_s = (mark - from) as f64 / took.as_secs_f64();
        self.settle();
        let probes = (0..PROBES).map(|i| self.probe(&format!("probe-{mark}-{i}"))).collect();
        self.settle();
        let (sync_ms, sync_worst_ms) = self.syncs();
        let fill_rss = self.memory("VmHWM");

        self.mount.umount();
        let mount_clean_s = self.timed_mount();
        self.last_second(&format!("last-{mark}"));
        self.mount.kill9();
        let mount_killed_s = self.timed_mount();
        self.extra += fs::read_dir(self.mount.at(format!("last-{mark}"))).map_or(0, Iterator::count) as u64;

        self.mount.umount();
        let files = self.filled + self.extra;
        let (store, catalog) = (disk_bytes(self.mount.store()), catalog_bytes(&self.mount.folder()));
        evict(self.mount.store());
        let mount_cold_s = self.timed_mount();
        let (found, find_s) = self.find();
        Row {
            files,
            mark,
            creates_per_s,
            create_us: median(probes),
            mount_clean_s,
            mount_killed_s,
            mount_cold_s,
            sync_ms,
            sync_worst_ms,
            find_ms: find_s * 1000.0 * 10_000.0 / found as f64,
            fill_rss,
            find_rss: self.memory("VmHWM"),
            store_bytes: store,
            catalog_bytes: catalog,
        }
    }

    /// Directories of 1000 files, several writers, up to `mark` files.
    fn fill(&mut self, mark: u64) -> Duration {
        let next = AtomicU64::new(self.filled / FILES_A_DIR);
        let begun = Instant::now();
        std::thread::scope(|s| {
            for _ in 0..WRITERS {
                s.spawn(|| {
                    loop {
                        let dir = next.fetch_add(1, Ordering::Relaxed);
                        if dir >= mark / FILES_A_DIR || STOP.load(Ordering::Relaxed) {
                            break;
                        }
                        fill_dir(&self.mount.at(format!("d{dir:05}")), FILES_A_DIR);
                    }
                });
            }
        });
        go_on();
        self.filled = mark;
        begun.elapsed()
    }

    /// One writer, 1000 more files: microseconds a file.
    fn probe(&mut self, dir: &str) -> f64 {
        go_on();
        let begun = Instant::now();
        fill_dir(&self.mount.at(dir), FILES_A_DIR);
        self.extra += FILES_A_DIR;
        let took = begun.elapsed().as_secs_f64() * 1e6 / FILES_A_DIR as f64;
        // So that they do not all meet the same checkpoint of the catalog, or the same neighbour on the machine.
        std::thread::sleep(Duration::from_millis(300));
        took
    }

    /// Everything durable, and the background quiet.
    fn settle(&self) {
        let f = File::create(self.mount.at("settle")).expect("create");
        f.sync_all().expect("fsync");
        std::thread::sleep(Duration::from_millis(2500));
        f.sync_all().expect("fsync");
    }

    /// fsync right after 100 bytes were written into one file: median and worst, milliseconds.
    fn syncs(&self) -> (f64, f64) {
        let mut took = Vec::new();
        for i in 0..SYNCS as u64 {
            go_on();
            let dir = i * 7919 % (self.filled / FILES_A_DIR);
            let path = self.mount.at(format!("d{dir:05}/f{:03}", i * 31 % FILES_A_DIR));
            let f = File::options().write(true).open(path).expect("open");
            f.write_all_at(&[i as u8; 100], 200).expect("write");
            let begun = Instant::now();
            f.sync_all().expect("fsync");
            took.push(begun.elapsed().as_secs_f64() * 1000.0);
            // So that some of them meet the commit of the interval.
            std::thread::sleep(Duration::from_millis(100));
        }
        let worst = took.iter().fold(0.0, |a, b| f64::max(a, *b));
        (median(took), worst)
    }

    /// A second of work that no commit may have seen yet.
    fn last_second(&self, dir: &str) {
        go_on();
        let dir = self.mount.at(dir);
        fs::create_dir(&dir).expect("mkdir");
        let begun = Instant::now();
        for i in 0.. {
            if begun.elapsed() > Duration::from_secs(1) {
                break;
            }
            make_file(&dir.join(format!("f{i:06}")), i);
        }
    }

    fn timed_mount(&mut self) -> f64 {
        go_on();
        let begun = Instant::now();
        self.mount.mount();
        begun.elapsed().as_secs_f64()
    }

    /// find(1) over 10,000 of the files, with a stat of each.
    fn find(&self) -> (usize, f64) {
        let dirs = (0..FIND_DIRS.min(self.filled / FILES_A_DIR)).map(|d| self.mount.at(format!("d{d:05}")));
        let mut find = Command::new("find");
        find.args(dirs).args(["-type", "f", "-size", "-9k"]);
        let begun = Instant::now();
        let found = run_within(&mut find, LIMIT).ok().lines().count();
        let took = begun.elapsed().as_secs_f64();
        assert_eq!(found as u64, FIND_DIRS.min(self.filled / FILES_A_DIR) * FILES_A_DIR, "files that find(1) sees");
        (found, took)
    }

    /// A line of the daemon's /proc/PID/status, bytes.
    fn memory(&self, name: &str) -> u64 {
        let pid = self.mount.pid().expect("a mounted bucket");
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the daemon's status");
        let line = status.lines().find(|l| l.starts_with(name)).expect("a line of the status");
        line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).expect("a number of kB") * 1024
    }

    /// One large file through the mount and back; one read in a sparse file.
    fn big(&mut self) -> Big {
        let (source, target) = (self.mount.beside("source"), self.mount.at("large"));
        make_large(&source);
        self.mount.remount();
        let rss_idle = self.memory("VmRSS");
        let begun = Instant::now();
        run_within(Command::new("cp").arg(&source).arg(&target), LIMIT).ok();
        File::open(&target).and_then(|f| f.sync_all()).expect("fsync");
        let copy_in_s = begun.elapsed().as_secs_f64();
        let copy_in_rss = self.memory("VmHWM");
        go_on();

        self.mount.umount();
        evict(self.mount.store());
        self.mount.mount();
        let begun = Instant::now();
        run_within(Command::new("cmp").arg(&source).arg(&target), LIMIT).ok();
        let compare_s = begun.elapsed().as_secs_f64();
        let compare_rss = self.memory("VmHWM");
        fs::remove_file(&source).expect("rm");
        fs::remove_file(&target).expect("rm");

        let sparse = self.mount.at("sparse");
        let f = File::create(&sparse).expect("create");
        f.set_len(SPARSE_BYTES).expect("truncate");
        for i in 0..SPARSE_WRITES {
            go_on();
            f.write_all_at(&[i as u8; 4096], sparse_offset(i)).expect("write");
        }
        f.sync_all().expect("fsync");
        let sparse_write_rss = self.memory("VmHWM");
        drop(f);
        self.mount.umount();
        evict(self.mount.store());
        self.mount.mount();
        let sparse_rss_before = self.memory("VmRSS");
        let f = File::open(&sparse).expect("open");
        let mut took = Vec::new();
        let mut first_rss = 0;
        for i in 0..100 {
            let (mut page, at) = ([0; 4096], i * 37 + 11);
            let begun = Instant::now();
            f.read_exact_at(&mut page, sparse_offset(at)).expect("read");
            took.push(begun.elapsed().as_secs_f64() * 1000.0);
            assert_eq!(page, [at as u8; 4096], "what was written there");
            first_rss = if i == 0 { self.memory("VmRSS") } else { first_rss };
        }
        Big {
            bytes: COPY_BYTES,
            rss_idle,
            copy_in_s,
            copy_in_rss,
            compare_s,
            compare_rss,
            sparse_write_rss,
            sparse_rss_before,
            sparse_rss_after: first_rss,
            sparse_first_ms: took[0],
            sparse_next_ms: median(took[1..].to_vec()),
        }
    }
}

fn fill_dir(dir: &Path, files: u64) {
    fs::create_dir(dir).expect("mkdir");
    for i in 0..files {
        make_file(&dir.join(format!("f{i:03}")), i);
    }
}

fn make_file(path: &Path, i: u64) {
    File::create_new(path).and_then(|mut f| f.write_all(&[i as u8; FILE_BYTES])).expect("a new file");
}

/// A page of the sparse file, each at another place: an odd multiplier permutes the pages of a power of two.
fn sparse_offset(i: u64) -> u64 {
    let pages = SPARSE_BYTES / 4096;
    (i * 6_700_417 % pages) * 4096
}

fn make_large(path: &Path) {
    let mut mib = vec![0; 1 << 20];
    File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut mib)).expect("random bytes");
    let mut f = File::create(path).expect("create");
    for i in 0..COPY_BYTES >> 20 {
        mib[..8].copy_from_slice(&i.to_le_bytes());
        f.write_all(&mib).expect("write");
    }
    f.sync_all().expect("fsync");
}

fn each_file(below: &Path, f: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(below).expect("a directory of the store") {
        let path = entry.expect("an entry").path();
        if path.is_dir() { each_file(&path, f) } else { f(&path) }
    }
}

/// What the files below a directory take on disk.
fn disk_bytes(below: &Path) -> u64 {
    let mut sum = 0;
    each_file(below, &mut |p| sum += fs::metadata(p).expect("stat").blocks() * 512);
    sum
}

fn catalog_bytes(folder: &Path) -> u64 {
    let mut sum = 0;
    each_file(folder, &mut |p| {
        if p.extension().is_none_or(|e| e != "seg") {
            sum += fs::metadata(p).expect("stat").blocks() * 512;
        }
    });
    sum
}

/// Takes the store's files out of the page cache, so that the next mount is cold, and nobody else's.
fn evict(store: &Path) {
    each_file(store, &mut |p| {
        use std::os::fd::AsRawFd;
        let f = File::open(p).expect("open");
        f.sync_all().expect("fsync");
        // SAFETY: the descriptor is open; the call has no memory effects.
        unsafe { libc::posix_fadvise(f.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    });
}

fn median(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    v[v.len() / 2]
}
