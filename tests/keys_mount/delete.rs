//! Row 75: a key is deleted only when nothing hangs on it, after a time in which that can be taken back.

use crate::mount::{Mount, remove_xattr, set_xattr};
use crate::run::eventually;
use crate::{ALGORITHM, KEY_ID, RULE, key, make_key, put};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn r75_key_delete_says_what_hangs_on_the_key_and_goes_ahead_when_nothing_does() {
    let Some(m) = Mount::real("") else { return };
    let id = make_key(&m, "mine");
    // Three objects in a mounted bucket, with a rule of a directory and a request; two in one that is not mounted.
    fs::create_dir(m.at("d")).unwrap();
    set_xattr(m.at("d"), RULE, "KMS:mine").unwrap();
    put(&m, "d/a");
    put(&m, "d/b");
    fs::write(m.at("r"), "").unwrap();
    set_xattr(m.at("r"), ALGORITHM, "KMS").unwrap();
    set_xattr(m.at("r"), KEY_ID, "mine").unwrap();
    put(&m, "r");
    let mut other = Mount::builder().bucket("other").rule("KMS:mine").store(m.store()).unmounted();
    fs::remove_dir_all(other.config()).ok();
    std::os::unix::fs::symlink(m.config(), other.config()).unwrap();
    other.mount();
    put(&other, "x");
    put(&other, "y");
    other.umount();
    m.ssefs(&["bucket", "create", "empty", "--rule", "KMS:mine"]).ok();
    assert_eq!(key(&m, "mine")["used_by"].as_array().unwrap().len(), 3);

    let delete = || m.ssefs(&["key", "delete", "mine"]);
    let store = m.store().canonicalize().unwrap();
    let refused = delete();
    assert_eq!(refused.code, Some(8), "{refused:?}");
    refused.fails_saying(&[
        &format!("key mine ({id}) is in use by 5 objects in 3 buckets:"),
        &format!("bucket b in {}: 3 objects, 1 request, the rule of the directory d, since 2", store.display()),
        &format!("bucket other in {}: 2 objects, the rule of the bucket, since 2", store.display()),
        &format!("bucket empty in {}: the rule of the bucket, since 2", store.display()),
        "hint: ",
    ]);
    // A bucket that is away counts all the same, and is named with the date.
    let (there, away) = (m.store().join("buckets/other"), m.beside("away"));
    fs::rename(&there, &away).unwrap();
    m.ssefs(&["bucket", "delete", "empty"]).ok();
    remove_xattr(m.at("d"), RULE).unwrap();
    remove_xattr(m.at("r"), ALGORITHM).unwrap();
    for f in ["d/a", "d/b", "r"] {
        fs::remove_file(m.at(f)).unwrap();
    }
    let refused = delete();
    refused.fails_saying(&[
        "in use by 0 objects in 1 bucket:",
        &format!("bucket other in {}: not attached, so its objects cannot be counted, since 2", store.display()),
    ]);
    assert!(!refused.stderr.contains("bucket b in"), "b holds nothing of it any more: {refused:?}");
    assert_eq!(key(&m, "mine")["used_by"].as_array().unwrap().len(), 1, "and the keyring knows");
    assert_eq!(key(&m, "mine")["state"].as_str(), Some("enabled"));
    fs::rename(&away, &there).unwrap();
    assert_eq!(fs::read(there.join("catalog.db")).unwrap().len() % 512, 0);

    // What lets go of a key can take it up again, on the live mount.
    set_xattr(m.path(), RULE, "KMS:mine").unwrap();
    assert_eq!(put(&m, "again"), id);
    assert_eq!(key(&m, "mine")["used_by"].as_array().unwrap().len(), 2);
    remove_xattr(m.path(), RULE).unwrap();
    fs::remove_file(m.at("again")).unwrap();
    m.ssefs(&["bucket", "delete", "other", "--force"]).ok();
    other.no_check_at_end();
    let begun = m.ssefs(&["key", "delete", "mine", "--days", "7", "--json"]).json();
    assert_eq!(begun["state"].as_str(), Some("pending-deletion"));
    assert!(begun["delete_after"].as_str().is_some());
    assert!(m.ssefs(&["key", "list"]).ok().contains("destroyed 2"), "the list says when");
    for days in ["6", "31", "0"] {
        let e = m.ssefs(&["key", "delete", "mine", "--days", days]);
        assert_eq!(e.code, Some(2), "{e:?}");
        e.fails_saying(&["7 to 30 days"]);
    }
    m.ssefs(&["key", "delete", "mine"]).fails_saying(&["KMS.KMSInvalidStateException", "pending deletion"]);
    m.ssefs(&["key", "rotate", "mine"]).fails_saying(&["KMS.KMSInvalidStateException"]);
    m.ssefs(&["key", "cancel-deletion", "mine"]).ok();
    assert_eq!(key(&m, "mine")["state"].as_str(), Some("disabled"));
    set_xattr(m.path(), RULE, "AES256").unwrap();
    m.ssefs(&["key", "delete", "bucket:b"]).fails_saying(&["managed"]);
    m.ssefs(&["key", "delete", "nobody"]).fails_saying(&["KMS.NotFoundException", "nobody"]);
}

#[test]
fn r75_objects_that_are_open_or_not_yet_committed_count() {
    let Some(m) = Mount::real("") else { return };
    let id = make_key(&m, "mine");
    set_xattr(m.path(), RULE, "KMS:mine").unwrap();
    // A neighbour under a customer's key has nothing to do with it, and must not get in the way.
    fs::write(m.at("theirs"), "").unwrap();
    let customer: String = (33u8..65).map(char::from).collect();
    set_xattr(m.at("theirs"), "user.sse.customer-key", &customer).unwrap();
    fs::write(m.at("theirs"), "sealed by them").unwrap();
    let f = fs::File::create(m.at("f")).unwrap();
    use std::io::Write;
    (&f).write_all(b"not closed yet").unwrap();
    remove_xattr(m.path(), RULE).unwrap();
    m.ssefs(&["key", "delete", "mine"]).fails_saying(&["1 object"]);
    fs::remove_file(m.at("f")).unwrap();
    m.ssefs(&["key", "delete", "mine"]).fails_saying(&["1 object"]);
    (&f).write_all(b", and without a name").unwrap();
    f.sync_all().unwrap();
    drop(f);
    assert!(eventually(|| m.ssefs(&["key", "delete", &id]).code == Some(0)), "reaped, and free");
}

/// Tells a thread to end, also when the test that started it fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn r75_while_a_key_is_asked_for_nothing_slips_in_under_it() {
    let Some(m) = Mount::real("") else { return };
    make_key(&m, "mine");
    fs::create_dir(m.at("d")).unwrap();
    // One writes under the key and removes it again, all the time; the other deletes the key whenever it can, and whatever
    // was written must be readable while the key is enabled.
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        let end = Stop(&stop);
        let writer = s.spawn(|| {
            let (mut written, mut refused) = (0, 0);
            while !stop.load(Ordering::Relaxed) {
                if set_xattr(m.at("d"), RULE, "KMS:mine").is_err() || fs::write(m.at("d/f"), "x").is_err() {
                    refused += 1;
                    std::thread::sleep(std::time::Duration::from_millis(1));
                    continue;
                }
                written += 1;
                remove_xattr(m.at("d"), RULE).unwrap();
                let _ = fs::rename(m.at("d/f"), m.at("kept"));
                fs::remove_file(m.at("kept")).unwrap();
            }
            (written, refused)
        });
        let mut deleted = 0;
        for _ in 0..25 {
            if m.ssefs(&["key", "delete", "mine"]).code == Some(0) {
                deleted += 1;
                m.ssefs(&["key", "cancel-deletion", "mine"]).ok();
                m.ssefs(&["key", "enable", "mine"]).ok();
            }
        }
        drop(end);
        let (written, refused) = writer.join().unwrap();
        eprintln!("deleted {deleted} times, {written} objects written, {refused} refused");
        assert!(written > 10);
    });
    set_xattr(m.at("d"), RULE, "KMS:mine").unwrap();
    put(&m, "d/last");
    assert_eq!(key(&m, "mine")["used_by"].as_array().unwrap().len(), 1);
    m.ssefs(&["key", "delete", "mine"]).fails_saying(&["1 object"]);
    assert_eq!(fs::read(m.at("d/last")).unwrap(), b"content of d/last");
}

#[test]
fn a_mount_destroys_a_key_when_its_time_has_come() {
    let Some(m) = Mount::real("") else { return };
    let id = make_key(&m, "mine");
    m.ssefs(&["key", "delete", "mine", "--unsafe-seconds", "1"]).ok();
    // Not through ssefs, which would do it itself.
    let state = || -> String {
        let db = rusqlite::Connection::open_with_flags(
            m.config().join("keyring.db"),
            rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY,
        )
        .unwrap();
        db.query_row("SELECT state FROM master_key WHERE id = ?", [&id], |r| r.get(0)).unwrap_or_default()
    };
    assert!(eventually(|| state() == "destroyed"));
    assert_eq!(key(&m, &id)["state"].as_str(), Some("destroyed"));
}
