//! Intents: the short way for a sync. Between two commits, what has changed goes into the log as changes of rows, with the
//! chunks they name, in one write and one sync; the catalog's own transaction stays open. FORMAT.md, Commits, intents and
//! going back, is what holds; `replay.rs` makes the changes again after a crash.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::inode::Freed;
use super::rows::Gathered;
use super::{Bucket, BucketError};
use crate::log::IntentRecord;
use crate::types::{BLOCK, Location};

/// With more bytes of intents behind a commit, the next sync is a commit: opening a bucket reads them all, and its
/// transaction must find room on a disk that may be full.
const CHAIN_BYTES_MAX: u64 = 64 << 20;

/// From so many intents on more are to be expected.
const LONG: u32 = 8;

/// What intents leave for the next commit to do.
#[derive(Default)]
pub struct Carried {
    /// PUTs that were told with them.
    pub puts: u32,
    pub freed: Vec<Freed>,
}

/// The intents behind the last commit. Only the committer looks at it.
pub struct Chain {
    commit: u64,
    /// When the first was made.
    begun: Instant,
    n: u32,
    bytes: u64,
    /// The log is durable up to here.
    durable: Location,
    /// The last commit was made where an intent had been meant to do, without what a commit does beside: one is due.
    owed: bool,
    carried: Carried,
}

impl Chain {
    /// Nothing follows `commit`, which is durable, as is the log up to `durable`.
    pub fn new(commit: u64, durable: Location) -> Chain {
        Chain { commit, begun: Instant::now(), n: 0, bytes: 0, durable, owed: false, carried: Carried::default() }
    }

    /// A commit is durable, and the chain begins anew.
    pub fn begin(&mut self, commit: u64, durable: Location, owed: bool) {
        *self = Chain { owed, ..Chain::new(commit, durable) };
    }

    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// Whether one more intent may follow: not when a commit is due.
    pub fn may_grow(&self, interval: Duration) -> bool {
        !self.owed && self.bytes < CHAIN_BYTES_MAX && (self.is_empty() || self.begun.elapsed() < interval)
    }

    /// Whether one sync follows the other.
    pub fn is_long(&self) -> bool {
        self.n >= LONG
    }

    pub fn synced(&mut self, end: Location) {
        self.durable = end;
    }

    pub fn take_carried(&mut self) -> Carried {
        std::mem::take(&mut self.carried)
    }
}

impl Bucket {
    /// Whether anything has changed since the last commit or intent.
    pub(super) fn has_news(&self) -> bool {
        !self.changed.lock().is_empty() || self.catalog().has_redo() || self.settings_changed.load(Ordering::Acquire)
    }

    /// Append the rows of a frozen epoch, which are in the catalog's open transaction, to the log as an intent; it stands once
    /// the log is synced. False when only a commit can carry what has changed. The caller holds `names` closed.
    pub(super) fn intend(
        &self,
        gathered: &mut Gathered,
        touched: &mut BTreeSet<u32>,
        floor: u32,
    ) -> Result<bool, BucketError> {
        self.put_segments(touched, floor, None)?;
        let redo = self.catalog().lock().take_redo();
        if redo.unfit {
            return Ok(false);
        }
        let mut chain = self.chain.lock();
        if chain.is_empty() {
            chain.begun = Instant::now();
        }
        chain.n += 1;
        // With what the flush adds to it.
        chain.bytes += redo.packed.len() as u64 + BLOCK as u64;
        chain.carried.puts += gathered.puts.len() as u32;
        chain.carried.freed.append(&mut gathered.freed);
        self.tell_puts(chain.commit + 1, &gathered.puts)?;
        let intent = IntentRecord {
            commit: chain.commit,
            n: chain.n,
            from: chain.durable,
            changes: redo.changes,
            packed: redo.packed,
        };
        let mut packed = Vec::with_capacity(intent.packed.len() + 64);
        intent.pack(&mut packed);
        self.log.append_record(&packed)?;
        Ok(true)
    }
}
