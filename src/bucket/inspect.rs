//! Looking over a bucket as its last commit left it, for `ssefs check`: every object's seal and map are verified node
//! by node, and walked on where one does not verify, so that one harm is told once and what is below is still counted.

use std::sync::atomic::Ordering;

use super::leaf::{LEAF_BYTES, Leaf};
use super::map::{Index, MapSecrets};
use super::pins::Pin;
use super::put::Seal;
use super::{Bucket, BucketError};
use crate::catalog::{InodeRow, Reader, SealRow, Snapshot};
use crate::crypto::{derive, mac};
use crate::log::{LogError, read_header};
use crate::rule::Request;
use crate::types::{Location, OpenId};

/// One commit's state, and a pin that keeps its chunks in the log.
pub(crate) struct Inspection<'a> {
    pub(super) bucket: &'a Bucket,
    snapshot: Snapshot,
    _pin: Pin<'a>,
}

/// What the walk of an object meets.
pub(crate) enum Seen {
    /// A row of `node`. False from the visitor: it was met before and is not walked again.
    Node(u64),
    /// A chunk, once for each leaf that shows it.
    Chunk { at: Location, frame_bytes: u32 },
    /// File bytes [from, to) are shown.
    Shown { from: u64, to: u64 },
    /// The seal row does not verify.
    BadSeal(String),
    /// The seal's keys are not to be had now: nothing under it was verified.
    Locked,
    /// The map of [from, to) does not verify; `lost`: what it maps is unknown.
    BadMap { from: u64, to: u64, why: &'static str, lost: bool },
}

struct Walk<'a> {
    reader: &'a Reader,
    /// None under a seal that does not verify: structure only.
    seal: Option<&'a Seal>,
    opens: &'a [OpenId],
    seen: &'a mut dyn FnMut(Seen) -> bool,
}

impl Bucket {
    /// The last commit, pinned. `durable` is read and pinned first: what later commits drop then stays, and what earlier
    /// ones dropped the snapshot does not name.
    pub(crate) fn inspect(&self) -> Result<Inspection<'_>, BucketError> {
        let pin = self.pins.pin(self.durable.load(Ordering::Acquire));
        Ok(Inspection { bucket: self, snapshot: self.catalog().snapshot()?, _pin: pin })
    }
}

impl Inspection<'_> {
    pub(crate) fn rows(&self) -> &Reader {
        &self.snapshot
    }

    /// The request of an inode, with its tag verified; Err says what is wrong with it.
    pub(crate) fn request(&self, ino: u64) -> Result<Result<Option<Request>, &'static str>, BucketError> {
        let Some((rule, tag)) = self.snapshot.request(ino)? else { return Ok(Ok(None)) };
        if !mac::verify(&self.bucket.settings_key, &[b"request", &ino.to_le_bytes(), rule.as_bytes()], &tag) {
            return Ok(Err("its request was altered"));
        }
        Ok(rule.parse().map(Some).map_err(|_| "its request is none that this ssefs knows"))
    }

    /// The header of a segment, and its length on the disk.
    pub(crate) fn segment(&self, id: u32) -> Result<u64, LogError> {
        let files = self.bucket.log.files();
        let bytes = files.len(id)?;
        read_header(files, &derive::log_key(&self.bucket.key), id)?;
        Ok(bytes)
    }

    /// Verify an object and walk its map. Without a seal row there is nothing to see.
    pub(crate) fn object(
        &self,
        row: &InodeRow,
        seal: &SealRow,
        request: Option<&Request>,
        seen: &mut dyn FnMut(Seen) -> bool,
    ) -> Result<(), BucketError> {
        let opens = self.bucket.opens();
        let opened = match self.bucket.open_seal(seal, row.size, request, self.bucket.lent_key(seal).as_deref()) {
            Ok((seal, _)) => Some(seal),
            Err(BucketError::Damaged { why, .. }) => {
                seen(Seen::BadSeal(why.to_owned()));
                None
            }
            Err(e @ (BucketError::Altered { .. } | BucketError::Unsupported(_) | BucketError::Crypto(_))) => {
                seen(Seen::BadSeal(e.to_string()));
                None
            }
            Err(BucketError::Key(_) | BucketError::Customer(_)) => {
                seen(Seen::Locked);
                None
            }
            Err(e) => return Err(e),
        };
        let mut walk = Walk { reader: &self.snapshot, seal: opened.as_ref(), opens: &opens, seen };
        match seal.height {
            0 => match Leaf::parse(&seal.map) {
                Ok(leaf) => walk.leaf(0, &leaf),
                Err(_) => walk.lost(0, LEAF_BYTES, "its only leaf does not parse"),
            },
            h @ 1..=super::map::HEIGHT_MAX => match Index::parse(&seal.map) {
                Some(top) => walk.index(h, 0, &top, true)?,
                None => walk.lost(0, span(h), "the top of its map does not parse"),
            },
            h => walk.lost(0, span(h), "its map is higher than any can be"),
        }
        Ok(())
    }
}

/// Bytes that a node of a level covers.
fn span(level: u8) -> u64 {
    LEAF_BYTES << (6 * level.min(super::map::HEIGHT_MAX) as u32)
}

impl Walk<'_> {
    fn lost(&mut self, from: u64, to: u64, why: &'static str) {
        (self.seen)(Seen::BadMap { from, to, why, lost: true });
    }

    fn leaf(&mut self, i: u64, leaf: &Leaf) {
        let start = i * LEAF_BYTES;
        for e in leaf.entries() {
            (self.seen)(Seen::Shown { from: start + e.start as u64, to: start + e.end() as u64 });
        }
        for c in leaf.chunks() {
            (self.seen)(Seen::Chunk { at: c.at, frame_bytes: c.frame_bytes });
        }
    }

    /// `trusted`: the node itself verifies, so its children's tags are those that were written.
    fn index(&mut self, level: u8, index: u64, node: &Index, trusted: bool) -> Result<(), BucketError> {
        let below = level - 1;
        for (slot, child) in node.0.iter().enumerate() {
            if child.is_hole() {
                continue;
            }
            let i = index * super::map::FANOUT + slot as u64;
            let (from, to) = (i * span(below), (i + 1) * span(below));
            if !(self.seen)(Seen::Node(child.id)) {
                continue;
            }
            let Some(body) = self.reader.node(child.id)? else {
                self.lost(from, to, "a node of its map is missing");
                continue;
            };
            let seal = self.seal.filter(|_| trusted);
            let secrets = seal.map(|s| -> MapSecrets { s.secrets(self.opens) });
            if below == 0 {
                let Ok(leaf) = Leaf::parse(&body) else {
                    self.lost(from, to, "a leaf of its map does not parse");
                    continue;
                };
                if secrets.is_some_and(|s| leaf.tag(s.key, &s.seal, i, s.opens) != Some(child.tag)) {
                    (self.seen)(Seen::BadMap { from, to, why: "a leaf of its map was altered", lost: false });
                }
                self.leaf(i, &leaf);
            } else {
                let Some(n) = Index::parse(&body) else {
                    self.lost(from, to, "an index node of its map does not parse");
                    continue;
                };
                let fits = secrets.is_none_or(|s| n.tag(&s, below, i) == child.tag);
                if !fits {
                    (self.seen)(Seen::BadMap { from, to, why: "an index node of its map was altered", lost: false });
                }
                self.index(below, i, &n, trusted && fits)?;
            }
        }
        Ok(())
    }
}
