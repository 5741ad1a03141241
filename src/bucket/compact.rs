//! Moving what lives in a segment into the open one, so that the segment can go (ARCHITECTURE.md, Compaction). Frames are
//! copied as they are: no key is needed, and one that is damaged stays damaged. It must never take a frame for dead that
//! its object's map shows, nor leave a copy in the log that no map shows when the epoch ends.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::inode::{Freed, Inode, State};
use super::leaf::{Dropped, Entry, LEAF_BYTES, Leaf};
use super::map::{FANOUT, HEIGHT_MAX, Index, MapError};
use super::put::CatalogNodes;
use super::{Bucket, BucketError};
use crate::catalog::{CatalogError, SealRow};
use crate::crypto::derive;
use crate::log::{Flush, IndexEntry, PutRecord, Record, SLOT_BYTES_MAX, flushes_backwards};
use crate::types::{Location, OpenId, SealId};

/// What was moved of objects that are not in memory, for the next freeze to take.
#[derive(Default)]
pub(super) struct Moved {
    pub delta: Vec<(u32, i64)>,
    pub freed: Vec<Freed>,
    /// PUTs told again beside the chunks that were moved.
    pub puts: BTreeMap<u64, PutRecord>,
}

/// What a segment's records say of it.
pub(super) struct Contents {
    id: u32,
    flushes: Vec<Flush>,
    /// Chunks, their frames' bytes, and objects, dead and alive.
    pub chunks: u64,
    pub frame_bytes: u64,
    pub objects: u64,
}

/// One flush being moved.
struct Source<'a> {
    segment: u32,
    flush: &'a Flush,
    frames: Vec<u8>,
    /// What its INDEX record says, by position.
    index: HashMap<u32, (OpenId, IndexEntry)>,
}

impl Source<'_> {
    fn chunks_of(&self, leaf: &Leaf) -> Vec<Entry> {
        leaf.chunks_in(self.segment, self.flush.start, self.flush.frames_end())
    }

    /// The frame of a chunk, if the flush's records name it as the map does.
    fn frame(
        &self,
        object: u64,
        seal: &SealId,
        start: u64,
        e: &Entry,
        opens: &[OpenId],
    ) -> Option<(IndexEntry, &[u8])> {
        let (open_id, x) = self.index.get(&e.at.position)?;
        let same = x.object == object
            && x.seal == *seal
            && x.offset == start + u64::from(e.chunk_start)
            && x.n == e.chunk_len
            && x.counter == e.seq.counter
            && opens.get(e.seq.open_no as usize) == Some(open_id);
        let at = (u64::from(e.at.position) - self.flush.start) as usize;
        let frame = self.frames.get(at..at + e.frame_bytes() as usize)?;
        same.then_some((*x, frame))
    }
}

/// Where a chunk went.
struct Move {
    from: Location,
    to: Location,
    bytes: u32,
}

impl Bucket {
    /// Read the records of a closed segment.
    pub(super) fn contents_of(&self, id: u32) -> Result<Contents, BucketError> {
        let flushes = flushes_backwards(self.log.files(), &derive::log_key(&self.key), id)?;
        let mut c = Contents { id, flushes, chunks: 0, frame_bytes: 0, objects: 0 };
        let mut last = None;
        for e in c.flushes.iter().flat_map(|f| &f.records).filter_map(entries_of).flatten() {
            c.chunks += 1;
            c.frame_bytes += u64::from(e.n) + crate::types::FRAME_OVERHEAD as u64;
            // Chunks of one object lie together, mostly.
            c.objects += u64::from(last.replace(e.object) != Some(e.object));
        }
        Ok(c)
    }

    /// Move every chunk that a map shows in the segment. `go_on` is asked before each step with the bytes moved so far since
    /// it was asked last; false when it said no.
    pub(super) fn move_contents(
        self: &Arc<Self>,
        c: &Contents,
        go_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<bool, BucketError> {
        let mut moved = 0;
        for flush in &c.flushes {
            let mut index = HashMap::new();
            let mut leaves: BTreeMap<(u64, u64), ()> = BTreeMap::new();
            for r in &flush.records {
                let Record::Index { opens, entries } = r else { continue };
                for e in entries {
                    if let Some(open_id) = opens.get(e.open as usize) {
                        index.insert(e.position, (*open_id, *e));
                        leaves.insert((e.object, e.offset / LEAF_BYTES), ());
                    }
                }
            }
            if leaves.is_empty() {
                continue;
            }
            if !go_on(std::mem::take(&mut moved)) {
                return Ok(false);
            }
            // Read before any lock is taken. A frame that a map shows under the lock was alive now as well: none comes back.
            let mut frames = vec![0u8; (flush.frames_end() - flush.start) as usize];
            self.log.files().read_exact(c.id, flush.start, &mut frames)?;
            let source = Source { segment: c.id, flush, frames, index };
            for (object, leaf) in leaves.into_keys() {
                moved += self.move_leaf(object, leaf, &source)?;
                if moved >= SLOT_BYTES_MAX as u64 && !go_on(std::mem::take(&mut moved)) {
                    return Ok(false);
                }
            }
        }
        go_on(moved);
        Ok(true)
    }

    /// Move what one leaf of an object shows in a flush; returns the bytes moved.
    fn move_leaf(self: &Arc<Self>, object: u64, leaf: u64, source: &Source) -> Result<u64, BucketError> {
        let inode = match self.inode(object) {
            Ok(inode) => inode,
            Err(BucketError::NotFound(_)) => return Ok(0),
            Err(e) => return Err(e),
        };
        // From the copy to the map that shows it nothing can freeze: no commit and no intent has one without the other.
        let _permit = self.gate.names_quietly();
        self.health()?;
        let mut st = inode.state.lock();
        if !st.is_file() || st.dead || st.frozen_upto.is_some() {
            return Ok(0);
        }
        if st.content.is_some() {
            self.move_in_memory(&inode, &mut st, leaf, source)
        } else {
            self.move_rows(&st, leaf, source)
        }
    }

    /// Of an object whose map is in memory: the next commit writes it.
    fn move_in_memory(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        st: &mut State,
        leaf: u64,
        source: &Source,
    ) -> Result<u64, BucketError> {
        let opens = self.opens();
        let Some(content) = st.content.as_deref_mut() else { return Ok(0) };
        let Some(seal) = content.seal.clone() else { return Ok(0) };
        match content.map.load_leaf(&seal.secrets(&opens), &CatalogNodes(self), leaf) {
            Ok(()) => {}
            // What it shows is not known: its frames stay where they are.
            Err(MapError::Damaged { .. }) => return Ok(0),
            Err(MapError::Source(e)) => return Err(e),
        }
        let Some(l) = content.map.leaf(leaf) else { return Ok(0) };
        self.tidy.note(inode.ino, leaf, l.wasteful(self.cell_bytes() as u32).1);
        let (moves, copied) = self.copy_frames(inode.ino, &seal.id, leaf, source.chunks_of(l), source);
        if moves.is_empty() {
            return copied.map(|()| 0);
        }
        let places: Vec<(Location, Location)> = moves.iter().map(|m| (m.from, m.to)).collect();
        content.map.relocate(leaf, &places);
        let mut bytes = 0;
        for m in &moves {
            content.came(m.to.segment, m.bytes);
            content.went(&[Dropped { at: m.from, frame_bytes: m.bytes }]);
            bytes += u64::from(m.bytes);
        }
        content.untold = true;
        self.note_change(inode, st);
        copied.map(|()| bytes)
    }

    /// Of an object whose map is not in memory: its rows are changed at once, in the epoch's transaction. Nothing is verified,
    /// since that takes the object's key; nothing changes that a tag covers.
    fn move_rows(&self, st: &State, leaf: u64, source: &Source) -> Result<u64, BucketError> {
        let ino = st.row.ino;
        let row = match self.catalog().lock().seal(ino) {
            Ok(Some(row)) => row,
            Ok(None) | Err(CatalogError::BadRow { .. }) => return Ok(0),
            Err(e) => return Err(e.into()),
        };
        let Some((node, mut body)) = self.leaf_row(&row, leaf)? else { return Ok(0) };
        self.tidy.note(ino, leaf, body.wasteful(self.cell_bytes() as u32).1);
        let (moves, copied) = self.copy_frames(ino, &row.seal_id, leaf, source.chunks_of(&body), source);
        if moves.is_empty() {
            return copied.map(|()| 0);
        }
        body.relocate(&moves.iter().map(|m| (m.from, m.to)).collect::<Vec<_>>());
        let plain = row.method == 0;
        let put = PutRecord {
            seal: row.seal_id,
            object: ino,
            method: row.method,
            cipher: row.cipher,
            kek: row.kek,
            wrapped: row.wrapped.clone(),
            customer: row.customer.map(|c| [c.salt, c.verifier]),
        };
        let tx = self.catalog().lock();
        let written = match node {
            Some(id) => tx.put_node(id, &body.pack()),
            None => tx.put_seal(&SealRow { map: body.pack(), ..row }),
        };
        drop(tx);
        // A copy that no map shows must not outlive the epoch.
        written.inspect_err(|e| self.fail(&e.to_string()))?;
        let mut moved = self.tidy.moved.lock();
        moved.puts.insert(ino, put);
        let mut bytes = 0;
        for m in &moves {
            moved.delta.push((m.to.segment, i64::from(m.bytes)));
            moved.delta.push((m.from.segment, -i64::from(m.bytes)));
            moved.freed.push(Freed { chunk: Dropped { at: m.from, frame_bytes: m.bytes }, plain });
            bytes += u64::from(m.bytes);
        }
        copied.map(|()| bytes)
    }

    /// A leaf as the catalog has it, with its row (None: the seal's); None for a hole and for what does not parse.
    fn leaf_row(&self, row: &SealRow, leaf: u64) -> Result<Option<(Option<u64>, Leaf)>, BucketError> {
        if row.height > HEIGHT_MAX || leaf >= FANOUT.pow(u32::from(row.height)) {
            return Ok(None);
        }
        let (mut id, mut body) = (None, row.map.clone());
        for level in (0..row.height).rev() {
            let Some(node) = Index::parse(&body) else { return Ok(None) };
            let child = node.0[((leaf >> (6 * level)) % FANOUT) as usize];
            if child.is_hole() {
                return Ok(None);
            }
            let Some(next) = self.catalog().lock().node(child.id)? else { return Ok(None) };
            (id, body) = (Some(child.id), next);
        }
        Ok(Leaf::parse(&body).ok().map(|l| (id, l)))
    }

    /// Copy frames into the open buffer of the log, with INDEX entries that name the openings they were sealed in. An error
    /// comes beside what was copied before it: that the map must show all the same.
    fn copy_frames(
        &self,
        object: u64,
        seal: &SealId,
        leaf: u64,
        chunks: Vec<Entry>,
        source: &Source,
    ) -> (Vec<Move>, Result<(), BucketError>) {
        let opens = self.opens();
        let found: Vec<(&Entry, IndexEntry, &[u8])> = chunks
            .iter()
            .filter_map(|e| {
                let (x, frame) = source.frame(object, seal, leaf * LEAF_BYTES, e, &opens)?;
                Some((e, x, frame))
            })
            .collect();
        let mut out = Vec::with_capacity(found.len());
        let mut rest = &found[..];
        while !rest.is_empty() {
            let mut bytes = 0;
            let n = rest.iter().take_while(|(_, _, f)| {
                bytes += f.len();
                bytes <= SLOT_BYTES_MAX
            });
            let (here, behind) = rest.split_at(n.count().max(1));
            rest = behind;
            let total = here.iter().map(|(_, _, f)| f.len()).sum();
            let ids: Vec<OpenId> =
                here.iter().filter_map(|(e, _, _)| opens.get(e.seq.open_no as usize).copied()).collect();
            let (mut slot, named) = match self.log.reserve_moved(total, &ids) {
                Ok(reserved) => reserved,
                Err(e) => return (out, Err(e.into())),
            };
            let mut to = slot.location();
            let mut room = slot.bytes_mut();
            let mut entries = Vec::with_capacity(here.len());
            for ((e, x, frame), open) in here.iter().zip(named) {
                let (into, tail) = room.split_at_mut(frame.len());
                into.copy_from_slice(frame);
                room = tail;
                entries.push(IndexEntry { open, position: to.position, ..*x });
                out.push(Move { from: e.at, to, bytes: e.frame_bytes() });
                to.position += frame.len() as u32;
            }
            self.log.finish(slot, &entries);
        }
        (out, Ok(()))
    }
}

fn entries_of(r: &Record) -> Option<&Vec<IndexEntry>> {
    match r {
        Record::Index { entries, .. } => Some(entries),
        _ => None,
    }
}
