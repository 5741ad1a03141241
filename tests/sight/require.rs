//! Row 76.

use crate::mount::{BUCKET, Mount, errno, get_xattr_text, remove_xattr, set_xattr};
use crate::{RULE, coverage, objects, put};
use std::fs;

const LAST_ERROR: &str = "user.sse.last-error";

#[test]
fn r76_a_bucket_that_requires_encryption_refuses_plain_objects_and_says_why() {
    if crate::mount::skip_without_ssefs() {
        return;
    }
    let mut m = Mount::builder().unmounted();
    m.ssefs(&["bucket", "create", BUCKET, "--require-encryption"]).ok();
    m.set_created();
    m.mount();
    assert_eq!(errno(fs::write(m.at("f"), "plain")), libc::EACCES);
    let words = get_xattr_text(m.path(), LAST_ERROR).unwrap();
    assert!(words.starts_with("AccessDenied: ") && words.contains("refuses plain objects"), "{words}");
    assert_eq!(fs::metadata(m.at("f")).unwrap().len(), 0, "nothing of it was written");
    // A request encrypts it, as a rule does.
    set_xattr(m.at("f"), "user.sse.algorithm", "AES256").unwrap();
    put(&m, "f", "sealed");
    assert_eq!(errno(set_xattr(m.path(), RULE, "none")), libc::EINVAL, "never for a bucket");
    fs::create_dir(m.at("d")).unwrap();
    assert_eq!(errno(set_xattr(m.at("d"), RULE, "none")), libc::EACCES);
    set_xattr(m.at("d"), RULE, "KMS").unwrap();
    put(&m, "d/g", "sealed");
    assert_eq!(errno(remove_xattr(m.at("d"), RULE)), libc::EACCES, "the last rule");
    set_xattr(m.path(), RULE, "AES256").unwrap();
    remove_xattr(m.at("d"), RULE).unwrap();
    assert_eq!(errno(remove_xattr(m.path(), RULE)), libc::EACCES, "the last rule");
    m.ssefs(&["encryption", "delete", BUCKET]).fails_saying(&["AccessDenied", "last rule cannot be deleted"]);
    m.ssefs(&["object", "convert", &format!("{BUCKET}:"), "--rule", "none"]).fails_saying(&["AccessDenied"]);
    put(&m, "h", "sealed");
    assert_eq!(objects(&coverage(&m, 13), "none"), 0, "d/g is under KMS, in force is AES256");
    m.remount();
    assert_eq!(errno(remove_xattr(m.path(), RULE)), libc::EACCES, "after a remount as well");
    // Row 32: off, write.
    m.ssefs(&["bucket", "require-encryption", BUCKET, "--off"]).ok();
    remove_xattr(m.path(), RULE).unwrap();
    put(&m, "plain", "plain");
    assert_eq!(objects(&coverage(&m, 13), "none"), 1);
}

#[test]
fn r76_it_is_turned_on_once_no_plain_object_is_left() {
    let Some(mut m) = Mount::real("") else { return };
    put(&m, "one", "plain");
    fs::create_dir(m.at("d")).unwrap();
    put(&m, "d/two", "plain");
    let on = ["bucket", "require-encryption", BUCKET];
    m.ssefs(&on).fails_saying(&["2 plain objects", "d/two", "one", "ssefs object convert"]);
    put(&m, "three", "plain as well: it was not turned on");
    set_xattr(m.path(), RULE, "AES256").unwrap();
    set_xattr(m.at("d"), RULE, "none").unwrap();
    fs::remove_file(m.at("d/two")).unwrap();
    m.ssefs(&["object", "convert", &format!("{BUCKET}:")]).ok();
    m.ssefs(&on).fails_saying(&["rule none"]);
    remove_xattr(m.at("d"), RULE).unwrap();
    m.ssefs(&on).ok();
    m.ssefs(&on).ok();
    m.umount();
    let shown = crate::json(&m, 0, &["bucket", "show", BUCKET]);
    assert_eq!(shown["require_encryption"], true);
    m.ssefs(&["encryption", "delete", BUCKET]).fails_saying(&["last rule"]);
    m.mount();
    put(&m, "d/new", "sealed");
    coverage(&m, 0);
}
