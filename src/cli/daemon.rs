//! Going into the background. The fork comes first, before any thread and before the bucket is opened; a pipe tells
//! the waiting parent that the mount is live, or why it never will be, and the parent's exit status follows.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};

use crate::ops::{ErrorCode, OpError};

/// Which side of the fork this is.
pub enum Side {
    /// The process that was started: how the mount's beginning went.
    Parent(Result<(), OpError>),
    /// The process that holds the mount.
    Child(Report),
}

/// The child's word to its parent.
pub struct Report(File);

/// Forks. Must be called before any thread exists: the child has only the calling one. `parted` is run in the parent,
/// at once.
pub fn fork_off(parted: impl FnOnce()) -> Result<Side, OpError> {
    let threads = fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads != 1 {
        return Err(OpError::new(ErrorCode::General, format!("cannot go into the background with {threads} threads")));
    }
    let failed = |what: &str| OpError::io(what, &io::Error::last_os_error());
    let mut ends = [0; 2];
    // SAFETY: ends has room for the two descriptors pipe2 writes.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(failed("make a pipe"));
    }
    // SAFETY: pipe2 just opened both, and nothing else owns them.
    let (from_child, to_parent) = unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
    // SAFETY: one thread, checked above, so the child's heap and locks are in a sane state.
    match unsafe { libc::fork() } {
        -1 => Err(failed("start a process")),
        0 => {
            drop(from_child);
            // SAFETY: no memory is involved. Until the mount is live, the parent's end (Ctrl-C) ends us as well.
            unsafe {
                libc::setsid();
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
            }
            Ok(Side::Child(Report(to_parent.into())))
        }
        pid => {
            drop(to_parent);
            parted();
            Ok(Side::Parent(await_child(from_child.into(), pid)))
        }
    }
}

fn await_child(mut pipe: File, pid: libc::pid_t) -> Result<(), OpError> {
    let mut text = String::new();
    let read = (&mut pipe).take(1 << 20).read_to_string(&mut text);
    if read.is_ok() && !text.is_empty() {
        return serde_json::from_str::<Result<(), OpError>>(&text).unwrap_or_else(|e| {
            Err(OpError::new(ErrorCode::General, format!("the mount's first word makes no sense: {e}")))
        });
    }
    let mut status = 0;
    // SAFETY: status is a writable int; pid is our own child.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    let how = if libc::WIFSIGNALED(status) {
        format!("was killed by signal {}", libc::WTERMSIG(status))
    } else {
        format!("ended with status {}", libc::WEXITSTATUS(status))
    };
    Err(OpError::new(ErrorCode::Mount, format!("the mount process {how} before the mount was live"))
        .hint("run it with -f to see what it says"))
}

impl Report {
    /// The mount is live: lets go of the terminal and the current directory, and tells the parent.
    pub fn live(self) -> Result<(), OpError> {
        let null =
            File::options().read(true).write(true).open("/dev/null").map_err(|e| OpError::io("open /dev/null", &e))?;
        std::env::set_current_dir("/").map_err(|e| OpError::io("go to /", &e))?;
        for fd in [libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO] {
            use std::os::fd::AsRawFd;
            // SAFETY: both descriptors are open or, for a closed standard one, become so.
            if unsafe { libc::dup2(null.as_raw_fd(), fd) } < 0 {
                return Err(OpError::io("let go of the terminal", &io::Error::last_os_error()));
            }
        }
        // SAFETY: no memory is involved.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, 0) };
        self.send(&Ok(()))
    }

    /// It will not be: the parent prints the error and exits with its code.
    pub fn failed(self, e: &OpError) {
        let _ = self.send(&Err(e.clone()));
    }

    fn send(mut self, word: &Result<(), OpError>) -> Result<(), OpError> {
        let text = serde_json::to_vec(word).map_err(|e| OpError::new(ErrorCode::General, e.to_string()))?;
        self.0.write_all(&text).map_err(|e| OpError::io("tell the parent process", &e))
    }
}
