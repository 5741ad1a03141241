//! What a new value of a blob changes in the old one, so that an intent need not carry a map's node for every entry of it
//! that changed. Made for bodies of leaves and index nodes: a count in the first two bytes, then one place that differs.

use super::redo::take;

/// Blobs up to this many bytes are carried whole.
pub const WHOLE_BYTES_MAX: usize = 256;
/// Bytes in front that may differ by themselves: the count of a leaf's runs.
const HEAD_BYTES: usize = 2;

/// Bytes `at` to `at + len` of the old value become `bytes`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    at: usize,
    len: usize,
    bytes: Vec<u8>,
}

/// See the module. Pieces are in order and do not overlap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patch {
    old_bytes: usize,
    pieces: Vec<Piece>,
}

fn common(a: impl Iterator<Item = u8>, b: impl Iterator<Item = u8>) -> usize {
    a.zip(b).take_while(|(x, y)| x == y).count()
}

impl Patch {
    /// None when the new value is as short as its patch could be.
    pub fn between(old: &[u8], new: &[u8]) -> Option<Patch> {
        if new.len() <= WHOLE_BYTES_MAX || old.len() < HEAD_BYTES {
            return None;
        }
        let ((old_head, old_rest), (new_head, new_rest)) = (old.split_at(HEAD_BYTES), new.split_at(HEAD_BYTES));
        let mut pieces = Vec::new();
        if old_head != new_head {
            pieces.push(Piece { at: 0, len: HEAD_BYTES, bytes: new_head.to_vec() });
        }
        let front = common(old_rest.iter().copied(), new_rest.iter().copied());
        let (old_tail, new_tail) = (&old_rest[front..], &new_rest[front..]);
        let back = common(old_tail.iter().rev().copied(), new_tail.iter().rev().copied());
        let bytes = new_tail[..new_tail.len() - back].to_vec();
        if bytes.len() + WHOLE_BYTES_MAX / 2 > new.len() {
            return None;
        }
        pieces.push(Piece { at: HEAD_BYTES + front, len: old_tail.len() - back, bytes });
        Some(Patch { old_bytes: old.len(), pieces })
    }

    /// The new value. None if `old` cannot be what the patch was made from.
    pub fn apply(&self, old: &[u8]) -> Option<Vec<u8>> {
        if old.len() != self.old_bytes {
            return None;
        }
        let (mut out, mut at) = (Vec::with_capacity(old.len()), 0);
        for p in &self.pieces {
            out.extend_from_slice(old.get(at..p.at)?);
            out.extend_from_slice(&p.bytes);
            at = p.at.checked_add(p.len)?;
        }
        out.extend_from_slice(old.get(at..)?);
        Some(out)
    }

    pub fn pack(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.old_bytes as u32).to_le_bytes());
        out.extend_from_slice(&(self.pieces.len() as u16).to_le_bytes());
        for p in &self.pieces {
            for n in [p.at, p.len, p.bytes.len()] {
                out.extend_from_slice(&(n as u32).to_le_bytes());
            }
            out.extend_from_slice(&p.bytes);
        }
    }

    pub fn parse(rest: &mut &[u8]) -> Option<Patch> {
        let number = |rest: &mut &[u8]| Some(u32::from_le_bytes(take(rest, 4)?.try_into().ok()?) as usize);
        let old_bytes = number(rest)?;
        let count = u16::from_le_bytes(take(rest, 2)?.try_into().ok()?);
        let mut pieces = Vec::new();
        for _ in 0..count {
            let (at, len, n) = (number(rest)?, number(rest)?, number(rest)?);
            pieces.push(Piece { at, len, bytes: take(rest, n)?.to_vec() });
        }
        Some(Patch { old_bytes, pieces })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_entry_of_a_full_leaf_is_a_small_patch() {
        let old: Vec<u8> = (0..2 + 256 * 44).map(|i| (i * 7 % 251) as u8).collect();
        let mut new = old.clone();
        new[2 + 44 * 100..2 + 44 * 101].fill(9);
        let patch = Patch::between(&old, &new).unwrap();
        let mut packed = Vec::new();
        patch.pack(&mut packed);
        assert!(packed.len() < 80, "{}", packed.len());
        // A run more: the count in front changes too.
        new.splice(46..46, [5; 44]);
        new[0] ^= 1;
        let patch = Patch::between(&old, &new).unwrap();
        assert_eq!((patch.pieces.len(), patch.apply(&old).unwrap()), (2, new));
    }

    #[test]
    fn a_patch_of_another_value_or_from_nowhere_is_refused_or_harmless() {
        let old = vec![1u8; 1000];
        let mut new = old.clone();
        new[500] = 2;
        let patch = Patch::between(&old, &new).unwrap();
        assert_eq!(patch.apply(&old[1..]), None);
        let mut packed = Vec::new();
        patch.pack(&mut packed);
        for n in 0..packed.len() {
            assert_eq!(Patch::parse(&mut &packed[..n]), None, "cut at {n}");
        }
        let wild = Patch { old_bytes: 1000, pieces: vec![Piece { at: 999, len: usize::MAX, bytes: vec![] }] };
        assert_eq!(wild.apply(&old), None);
        let back = Piece { at: 5, len: 1, bytes: vec![] };
        assert_eq!(Patch { old_bytes: 1000, pieces: vec![back.clone(), back] }.apply(&old), None);
    }

    proptest! {
        #[test]
        fn what_a_patch_makes_of_the_old_value_is_the_new_one(
            front in proptest::collection::vec(any::<u8>(), 0..600),
            a in proptest::collection::vec(any::<u8>(), 0..90),
            b in proptest::collection::vec(any::<u8>(), 0..90),
            back in proptest::collection::vec(any::<u8>(), 0..600),
        ) {
            let (old, new) = ([&front[..], &a, &back].concat(), [&front[..], &b, &back].concat());
            if let Some(patch) = Patch::between(&old, &new) {
                let mut packed = Vec::new();
                patch.pack(&mut packed);
                let mut rest = &packed[..];
                prop_assert_eq!(Patch::parse(&mut rest).unwrap().apply(&old), Some(new));
                prop_assert!(rest.is_empty());
            }
        }
    }
}
