//! Row 63: a full disk gives ENOSPC, nothing that was stored is lost, and deleting gives the space back.

use crate::mount::{Mount, cstr, detach, errno, eventually, skip_without_root, skip_without_ssefs};
use crate::sys::{self, Map};
use crate::tree::Dice;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

/// A small file system of its own for a store; taken away when dropped, which must be after the mount on it.
struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    fn new(options: &str) -> SmallDisk {
        let dir = tempfile::tempdir().unwrap();
        let (name, at, options) = (cstr("tmpfs"), cstr(dir.path()), cstr(options));
        // SAFETY: all strings end with NUL and outlive the call.
        let r = unsafe { libc::mount(name.as_ptr(), at.as_ptr(), name.as_ptr(), 0, options.as_ptr().cast()) };
        assert_eq!(r, 0, "mount a tmpfs: {}", io::Error::last_os_error());
        SmallDisk { dir }
    }

    fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        detach(self.dir.path());
    }
}

/// Writes a file and makes it durable, so that a success is one.
fn store(m: &Mount, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut f = File::create(m.at(name))?;
    f.write_all(bytes)?;
    f.sync_all()
}

#[test]
fn r63_a_full_disk_says_so_loses_nothing_and_deleting_makes_room() {
    if skip_without_root() || skip_without_ssefs() {
        return;
    }
    let disk = SmallDisk::new("size=200m");
    let mut m = Mount::builder().rule("AES256").store(&disk.store()).mount();
    let content = |i: usize| Dice::new(i as u64).bytes(3 << 20);
    let mut whole = vec![];
    for round in 0..3 {
        let first = whole.len();
        let failed = loop {
            let i = round * 1000 + whole.len();
            match store(&m, &format!("f{i}"), &content(i)) {
                Ok(()) => whole.push(i),
                Err(e) => break e,
            }
            assert!(whole.len() < 100, "200 MiB cannot hold this");
        };
        assert_eq!(failed.raw_os_error(), Some(libc::ENOSPC), "round {round}: {failed}");
        assert!(
            whole.len() - first >= if round == 0 { 20 } else { 5 },
            "round {round}: full after {} files",
            whole.len() - first
        );
        // Everything stored is there, new names are refused or made, and nothing ends the mount.
        for i in &whole {
            assert!(fs::read(m.at(format!("f{i}"))).unwrap() == content(*i), "round {round}: f{i}");
        }
        let small = store(&m, "small", b"small");
        assert!(small.is_ok() || small.unwrap_err().raw_os_error() == Some(libc::ENOSPC));
        for i in whole.drain(..10) {
            fs::remove_file(m.at(format!("f{i}"))).unwrap_or_else(|e| panic!("round {round}: delete f{i}: {e}"));
        }
        File::open(m.path()).unwrap().sync_all().unwrap();
        let probe = Dice::new(9).bytes(5 << 20);
        assert!(
            eventually(|| store(&m, "probe", &probe).is_ok()),
            "round {round}: the space of deleted files does not come back"
        );
        fs::remove_file(m.at("probe")).unwrap();
        if round == 1 {
            m.remount();
        }
    }
    for i in &whole {
        assert!(fs::read(m.at(format!("f{i}"))).unwrap() == content(*i), "at the end: f{i}");
    }
}

/// Not only ssefs fills a disk. Whoever has taken the last block, deleting and syncing go on, and nothing is lost.
#[test]
fn r63_a_disk_that_others_have_filled_is_no_end() {
    if skip_without_root() || skip_without_ssefs() {
        return;
    }
    let disk = SmallDisk::new("size=300m");
    let mut m = Mount::builder().rule("AES256").store(&disk.store()).mount();
    let content = |i: u64| Dice::new(i).bytes(1 << 20);
    for i in 0..8 {
        store(&m, &format!("f{i}"), &content(i)).unwrap();
    }
    // Everybody else takes all there is.
    let mut hog = File::create(disk.dir.path().join("hog")).unwrap();
    while hog.write_all(&[1; 64 << 10]).is_ok() {}
    while hog.write_all(&[1; 4096]).is_ok() {}
    let root = File::open(m.path()).unwrap();
    for i in 0..4 {
        fs::remove_file(m.at(format!("f{i}"))).unwrap();
        root.sync_all().unwrap();
    }
    assert_eq!(errno(store(&m, "more", &Dice::new(50).bytes(40 << 20))), libc::ENOSPC);
    fs::rename(m.at("f4"), m.at("g4")).unwrap();
    root.sync_all().unwrap();
    assert!(fs::read(m.at("g4")).unwrap() == content(4));
    drop((hog, root));
    fs::remove_file(disk.dir.path().join("hog")).unwrap();
    store(&m, "after", &content(9)).unwrap();
    m.remount();
    for (name, i) in [("g4", 4), ("f5", 5), ("f6", 6), ("f7", 7), ("after", 9)] {
        assert!(fs::read(m.at(name)).unwrap() == content(i), "{name}");
    }
    assert!(!m.at("f0").exists());
    // At rest there is no reserve.
    m.umount();
    assert!(!m.folder().join("reserve").exists());
}

#[test]
fn r63_a_disk_full_of_small_files_says_so_and_deleting_works() {
    if skip_without_root() || skip_without_ssefs() {
        return;
    }
    let disk = SmallDisk::new("size=140m");
    let m = Mount::builder().rule("AES256").store(&disk.store()).mount();
    // Another fills the disk: what is left is for the bucket to use up.
    fs::create_dir(m.at("d")).unwrap();
    let hog = File::create(disk.dir.path().join("hog")).unwrap();
    let mut taken = 0;
    while (&hog).write_all(&[1; 1 << 20]).is_ok() {
        taken += 1 << 20;
    }
    hog.set_len(taken - (4 << 20)).unwrap();
    let mut made = vec![];
    let failed = loop {
        let name = format!("d/{}", made.len());
        match store(&m, &name, &[7; 3000]) {
            Ok(()) => made.push(name),
            Err(e) => break e,
        }
        assert!(made.len() < 20_000, "4 MiB cannot hold this");
    };
    assert_eq!(failed.raw_os_error(), Some(libc::ENOSPC), "after {} files: {failed}", made.len());
    made.iter().for_each(|n| assert!(fs::read(m.at(n)).unwrap() == [7; 3000], "{n}"));
    for n in &made {
        fs::remove_file(m.at(n)).unwrap_or_else(|e| panic!("delete {n}: {e}"));
    }
    let _ = fs::remove_file(m.at(format!("d/{}", made.len())));
    fs::remove_dir(m.at("d")).unwrap();
    hog.set_len(0).unwrap();
    assert!(eventually(|| store(&m, "after", b"room again").is_ok()));
    assert_eq!(fs::read(m.at("after")).unwrap(), b"room again");
}

/// The kernel takes writes through a mapping without asking, and finds out later that there is no room.
#[test]
fn r63_pages_of_a_mapping_that_find_no_room_fail_every_fsync_until_the_file_is_closed() {
    if skip_without_root() || skip_without_ssefs() {
        return;
    }
    let disk = SmallDisk::new("size=140m");
    let m = Mount::builder().rule("AES256").store(&disk.store()).mount();
    store(&m, "old", &[1; 100_000]).unwrap();
    let open = |name| sys::open(m.at(name), libc::O_RDWR | libc::O_CREAT, 0o644).unwrap();
    let (mapped, same, other) = (open("mapped"), open("mapped"), open("other"));
    mapped.set_len(4 << 20).unwrap();
    mapped.sync_all().unwrap();
    // Another fills the disk down to what ssefs keeps for deleting.
    let hog = File::create(disk.dir.path().join("hog")).unwrap();
    let free = |s: libc::statvfs| s.f_bavail * s.f_frsize;
    sys::fallocate(&hog, 0, 0, free(sys::statvfs(disk.dir.path()).unwrap()) - (1 << 20)).unwrap();
    assert_eq!(errno((&other).write_all(&[5; 2 << 20])), libc::ENOSPC);
    let mut map = Map::new(&mapped, 4 << 20, libc::MAP_SHARED).unwrap();
    map.put(0, &Dice::new(1).bytes(4 << 20));
    assert!(map.sync().is_err(), "there is no room, and msync must say so");
    for _ in 0..3 {
        assert_eq!(errno(mapped.sync_all()), libc::ENOSPC);
        assert_eq!(errno(same.sync_all()), libc::ENOSPC, "another handle of the file");
    }
    other.sync_all().unwrap_or_else(|e| panic!("a file that lost nothing: {e}"));
    assert_eq!(fs::read(m.at("old")).unwrap(), [1; 100_000]);
    drop((map, mapped, same));
    let again = open("mapped");
    again.sync_all().unwrap_or_else(|e| panic!("opened after the failure: {e}"));
    drop(again);
    // Deleting works, and with room again so does everything.
    fs::remove_file(m.at("old")).unwrap();
    hog.set_len(0).unwrap();
    assert!(eventually(|| store(&m, "mapped", &[3; 4 << 20]).is_ok()));
    assert_eq!(fs::read(m.at("mapped")).unwrap(), [3; 4 << 20]);
}
