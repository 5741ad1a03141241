//! Row 63 by injected failures: the store lies on a disk that begins to refuse what ssefs writes back. Then every
//! fsync of each file open at the time fails until it is closed, close reports it too, nothing hangs, and what was
//! acknowledged before is there once the disk is sound again.

mod common;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::crash_mount::{Daemon, Place};
use common::lossy::{Action, Call, Fault, LossyDisk, Names, Survival};
use common::rng::Rng;

/// Nothing here takes a second; what takes this long hangs, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(240);

/// A store and a keyring on the lossy disk, mounted; mountpoint and log lie on an ordinary one.
struct Bench {
    dir: tempfile::TempDir,
    mounts: usize,
    // Before the disk, which goes away under it otherwise.
    daemon: Option<Daemon>,
    disk: LossyDisk,
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::Builder::new().prefix("failing-disk-").tempdir().unwrap();
        let mut bench = Bench { dir, mounts: 0, daemon: None, disk: LossyDisk::new(Names::Journal).unwrap() };
        bench.mount();
        bench
    }

    fn mount(&mut self) {
        self.mounts += 1;
        let mountpoint = self.root();
        fs::create_dir(&mountpoint).unwrap();
        let place = Place::below(self.disk.path());
        self.daemon = Some(Daemon::start(&place, &mountpoint, &self.dir.path().join("log")).unwrap());
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join(format!("mnt{}", self.mounts))
    }

    /// The fault is gone: ends ssefs, with or without a power cut, mounts again and looks at what is kept.
    fn recover(mut self, cut: bool, kept: &[(String, Vec<u8>)]) {
        // A failed mount may say so with its exit code, but must end.
        let ended = self.daemon.take().unwrap().unmount();
        assert!(!ended.as_ref().is_err_and(|e| e.contains("still runs")), "{ended:?}");
        if cut {
            self.disk.reboot(Survival::Nothing, 1).unwrap();
        } else {
            self.disk.heal();
        }
        self.mount();
        for (name, bytes) in kept {
            let found = fs::read(self.root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(found == *bytes, "{name}: acknowledged and not there");
        }
        durable(&self.root().join("after"), b"works again").unwrap();
        self.daemon.take().unwrap().unmount().unwrap();
        Place::below(self.disk.path()).check().unwrap();
    }
}

/// Writes a file whose durability is acknowledged.
fn durable(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut f = File::create(path)?;
    f.write_all(bytes)?;
    f.sync_all()
}

/// close(2), with its answer, which `File` keeps to itself.
fn close(f: File) -> io::Result<()> {
    // SAFETY: the descriptor was ours alone and is not used again.
    if unsafe { libc::close(f.into_raw_fd()) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[track_caller]
fn assert_fails(what: &str, done: io::Result<()>) {
    match done {
        Ok(()) => panic!("{what} succeeded after writing back failed"),
        Err(e) => assert_eq!(e.raw_os_error(), Some(libc::EIO), "{what}: {e}"),
    }
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    (0..len).map(|_| rng.next() as u8).collect()
}

/// Every kind of handle there is: how it was opened, and the file.
fn handles(root: &Path) -> Vec<(&'static str, File)> {
    let at = |name| root.join(name);
    let direct = |o: &mut fs::OpenOptions| o.custom_flags(libc::O_DIRECT).open(at("direct")).unwrap();
    vec![
        ("read and write", File::options().read(true).write(true).open(at("both")).unwrap()),
        ("write", File::options().write(true).open(at("write")).unwrap()),
        ("append", File::options().append(true).open(at("append")).unwrap()),
        ("O_DIRECT", direct(File::options().read(true).write(true))),
        ("read", File::open(at("read")).unwrap()),
        ("a directory", File::open(root).unwrap()),
        ("a second handle of the same file", File::options().write(true).open(at("both")).unwrap()),
    ]
}

/// Everything of one failure: `fault` strikes while files are open, and `size` more bytes are written.
fn after_a_failure(fault: Fault, size: usize, cut: bool) {
    let story = format!("{fault:?}, {size} bytes, cut {cut}");
    let bench = Bench::new();
    let root = bench.root();
    let kept: Vec<(String, Vec<u8>)> = ["both", "write", "append", "direct", "read"]
        .iter()
        .enumerate()
        .map(|(i, name)| (name.to_string(), bytes(i as u64, 50_000)))
        .collect();
    for (name, content) in &kept {
        durable(&root.join(name), content).unwrap();
    }
    let open = handles(&root);
    bench.disk.inject(fault);
    let begun = Instant::now();
    // A new file takes the bytes, so that the content of the others is known.
    let mut new = File::create(root.join("new")).unwrap();
    let written = bytes(99, size).chunks(128 << 10).try_for_each(|b| new.write_all(b));
    if let Err(e) = &written {
        assert_eq!(e.raw_os_error(), Some(libc::EIO), "{story}: {e}");
    }
    // The fault may strike only a later commit: sooner or later it does.
    let mut i = 0;
    while new.sync_all().is_ok() {
        i += 1;
        assert!(i < 200 && begun.elapsed() < PATIENCE, "{story}: the fault never struck");
        let _ = new.write_all_at(&bytes(i, 5000), 0);
        // A sync need not touch the catalog; the next interval's commit does.
        std::thread::sleep(Duration::from_millis(20));
    }
    for (how, file) in &open {
        assert_fails(&format!("{story}: fsync ({how})"), file.sync_all());
        assert_fails(&format!("{story}: fdatasync ({how})"), file.sync_data());
        assert_fails(&format!("{story}: fsync again ({how})"), file.sync_all());
    }
    assert_fails(&format!("{story}: fsync again"), new.sync_all());
    // What is there can be read.
    for (name, content) in &kept {
        assert!(fs::read(root.join(name)).unwrap() == *content, "{story}: {name}");
    }
    for (how, file) in open {
        // Nobody is asked when what was opened to be read is closed (ssefs(5), KNOWN GAPS).
        if ["read", "a directory"].contains(&how) {
            close(file).unwrap_or_else(|e| panic!("{story}: close ({how}): {e}"));
        } else {
            assert_fails(&format!("{story}: close ({how})"), close(file));
        }
    }
    assert_fails(&format!("{story}: close"), close(new));
    bench.recover(cut, &kept);
}

fn fault(call: Call, name_ends: &str, after: u64, times: u64, action: Action) -> Fault {
    Fault { calls: vec![call], name_ends: name_ends.into(), after, times, action }
}

#[test]
fn r63_when_segments_cannot_be_written_every_fsync_and_close_fails() {
    let eio = Action::Errno(libc::EIO);
    for (after, times, size, cut) in [(0, u64::MAX, 1000, false), (3, u64::MAX, 5 << 20, true), (0, 1, 300_000, false)]
    {
        after_a_failure(fault(Call::Write, ".seg", after, times, eio), size, cut);
    }
}

#[test]
fn r63_when_segments_cannot_be_synced_every_fsync_and_close_fails() {
    for (after, times, cut) in [(0, 1, true), (0, u64::MAX, false), (1, 1, false)] {
        after_a_failure(fault(Call::Fsync, ".seg", after, times, Action::SyncFails), 300_000, cut);
    }
}

#[test]
fn r63_when_the_catalog_cannot_be_written_every_fsync_and_close_fails() {
    let eio = Action::Errno(libc::EIO);
    for (call, after, action, cut) in [
        (Call::Write, 0, eio, false),
        (Call::Write, 1, eio, true),
        (Call::Fsync, 0, Action::SyncFails, true),
        (Call::Fsync, 1, Action::SyncFails, false),
    ] {
        after_a_failure(fault(call, "-wal", after, 1, action), 20_000, cut);
    }
}

#[test]
fn r63_a_new_segment_that_cannot_be_made_fails_every_fsync_and_close() {
    after_a_failure(fault(Call::Create, ".seg", 0, u64::MAX, Action::Errno(libc::EIO)), 70 << 20, false);
}

/// Nobody asks for durability: the commit that ssefs makes by itself fails, and close tells.
#[test]
fn r63_close_reports_a_failure_that_no_fsync_has_met() {
    let bench = Bench::new();
    let kept = [("old".to_string(), bytes(1, 9000))];
    durable(&bench.root().join("old"), &kept[0].1).unwrap();
    bench.disk.inject(fault(Call::Write, ".seg", 0, u64::MAX, Action::Errno(libc::EIO)));
    let file = File::create(bench.root().join("new")).unwrap();
    file.write_all_at(&bytes(2, 9000), 0).unwrap();
    // A copy of the descriptor is closed again and again: each close asks.
    let begun = Instant::now();
    while close(file.try_clone().unwrap()).is_ok() {
        assert!(begun.elapsed() < PATIENCE, "no close has reported the failure");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_fails("close of a copy, again", close(file.try_clone().unwrap()));
    assert_fails("fsync", file.sync_all());
    assert_fails("the last close", close(file));
    bench.recover(false, &kept);
}

/// The disk refuses a call while room is given back. What was acknowledged is there afterwards, whether or not the bucket
/// had to stop.
#[test]
fn r63_a_disk_that_fails_while_room_is_given_back_loses_nothing() {
    let eio = Action::Errno(libc::EIO);
    let mut faults = vec![(Call::Create, ".seg", 0, eio), (Call::Fsync, ".seg", 0, Action::SyncFails)];
    faults.extend((0..4).map(|after| (Call::Write, ".seg", after, eio)));
    faults.extend((0..3).map(|after| (Call::Write, "-wal", after, eio)));
    faults.push((Call::Fsync, "-wal", 0, Action::SyncFails));
    for (call, name_ends, after, action) in faults {
        for cut in [false, true] {
            let story = format!("{call:?} of {name_ends}, {after} before it, cut {cut}");
            let bench = Bench::new();
            let mut kept = Vec::new();
            for i in 0..6u64 {
                let (name, mut content) = (format!("f{i}"), bytes(i, 200_000));
                durable(&bench.root().join(&name), &content).unwrap();
                let f = File::options().write(true).open(bench.root().join(&name)).unwrap();
                for at in (0..12).map(|k| k * 16_384 + 4096) {
                    let new = bytes(at + i, 4096);
                    f.write_all_at(&new, at).unwrap();
                    content[at as usize..at as usize + 4096].copy_from_slice(&new);
                }
                f.sync_all().unwrap();
                kept.push((name, content));
            }
            let place = Place::below(bench.disk.path());
            bench.disk.inject(fault(call, name_ends, after, 1, action));
            let begun = Instant::now();
            let _ = place.compact();
            for (name, content) in &kept {
                assert!(fs::read(bench.root().join(name)).unwrap() == *content, "{story}: {name}");
            }
            let _ = place.compact();
            assert!(begun.elapsed() < PATIENCE, "{story}: took {:?}", begun.elapsed());
            bench.recover(cut, &kept);
        }
    }
}
