//! Open files: what each was opened with, and the promise of row 63 that a failure to write back is told to every file
//! and directory that was open then, at each fsync and at close, until it is closed.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use parking_lot::RwLock;

use super::FsError;

/// An open file.
#[derive(Debug)]
pub struct OpenFile {
    pub ino: u64,
    /// Whose keys opened it.
    pub uid: u32,
    /// The bucket's access generation for which they were found to do so.
    pub access: AtomicU64,
    /// The kernel keeps no pages for this handle, and leaves O_SYNC to us.
    pub direct: bool,
    pub since: Since,
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

/// When a handle was opened: failures before that are not its own.
#[derive(Debug, Clone, Copy)]
pub struct Since(u64);

/// Failures to write back: of the bucket, and of pages that the kernel handed over when nobody waited for the answer. Whose
/// bytes were lost does not matter: an fsync says that everything before it is durable.
#[derive(Debug, Default)]
pub struct Failures {
    count: AtomicU64,
    last_errno: AtomicI32,
}

impl Failures {
    pub fn now(&self) -> Since {
        Since(self.count.load(Ordering::Acquire))
    }

    /// Writing back failed: everything open now hears of it.
    pub fn note(&self, errno: i32) {
        self.last_errno.store(errno, Ordering::Release);
        self.count.fetch_add(1, Ordering::AcqRel);
    }

    /// # Errors
    /// [`FsError::WritingBack`] when that has happened since.
    pub fn check(&self, since: Since) -> Result<(), FsError> {
        if self.count.load(Ordering::Acquire) > since.0 {
            return Err(FsError::WritingBack(self.last_errno.load(Ordering::Acquire)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r63_a_failure_is_told_to_what_was_open_then_again_and_again_and_to_nothing_later() {
        let failures = Failures::default();
        let early = failures.now();
        failures.check(early).unwrap();
        failures.note(libc::ENOSPC);
        let late = failures.now();
        for _ in 0..2 {
            assert_eq!(failures.check(early).unwrap_err().errno(), libc::ENOSPC);
        }
        failures.check(late).unwrap();
        failures.note(libc::EIO);
        assert_eq!(failures.check(late).unwrap_err().errno(), libc::EIO);
    }

    #[test]
    fn a_handle_that_was_closed_is_none() {
        let table = Table::default();
        let (one, two) = (table.insert("one"), table.insert("two"));
        assert_eq!(*table.get(one).unwrap(), "one");
        table.remove(one);
        assert_eq!(table.get(one).unwrap_err().errno(), libc::EBADF);
        assert_eq!((*table.get(two).unwrap(), table.insert("three") > two), ("two", true));
    }
}
