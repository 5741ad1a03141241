//! Conversion: the whole of an object sealed anew under another method, into a shadow map that takes the old one's place
//! at one instant. Until then the old content stands, so a crash or a full disk changes nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use super::inode::{Content, Inode};
use super::leaf::{Entry, LEAF_BYTES};
use super::put::{CatalogNodes, Seal, map_error};
use super::write::Jobs;
use super::{Bucket, BucketError, now_ns};
use crate::rule::Effective;
use crate::seal::{SealJob, SealPiece};
use crate::types::{FRAME_OVERHEAD, Location, Sequence};

/// Content read and sealed at a time, bytes.
const STEP_BYTES: u64 = 256 << 10;

impl Bucket {
    /// Convert to what is in force. The caller holds `io` exclusively and no other lock.
    pub(super) fn convert_locked(self: &Bucket, inode: &Arc<Inode>, to: &Effective) -> Result<Arc<Seal>, BucketError> {
        let me = self.me.upgrade().ok_or(BucketError::Failed("the bucket is closing".into()))?;
        let generation = self.rule_generation.load(Ordering::Acquire);
        let _sealing = self.sealing.read();
        let resolved = self.resolve_asked(&to.asked)?;
        let size = inode.state.lock().row.size;
        let sealed = inode.state.lock().row.sealed;
        self.space.admit(sealed + (sealed >> 6) + (1 << 20), self.log.unwritten_bytes())?;
        let seal = Arc::new(self.new_seal(inode, resolved, &to.origin)?);
        // What is dirty goes into the log under the old seal first: then the map alone says what there is.
        let mut jobs = Jobs::new(&me);
        self.flush_inode(inode, &mut jobs);
        jobs.send();
        drop(jobs);
        self.when_quiet(inode, |_| Ok(()))?;

        let hold = self.hold_segments();
        let mut shadow = Content {
            seal: Some(seal.clone()),
            stale: true,
            untold: true,
            rule_generation: generation,
            ..Content::default()
        };
        let mut new_sealed = 0u64;
        let mut at = 0;
        let old_key = inode.state.lock().content.as_ref().and_then(|c| Some(c.seal.as_ref()?.resolved.key.clone()));
        while at < size {
            let Some((from, to)) = self.next_mapped(inode, at, size)? else { break };
            let mut start = from;
            while start < to {
                let end = to.min((start / STEP_BYTES + 1) * STEP_BYTES);
                // What is cut off meanwhile is not read to its end.
                for key in old_key.iter().chain([&seal.resolved.key]).filter(|k| !k.0.is_empty()) {
                    self.key_stands(key)?;
                }
                let data = self.read_locked(inode, start, (end - start) as usize)?;
                new_sealed += self.seal_into(&mut shadow, &seal, inode.ino, start, data)?.0;
                start = end;
            }
            at = to;
        }
        let opens = self.opens();
        debug_assert!(opens.len() > self.open_no as usize);
        self.when_quiet(inode, |st| {
            let old =
                std::mem::replace(st.content.as_mut().ok_or(BucketError::Invalid("no content"))?.as_mut(), shadow);
            let old_sealed = std::mem::replace(&mut st.row.sealed, new_sealed);
            let rest = me.let_go(st.row.ino, st.row.size, old_sealed, old)?;
            if let Some(c) = &mut st.content {
                c.writes.extend(rest.writes);
                c.delta.extend(rest.delta);
                c.freed.extend(rest.freed);
            }
            st.row.ctime = now_ns();
            self.note_change(inode, st);
            Ok(())
        })?;
        drop(hold);
        log::info!("object {}: converted to {}", inode.ino, to.asked);
        Ok(seal)
    }

    /// The next stretch of the file at or behind `at` that is mapped, in whole blocks.
    fn next_mapped(&self, inode: &Inode, at: u64, size: u64) -> Result<Option<(u64, u64)>, BucketError> {
        let opens = self.opens();
        let mut st = inode.state.lock();
        let content = self.content(&mut st)?;
        let Some(seal) = content.seal.clone() else { return Ok(None) };
        let (secrets, nodes) = (seal.secrets(&opens), CatalogNodes(self));
        let mut i = at / LEAF_BYTES;
        loop {
            let Some(next) = content.map.next_leaf(&secrets, &nodes, i).map_err(|e| map_error(inode.ino, e))? else {
                return Ok(None);
            };
            content.map.load_leaf(&secrets, &nodes, next).map_err(|e| map_error(inode.ino, e))?;
            let start = next * LEAF_BYTES;
            let rel = at.saturating_sub(start).min(LEAF_BYTES) as u32;
            let entries = content.map.leaf(next).map(|l| l.overlapping(rel, LEAF_BYTES as u32)).unwrap_or(&[]);
            if let Some(first) = entries.first() {
                let from = (start + first.start as u64).max(at);
                let mut end = first.end();
                for e in &entries[1..] {
                    if e.start != end {
                        break;
                    }
                    end = e.end();
                }
                return Ok(Some((from, (start + end as u64).min(size))));
            }
            i = next + 1;
        }
    }

    /// Seal bytes at a block-aligned offset straight into the log and into a map that nobody else can change now. Returns the
    /// bytes of log that came and those that went.
    pub(super) fn seal_into(
        &self,
        into: &mut Content,
        seal: &Arc<Seal>,
        ino: u64,
        offset: u64,
        data: Vec<u8>,
    ) -> Result<(u64, u64), BucketError> {
        let chunk = self.cell_bytes();
        let data = Arc::new(data);
        let mut ranges = Vec::new();
        let end = offset + data.len() as u64;
        let mut at = offset;
        while at < end {
            let upto = end.min((at / chunk + 1) * chunk);
            ranges.push((at, (upto - at) as u32));
            at = upto;
        }
        let first = self.counter.fetch_add(ranges.len() as u64, Ordering::AcqRel);
        let pieces = ranges
            .iter()
            .enumerate()
            .map(|(i, (at, n))| {
                let seq = Sequence { open_no: self.open_no, counter: first + i as u64 };
                SealPiece {
                    cipher: seal.cipher(&self.key, &self.open_id, seq.counter),
                    seal: seal.id,
                    object: ino,
                    offset: *at,
                    content: data.clone(),
                    from: (at - offset) as usize,
                    n: *n as usize,
                    open_id: self.open_id,
                    seq,
                }
            })
            .collect();
        let places: Arc<Mutex<Option<Result<Vec<Location>, crate::log::LogError>>>> = Arc::default();
        let told = places.clone();
        SealJob { log: self.log.clone(), pieces, done: Box::new(move |r| *told.lock() = Some(r)) }.run();
        let places = places.lock().take().ok_or(BucketError::Invalid("a job that did not run"))??;
        let (mut bytes, mut dropped) = (0, Vec::new());
        for (i, ((at, n), place)) in ranges.into_iter().zip(places).enumerate() {
            let start = (at % LEAF_BYTES) as u32;
            let seq = Sequence { open_no: self.open_no, counter: first + i as u64 };
            let e = Entry { start, len: n, chunk_start: start, chunk_len: n, seq, at: place };
            into.map.insert(at / LEAF_BYTES, e, &mut dropped);
            into.came(place.segment, e.frame_bytes());
            bytes += n as u64 + FRAME_OVERHEAD as u64;
        }
        let went = dropped.iter().map(|d| d.frame_bytes as u64).sum();
        into.went(&dropped);
        Ok((bytes, went))
    }
}
