//! Sparse files: holes read as zeroes, take no space, are found by lseek(2) and made by fallocate(2).

use crate::mount::{Mount, errno};
use crate::sys;
use crate::tree::Dice;
use std::fs::{self, File};
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
fn zero_range_zeroes_and_grows_the_file_only_when_asked() {
    const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
    let mut m = Mount::new("AES256");
    let f = create(&m);
    let mut want = Dice::new(5).bytes(50_000);
    f.write_all_at(&want, 0).unwrap();
    for (mode, at, len, size) in [
        (ZERO, 10_000, 20_000, 50_000),
        (ZERO | libc::FALLOC_FL_KEEP_SIZE, 49_000, 5000, 50_000),
        (ZERO, 48_000, 5000, 53_000),
        (ZERO | libc::FALLOC_FL_KEEP_SIZE, 100_000, 10, 53_000),
        (ZERO, 100_000, 10, 100_010),
    ] {
        sys::fallocate(&f, mode, at as u64, len as u64).unwrap();
        let end = want.len().min(at + len);
        want[at.min(end)..end].fill(0);
        want.resize(size, 0);
        assert!(fs::read(m.at("f")).unwrap() == want, "{len} bytes at {at}");
    }
    drop(f);
    m.remount();
    assert!(fs::read(m.at("f")).unwrap() == want);
}

#[test]
fn modes_of_fallocate_that_fuse_has_not_are_refused_and_change_nothing() {
    // A local disk has them (ssefs(5), KNOWN GAPS).
    if crate::mount::skip_without_ssefs() {
        return;
    }
    let m = Mount::new("AES256");
    let f = create(&m);
    let want = Dice::new(6).bytes(40_000);
    f.write_all_at(&want, 0).unwrap();
    let keep = libc::FALLOC_FL_KEEP_SIZE;
    for mode in [
        libc::FALLOC_FL_COLLAPSE_RANGE,
        libc::FALLOC_FL_INSERT_RANGE,
        libc::FALLOC_FL_UNSHARE_RANGE,
        libc::FALLOC_FL_UNSHARE_RANGE | keep,
        libc::FALLOC_FL_ZERO_RANGE | PUNCH,
    ] {
        assert_eq!(errno(sys::fallocate(&f, mode, 4096, 4096)), libc::EOPNOTSUPP, "mode {mode:#x}");
        assert!(fs::read(m.at("f")).unwrap() == want, "mode {mode:#x}");
    }
    // And a range that no file can have.
    assert_eq!(errno(sys::fallocate(&f, 0, i64::MAX as u64 - 10, 11)), libc::EFBIG);
    assert_eq!(errno(sys::fallocate(&f, PUNCH, u64::MAX, 1)), libc::EINVAL);
    assert_eq!(f.metadata().unwrap().len(), 40_000);
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
fn copy_file_range_takes_any_length_and_copies_holes_as_zeroes() {
    let mut m = Mount::new("AES256");
    let f = create(&m);
    let data = Dice::new(7).bytes(10_000);
    f.write_all_at(&data, 3 * MIB).unwrap();
    f.set_len(5 * MIB).unwrap();
    let g = sys::open(m.at("g"), libc::O_RDWR | libc::O_CREAT, 0o644).unwrap();
    g.write_all_at(&[0xee; 6 << 20], 0).unwrap();
    // As long as can be said: it ends where the source does.
    let mut at = MIB;
    loop {
        match sys::copy_range(&f, at, &g, at, isize::MAX as usize).unwrap() {
            0 => break,
            n => at += n,
        }
    }
    assert_eq!(at, 5 * MIB);
    let mut want = vec![0xee; 6 << 20];
    want[1 << 20..5 << 20].fill(0);
    want[3 << 20..(3 << 20) + 10_000].copy_from_slice(&data);
    assert!(fs::read(m.at("g")).unwrap() == want, "a hole is copied over what was there");
    assert_eq!(sys::copy_range(&f, 5 * MIB, &g, 0, 100).unwrap(), 0, "nothing behind the end");
    assert_eq!(sys::copy_range(&f, 100 * MIB, &g, 0, 100).unwrap(), 0);
    // The two ends of one file touch and do not overlap; behind the end of the target there is a hole.
    assert_eq!(sys::copy_range(&f, 3 * MIB, &f, 3 * MIB + 5000, 5000).unwrap(), 5000);
    assert_eq!(sys::copy_range(&f, 3 * MIB, &g, 7 * MIB, 10).unwrap(), 10);
    assert_eq!(errno(sys::copy_range(&f, 3 * MIB, &f, 3 * MIB, 10)), libc::EINVAL);
    let reader = File::open(m.at("g")).unwrap();
    assert_eq!(errno(sys::copy_range(&f, 0, &reader, 0, 10)), libc::EBADF);
    let append = File::options().append(true).open(m.at("g")).unwrap();
    assert_eq!(errno(sys::copy_range(&f, 0, &append, 0, 10)), libc::EBADF);
    let dir = File::open(m.path()).unwrap();
    assert_eq!(errno(sys::copy_range(&dir, 0, &g, 0, 10)), libc::EISDIR);
    want.resize(7 << 20, 0);
    want.extend_from_slice(&data[..10]);
    drop((f, g, reader, append, dir));
    m.remount();
    assert!(fs::read(m.at("g")).unwrap() == want);
    let mut back = vec![0; 5000];
    File::open(m.at("f")).unwrap().read_exact_at(&mut back, 3 * MIB + 5000).unwrap();
    assert!(back == data[..5000]);
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
