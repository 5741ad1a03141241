//! Names and directories: rename with all its flags, links, nodes, long and odd names, large directories,
//! numbers that stay.

use crate::mount::{Mount, errno, skip_without_root};
use crate::sys;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

fn put(p: impl AsRef<Path>, text: &str) {
    fs::write(p, text).unwrap();
}

fn text(p: impl AsRef<Path>) -> String {
    fs::read_to_string(p).unwrap()
}

fn ino(p: impl AsRef<Path>) -> u64 {
    fs::symlink_metadata(p).unwrap().ino()
}

#[test]
fn rename_moves_replaces_and_refuses_as_posix_says() {
    let mut m = Mount::new("AES256");
    put(m.at("a"), "a");
    put(m.at("b"), "b");
    fs::create_dir_all(m.at("d/e")).unwrap();
    fs::create_dir(m.at("empty")).unwrap();
    let was = ino(m.at("a"));
    fs::rename(m.at("a"), m.at("d/a")).unwrap();
    assert_eq!((ino(m.at("d/a")), text(m.at("d/a"))), (was, "a".into()));
    fs::rename(m.at("d/a"), m.at("b")).unwrap();
    assert_eq!((ino(m.at("b")), text(m.at("b"))), (was, "a".into()), "over an existing file");
    fs::rename(m.at("b"), m.at("b")).unwrap();
    assert_eq!(errno(fs::rename(m.at("b"), m.at("empty"))), libc::EISDIR);
    assert_eq!(errno(fs::rename(m.at("empty"), m.at("b"))), libc::ENOTDIR);
    assert_eq!(errno(fs::rename(m.at("empty"), m.at("d"))), libc::ENOTEMPTY);
    assert_eq!(errno(fs::rename(m.at("d"), m.at("d/e/f"))), libc::EINVAL, "into itself");
    assert_eq!(errno(fs::rename(m.at("none"), m.at("x"))), libc::ENOENT);
    assert_eq!(errno(fs::rename(m.at("b"), m.at("none/x"))), libc::ENOENT);
    put(m.at("d/e/deep"), "deep");
    fs::rename(m.at("d"), m.at("empty")).unwrap();
    assert_eq!(text(m.at("empty/e/deep")), "deep", "a directory over an empty one");
    // Both names are one file: rename does nothing, and both stay.
    fs::hard_link(m.at("b"), m.at("c")).unwrap();
    fs::rename(m.at("b"), m.at("c")).unwrap();
    assert_eq!(ino(m.at("b")), ino(m.at("c")));
    m.remount();
    assert_eq!(text(m.at("empty/e/deep")), "deep");
    assert_eq!((text(m.at("b")), ino(m.at("c"))), ("a".into(), was));
    assert!(!m.at("d").exists() && !m.at("a").exists());
}

#[test]
fn rename_noreplace_and_exchange_do_what_they_say() {
    let mut m = Mount::new("AES256");
    put(m.at("a"), "a");
    put(m.at("b"), "b");
    fs::create_dir(m.at("d")).unwrap();
    put(m.at("d/x"), "x");
    assert_eq!(errno(sys::rename2(m.at("a"), m.at("b"), libc::RENAME_NOREPLACE)), libc::EEXIST);
    assert_eq!((text(m.at("a")), text(m.at("b"))), ("a".into(), "b".into()));
    sys::rename2(m.at("a"), m.at("c"), libc::RENAME_NOREPLACE).unwrap();
    sys::rename2(m.at("c"), m.at("b"), libc::RENAME_EXCHANGE).unwrap();
    assert_eq!((text(m.at("c")), text(m.at("b"))), ("b".into(), "a".into()));
    sys::rename2(m.at("c"), m.at("d"), libc::RENAME_EXCHANGE).unwrap();
    assert_eq!((text(m.at("d")), text(m.at("c/x"))), ("b".into(), "x".into()), "a file and a directory");
    sys::rename2(m.at("b"), m.at("c/x"), libc::RENAME_EXCHANGE).unwrap();
    assert_eq!((text(m.at("b")), text(m.at("c/x"))), ("x".into(), "a".into()), "in two directories");
    assert_eq!(errno(sys::rename2(m.at("b"), m.at("none"), libc::RENAME_EXCHANGE)), libc::ENOENT);
    assert_eq!(errno(sys::rename2(m.at("b"), m.at("d"), libc::RENAME_EXCHANGE | libc::RENAME_NOREPLACE)), libc::EINVAL);
    m.remount();
    assert_eq!((text(m.at("b")), text(m.at("c/x")), text(m.at("d"))), ("x".into(), "a".into(), "b".into()));
}

#[test]
fn a_directory_counts_its_subdirectories_as_links() {
    let mut m = Mount::new("AES256");
    let links = |p: &str| fs::metadata(m.at(p)).unwrap().nlink();
    fs::create_dir_all(m.at("d/one")).unwrap();
    fs::create_dir_all(m.at("e")).unwrap();
    put(m.at("d/file"), "");
    assert_eq!((links(""), links("d"), links("d/one"), links("e")), (4, 3, 2, 2));
    fs::rename(m.at("d/one"), m.at("e/two")).unwrap();
    assert_eq!((links("d"), links("e")), (2, 3), "moved");
    fs::create_dir(m.at("d/three")).unwrap();
    sys::rename2(m.at("d/three"), m.at("d/file"), libc::RENAME_EXCHANGE).unwrap();
    assert_eq!(links("d"), 3);
    sys::rename2(m.at("d/file"), m.at("e/two"), libc::RENAME_EXCHANGE).unwrap();
    assert_eq!((links("d"), links("e")), (3, 3));
    fs::remove_dir(m.at("d/file")).unwrap();
    assert_eq!((links("d"), links("e"), links("")), (2, 3, 4));
    m.remount();
    let links = |p: &str| fs::metadata(m.at(p)).unwrap().nlink();
    assert_eq!((links("d"), links("e"), links("")), (2, 3, 4));
}

#[test]
fn directories_are_removed_only_when_empty() {
    let m = Mount::new("AES256");
    fs::create_dir_all(m.at("d/e")).unwrap();
    put(m.at("f"), "");
    assert_eq!(errno(fs::create_dir(m.at("d"))), libc::EEXIST);
    assert_eq!(errno(fs::create_dir(m.at("f"))), libc::EEXIST);
    assert_eq!(errno(fs::remove_dir(m.at("d"))), libc::ENOTEMPTY);
    assert_eq!(errno(fs::remove_dir(m.at("f"))), libc::ENOTDIR);
    assert_eq!(errno(fs::remove_file(m.at("d"))), libc::EISDIR);
    assert_eq!(errno(fs::remove_dir(m.at("none"))), libc::ENOENT);
    fs::remove_dir(m.at("d/e")).unwrap();
    // A directory removed while it is open is empty and takes nothing new.
    let open = File::open(m.at("d")).unwrap();
    fs::remove_dir(m.at("d")).unwrap();
    use std::os::fd::AsRawFd;
    let below = format!("/proc/self/fd/{}/new", open.as_raw_fd());
    assert_eq!(errno(sys::open(&below, libc::O_WRONLY | libc::O_CREAT, 0o600)), libc::ENOENT);
    assert_eq!(open.metadata().unwrap().nlink(), 0);
}

#[test]
fn hard_links_are_one_file() {
    let mut m = Mount::new("AES256");
    put(m.at("a"), "first");
    fs::create_dir(m.at("d")).unwrap();
    fs::hard_link(m.at("a"), m.at("d/b")).unwrap();
    assert_eq!(fs::metadata(m.at("a")).unwrap().nlink(), 2);
    assert_eq!(ino(m.at("a")), ino(m.at("d/b")));
    put(m.at("d/b"), "second");
    assert_eq!(text(m.at("a")), "second");
    assert_eq!(errno(fs::hard_link(m.at("a"), m.at("d/b"))), libc::EEXIST);
    assert_eq!(errno(fs::hard_link(m.at("d"), m.at("e"))), libc::EPERM);
    fs::remove_file(m.at("a")).unwrap();
    m.remount();
    assert_eq!((text(m.at("d/b")), fs::metadata(m.at("d/b")).unwrap().nlink()), ("second".into(), 1));
}

#[test]
fn symlinks_keep_their_target_byte_for_byte() {
    let mut m = Mount::new("AES256");
    let long = "x/".repeat(2047);
    let targets: [&[u8]; 4] = [b"nowhere", b"/absolute/../path", b"\xff\x01 odd \n", long.as_bytes()];
    for (i, t) in targets.iter().enumerate() {
        symlink(OsStr::from_bytes(t), m.at(format!("l{i}"))).unwrap();
    }
    fs::create_dir(m.at("d")).unwrap();
    put(m.at("d/f"), "through");
    symlink("d", m.at("dir")).unwrap();
    symlink("loop", m.at("loop")).unwrap();
    m.remount();
    for (i, t) in targets.iter().enumerate() {
        let l = m.at(format!("l{i}"));
        assert_eq!(fs::read_link(&l).unwrap().as_os_str().as_bytes(), *t);
        assert_eq!(fs::symlink_metadata(&l).unwrap().len(), t.len() as u64);
    }
    assert_eq!(text(m.at("dir/f")), "through");
    assert_eq!(errno(fs::metadata(m.at("loop"))), libc::ELOOP);
    assert_eq!(errno(fs::read_link(m.at("d/f"))), libc::EINVAL);
    assert_eq!(errno(symlink("x", m.at("dir"))), libc::EEXIST);
}

#[test]
fn fifos_sockets_and_device_nodes_are_kept() {
    let mut m = Mount::new("AES256");
    sys::mknod(m.at("fifo"), libc::S_IFIFO | 0o640, 0).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(m.at("socket")).unwrap();
    let root = !skip_without_root();
    if root {
        sys::mknod(m.at("char"), libc::S_IFCHR | 0o600, libc::makedev(1, 5)).unwrap();
        sys::mknod(m.at("block"), libc::S_IFBLK | 0o600, libc::makedev(259, 70_000)).unwrap();
        sys::mknod(m.at("regular"), libc::S_IFREG | 0o600, 0).unwrap();
    }
    // A pipe and a socket on the mount carry bytes.
    let writer = std::thread::spawn({
        let p = m.at("fifo");
        move || fs::write(p, "through the pipe").unwrap()
    });
    assert_eq!(text(m.at("fifo")), "through the pipe");
    writer.join().unwrap();
    std::os::unix::net::UnixStream::connect(m.at("socket")).unwrap();
    drop(socket);
    m.remount();
    let meta = |n: &str| fs::symlink_metadata(m.at(n)).unwrap();
    assert!(meta("fifo").file_type().is_fifo() && meta("socket").file_type().is_socket());
    if root {
        assert_eq!((meta("char").rdev(), meta("char").file_type().is_char_device()), (libc::makedev(1, 5), true));
        assert_eq!(
            (meta("block").rdev(), meta("block").file_type().is_block_device()),
            (libc::makedev(259, 70_000), true)
        );
        assert!(meta("regular").is_file());
    }
}

#[test]
fn names_are_255_bytes_of_anything() {
    let mut m = Mount::new("AES256");
    let mut names: BTreeSet<Vec<u8>> = (1..=255u8).filter(|b| !b"/.".contains(b)).map(|b| vec![b]).collect();
    names.extend([
        vec![0xff; 255],
        "ü".repeat(127).into_bytes(),
        b"...".to_vec(),
        b"..x".to_vec(),
        vec![b'l'; 255],
        b"trailing ".to_vec(),
    ]);
    for n in &names {
        fs::write(m.at(OsStr::from_bytes(n)), n).unwrap_or_else(|e| panic!("{n:?}: {e}"));
    }
    put(m.at("A"), "upper case");
    put(m.at("a"), "lower case");
    m.remount();
    let listed: BTreeSet<Vec<u8>> =
        fs::read_dir(m.path()).unwrap().map(|e| e.unwrap().file_name().as_bytes().to_vec()).collect();
    assert_eq!(listed, names);
    for n in names.iter().filter(|n| !matches!(&n[..], b"a" | b"A")) {
        assert_eq!(fs::read(m.at(OsStr::from_bytes(n))).unwrap(), *n);
    }
    assert_eq!((text(m.at("A")), text(m.at("a"))), ("upper case".into(), "lower case".into()));
    let long = "l".repeat(256);
    assert_eq!(errno(fs::write(m.at(&long), "")), libc::ENAMETOOLONG);
    assert_eq!(errno(fs::metadata(m.at(&long))), libc::ENAMETOOLONG);
    assert_eq!(errno(fs::rename(m.at("a"), m.at(&long))), libc::ENAMETOOLONG);
    assert_eq!(errno(symlink("x", m.at(&long))), libc::ENAMETOOLONG);
}

#[test]
fn paths_go_as_deep_as_the_kernel_lets_them() {
    let mut m = Mount::new("AES256");
    let mut p = m.path();
    while p.as_os_str().len() + 256 < 4000 {
        p.push("d".repeat(255));
    }
    // 4096 bytes with the NUL, and one more.
    p.push("e".repeat(4095 - p.as_os_str().len() - 1));
    assert_eq!(p.as_os_str().len(), 4095);
    fs::create_dir_all(p.parent().unwrap()).unwrap();
    put(&p, "deep");
    let longer = Path::new(&format!("{}e", p.display())).to_owned();
    assert_eq!(errno(fs::metadata(&longer)), libc::ENAMETOOLONG);
    assert_eq!(errno(File::create(&longer)), libc::ENAMETOOLONG);
    symlink(&p, m.at("long link")).unwrap();
    assert_eq!(fs::read_link(m.at("long link")).unwrap(), p);
    assert_eq!(text(m.at("long link")), "deep");
    assert_eq!(errno(symlink(&longer, m.at("longer"))), libc::ENAMETOOLONG);
    m.remount();
    assert_eq!(text(&p), "deep");
    // And deeper than one path can say, by walking down.
    let script = "for i in $(seq 300); do mkdir deeper; cd deeper; done; echo bottom > f";
    fs::create_dir(m.at("walk")).unwrap();
    crate::mount::sh(&m.at("walk"), script);
    m.remount();
    assert_eq!(crate::mount::sh(&m.at("walk"), "for i in $(seq 300); do cd deeper; done; cat f"), "bottom\n");
    crate::mount::sh(&m.path(), "rm -r walk");
}

#[test]
fn a_directory_of_100_000_is_listed_right_while_it_changes() {
    let mut m = Mount::new("AES256");
    let d = m.at("d");
    fs::create_dir(&d).unwrap();
    let stay: BTreeSet<Vec<u8>> = (0..100_000).map(|i| format!("stays{i:05}").into_bytes()).collect();
    for n in &stay {
        File::create(d.join(OsStr::from_bytes(n))).unwrap();
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            for i in 0..3000 {
                File::create(d.join(format!("comes{i:05}"))).unwrap();
                if i >= 100 {
                    fs::remove_file(d.join(format!("comes{:05}", i - 100))).unwrap();
                }
                if i % 7 == 0 {
                    fs::rename(d.join(format!("comes{i:05}")), d.join(format!("moved{i:05}"))).unwrap();
                    fs::rename(d.join(format!("moved{i:05}")), d.join(format!("comes{i:05}"))).unwrap();
                }
            }
            done.store(true, Ordering::Release);
        });
        loop {
            let last = done.load(Ordering::Acquire);
            let mut seen: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
            for (name, _, _) in sys::read_dir(&d).unwrap() {
                *seen.entry(name).or_default() += 1;
            }
            let missing = stay.iter().filter(|n| !seen.contains_key(*n)).count();
            assert_eq!(missing, 0, "entries that were there all the time are missing");
            let twice: Vec<_> = seen.iter().filter(|(n, c)| **c > 1 && n.starts_with(b"stays")).collect();
            assert!(twice.is_empty(), "entries seen more than once: {twice:?}");
            if last {
                break;
            }
        }
    });
    assert_eq!(fs::read_dir(&d).unwrap().count(), 100_100);
    m.remount();
    assert_eq!(fs::read_dir(m.at("d")).unwrap().count(), 100_100);
    crate::mount::sh(&m.path(), "rm -r d");
}

#[test]
fn listings_tell_the_numbers_and_types_that_stat_tells() {
    let mut m = Mount::new("AES256");
    fs::create_dir_all(m.at("d/sub")).unwrap();
    put(m.at("d/file"), "");
    symlink("file", m.at("d/link")).unwrap();
    sys::mknod(m.at("d/fifo"), libc::S_IFIFO | 0o600, 0).unwrap();
    fs::hard_link(m.at("d/file"), m.at("d/other")).unwrap();
    let mut before = None;
    for _ in 0..2 {
        let list = sys::read_dir(m.at("d")).unwrap();
        let by_name: BTreeMap<_, _> = list.iter().map(|(n, i, t)| (n.clone(), (*i, *t))).collect();
        assert_eq!(list.len(), 7);
        for (name, (number, kind)) in &by_name {
            let meta = fs::symlink_metadata(m.at("d").join(OsStr::from_bytes(name))).unwrap();
            assert_eq!(*number, meta.ino(), "{}", String::from_utf8_lossy(name));
            assert_eq!(u32::from(*kind), (meta.mode() & libc::S_IFMT) >> 12);
        }
        assert_eq!(by_name[&b".."[..]].0, ino(m.path()));
        assert_eq!(ino(m.at("d/sub/..")), ino(m.at("d")));
        // Numbers are the same after a remount.
        assert!(before.is_none_or(|b| b == by_name), "inode numbers have changed");
        before = Some(by_name);
        m.remount();
    }
}

#[test]
fn a_listing_can_be_begun_again_and_continued_where_it_was() {
    let m = Mount::new("AES256");
    (0..500).for_each(|i| put(m.at(format!("f{i}")), ""));
    let c = crate::mount::cstr(m.path());
    // SAFETY: the stream is ours until closedir; each entry is read before the next call.
    unsafe {
        let d = libc::opendir(c.as_ptr());
        let next = || {
            let e = libc::readdir(d);
            (!e.is_null()).then(|| std::ffi::CStr::from_ptr((*e).d_name.as_ptr()).to_bytes().to_vec())
        };
        let first: Vec<_> = (0..100).map_while(|_| next()).collect();
        let here = libc::telldir(d);
        let rest: Vec<_> = std::iter::from_fn(next).collect();
        assert_eq!(first.len() + rest.len(), 502);
        libc::seekdir(d, here);
        assert_eq!(std::iter::from_fn(next).collect::<Vec<_>>(), rest);
        libc::rewinddir(d);
        assert_eq!(std::iter::from_fn(next).count(), 502);
        // Deleting while reading, as `rm -r` does, must reach every entry.
        libc::rewinddir(d);
        while let Some(n) = next() {
            let _ = fs::remove_file(m.at(OsStr::from_bytes(&n)));
        }
        libc::closedir(d);
    }
    assert_eq!(fs::read_dir(m.path()).unwrap().count(), 0);
}

#[test]
fn every_place_in_a_listing_is_found_again_after_names_came_and_went() {
    let m = Mount::new("AES256");
    (0..2000).for_each(|i| put(m.at(format!("f{i:04}")), ""));
    let c = crate::mount::cstr(m.path());
    // SAFETY: the stream is ours until closedir; each entry is read before the next call.
    unsafe {
        let d = libc::opendir(c.as_ptr());
        let next = || {
            let e = libc::readdir(d);
            (!e.is_null()).then(|| std::ffi::CStr::from_ptr((*e).d_name.as_ptr()).to_bytes().to_vec())
        };
        // The place before each entry, and the entry.
        let places: Vec<_> = std::iter::from_fn(|| Some((libc::telldir(d), next()?))).collect();
        assert_eq!(places.len(), 2002);
        let gone = |i: usize| i.is_multiple_of(3) || (500..900).contains(&i);
        (0..2000).filter(|i| gone(*i)).for_each(|i| fs::remove_file(m.at(format!("f{i:04}"))).unwrap());
        (0..600).for_each(|i| put(m.at(format!("f{:04}-new", i * 3)), ""));
        let old: BTreeSet<Vec<u8>> = (0..2000).map(|i| format!("f{i:04}").into_bytes()).collect();
        let left = |n: &Vec<u8>| old.contains(n) && m.at(OsStr::from_bytes(n)).exists();
        for at in [1, 2, 3, 400, 511, 512, 513, 700, 1024, 1500, 2001] {
            libc::seekdir(d, places[at].0);
            let seen: Vec<_> = std::iter::from_fn(next).filter(|n| old.contains(n)).collect();
            let once: BTreeSet<_> = seen.iter().cloned().collect();
            assert_eq!(seen.len(), once.len(), "from {at}: twice");
            let want: BTreeSet<_> = places[at..].iter().map(|p| p.1.clone()).filter(|n| left(n)).collect();
            // What the C library has read ahead it may still show.
            let missing: Vec<_> = want.difference(&once).collect();
            assert!(missing.is_empty(), "from {at}: missing {missing:?}");
        }
        // Begun again, it is a new listing; the old places mean nothing from here on (rewinddir(3)).
        libc::rewinddir(d);
        let all: BTreeSet<_> = std::iter::from_fn(next).collect();
        assert_eq!(all.len(), fs::read_dir(m.path()).unwrap().count() + 2);
        assert!(all.contains(&b"f0000-new"[..]) && !all.contains(&b"f0000"[..]));
        libc::closedir(d);
    }
}

#[test]
fn a_directory_that_moves_while_it_is_open_tells_its_new_parent() {
    let m = Mount::new("AES256");
    fs::create_dir_all(m.at("a/d")).unwrap();
    fs::create_dir(m.at("b")).unwrap();
    let c = crate::mount::cstr(m.at("a/d"));
    // SAFETY: the stream is ours until closedir; each entry is read before the next call.
    unsafe {
        let d = libc::opendir(c.as_ptr());
        let parent = || {
            libc::rewinddir(d);
            std::iter::from_fn(|| libc::readdir(d).as_ref())
                .find(|e| std::ffi::CStr::from_ptr(e.d_name.as_ptr()).to_bytes() == b"..")
                .map(|e| e.d_ino)
        };
        assert_eq!(parent(), Some(ino(m.at("a"))));
        fs::rename(m.at("a/d"), m.at("b/d")).unwrap();
        assert_eq!(parent(), Some(ino(m.at("b"))));
        libc::closedir(d);
    }
}
