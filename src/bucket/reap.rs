//! Inodes without a name: freed when nobody uses them any more, large ones in pieces, a piece a commit.

use std::sync::Arc;

use super::inode::{Content, Inode};
use super::leaf::LEAF_BYTES;
use super::{Bucket, BucketError};

/// Leaves of one inode freed in one commit.
const LEAVES_AT_ONCE: u64 = 2048;

impl Bucket {
    /// Queue an inode that has lost its last name, if nothing uses it. Called again when a handle closes or the kernel forgets.
    pub(super) fn maybe_reap(&self, inode: &Arc<Inode>) {
        let st = inode.state.lock();
        if st.row.nlink == 0 && st.opens == 0 && !st.dead && !self.table.is_remembered(inode.ino) {
            drop(st);
            self.reap.lock().push(inode.clone());
        }
    }

    /// An open handle keeps an inode.
    pub fn opened(&self, ino: u64) -> Result<(), BucketError> {
        self.inode(ino)?.state.lock().opens += 1;
        Ok(())
    }

    pub fn closed(&self, ino: u64) {
        if let Some(inode) = self.table.get(ino) {
            let idle = {
                let mut st = inode.state.lock();
                st.opens = st.opens.saturating_sub(1);
                (st.opens == 0).then(|| st.content.as_ref().map_or(0, |c| c.map.memory_bytes()))
            };
            self.maybe_reap(&inode);
            drop(inode);
            if let Some(map_bytes) = idle {
                self.table.closed(ino, map_bytes);
            }
        }
    }

    /// The kernel has been told of an inode `n` times more.
    pub fn remember(&self, ino: u64, n: u64) {
        self.table.remember(ino, n);
    }

    pub fn forget(&self, ino: u64, n: u64) {
        if self.table.forget(ino, n)
            && let Some(inode) = self.table.get(ino)
        {
            self.maybe_reap(&inode);
        }
    }

    /// By the committer, before it freezes: free content of the queue's inodes; what is left of large ones comes next time.
    pub(super) fn reap_some(self: &Arc<Self>) -> Result<(), BucketError> {
        let queue = std::mem::take(&mut *self.reap.lock());
        let (mut again, mut more) = (Vec::new(), false);
        for inode in queue {
            // Somebody in the middle of a write uses it: next time.
            let Some(_io) = inode.io.try_write() else {
                again.push(inode.clone());
                continue;
            };
            {
                let st = inode.state.lock();
                if st.dead || st.row.nlink > 0 || st.opens > 0 {
                    continue;
                }
            }
            // The committer waits for no key service: the inode is left for a later commit, and freed without its key when the
            // service did not give it.
            let unkeyed = match self.cold(&inode).map(|kek| self.fetch_aside(kek)) {
                Some(Ok(())) => {
                    again.push(inode.clone());
                    continue;
                }
                asked => asked.is_some(),
            };
            let mut gone = 0;
            let whole = self.when_quiet(&inode, |st| {
                gone = st.drop_dirty(0, u64::MAX, self.cell_bytes());
                let freed = match st.is_file() {
                    true if unkeyed => self.free_unkeyed(st),
                    true => self.free_some(st),
                    false => Ok(true),
                };
                let whole = match freed {
                    Ok(whole) => whole,
                    Err(e @ (BucketError::Damaged { .. } | BucketError::Erased(_))) => {
                        log::warn!(
                            "object {}: deleted although {e}; its space in the log is not given back",
                            inode.ino
                        );
                        st.content = Some(Box::<Content>::default());
                        true
                    }
                    Err(e) => return Err(e),
                };
                if whole {
                    st.dead = true;
                    self.unlocked.forget(inode.ino);
                }
                self.note_change(&inode, st);
                Ok(whole)
            })?;
            self.dirty_changed(0, gone);
            if !whole {
                again.push(inode.clone());
                more = true;
            }
        }
        self.reap.lock().extend(again);
        if more {
            self.wake_committer();
        }
        Ok(())
    }

    /// Free up to a bounded number of leaves, from the end. True when nothing is left.
    fn free_some(&self, st: &mut super::inode::State) -> Result<bool, BucketError> {
        if st.content.as_ref().is_some_and(|c| c.unkeyed) {
            return self.free_unkeyed(st);
        }
        if let Err(BucketError::Key(_) | BucketError::Customer(_)) = self.content(st) {
            return self.free_unkeyed(st);
        }
        let leaves = st.row.size.div_ceil(LEAF_BYTES);
        if leaves <= LEAVES_AT_ONCE {
            self.cut(st, 0, u64::MAX)?;
            return Ok(true);
        }
        let from = (leaves - LEAVES_AT_ONCE) * LEAF_BYTES;
        self.cut(st, from, u64::MAX)?;
        st.row.size = from;
        Ok(false)
    }
}
