//! The lossy disk itself: it must lose what was not synced, never what was, and tear writes; otherwise the crash
//! tests that stand on it would prove nothing.

mod common;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicU64;

use common::history::History;
use common::lossy::{Action, Call, Fault, LossyDisk, Names, Survival};
use common::model::{Seen, State};
use common::workload::{Ended, Worker};

fn sync_dir(path: &Path) {
    File::open(path).unwrap().sync_all().unwrap();
}

fn durable_file(path: &Path, bytes: &[u8]) {
    let mut file = File::create(path).unwrap();
    file.write_all(bytes).unwrap();
    file.sync_all().unwrap();
    sync_dir(path.parent().unwrap());
}

#[test]
fn what_was_synced_survives_every_policy_and_seed() {
    for survival in Survival::ALL {
        for seed in 0..20 {
            let mut disk = LossyDisk::new(Names::Strict).unwrap();
            durable_file(&disk.path().join("a"), &[7; 10_000]);
            fs::rename(disk.path().join("a"), disk.path().join("b")).unwrap();
            sync_dir(disk.path());
            disk.reboot(survival, seed).unwrap();
            assert!(!disk.path().join("a").exists());
            assert_eq!(fs::read(disk.path().join("b")).unwrap(), [7; 10_000]);
        }
    }
}

#[test]
fn what_was_not_synced_vanishes() {
    let mut disk = LossyDisk::new(Names::Strict).unwrap();
    durable_file(&disk.path().join("kept"), b"old");
    durable_file(&disk.path().join("gone?"), b"unlinked without a sync");
    fs::write(disk.path().join("kept"), b"new and longer").unwrap();
    fs::write(disk.path().join("new"), b"never synced").unwrap();
    fs::remove_file(disk.path().join("gone?")).unwrap();
    fs::create_dir(disk.path().join("dir")).unwrap();
    disk.reboot(Survival::Nothing, 1).unwrap();
    assert_eq!(fs::read(disk.path().join("kept")).unwrap(), b"old");
    assert!(disk.path().join("gone?").exists());
    assert!(!disk.path().join("new").exists());
    assert!(!disk.path().join("dir").exists());
}

#[test]
fn an_fsync_of_a_new_file_keeps_its_name_only_on_a_journal() {
    for (names, kept) in [(Names::Strict, false), (Names::Journal, true)] {
        let mut disk = LossyDisk::new(names).unwrap();
        let mut file = File::create(disk.path().join("f")).unwrap();
        file.write_all(b"x").unwrap();
        file.sync_all().unwrap();
        disk.reboot(Survival::Nothing, 1).unwrap();
        assert_eq!(disk.path().join("f").exists(), kept);
    }
}

#[test]
fn everything_survives_when_the_policy_says_so() {
    let mut disk = LossyDisk::new(Names::Strict).unwrap();
    fs::create_dir(disk.path().join("d")).unwrap();
    fs::write(disk.path().join("d/f"), b"bytes").unwrap();
    disk.reboot(Survival::Everything, 1).unwrap();
    assert_eq!(fs::read(disk.path().join("d/f")).unwrap(), b"bytes");
}

#[test]
fn unsynced_writes_are_torn_at_sectors_and_out_of_order() {
    let mut sizes = BTreeSet::new();
    let (mut torn, mut inside_block, mut reordered) = (0, 0, 0);
    for seed in 0..150 {
        let mut disk = LossyDisk::new(Names::Strict).unwrap();
        let path = disk.path().join("f");
        durable_file(&path, &[1; 16_384]);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[2; 16_384], 0).unwrap();
        file.write_all_at(&[3; 4096], 16_384).unwrap();
        drop(file);
        disk.reboot(Survival::Random, seed).unwrap();
        let bytes = fs::read(disk.path().join("f")).unwrap();
        sizes.insert(bytes.len());
        for sector in bytes.chunks(512) {
            assert!(sector.iter().all(|b| *b == sector[0]), "a sector is whole");
        }
        let first = &bytes[..16_384];
        torn += i32::from(first.contains(&1) && first.contains(&2));
        inside_block += i32::from(first.chunks(4096).any(|b| b.contains(&1) && b.contains(&2)));
        reordered += i32::from(first.contains(&1) && bytes[16_384..].contains(&3));
    }
    assert!(torn > 20 && inside_block > 10 && reordered > 5, "{torn} {inside_block} {reordered}");
    assert!(sizes.len() > 3, "the size must survive in part too: {sizes:?}");
}

#[test]
fn an_unsynced_rename_survives_whole_or_not_at_all() {
    let mut seen = BTreeSet::new();
    for seed in 0..60 {
        let mut disk = LossyDisk::new(Names::Strict).unwrap();
        durable_file(&disk.path().join("to"), b"old");
        durable_file(&disk.path().join("tmp"), b"new");
        fs::rename(disk.path().join("tmp"), disk.path().join("to")).unwrap();
        disk.reboot(Survival::Random, seed).unwrap();
        let tmp = disk.path().join("tmp").exists();
        let to = fs::read(disk.path().join("to")).unwrap();
        assert_eq!(tmp, to == b"old", "never both, never neither");
        seen.insert(tmp);
    }
    assert_eq!(seen.len(), 2);
}

#[test]
fn the_power_goes_out_in_the_nth_call_and_stays_out() {
    for n in 1..=6 {
        let mut disk = LossyDisk::new(Names::Strict).unwrap();
        disk.cut_in(n);
        let work = || -> io::Result<()> {
            let mut file = File::create(disk.path().join("tmp"))?; // 1
            file.write_all(b"content")?; // 2
            file.sync_all()?; // 3
            fs::rename(disk.path().join("tmp"), disk.path().join("done"))?; // 4
            File::open(disk.path())?.sync_all() // 5
        };
        assert_eq!(work().is_ok(), n > 5, "step {n}");
        assert_eq!(disk.is_cut(), n <= 5);
        if n <= 5 {
            let errno = fs::write(disk.path().join("x"), b"").unwrap_err().raw_os_error();
            assert_eq!(errno, Some(libc::EIO));
        }
        disk.reboot(Survival::Random, n).unwrap();
        if let Ok(bytes) = fs::read(disk.path().join("done")) {
            assert_eq!(bytes, b"content", "renamed after its sync, so whole");
        }
        assert!(n <= 5 || disk.path().join("done").exists());
    }
}

#[test]
fn a_sync_that_fails_once_loses_data_that_a_second_sync_does_not_bring_back() {
    let mut disk = LossyDisk::new(Names::Strict).unwrap();
    for n in 0..20 {
        let path = disk.path().join(format!("f{n}"));
        durable_file(&path, &[1; 65_536]);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[2; 65_536], 0).unwrap();
        disk.inject(Fault::once(&[Call::Fsync], Action::SyncFails));
        assert_eq!(file.sync_all().unwrap_err().raw_os_error(), Some(libc::EIO));
        file.sync_all().unwrap();
    }
    disk.reboot(Survival::Everything, 1).unwrap();
    let torn = |n: &i32| fs::read(disk.path().join(format!("f{n}"))).unwrap().contains(&1);
    assert!((0..20).filter(torn).count() > 5, "lost in spite of the second sync");
}

#[test]
fn faults_strike_the_chosen_call_on_the_chosen_file() {
    let disk = LossyDisk::new(Names::Strict).unwrap();
    let hit = OpenOptions::new().create(true).append(true).open(disk.path().join("a-wal")).unwrap();
    let safe = File::create(disk.path().join("b")).unwrap();
    let no_space = Action::Errno(libc::ENOSPC);
    disk.inject(Fault { name_ends: "-wal".into(), after: 1, ..Fault::once(&[Call::Write], no_space) });
    (&safe).write_all(b"x").unwrap();
    (&hit).write_all(b"first").unwrap();
    let error = (&hit).write_all(b"second").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    (&hit).write_all(b"third").unwrap();
    disk.inject(Fault::once(&[Call::Write], Action::ShortWrite));
    assert_eq!((&safe).write(b"0123456789").unwrap(), 5);
    assert_eq!(fs::read(disk.path().join("b")).unwrap(), b"x01234");
    assert_eq!(fs::read(disk.path().join("a-wal")).unwrap(), b"firstthird");
}

#[test]
fn a_sync_that_lies_keeps_nothing() {
    let mut disk = LossyDisk::new(Names::Strict).unwrap();
    durable_file(&disk.path().join("f"), b"old");
    disk.inject(Fault::lying_sync("f"));
    let mut file = OpenOptions::new().write(true).open(disk.path().join("f")).unwrap();
    file.write_all(b"new").unwrap();
    file.sync_all().unwrap();
    drop(file);
    disk.reboot(Survival::Nothing, 1).unwrap();
    assert_eq!(fs::read(disk.path().join("f")).unwrap(), b"old");
}

#[test]
fn holes_direct_writes_links_and_shared_maps_work() {
    let disk = LossyDisk::new(Names::Strict).unwrap();
    let path = disk.path().join("f");
    let file =
        OpenOptions::new().read(true).write(true).create_new(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
    let mut buffer = vec![0u8; 3 * 4096];
    let skip = buffer.as_ptr().align_offset(4096);
    buffer[skip..skip + 8192].fill(9);
    file.write_all_at(&buffer[skip..skip + 8192], 4096).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 12_288);
    let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: plain system calls on an open file.
    unsafe {
        assert_eq!(libc::fallocate(fd, punch, 4096, 4096), 0);
        assert_eq!(libc::lseek(fd, 0, libc::SEEK_DATA), 8192);
        assert_eq!(libc::lseek(fd, 8192, libc::SEEK_HOLE), 12_288);
    }
    assert_eq!(file.metadata().unwrap().blocks(), 8);
    fs::hard_link(&path, disk.path().join("g")).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().nlink(), 2);
    let mut bytes = Vec::new();
    File::open(disk.path().join("g")).unwrap().read_to_end(&mut bytes).unwrap();
    assert!(bytes[..8192].iter().all(|b| *b == 0) && bytes[8192..].iter().all(|b| *b == 9));

    assert_eq!(child("map", &path), "done\n");
    assert_eq!(fs::read(&path).unwrap()[0], 42);
}

/// Works on the bare lossy disk until the cut, reboots, and asks the model whether the tree is of one moment.
fn cut_and_judge(seed: u64, cut: u64, survival: Survival) -> Result<usize, String> {
    let mut disk = LossyDisk::new(Names::Strict).unwrap();
    disk.cut_in(cut);
    let mut history = History::new(State::default());
    let mut worker = Worker::new(seed);
    worker.page_cache = true;
    let clock = AtomicU64::new(0);
    let stop = || disk.is_cut();
    let ended = worker.run(disk.path(), &mut history, 300, &clock, &stop, &|_| ());
    worker.release(&mut history);
    if let Ended::Failed(op, error) = &ended {
        assert!(disk.is_cut(), "seed {seed}: {op:?}: {error}");
    }
    disk.reboot(survival, seed).unwrap();
    let seen = Seen::read(disk.path())?;
    history.find(&seen).map(|found| found.last).map_err(|broken| broken.to_string())
}

#[test]
fn the_model_agrees_with_a_disk_that_loses_nothing() {
    for seed in 0..40 {
        cut_and_judge(seed, 10 + 7 * seed, Survival::Everything).unwrap();
    }
}

/// A file system without prefix consistency, which the bare lossy disk is, must be refused by the model: by far most
/// cuts leave something that was never there.
#[test]
fn the_model_refuses_a_disk_that_keeps_any_subset() {
    let judge = |seed: &u64| cut_and_judge(*seed, 100 + 3 * seed, Survival::Random).is_err();
    let refused = (0..40).filter(judge).count();
    assert!(refused > 30, "{refused} of 40 refused");
}

/// Runs `child_process` below as a process of its own and returns what it said. A program that maps files of the
/// lossy disk must not be the process that serves it: munmap holds the process's memory lock until the pages are
/// written, and serving that write needs the lock.
fn child(role: &str, path: &Path) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_process", "--ignored", "--nocapture", "--test-threads=1"])
        .env("LOSSY_CHILD", role)
        .env("LOSSY_PATH", path)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{role}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text.lines().filter_map(|l| l.split_once("says: ")).map(|(_, said)| format!("{said}\n")).collect()
}

/// The other process of the tests here; does nothing when it is not asked to.
#[test]
#[ignore = "the child process of other tests"]
fn child_process() {
    let (Ok(role), Some(path)) = (std::env::var("LOSSY_CHILD"), std::env::var_os("LOSSY_PATH")) else {
        return;
    };
    let open = || rusqlite::Connection::open(&path).unwrap();
    match role.as_str() {
        "map" => {
            let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
            let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
            // SAFETY: the mapping is inside the file, checked, used and unmapped here.
            unsafe {
                let prot = libc::PROT_READ | libc::PROT_WRITE;
                let map = libc::mmap(std::ptr::null_mut(), 4096, prot, libc::MAP_SHARED, fd, 0);
                assert_ne!(map, libc::MAP_FAILED);
                *map.cast::<u8>() = 42;
                assert_eq!(libc::munmap(map, 4096), 0);
            }
            println!("says: done");
        }
        "create" => {
            open().execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(n INTEGER, b BLOB);").unwrap();
        }
        "insert" => {
            let conn = open();
            conn.execute_batch("PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=10;").unwrap();
            let insert = "INSERT INTO t VALUES(?1, randomblob(3000))";
            let acknowledged = (1..=60).take_while(|n| conn.execute(insert, [n]).is_ok()).count();
            println!("says: {acknowledged}");
        }
        "verify" => {
            let conn = open();
            let ok: String = conn.query_row("PRAGMA integrity_check", [], |r| r.get(0)).unwrap();
            assert_eq!(ok, "ok");
            let both = "SELECT ifnull(max(n),0), count(*) FROM t";
            let (max, count): (i64, i64) = conn.query_row(both, [], |r| Ok((r.get(0)?, r.get(1)?))).unwrap();
            assert_eq!(max, count, "no gap");
            println!("says: {count}");
        }
        other => panic!("no such role: {other}"),
    }
}

fn child_number(role: &str, path: &Path) -> u64 {
    child(role, path).trim().parse().unwrap()
}

/// A transaction whose COMMIT was acknowledged with synchronous=FULL is there after any cut, and the database is
/// whole: SQLite in WAL mode as a program that is known to do it right.
#[test]
fn sqlite_in_wal_mode_keeps_its_promise_on_the_lossy_disk() {
    let mut in_flight_lost = 0;
    let mut cut = 0;
    for seed in 0..100u64 {
        let names = if seed % 2 == 0 { Names::Strict } else { Names::Journal };
        let mut disk = LossyDisk::new(names).unwrap();
        let db = disk.path().join("db");
        child("create", &db);
        sync_dir(disk.path());
        disk.cut_in(4 + 5 * seed);
        let acknowledged = child_number("insert", &db);
        cut += i32::from(disk.is_cut());
        let survival = Survival::ALL[(seed % 5) as usize];
        disk.reboot(survival, seed).unwrap();
        let there = child_number("verify", &disk.path().join("db"));
        assert!(there >= acknowledged, "seed {seed} {survival:?}: {acknowledged} acknowledged, {there} there");
        in_flight_lost += i32::from(there == acknowledged);
    }
    assert!(cut > 60 && in_flight_lost > 50, "{cut} cuts, {in_flight_lost} lost what was in flight");
}

/// The same work with syncs that do nothing must be caught, or the test above could not fail.
#[test]
fn sqlite_loses_transactions_when_syncs_lie() {
    let mut disk = LossyDisk::new(Names::Journal).unwrap();
    let db = disk.path().join("db");
    child("create", &db);
    sync_dir(disk.path());
    disk.inject(Fault::lying_sync(""));
    assert_eq!(child_number("insert", &db), 60);
    disk.reboot(Survival::Nothing, 1).unwrap();
    assert_eq!(child_number("verify", &disk.path().join("db")), 0);
}
