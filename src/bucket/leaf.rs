//! A leaf of an object's map: which chunk holds which of the file's bytes, for one MiB of it (FORMAT.md, Map of an object).
//! Pure bookkeeping and bytes: no I/O, no keys beyond the tag's.

use crate::crypto::mac::Mac;
use crate::crypto::secret::MapKey;
use crate::types::{BLOCK, CHUNK_BYTES_MAX, FRAME_OVERHEAD, Location, OpenId, SealId, Sequence};

/// Bytes of a file that one leaf maps.
pub const LEAF_BYTES: u64 = 1 << 20;
const RUN_BYTES: usize = 44;
const FLAG_PARTIAL: u16 = 1;
/// What a chunk takes beside its content: frame, INDEX entry, run of the map.
const CHUNK_COST: u64 = FRAME_OVERHEAD as u64 + 52 + RUN_BYTES as u64;
/// A stretch of a chunk's size is wasteful when it could save this part of what it shows.
const WASTE_OF_CELL: u64 = 64;
/// A leaf is worth writing anew when it saves this part of what it shows ...
const WASTE_OF_LEAF: u64 = 128;
/// ... and this many bytes.
const SAVED_MIN: u64 = 1024;
/// Entries a leaf can have: one a block.
const ENTRIES_MAX: usize = LEAF_BYTES as usize / BLOCK;

/// Part of a chunk that is the file's content. Offsets count from the leaf's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub start: u32,
    pub len: u32,
    pub chunk_start: u32,
    pub chunk_len: u32,
    pub seq: Sequence,
    pub at: Location,
}

impl Entry {
    pub fn end(&self) -> u32 {
        self.start + self.len
    }
    fn whole(&self) -> bool {
        self.start == self.chunk_start && self.len == self.chunk_len
    }
    /// Bytes the chunk takes in the log.
    pub fn frame_bytes(&self) -> u32 {
        self.chunk_len + FRAME_OVERHEAD as u32
    }
}

/// A chunk that no entry shows any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dropped {
    pub at: Location,
    pub frame_bytes: u32,
}

/// Entries in order; their ranges never overlap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leaf {
    entries: Vec<Entry>,
}

/// Why a leaf's bytes are no leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadLeaf;

impl Leaf {
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Entries that show something of [from, to).
    pub fn overlapping(&self, from: u32, to: u32) -> &[Entry] {
        let lo = self.entries.partition_point(|e| e.end() <= from);
        let hi = self.entries.partition_point(|e| e.start < to);
        if lo < hi { &self.entries[lo..hi] } else { &[] }
    }

    /// Take [from, to) out of the map. Chunks that vanish are pushed to `dropped`.
    pub fn cut(&mut self, from: u32, to: u32, dropped: &mut Vec<Dropped>) {
        let lo = self.entries.partition_point(|e| e.end() <= from);
        let hi = self.entries.partition_point(|e| e.start < to);
        if lo >= hi {
            return;
        }
        let before = dropped.len();
        let old: Vec<Entry> = self.entries[lo..hi].to_vec();
        let mut kept = Vec::new();
        for e in &old {
            if e.start < from {
                kept.push(Entry { len: from - e.start, ..*e });
            }
            if e.end() > to {
                kept.push(Entry { start: to, len: e.end() - to, ..*e });
            }
        }
        self.entries.splice(lo..hi, kept);
        for e in &old {
            let gone = e.whole() && e.start >= from && e.end() <= to;
            if gone || !self.entries.iter().any(|x| x.at == e.at) {
                let d = Dropped { at: e.at, frame_bytes: e.frame_bytes() };
                // Two parts of one chunk may have gone at once. Earlier calls cannot have dropped it: it was still shown.
                if !dropped[before..].contains(&d) {
                    dropped.push(d);
                }
            }
        }
    }

    /// Show a whole new chunk, over whatever was there, up to the end of its last block.
    pub fn insert(&mut self, e: Entry, dropped: &mut Vec<Dropped>) {
        self.cut(e.start, e.start + e.len.next_multiple_of(BLOCK as u32), dropped);
        let at = self.entries.partition_point(|x| x.start < e.start);
        self.entries.insert(at, e);
    }

    /// Every chunk, once.
    pub fn chunks(&self) -> Vec<Dropped> {
        let mut out: Vec<Dropped> = Vec::with_capacity(self.entries.len());
        for e in &self.entries {
            let d = Dropped { at: e.at, frame_bytes: e.frame_bytes() };
            if e.whole() || !out.contains(&d) {
                out.push(d);
            }
        }
        out
    }

    /// The chunks that lie in a segment at [from, to), once each, by file offset; the part of each that is shown first.
    pub fn chunks_in(&self, segment: u32, from: u64, to: u64) -> Vec<Entry> {
        let mut out: Vec<Entry> = Vec::new();
        for e in &self.entries {
            let inside = e.at.segment == segment
                && e.at.position as u64 >= from
                && e.at.position as u64 + e.frame_bytes() as u64 <= to;
            if inside && !out.iter().rev().any(|x| x.at == e.at) {
                out.push(*e);
            }
        }
        out
    }

    /// Say of chunks where they lie now. What the tag covers stays as it is.
    pub fn relocate(&mut self, moves: &[(Location, Location)]) {
        for e in &mut self.entries {
            if let Some((_, to)) = moves.iter().find(|(from, _)| *from == e.at) {
                e.at = *to;
            }
        }
    }

    /// Stretches of the leaf, none crossing a multiple of `cell` (the chunk size), that would take less room if each were one
    /// chunk, and the bytes that all of them together would save. Empty when it is not worth the writing.
    pub fn wasteful(&self, cell: u32) -> (Vec<(u32, u32)>, u64) {
        let (mut found, mut saved, mut shown) = (Vec::new(), 0u64, 0u64);
        let mut rest = &self.entries[..];
        while let Some(first) = rest.first() {
            let end = (first.start / cell + 1) * cell;
            let (here, behind) = rest.split_at(rest.partition_point(|e| e.start < end));
            rest = behind;
            let mut runs: Vec<(u32, u32)> = Vec::new();
            let (mut hidden, mut chunks, mut visible) = (0u64, 0u64, 0u64);
            for (i, e) in here.iter().enumerate() {
                visible += u64::from(e.len);
                // Only whole blocks can be followed by more of the same chunk.
                match runs.last_mut() {
                    Some(r) if r.1 == e.start => r.1 = e.end(),
                    _ => runs.push((e.start, e.end())),
                }
                if !here[..i].iter().any(|x| x.at == e.at) {
                    chunks += 1;
                    hidden += u64::from(e.chunk_len);
                }
            }
            hidden = hidden.saturating_sub(visible);
            let waste = hidden + chunks.saturating_sub(runs.len() as u64) * CHUNK_COST;
            shown += visible;
            if waste * WASTE_OF_CELL > visible {
                saved += waste;
                found.append(&mut runs);
            }
        }
        if saved < SAVED_MIN || saved * WASTE_OF_LEAF < shown {
            return (Vec::new(), 0);
        }
        (found, saved)
    }

    pub fn tag(&self, key: &MapKey, seal: &SealId, index: u64, opens: &[OpenId]) -> Option<[u8; 32]> {
        let mut m = Mac::new(key);
        m.update(b"leaf")
            .update(&seal.0)
            .update(&index.to_le_bytes())
            .update(&(self.entries.len() as u32).to_le_bytes());
        for e in &self.entries {
            let mut b = [0u8; 40];
            b[0..4].copy_from_slice(&e.start.to_le_bytes());
            b[4..8].copy_from_slice(&e.len.to_le_bytes());
            b[8..12].copy_from_slice(&e.chunk_start.to_le_bytes());
            b[12..16].copy_from_slice(&e.chunk_len.to_le_bytes());
            b[16..32].copy_from_slice(&opens.get(e.seq.open_no as usize)?.0);
            b[32..40].copy_from_slice(&e.seq.counter.to_le_bytes());
            m.update(&b);
        }
        Some(m.finish())
    }

    /// The leaf's body: neighbouring whole chunks of one flush become one run.
    pub fn pack(&self) -> Vec<u8> {
        let mut runs: Vec<(Entry, u16, u32)> = Vec::new();
        for e in &self.entries {
            if let Some((first, count, last_len)) = runs.last_mut() {
                let k = *count as u32;
                let continues = e.whole()
                    && first.whole()
                    && *count < u16::MAX
                    && *last_len == first.chunk_len
                    && first.chunk_len % BLOCK as u32 == 0
                    && e.chunk_len <= first.chunk_len
                    && e.start == first.start + k * first.chunk_len
                    && e.seq.open_no == first.seq.open_no
                    && e.seq.counter == first.seq.counter + k as u64
                    && e.at.segment == first.at.segment
                    && e.at.position as u64 == first.at.position as u64 + k as u64 * first.frame_bytes() as u64;
                if continues {
                    *count += 1;
                    *last_len = e.chunk_len;
                    continue;
                }
            }
            runs.push((*e, 1, e.chunk_len));
        }
        let mut out = Vec::with_capacity(2 + runs.len() * RUN_BYTES);
        out.extend_from_slice(&(runs.len() as u16).to_le_bytes());
        for (e, count, last_len) in runs {
            let partial = if e.whole() { 0 } else { FLAG_PARTIAL };
            out.extend_from_slice(&e.chunk_start.to_le_bytes());
            out.extend_from_slice(&count.to_le_bytes());
            out.extend_from_slice(&partial.to_le_bytes());
            out.extend_from_slice(&e.chunk_len.to_le_bytes());
            out.extend_from_slice(&last_len.to_le_bytes());
            out.extend_from_slice(&e.start.to_le_bytes());
            out.extend_from_slice(&e.len.to_le_bytes());
            out.extend_from_slice(&e.seq.open_no.to_le_bytes());
            out.extend_from_slice(&e.seq.counter.to_le_bytes());
            out.extend_from_slice(&e.at.segment.to_le_bytes());
            out.extend_from_slice(&e.at.position.to_le_bytes());
        }
        out
    }

    /// Read a body; every number is checked before it is used.
    pub fn parse(b: &[u8]) -> Result<Leaf, BadLeaf> {
        let runs = u16::from_le_bytes(b.get(..2).and_then(|x| x.try_into().ok()).ok_or(BadLeaf)?) as usize;
        if b.len() != 2 + runs * RUN_BYTES {
            return Err(BadLeaf);
        }
        let mut entries: Vec<Entry> = Vec::new();
        for r in b[2..].chunks_exact(RUN_BYTES) {
            let u32_at = |i: usize| u32::from_le_bytes([r[i], r[i + 1], r[i + 2], r[i + 3]]);
            let (chunk_start, count, flags) =
                (u32_at(0), u16::from_le_bytes([r[4], r[5]]) as u64, u16::from_le_bytes([r[6], r[7]]));
            let (chunk_len, last_len, start, len) = (u32_at(8), u32_at(12), u32_at(16), u32_at(20));
            let counter = u64::from_le_bytes([r[28], r[29], r[30], r[31], r[32], r[33], r[34], r[35]]);
            let (open_no, segment, position) = (u32_at(24), u32_at(36), u32_at(40));
            let block = BLOCK as u32;
            let run_end = chunk_start as u64 + (count.saturating_sub(1)) * chunk_len as u64 + last_len as u64;
            let log_end = position as u64 + count * (chunk_len as u64 + FRAME_OVERHEAD as u64);
            let sound = count >= 1
                && count <= ENTRIES_MAX as u64
                && flags & !FLAG_PARTIAL == 0
                && (1..=CHUNK_BYTES_MAX).contains(&chunk_len)
                && last_len >= 1
                && last_len <= chunk_len
                && chunk_start % block == 0
                && start % block == 0
                && run_end <= LEAF_BYTES
                && log_end <= u32::MAX as u64
                && counter.checked_add(count).is_some()
                && (count > 1 || last_len == chunk_len)
                && (count == 1 || (chunk_len % block == 0 && flags == 0));
            let shown = if flags & FLAG_PARTIAL == 0 {
                start == chunk_start && len == chunk_len
            } else {
                count == 1
                    && len >= 1
                    && start >= chunk_start
                    && start as u64 + len as u64 <= chunk_start as u64 + chunk_len as u64
                    && len < chunk_len
            };
            if !sound || !shown {
                return Err(BadLeaf);
            }
            for k in 0..count as u32 {
                let n = if k as u64 + 1 == count { last_len } else { chunk_len };
                let e = Entry {
                    start: start + k * chunk_len,
                    len: if flags & FLAG_PARTIAL == 0 { n } else { len },
                    chunk_start: chunk_start + k * chunk_len,
                    chunk_len: n,
                    seq: Sequence { open_no, counter: counter + k as u64 },
                    at: Location { segment, position: position + k * (chunk_len + FRAME_OVERHEAD as u32) },
                };
                if entries.last().is_some_and(|p| p.end() > e.start) || entries.len() >= ENTRIES_MAX {
                    return Err(BadLeaf);
                }
                entries.push(e);
            }
        }
        Ok(Leaf { entries })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chunk(start: u32, len: u32, counter: u64) -> Entry {
        let at = Location { segment: 1, position: 4096 + counter as u32 * 300_000 };
        Entry { start, len, chunk_start: start, chunk_len: len, seq: Sequence { open_no: 0, counter }, at }
    }

    #[test]
    fn a_stream_of_chunks_packs_into_one_run() {
        let mut leaf = Leaf::default();
        for k in 0..64u32 {
            let mut e = chunk(k * 16384, 16384, k as u64);
            e.at.position = 4096 + k * (16384 + 28);
            leaf.insert(e, &mut Vec::new());
        }
        let body = leaf.pack();
        assert_eq!(body.len(), 2 + RUN_BYTES);
        assert_eq!(Leaf::parse(&body), Ok(leaf));
    }

    #[test]
    fn a_chunk_lives_until_its_last_visible_part_goes() {
        let (mut leaf, mut dropped) = (Leaf::default(), Vec::new());
        leaf.insert(chunk(0, 16384, 1), &mut dropped);
        leaf.insert(chunk(4096, 4096, 2), &mut dropped);
        assert!(dropped.is_empty());
        assert_eq!(leaf.entries().len(), 3);
        leaf.cut(0, 4096, &mut dropped);
        assert!(dropped.is_empty());
        leaf.cut(8192, 16384, &mut dropped);
        assert_eq!(dropped.len(), 1);
    }

    #[test]
    fn moving_chunks_changes_where_they_lie_and_not_the_tag() {
        let key = MapKey::take(&mut [9; 32]);
        let opens = [OpenId([1; 16])];
        let mut leaf = Leaf::default();
        leaf.insert(chunk(0, 16384, 1), &mut Vec::new());
        leaf.insert(chunk(4096, 4096, 2), &mut Vec::new());
        let old = leaf.chunks_in(1, 0, u64::MAX);
        assert_eq!(old.len(), 2, "both parts of the first chunk are one");
        assert!(leaf.chunks_in(2, 0, u64::MAX).is_empty());
        assert!(leaf.chunks_in(1, 0, old[0].at.position as u64 + 16383).is_empty(), "a frame that is cut off");
        let tag = leaf.tag(&key, &SealId([2; 16]), 0, &opens).unwrap();
        let to = Location { segment: 7, position: 4096 };
        leaf.relocate(&[(old[0].at, to)]);
        assert_eq!(leaf.tag(&key, &SealId([2; 16]), 0, &opens).unwrap(), tag);
        assert_eq!(leaf.entries().iter().filter(|e| e.at == to).count(), 2);
        assert_eq!(leaf.chunks_in(1, 0, u64::MAX).len(), 1);
        assert_eq!(Leaf::parse(&leaf.pack()), Ok(leaf));
    }

    #[test]
    fn what_is_shown_in_part_or_in_small_pieces_is_wasteful_and_holes_are_not() {
        let mut leaf = Leaf::default();
        for k in 0..64 {
            leaf.insert(chunk(k * 16384, 16384, k as u64), &mut Vec::new());
        }
        assert_eq!(leaf.wasteful(16384), (vec![], 0));
        for k in 0..4 {
            leaf.insert(chunk(k * 4096, 4096, 100 + k as u64), &mut Vec::new());
        }
        assert_eq!(leaf.wasteful(16384).1, 0, "one stretch of 64 is not worth it");
        for k in 4..256 {
            leaf.insert(chunk(k * 4096, 4096, 100 + k as u64), &mut Vec::new());
        }
        let (runs, saved) = leaf.wasteful(16384);
        assert_eq!((runs.len(), runs[1], saved), (64, (16384, 32768), 64 * 3 * CHUNK_COST));
        // One block of a chunk is left, and a hole behind it.
        let mut leaf = Leaf::default();
        leaf.insert(chunk(0, 16384, 1), &mut Vec::new());
        leaf.cut(0, 8192, &mut Vec::new());
        leaf.cut(12288, 16384, &mut Vec::new());
        leaf.insert(chunk(0, 4096, 2), &mut Vec::new());
        assert_eq!(leaf.wasteful(16384), (vec![(0, 4096), (8192, 12288)], 12288));
    }

    proptest! {
        /// Against one byte of "which chunk" a block, whatever is inserted and cut.
        #[test]
        fn a_leaf_says_what_a_plain_array_says(ops in prop::collection::vec((0u32..256, 1u32..64, any::<bool>()), 1..60)) {
            let (mut leaf, mut dropped) = (Leaf::default(), Vec::new());
            let mut model = [0u64; 256];
            let mut made = 0;
            for (i, (block, blocks, cut)) in ops.into_iter().enumerate() {
                let end = (block + blocks).min(256);
                if cut {
                    leaf.cut(block * 4096, end * 4096, &mut dropped);
                    model[block as usize..end as usize].fill(0);
                } else {
                    let id = i as u64 + 1;
                    made += 1;
                    leaf.insert(chunk(block * 4096, (end - block) * 4096, id), &mut dropped);
                    model[block as usize..end as usize].fill(id);
                }
                for b in 0..256u32 {
                    let got = leaf.overlapping(b * 4096, b * 4096 + 1).first().map_or(0, |e| e.seq.counter);
                    prop_assert_eq!(got, model[b as usize]);
                }
                prop_assert_eq!(leaf.chunks().len() + dropped.len(), made, "every chunk is shown or dropped, once");
                prop_assert_eq!(Leaf::parse(&leaf.pack()), Ok(leaf.clone()));
            }
        }

        #[test]
        fn no_bytes_panic_the_parser(b in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Leaf::parse(&b);
        }
    }
}
