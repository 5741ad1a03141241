//! Sealing anew what takes more room than it must: chunks that are shown in part, and rows of small ones. Same object,
//! same PUT, same data key. It must never change what can be seen of the file but the room it takes, nor make data of holes.

use std::sync::Arc;
use std::time::Duration;

use super::inode::{Inode, State};
use super::leaf::LEAF_BYTES;
use super::put::{CatalogNodes, map_error};
use super::{Bucket, BucketError};

/// A file that somebody works on for longer than this is left for another time.
const IO_WAIT: Duration = Duration::from_millis(50);
/// Content sealed while a commit would have to wait for it, bytes.
const STEP_BYTES: u64 = 256 << 10;

impl Bucket {
    /// Write wasteful stretches of one leaf anew; returns the bytes written. Readers and writers of the file wait meanwhile:
    /// a few milliseconds, or as long as the disk takes to read a MiB.
    pub(super) fn merge_leaf(self: &Arc<Self>, ino: u64, leaf: u64) -> Result<u64, BucketError> {
        let inode = match self.inode(ino) {
            Ok(inode) => inode,
            Err(BucketError::NotFound(_)) => return Ok(0),
            Err(e) => return Err(e),
        };
        // Where nobody has its key it is left as it is; nor is a service asked for one for the sake of room.
        if self.cold(&inode).is_some() || !self.lend_key(&inode)? {
            return Ok(0);
        }
        let written = {
            // A conversion may hold it for long.
            match inode.io.try_write_for(IO_WAIT) {
                Some(_io) => self.merge_locked(&inode, leaf),
                None => Ok(0),
            }
        };
        self.let_rest(inode);
        written
    }

    /// The caller holds `io` exclusively: nobody changes the map but batches on their way, and they are looked for.
    fn merge_locked(self: &Arc<Self>, inode: &Arc<Inode>, leaf: u64) -> Result<u64, BucketError> {
        let mut runs = self.runs_to_merge(&mut inode.state.lock(), leaf)?;
        let (base, mut written) = (leaf * LEAF_BYTES, 0);
        while !runs.is_empty() {
            let mut bytes = 0;
            let n = runs
                .iter()
                .take_while(|(a, b)| {
                    bytes += u64::from(b - a);
                    bytes <= STEP_BYTES
                })
                .count();
            let step: Vec<(u32, u32)> = runs.drain(..n.max(1)).collect();
            let mut data = Vec::with_capacity(step.len());
            for (a, b) in &step {
                data.push(self.read_locked(inode, base + u64::from(*a), (b - a) as usize)?);
            }
            // From the first seal to the map nothing can freeze, as for a move.
            let _permit = self.gate.names_quietly();
            self.health()?;
            let mut st = inode.state.lock();
            let still = self.runs_to_merge(&mut st, leaf)?;
            let mut sealed = Ok(0);
            for ((a, b), data) in step.into_iter().zip(data) {
                if still.contains(&(a, b)) && data.len() == (b - a) as usize {
                    sealed = self.seal_anew(&mut st, base + u64::from(a), data);
                    written += sealed.as_ref().unwrap_or(&0);
                    if sealed.is_err() {
                        break;
                    }
                }
            }
            if written > 0 {
                self.note_change(inode, &mut st);
            }
            sealed?;
        }
        Ok(written)
    }

    /// Wasteful stretches of a leaf that nothing newer in memory covers.
    fn runs_to_merge(&self, st: &mut State, leaf: u64) -> Result<Vec<(u32, u32)>, BucketError> {
        if !st.is_file() || st.dead || st.row.nlink == 0 || st.frozen_upto.is_some() {
            return Ok(Vec::new());
        }
        let (ino, cell) = (st.row.ino, self.cell_bytes());
        let opens = self.opens();
        let content = self.content(st)?;
        let Some(seal) = content.seal.clone() else { return Ok(Vec::new()) };
        content.map.load_leaf(&seal.secrets(&opens), &CatalogNodes(self), leaf).map_err(|e| map_error(ino, e))?;
        let mut runs = content.map.leaf(leaf).map(|l| l.wasteful(cell as u32).0).unwrap_or_default();
        let cell_of = |a: u32| (leaf * LEAF_BYTES + u64::from(a)) / cell;
        runs.retain(|(a, _)| {
            let k = cell_of(*a);
            st.dirty.get(k).is_none() && !st.batches.iter().any(|b| b.cells.contains_key(&k))
        });
        Ok(runs)
    }

    fn seal_anew(&self, st: &mut State, offset: u64, data: Vec<u8>) -> Result<u64, BucketError> {
        let ino = st.row.ino;
        let content = self.content(st)?;
        let Some(seal) = content.seal.clone() else { return Ok(0) };
        let (came, went) = self.seal_into(content, &seal, ino, offset, data)?;
        st.row.sealed = (st.row.sealed + came).saturating_sub(went);
        Ok(came)
    }

    /// A map that was only looked at for this need not stay.
    fn let_rest(&self, inode: Arc<Inode>) {
        let (ino, idle) = {
            let st = inode.state.lock();
            (inode.ino, (st.opens == 0).then(|| st.content.as_ref().map_or(0, |c| c.map.memory_bytes())))
        };
        drop(inode);
        if let Some(bytes) = idle {
            self.table.closed(ino, bytes);
        }
    }
}
