//! mmap(2): a shared mapping, write(2) and read(2) show the same file; a private one keeps to itself.

use crate::mount::{Mount, plain, sh};
use crate::sys::{self, Map};
use crate::tree::Dice;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

const LEN: usize = 300_000;

fn file(m: &Mount, name: &str) -> Vec<u8> {
    let bytes = Dice::new(1).bytes(LEN);
    fs::write(m.at(name), &bytes).unwrap();
    bytes
}

fn read(f: &File, at: u64, len: usize) -> Vec<u8> {
    let mut v = vec![0; len];
    f.read_exact_at(&mut v, at).unwrap();
    v
}

#[test]
fn a_shared_mapping_and_write_see_each_other() {
    see_each_other(Mount::new("AES256"));
}

#[test]
fn also_when_handles_that_read_and_write_keep_no_pages() {
    see_each_other(Mount::builder().rule("AES256").option("direct_rdwr").mount());
}

fn see_each_other(mut m: Mount) {
    let mut want = file(&m, "f");
    let handle = |flags| sys::open(m.at("f"), flags, 0).unwrap();
    let (rw, wo, ro, append) =
        (handle(libc::O_RDWR), handle(libc::O_WRONLY), handle(libc::O_RDONLY), handle(libc::O_RDWR | libc::O_APPEND));
    let mut map = Map::new(&rw, LEN, libc::MAP_SHARED).unwrap();
    let mut other = Map::new(&append, LEN, libc::MAP_SHARED).unwrap();
    assert!(map.get(0, LEN) == want);
    for (i, at) in [0, 4090, 16_383, 65_530, 131_072, LEN - 9].into_iter().enumerate() {
        let by_map = [i as u8 + 1; 9];
        map.put(at, &by_map);
        want[at..at + 9].copy_from_slice(&by_map);
        for f in [&rw, &ro] {
            assert_eq!(read(f, at as u64, 9), by_map, "written through the map at {at}");
        }
        assert_eq!(other.get(at, 9), by_map);
        let by_write = [i as u8 + 101; 5];
        for w in [&wo, &rw] {
            w.write_all_at(&by_write, at as u64 + 2).unwrap();
            assert_eq!(map.get(at + 2, 5), by_write, "written through a handle at {at}");
        }
        other.put(at + 3, b"!");
        want[at + 2..at + 7].copy_from_slice(&by_write);
        want[at + 3] = b'!';
        assert_eq!(read(&ro, at as u64, 9), want[at..at + 9]);
    }
    map.sync().unwrap();
    drop((map, other, rw, wo, ro, append));
    assert!(fs::read(m.at("f")).unwrap() == want);
    m.remount();
    assert!(fs::read(m.at("f")).unwrap() == want);
}

#[test]
fn a_mapping_keeps_what_was_written_when_it_is_closed_without_msync() {
    let mut m = Mount::new("AES256");
    let mut want = file(&m, "f");
    let f = sys::open(m.at("f"), libc::O_RDWR, 0).unwrap();
    let mut map = Map::new(&f, LEN, libc::MAP_SHARED).unwrap();
    drop(f);
    for at in (0..LEN - 10).step_by(7001) {
        map.put(at, b"mapped");
        want[at..at + 6].copy_from_slice(b"mapped");
    }
    drop(map);
    assert!(fs::read(m.at("f")).unwrap() == want);
    m.remount();
    assert!(fs::read(m.at("f")).unwrap() == want);
}

#[test]
fn a_mapping_synced_is_there_after_kill_9() {
    let mut m = Mount::new("AES256");
    let mut want = file(&m, "f");
    let f = sys::open(m.at("f"), libc::O_RDWR, 0).unwrap();
    let mut map = Map::new(&f, LEN, libc::MAP_SHARED).unwrap();
    map.put(100_000, b"synced");
    want[100_000..100_006].copy_from_slice(b"synced");
    map.sync().unwrap();
    m.kill9();
    drop((map, f));
    m.mount();
    assert!(fs::read(m.at("f")).unwrap() == want);
}

#[test]
fn a_private_mapping_changes_nothing() {
    let m = Mount::new("AES256");
    let want = file(&m, "f");
    let f = sys::open(m.at("f"), libc::O_RDWR, 0).unwrap();
    let mut map = Map::new(&f, LEN, libc::MAP_PRIVATE).unwrap();
    map.put(5000, b"private");
    assert_eq!(map.get(5000, 7), b"private");
    drop(map);
    assert!(fs::read(m.at("f")).unwrap() == want);
}

#[test]
fn a_mapping_does_not_write_behind_the_end_of_the_file() {
    let mut m = Mount::new("AES256");
    fs::write(m.at("f"), b"short").unwrap();
    let f = sys::open(m.at("f"), libc::O_RDWR, 0).unwrap();
    let mut map = Map::new(&f, 4096, libc::MAP_SHARED).unwrap();
    assert_eq!(map.get(0, 8), b"short\0\0\0");
    map.put(3, b"XYZ behind the end");
    map.sync().unwrap();
    drop(map);
    assert_eq!(f.metadata().unwrap().len(), 5);
    drop(f);
    m.remount();
    sys::truncate(m.at("f"), 20).unwrap();
    let got = fs::read(m.at("f")).unwrap();
    assert_eq!(&got[..5], b"shoXY");
    assert!(got[5..].iter().all(|&b| b == 0), "{got:?}");
}

#[test]
fn a_mapping_of_what_is_cut_off_ends_in_sigbus_and_the_rest_stays() {
    let m = Mount::new("AES256");
    let mut want = file(&m, "f");
    let f = sys::open(m.at("f"), libc::O_RDWR, 0).unwrap();
    let mut map = Map::new(&f, LEN, libc::MAP_SHARED).unwrap();
    map.put(LEN - 10, b"cut off");
    map.put(5000, b"stays");
    want[5000..5005].copy_from_slice(b"stays");
    for cut in [40_960, 10_000] {
        sys::truncate(m.at("f"), cut as i64).unwrap();
        want.truncate(cut);
        assert!(map.get(0, cut) == want, "up to {cut}");
        // The rest of the last page reads as zeroes, what is behind it is not there.
        let behind = cut.next_multiple_of(4096);
        assert_eq!(map.get(cut, behind - cut), vec![0; behind - cut]);
        for at in [behind, LEN - 1] {
            assert_eq!(
                sys::signal_of_child(|| {
                    map.byte(at);
                }),
                Some(libc::SIGBUS),
                "byte {at} of {cut}"
            );
        }
        assert_eq!(
            sys::signal_of_child(|| {
                map.byte(cut - 1);
            }),
            None
        );
    }
    // Grown again, the mapping shows the file again: a hole, and what is written to it.
    f.set_len(LEN as u64).unwrap();
    want.resize(LEN, 0);
    assert!(map.get(0, LEN) == want);
    map.put(LEN - 4, b"end");
    want[LEN - 4..LEN - 1].copy_from_slice(b"end");
    map.sync().unwrap();
    drop(map);
    assert!(fs::read(m.at("f")).unwrap() == want);
}

#[test]
fn times_set_after_a_synced_write_through_a_mapping_stay_and_others_are_overtaken() {
    let m = Mount::new("AES256");
    for synced in [true, false] {
        file(&m, "f");
        let f = sys::open(m.at("f"), libc::O_RDWR, 0).unwrap();
        let mut map = Map::new(&f, LEN, libc::MAP_SHARED).unwrap();
        map.put(5, b"written");
        if synced {
            map.sync().unwrap();
        }
        sys::futimens(&f, (1, 2), (3, 4)).unwrap();
        drop((map, f));
        let s = fs::metadata(m.at("f")).unwrap();
        // The page changes the time when the kernel hands it over (ssefs(5), KNOWN GAPS).
        assert_eq!((s.mtime(), s.mtime_nsec()) == (3, 4), synced || plain(), "synced {synced}");
    }
}

#[test]
fn a_program_on_the_mount_runs_and_cannot_be_written_meanwhile() {
    let m = Mount::new("AES256");
    // Copied by another process: a child that another test has just forked would hold our descriptor for a moment.
    sh(&m.path(), "cp /bin/sleep sleep");
    let mut child = std::process::Command::new(m.at("sleep")).arg("1000").spawn().unwrap();
    let busy = sys::open(m.at("sleep"), libc::O_WRONLY, 0);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(crate::mount::errno(busy), libc::ETXTBSY);
}
