//! Inodes in memory by number, and how often the kernel has looked each up. Clean, unused inodes leave when there are
//! many; they come back from the catalog under the same number.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::inode::Inode;

/// Inodes kept at most before the unused ones are let go.
const INODES_MAX: usize = 16_384;

#[derive(Default)]
struct Inner {
    inodes: HashMap<u64, Arc<Inode>>,
    sweep_at: usize,
    lookups: HashMap<u64, u64>,
}

#[derive(Default)]
pub struct Table(Mutex<Inner>);

impl Table {
    pub fn get(&self, ino: u64) -> Option<Arc<Inode>> {
        self.0.lock().inodes.get(&ino).cloned()
    }

    /// The inode under this number: the one that is there already, or `inode`.
    pub fn insert(&self, inode: Arc<Inode>) -> Arc<Inode> {
        let mut t = self.0.lock();
        if t.inodes.len() >= t.sweep_at.max(INODES_MAX) {
            // Whoever uses or has changed an inode holds it too.
            t.inodes
                .retain(|_, i| Arc::strong_count(i) > 1 || i.state.try_lock().is_none_or(|s| s.opens > 0 || s.listed));
            t.sweep_at = t.inodes.len() + INODES_MAX / 2;
        }
        t.inodes.entry(inode.ino).or_insert(inode).clone()
    }

    pub fn remove(&self, ino: u64) {
        self.0.lock().inodes.remove(&ino);
    }

    pub fn remember(&self, ino: u64, n: u64) {
        *self.0.lock().lookups.entry(ino).or_insert(0) += n;
    }

    /// True when the kernel has forgotten the inode altogether.
    pub fn forget(&self, ino: u64, n: u64) -> bool {
        let mut t = self.0.lock();
        match t.lookups.get_mut(&ino) {
            Some(have) if *have > n => {
                *have -= n;
                false
            }
            _ => {
                t.lookups.remove(&ino);
                true
            }
        }
    }

    pub fn is_remembered(&self, ino: u64) -> bool {
        self.0.lock().lookups.contains_key(&ino)
    }

    /// At unmount the kernel forgets without saying so.
    pub fn forget_all(&self) {
        self.0.lock().lookups.clear();
    }
}
