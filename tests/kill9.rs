//! kill -9 of ssefs at random moments while four threads work on the mount, each with a model of its own
//! directory: after every remount promise 62 must hold for each of them and between them, and the store be clean.
//! SSEFS_KILLS sets the number of rounds (default 50), SSEFS_KILL_SEED the first seed.

mod common;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};

use common::crash_mount::{Daemon, Place};
use common::history::{History, Match};
use common::model::{Seen, State};
use common::rng::Rng;
use common::run::number;
use common::workload::{Ended, Worker};

const THREADS: usize = 4;
/// Bounds the memory of the histories, not the time.
const OPS_MAX: usize = 500;
/// The commit interval (1 s) and the longest that one commit may take on a busy machine.
const DURABLE_AFTER: Duration = Duration::from_millis(1000 + 1200);

fn own_dir(root: &Path, thread: usize) -> std::path::PathBuf {
    root.join(format!("thread{thread}"))
}

/// An fsync acknowledges what *every* thread had finished when it began: raises the marks of all histories.
struct Acknowledged {
    /// The newest tick at which an fsync that succeeded began.
    tick: AtomicU64,
}

impl Acknowledged {
    fn settle(&self, histories: &mut [History]) {
        let tick = self.tick.load(Ordering::SeqCst);
        for history in histories {
            let finished = history.spans.iter().take_while(|(_, end)| *end < tick).count();
            history.acknowledged = history.acknowledged.max(finished);
        }
    }
}

/// Works in all threads until the daemon is killed, `after` from now.
fn churn(
    daemon: Daemon,
    place: &Place,
    root: &Path,
    seed: u64,
    after: Duration,
    starts: Vec<State>,
) -> Result<Vec<History>, String> {
    let clock = AtomicU64::new(1);
    let acknowledged = Acknowledged { tick: AtomicU64::new(0) };
    let killed = AtomicBool::new(false);
    let begin = Barrier::new(THREADS + 1);
    let early: Mutex<Vec<String>> = Mutex::default();
    let (clock, acknowledged, killed, begin, early) = (&clock, &acknowledged, &killed, &begin, &early);
    let (mut histories, moment) = std::thread::scope(|scope| {
        let workers: Vec<_> = starts
            .into_iter()
            .enumerate()
            .map(|(thread, start)| {
                scope.spawn(move || {
                    let mut history = History::new(start);
                    let mut worker = Worker::new(seed * THREADS as u64 + thread as u64);
                    if thread == 0 && seed.is_multiple_of(2) {
                        let place = place.clone();
                        worker.compact = Some(Box::new(move || place.compact()));
                    }
                    begin.wait();
                    let synced = |tick| {
                        acknowledged.tick.fetch_max(tick, Ordering::SeqCst);
                    };
                    let dir = own_dir(root, thread);
                    let ended = worker.run(&dir, &mut history, OPS_MAX, clock, &|| false, &synced);
                    worker.release(&mut history);
                    if let Ended::Failed(op, error) = ended
                        && !killed.load(Ordering::SeqCst)
                    {
                        early.lock().unwrap().push(format!("{op:?} failed before the kill: {error}"));
                    }
                    history
                })
            })
            .collect();
        begin.wait();
        std::thread::sleep(after);
        killed.store(true, Ordering::SeqCst);
        let moment = Instant::now();
        daemon.kill();
        let finished: Vec<History> = workers.into_iter().map(|w| w.join().expect("a worker does not panic")).collect();
        (finished, moment)
    });
    acknowledged.settle(&mut histories);
    if let Some(durable) = moment.checked_sub(DURABLE_AFTER) {
        histories.iter_mut().for_each(|history| history.acknowledge_until(durable));
    }
    let early = early.lock().unwrap();
    if early.is_empty() { Ok(histories) } else { Err(early.join("\n")) }
}

/// Each thread's directory equals one of its states; and the threads' states are of one moment: what had ended
/// before something that is there began, is there too.
fn judge(histories: &[History], root: &Path) -> Result<Vec<State>, String> {
    let mut matches: Vec<Match> = Vec::new();
    for (thread, history) in histories.iter().enumerate() {
        let seen = Seen::read(&own_dir(root, thread)).map_err(|e| format!("thread {thread}: {e}"))?;
        matches.push(history.find(&seen).map_err(|broken| format!("thread {thread}: {broken}"))?);
    }
    for (thread, (history, found)) in histories.iter().zip(&matches).enumerate() {
        let Some(newest) = found.first.checked_sub(1) else {
            continue;
        };
        let (begin, _) = history.spans[newest];
        for (other, (earlier, seen)) in histories.iter().zip(&matches).enumerate() {
            let needed = earlier.spans.iter().take_while(|(_, end)| *end < begin).count();
            if seen.last < needed {
                return Err(format!(
                    "two moments: {:?} of thread {thread} is there, but of thread {other} only state {} where {needed} operations had ended before it began; missing {:?}",
                    history.ops[newest], seen.last, earlier.ops[seen.last]
                ));
            }
        }
    }
    Ok(histories.iter().zip(&matches).map(|(h, m)| h.states[m.last].clone()).collect())
}

#[test]
fn r62_kill_9_under_load_leaves_one_moment_and_every_acknowledged_byte() {
    let rounds = number("SSEFS_KILLS", 50);
    let seed = number("SSEFS_KILL_SEED", 1);
    let dir = tempfile::Builder::new().prefix("kill9-").tempdir().unwrap();
    let place = Place::below(&dir.path().join("disk"));
    std::fs::create_dir(dir.path().join("disk")).unwrap();
    let root = dir.path().join("mnt");
    std::fs::create_dir(&root).unwrap();
    let log = dir.path().join("log");
    let start = |what: &str| Daemon::start(&place, &root, &log).unwrap_or_else(|e| panic!("{what}: {e}"));

    let daemon = start("first mount");
    for thread in 0..THREADS {
        std::fs::create_dir(own_dir(&root, thread)).unwrap();
    }
    daemon.unmount().unwrap();
    let mut states = vec![State::default(); THREADS];
    let (mut operations, mut lost) = (0, 0);
    let started = Instant::now();
    for round in 0..rounds {
        let mut rng = Rng::new(seed.wrapping_add(round));
        // Most rounds die in the middle of the work; some so late that the commit interval has run out.
        let late = if round % 10 == 9 { 2500 } else { 10 };
        let after = Duration::from_millis(late + rng.below(300));
        let context =
            format!("SSEFS_KILL_SEED={} (round {round} of seed {seed}, killed after {after:?})", seed + round);
        let daemon = start(&context);
        let histories =
            churn(daemon, &place, &root, seed + round, after, states).unwrap_or_else(|e| panic!("{context}: {e}"));
        let daemon = start(&context);
        let kept = judge(&histories, &root).unwrap_or_else(|e| panic!("{context}: {e}\n{}", daemon.output()));
        daemon.unmount().unwrap_or_else(|e| panic!("{context}: {e}"));
        place.check().unwrap_or_else(|e| panic!("{context}: {e}"));
        operations += histories.iter().map(|h| h.ops.len()).sum::<usize>();
        lost += histories.iter().filter(|h| h.acknowledged + 1 < h.states.len()).count();
        states = kept;
    }
    println!("{rounds} kills, {operations} operations, in {:?}", started.elapsed());
    assert!(lost > 0, "every kill hit an idle mount: the load is too small to prove anything");
}

/// The test of the test: a tree from before an acknowledged fsync, a torn file and a mixture of two moments must
/// each be refused. Runs on a plain directory.
#[test]
fn the_judge_refuses_lost_torn_and_mixed_states() {
    let dir = tempfile::tempdir().unwrap();
    let mut histories = Vec::new();
    let clock = AtomicU64::new(1);
    for thread in 0..2 {
        let own = own_dir(dir.path(), thread);
        std::fs::create_dir(&own).unwrap();
        let mut history = History::new(State::default());
        let mut worker = Worker::new(7 + thread as u64);
        let ended = worker.run(&own, &mut history, 200, &clock, &|| false, &|_| ());
        assert!(matches!(ended, Ended::Done), "{ended:?}");
        worker.release(&mut history);
        histories.push(history);
    }
    judge(&histories, dir.path()).expect("the model agrees with a plain directory");

    // Torn: one byte of one file differs.
    let victim = histories[1].now().files().into_iter().find(|f| histories[1].now().size(f) > 0);
    let path = own_dir(dir.path(), 1).join(victim.expect("a file with content"));
    let good = std::fs::read(&path).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    std::fs::write(&path, &bad).unwrap();
    assert!(judge(&histories, dir.path()).is_err());
    std::fs::write(&path, &good).unwrap();
    judge(&histories, dir.path()).expect("mended");

    // Two moments: thread 1 worked after thread 0 was done, but thread 0's directory is as at its beginning.
    let first = own_dir(dir.path(), 0);
    std::fs::remove_dir_all(&first).unwrap();
    std::fs::create_dir(&first).unwrap();
    histories[0].acknowledged = 0;
    let refused = judge(&histories, dir.path()).expect_err("a mixture");
    assert!(refused.contains("two moments"), "{refused}");
    // Lost: the same, and thread 0 had synced.
    histories[0].acknowledge();
    let refused = judge(&histories, dir.path()).expect_err("a loss");
    assert!(refused.contains("acknowledged changes are lost"), "{refused}");
}
