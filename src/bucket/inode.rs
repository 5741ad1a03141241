//! One inode in memory: attributes, the dirty cells of its content, and the content's seal and map once they are needed.
//! `io` orders reads and writes of one file and may be held across I/O; `state` never is, but for reading the catalog.

use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeBounds;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex, RwLock};

use super::leaf::Dropped;
use super::map::{Map, NodeWrite};
use super::put::Seal;
use crate::catalog::InodeRow;
use crate::crypto::secret::CustomerKey;
use crate::rule::Request;
use crate::types::{BLOCK, Location, Sequence};

/// Content of one aligned stretch of a file (the chunk size), as written and not yet sealed.
pub struct Cell {
    /// Up to the end of the last block that was ever valid, at least: a small file takes a block and not a whole cell.
    pub data: Vec<u8>,
    /// Bit i: block i of the cell is valid.
    pub valid: u64,
}

impl Cell {
    /// Make room up to `upto`, with zeroes. A cell that grows is a stream's: then it gets all its room at once.
    pub fn reach(&mut self, upto: usize, cell_bytes: usize) {
        if self.data.len() >= upto {
            return;
        }
        if self.data.is_empty() {
            self.data = vec![0; upto];
        } else {
            self.data.reserve_exact(cell_bytes.max(upto) - self.data.len());
            self.data.resize(upto, 0);
        }
    }
}

/// Blocks [from, to) of a cell as bits.
pub fn block_bits(from: usize, to: usize) -> u64 {
    let ones = |n: usize| if n >= 64 { u64::MAX } else { (1u64 << n) - 1 };
    ones(to) & !ones(from)
}

/// Runs of set bits: (first block, number of blocks).
pub fn bit_runs(mut bits: u64) -> impl Iterator<Item = (usize, usize)> {
    std::iter::from_fn(move || {
        if bits == 0 {
            return None;
        }
        let from = bits.trailing_zeros() as usize;
        let n = (bits >> from).trailing_ones() as usize;
        bits &= !block_bits(from, from + n);
        Some((from, n))
    })
}

/// The dirty cells of a file, by number. How many of their blocks are valid is kept and not counted: stat(2) asks for it.
#[derive(Default)]
pub struct DirtyCells {
    cells: BTreeMap<u64, Cell>,
    blocks: u64,
}

impl DirtyCells {
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    pub fn len(&self) -> usize {
        self.cells.len()
    }

    pub fn get(&self, k: u64) -> Option<&Cell> {
        self.cells.get(&k)
    }

    pub fn range(&self, cells: impl RangeBounds<u64>) -> impl DoubleEndedIterator<Item = (u64, &Cell)> {
        self.cells.range(cells).map(|(k, c)| (*k, c))
    }

    /// Valid blocks of all cells.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Write into a cell, a new one if there is none; true if it is new.
    pub fn write(&mut self, k: u64, f: impl FnOnce(&mut Cell)) -> bool {
        let mut new = false;
        let cell = self.cells.entry(k).or_insert_with(|| {
            new = true;
            Cell { data: Vec::new(), valid: 0 }
        });
        let before = cell.valid.count_ones();
        f(cell);
        self.blocks = self.blocks + u64::from(cell.valid.count_ones()) - u64::from(before);
        new
    }

    /// Zeroes from byte `from` of a cell to its end; what is valid stays so.
    pub fn clear_from(&mut self, k: u64, from: usize) {
        if let Some(c) = self.cells.get_mut(&k) {
            let from = c.data.len().min(from);
            c.data[from..].fill(0);
        }
    }

    /// Blocks of a cell are no longer valid; true if none is left and the cell is gone.
    fn forget(&mut self, k: u64, bits: u64) -> bool {
        let Some(c) = self.cells.get_mut(&k) else { return false };
        self.blocks -= u64::from((c.valid & bits).count_ones());
        c.valid &= !bits;
        let none = c.valid == 0;
        if none {
            self.cells.remove(&k);
        }
        none
    }

    /// Take cells out: those of these numbers, or all.
    pub fn take(&mut self, which: Option<Vec<u64>>) -> BTreeMap<u64, Cell> {
        let Some(which) = which else {
            self.blocks = 0;
            return std::mem::take(&mut self.cells);
        };
        let taken: BTreeMap<u64, Cell> =
            which.into_iter().filter_map(|k| self.cells.remove(&k).map(|c| (k, c))).collect();
        self.blocks -= taken.values().map(|c| u64::from(c.valid.count_ones())).sum::<u64>();
        taken
    }
}

/// A cell on its way into the log: nobody changes it any more.
pub struct SealingCell {
    pub data: Arc<Vec<u8>>,
    pub valid: u64,
}

/// A chunk of a batch.
pub struct BatchPiece {
    pub offset: u64,
    pub n: u32,
    pub seq: Sequence,
    pub at: Mutex<Option<Location>>,
}

/// Cells of one inode that are sealed together; batches enter the map in the order of their numbers.
pub struct Batch {
    pub no: u64,
    pub cells: BTreeMap<u64, SealingCell>,
    pub pieces: Vec<BatchPiece>,
    pub left: AtomicUsize,
    /// What the batch counts for in the bucket's bound on dirty bytes.
    pub bytes: usize,
}

impl Batch {
    pub fn complete(&self) -> bool {
        self.left.load(Ordering::Acquire) == 0
    }
}

/// Batches of a file that are not in its map yet, oldest first. The bytes they hold are kept and not counted.
#[derive(Default)]
pub struct Batches {
    queue: VecDeque<Arc<Batch>>,
    bytes: u64,
}

fn content_bytes(b: &Batch) -> u64 {
    b.pieces.iter().map(|p| u64::from(p.n)).sum()
}

impl Batches {
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Arc<Batch>> {
        self.queue.iter()
    }

    pub fn front(&self) -> Option<&Arc<Batch>> {
        self.queue.front()
    }

    /// Bytes of content in all batches.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn push(&mut self, batch: Arc<Batch>) {
        self.bytes += content_bytes(&batch);
        self.queue.push_back(batch);
    }

    pub fn pop_front(&mut self) {
        if let Some(b) = self.queue.pop_front() {
            self.bytes -= content_bytes(&b);
        }
    }
}

/// A chunk that the next commit sets free.
#[derive(Debug, Clone, Copy)]
pub struct Freed {
    pub chunk: Dropped,
    /// Plain content: it must be overwritten, not only forgotten.
    pub plain: bool,
}

/// Seal and map of an object.
#[derive(Default)]
pub struct Content {
    pub seal: Option<Arc<Seal>>,
    pub map: Map,
    /// The seal row must be written by the next commit, also if the map is as it was. A freeze takes it.
    pub stale: bool,
    /// This PUT has not been told to the log yet.
    pub untold: bool,
    /// There is content, whose key is not to be had, and it is being freed: what is here is what that leaves to write.
    pub unkeyed: bool,
    /// Rows of nodes that an emptied map left to do.
    pub writes: Vec<NodeWrite>,
    /// Bytes that came (+) and went (-) in each segment since the last commit.
    pub delta: Vec<(u32, i64)>,
    pub freed: Vec<Freed>,
    /// The bucket's rule generation for which this method was found right.
    pub rule_generation: u64,
}

impl Content {
    pub fn came(&mut self, segment: u32, bytes: u32) {
        match self.delta.last_mut() {
            Some((s, n)) if *s == segment => *n += bytes as i64,
            _ => self.delta.push((segment, bytes as i64)),
        }
    }

    pub fn went(&mut self, dropped: &[Dropped]) {
        let plain = self.seal.as_ref().is_some_and(|s| s.is_plain());
        for d in dropped {
            match self.delta.last_mut() {
                Some((s, n)) if *s == d.at.segment => *n -= d.frame_bytes as i64,
                _ => self.delta.push((d.at.segment, -(d.frame_bytes as i64))),
            }
            self.freed.push(Freed { chunk: *d, plain });
        }
    }
}

/// See [`Inode`].
pub struct State {
    pub row: InodeRow,
    /// No row in the catalog yet.
    pub fresh: bool,
    /// In the bucket's list of what the open epoch changed.
    pub listed: bool,
    pub opens: u32,
    /// Has a row in `orphan`.
    pub orphan: bool,
    /// Nothing refers to it and its content is freed: the next commit removes its rows.
    pub dead: bool,
    pub content: Option<Box<Content>>,
    pub dirty: DirtyCells,
    pub batches: Batches,
    pub next_batch: u64,
    /// Between a freeze and its snapshot: batches up to this number belong to the frozen epoch, and the map must hold still
    /// but for them.
    pub frozen_upto: Option<u64>,
    /// The request, when FLAG_REQUEST is set and it has been read.
    pub request: Option<Request>,
    /// The customer key of content, or of the content to come, that somebody has unlocked (`customer.rs`).
    pub customer: Option<Arc<CustomerKey>>,
}

pub struct Inode {
    pub ino: u64,
    pub io: RwLock<()>,
    pub state: Mutex<State>,
    /// Batches entered the map, or a snapshot was taken.
    pub settled: Condvar,
}

impl Inode {
    pub fn new(row: InodeRow, fresh: bool) -> Inode {
        Inode {
            ino: row.ino,
            io: RwLock::new(()),
            state: Mutex::new(State {
                row,
                fresh,
                listed: false,
                opens: 0,
                orphan: false,
                dead: false,
                content: None,
                dirty: DirtyCells::default(),
                batches: Batches::default(),
                next_batch: 1,
                frozen_upto: None,
                request: None,
                customer: None,
            }),
            settled: Condvar::new(),
        }
    }
}

impl State {
    pub fn kind(&self) -> u32 {
        self.row.mode & libc::S_IFMT
    }

    pub fn is_file(&self) -> bool {
        self.kind() == libc::S_IFREG
    }

    pub fn is_dir(&self) -> bool {
        self.kind() == libc::S_IFDIR
    }

    /// The row as stat(2) shows it: content that still waits in memory takes space already. Were it told only when it is in
    /// the log, the kernel would go on showing 0 blocks, which says "one hole" to tar(1).
    pub fn shown(&self) -> InodeRow {
        let waiting = self.dirty.blocks() * BLOCK as u64 + self.batches.bytes();
        // What is written over takes its space just once; the log's own overhead may be counted later.
        let most = self.row.size.next_multiple_of(BLOCK as u64).max(self.row.sealed);
        InodeRow { sealed: (self.row.sealed + waiting).min(most), ..self.row }
    }

    /// The map may be changed by others than batches.
    pub fn quiet(&self) -> bool {
        self.batches.is_empty() && self.frozen_upto.is_none()
    }

    /// Forget dirty content in [from, to) (multiples of a block, or `to` = u64::MAX). Returns the bytes of cells dropped whole.
    pub fn drop_dirty(&mut self, from: u64, to: u64, cell_bytes: u64) -> usize {
        let (first, last) = (from / cell_bytes, if to == u64::MAX { u64::MAX } else { to.div_ceil(cell_bytes) });
        let touched: Vec<u64> = self.dirty.range(first..last).map(|(k, _)| k).collect();
        let mut gone = 0;
        for k in touched {
            let start = k * cell_bytes;
            let a = from.saturating_sub(start).min(cell_bytes) as usize / BLOCK;
            let b = (to.saturating_sub(start)).min(cell_bytes) as usize / BLOCK;
            if self.dirty.forget(k, block_bits(a, b)) {
                gone += cell_bytes as usize;
            }
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn content_in_memory_counts_as_space_but_no_byte_of_it_twice() {
        let blocks_of = |size: u64, sealed: u64, dirty: &[u64]| {
            let row = InodeRow { mode: libc::S_IFREG, size, sealed, ..InodeRow::default() };
            let mut st = Inode::new(row, true).state.into_inner();
            for (i, v) in dirty.iter().enumerate() {
                st.dirty.write(i as u64, |c| c.valid = *v);
            }
            st.shown().sealed
        };
        let block = BLOCK as u64;
        assert_eq!(blocks_of(100, 0, &[1]), block);
        assert_eq!(blocks_of(1 << 43, 5000, &[0b101, 0b1]), 5000 + 3 * block, "sparse");
        assert_eq!(blocks_of(block, block + 60, &[1]), block + 60, "written over");
        assert_eq!(blocks_of(0, 0, &[]), 0);
    }

    fn batch_of(no: u64, cells: BTreeMap<u64, Cell>, cell_bytes: u64) -> Arc<Batch> {
        let piece = |k: u64, (first, n): (usize, usize)| BatchPiece {
            offset: k * cell_bytes + (first * BLOCK) as u64,
            n: (n * BLOCK) as u32 - (k % 3) as u32,
            seq: Sequence { open_no: 0, counter: 0 },
            at: Mutex::new(None),
        };
        let pieces =
            cells.iter().flat_map(|(k, c)| bit_runs(c.valid).map(|r| piece(*k, r)).collect::<Vec<_>>()).collect();
        Arc::new(Batch { no, cells: BTreeMap::new(), pieces, left: AtomicUsize::new(0), bytes: 0 })
    }

    proptest! {
        #[test]
        fn the_counts_of_waiting_content_are_its_sums_whatever_has_happened(
            ops in prop::collection::vec((0u8..5, 0u64..12, 0usize..16, 1usize..16), 1..200)
        ) {
            const CELL: u64 = 16 * BLOCK as u64;
            let mut st = Inode::new(InodeRow::default(), true).state.into_inner();
            for (op, k, from, n) in ops {
                let to = (from + n).min(16);
                match op {
                    0 | 1 => drop(st.dirty.write(k, |c| c.valid |= block_bits(from, to))),
                    2 => {
                        let (a, b) = (k * CELL + (from * BLOCK) as u64, (k + n as u64) * CELL);
                        st.drop_dirty(a, if n == 15 { u64::MAX } else { b }, CELL);
                    }
                    3 => {
                        let which = (n < 12).then(|| (k..k + n as u64).collect());
                        let cells = st.dirty.take(which);
                        st.batches.push(batch_of(1, cells, CELL));
                    }
                    _ => st.batches.pop_front(),
                }
                let dirty: u64 = st.dirty.range(..).map(|(_, c)| u64::from(c.valid.count_ones())).sum();
                let under_way: u64 = st.batches.iter().flat_map(|b| &b.pieces).map(|p| u64::from(p.n)).sum();
                prop_assert_eq!((st.dirty.blocks(), st.batches.bytes()), (dirty, under_way));
                prop_assert!(st.dirty.range(..).all(|(_, c)| c.valid != 0));
            }
        }
    }

    #[test]
    fn a_cell_holds_what_was_written_and_is_moved_at_most_once() {
        let mut c = Cell { data: vec![], valid: 0 };
        c.reach(BLOCK, 16 * BLOCK);
        assert_eq!((c.data.len(), c.data.capacity()), (BLOCK, BLOCK));
        c.data.fill(7);
        c.reach(3 * BLOCK, 16 * BLOCK);
        assert_eq!((c.data.len(), c.data.capacity()), (3 * BLOCK, 16 * BLOCK));
        assert!(c.data[..BLOCK].iter().all(|b| *b == 7) && c.data[BLOCK..].iter().all(|b| *b == 0));
        c.reach(16 * BLOCK, 16 * BLOCK);
        c.reach(BLOCK, 16 * BLOCK);
        assert_eq!((c.data.len(), c.data.capacity()), (16 * BLOCK, 16 * BLOCK));
    }

    #[test]
    fn bits_and_runs_agree() {
        assert_eq!(block_bits(0, 64), u64::MAX);
        assert_eq!(bit_runs(0b1110_0110).collect::<Vec<_>>(), [(1, 2), (5, 3)]);
        assert_eq!(bit_runs(u64::MAX).collect::<Vec<_>>(), [(0, 64)]);
        assert_eq!(bit_runs(0).count(), 0);
    }
}
