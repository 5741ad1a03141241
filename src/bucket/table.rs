//! Inodes in memory by number, and how often the kernel has looked each up. Clean, unused inodes leave when there are
//! many; they come back from the catalog under the same number.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;

use super::inode::Inode;

/// Inodes kept at most before the unused ones are let go.
const INODES_MAX: usize = 16_384;
/// Bytes of maps kept for files that nobody has open; those closed longest ago go first.
const IDLE_BYTES_MAX: usize = 32 << 20;
/// Maps of fewer bytes are not counted: [`INODES_MAX`] bounds them.
const IDLE_BYTES_MIN: usize = 2 << 10;
/// Idle files looked at in one call.
const IDLE_AT_ONCE: usize = 64;
/// Neighbours by number whose look-ups are counted in one row.
const ROW: u64 = 16;

#[derive(Default)]
struct Inner {
    inodes: HashMap<u64, Arc<Inode>>,
    sweep_at: usize,
    idle: Idle,
    lookups: Lookups,
}

/// Files that were closed with a large map in memory: 40 bytes a chunk, so that a thousand of them would be a gigabyte.
#[derive(Default)]
struct Idle {
    /// By inode: when it was closed last, and the bytes of its map.
    files: HashMap<u64, (u64, usize)>,
    order: BTreeMap<u64, u64>,
    bytes: usize,
    clock: u64,
}

impl Idle {
    fn add(&mut self, ino: u64, bytes: usize) {
        self.remove(ino);
        self.clock += 1;
        self.files.insert(ino, (self.clock, bytes));
        self.order.insert(self.clock, ino);
        self.bytes += bytes;
    }

    fn remove(&mut self, ino: u64) {
        if let Some((when, bytes)) = self.files.remove(&ino) {
            self.order.remove(&when);
            self.bytes -= bytes;
        }
    }

    /// The one that was closed longest ago, and the bytes of its map.
    fn oldest(&mut self) -> Option<(u64, usize)> {
        let ino = *self.order.first_key_value()?.1;
        let bytes = self.files.get(&ino)?.1;
        self.remove(ino);
        Some((ino, bytes))
    }
}

/// Nobody uses the inode, nor has anybody changed it since the last commit: whoever does holds it too. One without a name
/// stays until it is reaped: the kernel still knows it, and forgetting it must find it here.
fn is_unused(i: &Arc<Inode>) -> bool {
    Arc::strong_count(i) == 1 && i.state.try_lock().is_some_and(|s| s.opens == 0 && !s.listed && s.row.nlink > 0)
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

    /// Every inode in memory.
    pub fn all(&self) -> Vec<Arc<Inode>> {
        self.0.lock().inodes.values().cloned().collect()
    }

    /// The inode under this number: the one that is there already, or `inode`.
    pub fn insert(&self, inode: Arc<Inode>) -> Arc<Inode> {
        let mut t = self.0.lock();
        if t.inodes.len() >= t.sweep_at.max(INODES_MAX) {
            t.inodes.retain(|_, i| !is_unused(i));
            t.sweep_at = t.inodes.len() + INODES_MAX / 2;
        }
        t.inodes.entry(inode.ino).or_insert(inode).clone()
    }

    pub fn remove(&self, ino: u64) {
        let mut t = self.0.lock();
        t.inodes.remove(&ino);
        t.idle.remove(ino);
    }

    /// The last handle of a file was closed, with so many bytes of its map in memory. The caller no longer holds the inode.
    pub fn closed(&self, ino: u64, map_bytes: usize) {
        let mut t = self.0.lock();
        if map_bytes < IDLE_BYTES_MIN {
            return t.idle.remove(ino);
        }
        t.idle.add(ino, map_bytes);
        for _ in 0..IDLE_AT_ONCE {
            if t.idle.bytes <= IDLE_BYTES_MAX {
                break;
            }
            let Some((ino, bytes)) = t.idle.oldest() else { break };
            match t.inodes.get(&ino) {
                Some(i) if is_unused(i) => drop(t.inodes.remove(&ino)),
                // It waits for a commit: later.
                Some(_) => t.idle.add(ino, bytes),
                None => {}
            }
        }
    }

    /// All that the kernel knows, and may have pages of.
    pub fn remembered(&self) -> Vec<u64> {
        let t = self.0.lock();
        let rows = t.lookups.0.iter();
        rows.flat_map(|(row, counts)| (0..ROW).filter(|i| counts[*i as usize] > 0).map(move |i| row * ROW + i))
            .collect()
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
    use crate::catalog::InodeRow;

    #[test]
    fn maps_of_closed_files_are_let_go_the_oldest_first_but_not_of_files_that_are_used_or_changed() {
        let t = Table::default();
        let insert = |ino| t.insert(Arc::new(Inode::new(InodeRow { ino, nlink: 1, ..InodeRow::default() }, false)));
        for ino in 0..10 {
            insert(ino);
        }
        let held = t.get(0);
        t.get(1).unwrap().state.lock().opens = 1;
        t.get(2).unwrap().state.lock().listed = true;
        for ino in 0..10 {
            t.closed(ino, IDLE_BYTES_MAX / 8);
        }
        let there = |ino| t.get(ino).is_some();
        assert!(held.is_some() && there(0) && there(1) && there(2), "in use");
        assert!(!there(3) && !there(4), "closed longest ago");
        assert!((5..10).all(there), "there is room for these");
        t.get(2).unwrap().state.lock().listed = false;
        for _ in 0..3 {
            t.closed(9, IDLE_BYTES_MAX / 8);
        }
        assert!(there(5), "closed again and again, a file counts once");
        for ino in [5, 6] {
            t.closed(ino, 0);
        }
        assert!(t.0.lock().idle.bytes <= IDLE_BYTES_MAX * 6 / 8, "small by now");
        t.closed(8, IDLE_BYTES_MAX / 8 * 6);
        assert!(!there(2) && !there(7) && !there(9) && there(8) && there(5), "clean by now");
    }

    #[test]
    fn an_inode_without_a_name_stays_however_many_others_come() {
        let t = Table::default();
        for ino in 1..=2 * INODES_MAX as u64 {
            t.insert(Arc::new(Inode::new(InodeRow { ino, nlink: u32::from(ino > 10), ..InodeRow::default() }, false)));
        }
        assert!((1..=10).all(|ino| t.get(ino).is_some()));
        assert!(t.0.lock().inodes.len() <= INODES_MAX + INODES_MAX / 2);
    }

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
