//! Extended attributes of users: kept byte for byte, with the errors of a local disk.

use crate::mount::{
    Mount, USER, as_user, errno, get_xattr, get_xattr_into, list_xattr, plain, remove_xattr, set_xattr,
    set_xattr_flags, skip_without_root,
};
use crate::tree::Dice;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;

#[test]
fn attributes_are_kept_byte_for_byte_on_files_and_directories() {
    let mut m = Mount::new("AES256");
    fs::write(m.at("f"), b"content").unwrap();
    fs::create_dir(m.at("d")).unwrap();
    let mut dice = Dice::new(1);
    // A plain ext4 keeps all attributes of a file in one block.
    let longest = if plain() { 1000 } else { 65_536 };
    let long_name = "user.".to_string() + &"n".repeat(250);
    let odd = OsStr::from_bytes(b"user.\xff\x01 \n=");
    let mut set: Vec<(&OsStr, Vec<u8>)> = vec![
        (OsStr::new("user.empty"), vec![]),
        (OsStr::new("user.zeroes"), vec![0; 300]),
        (OsStr::new("user.sse"), b"not one of ssefs's".to_vec()),
        (OsStr::new("user.ssex.y"), b"neither is this".to_vec()),
        (odd, b"odd".to_vec()),
        (OsStr::new(&long_name), b"long".to_vec()),
        (OsStr::new("user.long"), dice.bytes(longest)),
    ];
    set.sort();
    for p in [m.at("f"), m.at("d"), m.path()] {
        set.iter().for_each(|(n, v)| set_xattr(&p, n, v).unwrap_or_else(|e| panic!("{p:?} {n:?}: {e}")));
    }
    for round in 0..2 {
        for p in [m.at("f"), m.at("d"), m.path()] {
            let names: Vec<_> = list_xattr(&p).unwrap().into_iter().filter(|n| n.starts_with(b"user.")).collect();
            assert_eq!(names, set.iter().map(|(n, _)| n.as_bytes().to_vec()).collect::<Vec<_>>(), "{p:?}");
            set.iter().for_each(|(n, v)| assert!(get_xattr(&p, n).unwrap() == *v, "round {round}, {p:?}, {n:?}"));
        }
        m.remount();
    }
    assert_eq!(fs::read(m.at("f")).unwrap(), b"content");
}

#[test]
fn create_and_replace_do_only_that() {
    let m = Mount::new("AES256");
    let p = m.at("f");
    fs::write(&p, b"").unwrap();
    assert_eq!(errno(get_xattr(&p, "user.a")), libc::ENODATA);
    assert_eq!(errno(remove_xattr(&p, "user.a")), libc::ENODATA);
    assert_eq!(errno(set_xattr_flags(&p, "user.a", "1", libc::XATTR_REPLACE)), libc::ENODATA);
    set_xattr_flags(&p, "user.a", "1", libc::XATTR_CREATE).unwrap();
    assert_eq!(errno(set_xattr_flags(&p, "user.a", "2", libc::XATTR_CREATE)), libc::EEXIST);
    assert_eq!(get_xattr(&p, "user.a").unwrap(), b"1");
    set_xattr_flags(&p, "user.a", "3", libc::XATTR_REPLACE).unwrap();
    set_xattr(&p, "user.b", "4").unwrap();
    assert_eq!(get_xattr(&p, "user.a").unwrap(), b"3");
    remove_xattr(&p, "user.a").unwrap();
    assert_eq!(list_xattr(&p).unwrap(), [b"user.b".to_vec()]);
}

#[test]
fn sizes_are_told_and_limits_are_kept() {
    let m = Mount::new("AES256");
    let p = m.at("f");
    fs::write(&p, b"").unwrap();
    set_xattr(&p, "user.a", [7; 100]).unwrap();
    assert_eq!(get_xattr_into(&p, "user.a", &mut []).unwrap(), 100);
    assert_eq!(errno(get_xattr_into(&p, "user.a", &mut [0; 99])), libc::ERANGE);
    assert_eq!(get_xattr_into(&p, "user.a", &mut [0; 100]).unwrap(), 100);
    let c = crate::mount::cstr(&p);
    // SAFETY: the string ends with NUL, and the buffers are as long as said.
    let list = |buf: &mut [u8]| unsafe { libc::llistxattr(c.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) };
    assert_eq!(list(&mut []), 7);
    assert_eq!(list(&mut [0; 6]), -1);
    assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::ERANGE));
    assert_eq!(errno(set_xattr(&p, "user.a", vec![0; 65_537])), libc::E2BIG);
    assert_eq!(errno(set_xattr(&p, "user.".to_string() + &"n".repeat(251), "x")), libc::ERANGE);
    for foreign in ["nonamespace", "system.other", "system.nfs4_acl"] {
        assert_eq!(errno(set_xattr(&p, foreign, "x")), libc::EOPNOTSUPP, "{foreign}");
        assert_eq!(errno(get_xattr(&p, foreign)), libc::EOPNOTSUPP, "{foreign}");
        assert_eq!(errno(remove_xattr(&p, foreign)), libc::EOPNOTSUPP, "{foreign}");
    }
    assert_eq!(errno(get_xattr(m.at("missing"), "user.a")), libc::ENOENT);
}

#[test]
fn attributes_follow_the_file_through_rename_and_links() {
    let mut m = Mount::new("AES256");
    fs::write(m.at("f"), b"1").unwrap();
    set_xattr(m.at("f"), "user.a", "kept").unwrap();
    fs::hard_link(m.at("f"), m.at("g")).unwrap();
    fs::rename(m.at("f"), m.at("h")).unwrap();
    fs::write(m.at("h"), b"emptied and written again").unwrap();
    for p in ["g", "h"] {
        assert_eq!(get_xattr(m.at(p), "user.a").unwrap(), b"kept");
    }
    fs::remove_file(m.at("g")).unwrap();
    m.remount();
    assert_eq!(get_xattr(m.at("h"), "user.a").unwrap(), b"kept");
    fs::remove_file(m.at("h")).unwrap();
    fs::write(m.at("h"), b"new").unwrap();
    assert_eq!(errno(get_xattr(m.at("h"), "user.a")), libc::ENODATA, "a new file has none");
}

#[test]
fn a_link_a_fifo_or_a_device_node_has_no_user_attributes() {
    let m = Mount::new("AES256");
    std::os::unix::fs::symlink("x", m.at("link")).unwrap();
    crate::sys::mknod(m.at("fifo"), libc::S_IFIFO | 0o644, 0).unwrap();
    assert_eq!(errno(set_xattr(m.at("link"), "user.a", "1")), libc::EPERM);
    assert_eq!(errno(set_xattr(m.at("fifo"), "user.a", "1")), libc::EPERM);
    if !skip_without_root() {
        crate::sys::mknod(m.at("node"), libc::S_IFBLK | 0o644, libc::makedev(7, 200)).unwrap();
        assert_eq!(errno(set_xattr(m.at("node"), "user.a", "1")), libc::EPERM);
    }
}

#[test]
fn trusted_and_security_attributes_go_to_the_kernels_limits_and_trusted_ones_are_roots() {
    if skip_without_root() {
        return;
    }
    let mut m = Mount::builder().rule("AES256").shared().mount();
    crate::sys::chmod(m.path(), 0o755).unwrap();
    fs::write(m.at("f"), "x").unwrap();
    fs::create_dir(m.at("d")).unwrap();
    std::os::unix::fs::symlink("f", m.at("l")).unwrap();
    crate::sys::mknod(m.at("p"), libc::S_IFIFO | 0o644, 0).unwrap();
    crate::sys::mknod(m.at("c"), libc::S_IFCHR | 0o644, libc::makedev(1, 3)).unwrap();
    drop(std::os::unix::net::UnixListener::bind(m.at("s")).unwrap());
    let longest = Dice::new(2).bytes(if plain() { 1000 } else { 65_536 });
    let names = ["trusted.t", "security.s"].map(|n| n.to_string() + &"n".repeat(255 - n.len()));
    for p in ["f", "d", "l", "p", "c", "s"] {
        set_xattr(m.at(p), &names[0], &longest).unwrap();
        set_xattr(m.at(p), &names[1], &longest).unwrap();
        assert_eq!(errno(set_xattr(m.at(p), names[0].clone() + "n", "x")), libc::ERANGE);
        assert_eq!(errno(set_xattr(m.at(p), &names[0], vec![0; 65_537])), libc::E2BIG);
        assert_eq!(errno(set_xattr(m.at(p), "trusted.", "x")), libc::EINVAL);
    }
    m.remount();
    for p in ["f", "d", "l", "p", "c", "s"] {
        let mut listed = list_xattr(m.at(p)).unwrap();
        listed.retain(|n| names.iter().any(|w| w.as_bytes() == n));
        assert_eq!(listed, [names[1].as_bytes(), names[0].as_bytes()], "{p}");
        names.iter().for_each(|n| assert!(get_xattr(m.at(p), n).unwrap() == longest, "{p} {n}"));
    }
    as_user(USER, || {
        let listed = list_xattr(m.at("f")).unwrap();
        assert!(!listed.iter().any(|n| n.starts_with(b"trusted.")), "seen by all: {listed:?}");
        assert!(listed.iter().any(|n| n.starts_with(b"security.")));
        assert_eq!(errno(get_xattr(m.at("f"), &names[0])), libc::ENODATA);
        assert_eq!(errno(set_xattr(m.at("f"), &names[1], "x")), libc::EPERM);
    });
    remove_xattr(m.at("f"), &names[0]).unwrap();
    assert_eq!(errno(get_xattr(m.at("f"), &names[0])), libc::ENODATA);
}

#[test]
fn more_attributes_than_a_list_can_hold_are_refused_and_the_list_stays_readable() {
    let m = Mount::new("AES256");
    let p = m.at("f");
    fs::write(&p, "x").unwrap();
    let name = |i: usize| format!("user.{i:03}{}", "n".repeat(247));
    let kept = (0..1000).find(|i| set_xattr(&p, name(*i), "").is_err()).expect("there is a limit");
    assert_eq!(errno(set_xattr(&p, name(kept), "")), libc::ENOSPC);
    assert_eq!(list_xattr(&p).unwrap().len(), kept);
    // What is there can be changed, and room can be made.
    set_xattr(&p, name(0), "").unwrap();
    remove_xattr(&p, name(1)).unwrap();
    set_xattr(&p, name(kept), "").unwrap();
    assert_eq!(list_xattr(&p).unwrap().len(), kept);
}

#[test]
fn writing_takes_a_files_capabilities_away() {
    if skip_without_root() {
        return;
    }
    let m = Mount::new("AES256");
    let p = m.at("f");
    // VFS_CAP_REVISION_2 with cap_net_raw permitted (linux/capability.h).
    let mut cap = 0x0200_0000u32.to_le_bytes().to_vec();
    cap.extend((1u32 << 13).to_le_bytes());
    cap.extend([0; 12]);
    let changes: [(&str, fn(&std::path::Path)); 3] = [
        ("write", |p| fs::OpenOptions::new().append(true).open(p).map(|mut f| f.write_all(b"x").unwrap()).unwrap()),
        ("truncate", |p| crate::sys::truncate(p, 1).unwrap()),
        ("chown", |p| crate::sys::chown(p, 12, 12).unwrap()),
    ];
    for (what, change) in changes {
        fs::write(&p, "program").unwrap();
        set_xattr(&p, "security.capability", &cap).unwrap();
        assert_eq!(get_xattr(&p, "security.capability").unwrap(), cap);
        change(&p);
        assert_eq!(errno(get_xattr(&p, "security.capability")), libc::ENODATA, "{what}");
    }
}
