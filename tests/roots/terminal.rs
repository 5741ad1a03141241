//! Asking at a terminal: a real one, made with openpty(3). What is typed is not shown, the mount goes into the background
//! only after it, and whoever presses Ctrl-C finds the terminal as it was.

use crate::cli_support::{SSEFS, Sandbox, is_mounted};
use crate::secret_file;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Child;
use std::time::{Duration, Instant};

/// The program at a terminal of its own, and our end of that.
struct AtTerminal {
    child: Child,
    terminal: File,
    other_end: OwnedFd,
    seen: String,
}

impl AtTerminal {
    fn start(s: &Sandbox, args: &[&str]) -> AtTerminal {
        let (mut ours, mut theirs) = (0, 0);
        let none = std::ptr::null_mut();
        // SAFETY: both numbers are writable; no name, mode or size is asked for.
        let rc = unsafe { libc::openpty(&raw mut ours, &raw mut theirs, none, none.cast(), none.cast()) };
        assert_eq!(rc, 0);
        // SAFETY: openpty just opened both, and nothing else owns them.
        let (terminal, other_end) = unsafe { (File::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) };
        // SAFETY: no memory is involved.
        unsafe { libc::fcntl(ours, libc::F_SETFD, libc::FD_CLOEXEC) };
        let theirs = other_end.as_raw_fd();
        let dup = || other_end.try_clone().unwrap();
        let mut command = s.command(SSEFS);
        command.args(args).stdin(dup()).stdout(dup()).stderr(dup());
        // SAFETY: the closure calls only setsid and ioctl, which are safe between fork and exec.
        unsafe {
            command.pre_exec(move || {
                // A test program in the background of a shell has it ignored.
                libc::signal(libc::SIGINT, libc::SIG_DFL);
                libc::setsid();
                libc::ioctl(theirs, libc::TIOCSCTTY, 0);
                Ok(())
            })
        };
        let child = command.spawn().unwrap();
        drop(command);
        AtTerminal { child, terminal, other_end, seen: String::new() }
    }

    fn echoes(&self) -> bool {
        // SAFETY: all zeroes are a termios, which the call fills.
        let mut mode = unsafe { std::mem::zeroed::<libc::termios>() };
        // SAFETY: the descriptor is open and mode is writable.
        assert_eq!(unsafe { libc::tcgetattr(self.other_end.as_raw_fd(), &raw mut mode) }, 0);
        mode.c_lflag & libc::ECHO != 0
    }

    /// Reads until the terminal shows `what`, which was not seen before.
    #[track_caller]
    fn until(&mut self, what: &str) {
        let end = Instant::now() + Duration::from_secs(60);
        while !self.seen.contains(what) {
            assert!(Instant::now() < end, "{what:?} does not come: {:?}", self.seen);
            let mut poll = libc::pollfd { fd: self.terminal.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: poll is one writable pollfd.
            if unsafe { libc::poll(&raw mut poll, 1, 1000) } > 0 {
                let mut buffer = [0u8; 4096];
                let n = self.terminal.read(&mut buffer).unwrap_or(0);
                self.seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        }
    }

    /// Waits for the prompt and the silence after it, then types.
    #[track_caller]
    fn answer(&mut self, prompt: &str, text: &str) {
        self.until(prompt);
        crate::cli_support::until("silence", || !self.echoes());
        self.seen = self.seen.split_once(prompt).unwrap().1.to_owned();
        self.terminal.write_all(text.as_bytes()).unwrap();
    }

    fn end(mut self) -> (std::process::ExitStatus, String) {
        let status = self.child.wait().unwrap();
        assert!(self.echoes(), "the terminal is left as it was");
        // Whatever is still to be read, without waiting.
        let mut buffer = [0u8; 65536];
        let mut poll = libc::pollfd { fd: self.terminal.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: poll is one writable pollfd.
        while unsafe { libc::poll(&raw mut poll, 1, 0) } > 0 {
            let n = self.terminal.read(&mut buffer).unwrap_or(0);
            if n == 0 {
                break;
            }
            self.seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
        (status, self.seen)
    }
}

/// A bucket with a file in it and a passphrase.
fn sealed(s: &Sandbox) -> String {
    let dir = s.mounted("photos", "mnt").to_str().unwrap().to_owned();
    fs::write(format!("{dir}/f"), "content").unwrap();
    s.ssefs(&["umount", &dir]).ok();
    let file = secret_file(&s.path("phrase"), "correct horse battery\n");
    let change = ["key", "root", "change", "--to", "passphrase", "--kdf-memory", "1M", "--new-passphrase-file", &file];
    s.ssefs(&change).ok();
    dir
}

#[test]
fn a_mount_in_the_background_asks_first_and_takes_a_second_try() {
    let s = Sandbox::new();
    let dir = sealed(&s);
    let mut t = AtTerminal::start(&s, &["mount", "photos", &dir]);
    t.answer("Passphrase of the root key ", "wrong horse battery\n");
    t.answer("Passphrase of the root key ", "correct horse battery\n");
    let (status, seen) = t.end();
    assert!(status.success(), "{seen}");
    assert!(!seen.contains("horse"), "shown: {seen:?}");
    assert!(is_mounted(dir.as_ref()));
    assert_eq!(fs::read_to_string(format!("{dir}/f")).unwrap(), "content");
    s.ssefs(&["umount", &dir]).ok();
}

#[test]
fn three_wrong_passphrases_end_it() {
    let s = Sandbox::new();
    let dir = sealed(&s);
    let mut t = AtTerminal::start(&s, &["mount", "photos", &dir]);
    for _ in 0..3 {
        t.answer("Passphrase of the root key ", "wrong horse battery\n");
    }
    let (status, seen) = t.end();
    assert_eq!(status.code(), Some(6), "{seen}");
    assert!(seen.contains("wrong passphrase") && !seen.contains("horse"), "{seen}");
    assert!(!is_mounted(dir.as_ref()));
}

#[test]
fn ctrl_c_at_the_prompt_ends_it_with_the_terminal_as_it_was() {
    let s = Sandbox::new();
    let dir = sealed(&s);
    let mut t = AtTerminal::start(&s, &["mount", "photos", &dir]);
    t.answer("Passphrase of the root key ", "half a pass\x03");
    let (status, seen) = t.end();
    assert_eq!(status.signal(), Some(libc::SIGINT), "{seen}");
    assert!(!seen.contains("half"), "{seen}");
    assert!(!is_mounted(dir.as_ref()));
}

#[test]
fn a_new_passphrase_is_typed_twice() {
    let s = Sandbox::new();
    s.ssefs(&["key", "create"]).ok();
    let change = ["key", "root", "change", "--to", "passphrase", "--kdf-memory", "1M"];
    let mut t = AtTerminal::start(&s, &change);
    t.answer("New passphrase for the new root key: ", "correct horse\n");
    t.answer("Once more: ", "correct hearse\n");
    let (status, seen) = t.end();
    assert_eq!(status.code(), Some(2), "{seen}");
    assert!(seen.contains("differ"), "{seen}");
    assert!(s.path("config/root.key").exists(), "nothing was changed");
    let mut t = AtTerminal::start(&s, &change);
    t.answer("New passphrase for the new root key: ", "correct horse\n");
    t.answer("Once more: ", "correct horse\n");
    let (status, seen) = t.end();
    assert!(status.success() && !seen.contains("horse"), "{seen}");
    assert!(!s.path("config/root.key").exists());
}
