//! ssefs as a child process for the crash tests: mounted in the foreground, killed without mercy or stopped
//! politely, and always unmounted in the end, also when a test panics.
#![allow(dead_code)]

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::lossy::detach;

/// The bucket of all crash tests.
pub const BUCKET: &str = "crash";
/// A file of this name beside the log is given to mounts as their customer key.
pub const CUSTOMER_KEY_FILE: &str = "customer.key";
pub const CUSTOMER_KEY: &[u8; 32] = b"the key of the tests, 32 bytes..";
/// A new child holds copies of all our open files until its exec has closed them, which is a little after spawn
/// returns; another thread's mount is busy that long. So no child is started while a mount is politely unmounted.
static SPAWNING: RwLock<()> = RwLock::new(());
const EXEC_TIME: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_secs(120);

/// Where a store and its keyring lie.
#[derive(Clone, Debug)]
pub struct Place {
    pub store: PathBuf,
    pub config: PathBuf,
}

impl Place {
    /// `store` and `config` below `dir`.
    pub fn below(dir: &Path) -> Place {
        Place { store: dir.join("store"), config: dir.join("config") }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ssefs"));
        command.env("SSEFS_STORE", &self.store).env("SSEFS_CONFIG", &self.config);
        command.stdin(Stdio::null());
        command
    }

    /// `ssefs bucket compact BUCKET`, as the mount is asked for it.
    pub fn compact(&self) -> io::Result<()> {
        let name = BUCKET.parse().map_err(io::Error::other)?;
        let holder = ssefs::bucket::Bucket::who_has(&self.store, &name);
        let socket = holder.and_then(|h| h.socket).ok_or_else(|| io::Error::other("no mount holds the bucket"))?;
        let request = ssefs::control::Request::Run(ssefs::ops::Command::Compact);
        ssefs::control::ask(&socket, &request, &ssefs::ops::Quiet).map(drop).map_err(io::Error::other)
    }

    /// `ssefs check BUCKET --read-data`; what it printed where it does not exit with 0.
    pub fn check(&self) -> Result<(), String> {
        let mut command = self.command();
        command.args(["check", BUCKET, "--read-data"]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = spawn(&mut command).map_err(|e| format!("ssefs check cannot run: {e}"))?;
        let output = child.wait_with_output().map_err(|e| format!("ssefs check: {e}"))?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!(
            "ssefs check --read-data: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ))
    }
}

/// A running `ssefs mount -f`.
pub struct Daemon {
    child: Child,
    mountpoint: PathBuf,
    log: PathBuf,
}

impl Daemon {
    /// Mounts the bucket (making it with rule AES256 where it is not there) at `mountpoint`, an empty directory,
    /// and waits until it is live. What ssefs prints goes to `log`, which must lie on an ordinary disk.
    pub fn start(place: &Place, mountpoint: &Path, log: &Path) -> Result<Daemon, String> {
        let output = fs::OpenOptions::new().create(true).append(true).open(log);
        let output = output.map_err(|e| format!("{}: {e}", log.display()))?;
        let errors = output.try_clone().map_err(|e| e.to_string())?;
        let before = device(mountpoint).map_err(|e| format!("{}: {e}", mountpoint.display()))?;
        let mut command = place.command();
        command.args(["mount", BUCKET]).arg(mountpoint);
        command.args(["--create", "--rule", "AES256", "-f"]).stdout(output).stderr(errors);
        if let Some(key) = log.parent().map(|dir| dir.join(CUSTOMER_KEY_FILE)).filter(|f| f.exists()) {
            command.args(["-o", &format!("customer_key_file={}", key.display())]);
        }
        let child = spawn(&mut command).map_err(|e| format!("ssefs cannot be started: {e}"))?;
        let mut daemon = Daemon { child, mountpoint: mountpoint.to_owned(), log: log.to_owned() };
        let deadline = Instant::now() + PATIENCE;
        loop {
            if device(mountpoint).is_ok_and(|now| now != before) {
                return Ok(daemon);
            }
            if let Some(status) = daemon.child.try_wait().map_err(|e| e.to_string())? {
                return Err(format!("ssefs mount ended with {status}: {}", daemon.output()));
            }
            if Instant::now() > deadline {
                return Err(format!("ssefs mount is not live after {PATIENCE:?}: {}", daemon.output()));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The end of what ssefs has printed so far.
    pub fn output(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let tail = &text[text.len().saturating_sub(3000)..];
        String::from_utf8_lossy(tail).into_owned()
    }

    /// SIGKILL, and the dead mount taken away.
    pub fn kill(mut self) {
        self.end();
    }

    /// The process id of ssefs.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGTERM: must commit, unmount and exit with 0.
    pub fn unmount(mut self) -> Result<(), String> {
        let _no_spawn = SPAWNING.read().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: our own child, not yet waited for, so the id is still its.
        unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
        let status = self.wait()?;
        if status.success() {
            return Ok(());
        }
        Err(format!("ssefs ended with {status} at SIGTERM: {}", self.output()))
    }

    fn wait(&mut self) -> Result<ExitStatus, String> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().map_err(|e| e.to_string())? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Err(format!("ssefs still runs {PATIENCE:?} after SIGTERM: {}", self.output()))
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Once for each mount that may be stacked there; an extra call only gives EINVAL.
        detach(&self.mountpoint);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
    }
}

/// The device a directory is on: changes when something is mounted there. Fails on a dead mount.
fn device(dir: &Path) -> io::Result<u64> {
    Ok(fs::metadata(dir)?.dev())
}

fn spawn(command: &mut Command) -> io::Result<Child> {
    let _no_unmount = SPAWNING.write().unwrap_or_else(PoisonError::into_inner);
    let child = command.spawn();
    std::thread::sleep(EXEC_TIME);
    child
}
