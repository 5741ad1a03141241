//! The asking side, used by the command line: sends a command to a mount, hands its progress on, and finds the mount
//! that holds a directory.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::runtime_dir::pid_of;
use super::{ANSWER_BYTES_MAX, Answer, MountIdentity, Request, runtime_dirs_to_search};
use crate::ops::{ErrorCode, OpError, Progress, Quiet};

/// Who is at the other end of a socket, as the kernel says (unix(7), SO_PEERCRED).
pub(super) fn peer(stream: &UnixStream) -> io::Result<libc::ucred> {
    let mut cred = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and cred and len describe one writable ucred.
    let rc = unsafe {
        libc::getsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut cred).cast(), &raw mut len)
    };
    if rc == 0 { Ok(cred) } else { Err(io::Error::last_os_error()) }
}

/// Asks the mount behind `socket` and waits for its answer, as long as it takes.
///
/// # Errors
/// The operation's own; `NotFound` when nobody listens there any more; `General` when the answer makes no sense.
pub fn ask(socket: &Path, request: &Request, progress: &dyn Progress) -> Result<Value, OpError> {
    let stream = UnixStream::connect(socket).map_err(|e| gone(socket, &e))?;
    converse(&stream, socket, request, progress)
}

/// Asks a mount that may be stuck: waits for its answer no longer than `limit`.
pub fn ask_within(socket: &Path, request: &Request, limit: Duration) -> Result<Value, OpError> {
    let stream = UnixStream::connect(socket).map_err(|e| gone(socket, &e))?;
    let limited = stream.set_read_timeout(Some(limit)).and_then(|()| stream.set_write_timeout(Some(limit)));
    limited.map_err(|e| gone(socket, &e))?;
    converse(&stream, socket, request, &Quiet)
}

fn gone(socket: &Path, e: &io::Error) -> OpError {
    OpError::new(ErrorCode::NotFound, format!("no mount answers at {}: {e}", socket.display()))
        .hint("the process may just be ending; try again")
}

fn converse(stream: &UnixStream, socket: &Path, request: &Request, progress: &dyn Progress) -> Result<Value, OpError> {
    let mut line =
        serde_json::to_vec(request).map_err(|e| OpError::usage(format!("cannot be sent to a mount: {e}")))?;
    line.push(b'\n');
    // A mount that is full answers and hangs up without reading: its answer counts, not our broken pipe.
    let sent = (&mut &*stream).write_all(&line);
    let mut reader = BufReader::new(stream);
    loop {
        line.clear();
        let read = (&mut reader).take(ANSWER_BYTES_MAX).read_until(b'\n', &mut line);
        if let Err(e) =
            read.and(if line.is_empty() { sent.as_ref().map(|_| 0).map_err(|e| e.kind().into()) } else { Ok(0) })
        {
            return Err(gone(socket, &e));
        }
        if line.is_empty() {
            return Err(OpError::new(ErrorCode::General, "the mount ended before it answered")
                .hint("its log says why (system log, or the file of --log)"));
        }
        match serde_json::from_slice(&line) {
            Ok(Answer::Stage { what, total }) => progress.stage(&what, total),
            Ok(Answer::Advance(units)) => progress.advance(units),
            Ok(Answer::Done(value)) => return Ok(value),
            Ok(Answer::Failed(e)) => return Err(e),
            Err(e) => {
                return Err(OpError::new(ErrorCode::General, format!("the mount's answer makes no sense: {e}"))
                    .hint("it runs another version of ssefs: unmount and mount again"));
            }
        }
    }
}

/// The live mount at `mountpoint` (an absolute path as the kernel shows it), if one of this user (root: of anybody)
/// is there.
pub fn find_mount(mountpoint: &Path) -> Option<MountIdentity> {
    for dir in runtime_dirs_to_search() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
            let socket = entry.path();
            if pid_of(&socket).is_none() {
                continue;
            }
            let found = who(&socket);
            if found.as_ref().is_some_and(|m| m.mountpoint == mountpoint) {
                return found;
            }
        }
    }
    None
}

fn who(socket: &Path) -> Option<MountIdentity> {
    let stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    let pid = peer(&stream).ok()?.pid;
    let value = converse(&stream, socket, &Request::Who, &Quiet).ok()?;
    let mut identity: MountIdentity = serde_json::from_value(value).ok()?;
    // The kernel's word about the process counts, not its own.
    identity.pid = u32::try_from(pid).ok()?;
    identity.socket = socket.to_owned();
    Some(identity)
}
