//! When space is given back by writing, and how much: what a commit has left half used is noted here, and a thread merges
//! leaves and moves segments (`merge.rs`, `compact.rs`), little while the bucket is used and down to a bound when it is not.
//! It must end: a pass that gains nothing is the last until somebody changes something, and what it could not do it does
//! not try again.

mod pass;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::compact::Moved;
use super::{Bucket, BucketError};

/// A bucket that has hardly been used for so long is tidied where that is cheap ...
const IDLE_AFTER: Duration = Duration::from_millis(1500);
/// ... and one that has not been used at all for so long is, whatever it takes.
const REST_AFTER: Duration = Duration::from_secs(10);
/// Hardly: so many requests in a time of [`LOOK_EVERY`].
const HARDLY: u64 = 16;
/// While there may be something to do it is looked for this often.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Written a second at most when idle, bytes.
const IDLE_BYTES_PER_S: u64 = 128 << 20;
/// While it is used, a step is followed by a rest of so many times its own length, and none when waste is three quarters.
const BUSY_REST: u32 = 2;
/// Whoever asks for it by hand waits so long for readers of what was dropped.
const GIVEN_BACK_WITHIN: Duration = Duration::from_secs(10);
/// Leaves that could be merged, remembered at most. Others are met again when their segment is moved.
const NOTES_MAX: usize = 1 << 16;
/// The log may have this much on its way to disk, or the next step waits.
const BACKLOG_BYTES: u64 = 6 << 20;

#[derive(Default)]
struct Control {
    stop: bool,
    /// A commit has changed something since the last pass that found nothing to do.
    pending: bool,
}

/// Leaves that could be merged, and what that would save.
#[derive(Default)]
struct Notes {
    leaves: BTreeMap<(u64, u64), u64>,
    saved: u64,
}

/// See the module.
#[derive(Default)]
pub(super) struct Tidy {
    ctl: Mutex<Control>,
    changed: Condvar,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    /// One at a time.
    pub(in crate::bucket) working: Mutex<Tried>,
    notes: Mutex<Notes>,
    pub moved: Mutex<Moved>,
    /// Every chunk in a segment below this one is in the map that the last commit in the catalog has, or dead.
    pub floor: AtomicU32,
    /// The next commit is made although nothing has changed, and the segment that is open ends with it.
    pub commit_wanted: AtomicBool,
    pub end_segment: AtomicBool,
    /// The next commit gives back pages of the catalog, and empties its -wal file.
    pub shrink_catalog: AtomicBool,
    /// Asked before each step: false while the mount is read-only, which the kernel does not tell us.
    may_write: OnceLock<Box<dyn Fn() -> bool + Send + Sync>>,
}

/// What has been tried in this opening: segments, with what lived in them afterwards, and what records take in those read.
#[derive(Default)]
pub(in crate::bucket) struct Tried {
    done: HashMap<u32, u64>,
    records: HashMap<u32, (u64, u64)>,
}

/// How far a pass goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Somebody uses the bucket.
    Busy,
    /// Hardly anybody does.
    Idle,
    /// Nobody does.
    Rest,
    /// Everything that can be moved, however little it gains: asked for by hand.
    All,
}

impl Tidy {
    pub fn new(floor: u32) -> Tidy {
        Tidy { floor: AtomicU32::new(floor), ..Tidy::default() }
    }

    /// A leaf could be written anew and save so many bytes, or not (0).
    pub fn note(&self, ino: u64, leaf: u64, saved: u64) {
        let mut n = self.notes.lock();
        if let Some(old) = n.leaves.remove(&(ino, leaf)) {
            n.saved -= old;
        }
        if saved > 0 && n.leaves.len() < NOTES_MAX {
            n.leaves.insert((ino, leaf), saved);
            n.saved += saved;
        }
    }

    fn take_note(&self) -> Option<(u64, u64)> {
        let mut n = self.notes.lock();
        let (at, saved) = n.leaves.pop_first()?;
        n.saved -= saved;
        Some(at)
    }

    fn may_write(&self) -> bool {
        self.may_write.get().is_none_or(|may| may())
    }

    fn noted(&self) -> u64 {
        self.notes.lock().saved
    }

    /// A commit is durable, and everything below `floor` with it.
    pub fn committed(&self, floor: u32) {
        self.floor.store(floor, Ordering::Release);
        self.ctl.lock().pending = true;
        self.changed.notify_one();
    }

    /// Stop soon, and for good.
    pub fn stop(&self) {
        self.ctl.lock().stop = true;
        self.changed.notify_all();
        if let Some(t) = self.thread.lock().take() {
            let _ = t.join();
        }
    }

    /// Wait, unless it is to stop; false then.
    fn rest(&self, how_long: Duration) -> bool {
        let until = Instant::now() + how_long;
        let mut ctl = self.ctl.lock();
        while !ctl.stop {
            if self.changed.wait_until(&mut ctl, until).timed_out() {
                return !ctl.stop;
            }
        }
        false
    }
}

/// How fast a pass goes on, and whether it may.
struct Pace<'a> {
    bucket: &'a Bucket,
    mode: Mode,
    uses: u64,
    urgent: bool,
    last: Instant,
}

impl Pace<'_> {
    /// Asked before each step, with the bytes written since it was asked last.
    fn go_on(&mut self, bytes: u64) -> bool {
        let b = self.bucket;
        if b.health().is_err() || b.tidy.ctl.lock().stop || !b.tidy.may_write() {
            return false;
        }
        let took = self.last.elapsed();
        let rest = match self.mode {
            Mode::Idle | Mode::Rest if b.gate.uses() > self.uses + HARDLY => return false,
            Mode::Idle | Mode::Rest => {
                Duration::from_secs_f64(bytes as f64 / IDLE_BYTES_PER_S as f64).saturating_sub(took)
            }
            Mode::Busy if self.urgent => Duration::ZERO,
            Mode::Busy => took.min(LOOK_EVERY) * BUSY_REST,
            Mode::All => Duration::ZERO,
        };
        if !rest.is_zero() && !b.tidy.rest(rest) {
            return false;
        }
        // The freeze of a commit must not wait for the disk behind us.
        while b.log.unwritten_bytes() > BACKLOG_BYTES && b.sound().is_ok() {
            if !b.tidy.rest(Duration::from_millis(1)) {
                return false;
            }
        }
        self.last = Instant::now();
        true
    }
}

impl Bucket {
    pub(super) fn start_tidying(self: &Arc<Self>) -> std::io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        let me = self.clone();
        let thread = std::thread::Builder::new().name("ssefs-tidy".into()).spawn(move || me.run_tidy())?;
        *self.tidy.thread.lock() = Some(thread);
        self.tidy.ctl.lock().pending = true;
        Ok(())
    }

    /// From now on ask before each step of tidying whether it may write. Once.
    pub fn tidy_only_while(&self, may: impl Fn() -> bool + Send + Sync + 'static) {
        let _ = self.tidy.may_write.set(Box::new(may));
    }

    fn run_tidy(self: &Arc<Self>) {
        let begun = Instant::now();
        let (mut uses, mut busy, mut used) = (self.gate.uses(), begun, begun);
        loop {
            {
                let mut ctl = self.tidy.ctl.lock();
                while !ctl.pending && !ctl.stop {
                    self.tidy.changed.wait(&mut ctl);
                }
            }
            if !self.tidy.rest(LOOK_EVERY) {
                return;
            }
            let now = self.gate.uses();
            if now != uses {
                used = Instant::now();
                if now > uses + HARDLY {
                    busy = used;
                }
                uses = now;
            }
            let mode = match (busy.elapsed() >= IDLE_AFTER, used.elapsed() >= REST_AFTER) {
                (false, _) => Mode::Busy,
                (true, false) => Mode::Idle,
                (true, true) => Mode::Rest,
            };
            if mode == Mode::Rest {
                // What commits from here on, also its own, is looked at once more.
                self.tidy.ctl.lock().pending = false;
            }
            match self.tidy_pass(mode, uses) {
                Ok(true) => {}
                Ok(false) => self.tidy.ctl.lock().pending = true,
                Err(e) if self.health().is_err() => {
                    log::debug!("tidying ends: {e}");
                    return;
                }
                Err(e) => log::warn!("space is not given back: {e}"),
            }
        }
    }

    /// Tidy as an idle bucket does, without a bound on the speed, until there is nothing to gain; then wait until what was
    /// dropped has been given back.
    pub fn tidy_now(self: &Arc<Self>) -> Result<(), BucketError> {
        self.commit()?;
        while !self.tidy_pass(Mode::Rest, u64::MAX)? {
            self.health()?;
        }
        self.reclaim.wait_idle();
        self.commit()
    }

    /// One pass as it is made while the bucket is used, without a bound on the speed.
    pub fn tidy_busy(self: &Arc<Self>) -> Result<(), BucketError> {
        self.tidy_pass(Mode::Busy, u64::MAX)?;
        self.reclaim.wait_idle();
        Ok(())
    }

    /// Merge whatever can be merged, move every segment, and wait until the old ones are gone, however little that gains.
    pub fn compact_now(&self) -> Result<(), BucketError> {
        let me = self.me.upgrade().ok_or(BucketError::Failed("the bucket is closing".into()))?;
        self.commit()?;
        me.tidy_pass(Mode::All, u64::MAX)?;
        self.reclaim.wait_idle_for(GIVEN_BACK_WITHIN);
        Ok(())
    }
}

impl Notes {
    fn clear(&mut self) {
        *self = Notes::default();
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::bucket::{CreateOptions, NewInode, OpenOptions, ROOT};
    use crate::keys::{Keyring, RootSource};

    pub fn bucket(dir: &std::path::Path) -> Arc<Bucket> {
        let (config, store, name) = (dir.join("config"), dir.join("store"), "b".parse().unwrap());
        let keys = Arc::new(Keyring::open_or_create(&config, RootSource::in_config(&config)).unwrap().0);
        let id = keys.open_store(&store, true).unwrap();
        let o = CreateOptions {
            dialect: crate::rule::Dialect::Native,
            rule: Some("AES256".parse().unwrap()),
            owner_uid: 0,
            chunk_bytes: 16384,
            require_encryption: false,
        };
        Bucket::create(&store, id, &name, &keys, &o).unwrap();
        Bucket::open(&store, id, &name, &keys, &OpenOptions::default()).unwrap()
    }

    /// Small files of which every other was deleted, all in the open segment: no hole gives that back.
    fn waste(bucket: &Arc<Bucket>) -> u64 {
        let new = NewInode { mode: libc::S_IFREG | 0o644, uid: 0, gid: 0, rdev: 0, target: None };
        let name = |i: u32| format!("f{i}").into_bytes();
        let inos: Vec<u64> = (0..1000)
            .map(|i| {
                let ino = bucket.make(ROOT, &name(i), &new).unwrap().ino;
                bucket.write(ino, Some(0), &[7; 3000]).unwrap();
                ino
            })
            .collect();
        bucket.commit().unwrap();
        (1..1000).step_by(2).for_each(|i| bucket.unlink(ROOT, &name(i)).unwrap());
        bucket.commit().unwrap();
        inos[0]
    }

    #[test]
    fn what_a_conversion_seals_into_is_left_alone_and_a_pass_ends_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let bucket = bucket(dir.path());
        let ino = waste(&bucket);
        let hold = bucket.hold_segments();
        let (tx, rx) = std::sync::mpsc::channel();
        let tidying = bucket.clone();
        let pass =
            std::thread::spawn(move || tx.send(tidying.tidy_pass(Mode::Rest, u64::MAX).map_err(|e| e.to_string())));
        let ended = rx.recv_timeout(Duration::from_secs(20));
        let commits = bucket.counters.lock().commit;
        drop(hold);
        pass.join().unwrap().unwrap();
        assert_eq!(ended, Ok(Ok(true)), "{commits} commits");
        assert!(commits < 20, "{commits} commits");
        assert_eq!(bucket.read(ino, 0, 9999).unwrap(), [7; 3000]);
        bucket.close().unwrap();
    }

    #[test]
    fn nothing_is_written_while_it_may_not_be() {
        let dir = tempfile::tempdir().unwrap();
        let bucket = bucket(dir.path());
        let may = Arc::new(AtomicBool::new(false));
        let asked = may.clone();
        bucket.tidy_only_while(move || asked.load(Ordering::SeqCst));
        waste(&bucket);
        let before = bucket.counters.lock().commit;
        assert!(matches!(bucket.compact_now(), Err(BucketError::ReadOnly)));
        assert!(bucket.tidy_pass(Mode::Rest, u64::MAX).unwrap());
        assert_eq!(bucket.counters.lock().commit, before);
        may.store(true, Ordering::SeqCst);
        let live = |b: &Arc<Bucket>| b.segments.lock().len();
        bucket.compact_now().unwrap();
        assert!(bucket.counters.lock().commit > before && live(&bucket) > 0);
        bucket.close().unwrap();
    }
}
