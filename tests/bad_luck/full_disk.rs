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
fn r63_pages_of_a_mapping_that_find_no_room_fail_every_fsync_of_each_open_file_until_it_is_closed() {
    if skip_without_root() || skip_without_ssefs() {
        return;
    }
    let disk = SmallDisk::new("size=140m");
    let m = Mount::builder().rule("AES256").store(&disk.store()).mount();
    store(&m, "old", &[1; 100_000]).unwrap();
    let open = |name| sys::open(m.at(name), libc::O_RDWR | libc::O_CREAT, 0o644).unwrap();
    let (mapped, same, other) = (open("mapped"), open("mapped"), open("other"));
    let (reader, directory) = (File::open(m.at("old")).unwrap(), File::open(m.path()).unwrap());
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
    let handles = [
        ("the handle", mapped),
        ("another of the file", same),
        ("another file", other),
        ("a file that is read", reader),
        ("a directory", directory),
    ];
    for (whose, handle) in handles.iter().cycle().take(3 * handles.len()) {
        assert_eq!(errno(handle.sync_all()), libc::ENOSPC, "fsync: {whose}");
        assert_eq!(errno(handle.sync_data()), libc::ENOSPC, "fdatasync: {whose}");
    }
    assert_eq!(fs::read(m.at("old")).unwrap(), [1; 100_000]);
    let later = [open("mapped"), open("other"), File::open(m.path()).unwrap()];
    later.iter().for_each(|f| f.sync_all().unwrap_or_else(|e| panic!("opened after the failure: {e}")));
    drop(map);
    for (whose, handle) in handles {
        match whose {
            // Nobody is asked (ssefs(5), KNOWN GAPS).
            "a file that is read" | "a directory" => sys::close(handle).unwrap(),
            _ => assert_eq!(errno(sys::close(handle)), libc::ENOSPC, "close: {whose}"),
        }
    }
    later.into_iter().for_each(|f| sys::close(f).unwrap());
    // Deleting works, and with room again so does everything.
    fs::remove_file(m.at("old")).unwrap();
    hog.set_len(0).unwrap();
    assert!(eventually(|| store(&m, "mapped", &[3; 4 << 20]).is_ok()));
    assert_eq!(fs::read(m.at("mapped")).unwrap(), [3; 4 << 20]);
}

/// Tries until there is no room; how often there was some.
#[track_caller]
fn until_full(what: &str, mut attempt: impl FnMut(usize) -> io::Result<()>) -> usize {
    for i in 0..20_000 {
        if let Err(e) = attempt(i) {
            assert_eq!(e.raw_os_error(), Some(libc::ENOSPC), "{what} {i}: {e}");
            return i;
        }
    }
    panic!("{what}: there was always room");
}

/// A disk that others have filled down to what ssefs keeps for deleting.
fn fill(disk: &SmallDisk) -> File {
    let hog = File::create(disk.dir.path().join("hog")).unwrap();
    let free = sys::statvfs(disk.dir.path()).unwrap();
    sys::fallocate(&hog, 0, 0, free.f_bavail * free.f_frsize - (1 << 20)).unwrap();
    hog
}

#[test]
fn r63_on_a_full_disk_everything_new_is_made_whole_or_not_at_all_and_the_rest_goes_on() {
    if skip_without_root() || skip_without_ssefs() {
        return;
    }
    let disk = SmallDisk::new("size=140m");
    let mut m = Mount::builder().rule("AES256").store(&disk.store()).mount();
    let content = Dice::new(3).bytes(50_000);
    fs::create_dir(m.at("d")).unwrap();
    for i in 0..60 {
        store(&m, &format!("d/f{i}"), &content).unwrap();
        sys::set_xattr(m.at(format!("d/f{i}")), "user.a", "old").unwrap();
    }
    let hog = fill(&disk);
    let small = until_full("file with content", |i| store(&m, &format!("small{i}"), &[7; 3000]));
    // Long names: a disk is full of fewer.
    let name = |what: &str, i: usize| format!("{what}{i}{}", "n".repeat(200));
    let at = |what: &str, i: usize| m.at(name(what, i));
    let made = [
        ("file", until_full("file", |i| File::create_new(at("file", i)).map(drop))),
        ("dir", until_full("dir", |i| fs::create_dir(at("dir", i)))),
        ("link", until_full("link", |i| std::os::unix::fs::symlink("x".repeat(4000), at("link", i)))),
        ("fifo", until_full("fifo", |i| sys::mknod(at("fifo", i), libc::S_IFIFO | 0o600, 0))),
        ("name", until_full("name", |i| fs::hard_link(m.at("d/f0"), at("name", i)))),
    ];
    let values = until_full("xattr", |i| sys::set_xattr(m.at("d/f1"), format!("user.{i}"), [1; 60_000]));
    assert_eq!(errno(sys::set_xattr(m.at("d/f2"), "user.a", [2; 60_000])), libc::ENOSPC);
    let f = File::options().write(true).open(m.at("d/f3")).unwrap();
    assert_eq!(errno(sys::fallocate(&f, 0, 0, 30 << 20)), libc::ENOSPC);
    drop(f);
    // What was refused is not there, and what takes no room goes on.
    let there = |m: &Mount| {
        for (what, n) in made {
            assert!(fs::symlink_metadata(m.at(name(what, n))).is_err(), "{what} {n} was refused");
            assert!((0..n).all(|i| fs::symlink_metadata(m.at(name(what, i))).is_ok()), "{what}");
        }
        assert_eq!(sys::get_xattr(m.at("d/f2"), "user.a").unwrap(), b"old");
        assert_eq!(sys::list_xattr(m.at("d/f1")).unwrap().len(), values + 1);
        assert!(fs::read(m.at("d/f4")).unwrap() == content);
        assert!((0..small).all(|i| fs::read(m.at(format!("small{i}"))).unwrap() == [7; 3000]));
        assert_eq!(fs::read(m.at("d/moved")).unwrap().len(), 10);
    };
    sys::chmod(m.at("d/f4"), 0o600).unwrap();
    sys::utimens(m.at("d/f4"), (1, 2), (3, 4)).unwrap();
    sys::truncate(m.at("d/f5"), 10).unwrap();
    fs::rename(m.at("d/f5"), m.at("d/moved")).unwrap();
    fs::rename(m.at("d/f6"), m.at("d/f7")).unwrap();
    sys::rename2(m.at("d/f8"), m.at("d/f9"), libc::RENAME_EXCHANGE).unwrap();
    sys::remove_xattr(m.at("d/f9"), "user.a").unwrap();
    File::open(m.path()).unwrap().sync_all().unwrap();
    there(&m);
    m.remount();
    there(&m);
    fs::remove_dir_all(m.at("d")).unwrap();
    for (what, n) in made {
        let gone = if what == "dir" { |p: PathBuf| fs::remove_dir(p) } else { |p: PathBuf| fs::remove_file(p) };
        (0..n).for_each(|i| gone(m.at(name(what, i))).unwrap_or_else(|e| panic!("delete {what}{i}: {e}")));
    }
    File::open(m.path()).unwrap().sync_all().unwrap();
    hog.set_len(0).unwrap();
    assert!(eventually(|| store(&m, "after", &content).is_ok()));
}

/// The catalog's WAL grows while names go: on a full disk it must not take all that is kept for it.
#[test]
fn r63_a_large_tree_can_be_deleted_on_a_full_disk() {
    if skip_without_root() || skip_without_ssefs() {
        return;
    }
    let disk = SmallDisk::new("size=160m");
    let m = Mount::builder().rule("AES256").store(&disk.store()).mount();
    let name = |i: usize| m.at(format!("{i:05}{}", "n".repeat(200)));
    let files = 12_000;
    // In an order that spreads each commit over all pages.
    let order = |i: usize| i * 7919 % files;
    (0..files).for_each(|i| drop(File::create(name(i)).unwrap()));
    let root = File::open(m.path()).unwrap();
    root.sync_all().unwrap();
    let hog = fill(&disk);
    while (&hog).write_all(&[1; 4096]).is_ok() {}
    for i in 0..files {
        fs::remove_file(name(order(i))).unwrap_or_else(|e| panic!("delete the {i}th: {e}"));
        if i % 200 == 0 {
            root.sync_all().unwrap_or_else(|e| panic!("sync after deleting {i}: {e}"));
        }
    }
    root.sync_all().unwrap();
    assert_eq!(fs::read_dir(m.path()).unwrap().count(), 0);
    drop(root);
    hog.set_len(0).unwrap();
    assert!(eventually(|| store(&m, "after", b"room again").is_ok()));
}
