//! Writing: bytes into dirty cells, cells into batches, batches through the pool into the log and then into the map.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::inode::{Batch, BatchPiece, Inode, SealingCell, State, bit_runs, block_bits};
use super::leaf::{Entry, LEAF_BYTES};
use super::map::OBJECT_BYTES_MAX;
use super::put::{CatalogNodes, Seal, map_error};
use super::{Bucket, BucketError, now_ns};
use crate::log::SLOT_BYTES_MAX;
use crate::seal::{SealJob, SealPiece};
use crate::types::{BLOCK, FRAME_OVERHEAD, Location, Sequence};

/// Bytes in dirty and sealing cells at most; writers wait above it.
pub const DIRTY_BYTES_MAX: usize = 96 << 20;
/// Leaves of one file changed since the last commit (each of one MiB of it, 2.5 KiB) above which there is the next, however
/// long the interval is.
const LEAVES_CHANGED_MAX: usize = 16_384;
/// A stream's full cells are handed to the pool in batches of this many bytes.
const STREAM_BYTES: usize = 256 << 10;
/// Chunks in one job at most.
const JOB_PIECES_MAX: usize = 512;

/// Collects pieces of batches into jobs of a slot's size each.
pub struct Jobs<'a> {
    bucket: &'a Arc<Bucket>,
    pieces: Vec<SealPiece>,
    of: Vec<(Arc<Inode>, Arc<Batch>, usize)>,
    bytes: usize,
    here: bool,
}

impl<'a> Jobs<'a> {
    pub fn new(bucket: &'a Arc<Bucket>) -> Jobs<'a> {
        Jobs { bucket, pieces: Vec::new(), of: Vec::new(), bytes: 0, here: false }
    }

    /// Run jobs on this thread from now on instead of handing them to the pool.
    pub fn run_here(&mut self) {
        self.here = true;
    }

    /// Add all of a batch. No lock may be held.
    pub fn add(&mut self, inode: &Arc<Inode>, batch: &Arc<Batch>, seal: &Arc<Seal>) {
        let open_id = self.bucket.open_id;
        let cell_bytes = self.bucket.cell_bytes();
        for (i, p) in batch.pieces.iter().enumerate() {
            let frame = p.n as usize + FRAME_OVERHEAD;
            if self.bytes + frame > SLOT_BYTES_MAX || self.pieces.len() >= JOB_PIECES_MAX {
                self.send();
            }
            let Some(cell) = batch.cells.get(&(p.offset / cell_bytes)) else { continue };
            self.pieces.push(SealPiece {
                cipher: seal.cipher(&self.bucket.key, &open_id, p.seq.counter),
                seal: seal.id,
                object: inode.ino,
                offset: p.offset,
                content: cell.data.clone(),
                from: (p.offset % cell_bytes) as usize,
                n: p.n as usize,
                open_id,
                seq: p.seq,
            });
            self.of.push((inode.clone(), batch.clone(), i));
            self.bytes += frame;
        }
    }

    /// Hand over what is collected.
    pub fn send(&mut self) {
        if self.pieces.is_empty() {
            return;
        }
        let pieces = std::mem::take(&mut self.pieces);
        let of = std::mem::take(&mut self.of);
        self.bytes = 0;
        let bucket = self.bucket.clone();
        let done = move |r: Result<Vec<Location>, crate::log::LogError>| match r {
            Ok(places) => {
                for ((inode, batch, i), at) in of.into_iter().zip(places) {
                    if let Some(p) = batch.pieces.get(i) {
                        *p.at.lock() = Some(at);
                    }
                    if batch.left.fetch_sub(1, Ordering::AcqRel) == 1 {
                        bucket.enter_map(&inode);
                    }
                }
            }
            Err(e) => {
                bucket.fail(&e.to_string());
                for (inode, _, _) in &of {
                    inode.settled.notify_all();
                }
            }
        };
        let job = SealJob { log: self.bucket.log.clone(), pieces, done: Box::new(done) };
        if self.here { job.run() } else { self.bucket.pool.seal(job) }
    }
}

impl Bucket {
    pub(super) fn cell_bytes(&self) -> u64 {
        self.settings().chunk_bytes as u64
    }

    /// Wait until there is room for dirty bytes, and refuse when the disk has none.
    fn admit(&self, bytes: usize) -> Result<(), BucketError> {
        self.health()?;
        let under_way = self.dirty_bytes.load(Ordering::Relaxed) as u64 + self.log.unwritten_bytes();
        self.space.admit(bytes as u64, under_way)?;
        if self.dirty_bytes.load(Ordering::Relaxed) > DIRTY_BYTES_MAX {
            self.wake_committer();
            let mut waiting = self.dirty_gate.lock();
            while self.dirty_bytes.load(Ordering::Relaxed) > DIRTY_BYTES_MAX && self.health().is_ok() {
                self.dirty_fell.wait_for(&mut waiting, std::time::Duration::from_millis(200));
            }
            drop(waiting);
            self.health()?;
        }
        Ok(())
    }

    /// The same for names and values: rows not committed yet have taken nothing of the disk so far, and may take a page each.
    pub(super) fn admit_rows(&self, bytes: u64) -> Result<(), BucketError> {
        match self.space.admit(bytes, self.catalog().changes() * 4096) {
            Err(BucketError::NoSpace) => {
                self.commit()?;
                self.space.admit(bytes, 0)
            }
            r => r,
        }
    }

    pub(super) fn dirty_changed(&self, plus: usize, minus: usize) {
        self.dirty_bytes.fetch_add(plus, Ordering::Relaxed);
        if minus > 0 {
            self.dirty_bytes.fetch_sub(minus, Ordering::Relaxed);
            self.dirty_fell.notify_all();
        }
    }

    /// Write `data` at `offset`, or at the end for None.
    pub fn write(self: &Arc<Self>, ino: u64, offset: Option<u64>, data: &[u8]) -> Result<(), BucketError> {
        let inode = self.inode(ino)?;
        if data.is_empty() {
            return Ok(());
        }
        self.admit(data.len())?;
        let _io = inode.io.write();
        self.write_locked(&inode, offset, data)
    }

    /// The same, for callers that hold `io` exclusively.
    pub(super) fn write_locked(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        offset: Option<u64>,
        data: &[u8],
    ) -> Result<(), BucketError> {
        let (size, file) = {
            let st = inode.state.lock();
            (st.row.size, st.is_file())
        };
        if !file {
            return Err(BucketError::IsDirectory);
        }
        let offset = offset.unwrap_or(size);
        let end =
            offset.checked_add(data.len() as u64).filter(|e| *e <= OBJECT_BYTES_MAX).ok_or(BucketError::TooBig)?;
        self.ensure_put(inode)?;
        let block = BLOCK as u64;
        let (head, tail) = (offset / block * block, (end - 1) / block * block);
        // Blocks that are written in part need their other bytes first. No lock that a commit needs is held meanwhile.
        let base_of = |at: u64| -> Result<Vec<u8>, BucketError> {
            let mut b = if at < size { self.read_locked(inode, at, BLOCK)? } else { Vec::new() };
            b.resize(BLOCK, 0);
            Ok(b)
        };
        let head_base = if offset != head || (head == tail && end % block != 0 && end < size) {
            Some(base_of(head)?)
        } else {
            None
        };
        let tail_base = if tail != head && end % block != 0 && end < size { Some(base_of(tail)?) } else { None };
        self.touch_leaves(inode, offset, end)?;

        let cell_bytes = self.cell_bytes();
        let mut grown = 0;
        let batch = {
            let _permit = self.gate.data();
            let mut st = inode.state.lock();
            let mut at = offset;
            while at < end {
                let k = at / cell_bytes;
                let cell_start = k * cell_bytes;
                let upto = end.min(cell_start + cell_bytes);
                let (a, b) = ((at - cell_start) as usize, (upto - cell_start) as usize);
                let new = st.dirty.write(k, |cell| {
                    cell.reach(b.next_multiple_of(BLOCK), cell_bytes as usize);
                    for (base, start) in [(&head_base, head), (&tail_base, tail)] {
                        if let Some(base) = base {
                            let i = (start.wrapping_sub(cell_start) / block) as usize;
                            if start >= cell_start
                                && start < cell_start + cell_bytes
                                && cell.valid & block_bits(i, i + 1) == 0
                            {
                                cell.data[i * BLOCK..(i + 1) * BLOCK].copy_from_slice(base);
                            }
                        }
                    }
                    let (first, last) = (a / BLOCK, b.div_ceil(BLOCK));
                    // A block new to this cell starts from zeroes, not from what an earlier life of the cell left there.
                    for i in [first, last - 1] {
                        let start = cell_start + (i * BLOCK) as u64;
                        let based = (start == head && head_base.is_some()) || (start == tail && tail_base.is_some());
                        if cell.valid & block_bits(i, i + 1) == 0 && !based {
                            cell.data[i * BLOCK..(i + 1) * BLOCK].fill(0);
                        }
                    }
                    cell.data[a..b].copy_from_slice(&data[(at - offset) as usize..(upto - offset) as usize]);
                    cell.valid |= block_bits(first, last);
                });
                if new {
                    grown += cell_bytes as usize;
                }
                at = upto;
            }
            st.row.size = st.row.size.max(end);
            let now = now_ns();
            st.row.mtime = now;
            st.row.ctime = now;
            if let Some(c) = &mut st.content {
                c.stale = true;
            }
            self.note_change(inode, &mut st);
            self.stream_batch(&mut st, offset, end, cell_bytes)
        };
        self.dirty_changed(grown, 0);
        if let Some((batch, seal)) = batch {
            let mut jobs = Jobs::new(self);
            jobs.add(inode, &batch, &seal);
            jobs.send();
        }
        Ok(())
    }

    /// Bring the leaves of [from, to) into memory, so that damage shows before a write is acknowledged.
    fn touch_leaves(&self, inode: &Inode, from: u64, to: u64) -> Result<(), BucketError> {
        let opens = self.opens();
        let mut st = inode.state.lock();
        let content = self.content(&mut st)?;
        let Some(seal) = content.seal.clone() else { return Ok(()) };
        for i in from / LEAF_BYTES..to.div_ceil(LEAF_BYTES) {
            content
                .map
                .load_leaf(&seal.secrets(&opens), &CatalogNodes(self), i)
                .map_err(|e| map_error(inode.ino, e))?;
        }
        Ok(())
    }

    /// When a stream has filled enough cells up to `end`, they become a batch.
    fn stream_batch(&self, st: &mut State, _from: u64, end: u64, cell_bytes: u64) -> Option<(Arc<Batch>, Arc<Seal>)> {
        let full = block_bits(0, cell_bytes as usize / BLOCK);
        let want = (STREAM_BYTES as u64 / cell_bytes).max(1) as usize;
        if st.dirty.len() < want {
            return None;
        }
        let last = end / cell_bytes;
        let cells: Vec<u64> =
            st.dirty.range(..last).rev().take_while(|(_, c)| c.valid == full).map(|(k, _)| k).collect();
        if cells.len() < want || cells.windows(2).any(|w| w[0] != w[1] + 1) {
            return None;
        }
        self.make_batch(st, Some(cells))
    }

    /// Turn dirty cells (all for None) into a batch at the end of the inode's queue.
    pub(super) fn make_batch(&self, st: &mut State, which: Option<Vec<u64>>) -> Option<(Arc<Batch>, Arc<Seal>)> {
        let seal = st.content.as_ref()?.seal.clone()?;
        let cells = st.dirty.take(which);
        if cells.is_empty() {
            return None;
        }
        let cell_bytes = self.cell_bytes();
        let size = st.row.size;
        let mut pieces = Vec::new();
        for (k, c) in &cells {
            for (first, n) in bit_runs(c.valid) {
                let offset = k * cell_bytes + (first * BLOCK) as u64;
                let n = ((n * BLOCK) as u64).min(size.saturating_sub(offset));
                if n > 0 {
                    pieces.push((offset, n as u32));
                }
            }
        }
        let first = self.counter.fetch_add(pieces.len() as u64, Ordering::AcqRel);
        let pieces: Vec<BatchPiece> = pieces
            .into_iter()
            .enumerate()
            .map(|(i, (offset, n))| BatchPiece {
                offset,
                n,
                seq: Sequence { open_no: self.open_no, counter: first + i as u64 },
                at: Mutex::new(None),
            })
            .collect();
        let batch = Arc::new(Batch {
            no: st.next_batch,
            left: AtomicUsize::new(pieces.len()),
            bytes: cells.len() * cell_bytes as usize,
            pieces,
            cells: cells
                .into_iter()
                .map(|(k, c)| (k, SealingCell { data: Arc::new(c.data), valid: c.valid }))
                .collect(),
        });
        st.next_batch += 1;
        st.batches.push(batch.clone());
        Some((batch, seal))
    }

    /// Batches that are sealed enter the map, in order; none passes a freeze whose snapshot is still to be taken.
    pub(super) fn enter_map(&self, inode: &Arc<Inode>) {
        let mut st = inode.state.lock();
        let mut gone = 0;
        while let Some(batch) = st.batches.front().cloned() {
            if !batch.complete() || st.frozen_upto.is_some_and(|f| batch.no > f) {
                break;
            }
            if let Err(e) = self.enter_batch(&mut st, &batch) {
                self.fail(&e.to_string());
                break;
            }
            st.batches.pop_front();
            gone += batch.bytes;
        }
        let much = st.content.as_ref().is_some_and(|c| c.map.changed_leaves() > LEAVES_CHANGED_MAX);
        drop(st);
        if much {
            self.wake_committer();
        }
        inode.settled.notify_all();
        self.dirty_changed(0, gone);
    }

    fn enter_batch(&self, st: &mut State, batch: &Batch) -> Result<(), BucketError> {
        let ino = st.row.ino;
        let opens = self.opens();
        let content = self.content(st)?;
        let seal = content.seal.clone().ok_or(BucketError::Invalid("a batch without a seal"))?;
        let mut dropped = Vec::new();
        for p in &batch.pieces {
            let at = p.at.lock().ok_or(BucketError::Invalid("a sealed chunk without a place"))?;
            let i = p.offset / LEAF_BYTES;
            content.map.load_leaf(&seal.secrets(&opens), &CatalogNodes(self), i).map_err(|e| map_error(ino, e))?;
            let start = (p.offset % LEAF_BYTES) as u32;
            let e = Entry { start, len: p.n, chunk_start: start, chunk_len: p.n, seq: p.seq, at };
            content.map.insert(i, e, &mut dropped);
            content.came(at.segment, e.frame_bytes());
        }
        let went: u64 = dropped.iter().map(|d| d.frame_bytes as u64).sum();
        content.went(&dropped);
        let came: u64 = batch.pieces.iter().map(|p| (p.n as usize + FRAME_OVERHEAD) as u64).sum();
        st.row.sealed = (st.row.sealed + came).saturating_sub(went);
        Ok(())
    }

    /// Seal all dirty cells of an inode; does not wait.
    pub(super) fn flush_inode(&self, inode: &Arc<Inode>, jobs: &mut Jobs) {
        let made = {
            let mut st = inode.state.lock();
            if st.dirty.is_empty() {
                return;
            }
            self.make_batch(&mut st, None)
        };
        if let Some((batch, seal)) = made {
            if batch.complete() {
                self.enter_map(inode);
            }
            jobs.add(inode, &batch, &seal);
        }
    }

    /// Wait until an inode's map may be changed by the caller, who holds `io` exclusively; then run `f` inside the data gate.
    pub(super) fn when_quiet<T>(
        &self,
        inode: &Inode,
        f: impl FnOnce(&mut State) -> Result<T, BucketError>,
    ) -> Result<T, BucketError> {
        loop {
            {
                let mut st = inode.state.lock();
                while !st.quiet() {
                    self.sound()?;
                    inode.settled.wait_for(&mut st, std::time::Duration::from_millis(100));
                }
            }
            let _permit = self.gate.data();
            let mut st = inode.state.lock();
            if st.quiet() {
                return f(&mut st);
            }
        }
    }
}
