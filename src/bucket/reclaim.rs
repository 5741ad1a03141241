//! Giving space back: chunks that a durable commit dropped and no reader holds are wiped (plain ones), punched out of
//! their segment in whole blocks, and a segment with nothing live is removed. On a thread of its own.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use parking_lot::{Condvar, Mutex};

use super::inode::Freed;
use super::{Bucket, BucketError};
use crate::types::BLOCK;

/// A hole is punched when this many bytes lie together; smaller ones wait for their neighbours.
const PUNCH_BYTES_MIN: u64 = 64 << 10;
/// Rows of `wipe` deleted between two chances for others to take the catalog.
const WIPES_AT_ONCE: usize = 64;
/// So when the bucket is idle: a frame of the usual size has three whole blocks.
const SMALL_BYTES_MIN: u64 = 8 << 10;
/// Small holes punched between two looks at whether the bucket is still idle; each takes 80 to 365 us.
const SMALL_AT_ONCE: usize = 256;
/// Whoever has them punched waits so long at most.
const SMALL_WAIT: Duration = Duration::from_millis(500);
/// How often waiting for readers' pins is looked at again.
const RETRY: Duration = Duration::from_millis(20);

struct Dropped {
    epoch: u64,
    freed: Vec<Freed>,
    /// Closed segments without a live byte as of this commit.
    empty: Vec<u32>,
    /// Punch small holes too.
    small: bool,
}

/// The queue's sending end, and who must not lose segments.
pub struct Reclaim {
    tx: Mutex<Option<Sender<Dropped>>>,
    /// Lowest segment id that each running conversion may have sealed into.
    pub holds: Mutex<Vec<u32>>,
    /// What is queued and not yet given back.
    /// Bytes that small holes would give back; ranges that grow count more than once, until none is found.
    small_bytes: AtomicU64,
    waiting: Mutex<usize>,
    done: Condvar,
}

/// Keeps segments from a conversion's first chunk on.
pub struct Hold<'a> {
    reclaim: &'a Reclaim,
    from: u32,
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let mut holds = self.reclaim.holds.lock();
        if let Some(i) = holds.iter().position(|h| *h == self.from) {
            holds.swap_remove(i);
        }
    }
}

/// Dead ranges of one segment: start to end, merged.
#[derive(Default)]
struct Dead(BTreeMap<u64, u64>);

impl Dead {
    /// Add a range; returns the whole run it is now part of.
    fn add(&mut self, mut start: u64, mut end: u64) -> (u64, u64) {
        if let Some((&s, &e)) = self.0.range(..=start).next_back()
            && e >= start
        {
            start = s;
            end = end.max(e);
        }
        while let Some((&s, &e)) = self.0.range(start..=end).next() {
            self.0.remove(&s);
            end = end.max(e);
        }
        self.0.insert(start, end);
        (start, end)
    }

    /// The whole blocks of a range are holes now and need not become so again; its edges may still grow.
    fn punched(&mut self, start: u64, end: u64) {
        let (a, b) = blocks(start, end);
        self.0.remove(&start);
        if start < a {
            self.0.insert(start, a);
        }
        if b < end {
            self.0.insert(b, end);
        }
    }
}

/// The whole blocks of a range; empty where there are none.
fn blocks(start: u64, end: u64) -> (u64, u64) {
    let a = start.next_multiple_of(BLOCK as u64);
    (a, (end / BLOCK as u64 * BLOCK as u64).max(a))
}

impl Reclaim {
    fn new(tx: Sender<Dropped>) -> Reclaim {
        Reclaim {
            tx: Mutex::new(Some(tx)),
            holds: Mutex::new(Vec::new()),
            small_bytes: AtomicU64::new(0),
            waiting: Mutex::new(0),
            done: Condvar::new(),
        }
    }

    /// What a commit, durable now, has dropped, and which segments it left empty.
    pub fn dropped(&self, epoch: u64, freed: Vec<Freed>, empty: Vec<u32>) {
        if let Some(tx) = &*self.tx.lock() {
            *self.waiting.lock() += 1;
            let _ = tx.send(Dropped { epoch, freed, empty, small: false });
        }
    }

    /// Have some small holes punched, and wait for that, if they give back `worth` bytes together. False if they do not.
    pub fn punch_small(&self, worth: u64) -> bool {
        if self.small_bytes.load(Ordering::Relaxed) < worth {
            return false;
        }
        let sent = match &*self.tx.lock() {
            Some(tx) => {
                *self.waiting.lock() += 1;
                tx.send(Dropped { epoch: 0, freed: Vec::new(), empty: Vec::new(), small: true }).is_ok()
            }
            None => false,
        };
        self.wait_idle_for(SMALL_WAIT);
        sent
    }

    /// Wait until everything queued has been given back.
    pub fn wait_idle(&self) {
        let mut waiting = self.waiting.lock();
        while *waiting > 0 {
            self.done.wait(&mut waiting);
        }
    }

    /// The same, for so long at most: a reader's pin may last.
    pub fn wait_idle_for(&self, how_long: Duration) {
        let until = Instant::now() + how_long;
        let mut waiting = self.waiting.lock();
        while *waiting > 0 && !self.done.wait_until(&mut waiting, until).timed_out() {}
    }

    pub fn stop(&self) {
        *self.tx.lock() = None;
    }
}

/// The two ends, before the bucket exists.
pub struct Queue(Receiver<Dropped>);

pub fn queue() -> (Reclaim, Queue) {
    let (tx, rx) = unbounded();
    (Reclaim::new(tx), Queue(rx))
}

impl Bucket {
    pub(super) fn hold_segments(&self) -> Hold<'_> {
        let from = self.log.open_segment();
        self.reclaim.holds.lock().push(from);
        Hold { reclaim: &self.reclaim, from }
    }

    /// The reclaim thread. Errors here lose nothing: the space is found by the next mount.
    pub(super) fn run_reclaim(self: &Arc<Self>, queue: &Queue) {
        let mut waiting: VecDeque<Dropped> = VecDeque::new();
        let mut dead: BTreeMap<u32, Dead> = BTreeMap::new();
        let mut open = true;
        while open {
            match queue.0.recv_timeout(if waiting.is_empty() { Duration::from_secs(3600) } else { RETRY }) {
                Ok(d) => waiting.push_back(d),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => open = false,
            }
            while waiting.front().is_some_and(|d| !open || d.epoch < self.pins.oldest()) {
                let Some(d) = waiting.pop_front() else { break };
                if let Err(e) = self.give_back(d, &mut dead) {
                    log::warn!("reclaim: {e}");
                }
                *self.reclaim.waiting.lock() -= 1;
                self.reclaim.done.notify_all();
            }
        }
    }

    fn give_back(&self, d: Dropped, dead: &mut BTreeMap<u32, Dead>) -> Result<(), BucketError> {
        let mut runs: BTreeMap<u32, Vec<(u64, u64)>> = BTreeMap::new();
        self.wipe_plain(&d.freed)?;
        for f in d.freed {
            let (segment, start) = (f.chunk.at.segment, f.chunk.at.position as u64);
            let run = dead.entry(segment).or_default().add(start, start + f.chunk.frame_bytes as u64);
            runs.entry(segment).or_default().push(run);
        }
        let held = self.reclaim.holds.lock().iter().min().copied().unwrap_or(u32::MAX);
        let empty: Vec<u32> =
            d.empty.into_iter().filter(|id| *id < held && self.segments.lock().contains_key(id)).collect();
        if !empty.is_empty() && self.sound().is_ok() {
            // The row goes with the next commit, the file now: a row without live bytes may miss its file.
            let _permit = self.gate.names_quietly();
            for id in &empty {
                self.segments.lock().remove(id);
                self.catalog().lock().delete_segment(*id)?;
                if self.erasing.is_on() {
                    self.log.files().wipe(*id, 0, self.log.files().len(*id)?)?;
                }
                self.log.files().remove(*id)?;
                dead.remove(id);
                runs.remove(id);
            }
        }
        if d.small {
            return self.punch_some(dead);
        }
        for (segment, mut runs) in runs {
            runs.sort_unstable();
            runs.dedup();
            let Some(ranges) = dead.get_mut(&segment) else { continue };
            for (start, _) in runs {
                let Some(&end) = ranges.0.get(&start) else { continue };
                let (a, b) = blocks(start, end);
                if b - a >= PUNCH_BYTES_MIN {
                    self.log.files().punch(segment, a, b - a)?;
                    ranges.punched(start, end);
                } else if b - a >= SMALL_BYTES_MIN {
                    self.reclaim.small_bytes.fetch_add(b - a, Ordering::Relaxed);
                }
            }
        }
        Ok(())
    }

    /// Punch a bounded number of small holes.
    fn punch_some(&self, dead: &mut BTreeMap<u32, Dead>) -> Result<(), BucketError> {
        let mut found = Vec::new();
        for (segment, d) in dead.iter() {
            let wide = d.0.iter().filter(|(s, e)| blocks(**s, **e).1 - blocks(**s, **e).0 >= SMALL_BYTES_MIN);
            found.extend(wide.map(|(s, e)| (*segment, *s, *e)).take(SMALL_AT_ONCE - found.len()));
        }
        let mut bytes = 0;
        for (segment, start, end) in &found {
            let (a, b) = blocks(*start, *end);
            // Struck off first: one that fails is not tried again and again.
            if let Some(d) = dead.get_mut(segment) {
                d.punched(*start, *end);
            }
            bytes += b - a;
            self.log.files().punch(*segment, a, b - a)?;
        }
        let left = self.reclaim.small_bytes.load(Ordering::Relaxed).saturating_sub(bytes);
        self.reclaim.small_bytes.store(if found.is_empty() { 0 } else { left }, Ordering::Relaxed);
        Ok(())
    }

    /// Overwrite plain chunks, one sync a segment, and strike them off the list.
    fn wipe_plain(&self, freed: &[Freed]) -> Result<(), BucketError> {
        let mut plain: BTreeMap<u32, Vec<(u32, u64)>> = BTreeMap::new();
        for f in freed.iter().filter(|f| f.plain) {
            plain.entry(f.chunk.at.segment).or_default().push((f.chunk.at.position, f.chunk.frame_bytes as u64));
        }
        for (segment, chunks) in plain {
            let ranges: Vec<(u64, u64)> = chunks.iter().map(|(at, n)| (u64::from(*at), *n)).collect();
            self.log.files().wipe_all(segment, &ranges)?;
            for some in chunks.chunks(WIPES_AT_ONCE) {
                if self.sound().is_ok() {
                    let _permit = self.gate.names_quietly();
                    let tx = self.catalog().lock();
                    for (position, _) in some {
                        tx.delete_wipe(segment, *position)?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_ranges_merge_with_their_neighbours() {
        let mut d = Dead::default();
        assert_eq!(d.add(10, 20), (10, 20));
        assert_eq!(d.add(30, 40), (30, 40));
        assert_eq!(d.add(20, 30), (10, 40));
        assert_eq!(d.add(5, 12), (5, 40));
        assert_eq!(d.0.len(), 1);
    }
}
