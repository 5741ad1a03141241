//! What holds a commit and everybody else apart. `names` is closed while a commit writes SQL; `all` only for the
//! moment in which it freezes the epoch. Lock order of the whole bucket, outermost first:
//!
//!   inode.io > gate.names > gate.all > Bucket.ns > inode.state > catalog; the inode table and the log are leaves.
//!
//! Nothing is waited for while `all` is held shared: queues, space, keys and old content are had before.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

#[derive(Default)]
pub struct Gate {
    names: RwLock<()>,
    all: RwLock<()>,
    uses: AtomicU64,
}

/// Held by a change that writes SQL, from its first effect to its last.
pub struct NamePermit<'a> {
    _names: RwLockReadGuard<'a, ()>,
    _all: RwLockReadGuard<'a, ()>,
}

impl Gate {
    pub fn names(&self) -> NamePermit<'_> {
        self.used();
        self.names_quietly()
    }

    /// The same for work that nobody has asked for.
    pub fn names_quietly(&self) -> NamePermit<'_> {
        let names = self.names.read();
        NamePermit { _names: names, _all: self.all.read() }
    }

    /// Held by a change that stays in memory.
    pub fn data(&self) -> RwLockReadGuard<'_, ()> {
        self.used();
        self.all.read()
    }

    /// Somebody asked the bucket for something.
    pub fn used(&self) {
        self.uses.fetch_add(1, Ordering::Relaxed);
    }

    /// Changes when somebody has asked for something.
    pub fn uses(&self) -> u64 {
        self.uses.load(Ordering::Relaxed)
    }

    /// For the committer: no SQL from anybody else until it is dropped.
    pub fn close_names(&self) -> RwLockWriteGuard<'_, ()> {
        self.names.write()
    }

    /// For the committer: the instant that an epoch ends.
    pub fn freeze(&self) -> RwLockWriteGuard<'_, ()> {
        self.all.write()
    }
}
