//! A place of its own for each test of the command line: store, keys and mountpoints in a temporary directory, and
//! whatever is still mounted is unmounted at the end, also when the test failed.

#![allow(dead_code, reason = "each test file uses its part")]

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The program under test.
pub const SSEFS: &str = env!("CARGO_BIN_EXE_ssefs");

/// One invocation's outcome.
#[derive(Debug)]
pub struct Outcome {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Outcome {
    /// Panics unless it succeeded; its standard output.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    /// Panics unless it failed with `code` and said all of `words` on standard error, nothing on standard output.
    #[track_caller]
    pub fn fails(self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        assert!(self.err.starts_with("ssefs: error: ") || self.err.contains("\nssefs: error: "), "{self:?}");
        for word in words {
            assert!(self.err.contains(word), "{word:?} is missing in {self:?}");
        }
        assert_eq!(self.out, "", "an error prints nothing on standard output");
    }
}

impl From<Output> for Outcome {
    fn from(o: Output) -> Outcome {
        Outcome {
            code: o.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&o.stdout).into_owned(),
            err: String::from_utf8_lossy(&o.stderr).into_owned(),
        }
    }
}

/// A store, keys and room for mountpoints, gone when dropped.
pub struct Sandbox {
    pub dir: tempfile::TempDir,
}

impl Sandbox {
    pub fn new() -> Sandbox {
        Sandbox { dir: tempfile::Builder::new().prefix("ssefs-cli-").tempdir().expect("a temporary directory") }
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    /// A new empty directory in the sandbox, as text.
    pub fn mkdir(&self, name: &str) -> String {
        let dir = self.path(name);
        fs::create_dir_all(&dir).expect("a directory");
        dir.to_str().expect("temporary paths are UTF-8").to_owned()
    }

    /// The program with its environment pointing into the sandbox.
    pub fn command<S: AsRef<OsStr>>(&self, program: S) -> Command {
        let mut command = Command::new(program);
        command
            .env("SSEFS_STORE", self.path("store"))
            .env("SSEFS_CONFIG", self.path("config"))
            .env("HOME", self.path("home"))
            .env_remove("XDG_DATA_HOME")
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("SSEFS_LOG")
            .current_dir(self.dir.path());
        command
    }

    pub fn ssefs(&self, args: &[&str]) -> Outcome {
        self.command(SSEFS).args(args).stdin(Stdio::null()).output().expect("ssefs runs").into()
    }

    pub fn ssefs_with_input(&self, args: &[&str], input: &str) -> Outcome {
        let mut child = self
            .command(SSEFS)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("ssefs runs");
        let sent = child.stdin.take().expect("piped").write_all(input.as_bytes());
        let outcome = child.wait_with_output().expect("ssefs ends").into();
        sent.unwrap_or_else(|e| panic!("it did not read its input: {e}; {outcome:?}"));
        outcome
    }

    /// Mounts a bucket made for it with rule AES256 at the new directory `name`.
    pub fn mounted(&self, bucket: &str, name: &str) -> PathBuf {
        require_fuse();
        let dir = self.mkdir(name);
        self.ssefs(&["mount", bucket, &dir, "--create", "--rule", "AES256"]).ok();
        dir.into()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let mine = self.dir.path().canonicalize().unwrap_or_else(|_| self.dir.path().to_owned());
        for mountpoint in mountpoints().into_iter().rev().filter(|m| m.starts_with(&mine)) {
            let _ = Command::new("umount").arg("-l").arg(&mountpoint).output();
            let _ = Command::new("fusermount3").arg("-uz").arg(&mountpoint).output();
        }
    }
}

/// A suite that skips its main part must not be green.
pub fn require_fuse() {
    assert!(Path::new("/dev/fuse").exists(), "this test mounts and needs /dev/fuse (modprobe fuse)");
}

/// Every mountpoint of this system whose path has no blanks.
pub fn mountpoints() -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("a mount table");
    table.lines().filter_map(|l| l.split(' ').nth(4)).map(PathBuf::from).collect()
}

pub fn is_mounted(dir: &Path) -> bool {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    mountpoints().contains(&dir)
}

/// Waits until `done`; the limit is only against waiting for ever.
#[track_caller]
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(120);
    while !done() {
        assert!(Instant::now() < end, "{what} did not happen within two minutes");
        std::thread::sleep(Duration::from_millis(20));
    }
}
