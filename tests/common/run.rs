//! Programs run from a test: their output caught, their end waited for, their errors put in words.
#![allow(dead_code)]

use std::fmt::Debug;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// No command of these tests takes a tenth of this; one that does is stuck.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(240);

/// What a program printed and how it ended.
#[derive(Debug, Clone)]
pub struct Ran {
    /// The exit code; None when a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    what: String,
}

impl Ran {
    /// Panics with all that was printed unless the program succeeded; gives its standard output.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}\nstdout: {}\nstderr: {}", self.what, self.stdout, self.stderr);
        self.stdout
    }

    /// As [`Ran::ok`], and the output parsed as JSON.
    #[track_caller]
    pub fn json(self) -> serde_json::Value {
        let what = self.what.clone();
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{what}: not JSON ({e}): {text}"))
    }

    /// Panics unless the program failed, by itself, with a message that has each of `words` in it.
    #[track_caller]
    pub fn fails_saying(&self, words: &[&str]) {
        assert!(
            self.code.is_some_and(|c| c != 0 && c != 101),
            "{} must fail with an exit code of its own: {self:?}",
            self.what
        );
        for w in words {
            assert!(self.stderr.contains(w), "{}: stderr must say {w:?}: {}", self.what, self.stderr);
        }
    }
}

/// Runs a program to its end with its output caught in files (a daemon that it leaves behind may keep
/// them open) and kills it when it is stuck.
#[track_caller]
pub fn run(cmd: &mut Command) -> Ran {
    run_within(cmd, COMMAND_LIMIT)
}

/// As [`run`], for programs that take their time.
#[track_caller]
pub fn run_within(cmd: &mut Command, limit: Duration) -> Ran {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (out, err) = (dir.path().join("out"), dir.path().join("err"));
    cmd.stdin(Stdio::null());
    cmd.stdout(File::create(&out).unwrap()).stderr(File::create(&err).unwrap());
    let what = format!("{cmd:?}");
    let mut child = cmd.spawn().unwrap_or_else(|e| panic!("{what}: {e}"));
    let status = wait(&mut child, limit);
    let text = |p: &Path| String::from_utf8_lossy(&fs::read(p).unwrap_or_default()).into_owned();
    let Some(status) = status else {
        let _ = child.kill();
        panic!("{what}: stuck\nstdout: {}\nstderr: {}", text(&out), text(&err));
    };
    Ran { code: status.code(), stdout: text(&out), stderr: text(&err), what }
}

/// The number that an environment variable gives, or `default` where it is not set.
#[track_caller]
pub fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |v| v.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

/// Runs a shell script in `dir`, which must succeed; gives its standard output.
#[track_caller]
pub fn sh(dir: &Path, script: &str) -> String {
    run(Command::new("sh").arg("-euc").arg(script).current_dir(dir)).ok()
}

/// Waits for `child`; None when it is still there after `limit`.
pub fn wait(child: &mut Child, limit: Duration) -> Option<std::process::ExitStatus> {
    let end = Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    while Instant::now() < end {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
    None
}

/// Asks again until `done`, for two minutes, which is only against waiting for ever; the answer is whether it came true.
pub fn eventually(mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + Duration::from_secs(120);
    while Instant::now() < end {
        if done() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    done()
}

/// The errno of a failed call; panics when it succeeded.
#[track_caller]
pub fn errno<T: Debug>(r: io::Result<T>) -> i32 {
    match r {
        Ok(v) => panic!("must fail, gave {v:?}"),
        Err(e) => e.raw_os_error().unwrap_or_else(|| panic!("not from the kernel: {e:?}")),
    }
}
