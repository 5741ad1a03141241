//! One pass of tidying: what stands where, what is worth moving, and moving it, as far as the mode goes. It must ask its
//! pace before each step, and end when nothing more is gained.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::{LOOK_EVERY, Mode, Pace, Tried};
use crate::bucket::leaf::LEAF_BYTES;
use crate::bucket::{Bucket, BucketError};
use crate::log::LogError;

/// Bytes moved at most for each that is given back, while somebody uses the bucket now and then.
const COST_MAX: u64 = 8;
/// At rest this part of the live bytes may be waste ...
const IDLE_WASTE: u64 = 128;
/// ... and this much in any case.
const IDLE_WASTE_MIN: u64 = 128 << 10;
/// A pass must give back this much, or it is not made: its own commits take some blocks.
const GAIN_MIN: u64 = 64 << 10;
/// While the bucket is used, this much beside half of what is live may be waste.
const BUSY_WASTE_MIN: u64 = 32 << 20;
/// The catalog may have so many bytes of free pages, or so long a -wal file, at rest.
const CATALOG_SPARE_BYTES: u64 = 256 << 10;
/// Live bytes moved for one commit, about.
const BATCH_BYTES: u64 = 32 << 20;
/// Leaves merged for one commit: their maps stay in memory until then.
const MERGES_AT_ONCE: usize = 256;
/// What records take beside chunks: an INDEX entry, a PUT.
const CHUNK_RECORD: u64 = 52;
const PUT_RECORD: u64 = 170;
/// Header, and the flush of a commit.
const SEGMENT_FIXED: u64 = 16 << 10;

/// One segment as it stands.
#[derive(Debug, Clone, Copy)]
struct Standing {
    id: u32,
    live: u64,
    /// Bytes that moving it would give back, about.
    gain: u64,
    /// It can be moved now: closed, and every chunk of it is in a map.
    closed: bool,
}

struct Survey {
    live: u64,
    taken: u64,
    waste: u64,
    segments: Vec<Standing>,
}

impl Bucket {
    /// Make what `mode` asks for; true when nothing is left to do. `uses` is how much the bucket had been used when it was
    /// found idle (u64::MAX: whatever is done meanwhile).
    pub(super) fn tidy_pass(self: &Arc<Self>, mode: Mode, uses: u64) -> Result<bool, BucketError> {
        let mut tried = self.tidy.working.lock();
        self.health()?;
        if !self.tidy.may_write() {
            return if mode == Mode::All { Err(BucketError::ReadOnly) } else { Ok(true) };
        }
        let forced = uses == u64::MAX;
        let uses = if forced { self.gate.uses() } else { uses };
        let mut pace = Pace {
            bucket: self,
            mode: if forced { Mode::All } else { mode },
            uses,
            urgent: false,
            last: Instant::now(),
        };
        if mode == Mode::All {
            if self.room_for(SEGMENT_FIXED) {
                self.end_segment()?;
            }
            tried.done.clear();
        }
        loop {
            let survey = self.survey(&tried)?;
            let noted = self.tidy.noted();
            let excess = match mode {
                Mode::Busy => {
                    let content = survey.live.saturating_sub(noted);
                    pace.urgent = survey.taken > content + content / 4 * 3 + BUSY_WASTE_MIN;
                    survey.taken.saturating_sub(content + content / 2 + BUSY_WASTE_MIN)
                }
                Mode::Idle | Mode::Rest => survey.waste.saturating_sub((survey.live / IDLE_WASTE).max(IDLE_WASTE_MIN)),
                Mode::All => survey.segments.iter().filter(|s| s.closed).count() as u64,
            };
            // What can be had by a hole costs no writing.
            if mode != Mode::Busy && excess > 0 && self.reclaim.punch_small(GAIN_MIN) {
                if !pace.go_on(0) {
                    return Ok(false);
                }
                continue;
            }
            // Merging first: what it drops need not be moved.
            let merge = noted > 0 && (mode != Mode::Busy || excess > 0 && noted * 2 > excess);
            if merge {
                if !self.merge_some(&mut pace)? {
                    return Ok(false);
                }
                continue;
            }
            let batch = if excess > 0 { Self::choose(&survey, mode, excess) } else { None };
            let Some(batch) = batch else { return self.shrink_catalog(mode, &mut pace) };
            if let Some(open) = batch.iter().find(|s| !s.closed) {
                // The one that is open is worth most: it ends, and is moved next time round.
                if !self.room_for(SEGMENT_FIXED) {
                    return Ok(true);
                }
                self.end_segment()?;
                // Not closed by that: a conversion has begun to seal into it, and commits when it ends.
                if open.id >= self.tidy.floor.load(Ordering::Acquire) {
                    return Ok(true);
                }
                continue;
            }
            if !self.move_batch(&batch, mode, &mut tried, &mut pace)? {
                return Ok(false);
            }
            if mode == Mode::All {
                return self.shrink_catalog(mode, &mut pace);
            }
        }
    }

    /// Whether there is so much room that tidying cannot be what fills the disk.
    fn room_for(&self, bytes: u64) -> bool {
        let all = bytes + (bytes >> 5) + (2 << 20);
        self.space.admit(all, self.log.unwritten_bytes()).is_ok() && self.space.is_ample()
    }

    /// Commit, although nothing may have changed.
    fn commit_for_sure(&self) -> Result<(), BucketError> {
        self.tidy.commit_wanted.store(true, Ordering::Release);
        self.commit()
    }

    /// The last thing of an idle pass: pages of the catalog that hold nothing any more, and its -wal file. False when it was
    /// told to stop.
    fn shrink_catalog(&self, mode: Mode, pace: &mut Pace) -> Result<bool, BucketError> {
        let mut before = u64::MAX;
        if mode == Mode::Busy {
            return Ok(true);
        }
        loop {
            let (wal, free) = self.catalog().spare_bytes()?;
            // A reader can keep the -wal file as it is, and the commit itself takes some of it: what does not shrink rests.
            if wal + free >= before || wal.max(free) <= CATALOG_SPARE_BYTES || !self.room_for(CATALOG_SPARE_BYTES) {
                return Ok(true);
            }
            before = wal + free;
            if !pace.go_on(0) {
                return Ok(false);
            }
            self.tidy.shrink_catalog.store(true, Ordering::Release);
            self.commit_for_sure()?;
        }
    }

    /// Have the open segment end, and know it closed.
    fn end_segment(&self) -> Result<(), BucketError> {
        self.tidy.end_segment.store(true, Ordering::Release);
        self.commit_for_sure()?;
        // The first commit ends it; that it was closed when an epoch froze is known after the second.
        self.commit_for_sure()
    }

    /// Merge leaves that were noted; false when it was told to stop.
    fn merge_some(self: &Arc<Self>, pace: &mut Pace) -> Result<bool, BucketError> {
        let mut written = 0;
        for _ in 0..MERGES_AT_ONCE {
            if !self.room_for(LEAF_BYTES) {
                self.tidy.notes.lock().clear();
                break;
            }
            if !pace.go_on(written) {
                return Ok(false);
            }
            let Some((ino, leaf)) = self.tidy.take_note() else { break };
            match self.merge_leaf(ino, leaf) {
                Ok(n) => written = n,
                Err(
                    e @ (BucketError::Damaged { .. }
                    | BucketError::Key(_)
                    | BucketError::Customer(_)
                    | BucketError::NotFound(_)),
                ) => {
                    log::debug!("object {ino} is not merged: {e}");
                    written = 0;
                }
                Err(e) => return Err(e),
            }
        }
        self.commit_for_sure()?;
        self.reclaim.wait_idle_for(LOOK_EVERY);
        Ok(true)
    }

    /// Segments as they stand, worst first.
    fn survey(&self, tried: &Tried) -> Result<Survey, BucketError> {
        let floor = self.tidy.floor.load(Ordering::Acquire);
        let lengths = self.log.lengths();
        let held = self.reclaim.holds.lock().iter().min().copied().unwrap_or(u32::MAX);
        let rows: Vec<_> = self.segments.lock().values().copied().collect();
        let mut s = Survey { live: 0, taken: 0, waste: 0, segments: Vec::new() };
        for r in rows {
            let bytes = lengths.get(&r.id).copied().unwrap_or(r.bytes).max(r.bytes);
            s.live += r.live;
            let given_up = tried.done.get(&r.id) == Some(&r.live);
            if given_up && r.live == 0 {
                // On its way out.
                continue;
            }
            let taken = match self.log.files().allocated(r.id) {
                Ok(n) => n.min(bytes),
                Err(LogError::Missing(_)) => continue,
                Err(_) => bytes,
            };
            s.taken += taken;
            let records = match tried.records.get(&r.id) {
                Some((live, n)) if *live == r.live => *n,
                _ => r.live / 256,
            };
            let gain = taken.saturating_sub(r.live + records);
            if given_up {
                continue;
            }
            if r.id >= floor && r.id >= held {
                // Ending it would not close it.
                continue;
            }
            s.waste += gain;
            s.segments.push(Standing { id: r.id, live: r.live, gain, closed: r.id < floor });
        }
        // By what is given back for each byte moved.
        let cost = |s: &Standing| s.live as f64 / s.gain.max(1) as f64;
        s.segments.sort_by(|a, b| cost(a).total_cmp(&cost(b)));
        Ok(s)
    }

    /// What to move for the next commit: the worst first, until `excess` is gone or enough is moved at once.
    fn choose(survey: &Survey, mode: Mode, excess: u64) -> Option<Vec<Standing>> {
        if mode == Mode::All {
            return Some(survey.segments.iter().filter(|s| s.closed).copied().collect());
        }
        let (mut live, mut gain) = (0, 0);
        let mut batch: Vec<Standing> = Vec::new();
        for s in survey.segments.iter().take_while(|s| s.gain > 0) {
            if !s.closed {
                // The open one ends only for itself, and while the bucket is used only when much of it is waste.
                let worth = if mode == Mode::Busy { BUSY_WASTE_MIN / 2 } else { GAIN_MIN };
                if batch.is_empty() && s.gain >= worth && (mode == Mode::Rest || s.live <= s.gain * COST_MAX) {
                    return Some(vec![*s]);
                }
                continue;
            }
            if live > 0 && live + s.live > BATCH_BYTES
                || gain >= excess
                || mode == Mode::Idle && s.live > s.gain * COST_MAX
            {
                break;
            }
            live += s.live;
            gain += s.gain;
            batch.push(*s);
        }
        (gain >= GAIN_MIN).then_some(batch)
    }

    /// Move what lives in some segments, and commit; false when it was told to stop.
    fn move_batch(
        self: &Arc<Self>,
        batch: &[Standing],
        mode: Mode,
        tried: &mut Tried,
        pace: &mut Pace,
    ) -> Result<bool, BucketError> {
        let (mut whole, mut changed) = (true, false);
        for s in batch {
            if !self.room_for(s.live) {
                tried.done.insert(s.id, s.live);
                continue;
            }
            changed |= s.live == 0;
            if s.live > 0 {
                match self.move_segment(s, mode, tried, pace, &mut changed) {
                    Ok(more) => whole = more,
                    // Its last chunk was dropped meanwhile, and reclaim has removed it.
                    Err(BucketError::Log(_)) if !self.segments.lock().contains_key(&s.id) => {}
                    // Reading failed, and nothing is lost by that: what was copied is in maps, the rest stays where it is.
                    Err(BucketError::Log(e)) if self.health().is_ok() => {
                        log::warn!("its space is not given back before the next mount: {e}");
                    }
                    Err(e) => return Err(e),
                }
            }
            if !whole {
                break;
            }
            tried.done.insert(s.id, u64::MAX);
        }
        if changed {
            self.commit_for_sure()?;
        }
        // What is left in them could not be moved, and is not tried again while it is the same.
        let segments = self.segments.lock();
        for s in batch {
            if let Some(live) = tried.done.get_mut(&s.id).filter(|n| **n == u64::MAX) {
                *live = segments.get(&s.id).map_or(0, |r| r.live);
            }
        }
        drop(segments);
        self.reclaim.wait_idle_for(LOOK_EVERY);
        Ok(whole)
    }

    fn move_segment(
        self: &Arc<Self>,
        s: &Standing,
        mode: Mode,
        tried: &mut Tried,
        pace: &mut Pace,
        changed: &mut bool,
    ) -> Result<bool, BucketError> {
        let c = self.contents_of(s.id)?;
        let chunks = c.chunks * s.live / c.frame_bytes.max(1);
        let records = chunks * CHUNK_RECORD + c.objects.min(chunks + 1) * PUT_RECORD + SEGMENT_FIXED;
        tried.records.insert(s.id, (s.live, records));
        // Full of small files: what it has beside them it would have again.
        let overrated = records.saturating_sub(s.live / 256) > s.gain / 2;
        if mode != Mode::All && overrated {
            return Ok(true);
        }
        log::debug!("moving {} live bytes of segment {:08x} for {}", s.live, s.id, s.gain);
        self.move_contents(&c, &mut |bytes| {
            *changed |= bytes > 0;
            pace.go_on(bytes)
        })
    }
}
