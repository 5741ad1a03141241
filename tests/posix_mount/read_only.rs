//! `-o ro`, and a live mount made read-only and back: every change is EROFS, reading goes on.

use crate::mount::{
    Mount, errno, eventually, get_xattr, is_mounted, run, set_xattr, skip_without_root, skip_without_ssefs,
};
use crate::sys::{self, Map};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// What the tests read and try to change.
fn fill(m: &Mount) {
    fs::write(m.at("f"), [7; 100_000]).unwrap();
    set_xattr(m.at("f"), "user.a", "kept").unwrap();
    fs::create_dir_all(m.at("d/sub")).unwrap();
    symlink("f", m.at("l")).unwrap();
}

/// Each change there is, by its name, with what it answers.
fn changes(m: &Mount) -> Vec<(&'static str, io::Result<()>)> {
    let (f, d, new) = (m.at("f"), m.at("d"), m.at("new"));
    let open = |flags| sys::open(&f, flags, 0o644).map(drop);
    vec![
        ("write", open(libc::O_WRONLY)),
        ("read and write", open(libc::O_RDWR)),
        ("append", open(libc::O_WRONLY | libc::O_APPEND)),
        ("empty", open(libc::O_WRONLY | libc::O_TRUNC)),
        ("create", File::create(&new).map(drop)),
        ("truncate", sys::truncate(&f, 5)),
        ("mkdir", fs::create_dir(&new)),
        ("rmdir", fs::remove_dir(d.join("sub"))),
        ("unlink", fs::remove_file(&f)),
        ("rename", fs::rename(&f, &new)),
        ("exchange", sys::rename2(&f, &d, libc::RENAME_EXCHANGE)),
        ("link", fs::hard_link(&f, &new)),
        ("symlink", symlink("f", &new)),
        ("fifo", sys::mknod(&new, libc::S_IFIFO | 0o600, 0)),
        ("chmod", sys::chmod(&f, 0o600)),
        ("chown", sys::chown(&f, 1, 1)),
        ("times", sys::utimens(&f, (1, 2), (3, 4))),
        ("times of a link", sys::utimens(m.at("l"), (1, 2), (3, 4))),
        ("xattr", set_xattr(&f, "user.a", "new")),
        ("no xattr", crate::mount::remove_xattr(&f, "user.a")),
        ("rule", set_xattr(m.path(), "user.sse.default", "KMS")),
        ("request", set_xattr(&f, "user.sse.algorithm", "KMS")),
        ("access", sys::access(&f, libc::W_OK)),
    ]
}

#[track_caller]
fn assert_read_only(m: &Mount) {
    for (what, answer) in changes(m) {
        assert_eq!(answer.expect_err(what).raw_os_error(), Some(libc::EROFS), "{what}");
    }
    assert_readable(m);
}

#[track_caller]
fn assert_readable(m: &Mount) {
    assert_eq!(fs::read(m.at("l")).unwrap(), [7; 100_000]);
    assert_eq!(get_xattr(m.at("f"), "user.a").unwrap(), b"kept");
    assert_eq!(crate::mount::get_xattr_text(m.path(), "user.sse.default").unwrap(), "AES256");
    assert_eq!(fs::metadata(m.at("f")).unwrap().nlink(), 1);
    assert_eq!(fs::read_dir(m.path()).unwrap().count(), 3);
    assert_eq!(fs::read_dir(m.at("d")).unwrap().count(), 1);
    let f = File::open(m.at("f")).unwrap();
    f.sync_all().unwrap();
    let mut direct = sys::Aligned::new(4096);
    let unbuffered = sys::open(m.at("f"), libc::O_RDONLY | libc::O_DIRECT, 0).unwrap();
    assert_eq!((unbuffered.read_at(&mut direct, 8192).unwrap(), direct[0]), (4096, 7));
    let own = sys::open(m.at("f"), libc::O_RDONLY, 0).unwrap();
    let map = Map::new(&own, 4096, libc::MAP_PRIVATE).unwrap();
    assert_eq!(map.get(5, 1), [7]);
}

#[test]
fn a_read_only_mount_refuses_every_change_and_reads_everything() {
    if skip_without_ssefs() {
        return;
    }
    let m = Mount::new("AES256");
    fill(&m);
    let mut m = m.with_option("ro");
    assert_read_only(&m);
    let said = m.ssefs(&["encryption", "put", crate::mount::BUCKET, "KMS"]);
    said.fails_saying(&["open for reading only"]);
    m.umount();
}

#[test]
fn a_bucket_mounted_read_only_stays_so_whatever_the_kernel_is_told() {
    if skip_without_ssefs() || skip_without_root() {
        return;
    }
    let m = Mount::new("AES256");
    fill(&m);
    let m = m.with_option("ro");
    sys::remount(m.path(), 0).expect("the kernel does not ask ssefs");
    // Opening is no change, and neither is the question of access(2): the kernel lets them pass now.
    let opening = ["write", "read and write", "append", "access"];
    for (what, answer) in changes(&m).into_iter().filter(|(what, _)| !opening.contains(what)) {
        assert_eq!(answer.expect_err(what).raw_os_error(), Some(libc::EROFS), "{what}");
    }
    let f = sys::open(m.at("f"), libc::O_RDWR, 0).unwrap();
    assert_eq!(errno(f.write_at(b"x", 0)), libc::EROFS);
    assert_eq!(errno(sys::fallocate(&f, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 0, 4096)), libc::EROFS);
    drop(f);
    assert_readable(&m);
}

#[test]
fn a_live_mount_can_be_made_read_only_and_back() {
    if skip_without_ssefs() || skip_without_root() {
        return;
    }
    let mut m = Mount::new("AES256");
    fill(&m);
    let read_only = || sys::remount(m.path(), libc::MS_RDONLY);
    // As on any file system: not while a file is open for writing, nor while one without a name is open.
    let writer = sys::open(m.at("f"), libc::O_WRONLY, 0).unwrap();
    assert_eq!(errno(read_only()), libc::EBUSY);
    drop(writer);
    fs::write(m.at("gone"), "x").unwrap();
    let gone = File::open(m.at("gone")).unwrap();
    fs::remove_file(m.at("gone")).unwrap();
    assert_eq!(errno(read_only()), libc::EBUSY);
    drop(gone);
    // FUSE lets go of a closed file some time after close(2) has returned.
    assert!(eventually(|| read_only().is_ok()));
    assert_read_only(&m);
    sys::remount(m.path(), 0).unwrap();
    fs::write(m.at("again"), "written").unwrap();
    m.remount();
    assert_eq!(fs::read(m.at("again")).unwrap(), b"written");
}

#[test]
fn mount_8_finds_the_helper_by_the_type_and_the_helper_remounts() {
    if skip_without_ssefs() || skip_without_root() {
        return;
    }
    let mut m = Mount::new("AES256");
    fill(&m);
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = table.lines().find(|l| l.contains(m.path().to_str().unwrap())).unwrap();
    assert_eq!(line.split(' ').nth(2), Some("fuse.ssefs"), "{line}");
    // The command line is the one that mount(8) gives, with what stood in the mount table.
    let helper = |bucket: &str, dir: &str, options: &str| {
        let mut c = Command::new(env!("CARGO_BIN_EXE_ssefs"));
        c.arg0("/sbin/mount.fuse.ssefs").args([bucket, dir, "-o", options]);
        run(&mut c)
    };
    let at = m.path();
    let at = at.to_str().unwrap();
    let standing = "relatime,remount,user_id=0,group_id=0,default_permissions,allow_other";
    helper("b", at, &format!("ro,{standing}")).ok();
    assert_read_only(&m);
    m.ssefs(&["bucket", "compact", "b"]).fails_saying(&["open for reading only"]);
    helper("b", at, &format!("rw,{standing}")).ok();
    fs::write(m.at("f"), [7; 100_000]).unwrap();
    let open = sys::open(m.at("f"), libc::O_WRONLY, 0).unwrap();
    helper("b", at, "remount,ro").fails_saying(&["is in use", "fuser -vm"]);
    drop(open);
    helper("other", at, "remount,ro").fails_saying(&["bucket other is not mounted at"]);
    let plain = m.beside("plain");
    fs::create_dir(&plain).unwrap();
    helper("b", plain.to_str().unwrap(), "remount,ro").fails_saying(&["is not mounted at"]);
    m.ssefs(&["mount", "b", at, "-o", "remount,ro"]).fails_saying(&["mount -o remount,ro DIR"]);
    assert!(is_mounted(&m.path()));
    m.remount();
    assert_readable(&m);
}
