//! POSIX ACLs, the umask and set-group-ID directories, as acl(5) has them.

use crate::mount::{Mount, USER, as_user, errno, sh};
use crate::shared;
use crate::sys;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

const TEAM: u32 = 4800;

fn mode(m: &Mount, name: &str) -> u32 {
    fs::symlink_metadata(m.at(name)).unwrap().mode() & 0o7777
}

#[test]
fn the_umask_counts_where_there_is_no_default_acl_and_only_there() {
    let Some(mut m) = shared() else { return };
    sh(&m.path(), "mkdir plain acl; setfacl -d -m u::rwx,u:4711:rwx,g::r-x,o::- acl");
    for dir in ["plain", "acl"] {
        sh(&m.at(dir), "umask 077; touch f; mkdir d; mkfifo p; ln -s f l; cp /bin/true x");
    }
    m.remount();
    let modes = |dir: &str| ["f", "d", "p", "l"].map(|n| mode(&m, &format!("{dir}/{n}")));
    assert_eq!(modes("plain"), [0o600, 0o700, 0o600, 0o777]);
    // The group bits are the mask's: what the program asked for, however the umask is.
    assert_eq!(modes("acl"), [0o660, 0o770, 0o660, 0o777]);
    let acls = |what: &str| sh(&m.path(), &format!("getfacl -cEn {what}"));
    assert_eq!(acls("acl/f"), "user::rw-\nuser:4711:rwx\ngroup::r-x\nmask::rw-\nother::---\n\n");
    assert_eq!(acls("-d acl/d"), acls("-d acl"), "a directory hands its default on");
    assert_eq!(acls("plain/f"), "user::rw-\ngroup::---\nother::---\n\n");
}

#[test]
fn an_acl_lets_in_whom_it_names_as_far_as_its_mask_goes() {
    let Some(m) = shared() else { return };
    fs::write(m.at("f"), "root's").unwrap();
    sys::chmod(m.at("f"), 0o600).unwrap();
    let may = |want: [bool; 2]| {
        let f = m.at("f");
        as_user(USER, || {
            for (flags, want) in [libc::O_RDONLY, libc::O_WRONLY].into_iter().zip(want) {
                match sys::open(&f, flags, 0) {
                    Ok(_) => assert!(want, "flags {flags} must be refused"),
                    Err(e) => assert!(!want && e.raw_os_error() == Some(libc::EACCES), "flags {flags}: {e}"),
                }
            }
        });
    };
    may([false, false]);
    sh(&m.path(), "setfacl -m u:4711:r f");
    may([true, false]);
    sh(&m.path(), "setfacl -m u:4711:rw f");
    may([true, true]);
    sys::chmod(m.at("f"), 0o640).unwrap();
    may([true, false]);
    sys::chmod(m.at("f"), 0o600).unwrap();
    may([false, false]);
    sys::chmod(m.at("f"), 0o660).unwrap();
    may([true, true]);
    sh(&m.path(), "setfacl -b f");
    may([false, false]);
    assert_eq!(mode(&m, "f"), 0o600, "the group bits are those of the group again");
    assert_eq!(errno(crate::mount::get_xattr(m.at("f"), "system.posix_acl_access")), libc::ENODATA);
}

#[test]
fn a_set_group_id_directory_keeps_its_bit_for_a_member_of_its_group_only() {
    let Some(mut m) = shared() else { return };
    let dir = m.at("team");
    fs::create_dir(&dir).unwrap();
    sys::chown(&dir, USER, TEAM).unwrap();
    let fresh = || sys::chmod(&dir, 0o2770).unwrap();
    let acl = |user: u32| sh(&dir, &format!("setfacl -m u:{user}:rwx ."));
    fresh();
    sys::as_user_in(USER, &[TEAM], || {
        sys::chmod(&dir, 0o2775).unwrap();
        acl(4712);
        fs::write(dir.join("f"), "").unwrap();
        fs::create_dir(dir.join("d")).unwrap();
    });
    assert_eq!(mode(&m, "team"), 0o2775);
    assert_eq!((mode(&m, "team/d") & 0o2000, fs::metadata(dir.join("d")).unwrap().gid()), (0o2000, TEAM));
    assert_eq!(fs::metadata(dir.join("f")).unwrap().gid(), TEAM);
    fresh();
    as_user(USER, || acl(4713));
    assert_eq!(mode(&m, "team") & 0o2000, 0, "the owner is not in the group: an ACL set by him takes the bit");
    fresh();
    as_user(USER, || sys::chmod(&dir, 0o2775).unwrap());
    assert_eq!(mode(&m, "team"), 0o775, "and so does chmod");
    // Files: set-group-ID is for who is in the group.
    fresh();
    let make = |name: &str| drop(sys::open(dir.join(name), libc::O_CREAT | libc::O_WRONLY, 0o2755).unwrap());
    sys::as_user_in(USER, &[TEAM], || make("member"));
    as_user(USER, || make("stranger"));
    m.remount();
    assert_eq!((mode(&m, "team/member") & 0o2000, mode(&m, "team/stranger") & 0o2000), (0o2000, 0));
    File::open(m.at("team/f")).unwrap();
}
