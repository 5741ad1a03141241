//! `ssefs umount`: ends a mount and waits until its process has committed and released the bucket, so that after it
//! returns the store can be copied, moved or mounted again.

use std::sync::mpsc;
use std::thread;

use super::args::UmountArgs;
use super::{mountpoint, print};
use crate::control::{self, Request};
use crate::fuse::mount_table;
use crate::ops::{ErrorCode, OpError, Progress};

/// Turns the mount's first progress line, "I will tell you", into a message.
struct Heard(mpsc::SyncSender<()>);

impl Progress for Heard {
    fn stage(&self, _what: &str, _total: Option<u64>) {
        let _ = self.0.try_send(());
    }
    fn advance(&self, _units: u64) {}
}

pub fn run(args: &UmountArgs) -> Result<(), OpError> {
    let shown = args.mountpoint.display();
    let dir = mountpoint::resolve(&args.mountpoint)?;
    let mount = mount_table::mount_at(&dir).map_err(|e| OpError::io("read the mount table", &e))?;
    let Some(mount) = mount else {
        return Err(OpError::new(ErrorCode::NotFound, format!("nothing is mounted at {shown}"))
            .hint("see what is mounted: findmnt -t fuse,fuse.ssefs"));
    };
    if !mount.is_fuse() {
        return Err(OpError::new(
            ErrorCode::Refused,
            format!("what is mounted at {shown} is {}, no bucket", mount.fs_type),
        ));
    }
    if mountpoint::is_stale(&dir) {
        mountpoint::unmount(&dir, true)?;
        print::note(&format!("the process of the mount at {shown} had died; detached it"));
        return Ok(());
    }
    let Some(identity) = control::find_mount(&dir) else {
        return Err(OpError::new(ErrorCode::Permission, format!("the mount at {shown} does not answer this user"))
            .hint("it belongs to another user or is no ssefs mount; umount(8) unmounts it as root"));
    };

    // First in line for the mount's last word, then unmount: the other way round it could be spoken too early.
    let (heard, waiting) = mpsc::sync_channel(1);
    let socket = identity.socket.clone();
    let last_word = thread::spawn(move || control::ask(&socket, &Request::AwaitClosed, &Heard(heard)));
    if waiting.recv().is_err() {
        return last_word.join().unwrap_or_else(|_| Err(print::unexpected("end"))).map(drop);
    }
    mountpoint::unmount(&dir, args.lazy)?;
    match last_word.join() {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(e)) => Err(OpError {
            message: format!(
                "{shown} is unmounted, but bucket {} was not closed properly: {}",
                identity.bucket, e.message
            ),
            ..e
        }),
        Err(_) => Err(print::unexpected("end")),
    }
}
