//! Inodes in memory by number, and how often the kernel has looked each up. Clean, unused inodes leave when there are
//! many; they come back from the catalog under the same number.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::inode::Inode;

/// Inodes kept at most before the unused ones are let go.
const INODES_MAX: usize = 16_384;
/// Neighbours by number whose look-ups are counted in one row.
const ROW: u64 = 16;

#[derive(Default)]
struct Inner {
    inodes: HashMap<u64, Arc<Inode>>,
    sweep_at: usize,
    lookups: Lookups,
}

/// How often the kernel has looked up what it still knows. It keeps nearly every inode it has ever seen while it has memory,
/// and numbers are given one after another: 4 bytes an inode and a few for its row, where a map of single numbers took up
/// to 35, and half as much again while it grew.
#[derive(Default)]
struct Lookups(HashMap<u64, Box<[u32; ROW as usize]>>);

impl Lookups {
    /// A count that reaches its top stays there: the inode is remembered until the bucket is closed.
    fn add(&mut self, ino: u64, n: u64) {
        let count = &mut self.0.entry(ino / ROW).or_default()[(ino % ROW) as usize];
        *count = count.saturating_add(u32::try_from(n).unwrap_or(u32::MAX));
    }

    /// True when none is left.
    fn take(&mut self, ino: u64, n: u64) -> bool {
        let Some(row) = self.0.get_mut(&(ino / ROW)) else { return true };
        let count = &mut row[(ino % ROW) as usize];
        if *count == u32::MAX {
            return false;
        }
        *count = u64::from(*count).saturating_sub(n) as u32;
        let none = *count == 0;
        if row.iter().all(|c| *c == 0) {
            self.0.remove(&(ino / ROW));
            // A kernel that has forgotten most of a large tree gives its memory back to us too.
            if self.0.capacity() > 1024 && self.0.len() < self.0.capacity() / 8 {
                self.0.shrink_to(self.0.len() * 2);
            }
        }
        none
    }

    fn has(&self, ino: u64) -> bool {
        self.0.get(&(ino / ROW)).is_some_and(|row| row[(ino % ROW) as usize] > 0)
    }
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
        self.0.lock().lookups.add(ino, n);
    }

    /// True when the kernel has forgotten the inode altogether.
    pub fn forget(&self, ino: u64, n: u64) -> bool {
        self.0.lock().lookups.take(ino, n)
    }

    pub fn is_remembered(&self, ino: u64) -> bool {
        self.0.lock().lookups.has(ino)
    }

    /// At unmount the kernel forgets without saying so.
    pub fn forget_all(&self) {
        self.0.lock().lookups = Lookups::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_is_remembered_until_each_look_up_is_forgotten_and_its_neighbours_are_their_own() {
        let t = Table::default();
        t.remember(32, 2);
        t.remember(33, 1);
        assert!(!t.forget(32, 1));
        assert!(t.is_remembered(32));
        assert!(t.forget(32, 1));
        assert!(!t.is_remembered(32));
        assert!(t.is_remembered(33) && !t.is_remembered(34) && !t.is_remembered(33 + ROW));
        assert!(t.forget(33, 9), "more than there were");
        assert!(t.forget(33, 1) && t.forget(7, 1), "never looked up");
        assert!(t.0.lock().lookups.0.is_empty(), "rows go with their last count");
    }

    #[test]
    fn a_count_at_its_top_is_not_forgotten_too_early() {
        let t = Table::default();
        t.remember(5, u64::from(u32::MAX) - 1);
        t.remember(5, 7);
        assert!(!t.forget(5, u64::from(u32::MAX)));
        assert!(t.is_remembered(5));
        t.forget_all();
        assert!(!t.is_remembered(5));
    }

    #[test]
    fn what_the_kernel_has_forgotten_takes_no_memory() {
        let t = Table::default();
        for ino in 0..100_000 {
            t.remember(ino, 1);
        }
        for ino in 0..100_000 {
            assert!(t.forget(ino, 1));
        }
        assert!(t.0.lock().lookups.0.capacity() <= 2048);
    }
}
