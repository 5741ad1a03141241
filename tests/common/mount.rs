//! One bucket on a real mount, with store, keyring and mountpoint in a temporary directory of its own.
//! Everything is undone on drop, also after a panic and also when ssefs hangs: a test must never leave a
//! mount or a process behind. A test that ends well also unmounts and asks `ssefs check --read-data`.
//!
//! With `SSEFS_TEST_PLAIN=1` a plain directory stands in for the mount, which shows that a test's own
//! expectations are those of a local disk; tests of what only ssefs has are skipped then.
#![allow(dead_code, unused_imports)] // each test program uses a part of it

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use tempfile::TempDir;

pub use super::run::*;
pub use super::sys::{
    as_user, cstr, get_xattr, get_xattr_into, get_xattr_text, list_xattr, remove_xattr, set_xattr, set_xattr_flags,
};

/// An ordinary user, without an entry in passwd and without any privilege.
pub const USER: u32 = 4711;
/// The key of [`Builder::customer`].
pub const CUSTOMER_KEY: &[u8; 32] = b"a key of the test's, 32 bytes ..";
/// The bucket's name unless the builder says another.
pub const BUCKET: &str = "b";

/// Whether a plain directory stands in for the mount.
pub fn plain() -> bool {
    std::env::var_os("SSEFS_TEST_PLAIN").is_some_and(|v| v == "1")
}

/// Whether the tests run as root; those that need other users, device nodes or mounts are skipped otherwise.
pub fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions.
    unsafe { libc::geteuid() == 0 }
}

/// True, with a line saying so, where a test needs root and has not got it.
pub fn skip_without_root() -> bool {
    if !is_root() {
        eprintln!("skipped: needs root");
    }
    !is_root()
}

/// How a [`Mount`] is to be; [`Builder::mount`] makes it.
pub struct Builder {
    bucket: String,
    rule: Option<String>,
    chunk_size: Option<String>,
    options: Vec<String>,
    env: Vec<(String, OsString)>,
    foreground: bool,
    store: Option<PathBuf>,
    limit: Duration,
    customer: bool,
}

impl Builder {
    /// Everything new in it is SSE-C, by a key that each mount is given as an option.
    pub fn customer(mut self) -> Self {
        self.customer = true;
        self
    }

    /// How long the test may take with its mount before that is taken for stuck.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// The bucket's rule, short form; without it the bucket has none.
    pub fn rule(mut self, rule: &str) -> Self {
        self.rule = Some(rule.to_string());
        self
    }

    /// One `-o` option, for example `allow_other`.
    pub fn option(mut self, option: &str) -> Self {
        self.options.push(option.to_string());
        self
    }

    /// A variable of the environment of every `ssefs` of this test.
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.env.push((name.to_string(), value.into()));
        self
    }

    /// The chunk size that the bucket is made with.
    pub fn chunk_size(mut self, size: &str) -> Self {
        self.chunk_size = Some(size.to_string());
        self
    }

    /// Other users may come in, as tests with [`as_user`] need it.
    pub fn shared(self) -> Self {
        self.option("allow_other")
    }

    /// `ssefs mount -f` as a child of the test: its exit code and what it logs can be seen.
    pub fn foreground(mut self) -> Self {
        self.foreground = true;
        self
    }

    pub fn bucket(mut self, name: &str) -> Self {
        self.bucket = name.to_string();
        self
    }

    /// A store at another place than the test's own directory.
    pub fn store(mut self, dir: &Path) -> Self {
        self.store = Some(dir.to_path_buf());
        self
    }

    /// The directories and the settings, with nothing mounted and no bucket made.
    pub fn unmounted(self) -> Mount {
        let dir = tempfile::Builder::new().prefix("ssefs-test-").tempdir().expect("temporary directory");
        // Others must be able to reach the mountpoint; store and keyring are 0700 by themselves.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(dir.path().join("mnt")).unwrap();
        let mut options = self.options;
        if self.customer {
            let key = dir.path().join("customer.key");
            fs::write(&key, CUSTOMER_KEY).unwrap();
            fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
            options.push(format!("customer_key_file={}", key.display()));
        }
        Mount {
            store: self.store.unwrap_or_else(|| dir.path().join("store")),
            bucket: self.bucket,
            rule: self.rule,
            chunk_size: self.chunk_size,
            options,
            env: self.env,
            customer: self.customer,
            foreground: self.foreground,
            child: None,
            created: false,
            check_at_end: !plain(),
            limit: self.limit,
            watchdog: None,
            dir,
        }
    }

    /// Makes the bucket and mounts it; panics with ssefs's message when that fails.
    #[track_caller]
    pub fn mount(self) -> Mount {
        let mut m = self.unmounted();
        if plain() {
            fs::set_permissions(m.path(), fs::Permissions::from_mode(0o755)).unwrap();
            return m;
        }
        m.mount();
        if m.customer {
            set_xattr(m.path(), "user.sse.customer-key", CUSTOMER_KEY).unwrap();
        }
        m.arm_watchdog();
        m
    }
}

/// A bucket of its own, mounted.
pub struct Mount {
    dir: TempDir,
    store: PathBuf,
    bucket: String,
    rule: Option<String>,
    chunk_size: Option<String>,
    options: Vec<String>,
    env: Vec<(String, OsString)>,
    customer: bool,
    foreground: bool,
    child: Option<Child>,
    created: bool,
    check_at_end: bool,
    limit: Duration,
    watchdog: Option<mpsc::Sender<()>>,
}

impl Mount {
    /// A new bucket with this rule (none if empty), mounted, for root or the caller alone.
    #[track_caller]
    pub fn new(rule: &str) -> Mount {
        let b = Mount::builder();
        if rule.is_empty() { b.mount() } else { b.rule(rule).mount() }
    }

    /// As [`Mount::new`], but None, with a line saying so, where a plain directory stands in for the mount.
    #[track_caller]
    pub fn real(rule: &str) -> Option<Mount> {
        if skip_without_ssefs() { None } else { Some(Mount::new(rule)) }
    }

    pub fn builder() -> Builder {
        Builder {
            bucket: BUCKET.into(),
            rule: None,
            chunk_size: None,
            options: vec![],
            env: vec![],
            foreground: false,
            customer: false,
            store: None,
            limit: COMMAND_LIMIT,
        }
    }

    /// The mountpoint.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// A path below the mountpoint.
    pub fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    /// A place beside the mount, on the plain disk, gone with the test.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn store(&self) -> &Path {
        &self.store
    }

    /// Where the root key and the keyring lie.
    pub fn config(&self) -> PathBuf {
        self.dir.path().join("config")
    }

    /// The bucket's folder in the store: lock, catalog, segments.
    pub fn folder(&self) -> PathBuf {
        self.store.join("buckets").join(&self.bucket)
    }

    /// The bucket's segment files in order.
    pub fn segments(&self) -> Vec<PathBuf> {
        let mut v: Vec<PathBuf> = fs::read_dir(self.folder().join("seg"))
            .map(|d| d.map(|e| e.unwrap().path()).filter(|p| p.extension() == Some(OsStr::new("seg"))).collect())
            .unwrap_or_default();
        v.sort();
        v
    }

    /// `ssefs ARGS` for this store and keyring, not yet run.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_ssefs"));
        c.args(args).env("SSEFS_STORE", &self.store).env("SSEFS_CONFIG", self.config());
        c.envs(self.env.iter().map(|(n, v)| (n, v)));
        c.current_dir(self.dir.path());
        c
    }

    /// Sets a variable for every `ssefs` from now on.
    pub fn set_env(&mut self, name: &str, value: impl Into<OsString>) {
        self.env.push((name.to_string(), value.into()));
    }

    /// Runs `ssefs ARGS` for this store and keyring.
    #[track_caller]
    pub fn ssefs(&self, args: &[&str]) -> Ran {
        run(&mut self.command(args))
    }

    /// What `ssefs object show --json` says of a path below the mountpoint.
    #[track_caller]
    pub fn show(&self, name: &str) -> serde_json::Value {
        let path = self.at(name);
        self.ssefs(&["object", "show", path.to_str().unwrap(), "--json"]).json()
    }

    fn mount_command(&self) -> Command {
        let mnt = self.path();
        let mut c = self.command(&["mount", &self.bucket, mnt.to_str().unwrap()]);
        if !self.created {
            c.arg("--create");
            if let Some(rule) = &self.rule {
                c.args(["--rule", rule]);
            }
            if let Some(size) = &self.chunk_size {
                c.args(["--chunk-size", size]);
            }
        }
        for o in &self.options {
            c.args(["-o", o]);
        }
        c
    }

    /// Tries to mount, in the background; for tests of a mount that must be refused.
    #[track_caller]
    pub fn try_mount(&self) -> Ran {
        run(&mut self.mount_command())
    }

    /// The bucket exists by now: later mounts go without `--create`.
    pub fn set_created(&mut self) {
        self.created = true;
    }

    /// Mounts; panics with ssefs's message when that fails. In a plain directory it does nothing.
    #[track_caller]
    pub fn mount(&mut self) {
        if plain() {
            return;
        }
        if self.foreground {
            let log = File::options().create(true).append(true).open(self.beside("ssefs.log")).unwrap();
            let mut c = self.mount_command();
            c.arg("-f").stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
            let mut child = c.spawn().unwrap();
            let up = eventually(|| is_mounted(&self.path()) || child.try_wait().unwrap().is_some());
            assert!(up && is_mounted(&self.path()), "{c:?}: not mounted: {}", self.log());
            self.child = Some(child);
        } else {
            self.try_mount().ok();
            assert!(is_mounted(&self.path()), "ssefs mount came back, but nothing is mounted");
        }
        self.created = true;
        let pid = self.pid().expect("the lock of a mounted bucket names a process");
        assert!(is_ssefs(pid), "the lock names process {pid}, which is not ssefs");
    }

    /// Unmounts, and mounts again with one more `-o` option.
    #[track_caller]
    pub fn with_option(mut self, option: &str) -> Mount {
        self.umount();
        self.options.push(option.to_string());
        self.mount();
        self
    }

    /// What a foreground mount has printed so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.beside("ssefs.log")).unwrap_or_default()).into_owned()
    }

    /// The process that the bucket's lock names.
    pub fn pid(&self) -> Option<i32> {
        let text = fs::read(self.folder().join("lock")).ok()?;
        let lock: serde_json::Value = serde_json::from_slice(&text).ok()?;
        lock.get("pid")?.as_i64()?.try_into().ok()
    }

    /// Unmounts with `ssefs umount` and waits for the process to end.
    #[track_caller]
    pub fn umount(&mut self) {
        if plain() || !is_mounted(&self.path()) {
            return;
        }
        let pid = self.pid();
        // A child that another test has just forked holds our files until it runs its program.
        let mut said = None;
        let unmounted = || {
            let ran = self.ssefs(&["umount", self.path().to_str().unwrap()]);
            let busy = ran.code == Some(4);
            said = Some(ran);
            !busy
        };
        eventually(unmounted);
        said.expect("it was tried").ok();
        assert!(!is_mounted(&self.path()), "still mounted after ssefs umount");
        self.wait_gone(pid);
    }

    /// Unmounts cleanly and mounts again.
    #[track_caller]
    pub fn remount(&mut self) {
        self.umount();
        self.mount();
    }

    /// Ends ssefs by SIGTERM, which unmounts cleanly too; [`Mount::mount`] brings it back.
    #[track_caller]
    pub fn terminate(&mut self) {
        if !plain() {
            let pid = self.pid();
            self.signal(libc::SIGTERM);
            self.wait_gone(pid);
            assert!(!is_mounted(&self.path()), "still mounted after SIGTERM");
        }
    }

    /// Kills ssefs without warning and takes the dead mount away; [`Mount::mount`] brings it back.
    #[track_caller]
    pub fn kill9(&mut self) {
        self.kill9_leaving_the_mount();
        detach(&self.path());
    }

    /// Kills ssefs without warning; its mount stays, dead, as after a crash.
    #[track_caller]
    pub fn kill9_leaving_the_mount(&mut self) {
        if !plain() {
            self.signal(libc::SIGKILL);
            let pid = self.pid();
            self.wait_gone(pid);
        }
    }

    /// Sends a signal to the process that has the bucket.
    #[track_caller]
    pub fn signal(&self, signal: i32) {
        let pid = self.pid().expect("a lock that names a process");
        assert!(is_ssefs(pid), "process {pid} is not ssefs");
        // SAFETY: kill has no memory effects; the process was just seen to be ssefs.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0, "kill: {}", io::Error::last_os_error());
    }

    /// How a foreground mount ended: its exit code, None for a signal.
    #[track_caller]
    pub fn exit_code(&mut self) -> Option<i32> {
        let mut child = self.child.take().expect("a foreground mount");
        let status = wait(&mut child, Duration::from_secs(120));
        if status.is_none() {
            let _ = child.kill();
        }
        status.unwrap_or_else(|| panic!("ssefs does not end: {}", self.log())).code()
    }

    #[track_caller]
    fn wait_gone(&mut self, pid: Option<i32>) {
        if let Some(child) = self.child.as_mut() {
            assert!(wait(child, Duration::from_secs(120)).is_some(), "ssefs does not end");
            self.child = None;
        } else if let Some(pid) = pid {
            assert!(eventually(|| !is_ssefs(pid)), "ssefs, process {pid}, does not end");
        }
    }

    /// The test has damaged the store on purpose: no `ssefs check` at the end.
    pub fn no_check_at_end(&mut self) {
        self.check_at_end = false;
    }

    /// Ends the connection when a test takes far too long, so that a call that hangs in it fails instead.
    fn arm_watchdog(&mut self) {
        let (tx, rx) = mpsc::channel::<()>();
        let (path, folder, limit) = (self.path(), self.folder(), self.limit);
        std::thread::spawn(move || {
            if rx.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("the test is stuck: killing the ssefs of {}", path.display());
                let pid = fs::read(folder.join("lock"))
                    .ok()
                    .and_then(|t| serde_json::from_slice::<serde_json::Value>(&t).ok());
                if let Some(pid) = pid.and_then(|l| l.get("pid")?.as_i64()).map(|p| p as i32).filter(|&p| is_ssefs(p)) {
                    // SAFETY: kill has no memory effects.
                    unsafe { libc::kill(pid, libc::SIGKILL) };
                }
                detach(&path);
            }
        });
        self.watchdog = Some(tx);
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if plain() {
            return;
        }
        let well = !std::thread::panicking();
        if !well {
            eprintln!("what ssefs said: {}", self.log());
        }
        let judged = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            if well && self.check_at_end && self.created {
                let bucket = self.bucket.clone();
                if self.customer && is_mounted(&self.path()) {
                    // Only there are its objects unlocked.
                    let checked = self.ssefs(&["check", &bucket, "--read-data", "--json"]).json();
                    assert_eq!(checked["locked_objects"], serde_json::Value::Null, "{checked}");
                }
                self.umount();
                let checked = self.ssefs(&["check", &bucket, "--read-data"]);
                assert_eq!(checked.code, Some(0), "the bucket a test left is not sound: {checked:?}");
            }
        }));
        // Whatever came out of that, nothing is left behind.
        self.watchdog = None;
        detach(&self.path());
        if let Some(child) = self.child.as_mut() {
            let _ = child.kill();
            let _ = child.wait();
        } else if let Some(pid) = self.pid().filter(|&p| is_ssefs(p)) {
            // SAFETY: kill has no memory effects; the process was just seen to be ssefs.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            eventually(|| !is_ssefs(pid));
        }
        if let Err(failed) = judged {
            std::panic::resume_unwind(failed);
        }
    }
}

/// True, with a line saying so, where a plain directory stands in for the mount.
pub fn skip_without_ssefs() -> bool {
    if plain() {
        eprintln!("skipped: only ssefs has this");
    }
    plain()
}

/// Whether something is mounted at `path`, dead or alive.
pub fn is_mounted(path: &Path) -> bool {
    let want = path.as_os_str().as_bytes();
    let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
    table.split(|&b| b == b'\n').any(|line| line.split(|&b| b == b' ').nth(4) == Some(want))
}

/// Takes the mount at `path` away whatever its state is.
pub fn detach(path: &Path) {
    for _ in 0..8 {
        if !is_mounted(path) {
            return;
        }
        let p = cstr(path);
        // SAFETY: p is a NUL-terminated string that outlives the call.
        if unsafe { libc::umount2(p.as_ptr(), libc::MNT_DETACH) } != 0 {
            let _ = Command::new("fusermount3").arg("-uz").arg(path).stderr(Stdio::null()).status();
        }
    }
}

/// Whether this process lives and is ssefs: a number in a lock file may be another's by now.
fn is_ssefs(pid: i32) -> bool {
    let Ok(stat) = fs::read(format!("/proc/{pid}/stat")) else { return false };
    let stat = String::from_utf8_lossy(&stat).into_owned();
    let (Some(open), Some(close)) = (stat.find('('), stat.rfind(')')) else { return false };
    let dead = matches!(stat[close + 1..].trim_start().chars().next(), Some('Z' | 'X') | None);
    // The first thread can be dead while others, on their way out, still hold the files and the lock.
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    stat[open + 1..close].starts_with("ssefs") && (!dead || threads > 1)
}
