//! Sparse files: holes read as zeroes, take no space, are found by lseek(2) and made by fallocate(2).

use crate::mount::{Mount, errno};
use crate::sys;
use crate::tree::Dice;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, Ordering};

const MIB: u64 = 1 << 20;
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

fn create(m: &Mount) -> File {
    sys::open(m.at("f"), libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC, 0o644).unwrap()
}

/// The runs of data that lseek reports.
fn data(f: &File) -> Vec<(u64, u64)> {
    let size = f.metadata().unwrap().len();
    let (mut runs, mut at) = (vec![], 0);
    while at < size {
        let Ok(start) = sys::lseek(f, at, libc::SEEK_DATA) else { break };
        let end = sys::lseek(f, start, libc::SEEK_HOLE).unwrap();
        assert!(start >= at && end > start && end <= size, "{at} {start} {end} {size}");
        runs.push((start, end));
        at = end;
    }
    runs
}

fn zeroes(f: &File, at: u64, len: usize) -> bool {
    let mut buf = vec![1; len];
    f.read_exact_at(&mut buf, at).unwrap();
    buf.iter().all(|&b| b == 0)
}

#[test]
fn a_hole_takes_no_space_and_is_found_by_seeking() {
    let mut m = Mount::new("AES256");
    let f = create(&m);
    let mut dice = Dice::new(1);
    for at in [0, 512 * MIB, 1024 * MIB - 4096] {
        f.write_all_at(&dice.bytes(4096), at).unwrap();
    }
    f.sync_all().unwrap();
    let want = [(0, 4096), (512 * MIB, 512 * MIB + 4096), (1024 * MIB - 4096, 1024 * MIB)];
    assert_eq!(data(&f), want);
    let blocks = f.metadata().unwrap().blocks() * 512;
    assert!((3 * 4096..MIB).contains(&blocks), "{blocks} bytes allocated");
    assert!(zeroes(&f, 4096, 1 << 20) && zeroes(&f, 512 * MIB - 70_000, 70_000));
    drop(f);
    m.remount();
    let f = File::open(m.at("f")).unwrap();
    assert_eq!(data(&f), want, "after a remount");
    assert_eq!(errno(sys::lseek(&f, 1024 * MIB, libc::SEEK_DATA)), libc::ENXIO);
    assert_eq!(sys::lseek(&f, 100 * MIB, libc::SEEK_HOLE).unwrap(), 100 * MIB);
    assert_eq!(sys::lseek(&f, 100 * MIB, libc::SEEK_DATA).unwrap(), 512 * MIB);
}

#[test]
fn seeking_sees_data_that_is_not_yet_committed() {
    let m = Mount::new("AES256");
    let f = create(&m);
    f.set_len(10 * MIB).unwrap();
    assert_eq!(errno(sys::lseek(&f, 0, libc::SEEK_DATA)), libc::ENXIO, "nothing but a hole");
    assert_eq!(sys::lseek(&f, 0, libc::SEEK_HOLE).unwrap(), 0);
    f.write_all_at(&[1; 8192], 5 * MIB).unwrap();
    assert_eq!(data(&f), [(5 * MIB, 5 * MIB + 8192)]);
}

#[test]
fn fallocate_extends_only_when_asked_and_reads_as_zeroes() {
    let m = Mount::new("AES256");
    let f = create(&m);
    f.write_all_at(&[1; 100], 0).unwrap();
    sys::fallocate(&f, libc::FALLOC_FL_KEEP_SIZE, 0, MIB).unwrap();
    assert_eq!(f.metadata().unwrap().len(), 100);
    sys::fallocate(&f, 0, 50, MIB).unwrap();
    assert_eq!(f.metadata().unwrap().len(), MIB + 50);
    let mut head = [0; 100];
    f.read_exact_at(&mut head, 0).unwrap();
    assert_eq!(head, [1; 100], "what is there stays");
    assert!(zeroes(&f, 100, (1 << 20) - 50));
    assert_eq!(errno(sys::fallocate(&f, 0, 0, 0)), libc::EINVAL);
    let reader = File::open(m.at("f")).unwrap();
    assert_eq!(errno(sys::fallocate(&reader, 0, 0, 100)), libc::EBADF);
}

#[test]
fn a_punched_hole_reads_as_zeroes_and_gives_its_space_back() {
    let mut m = Mount::new("AES256");
    let f = create(&m);
    let mut want = Dice::new(2).bytes(4 << 20);
    f.write_all_at(&want, 0).unwrap();
    f.sync_all().unwrap();
    let full = f.metadata().unwrap().blocks();
    let mut punch = |at: u64, len: u64| {
        sys::fallocate(&f, PUNCH, at, len).unwrap();
        let end = ((at + len) as usize).min(want.len());
        want[(at as usize).min(end)..end].fill(0);
        assert!(fs::read(m.at("f")).unwrap() == want, "{len} bytes at {at}");
    };
    punch(MIB, MIB);
    punch(100, 50);
    punch(4090, 20);
    punch(3 * MIB - 1, 16_386);
    punch(4 * MIB - 10, 1000);
    punch(40 * MIB, 100);
    f.sync_all().unwrap();
    assert!(f.metadata().unwrap().blocks() <= full - 1800, "a MiB was given back");
    assert_eq!(sys::lseek(&f, 0, libc::SEEK_HOLE).unwrap(), MIB);
    assert_eq!(sys::lseek(&f, MIB, libc::SEEK_DATA).unwrap(), 2 * MIB);
    assert_eq!(errno(sys::fallocate(&f, libc::FALLOC_FL_PUNCH_HOLE, 0, 1)), libc::EOPNOTSUPP);
    drop(f);
    m.remount();
    assert!(fs::read(m.at("f")).unwrap() == want);
}

#[test]
fn zero_range_zeroes_or_is_refused_as_a_whole() {
    let m = Mount::new("AES256");
    let f = create(&m);
    f.write_all_at(&[1; 50_000], 0).unwrap();
    match sys::fallocate(&f, libc::FALLOC_FL_ZERO_RANGE, 10_000, 20_000) {
        Ok(()) => assert!(zeroes(&f, 10_000, 20_000) && !zeroes(&f, 9_999, 1) && !zeroes(&f, 30_000, 1)),
        Err(e) => {
            assert_eq!(e.kind(), ErrorKind::Unsupported);
            assert!(!zeroes(&f, 10_000, 20_000));
        }
    }
}

#[test]
fn copy_file_range_copies_between_files_and_within_one() {
    let mut m = Mount::new("AES256");
    let f = create(&m);
    let mut want = Dice::new(3).bytes(2_500_000);
    f.write_all_at(&want, 0).unwrap();
    let g = sys::open(m.at("g"), libc::O_RDWR | libc::O_CREAT, 0o644).unwrap();
    let copy = |from: &File, mut a: u64, to: &File, mut b: u64, len: u64| {
        let end = a + len;
        while a < end {
            let n = sys::copy_range(from, a, to, b, (end - a) as usize).unwrap();
            if n == 0 {
                break;
            }
            (a, b) = (a + n, b + n);
        }
        a
    };
    assert_eq!(copy(&f, 12_345, &g, 77, 2_000_000), 2_012_345);
    let got = fs::read(m.at("g")).unwrap();
    assert!(got[..77] == [0; 77] && got[77..] == want[12_345..2_012_345]);
    assert_eq!(copy(&f, 2_400_000, &g, 0, 500_000), 2_500_000, "ends where the source does");
    copy(&f, 0, &f, 1_000_000, 300_000);
    want.copy_within(0..300_000, 1_000_000);
    drop((f, g));
    m.remount();
    assert!(fs::read(m.at("f")).unwrap() == want);
    assert!(fs::read(m.at("g")).unwrap()[..100_000] == want[2_400_000..]);
    let f = sys::open(m.at("f"), libc::O_RDWR, 0).unwrap();
    assert_eq!(errno(sys::copy_range(&f, 0, &f, 100, 200)), libc::EINVAL, "overlapping");
}

#[test]
fn a_file_of_8_tib_takes_the_space_of_its_data_and_no_time() {
    const TIB: u64 = 1 << 40;
    let mut m = Mount::new("AES256");
    let f = create(&m);
    f.set_len(8 * TIB).unwrap();
    assert_eq!((f.metadata().unwrap().len(), f.metadata().unwrap().blocks()), (8 * TIB, 0));
    f.write_all_at(b"end", 8 * TIB - 3).unwrap();
    f.write_all_at(&[9; 4096], 5 * TIB).unwrap();
    drop(f);
    for round in 0..2 {
        let f = sys::open(m.at("f"), libc::O_RDWR, 0).unwrap();
        assert_eq!(data(&f), [(5 * TIB, 5 * TIB + 4096), (8 * TIB - 4096, 8 * TIB)], "round {round}");
        let mut end = [0; 5];
        f.read_exact_at(&mut end, 8 * TIB - 5).unwrap();
        assert_eq!(&end, b"\0\0end");
        assert_eq!(f.read_at(&mut end, 8 * TIB).unwrap(), 0);
        assert!(
            zeroes(&f, 0, 100_000) && zeroes(&f, 4 * TIB + 12_345, 300_000) && zeroes(&f, 8 * TIB - 70_003, 70_000)
        );
        let blocks = f.metadata().unwrap().blocks() * 512;
        assert!((4099..100_000).contains(&blocks), "{blocks} bytes, round {round}");
        drop(f);
        m.remount();
    }
    // Programs find the data as well: one that read the holes would not come back.
    let du = crate::mount::sh(&m.path(), "du -k f | cut -f 1; du -k --apparent-size f | cut -f 1; cp f g");
    let du: Vec<u64> = du.lines().map(|l| l.parse().unwrap()).collect();
    assert!((4..100).contains(&du[0]) && du[1] == 8 << 30, "{du:?}");
    let g = sys::open(m.at("g"), libc::O_RDWR, 0).unwrap();
    assert_eq!(data(&g), [(5 * TIB, 5 * TIB + 4096), (8 * TIB - 4096, 8 * TIB)]);
    g.set_len(6 * TIB).unwrap();
    sys::fallocate(&g, PUNCH, 0, 6 * TIB).unwrap();
    assert_eq!(data(&g), []);
    assert_eq!(errno(g.write_at(b"x", i64::MAX as u64 - 1)), libc::EFBIG);
    assert_eq!(g.metadata().unwrap().len(), 6 * TIB);
}

#[test]
fn blocks_count_what_was_written_before_it_is_on_disk() {
    let mut m = Mount::builder().rule("AES256").option("commit_interval=3600").mount();
    let f = create(&m);
    f.set_len(64 * MIB).unwrap();
    let bytes = Dice::new(4).bytes(MIB as usize);
    let blocks = || fs::metadata(m.at("f")).unwrap().blocks() * 512;
    let about = |want: u64, what: &str| {
        let got = blocks();
        assert!((want..want + want / 8).contains(&got), "{what}: {got} bytes for {want}");
    };
    f.write_all_at(&bytes, 3 * MIB).unwrap();
    about(MIB, "written");
    f.write_all_at(&bytes[..8192], 40 * MIB).unwrap();
    about(MIB + 8192, "written apart");
    sys::futimens(&f, (1, 0), (1, 0)).unwrap();
    about(MIB + 8192, "after another change of attributes");
    // tar takes a file of 0 blocks for one hole and looks no further.
    crate::mount::sh(&m.path(), "tar --sparse -cf t.tar f; mkdir out; tar -xf t.tar -C out; cmp f out/f");
    f.sync_all().unwrap();
    about(MIB + 8192, "synced");
    f.set_len(0).unwrap();
    assert_eq!(blocks(), 0);
    f.write_all_at(&bytes, 0).unwrap();
    f.sync_all().unwrap();
    f.write_all_at(&bytes, 0).unwrap();
    about(MIB, "written over");
    drop(f);
    m.remount();
    let s = fs::metadata(m.at("f")).unwrap();
    assert!((MIB..MIB + MIB / 8).contains(&(s.blocks() * 512)));
}

/// A file may grow after a commit has taken its size and before the commit has written what vouches for the size. Each
/// file here grows through a few commits, so that for some of the many that moment is the last change.
#[test]
fn r61_files_that_grow_while_commits_run_are_whole_after_a_remount() {
    let mut m = Mount::new("AES256");
    let dir = File::open(m.path()).unwrap();
    let (files, steps, done) = (80, 50, AtomicBool::new(false));
    let content = |i: u64| if i.is_multiple_of(2) { Dice::new(i).bytes(5000) } else { vec![] };
    std::thread::scope(|s| {
        let grow = s.spawn(|| {
            for i in 0..files {
                let f = sys::open(m.at(format!("f{i}")), libc::O_RDWR | libc::O_CREAT, 0o644).unwrap();
                f.write_all_at(&content(i), 0).unwrap();
                (1..=steps).for_each(|n| f.set_len(5000 + n).unwrap());
            }
        });
        // Something to seal makes the moment longer.
        s.spawn(|| {
            let hog = File::create(m.at("hog")).unwrap();
            let bytes = Dice::new(1).bytes(200_000);
            for at in (0..40).cycle().take_while(|_| !done.load(Ordering::Relaxed)) {
                hog.write_all_at(&bytes, at * 100_000).unwrap();
            }
        });
        while !grow.is_finished() {
            dir.sync_all().unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    drop(dir);
    m.remount();
    for i in 0..files {
        let mut want = content(i);
        want.resize(5000 + steps as usize, 0);
        assert!(fs::read(m.at(format!("f{i}"))).unwrap_or_else(|e| panic!("f{i}: {e}")) == want, "f{i}");
    }
}
