//! The bytes of one file of the lossy disk: sparse 4 KiB blocks, the operations that change them, and how an
//! operation that was not synced may half survive. Knows nothing of names, inodes or FUSE.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::rng::Rng;

/// What a disk writes whole or not at all.
pub const SECTOR: u64 = 512;
/// What a page cache writes back, and the unit of holes.
pub const BLOCK: u64 = 4096;

/// A sparse file. Cloning copies references only, so an image of a disk is cheap.
#[derive(Clone, Default)]
pub struct Content {
    size: u64,
    blocks: BTreeMap<u64, Arc<[u8; BLOCK as usize]>>,
}

/// A change of a file that lies in the page cache until the file is synced.
#[derive(Clone)]
pub enum FileOp {
    Write { offset: u64, data: Arc<[u8]> },
    Resize(u64),
    Zero { offset: u64, len: u64 },
}

impl Content {
    /// Bytes from the start to the end of the file.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Blocks that are allocated (not holes).
    pub fn allocated_blocks(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// Up to `len` bytes at `offset`; short at the end of the file.
    pub fn read(&self, offset: u64, len: u64) -> Vec<u8> {
        let end = self.size.min(offset.saturating_add(len));
        if offset >= end {
            return Vec::new();
        }
        let mut out = vec![0; (end - offset) as usize];
        let last = (end - 1) / BLOCK;
        for (&index, block) in self.blocks.range(offset / BLOCK..=last) {
            let from = (index * BLOCK).max(offset);
            let to = ((index + 1) * BLOCK).min(end);
            out[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&block[(from - index * BLOCK) as usize..(to - index * BLOCK) as usize]);
        }
        out
    }

    /// Stores `data` at `offset`, growing the file where it must.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        self.size = self.size.max(offset + data.len() as u64);
        self.store(offset, data);
    }

    /// Stores what lies inside the present size and drops the rest.
    fn store(&mut self, offset: u64, data: &[u8]) {
        let end = self.size.min(offset + data.len() as u64);
        let mut at = offset;
        while at < end {
            let index = at / BLOCK;
            let to = ((index + 1) * BLOCK).min(end);
            let block = self.blocks.entry(index).or_insert_with(|| Arc::new([0; BLOCK as usize]));
            Arc::make_mut(block)[(at - index * BLOCK) as usize..(to - index * BLOCK) as usize]
                .copy_from_slice(&data[(at - offset) as usize..(to - offset) as usize]);
            at = to;
        }
    }

    /// Cuts or extends the file; an extension reads as zeros.
    pub fn resize(&mut self, size: u64) {
        if size < self.size {
            self.blocks.retain(|&index, _| index * BLOCK < size);
            let tail = size % BLOCK;
            if tail != 0
                && let Some(block) = self.blocks.get_mut(&(size / BLOCK))
            {
                Arc::make_mut(block)[tail as usize..].fill(0);
            }
        }
        self.size = size;
    }

    /// Makes a range zero; whole blocks inside it become holes. The size stays.
    pub fn zero(&mut self, offset: u64, len: u64) {
        let end = offset.saturating_add(len).min(self.size.next_multiple_of(BLOCK));
        let mut at = offset;
        while at < end {
            let index = at / BLOCK;
            let to = ((index + 1) * BLOCK).min(end);
            if to - at == BLOCK {
                self.blocks.remove(&index);
            } else if let Some(block) = self.blocks.get_mut(&index) {
                Arc::make_mut(block)[(at - index * BLOCK) as usize..(to - index * BLOCK) as usize].fill(0);
            }
            at = to;
        }
    }

    /// The first allocated byte at or after `offset` (SEEK_DATA), None in the hole at the end.
    pub fn next_data(&self, offset: u64) -> Option<u64> {
        let (&index, _) = self.blocks.range(offset / BLOCK..).next()?;
        let at = offset.max(index * BLOCK);
        (at < self.size).then_some(at)
    }

    /// The first byte of a hole at or after `offset` (SEEK_HOLE); the end of the file counts as one.
    pub fn next_hole(&self, offset: u64) -> u64 {
        let mut index = offset / BLOCK;
        while self.blocks.contains_key(&index) {
            index += 1;
        }
        offset.max(index * BLOCK).min(self.size)
    }

    /// Carries out an operation in full.
    pub fn apply(&mut self, op: &FileOp) {
        match op {
            FileOp::Write { offset, data } => self.write(*offset, data),
            FileOp::Resize(size) => self.resize(*size),
            FileOp::Zero { offset, len } => self.zero(*offset, *len),
        }
    }

    /// Carries out what a power cut left of an operation: all with `keep` percent probability, else nothing, a
    /// prefix, or any subset of its blocks or sectors; the new size and the bytes survive apart from each other.
    pub fn apply_torn(&mut self, op: &FileOp, rng: &mut Rng, keep: u64) {
        match op {
            FileOp::Resize(size) => {
                if rng.chance(keep) {
                    self.resize(*size);
                }
            }
            FileOp::Zero { offset, len } => match rng.below(3) {
                0 => self.zero(*offset, *len),
                1 => {
                    for (at, n) in pieces(*offset, *len, BLOCK) {
                        if rng.chance(keep) {
                            self.zero(at, n);
                        }
                    }
                }
                _ => {}
            },
            FileOp::Write { offset, data } => self.write_torn(*offset, data, rng, keep),
        }
    }

    fn write_torn(&mut self, offset: u64, data: &[u8], rng: &mut Rng, keep: u64) {
        if rng.chance(keep / 2) {
            return self.write(offset, data);
        }
        let len = data.len() as u64;
        let unit = *rng.pick(&[SECTOR, BLOCK]);
        let mut kept: Vec<(u64, u64)> = pieces(offset, len, unit);
        match rng.below(4) {
            0 => kept.clear(),
            1 => kept.truncate(rng.below(kept.len() as u64 + 1) as usize),
            _ => kept.retain(|_| rng.chance(keep)),
        }
        // The size reached the disk in full (zeros where bytes did not), up to the last byte, or not at all.
        let grown = match rng.below(3) {
            0 => offset + len,
            1 => kept.last().map_or(0, |&(at, n)| at + n),
            _ => 0,
        };
        self.size = self.size.max(grown);
        for (at, n) in kept {
            self.store(at, &data[(at - offset) as usize..(at - offset + n) as usize]);
        }
    }
}

/// Cuts a range at the multiples of `unit`.
fn pieces(offset: u64, len: u64, unit: u64) -> Vec<(u64, u64)> {
    let end = offset + len;
    let mut out = Vec::new();
    let mut at = offset;
    while at < end {
        let to = ((at / unit + 1) * unit).min(end);
        out.push((at, to - at));
        at = to;
    }
    out
}
