//! Row 46: who may change rules. Row 65: one process has a bucket.

use crate::mount::{
    Mount, USER, as_user, errno, get_xattr_text, remove_xattr, set_xattr, skip_without_root, skip_without_ssefs,
};
use crate::{REQUEST, RULE, put, refused};
use std::fs;

fn shared() -> Option<Mount> {
    if skip_without_root() || skip_without_ssefs() {
        return None;
    }
    let m = Mount::builder().rule("AES256").shared().mount();
    crate::sys::chmod(m.path(), 0o777).unwrap();
    Some(m)
}

#[test]
fn r46_only_owner_root_and_granted_users_change_the_rule() {
    let Some(mut m) = shared() else { return };
    let user = || {
        as_user(USER, || {
            fs::create_dir_all(m.at("theirs")).unwrap();
            [
                set_xattr(m.path(), RULE, "KMS"),
                set_xattr(m.path(), "user.sse.default.algorithm", "KMS"),
                set_xattr(m.at("theirs"), RULE, "none"),
                remove_xattr(m.at("theirs"), RULE),
                remove_xattr(m.path(), RULE),
            ]
        })
    };
    for tried in user() {
        assert_eq!(errno(tried), libc::EACCES);
    }
    as_user(USER, || {
        refused(&m, set_xattr(m.path(), RULE, "KMS"), libc::EACCES, &["AccessDenied"]);
        assert_eq!(get_xattr_text(m.path(), RULE).unwrap(), "AES256", "reading is allowed");
        let cli = m.ssefs(&["encryption", "put", "b", "KMS"]);
        assert!(cli.code.is_some_and(|c| c != 0 && c != 101), "{cli:?}");
        let grant = m.ssefs(&["bucket", "grant", "b", &USER.to_string()]);
        assert!(grant.code.is_some_and(|c| c != 0 && c != 101), "nobody grants to oneself: {grant:?}");
    });
    assert_eq!(get_xattr_text(m.path(), RULE).unwrap(), "AES256");
    m.ssefs(&["bucket", "grant", "b", &USER.to_string()]).ok();
    for tried in user() {
        tried.expect("granted");
    }
    assert_eq!(errno(get_xattr_text(m.path(), RULE)), libc::ENODATA, "deleted by the granted user");
    set_xattr(m.path(), RULE, "AES256").unwrap();
    m.remount();
    as_user(USER, || set_xattr(m.path(), RULE, "KMS").expect("a grant survives a remount"));
    m.ssefs(&["bucket", "grant", "b", &USER.to_string(), "--revoke"]).ok();
    as_user(USER, || assert_eq!(errno(set_xattr(m.path(), RULE, "AES256")), libc::EACCES));
    assert_eq!(get_xattr_text(m.path(), RULE).unwrap(), "KMS");
}

#[test]
fn r46_a_request_is_the_right_of_who_may_write_the_file() {
    let Some(m) = shared() else { return };
    put(&m, "roots");
    as_user(USER, || {
        fs::write(m.at("f"), "mine").unwrap();
        set_xattr(m.at("f"), REQUEST, "KMS").unwrap();
        assert_eq!(errno(set_xattr(m.at("roots"), REQUEST, "KMS")), libc::EACCES);
    });
    assert_eq!((crate::method(&m, "f"), crate::method(&m, "roots")), ("KMS".into(), "AES256".into()));
}

#[test]
fn r65_a_second_process_is_told_who_has_the_bucket() {
    let Some(m) = Mount::real("AES256") else { return };
    put(&m, "f");
    let other = m.beside("other");
    fs::create_dir(&other).unwrap();
    let second = m.ssefs(&["mount", "b", other.to_str().unwrap()]);
    second.fails_saying(&["b", &m.pid().unwrap().to_string(), m.path().to_str().unwrap()]);
    assert_eq!(second.code, Some(4));
    assert!(!crate::mount::is_mounted(&other));
    // The first goes on.
    assert_eq!(put(&m, "g"), "AES256");
    assert_eq!(fs::read(m.at("f")).unwrap(), b"content of f");
}
