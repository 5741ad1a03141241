//! A service that is slow or down: what is unwrapped goes on, what is not fails with words, and nobody else waits.

use crate::kms::{Kms, Mood};
use crate::mount::{Mount, errno, eventually, set_xattr, skip_without_ssefs};
use crate::{RULE, mounted, refused, unmounted};
use std::fs::{self, File};
use std::io::Write;

#[test]
fn r30_while_a_service_is_down_what_is_unwrapped_goes_on_and_comes_back_by_itself() {
    if skip_without_ssefs() {
        return;
    }
    let mut kms = Kms::start();
    let mut m = mounted(&kms, &[]);
    fs::write(m.at("old"), "old content").unwrap();
    kms.down();
    fs::write(m.at("new"), "new content").unwrap();
    File::open(m.at("new")).unwrap().sync_all().unwrap();
    assert_eq!(fs::read_to_string(m.at("old")).unwrap(), "old content");
    let shown = m.ssefs(&["key", "show", "ext", "--json"]).json();
    assert!(shown["service"].as_str().unwrap().starts_with("KMS.DependencyTimeoutException: key ext (mk-"), "{shown}");
    m.remount();
    refused(&m, File::open(m.at("old")), libc::ENOKEY, &["KMS.DependencyTimeoutException", "ext (mk-", "127.0.0.1"]);
    // It is not asked for each of many files: all but one a moment fail at once.
    for _ in 0..200 {
        assert_eq!(errno(File::open(m.at("new"))), libc::ENOKEY);
    }
    kms.up();
    assert!(eventually(|| File::open(m.at("old")).is_ok()), "it did not come back");
    assert_eq!(fs::read_to_string(m.at("new")).unwrap(), "new content");
}

#[test]
fn r30_what_a_silent_service_keeps_from_being_read_is_not_emptied() {
    if skip_without_ssefs() {
        return;
    }
    let mut kms = Kms::start();
    let mut m = mounted(&kms, &[]);
    fs::write(m.at("f"), "content").unwrap();
    m.umount();
    kms.down();
    m.mount();
    refused(&m, File::create(m.at("f")), libc::ENOKEY, &["ext (mk-"]);
    assert_eq!(errno(sys_truncate(&m, "f")), libc::ENOKEY);
    assert_eq!(fs::metadata(m.at("f")).unwrap().len(), 7);
    fs::rename(m.at("f"), m.at("g")).unwrap();
    fs::write(m.path().join("g"), "x").unwrap_err();
    kms.up();
    assert!(eventually(|| File::open(m.at("g")).is_ok()));
    assert_eq!(fs::read_to_string(m.at("g")).unwrap(), "content");
}

fn sys_truncate(m: &Mount, name: &str) -> std::io::Result<()> {
    let path = crate::mount::cstr(m.at(name));
    // SAFETY: path is a NUL-terminated string that outlives the call.
    match unsafe { libc::truncate(path.as_ptr(), 0) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

#[test]
fn r30_nobody_else_waits_for_a_service_that_does_not_answer() {
    if skip_without_ssefs() {
        return;
    }
    let kms = Kms::start();
    let mut m = unmounted(&kms, &["threads=2"]);
    // Held for as long as the test wants: its time limit is a minute.
    m.ssefs(&["key", "create", "--alias", "ext", "--provider", &kms.uri(60)]).ok();
    m.mount();
    for i in 0..16 {
        fs::write(m.at(format!("cold{i}")), format!("content {i}")).unwrap();
    }
    fs::create_dir(m.at("own")).unwrap();
    set_xattr(m.at("own"), RULE, "AES256").unwrap();
    fs::write(m.at("own/before"), "mine").unwrap();
    m.remount();
    let decrypted = kms.calls("Decrypt");
    kms.mood(Mood::Held);
    std::thread::scope(|s| {
        let readers: Vec<_> = (0..16)
            .map(|i| {
                let path = m.at(format!("cold{i}"));
                s.spawn(move || match i % 4 {
                    0 => fs::OpenOptions::new().append(true).open(path).and_then(|mut f| f.write_all(b"!")),
                    1 => fs::metadata(&path).and_then(|_| File::options().write(true).open(&path)?.set_len(3)),
                    _ => fs::read(path).map(drop),
                })
            })
            .collect();
        assert!(eventually(|| kms.held() > 0), "the service was asked");
        // With both event threads, the committer and every lock free, this does not wait.
        for i in 0..50 {
            fs::write(m.at(format!("own/f{i}")), "other").unwrap();
        }
        File::open(m.at("own/f0")).unwrap().sync_all().unwrap();
        assert_eq!(fs::read_to_string(m.at("own/before")).unwrap(), "mine");
        assert_eq!(fs::metadata(m.at("cold0")).unwrap().len(), 9, "nor does stat of a file that waits");
        fs::remove_file(m.at("own/f1")).unwrap();
        assert_eq!(fs::read_dir(m.path()).unwrap().count(), 17);
        assert!(kms.held() > 0, "and all that while it had not answered");
        kms.release();
        for r in readers {
            r.join().unwrap().unwrap();
        }
    });
    assert_eq!(kms.calls("Decrypt"), decrypted + 1, "one asked for all");
    assert_eq!(fs::read_to_string(m.at("cold0")).unwrap(), "content 0!");
    assert_eq!(fs::read_to_string(m.at("cold1")).unwrap(), "con");
}

#[test]
fn r30_files_are_deleted_and_commits_go_on_while_a_service_is_silent_and_their_room_comes_back_later() {
    if skip_without_ssefs() {
        return;
    }
    let kms = Kms::start();
    let mut m = unmounted(&kms, &[]);
    m.ssefs(&["key", "create", "--alias", "ext", "--provider", &kms.uri(60)]).ok();
    m.mount();
    fs::write(m.at("large"), vec![7; 4 << 20]).unwrap();
    fs::create_dir(m.at("own")).unwrap();
    set_xattr(m.at("own"), RULE, "AES256").unwrap();
    let live = |m: &Mount| m.ssefs(&["bucket", "show", "b", "--json"]).json()["log_bytes"].as_u64().unwrap();
    m.remount();
    let before = live(&m);
    kms.mood(Mood::Held);
    fs::remove_file(m.at("large")).unwrap();
    fs::write(m.at("own/f"), "x").unwrap();
    File::open(m.at("own/f")).unwrap().sync_all().unwrap();
    m.ssefs(&["encryption", "put", "b", "AES256"]).ok();
    File::open(m.at("own/f")).unwrap().sync_all().unwrap();
    kms.release();
    let freed = || {
        fs::write(m.at("own/f"), "y").unwrap();
        File::open(m.at("own/f")).unwrap().sync_all().unwrap();
        m.ssefs(&["bucket", "compact", "b"]).ok();
        live(&m) + (3 << 20) < before
    };
    assert!(eventually(freed), "{before} {}", live(&m));
}

/// Reads a file through a handle that is open, past the kernel's pages.
fn again(f: &File) -> std::io::Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; 7];
    f.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

#[test]
fn r30_a_key_that_its_service_disables_cuts_off_open_files_and_lets_them_in_again() {
    if skip_without_ssefs() {
        return;
    }
    for (state, code) in [("Disabled", "KMS.DisabledException"), ("Gone", "KMS.NotFoundException")] {
        let kms = Kms::start();
        let m = mounted(&kms, &["service_check=0.2", "key_grace=86400"]);
        fs::write(m.at("f"), "content").unwrap();
        let open = File::options().read(true).write(true).open(m.at("f")).unwrap();
        assert_eq!(again(&open).unwrap(), b"content");
        kms.state(state);
        assert!(eventually(|| again(&open).is_err()), "an open handle goes on under a key that is {state}");
        refused(&m, again(&open), libc::EKEYREVOKED, &[code, "ext (mk-"]);
        refused(&m, File::open(m.at("f")), libc::EKEYREVOKED, &[code]);
        refused(&m, fs::write(m.at("new"), "x"), libc::EKEYREVOKED, &[code]);
        kms.state("Enabled");
        assert!(eventually(|| File::open(m.at("f")).is_ok()), "enabled again, and not let in");
        assert_eq!(fs::read_to_string(m.at("f")).unwrap(), "content");
        // And once more: what came back goes again.
        kms.state(state);
        assert!(eventually(|| File::open(m.at("f")).and_then(|f| again(&f)).is_err()));
        kms.state("Enabled");
        assert!(eventually(|| File::open(m.at("f")).is_ok()));
    }
}

#[test]
fn r30_a_service_that_stays_silent_cuts_off_after_the_time_of_grace_and_not_before() {
    if skip_without_ssefs() {
        return;
    }
    let mut kms = Kms::start();
    let mut m = mounted(&kms, &["service_check=0.2", "key_grace=86400"]);
    fs::write(m.at("f"), "content").unwrap();
    let open = File::open(m.at("f")).unwrap();
    let asked = kms.calls("DescribeKey");
    assert!(eventually(|| kms.calls("DescribeKey") > asked + 2), "it is asked each interval");
    kms.down();
    let failed = || {
        let told = m.ssefs(&["bucket", "show", "b", "--json"]).json();
        told["external_calls"].as_object().unwrap().values().any(|c| c["failed"].as_u64() > Some(0))
    };
    assert!(eventually(failed), "the mount has noticed");
    assert_eq!(again(&open).unwrap(), b"content", "within the grace it goes on");
    fs::write(m.at("new"), "content").unwrap();
    drop(open);
    kms.up();

    m.umount();
    let mut m = m.with_option("key_grace=0.5");
    let open = File::open(m.at("f")).unwrap();
    assert_eq!(again(&open).unwrap(), b"content");
    kms.down();
    assert!(eventually(|| again(&open).is_err()), "it goes on past the grace");
    refused(&m, again(&open), libc::ENOKEY, &["KMS.DependencyTimeoutException", "ext (mk-"]);
    kms.up();
    assert!(eventually(|| again(&open).is_ok()), "the same handle, when the service is back");
    assert_eq!(fs::read_to_string(m.at("new")).unwrap(), "content", "what was written within the grace is there");
    drop(open);
    m.umount();
}
