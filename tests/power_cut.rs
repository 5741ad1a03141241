//! Promise 62 under power cuts: ssefs works on a store and a keyring that lie on the lossy disk, power goes out
//! inside the N-th changing call, and after the reboot the mount must equal the model at one moment, no earlier
//! than the last acknowledged fsync; then `ssefs check --read-data` must be clean.
//!
//! SSEFS_CUTS sets the number of cuts (default 500), SSEFS_CUT_SEED the first seed, and SSEFS_CUT_TRIAL=... repeats
//! the one trial that a failure printed.

mod common;

use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use common::crash_mount::{CUSTOMER_KEY, CUSTOMER_KEY_FILE, Daemon, Place};
use common::history::History;
use common::lossy::{Action, Call, Fault, Image, LossyDisk, Names, Survival};
use common::model::{Seen, State};
use common::rng::Rng;
use common::run::number;
use common::sys;
use common::workload::{Ended, Worker};

/// Operations of one workload: enough for a few commits, few enough for half a second.
const OPS: usize = 60;
/// Cuts that share one workload seed, spread over all its calls.
const CUTS_PER_WORKLOAD: u64 = 50;

/// One cut, with everything that decides it.
#[derive(Clone, Copy, Debug)]
struct Trial {
    workload: u64,
    /// Power goes out inside this changing call after the mount's start.
    cut: u64,
    survival: usize,
    seed: u64,
    /// Power goes out again inside this call of the recovery; 0: it does not.
    second: u64,
    /// Starts on an empty disk, so that making the store, keyring and bucket can be cut too.
    fresh: bool,
    /// The n-th sync fails, n counted from the mount's start; 0: none does.
    failed_sync: u64,
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Trial { workload, cut, survival, seed, second, fresh, failed_sync } = self;
        let fresh = u8::from(*fresh);
        write!(f, "{workload}:{cut}:{survival}:{seed}:{second}:{fresh}:{failed_sync}")
    }
}

impl Trial {
    fn parse(text: &str) -> Option<Trial> {
        let n: Vec<u64> = text.split(':').map(str::parse).collect::<Result<_, _>>().ok()?;
        let &[workload, cut, survival, seed, second, fresh, failed_sync] = &n[..] else {
            return None;
        };
        let survival = survival as usize % Survival::ALL.len();
        Some(Trial { workload, cut, survival, seed, second, fresh: fresh != 0, failed_sync })
    }

    fn names(self) -> Names {
        if self.workload % 3 == 2 { Names::Journal } else { Names::Strict }
    }

    fn survival(self) -> Survival {
        Survival::ALL[self.survival]
    }
}

/// A mountpoint and a log on the ordinary disk.
struct Bench {
    dir: tempfile::TempDir,
    mounts: AtomicUsize,
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::Builder::new().prefix("power-cut-").tempdir().unwrap();
        let key = dir.path().join(CUSTOMER_KEY_FILE);
        std::fs::write(&key, CUSTOMER_KEY).unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        Bench { dir, mounts: AtomicUsize::new(0) }
    }

    fn mount(&self, disk: &LossyDisk) -> Result<(Daemon, std::path::PathBuf), String> {
        let n = self.mounts.fetch_add(1, Ordering::Relaxed);
        let mountpoint = self.dir.path().join(format!("mnt{n}"));
        std::fs::create_dir(&mountpoint).map_err(|e| e.to_string())?;
        let log = self.dir.path().join("log");
        let daemon = Daemon::start(&Place::below(disk.path()), &mountpoint, &log)?;
        Ok((daemon, mountpoint))
    }
}

/// A disk with an empty bucket that was unmounted cleanly; with `customer` one in which everything new is SSE-C.
fn base_image(names: Names, customer: bool) -> Image {
    let bench = Bench::new();
    let disk = LossyDisk::new(names).unwrap();
    let (daemon, root) = bench.mount(&disk).expect("ssefs mounts a new bucket on the lossy disk");
    if customer {
        sys::set_xattr(&root, "user.sse.customer-key", CUSTOMER_KEY).unwrap();
        assert_eq!(sys::get_xattr_text(&root, "user.sse.effective").unwrap(), "SSE-C bucket");
    }
    daemon.unmount().expect("ssefs unmounts cleanly");
    disk.image()
}

fn start_disk(trial: Trial, base: &Image) -> LossyDisk {
    let image = if trial.fresh { Image::new(trial.names()) } else { base.clone() };
    LossyDisk::from_image(image).unwrap()
}

/// Mounts and works until power is out or the work is done; then unmounts cleanly or kills.
fn work(trial: Trial, bench: &Bench, disk: &LossyDisk, history: &mut History) -> Result<(), String> {
    let (daemon, root) = match bench.mount(disk) {
        Ok(mounted) => mounted,
        Err(_) if disk.is_cut() => return Ok(()),
        // A store whose first mount was refused because a sync failed has nothing to keep.
        Err(_) if trial.failed_sync > 0 => return Ok(()),
        Err(error) => return Err(format!("first mount: {error}")),
    };
    let mut worker = Worker::new(trial.workload);
    if trial.workload % 4 != 3 {
        let place = Place::below(disk.path());
        worker.compact = Some(Box::new(move || place.compact()));
    }
    let ended = worker.run(&root, history, OPS, &AtomicU64::new(0), &|| disk.is_cut(), &|_| ());
    worker.release(history);
    if let Ended::Failed(op, error) = &ended
        && !disk.is_cut()
        && trial.failed_sync == 0
    {
        return Err(format!("{op:?} failed though power was on: {error}\n{}", daemon.output()));
    }
    if disk.is_cut() || trial.failed_sync > 0 {
        daemon.kill();
        return Ok(());
    }
    let unmounted = daemon.unmount();
    match unmounted {
        Ok(()) if !disk.is_cut() => history.acknowledge(),
        Err(error) if !disk.is_cut() => return Err(error),
        _ => {}
    }
    Ok(())
}

fn look(history: &History, root: &Path) -> Result<usize, String> {
    let seen = Seen::read(root)?;
    history.find(&seen).map(|found| found.last).map_err(|broken| broken.to_string())
}

/// One cut from begin to end. Returns how many changing calls there were, to choose the next cuts by.
fn run(trial: Trial, base: &Image) -> Result<u64, String> {
    let bench = Bench::new();
    let mut disk = start_disk(trial, base);
    let before = disk.steps();
    disk.cut_in(trial.cut);
    if trial.failed_sync > 0 {
        let after = trial.failed_sync - 1;
        disk.inject(Fault { after, ..Fault::once(&[Call::Fsync], Action::SyncFails) });
    }
    let mut history = History::new(State::default());
    work(trial, &bench, &disk, &mut history)?;
    let steps = disk.steps() - before;
    disk.reboot(trial.survival(), trial.seed).map_err(|e| e.to_string())?;

    if trial.second > 0 {
        disk.cut_in(trial.second);
        match bench.mount(&disk) {
            Ok((daemon, _)) => {
                // Nothing is in memory yet: rows of objects are changed without their maps.
                let done = Place::below(disk.path()).compact();
                if let Err(error) = done.as_ref()
                    && !disk.is_cut()
                {
                    return Err(format!("compaction after the cut: {error}\n{}", daemon.output()));
                }
                daemon.kill();
            }
            Err(error) if !disk.is_cut() => return Err(format!("mount after the cut: {error}")),
            Err(_) => {}
        }
        disk.reboot(trial.survival(), trial.seed + 1).map_err(|e| e.to_string())?;
    }

    let (daemon, root) = bench.mount(&disk).map_err(|e| format!("mount after the cut: {e}"))?;
    let found = look(&history, &root).map_err(|e| format!("{e}\n{}", daemon.output()))?;
    // Every fourth: the recovered bucket must be as good as any other, so work on and look again.
    if trial.seed.is_multiple_of(4) {
        let mut history = History::new(history.states[found].clone());
        let mut worker = Worker::new(trial.workload + 1000);
        let ended = worker.run(&root, &mut history, 12, &AtomicU64::new(0), &|| false, &|_| ());
        worker.release(&mut history);
        if let Ended::Failed(op, error) = ended {
            return Err(format!("after recovery {op:?}: {error}\n{}", daemon.output()));
        }
        history.acknowledge();
        look(&history, &root).map_err(|e| format!("work after recovery: {e}"))?;
    }
    daemon.unmount()?;
    Place::below(disk.path()).check()?;
    Ok(steps)
}

/// The cuts of one workload: spread over all its calls, jittered; one in eight on an empty disk, one in four cut
/// again while recovering, one in ten with a sync that fails before.
fn trials(workload: u64, count: u64, steps: (u64, u64)) -> Vec<Trial> {
    let mut rng = Rng::new(workload.wrapping_mul(0x1_0001));
    (0..count)
        .map(|i| {
            let fresh = rng.chance(12);
            let total = if fresh { steps.1 } else { steps.0 };
            let jitter = rng.below(total / count.max(1) + 1);
            Trial {
                workload,
                cut: 1 + i * total / count.max(1) + jitter,
                survival: rng.below(Survival::ALL.len() as u64) as usize,
                seed: rng.below(1 << 32),
                second: if rng.chance(25) { 1 + rng.below(90) } else { 0 },
                fresh,
                failed_sync: if rng.chance(10) { 1 + rng.below(40) } else { 0 },
            }
        })
        .collect()
}

fn uncut(workload: u64, fresh: bool) -> Trial {
    Trial { workload, cut: u64::MAX / 2, survival: 0, seed: 1, second: 0, fresh, failed_sync: 0 }
}

#[test]
fn r62_after_a_power_cut_the_mount_is_as_it_was_at_one_moment() {
    let images = [Names::Strict, Names::Journal].map(|names| [false, true].map(|customer| base_image(names, customer)));
    // Every other workload with a customer key.
    let base = |trial: Trial| &images[usize::from(trial.names() == Names::Journal)][trial.workload as usize % 2];

    if let Ok(text) = std::env::var("SSEFS_CUT_TRIAL") {
        let trial = Trial::parse(&text).expect("SSEFS_CUT_TRIAL is seven numbers with colons");
        let steps = run(trial, base(trial)).unwrap_or_else(|e| panic!("{e}"));
        println!("trial {trial}: {steps} changing calls");
        return;
    }
    let cuts = number("SSEFS_CUTS", 500);
    let seed = number("SSEFS_CUT_SEED", 1);
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get().min(4));
    let workloads = cuts.div_ceil(CUTS_PER_WORKLOAD);
    let next = AtomicU64::new(0);
    let done = AtomicU64::new(0);
    let failures: Mutex<Vec<String>> = Mutex::default();
    let started = std::time::Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::SeqCst);
                    if index >= workloads || failures.lock().unwrap().len() >= 10 {
                        return;
                    }
                    let workload = seed + index;
                    let mut steps = [0, 0];
                    for (fresh, steps) in [false, true].into_iter().zip(&mut steps) {
                        let trial = uncut(workload, fresh);
                        match run(trial, base(trial)) {
                            Ok(n) => *steps = n,
                            Err(e) => failures.lock().unwrap().push(format!("trial {trial}: {e}")),
                        }
                    }
                    let count = CUTS_PER_WORKLOAD.min(cuts - index * CUTS_PER_WORKLOAD);
                    for trial in trials(workload, count, (steps[0], steps[1])) {
                        if let Err(e) = run(trial, base(trial)) {
                            eprintln!("SSEFS_CUT_TRIAL={trial}: {e}\n");
                            failures.lock().unwrap().push(format!("SSEFS_CUT_TRIAL={trial}: {e}"));
                            if failures.lock().unwrap().len() >= 10 {
                                return;
                            }
                        }
                        done.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    println!("{} cuts from seed {seed} in {:?}", done.into_inner(), started.elapsed());
    assert!(failures.is_empty(), "{} failed:\n{}", failures.len(), failures.join("\n\n"));
}

/// The test of the test: a disk that acknowledges syncs and does nothing must be found out, else the checks above
/// could not fail.
#[test]
fn a_disk_that_drops_synced_writes_is_found_out() {
    let base = base_image(Names::Strict, false);
    let bench = Bench::new();
    let mut caught = 0;
    for seed in 0..3 {
        let mut disk = LossyDisk::from_image(base.clone()).unwrap();
        let (daemon, root) = bench.mount(&disk).unwrap();
        disk.inject(Fault::lying_sync(""));
        let mut history = History::new(State::default());
        let mut worker = Worker::new(seed);
        worker.run(&root, &mut history, OPS, &AtomicU64::new(0), &|| false, &|_| ());
        worker.release(&mut history);
        assert!(history.acknowledged > 0, "the workload syncs at least once");
        disk.cut_now();
        daemon.kill();
        disk.reboot(Survival::Nothing, seed).unwrap();
        let verdict = bench.mount(&disk).and_then(|(daemon, root)| {
            look(&history, &root)?;
            daemon.unmount()?;
            Place::below(disk.path()).check()
        });
        caught += i32::from(verdict.is_err());
    }
    assert_eq!(caught, 3, "acknowledged work was thrown away and the checks did not notice");
}
