//! One process at a time has a bucket open (SEMANTICS 65): a flock on the bucket's lock file, with who holds it inside.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::{BucketError, Holder};
use crate::types::BucketName;

/// Held while the bucket is open; the kernel lets go of it with the process.
pub struct BucketLock {
    file: File,
}

fn flock(file: &File, how: i32) -> bool {
    // SAFETY: a plain system call on a descriptor we own.
    unsafe { libc::flock(file.as_raw_fd(), how | libc::LOCK_NB) == 0 }
}

impl BucketLock {
    pub fn take(dir: &Path, name: &BucketName, me: &Holder) -> Result<BucketLock, BucketError> {
        let path = dir.join("lock");
        let io = |source| BucketError::Io { what: path.display().to_string(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_CLOEXEC)
            .open(&path)
            .map_err(io)?;
        // A holder may be on its way out: SIGKILL frees the lock a moment after the process is gone from view.
        let mut tries = 0;
        while !flock(&file, libc::LOCK_EX) {
            tries += 1;
            if tries > 20 {
                let holder = read_holder(&mut file).unwrap_or(Holder { pid: 0, mountpoint: None, socket: None });
                return Err(BucketError::Busy { name: name.clone(), holder });
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let text = serde_json::to_vec(me).unwrap_or_default();
        file.set_len(0).and_then(|()| file.write_all(&text)).map_err(io)?;
        Ok(BucketLock { file })
    }
}

impl Drop for BucketLock {
    fn drop(&mut self) {
        let _ = self.file.set_len(0);
        let _ = flock(&self.file, libc::LOCK_UN);
    }
}

fn read_holder(file: &mut File) -> Option<Holder> {
    let mut text = String::new();
    file.take(64 << 10).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

/// Who has the bucket in this folder open, judged by the lock itself, not by what an old holder left behind.
pub fn holder(dir: &Path) -> Option<Holder> {
    let mut file = File::open(dir.join("lock")).ok()?;
    if flock(&file, libc::LOCK_SH) {
        return None;
    }
    Some(read_holder(&mut file).unwrap_or(Holder { pid: 0, mountpoint: None, socket: None }))
}
