//! Open files: what each was opened with, and the promise of row 63 that a failure to write back is told to every file
//! that was open then, at each fsync and at close, until it is closed.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use parking_lot::RwLock;

use super::FsError;

/// An open file.
#[derive(Debug)]
pub struct OpenFile {
    pub ino: u64,
    /// The kernel keeps no pages for this handle, and leaves O_SYNC to us.
    pub direct: bool,
    /// Failures before this handle was opened are not its own.
    failures_before: u64,
    /// The errno with which pages of this file, written through a mapping, were refused while it was open; 0: none.
    pages_lost: AtomicI32,
    /// The generation of file capabilities for which this handle has looked for one to clear.
    pub caps_cleared: AtomicU64,
}

/// A table of handles of one kind, by numbers that are never used twice.
#[derive(Debug)]
pub struct Table<T> {
    next: AtomicU64,
    rows: RwLock<HashMap<u64, Arc<T>>>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Table { next: AtomicU64::new(1), rows: RwLock::default() }
    }
}

impl<T> Table<T> {
    pub fn insert(&self, row: T) -> u64 {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.rows.write().insert(id, Arc::new(row));
        id
    }

    /// # Errors
    /// [`FsError::BadHandle`]
    pub fn get(&self, id: u64) -> Result<Arc<T>, FsError> {
        self.rows.read().get(&id).cloned().ok_or(FsError::BadHandle)
    }

    pub fn remove(&self, id: u64) -> Option<Arc<T>> {
        self.rows.write().remove(&id)
    }
}

/// The open files of a mount.
#[derive(Debug, Default)]
pub struct OpenFiles {
    table: Table<OpenFile>,
    failures: AtomicU64,
    last_errno: AtomicI32,
}

impl OpenFiles {
    pub fn open(&self, ino: u64, direct: bool) -> u64 {
        let failures_before = self.failures.load(Ordering::Acquire);
        self.table.insert(OpenFile {
            ino,
            direct,
            failures_before,
            pages_lost: AtomicI32::new(0),
            caps_cleared: AtomicU64::new(0),
        })
    }

    /// # Errors
    /// [`FsError::BadHandle`]
    pub fn get(&self, id: u64) -> Result<Arc<OpenFile>, FsError> {
        self.table.get(id)
    }

    pub fn close(&self, id: u64) -> Option<Arc<OpenFile>> {
        self.table.remove(id)
    }

    /// Writing back failed: every file open now hears of it.
    pub fn note_failure(&self, errno: i32) {
        self.last_errno.store(errno, Ordering::Release);
        self.failures.fetch_add(1, Ordering::AcqRel);
    }

    /// The kernel handed over pages of a mapping and they were refused: it forgets them and tells of it once. Nobody waited
    /// for an answer, so every handle of this file hears of it.
    pub fn note_pages_lost(&self, ino: u64, errno: i32) {
        for file in self.table.rows.read().values().filter(|f| f.ino == ino) {
            file.pages_lost.store(errno, Ordering::Release);
        }
    }

    /// # Errors
    /// [`FsError::WritingBack`] when that happened while the file was open.
    pub fn check(&self, file: &OpenFile) -> Result<(), FsError> {
        if self.failures.load(Ordering::Acquire) > file.failures_before {
            return Err(FsError::WritingBack(self.last_errno.load(Ordering::Acquire)));
        }
        match file.pages_lost.load(Ordering::Acquire) {
            0 => Ok(()),
            errno => Err(FsError::WritingBack(errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r63_a_failure_is_told_to_the_files_open_then_again_and_again_and_to_no_later_one() {
        let files = OpenFiles::default();
        let early = files.open(2, false);
        files.note_failure(libc::ENOSPC);
        let late = files.open(2, false);
        for _ in 0..2 {
            let e = files.check(&files.get(early).unwrap()).unwrap_err();
            assert_eq!(e.errno(), libc::ENOSPC);
        }
        files.check(&files.get(late).unwrap()).unwrap();
        files.close(early);
        assert_eq!(files.get(early).unwrap_err().errno(), libc::EBADF);
    }

    #[test]
    fn r63_lost_pages_are_told_to_every_handle_of_their_file_until_it_is_closed() {
        let files = OpenFiles::default();
        let (one, two, other) = (files.open(2, false), files.open(2, true), files.open(3, false));
        files.note_pages_lost(2, libc::ENOSPC);
        let late = files.open(2, false);
        for lost in [one, two, one] {
            assert_eq!(files.check(&files.get(lost).unwrap()).unwrap_err().errno(), libc::ENOSPC);
        }
        files.check(&files.get(other).unwrap()).unwrap();
        files.check(&files.get(late).unwrap()).unwrap();
    }
}
