//! Reading: newest first, from dirty cells, from batches on their way, from the map. A pin keeps the log from giving
//! away what is being read.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::bounded;

use super::inode::{Inode, State, bit_runs, block_bits};
use super::leaf::LEAF_BYTES;
use super::put::{CatalogNodes, map_error};
use super::{Bucket, BucketError};
use crate::crypto::aead::ChunkAad;
use crate::seal::{OpenError, OpenJob, OpenPiece, open_into};
use crate::types::BLOCK;

/// Reads larger than this share their chunks with the pool.
const SHARE_BYTES: usize = 256 << 10;

impl Bucket {
    /// Up to `len` bytes at `offset`; fewer at the end of the file.
    pub fn read(&self, ino: u64, offset: u64, len: usize) -> Result<Vec<u8>, BucketError> {
        let inode = self.inode(ino)?;
        self.gate.used();
        self.warm(&inode)?;
        let _io = inode.io.read();
        self.read_locked(&inode, offset, len)
    }

    /// The same, for callers that hold `io`.
    pub(super) fn read_locked(&self, inode: &Inode, offset: u64, len: usize) -> Result<Vec<u8>, BucketError> {
        let _pin = self.pins.pin(self.epoch.load(Ordering::Acquire));
        let (mut out, pieces) = {
            let mut st = inode.state.lock();
            let len = (len as u64).min(st.row.size.saturating_sub(offset)) as usize;
            if len == 0 {
                return Ok(Vec::new());
            }
            let mut out = vec![0u8; len];
            let pieces = self.plan(&mut st, offset, &mut out)?;
            (out, pieces)
        };
        if !pieces.is_empty() {
            self.open_pieces(inode.ino, pieces, &mut out)?;
        }
        Ok(out)
    }

    /// Copy what is in memory; list what must come from the log.
    fn plan(&self, st: &mut State, offset: u64, out: &mut [u8]) -> Result<Vec<OpenPiece>, BucketError> {
        let (cell_bytes, block) = (self.cell_bytes(), BLOCK as u64);
        let end = offset + out.len() as u64;
        let mut missing: Vec<(u64, u64)> = Vec::new();
        if st.dirty.is_empty() && st.batches.is_empty() {
            missing.push((offset, end));
        } else {
            for k in offset / cell_bytes..end.div_ceil(cell_bytes) {
                let start = k * cell_bytes;
                let (a, b) = (offset.max(start), end.min(start + cell_bytes));
                let mut want = block_bits(((a - start) / block) as usize, (b - start).div_ceil(block) as usize);
                let mut take = |data: &[u8], bits: u64| {
                    for (first, n) in bit_runs(bits) {
                        let from = a.max(start + (first * BLOCK) as u64);
                        let to = b.min(start + ((first + n) * BLOCK) as u64);
                        out[(from - offset) as usize..(to - offset) as usize]
                            .copy_from_slice(&data[(from - start) as usize..(to - start) as usize]);
                    }
                };
                if let Some(c) = st.dirty.get(k) {
                    take(&c.data, c.valid & want);
                    want &= !c.valid;
                }
                for batch in st.batches.iter().rev() {
                    if want == 0 {
                        break;
                    }
                    if let Some(c) = batch.cells.get(&k) {
                        take(&c.data, c.valid & want);
                        want &= !c.valid;
                    }
                }
                for (first, n) in bit_runs(want) {
                    let from = a.max(start + (first * BLOCK) as u64);
                    let to = b.min(start + ((first + n) * BLOCK) as u64);
                    match missing.last_mut() {
                        Some(last) if last.1 == from => last.1 = to,
                        _ => missing.push((from, to)),
                    }
                }
            }
        }
        let mut pieces = Vec::new();
        if missing.is_empty() {
            return Ok(pieces);
        }
        let ino = st.row.ino;
        let opens = self.opens();
        let content = self.content(st)?;
        let Some(seal) = content.seal.clone() else { return Ok(pieces) };
        for (from, to) in missing {
            let mut at = from;
            while at < to {
                let i = at / LEAF_BYTES;
                let leaf_start = i * LEAF_BYTES;
                let upto = to.min(leaf_start + LEAF_BYTES);
                content.map.load_leaf(&seal.secrets(&opens), &CatalogNodes(self), i).map_err(|e| map_error(ino, e))?;
                if let Some(leaf) = content.map.leaf(i) {
                    for e in leaf.overlapping((at - leaf_start) as u32, (upto - leaf_start) as u32) {
                        let a = at.max(leaf_start + e.start as u64);
                        let b = upto.min(leaf_start + e.end() as u64);
                        let chunk = leaf_start + e.chunk_start as u64;
                        let open_id = opens.get(e.seq.open_no as usize).ok_or(BucketError::Damaged {
                            object: ino,
                            from: a,
                            to: b,
                            why: "its map names an opening that is not there",
                        })?;
                        pieces.push(OpenPiece {
                            cipher: seal.cipher(&self.key, open_id, e.seq.counter),
                            aad: ChunkAad::new(&seal.id, chunk, e.chunk_len, open_id, e.seq.counter),
                            at: e.at,
                            n: e.chunk_len as usize,
                            skip: (a - chunk) as usize,
                            len: (b - a) as usize,
                            to: (a - offset) as usize,
                            offset: chunk,
                        });
                    }
                }
                at = upto;
            }
        }
        Ok(pieces)
    }

    fn open_pieces(&self, ino: u64, mut pieces: Vec<OpenPiece>, out: &mut [u8]) -> Result<(), BucketError> {
        let bytes: usize = pieces.iter().map(|p| p.len).sum();
        let mut shared = None;
        if bytes > SHARE_BYTES && pieces.len() > 1 {
            let mut theirs = pieces.split_off(pieces.len() / 2);
            let base = theirs[0].to;
            for p in &mut theirs {
                p.to -= base;
            }
            let bytes = theirs.last().map_or(0, |p| p.to + p.len);
            let (done, answer) = bounded(1);
            let ranges: Vec<(usize, usize)> = theirs.iter().map(|p| (p.to, p.to + p.len)).collect();
            self.pool.open(OpenJob { log: self.log.clone(), pieces: theirs, bytes, done });
            shared = Some((base, ranges, answer));
        }
        thread_local! {
            static SCRATCH: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
        }
        let mine = SCRATCH.with_borrow_mut(|scratch| open_into(&self.log, &pieces, out, scratch));
        if let Some((base, ranges, answer)) = shared {
            match answer.recv() {
                // Only their pieces: between them there may be bytes that came from memory.
                Ok(Ok(theirs)) => {
                    for (a, b) in ranges {
                        out[base + a..base + b].copy_from_slice(&theirs[a..b]);
                    }
                }
                Ok(Err(e)) => return Err(self.unreadable(ino, e)),
                Err(_) => return Err(BucketError::Failed("a worker ended".into())),
            }
        }
        mine.map_err(|e| self.unreadable(ino, e))
    }

    fn unreadable(&self, ino: u64, e: OpenError) -> BucketError {
        let (from, to) = (e.offset, e.offset + e.n as u64);
        log::error!("object {ino}, bytes {from} to {to}: {}", e.why);
        match e.log {
            Some(l) => BucketError::Log(l),
            None => BucketError::Damaged { object: ino, from, to, why: e.why },
        }
    }

    /// The next offset at or behind `offset` that is data (or a hole); None behind the end (lseek(2) SEEK_DATA, SEEK_HOLE).
    pub fn seek(self: &Arc<Self>, ino: u64, offset: u64, data: bool) -> Result<Option<u64>, BucketError> {
        let inode = self.inode(ino)?;
        self.warm(&inode)?;
        let _io = inode.io.read();
        let mut st = inode.state.lock();
        let size = st.row.size;
        if offset >= size {
            return Ok(None);
        }
        let mut at = offset;
        loop {
            if at >= size {
                return Ok(if data { None } else { Some(size) });
            }
            let (is_data, until) = self.extent_at(&mut st, at)?;
            if is_data == data {
                return Ok(Some(at));
            }
            at = until.min(size);
        }
    }

    /// Whether the byte at `at` is data, and up to where at least the same holds.
    fn extent_at(&self, st: &mut State, at: u64) -> Result<(bool, u64), BucketError> {
        let (cell_bytes, block) = (self.cell_bytes(), BLOCK as u64);
        let k = at / cell_bytes;
        let bit = |valid: u64| valid >> ((at % cell_bytes) / block) & 1 == 1;
        let in_memory = st.dirty.get(k).is_some_and(|c| bit(c.valid))
            || st.batches.iter().any(|b| b.cells.get(&k).is_some_and(|c| bit(c.valid)));
        if in_memory {
            return Ok((true, (at / block + 1) * block));
        }
        // Without map data, a hole lasts at least to the next cell that is in memory.
        let next_cell = st.dirty.range(k..).next().map(|(k, _)| k);
        let next_batch = st.batches.iter().filter_map(|b| b.cells.range(k..).next().map(|(k, _)| *k)).min();
        let memory_at = match next_cell.into_iter().chain(next_batch).min() {
            Some(n) if n == k => (at / block + 1) * block,
            Some(n) => n * cell_bytes,
            None => u64::MAX,
        };
        let ino = st.row.ino;
        let opens = self.opens();
        let content = self.content(st)?;
        let Some(seal) = content.seal.clone() else { return Ok((false, memory_at)) };
        let (secrets, nodes) = (seal.secrets(&opens), CatalogNodes(self));
        let i = at / LEAF_BYTES;
        let Some(next) = content.map.next_leaf(&secrets, &nodes, i).map_err(|e| map_error(ino, e))? else {
            return Ok((false, memory_at));
        };
        if next > i {
            return Ok((false, memory_at.min(next * LEAF_BYTES)));
        }
        content.map.load_leaf(&secrets, &nodes, i).map_err(|e| map_error(ino, e))?;
        let rel = (at % LEAF_BYTES) as u32;
        let rest = content.map.leaf(i).map(|l| l.overlapping(rel, LEAF_BYTES as u32)).unwrap_or(&[]);
        match rest.first() {
            Some(e) if e.start <= rel => Ok((true, i * LEAF_BYTES + (e.end() as u64).next_multiple_of(block))),
            Some(e) => Ok((false, memory_at.min(i * LEAF_BYTES + e.start as u64))),
            None => Ok((false, memory_at.min((i + 1) * LEAF_BYTES))),
        }
    }
}
