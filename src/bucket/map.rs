//! An object's map in memory: leaves as they are now, index nodes as of the last commit, both loaded when needed and
//! verified on the way down. Only a commit changes index nodes, so a reader meanwhile finds a whole tree.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::leaf::{Dropped, Entry, LEAF_BYTES, Leaf};
use crate::crypto::mac;
use crate::crypto::secret::MapKey;
use crate::types::{Location, OpenId, SealId};

/// Children of an index node.
pub const FANOUT: u64 = 64;
const CHILD_BYTES: usize = 40;
pub const NODE_BYTES: usize = FANOUT as usize * CHILD_BYTES;
/// 64^7 leaves of 1 MiB: 2^62 bytes.
pub const HEIGHT_MAX: u8 = 7;
/// Largest size of an object, bytes.
pub const OBJECT_BYTES_MAX: u64 = 1 << 62;
/// Bytes of leaves in memory above which those that are as in the catalog are let go: 13,000 as a stream writes them, 3,200
/// of a file written at random. They are counted each time that so many more have come.
const LEAVES_BYTES_MAX: usize = 32 << 20;
const LEAVES_COUNTED_EVERY: usize = 1024;
/// Index nodes of one object, of 2.5 KiB each, above which those are let go that no leaf in memory needs.
const NODES_KEPT_MAX: usize = 1024;

/// What a map needs to verify and to tag.
pub struct MapSecrets<'a> {
    pub key: &'a MapKey,
    pub seal: SealId,
    pub opens: &'a [OpenId],
}

/// Where nodes come from.
pub trait NodeSource {
    /// The body of a node, None if there is no such row.
    fn node(&self, id: u64) -> Result<Option<Vec<u8>>, super::BucketError>;
}

/// A child as its parent knows it. A tag of zeroes means a hole, and then the id is 0 too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Child {
    pub(super) id: u64,
    pub(super) tag: [u8; 32],
}

impl Child {
    pub(super) fn is_hole(&self) -> bool {
        self.tag == [0; 32]
    }
}

#[derive(Debug, Clone)]
pub(super) struct Index(pub(super) Vec<Child>);

impl Index {
    fn empty() -> Index {
        Index(vec![Child::default(); FANOUT as usize])
    }

    pub(super) fn parse(b: &[u8]) -> Option<Index> {
        if b.len() != NODE_BYTES {
            return None;
        }
        let mut out = Vec::with_capacity(FANOUT as usize);
        for c in b.chunks_exact(CHILD_BYTES) {
            let child = Child { id: u64::from_le_bytes(c[..8].try_into().ok()?), tag: c[8..].try_into().ok()? };
            if child.is_hole() != (child.id == 0) {
                return None;
            }
            out.push(child);
        }
        Some(Index(out))
    }

    fn pack(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(NODE_BYTES);
        for c in &self.0 {
            out.extend_from_slice(&c.id.to_le_bytes());
            out.extend_from_slice(&c.tag);
        }
        out
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(Child::is_hole)
    }

    pub(super) fn tag(&self, s: &MapSecrets, level: u8, index: u64) -> [u8; 32] {
        let mut m = mac::Mac::new(s.key);
        m.update(b"index").update(&s.seal.0).update(&[level]).update(&index.to_le_bytes());
        for c in &self.0 {
            m.update(&c.tag);
        }
        m.finish()
    }
}

/// A row of `node` to write or to delete.
#[derive(Debug, PartialEq, Eq)]
pub enum NodeWrite {
    Put(u64, Vec<u8>),
    Delete(u64),
}

/// The top of a map as a seal row holds it.
pub struct Top {
    pub height: u8,
    pub body: Vec<u8>,
    pub tag: [u8; 32],
}

/// Part of a map is not what was written.
#[derive(Debug)]
pub enum MapError {
    /// File bytes [from, to) are not mapped by anything that verifies.
    Damaged {
        from: u64,
        to: u64,
    },
    Source(super::BucketError),
}

/// See the module.
#[derive(Default)]
pub struct Map {
    height: u8,
    leaves: BTreeMap<u64, Leaf>,
    dirty: BTreeSet<u64>,
    /// Leaves that say of chunks where they lie now, and are otherwise as the last commit has them: no tag changes.
    moved: BTreeSet<u64>,
    /// Leaves handed to a commit whose rows may not have been written yet: reading them back could find the old row.
    settling: BTreeSet<u64>,
    /// By (level, index); level 1 is above leaves. The top is (height, 0).
    nodes: HashMap<(u8, u64), Index>,
    /// So many nodes and no fewer are looked through again: what was kept last time, twice.
    sweep_at: usize,
    /// Leaves are counted when there are this many.
    count_at: usize,
}

fn covered(height: u8) -> u64 {
    FANOUT.pow(height as u32)
}

/// The least height that covers a size.
fn height_for(size: u64) -> u8 {
    let leaves = size.div_ceil(LEAF_BYTES).max(1);
    (0..=HEIGHT_MAX).find(|&h| covered(h) >= leaves).unwrap_or(HEIGHT_MAX)
}

impl Map {
    /// The map whose top lies in a seal row. The caller has compared [`Map::top_tag`] with what the row's tag covers.
    pub fn load(height: u8, body: &[u8]) -> Option<Map> {
        let mut m = Map { height, ..Map::default() };
        match height {
            0 => {
                m.leaves.insert(0, Leaf::parse(body).ok()?);
            }
            1..=HEIGHT_MAX => {
                m.nodes.insert((height, 0), Index::parse(body)?);
            }
            _ => return None,
        }
        Some(m)
    }

    /// Tag of the top node as it stands.
    pub fn top_tag(&self, s: &MapSecrets) -> Option<[u8; 32]> {
        if self.height == 0 {
            match self.leaves.get(&0) {
                Some(l) => l.tag(s.key, &s.seal, 0, s.opens),
                None => Leaf::default().tag(s.key, &s.seal, 0, s.opens),
            }
        } else {
            self.nodes.get(&(self.height, 0)).map(|n| n.tag(s, self.height, 0))
        }
    }

    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty() || !self.moved.is_empty()
    }

    /// Leaves changed since the last commit: they stay in memory until the next.
    pub fn changed_leaves(&self) -> usize {
        self.dirty.len()
    }

    /// What the map takes in memory, about.
    pub fn memory_bytes(&self) -> usize {
        self.leaves_bytes() + self.nodes.len() * FANOUT as usize * size_of::<Child>()
    }

    fn leaves_bytes(&self) -> usize {
        self.leaves.values().map(|l| l.entries().len()).sum::<usize>() * size_of::<Entry>()
    }

    fn drop_clean_leaves(&mut self) {
        let (dirty, moved, settling) = (&self.dirty, &self.moved, &self.settling);
        self.leaves.retain(|i, _| dirty.contains(i) || moved.contains(i) || settling.contains(i));
    }

    /// Let go of what is as in the catalog, when there are many nodes. What stays: every node above a leaf in memory, since a
    /// leaf that is changed later finds its way up without reading; and the first node of each level, among them the top and
    /// those that [`Map::grow`] made, whose rows may not be written yet.
    fn sweep(&mut self) {
        if self.nodes.len() < self.sweep_at.max(NODES_KEPT_MAX) {
            return;
        }
        self.drop_clean_leaves();
        let mut above = HashSet::new();
        for i in self.leaves.keys().chain(&self.settling) {
            // Neighbours share what is above them.
            for level in 1..=self.height {
                if !above.insert((level, i >> (6 * level))) {
                    break;
                }
            }
        }
        self.nodes.retain(|at, _| at.1 == 0 || above.contains(at));
        self.sweep_at = 2 * self.nodes.len();
    }

    fn child_of(&mut self, s: &MapSecrets, src: &dyn NodeSource, level: u8, index: u64) -> Result<Child, MapError> {
        // The child (level, index) as its parent has it; loads and verifies the nodes above it.
        if index >= covered(self.height - level) {
            return Ok(Child::default());
        }
        let mut at = self.height;
        loop {
            let node_index = index >> (6 * (at - level));
            let here = at - 1;
            let child_index = index >> (6 * (here - level));
            let Some(node) = self.nodes.get(&(at, node_index)) else {
                return Ok(Child::default());
            };
            let child = node.0[(child_index % FANOUT) as usize];
            if here == level || child.is_hole() {
                return Ok(child);
            }
            if let std::collections::hash_map::Entry::Vacant(e) = self.nodes.entry((here, child_index)) {
                let span = LEAF_BYTES << (6 * here);
                let damaged = MapError::Damaged { from: child_index * span, to: (child_index + 1) * span };
                let body = src.node(child.id).map_err(MapError::Source)?;
                let Some(n) = body.and_then(|b| Index::parse(&b)) else { return Err(damaged) };
                if n.tag(s, here, child_index) != child.tag {
                    return Err(damaged);
                }
                e.insert(n);
            }
            at = here;
        }
    }

    /// Make leaf `i` present in memory (an absent one is a hole: an empty leaf is not kept for it).
    pub fn load_leaf(&mut self, s: &MapSecrets, src: &dyn NodeSource, i: u64) -> Result<(), MapError> {
        if self.leaves.contains_key(&i) || self.height == 0 {
            return Ok(());
        }
        self.sweep();
        let child = self.child_of(s, src, 0, i)?;
        if child.is_hole() {
            return Ok(());
        }
        let damaged = MapError::Damaged { from: i * LEAF_BYTES, to: (i + 1) * LEAF_BYTES };
        let body = src.node(child.id).map_err(MapError::Source)?;
        let Some(leaf) = body.and_then(|b| Leaf::parse(&b).ok()) else { return Err(damaged) };
        if leaf.tag(s.key, &s.seal, i, s.opens) != Some(child.tag) {
            return Err(damaged);
        }
        if self.leaves.len() >= self.count_at.max(LEAVES_COUNTED_EVERY) {
            if self.leaves_bytes() > LEAVES_BYTES_MAX {
                self.drop_clean_leaves();
            }
            self.count_at = self.leaves.len() + LEAVES_COUNTED_EVERY;
        }
        self.leaves.insert(i, leaf);
        Ok(())
    }

    /// A leaf that [`Map::load_leaf`] has brought; None is a hole.
    pub fn leaf(&self, i: u64) -> Option<&Leaf> {
        self.leaves.get(&i)
    }

    /// Show a chunk; its leaf must have been loaded.
    pub fn insert(&mut self, i: u64, e: Entry, dropped: &mut Vec<Dropped>) {
        self.leaves.entry(i).or_default().insert(e, dropped);
        self.dirty.insert(i);
    }

    /// Say of chunks of leaf `i` where they lie now; its leaf must have been loaded.
    pub fn relocate(&mut self, i: u64, moves: &[(Location, Location)]) {
        if let Some(l) = self.leaves.get_mut(&i) {
            l.relocate(moves);
            self.moved.insert(i);
        }
    }

    /// Leaves that the next [`Map::settle`] writes with new tags.
    pub fn dirty_leaves(&self) -> impl Iterator<Item = (u64, &Leaf)> {
        self.dirty.iter().filter_map(|i| Some((*i, self.leaves.get(i)?)))
    }

    /// Take [from, to) of leaf `i` out of the map; its leaf must have been loaded.
    pub fn cut(&mut self, i: u64, from: u32, to: u32, dropped: &mut Vec<Dropped>) {
        if let Some(l) = self.leaves.get_mut(&i)
            && !l.overlapping(from, to).is_empty()
        {
            l.cut(from, to, dropped);
            self.dirty.insert(i);
        }
    }

    /// The first leaf at or after `i` that has entries, without reading leaves.
    pub fn next_leaf(&mut self, s: &MapSecrets, src: &dyn NodeSource, i: u64) -> Result<Option<u64>, MapError> {
        let in_memory = self.leaves.range(i..).find(|(_, l)| !l.is_empty()).map(|(k, _)| *k);
        if self.height == 0 {
            return Ok(in_memory);
        }
        self.sweep();
        let mut at = i;
        while at < covered(self.height) && in_memory.is_none_or(|m| at < m) {
            // Go down as far as there are children; a hole at some level lets us skip all of it.
            let mut level = self.height;
            let mut skip = 0;
            while level > 0 {
                level -= 1;
                if self.child_of(s, src, level, at >> (6 * level))?.is_hole() {
                    skip = covered(level);
                    break;
                }
            }
            if skip == 0 {
                match self.leaves.get(&at) {
                    Some(l) if l.is_empty() => skip = 1,
                    _ => return Ok(Some(at)),
                }
            }
            at = (at / skip + 1) * skip;
        }
        Ok(in_memory)
    }

    /// Bring the tree up to date with its leaves for an object of `size` bytes; `new_id` makes node ids. No I/O: every node
    /// above a dirty leaf is in memory since that leaf was loaded.
    pub fn settle(
        &mut self,
        s: &MapSecrets,
        size: u64,
        new_id: &mut dyn FnMut() -> u64,
        out: &mut Vec<NodeWrite>,
    ) -> Option<Top> {
        let want = height_for(size).max(height_for((self.dirty.last().map_or(0, |l| l + 1)) * LEAF_BYTES));
        while self.height < want {
            self.grow(s, new_id, out)?;
        }
        let moved = std::mem::take(&mut self.moved);
        if self.height == 0 {
            self.dirty.clear();
            let empty = Leaf::default();
            let leaf = self.leaves.get(&0).unwrap_or(&empty);
            return Some(Top { height: 0, body: leaf.pack(), tag: leaf.tag(s.key, &s.seal, 0, s.opens)? });
        }
        for i in moved {
            // Under the id it has: nothing above it changes. One that is dirty as well is written below.
            if !self.dirty.contains(&i) {
                let child = self.nodes.get(&(1, i / FANOUT))?.0[(i % FANOUT) as usize];
                let l = self.leaves.get(&i)?;
                if child.id == 0 {
                    return None;
                }
                out.push(NodeWrite::Put(child.id, l.pack()));
                self.settling.insert(i);
            }
        }
        let mut changed: BTreeSet<u64> = BTreeSet::new();
        for i in std::mem::take(&mut self.dirty) {
            self.settling.insert(i);
            let (parent, slot) = (i / FANOUT, (i % FANOUT) as usize);
            let node = self.nodes.entry((1, parent)).or_insert_with(Index::empty);
            let child = &mut node.0[slot];
            match self.leaves.get(&i) {
                Some(l) if !l.is_empty() => {
                    if child.id == 0 {
                        child.id = new_id();
                    }
                    child.tag = l.tag(s.key, &s.seal, i, s.opens)?;
                    out.push(NodeWrite::Put(child.id, l.pack()));
                }
                _ => {
                    if child.id != 0 {
                        out.push(NodeWrite::Delete(child.id));
                    }
                    *child = Child::default();
                    self.leaves.remove(&i);
                }
            }
            changed.insert(parent);
        }
        for level in 1..self.height {
            let mut above = BTreeSet::new();
            for i in changed {
                let (tag, body, empty) = {
                    let n = self.nodes.get(&(level, i))?;
                    (n.tag(s, level, i), n.pack(), n.is_empty())
                };
                let parent = self.nodes.entry((level + 1, i / FANOUT)).or_insert_with(Index::empty);
                let child = &mut parent.0[(i % FANOUT) as usize];
                if empty {
                    if child.id != 0 {
                        out.push(NodeWrite::Delete(child.id));
                    }
                    *child = Child::default();
                    self.nodes.remove(&(level, i));
                } else {
                    if child.id == 0 {
                        child.id = new_id();
                    }
                    child.tag = tag;
                    out.push(NodeWrite::Put(child.id, body));
                }
                above.insert(i / FANOUT);
            }
            changed = above;
        }
        let top = self.nodes.entry((self.height, 0)).or_insert_with(Index::empty);
        Some(Top { height: self.height, body: top.pack(), tag: top.tag(s, self.height, 0) })
    }

    /// The rows of the last [`Map::settle`] have been written.
    pub fn settled(&mut self) {
        self.settling.clear();
    }

    /// One level more: what was the top becomes the first child of a new one.
    fn grow(&mut self, s: &MapSecrets, new_id: &mut dyn FnMut() -> u64, out: &mut Vec<NodeWrite>) -> Option<()> {
        let mut top = Index::empty();
        if self.height == 0 {
            if self.leaves.get(&0).is_some_and(|l| !l.is_empty()) {
                self.dirty.insert(0);
            }
        } else {
            let old = self.nodes.get(&(self.height, 0))?;
            if !old.is_empty() {
                let id = new_id();
                out.push(NodeWrite::Put(id, old.pack()));
                top.0[0] = Child { id, tag: old.tag(s, self.height, 0) };
            } else {
                self.nodes.remove(&(self.height, 0));
            }
        }
        self.height += 1;
        self.nodes.insert((self.height, 0), top);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Location, Sequence};
    use std::collections::HashMap as Rows;

    struct Memory(Rows<u64, Vec<u8>>);
    impl NodeSource for Memory {
        fn node(&self, id: u64) -> Result<Option<Vec<u8>>, super::super::BucketError> {
            Ok(self.0.get(&id).cloned())
        }
    }

    fn entry(counter: u64) -> Entry {
        Entry {
            start: 0,
            len: 4096,
            chunk_start: 0,
            chunk_len: 4096,
            seq: Sequence { open_no: 0, counter },
            at: Location { segment: 1, position: 4096 },
        }
    }

    fn apply(rows: &mut Memory, writes: Vec<NodeWrite>) {
        for w in writes {
            match w {
                NodeWrite::Put(id, b) => rows.0.insert(id, b),
                NodeWrite::Delete(id) => rows.0.remove(&id),
            };
        }
    }

    /// Far-apart leaves written over several commits and cold starts are all found again, and a cold map reads only its path.
    #[test]
    fn leaves_far_apart_are_found_after_cold_starts_and_every_altered_node_is_noticed() {
        let key = MapKey::take(&mut [9; 32]);
        let opens = [OpenId([1; 16])];
        let s = MapSecrets { key: &key, seal: SealId([2; 16]), opens: &opens };
        let (mut rows, mut next) = (Memory(Rows::new()), 0u64);
        let wanted = [0u64, 1, 63, 64, 4095, 4096, 5_000_000, 8 << 20];
        let mut map = Map::default();
        let (mut height, mut body) = (0, Leaf::default().pack());
        for (k, &i) in wanted.iter().enumerate() {
            map.load_leaf(&s, &rows, i).unwrap();
            map.insert(i, entry(k as u64), &mut Vec::new());
            let mut out = Vec::new();
            let mut id = || {
                next += 1;
                next
            };
            let top = map.settle(&s, (i + 1) * LEAF_BYTES, &mut id, &mut out).unwrap();
            apply(&mut rows, out);
            (height, body) = (top.height, top.body);
            map = Map::load(height, &body).unwrap();
            assert_eq!(map.top_tag(&s), Some(top.tag));
        }
        for (k, &i) in wanted.iter().enumerate() {
            map.load_leaf(&s, &rows, i).unwrap();
            assert_eq!(map.leaf(i).unwrap().entries()[0].seq.counter, k as u64);
        }
        let mut map = Map::load(height, &body).unwrap();
        let mut found = Vec::new();
        let mut at = 0;
        while let Some(i) = map.next_leaf(&s, &rows, at).unwrap() {
            found.push(i);
            at = i + 1;
        }
        assert_eq!(found, wanted);
        for id in rows.0.keys().copied().collect::<Vec<_>>() {
            let mut bad = Memory(rows.0.clone());
            bad.0.get_mut(&id).unwrap()[20] ^= 1;
            let mut map = Map::load(height, &body).unwrap();
            let noticed = wanted.iter().any(|&i| matches!(map.load_leaf(&s, &bad, i), Err(MapError::Damaged { .. })));
            assert!(noticed, "node {id}");
            bad.0.remove(&id);
            let mut map = Map::load(height, &body).unwrap();
            assert!(wanted.iter().any(|&i| map.load_leaf(&s, &bad, i).is_err()), "removed node {id}");
        }
        // Emptying every leaf deletes every row.
        let mut map = Map::load(height, &body).unwrap();
        for &i in &wanted {
            map.load_leaf(&s, &rows, i).unwrap();
            map.cut(i, 0, LEAF_BYTES as u32, &mut Vec::new());
        }
        let mut out = Vec::new();
        map.settle(&s, 0, &mut || unreachable!(), &mut out).unwrap();
        apply(&mut rows, out);
        assert!(rows.0.is_empty());
    }

    /// A map that is looked at far and wide keeps a bounded number of nodes, and loses nothing: not what is changed, not what
    /// a commit has taken down and not written yet, not what grew above it.
    #[test]
    fn nodes_in_memory_are_bounded_and_every_change_finds_its_way_up() {
        const LEAVES: u64 = 4 * NODES_KEPT_MAX as u64;
        let key = MapKey::take(&mut [9; 32]);
        let opens = [OpenId([1; 16])];
        let s = MapSecrets { key: &key, seal: SealId([2; 16]), opens: &opens };
        let (mut rows, mut next) = (Memory(Rows::new()), 0u64);
        let mut id = || {
            next += 1;
            next
        };
        // Each leaf has a node of its own above it.
        let at = |k: u64| k * FANOUT + k % FANOUT;
        let mut model: BTreeMap<u64, u64> = BTreeMap::new();
        let mut map = Map::default();
        let (mut size, mut counter, mut dice) = (0, 0, 12345u64);
        let mut roll = |n: u64| {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (dice >> 33) % n
        };
        for round in 0..24 {
            for _ in 0..300 {
                let k = roll(LEAVES * (round + 1) / 24 + 1);
                map.load_leaf(&s, &rows, at(k)).unwrap();
                if roll(5) == 0 {
                    map.cut(at(k), 0, LEAF_BYTES as u32, &mut Vec::new());
                    model.remove(&k);
                } else {
                    counter += 1;
                    map.insert(at(k), entry(counter), &mut Vec::new());
                    model.insert(k, counter);
                    size = size.max((at(k) + 1) * LEAF_BYTES);
                }
            }
            let mut out = Vec::new();
            let top = map.settle(&s, size, &mut id, &mut out).unwrap();
            // Looked at while the rows are on their way, and changed for the next commit.
            for k in (0..LEAVES).step_by(3) {
                if map.load_leaf(&s, &rows, at(k)).is_ok() && k % 30 == 0 {
                    counter += 1;
                    map.insert(at(k), entry(counter), &mut Vec::new());
                    model.insert(k, counter);
                    size = size.max((at(k) + 1) * LEAF_BYTES);
                }
            }
            apply(&mut rows, out);
            map.settled();
            assert!(Map::load(top.height, &top.body).is_some_and(|m| m.top_tag(&s) == Some(top.tag)));
        }
        let mut out = Vec::new();
        let top = map.settle(&s, size, &mut id, &mut out).unwrap();
        apply(&mut rows, out);
        map.settled();
        for mut map in [map, Map::load(top.height, &top.body).unwrap()] {
            for k in 0..LEAVES {
                map.load_leaf(&s, &rows, at(k)).unwrap();
                let found = map.leaf(at(k)).and_then(|l| l.entries().first()).map(|e| e.seq.counter);
                assert_eq!(found, model.get(&k).copied(), "leaf {k}");
                assert!(map.nodes.len() <= NODES_KEPT_MAX + 2 * HEIGHT_MAX as usize, "{} nodes", map.nodes.len());
            }
            let (mut seen, mut i) = (Vec::new(), 0);
            while let Some(found) = map.next_leaf(&s, &rows, i).unwrap() {
                seen.push(found);
                i = found + 1;
                assert!(map.nodes.len() <= NODES_KEPT_MAX + 2 * HEIGHT_MAX as usize);
            }
            assert_eq!(seen, model.keys().map(|k| at(*k)).collect::<Vec<_>>());
        }
    }

    /// The commit must write where a chunk lies now, however much of the map is looked at before: the old place is given away.
    #[test]
    fn a_leaf_that_was_moved_stays_until_it_is_written_however_many_nodes_there_are() {
        let key = MapKey::take(&mut [9; 32]);
        let opens = [OpenId([1; 16])];
        let s = MapSecrets { key: &key, seal: SealId([2; 16]), opens: &opens };
        let (mut rows, mut next, mut out) = (Memory(Rows::new()), 0u64, Vec::new());
        let mut id = || {
            next += 1;
            next
        };
        let mut map = Map::default();
        let leaves = 2 * NODES_KEPT_MAX as u64;
        for i in 0..leaves {
            map.load_leaf(&s, &rows, i * FANOUT).unwrap();
            map.insert(i * FANOUT, entry(i), &mut Vec::new());
        }
        let size = leaves * FANOUT * LEAF_BYTES;
        let top = map.settle(&s, size, &mut id, &mut out).unwrap();
        apply(&mut rows, std::mem::take(&mut out));
        let mut map = Map::load(top.height, &top.body).unwrap();
        let at = 5 * FANOUT;
        let there = Location { segment: 9, position: 8192 };
        map.load_leaf(&s, &rows, at).unwrap();
        map.relocate(at, &[(entry(0).at, there)]);
        for i in 0..leaves {
            map.load_leaf(&s, &rows, i * FANOUT).unwrap();
        }
        assert_eq!(map.leaf(at).unwrap().entries()[0].at, there);
        let top = map.settle(&s, size, &mut id, &mut out).unwrap();
        apply(&mut rows, out);
        let mut map = Map::load(top.height, &top.body).unwrap();
        map.load_leaf(&s, &rows, at).unwrap();
        assert_eq!(map.leaf(at).unwrap().entries()[0].at, there);
    }
}
