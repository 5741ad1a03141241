//! Who may do what: modes, owners, sticky and set-id bits, as the kernel checks them for other users.

use crate::mount::{Mount, USER, as_user, errno, set_xattr, skip_without_root};
use crate::shared;
use crate::sys;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

const OTHER: u32 = USER + 1;

fn mode(p: impl AsRef<Path>) -> u32 {
    fs::symlink_metadata(p).unwrap().mode() & 0o7777
}

#[test]
fn modes_decide_who_reads_writes_and_searches() {
    let Some(m) = shared() else { return };
    fs::write(m.at("f"), "root's").unwrap();
    fs::create_dir(m.at("d")).unwrap();
    fs::write(m.at("d/g"), "x").unwrap();
    let (f, d, g) = (m.at("f"), m.at("d"), m.at("d/g"));
    for (file, dir) in [(0o600, 0o700), (0o644, 0o755), (0o666, 0o777), (0o222, 0o711), (0o000, 0o744)] {
        sys::chmod(&f, file).unwrap();
        sys::chmod(&d, dir).unwrap();
        let allowed = |open: std::io::Result<File>, want: bool| match open {
            Ok(_) => assert!(want, "file {file:o}, directory {dir:o}: must be refused"),
            Err(e) => assert!(!want && e.raw_os_error() == Some(libc::EACCES), "file {file:o}, directory {dir:o}: {e}"),
        };
        as_user(USER, || {
            allowed(sys::open(&f, libc::O_RDONLY, 0), file & 4 != 0);
            allowed(sys::open(&f, libc::O_WRONLY, 0), file & 2 != 0);
            allowed(sys::open(&f, libc::O_RDWR, 0), file & 6 == 6);
            allowed(sys::open(&d, libc::O_RDONLY | libc::O_DIRECTORY, 0), dir & 4 != 0);
            allowed(sys::open(&g, libc::O_RDONLY, 0), dir & 1 != 0);
            allowed(sys::open(d.join("new"), libc::O_WRONLY | libc::O_CREAT, 0o600), dir & 3 == 3);
            assert_eq!(sys::access(&f, libc::R_OK).is_ok(), file & 4 != 0);
            assert_eq!(sys::access(&f, libc::W_OK).is_ok(), file & 2 != 0);
            assert!(sys::access(&f, libc::X_OK).is_err());
        });
        let _ = fs::remove_file(d.join("new"));
        // Root comes in everywhere.
        sys::open(&f, libc::O_RDWR, 0).unwrap();
    }
}

#[test]
fn a_new_file_belongs_to_who_made_it() {
    let Some(mut m) = shared() else { return };
    as_user(USER, || {
        fs::write(m.at("f"), "mine").unwrap();
        fs::create_dir(m.at("d")).unwrap();
        std::os::unix::fs::symlink("x", m.at("l")).unwrap();
        sys::mknod(m.at("p"), libc::S_IFIFO | 0o600, 0).unwrap();
        assert_eq!(errno(sys::mknod(m.at("dev"), libc::S_IFCHR | 0o600, libc::makedev(1, 3))), libc::EPERM);
    });
    m.remount();
    for n in ["f", "d", "l", "p"] {
        let s = fs::symlink_metadata(m.at(n)).unwrap();
        assert_eq!((s.uid(), s.gid()), (USER, USER), "{n}");
    }
    // In a set-group-id directory the group is the directory's, and subdirectories have the bit.
    fs::create_dir(m.at("s")).unwrap();
    sys::chown(m.at("s"), USER, 12).unwrap();
    sys::chmod(m.at("s"), 0o2777).unwrap();
    as_user(USER, || {
        fs::write(m.at("s/f"), "").unwrap();
        fs::create_dir(m.at("s/d")).unwrap();
    });
    assert_eq!(fs::metadata(m.at("s/f")).unwrap().gid(), 12);
    assert_eq!((fs::metadata(m.at("s/d")).unwrap().gid(), mode(m.at("s/d")) & 0o2000), (12, 0o2000));
}

#[test]
fn only_the_owner_changes_mode_times_and_owner() {
    let Some(m) = shared() else { return };
    let f = m.at("f");
    as_user(USER, || {
        fs::write(&f, "mine").unwrap();
        sys::chmod(&f, 0o666).unwrap();
        sys::chown(&f, USER, USER).unwrap();
        assert_eq!(errno(sys::chown(&f, OTHER, u32::MAX)), libc::EPERM);
        assert_eq!(errno(sys::chown(&f, u32::MAX, 0)), libc::EPERM);
    });
    as_user(OTHER, || {
        assert_eq!(errno(sys::chmod(&f, 0o600)), libc::EPERM);
        assert_eq!(errno(sys::chown(&f, OTHER, OTHER)), libc::EPERM);
        assert_eq!(errno(sys::utimens(&f, (1, 0), (1, 0))), libc::EPERM);
        sys::utimens(&f, (0, libc::UTIME_NOW), (0, libc::UTIME_NOW)).expect("who may write may set now");
        set_xattr(&f, "user.a", "1").expect("who may write may set attributes");
    });
    sys::chmod(&f, 0o644).unwrap();
    as_user(OTHER, || {
        assert_eq!(errno(sys::utimens(&f, (0, libc::UTIME_NOW), (0, libc::UTIME_NOW))), libc::EACCES);
        assert_eq!(errno(set_xattr(&f, "user.a", "2")), libc::EACCES);
        assert_eq!(errno(sys::truncate(&f, 0)), libc::EACCES);
        assert_eq!(errno(set_xattr(&f, "trusted.a", "2")), libc::EPERM);
    });
    set_xattr(&f, "trusted.a", "root's").unwrap();
    assert_eq!(fs::read(&f).unwrap(), b"mine");
}

#[test]
fn in_a_sticky_directory_only_the_owner_deletes() {
    let Some(m) = shared() else { return };
    fs::create_dir(m.at("tmp")).unwrap();
    sys::chmod(m.at("tmp"), 0o1777).unwrap();
    as_user(USER, || fs::write(m.at("tmp/f"), "").unwrap());
    as_user(OTHER, || {
        assert_eq!(errno(fs::remove_file(m.at("tmp/f"))), libc::EPERM);
        assert_eq!(errno(fs::rename(m.at("tmp/f"), m.at("tmp/g"))), libc::EPERM);
        fs::write(m.at("tmp/o"), "").unwrap();
        assert_eq!(errno(fs::rename(m.at("tmp/o"), m.at("tmp/f"))), libc::EPERM);
    });
    as_user(USER, || fs::remove_file(m.at("tmp/f")).unwrap());
}

#[test]
fn changing_a_file_takes_its_set_id_bits_away() {
    let Some(mut m) = shared() else { return };
    let f = m.at("f");
    let fresh = |bits: u32| {
        let _ = fs::remove_file(&f);
        fs::write(&f, [0; 5000]).unwrap();
        sys::chown(&f, USER, USER).unwrap();
        sys::chmod(&f, bits).unwrap();
        assert_eq!(mode(&f), bits);
    };
    type Change = fn(&Path);
    let changes: [(&str, Change); 9] = [
        ("write", |p| File::options().write(true).open(p).unwrap().write_all(b"x").unwrap()),
        ("append", |p| File::options().append(true).open(p).unwrap().write_all(b"x").unwrap()),
        ("read-write", |p| File::options().read(true).write(true).open(p).unwrap().write_all_at(b"x", 100).unwrap()),
        ("truncate", |p| sys::truncate(p, 100).unwrap()),
        ("O_TRUNC", |p| drop(sys::open(p, libc::O_WRONLY | libc::O_TRUNC, 0).unwrap())),
        ("chown", |p| sys::chown(p, u32::MAX, USER).unwrap()),
        ("fallocate", |p| sys::fallocate(&File::options().write(true).open(p).unwrap(), 0, 0, 9000).unwrap()),
        ("punch", |p| {
            let how = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            sys::fallocate(&File::options().write(true).open(p).unwrap(), how, 0, 4096).unwrap();
        }),
        ("copy", |p| {
            let f = File::options().read(true).write(true).open(p).unwrap();
            assert_eq!(sys::copy_range(&f, 0, &f, 4096, 100).unwrap(), 100);
        }),
    ];
    for (what, change) in changes {
        fresh(0o6777);
        as_user(USER, || change(&f));
        assert_eq!(mode(&f), 0o777, "{what}");
        // Without execution for the group the bit means mandatory locking on some systems: it may stay.
        fresh(0o4755);
        as_user(USER, || change(&f));
        assert_eq!(mode(&f), 0o755, "{what}");
    }
    fresh(0o6755);
    File::options().write(true).open(&f).unwrap().write_all(b"by root").unwrap();
    assert_eq!(mode(&f), 0o6755, "root's writing leaves them");
    m.remount();
    assert_eq!(mode(m.at("f")), 0o6755);
    sys::chown(&f, USER, 12).unwrap();
    as_user(USER, || sys::chmod(&f, 0o2755).unwrap());
    assert_eq!(mode(&f), 0o755, "of a group one is not in");
}

#[test]
fn a_mount_of_root_lets_others_in_as_far_as_permissions_go() {
    if skip_without_root() || crate::mount::skip_without_ssefs() {
        return;
    }
    let m = Mount::new("AES256");
    for (name, bits) in [("open", 0o644), ("closed", 0o600)] {
        fs::write(m.at(name), "x").unwrap();
        sys::chmod(m.at(name), bits).unwrap();
    }
    as_user(USER, || {
        assert_eq!(fs::read(m.at("open")).unwrap(), b"x");
        assert_eq!(errno(fs::read(m.at("closed"))), libc::EACCES);
        assert_eq!(errno(fs::write(m.at("new"), "x")), libc::EACCES);
    });
}
