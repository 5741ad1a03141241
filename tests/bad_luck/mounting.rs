//! Buckets that are not there, taken or from the future; mountpoints that cannot be used; names that are none.

use crate::exit;
use crate::mount::{Mount, is_mounted, skip_without_ssefs};
use rusqlite::Connection;
use std::fs;

fn unmounted() -> Option<Mount> {
    if skip_without_ssefs() { None } else { Some(Mount::builder().rule("AES256").unmounted()) }
}

#[test]
fn a_bucket_that_is_not_there_is_not_made_by_accident() {
    let Some(mut m) = unmounted() else { return };
    m.set_created();
    let r = m.try_mount();
    r.fails_saying(&["b", "--create"]);
    assert_eq!(r.code, exit::NOT_FOUND);
    assert!(!is_mounted(&m.path()) && !m.folder().exists());
    m.no_check_at_end();
    // With a bucket beside it, too.
    m.ssefs(&["bucket", "create", "other"]).ok();
    assert_eq!(m.try_mount().code, exit::NOT_FOUND);
    for args in [&["encryption", "get", "b"][..], &["check", "b"], &["bucket", "show", "b"], &["key", "rewrap", "b"]] {
        let r = m.ssefs(args);
        r.fails_saying(&["b"]);
        assert_eq!(r.code, exit::NOT_FOUND, "{args:?}");
    }
}

#[test]
fn a_bucket_mounted_already_tells_by_whom_and_where() {
    let Some(m) = Mount::real("AES256") else { return };
    let pid = m.pid().unwrap().to_string();
    let again = m.try_mount();
    again.fails_saying(&["b", &pid]);
    assert_eq!(again.code, exit::BUSY);
    fs::create_dir(m.beside("second")).unwrap();
    let elsewhere = m.ssefs(&["mount", "b", m.beside("second").to_str().unwrap()]);
    elsewhere.fails_saying(&["b", &pid, m.path().to_str().unwrap()]);
    assert_eq!(elsewhere.code, exit::BUSY);
    let delete = m.ssefs(&["bucket", "delete", "b", "--force"]);
    delete.fails_saying(&["b"]);
    fs::write(m.at("f"), "still here").unwrap();
    assert_eq!(fs::read(m.at("f")).unwrap(), b"still here");
}

#[test]
fn a_bucket_of_a_newer_format_is_refused_and_left_alone() {
    let Some(mut m) = Mount::real("AES256") else { return };
    fs::write(m.at("f"), "content").unwrap();
    m.umount();
    let version = |v: i64| {
        Connection::open(m.folder().join("catalog.db")).unwrap().pragma_update(None, "user_version", v).unwrap()
    };
    version(99);
    let before = fs::read(m.folder().join("catalog.db")).unwrap();
    for r in [m.try_mount(), m.ssefs(&["check", "b"])] {
        r.fails_saying(&["99", "newer"]);
        assert_eq!(r.code, exit::NEWER);
    }
    assert!(fs::read(m.folder().join("catalog.db")).unwrap() == before);
    version(1);
    m.mount();
    assert_eq!(fs::read(m.at("f")).unwrap(), b"content");
}

#[test]
fn a_catalog_that_is_not_ours_is_refused() {
    let Some(mut m) = Mount::real("AES256") else { return };
    m.umount();
    let id = |v: i64| {
        Connection::open(m.folder().join("catalog.db")).unwrap().pragma_update(None, "application_id", v).unwrap()
    };
    id(0x4747_5047);
    let r = m.try_mount();
    r.fails_saying(&["catalog.db"]);
    id(0x5353_4546);
    m.mount();
}

#[test]
fn a_mountpoint_must_be_an_empty_directory() {
    let Some(m) = unmounted() else { return };
    fs::write(m.at("in the way"), "x").unwrap();
    let r = m.try_mount();
    r.fails_saying(&[m.path().to_str().unwrap(), "not empty"]);
    assert_eq!(r.code, exit::MOUNT);
    fs::remove_file(m.at("in the way")).unwrap();
    fs::write(m.beside("file"), "x").unwrap();
    for (point, says) in [("file", "not a directory"), ("missing", "does not exist"), ("file/below", "")] {
        let point = m.beside(point);
        let r = m.ssefs(&["mount", "b", point.to_str().unwrap(), "--create"]);
        r.fails_saying(&[point.to_str().unwrap(), says]);
        assert_ne!(r.code, exit::USAGE);
    }
    // The refusal came before the bucket was made, so nothing is left over.
    assert!(!m.folder().exists(), "a bucket was made for a mount that could not be");
    assert_eq!(fs::read_to_string(m.beside("file")).unwrap(), "x");
}

#[test]
fn a_mount_left_dead_by_a_crash_is_replaced() {
    let Some(mut m) = Mount::real("AES256") else { return };
    fs::write(m.at("f"), "synced").unwrap();
    fs::File::open(m.at("f")).unwrap().sync_all().unwrap();
    m.kill9_leaving_the_mount();
    // Which of the two depends on what the kernel still remembers of the file.
    assert!([libc::ENOTCONN, libc::ECONNABORTED].contains(&crate::mount::errno(fs::read(m.at("f")))));
    m.mount();
    assert_eq!(fs::read(m.at("f")).unwrap(), b"synced");
    m.kill9_leaving_the_mount();
    m.ssefs(&["umount", m.path().to_str().unwrap()]).ok();
    assert!(!is_mounted(&m.path()));
    m.mount();
}

#[test]
fn unmounting_what_is_not_mounted_or_in_use_says_so() {
    let Some(m) = Mount::real("AES256") else { return };
    let r = m.ssefs(&["umount", m.beside("").to_str().unwrap()]);
    r.fails_saying(&["mounted"]);
    assert_eq!(r.code, exit::NOT_FOUND);
    fs::write(m.at("f"), "x").unwrap();
    let open = fs::File::open(m.at("f")).unwrap();
    let r = m.ssefs(&["umount", m.path().to_str().unwrap()]);
    r.fails_saying(&[m.path().to_str().unwrap()]);
    assert_eq!(r.code, exit::BUSY);
    assert_eq!(fs::read(m.at("f")).unwrap(), b"x", "the mount goes on");
    drop(open);
}

#[test]
fn names_that_cannot_be_a_buckets_are_refused() {
    let Some(m) = unmounted() else { return };
    let long = "x".repeat(256);
    for name in ["a/b", "..", ".", "", ".hidden", "-dash", "a b", "new\nline", "bell\x07", "ü", "/", "../b", &long] {
        for args in [
            &["mount", "--create", "--", name, "mnt"][..],
            &["bucket", "create", "--", name],
            &["encryption", "get", "--", name],
            &["check", "--", name],
        ] {
            let r = m.ssefs(args);
            r.fails_saying(&["name"]);
            assert_eq!(r.code, exit::USAGE, "{args:?}");
            assert!(!r.stderr.chars().any(|c| c == '\x07'), "control characters must not reach the terminal");
        }
    }
    let buckets = fs::read_dir(m.store().join("buckets")).map_or(0, Iterator::count);
    assert_eq!(buckets, 0, "nothing was made");
    let longest = "y".repeat(255);
    for name in ["a", "A.b_c-9", &longest] {
        m.ssefs(&["bucket", "create", name]).ok();
    }
    let twice = m.ssefs(&["bucket", "create", "a"]);
    twice.fails_saying(&["a"]);
    assert_eq!(twice.code, Some(12));
}

#[test]
fn a_rule_that_is_none_makes_no_bucket() {
    let Some(m) = unmounted() else { return };
    for rule in ["DES", "KMS:no-such-key", "<x/>", "SSE-C"] {
        m.ssefs(&["mount", "b", m.path().to_str().unwrap(), "--create", "--rule", rule]).fails_saying(&[]);
        assert!(!m.folder().exists(), "{rule}");
    }
}

#[test]
fn the_first_use_makes_private_files_and_says_where_the_root_key_lies() {
    use std::os::unix::fs::PermissionsExt;
    let Some(mut m) = unmounted() else { return };
    let r = m.try_mount();
    let root = m.config().join("root.key");
    assert!(r.stderr.contains(root.to_str().unwrap()) || r.stdout.contains(root.to_str().unwrap()), "{r:?}");
    r.ok();
    m.set_created();
    let mode = |p: &std::path::Path| fs::metadata(p).unwrap().permissions().mode() & 0o7777;
    for p in [m.config(), m.store().to_path_buf()] {
        assert_eq!(mode(&p), 0o700, "{p:?}");
    }
    for p in [
        root,
        m.config().join("keyring.db"),
        m.store().join("store.id"),
        m.folder().join("catalog.db"),
        m.folder().join("lock"),
    ] {
        assert_eq!(mode(&p), 0o600, "{p:?}");
    }
    m.umount();
    let again = m.try_mount();
    assert!(!again.clone().ok().contains("root.key") && !again.stderr.contains("root.key"), "it is said once");
}
