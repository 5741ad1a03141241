//! What a commit or an intent writes down: rows of inodes, seals, nodes and segments, and the PUTs told to the log.

use std::collections::{BTreeMap, BTreeSet};

use super::inode::Freed;
use super::map::NodeWrite;
use super::{Bucket, BucketError};
use crate::catalog::{InodeRow, SealRow, SegmentRow};
use crate::log::{CommitRecord, KekRecord, PutRecord, pack_puts};
use crate::types::Location;

/// Inodes whose rows are written between two chances for readers to take the catalog.
const ROWS_AT_ONCE: usize = 64;
/// PUTs in one record.
const PUTS_AT_ONCE: usize = 1000;

/// What the catalog is to write for one inode.
pub(super) struct Rows {
    pub row: InodeRow,
    pub fresh: bool,
    pub dead: bool,
    pub was_orphan: bool,
    /// Some(None): no content any more.
    pub seal: Option<Option<SealRow>>,
    pub nodes: Vec<NodeWrite>,
}

/// What changed beside rows.
#[derive(Default)]
pub(super) struct Gathered {
    pub rows: Vec<Rows>,
    pub delta: BTreeMap<u32, i64>,
    pub freed: Vec<Freed>,
    pub puts: Vec<PutRecord>,
}

/// Plain content has no key, and that of SSE-C is wrapped by the customer's own.
fn has_kek(p: &PutRecord) -> bool {
    p.method != 0 && p.customer.is_none()
}

impl Bucket {
    /// Tell the log the PUTs of the commit of this number.
    pub(super) fn tell_puts(&self, number: u64, puts: &[PutRecord]) -> Result<(), BucketError> {
        let mut packed = Vec::new();
        for some in puts.chunks(PUTS_AT_ONCE) {
            let keks: Vec<KekRecord> = self
                .keks
                .lock()
                .iter()
                .filter(|k| some.iter().any(|p| p.kek == k.id && has_kek(p)))
                .map(|k| KekRecord {
                    kek: k.id,
                    key_id: k.key_id.clone(),
                    version: k.key_version,
                    wrapped: k.wrapped.clone(),
                })
                .collect();
            packed.clear();
            pack_puts(&mut packed, number, &keks, some);
            self.log.append_record(&packed)?;
        }
        Ok(())
    }

    pub(super) fn tell_commit(&self, number: u64, puts: u32) -> Result<(), BucketError> {
        let mut packed = Vec::new();
        CommitRecord { number, durable: number - 1, puts, root: [0; 32] }.pack(&mut packed);
        Ok(self.log.append_record(&packed)?)
    }

    pub(super) fn write_rows(&self, g: &Gathered) -> Result<(), BucketError> {
        for some in g.rows.chunks(ROWS_AT_ONCE) {
            let tx = self.catalog().lock();
            for r in some {
                if r.dead {
                    if !r.fresh {
                        tx.delete_inode(&r.row)?;
                        tx.delete_seal(r.row.ino)?;
                    } else {
                        // Its name came and went within the epoch; what hangs on it may still have rows.
                        tx.delete_inode(&r.row)?;
                    }
                    if r.was_orphan {
                        tx.delete_orphan(r.row.ino)?;
                    }
                } else {
                    tx.put_inode(&r.row)?;
                    match &r.seal {
                        Some(Some(s)) => tx.put_seal(s)?,
                        Some(None) if !r.fresh => tx.delete_seal(r.row.ino)?,
                        _ => {}
                    }
                    if r.row.nlink == 0 && !r.was_orphan {
                        tx.put_orphan(r.row.ino)?;
                    }
                }
                for n in &r.nodes {
                    match n {
                        NodeWrite::Put(id, body) => tx.put_node(*id, body)?,
                        NodeWrite::Delete(id) => tx.delete_node(*id)?,
                    }
                }
            }
        }
        let tx = self.catalog().lock();
        // How often the KEKs of new PUTs have been used, so that their bound holds over openings.
        for k in self.keks.lock().iter().filter(|k| g.puts.iter().any(|p| p.kek == k.id && has_kek(p))) {
            tx.put_kek(k)?;
        }
        for f in g.freed.iter().filter(|f| f.plain) {
            tx.put_wipe(f.chunk.at.segment, f.chunk.at.position, f.chunk.frame_bytes)?;
        }
        Ok(())
    }

    /// Count what came and went in each segment; returns which rows that changes.
    pub(super) fn count_segments(&self, delta: &BTreeMap<u32, i64>) -> BTreeSet<u32> {
        let mut segments = self.segments.lock();
        for id in self.log.lengths().into_keys() {
            segments.entry(id).or_insert(SegmentRow { id, bytes: 0, live: 0 });
        }
        for (id, n) in delta {
            if let Some(s) = segments.get_mut(id) {
                s.live = s.live.saturating_add_signed(*n);
            }
        }
        delta.keys().copied().collect()
    }

    /// Write the rows of segments that were counted or have grown, as far as `end` where it is given.
    pub(super) fn put_segments(
        &self,
        touched: &mut BTreeSet<u32>,
        floor: u32,
        end: Option<Location>,
    ) -> Result<(), BucketError> {
        let tx = self.catalog().lock();
        let mut segments = self.segments.lock();
        for (id, bytes) in self.log.lengths() {
            let bytes = match end {
                Some(end) if id > end.segment => continue,
                Some(end) if id == end.segment => end.position as u64,
                _ => bytes,
            };
            let s = segments.entry(id).or_insert(SegmentRow { id, bytes: 0, live: 0 });
            if s.bytes != bytes {
                s.bytes = bytes;
                touched.insert(id);
            }
        }
        for id in touched.iter().filter(|id| end.is_none_or(|end| **id <= end.segment)) {
            if let Some(s) = segments.get(id) {
                tx.put_segment(s)?;
            }
        }
        // Lengths of segments that are closed never change again.
        self.log.forget_lengths(floor);
        Ok(())
    }

    /// Segments below this one are closed, and no conversion has sealed into them what no map shows yet. Asked with
    /// everybody held out: a conversion that ends right after would take its hold along.
    pub(super) fn sealing_floor(&self) -> u32 {
        let active = self.log.open_segment();
        self.reclaim.holds.lock().iter().min().map_or(active, |held| active.min(*held))
    }

    /// The closed segments in which nothing is live.
    pub(super) fn empty_segments(&self, floor: u32) -> Vec<u32> {
        self.segments.lock().values().filter(|s| s.live == 0 && s.id < floor).map(|s| s.id).collect()
    }
}
