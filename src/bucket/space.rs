//! Room on the disk: promised before a change is acknowledged, so that what was acknowledged can always be committed.
//! Deleting asks nobody: it lives off the reserve, a file whose blocks are given back when others have filled the disk.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::BucketError;

/// Bytes of the disk that writes leave alone, for the catalog, its WAL and deletions.
const RESERVE_BYTES: u64 = 24 << 20;
/// What is left alone when the reserve is a file of its own.
const MARGIN_BYTES: u64 = 4 << 20;
/// A commit that finds less room than this gets the reserve.
const RELEASE_BELOW_BYTES: u64 = 8 << 20;
/// The reserve is taken (again) when there is more room than this.
const TAKE_ABOVE_BYTES: u64 = 4 * RESERVE_BYTES;
/// Its name in the bucket's folder. It has blocks and no bytes.
pub const RESERVE_FILE: &str = "reserve";
/// The disk is asked again after this many bytes were admitted.
const ASK_EVERY_BYTES: u64 = 1 << 20;

pub struct Space {
    dir: PathBuf,
    free: AtomicU64,
    admitted: AtomicU64,
    /// Whether the reserve file has its blocks.
    reserved: AtomicBool,
    /// The disk cannot promise blocks.
    unable: AtomicBool,
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
        Space {
            dir,
            free: AtomicU64::new(0),
            admitted: AtomicU64::new(u64::MAX / 2),
            reserved: AtomicBool::new(false),
            unable: AtomicBool::new(false),
        }
    }

    /// Bytes that the disk has left for us.
    fn ask(&self) -> Result<u64, BucketError> {
        let s = disk(&self.dir)
            .map_err(|source| BucketError::Io { what: format!("statvfs {}", self.dir.display()), source })?;
        Ok(s.f_bavail as u64 * s.f_frsize as u64)
    }

    /// Before a commit writes: give the reserve back when others have filled the disk, take it when there is room.
    pub fn before_commit(&self) {
        let Ok(free) = self.ask() else { return };
        self.free.store(free, Ordering::Relaxed);
        self.admitted.store(0, Ordering::Relaxed);
        if self.reserved.load(Ordering::Acquire) {
            if free < RELEASE_BELOW_BYTES {
                log::warn!("{}: the disk is full; what was kept for this is used now", self.dir.display());
                self.give_back();
            }
        } else if free > TAKE_ABOVE_BYTES && !self.unable.load(Ordering::Relaxed) {
            match self.take() {
                Ok(()) => self.reserved.store(true, Ordering::Release),
                // Tried once, not at every commit.
                Err(e) => {
                    log::debug!("{}: no blocks can be kept in reserve: {e}", self.dir.display());
                    self.unable.store(true, Ordering::Relaxed);
                    let _ = std::fs::remove_file(self.dir.join(RESERVE_FILE));
                }
            }
        }
    }

    /// A disk that cannot promise blocks has none to promise: then the number alone must do.
    fn take(&self) -> std::io::Result<()> {
        use std::os::fd::AsRawFd;
        use std::os::unix::fs::OpenOptionsExt;
        let file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.dir.join(RESERVE_FILE))?;
        // SAFETY: a plain system call on a descriptor we own.
        let r = unsafe { libc::fallocate(file.as_raw_fd(), libc::FALLOC_FL_KEEP_SIZE, 0, RESERVE_BYTES as i64) };
        if r == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    }

    /// Give the reserve back, also at the end: a bucket at rest keeps none.
    pub fn give_back(&self) {
        self.reserved.store(false, Ordering::Release);
        self.admitted.store(u64::MAX / 2, Ordering::Relaxed);
        let _ = std::fs::remove_file(self.dir.join(RESERVE_FILE));
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
        let keep = if self.reserved.load(Ordering::Acquire) { MARGIN_BYTES } else { RESERVE_BYTES };
        if admitted > ASK_EVERY_BYTES || bytes.saturating_add(keep) > left {
            let free = self.ask()?;
            self.free.store(free, Ordering::Relaxed);
            self.admitted.store(0, Ordering::Relaxed);
            if bytes.saturating_add(bytes >> 6).saturating_add(keep) > free {
                return Err(BucketError::NoSpace);
            }
        }
        self.admitted.fetch_add(new.max(4096), Ordering::Relaxed);
        Ok(())
    }
}
