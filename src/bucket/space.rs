//! Room on the disk: promised before a change is acknowledged, so that what was acknowledged can always be committed.
//! Deleting asks nobody: it lives off the reserve.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use super::BucketError;

/// Bytes of the disk that writes leave alone, for the catalog, its WAL and deletions.
const RESERVE_BYTES: u64 = 24 << 20;
/// The disk is asked again after this many bytes were admitted.
const ASK_EVERY_BYTES: u64 = 1 << 20;

pub struct Space {
    dir: PathBuf,
    free: AtomicU64,
    admitted: AtomicU64,
}

/// statvfs(3) of the store's disk.
pub fn disk(dir: &std::path::Path) -> std::io::Result<libc::statvfs> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(dir.as_os_str().as_bytes())?;
    // SAFETY: statvfs is plain data that the call fills.
    let mut s: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: path is NUL-terminated and s writable for the call.
    if unsafe { libc::statvfs(path.as_ptr(), &raw mut s) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(s)
}

impl Space {
    pub fn new(dir: PathBuf) -> Space {
        Space { dir, free: AtomicU64::new(0), admitted: AtomicU64::new(u64::MAX / 2) }
    }

    /// Whether there is so much room that nobody need save any.
    pub fn is_ample(&self) -> bool {
        self.free.load(Ordering::Relaxed).saturating_sub(self.admitted.load(Ordering::Relaxed)) > 2 * RESERVE_BYTES
    }

    /// May `bytes` more be taken, with `under_way` acknowledged and not yet on disk?
    pub fn admit(&self, bytes: u64, under_way: u64) -> Result<(), BucketError> {
        let (new, bytes) = (bytes, bytes.saturating_add(under_way));
        let admitted = self.admitted.load(Ordering::Relaxed);
        let left = self.free.load(Ordering::Relaxed).saturating_sub(admitted);
        if admitted > ASK_EVERY_BYTES || bytes.saturating_add(RESERVE_BYTES) > left {
            let s = disk(&self.dir)
                .map_err(|source| BucketError::Io { what: format!("statvfs {}", self.dir.display()), source })?;
            let free = s.f_bavail as u64 * s.f_frsize as u64;
            self.free.store(free, Ordering::Relaxed);
            self.admitted.store(0, Ordering::Relaxed);
            if bytes.saturating_add(bytes >> 6).saturating_add(RESERVE_BYTES) > free {
                return Err(BucketError::NoSpace);
            }
        }
        self.admitted.fetch_add(new.max(4096), Ordering::Relaxed);
        Ok(())
    }
}
