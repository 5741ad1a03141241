//! The segment files of one bucket: names, opening, reading, wiping, removing. A bounded number stays open.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::LogError;
use super::buffer::Aligned;
use crate::types::BLOCK;

/// Segment files kept open for reading at most.
const OPEN_FILES_MAX: usize = 512;

/// Reads of this many bytes go past the page cache: the kernel caches what is made of them, and would keep both.
const DIRECT_BYTES_MIN: usize = 128 << 10;

/// Read what lies in whole blocks around the wanted bytes, which may begin and end anywhere.
fn read_direct(f: &File, position: u64, out: &mut [u8]) -> std::io::Result<()> {
    thread_local! {
        static MEMORY: std::cell::RefCell<Option<Aligned>> = const { std::cell::RefCell::new(None) };
    }
    let start = position / BLOCK as u64 * BLOCK as u64;
    let skip = (position - start) as usize;
    let bytes = (skip + out.len()).next_multiple_of(BLOCK);
    MEMORY.with_borrow_mut(|memory| {
        let memory = match memory {
            Some(m) if m.len() >= bytes => m,
            m => m.insert(Aligned::zeroed(bytes)),
        };
        // SAFETY: made zeroed above.
        let block = unsafe { &mut memory.bytes_mut()[..bytes] };
        let mut have = 0;
        while have < skip + out.len() {
            match f.read_at(&mut block[have..], start + have as u64) {
                Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => have += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
            if have % BLOCK != 0 {
                // The file ends in the middle of a block: nothing behind it can be read this way.
                break;
            }
        }
        if have < skip + out.len() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        out.copy_from_slice(&block[skip..skip + out.len()]);
        Ok(())
    })
}

/// Keep what was opened for a segment, in place of another when there are too many.
fn keep<T>(open: &mut HashMap<u32, T>, id: u32, file: T) {
    if open.len() >= OPEN_FILES_MAX
        && let Some(victim) = open.keys().next().copied()
    {
        open.remove(&victim);
    }
    open.insert(id, file);
}

/// The folder `seg` of a bucket.
pub struct SegmentFiles {
    dir: PathBuf,
    open: Mutex<HashMap<u32, Arc<File>>>,
    /// The same past the page cache; None where the disk cannot.
    direct: Mutex<HashMap<u32, Option<Arc<File>>>>,
}

impl SegmentFiles {
    pub fn new(dir: PathBuf) -> SegmentFiles {
        SegmentFiles { dir, open: Mutex::default(), direct: Mutex::default() }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn path(&self, id: u32) -> PathBuf {
        self.dir.join(format!("{id:08x}.seg"))
    }

    pub fn io(&self, id: u32, source: std::io::Error) -> LogError {
        let path = self.path(id);
        if source.kind() == std::io::ErrorKind::NotFound {
            LogError::Missing(path)
        } else {
            LogError::Io { path, source }
        }
    }

    /// Ids and lengths of all segment files, ascending. Other names in the folder are left alone.
    pub fn list(&self) -> Result<Vec<(u32, u64)>, LogError> {
        let at = |source| LogError::Io { path: self.dir.clone(), source };
        let mut out = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(at)? {
            let entry = entry.map_err(at)?;
            let name = entry.file_name();
            let Some(stem) = name.to_str().and_then(|n| n.strip_suffix(".seg")) else { continue };
            if stem.len() != 8 {
                continue;
            }
            if let Ok(id) = u32::from_str_radix(stem, 16) {
                out.push((id, entry.metadata().map_err(at)?.len()));
            }
        }
        out.sort_unstable();
        Ok(out)
    }

    /// Make a new segment file for appending, past the page cache where the disk allows it.
    pub fn create(&self, id: u32) -> Result<File, LogError> {
        let path = self.path(id);
        let make = |flags| OpenOptions::new().write(true).create_new(true).mode(0o600).custom_flags(flags).open(&path);
        match make(libc::O_DIRECT | libc::O_CLOEXEC) {
            Ok(f) => Ok(f),
            // A disk without direct I/O may already have made the name.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                let _ = std::fs::remove_file(&path);
                make(libc::O_CLOEXEC).map_err(|e| self.io(id, e))
            }
            Err(e) => Err(self.io(id, e)),
        }
    }

    fn reader(&self, id: u32) -> Result<Arc<File>, LogError> {
        if let Some(f) = self.open.lock().get(&id) {
            return Ok(f.clone());
        }
        let f = Arc::new(File::open(self.path(id)).map_err(|e| self.io(id, e))?);
        keep(&mut self.open.lock(), id, f.clone());
        Ok(f)
    }

    fn direct_reader(&self, id: u32) -> Option<Arc<File>> {
        if let Some(f) = self.direct.lock().get(&id) {
            return f.clone();
        }
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(self.path(id));
        let f = match opened {
            Ok(f) => Some(Arc::new(f)),
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => None,
            // The other way of opening will say what is wrong.
            Err(_) => return None,
        };
        keep(&mut self.direct.lock(), id, f.clone());
        f
    }

    /// Fill `out` from `position` on. A file that ends earlier is an error of kind UnexpectedEof.
    pub fn read_exact(&self, id: u32, position: u64, out: &mut [u8]) -> Result<(), LogError> {
        if out.len() >= DIRECT_BYTES_MIN
            && let Some(f) = self.direct_reader(id)
        {
            return read_direct(&f, position, out).map_err(|e| self.io(id, e));
        }
        self.reader(id)?.read_exact_at(out, position).map_err(|e| self.io(id, e))
    }

    pub fn len(&self, id: u32) -> Result<u64, LogError> {
        Ok(std::fs::metadata(self.path(id)).map_err(|e| self.io(id, e))?.len())
    }

    /// Bytes that the disk has given to a segment.
    pub fn allocated(&self, id: u32) -> Result<u64, LogError> {
        use std::os::unix::fs::MetadataExt;
        Ok(std::fs::metadata(self.path(id)).map_err(|e| self.io(id, e))?.blocks() * 512)
    }

    /// Remove a segment that holds nothing live. One that is gone already is fine.
    pub fn remove(&self, id: u32) -> Result<(), LogError> {
        self.open.lock().remove(&id);
        self.direct.lock().remove(&id);
        match std::fs::remove_file(self.path(id)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(self.io(id, e)),
            _ => Ok(()),
        }
    }

    /// Cut what an interrupted run left behind the committed end.
    pub fn truncate(&self, id: u32, bytes: u64) -> Result<(), LogError> {
        let f = OpenOptions::new().write(true).open(self.path(id)).map_err(|e| self.io(id, e))?;
        f.set_len(bytes).and_then(|()| f.sync_all()).map_err(|e| self.io(id, e))
    }

    /// Give a block-aligned range back to the disk. A disk that cannot is no error: the range is merely still taken.
    pub fn punch(&self, id: u32, position: u64, bytes: u64) -> Result<(), LogError> {
        let f = OpenOptions::new().write(true).open(self.path(id)).map_err(|e| self.io(id, e))?;
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: a plain system call on a descriptor we own.
        let r = unsafe { libc::fallocate(f.as_raw_fd(), mode, position as i64, bytes as i64) };
        if r != 0 {
            let e = std::io::Error::last_os_error();
            if !matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP) | Some(libc::ENOSYS)) {
                return Err(self.io(id, e));
            }
        }
        Ok(())
    }

    /// Overwrite a range with zeroes and make that durable.
    pub fn wipe(&self, id: u32, position: u64, bytes: u64) -> Result<(), LogError> {
        self.wipe_all(id, &[(position, bytes)])
    }

    /// Overwrite ranges (position, bytes) with zeroes and make that durable.
    pub fn wipe_all(&self, id: u32, ranges: &[(u64, u64)]) -> Result<(), LogError> {
        let f = match OpenOptions::new().write(true).open(self.path(id)) {
            Ok(f) => f,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(self.io(id, e)),
        };
        let longest = ranges.iter().map(|(_, n)| *n).max().unwrap_or(0);
        let zeroes = vec![0u8; longest.min(1 << 20) as usize];
        for &(position, bytes) in ranges {
            let mut done = 0;
            while done < bytes {
                let n = (bytes - done).min(zeroes.len() as u64) as usize;
                f.write_all_at(&zeroes[..n], position + done).map_err(|e| self.io(id, e))?;
                done += n as u64;
            }
        }
        f.sync_data().map_err(|e| self.io(id, e))
    }

    /// Put other bytes in the place of those there (position, bytes), and make that durable. A segment that is gone is fine.
    ///
    /// # Errors
    /// Those of writing.
    pub fn overwrite(&self, id: u32, places: &[(u32, Vec<u8>)]) -> Result<(), LogError> {
        let f = match OpenOptions::new().write(true).open(self.path(id)) {
            Ok(f) => f,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(self.io(id, e)),
        };
        for (position, bytes) in places {
            f.write_all_at(bytes, u64::from(*position)).map_err(|e| self.io(id, e))?;
        }
        f.sync_data().map_err(|e| self.io(id, e))
    }

    /// Make what is in a segment durable, and forget what the kernel has of it: reading it then shows the disk.
    ///
    /// # Errors
    /// Those of opening and of fdatasync(2).
    pub fn settle(&self, id: u32) -> Result<(), LogError> {
        let file = self.reader(id)?;
        file.sync_data().map_err(|e| self.io(id, e))?;
        // SAFETY: advice about a descriptor we own. It may fail, and then only what it would have helped is lost.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        Ok(())
    }

    pub fn sync_dir(&self) -> Result<(), LogError> {
        let at = |source| LogError::Io { path: self.dir.clone(), source };
        File::open(&self.dir).map_err(at)?.sync_all().map_err(at)
    }
}
