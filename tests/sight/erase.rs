//! Row 77: no copy of an erased object's wrapped key is left, and what is left says so.

use crate::mount::{BUCKET, Mount, errno, get_xattr_text};
use crate::{content, coverage, files_below, json, objects, put, show, sync};
use serde_json::Value;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::process::Stdio;

/// The wrapped data key of an object, as the catalog has it.
fn wrapped(m: &Mount, name: &str) -> Vec<u8> {
    sync(m);
    // A commit: an fsync alone leaves the row in the log.
    m.ssefs(&["coverage", BUCKET]);
    let seal = show(m, name)["object"].as_i64().unwrap();
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let db = rusqlite::Connection::open_with_flags(m.folder().join("catalog.db"), flags).unwrap();
    let key: Vec<u8> = db.query_row("SELECT wrapped FROM seal WHERE ino = ?1", [seal], |r| r.get(0)).unwrap();
    assert_eq!(key.len(), 113);
    key
}

/// Where a part of 16 bytes of the key, but for its first byte, lies in store and config.
fn found(m: &Mount, key: &[u8]) -> Vec<String> {
    let mut all = Vec::new();
    files_below(m.store(), &mut all);
    files_below(&m.config(), &mut all);
    let mut out = Vec::new();
    for path in all {
        let Ok(bytes) = fs::read(&path) else { continue };
        for part in key[1..].chunks_exact(16) {
            let hit = bytes.windows(16).position(|w| w[0] == part[0] && w == part);
            out.extend(hit.map(|at| format!("{} at {at}", path.display())));
        }
    }
    out
}

fn erase(m: &Mount, names: &[&str]) -> Value {
    let paths: Vec<String> = names.iter().map(|n| m.at(n).to_str().unwrap().to_owned()).collect();
    let args: Vec<&str> = ["object", "erase"].into_iter().chain(paths.iter().map(String::as_str)).collect();
    json(m, 0, &args)
}

/// Every kind of record: a new file that an fsync put into an intent, writes over it, a commit, a move, a renewed KEK.
fn with_history(m: &Mount, name: &str) -> Vec<Vec<u8>> {
    let mut f = File::options().create(true).truncate(true).read(true).write(true).open(m.at(name)).unwrap();
    let want = content(3, 3 << 20);
    std::io::Write::write_all(&mut f, &want).unwrap();
    f.sync_all().unwrap();
    let mut keys = vec![wrapped(m, name)];
    for i in 0..20 {
        f.write_all_at(&[i as u8; 4096], i * 100_000).unwrap();
        f.sync_all().unwrap();
    }
    m.ssefs(&["bucket", "compact", BUCKET]).ok();
    m.ssefs(&["key", "rewrap", BUCKET, "--renew"]).ok();
    keys.push(wrapped(m, name));
    // An earlier content of the same file, with a key of its own.
    m.ssefs(&["object", "convert", m.at(name).to_str().unwrap(), "--new-keys"]).ok();
    keys.push(wrapped(m, name));
    f.write_all_at(b"the last", 5).unwrap();
    f.sync_all().unwrap();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 3);
    keys
}

#[test]
fn r77_no_part_of_an_erased_objects_wrapped_keys_is_left_in_the_store() {
    let Some(mut m) = Mount::real("AES256") else { return };
    for i in 0..50 {
        put(&m, &format!("f{i}"), content(i, 10_000));
    }
    let keys = with_history(&m, "secret");
    for key in &keys {
        assert!(found(&m, key).iter().any(|f| f.contains(".seg")), "the test can find it in the log");
    }
    assert!(found(&m, &keys[0]).len() + found(&m, &keys[1]).len() + found(&m, &keys[2]).len() > 20, "many copies");
    let other = wrapped(&m, "f7");
    let mut open = File::open(m.at("secret")).unwrap();
    open.read_exact(&mut [0; 4096]).unwrap();
    let receipt = erase(&m, &["secret"]);
    assert_eq!((&receipt["complete"], &receipt["objects_erased"]), (&true.into(), &1.into()), "{receipt}");
    let o = &receipt["objects"][0];
    assert_eq!((&o["method"], &o["bytes"]), (&"AES256".into(), &(3u64 << 20).into()), "{receipt}");
    assert!(o["path"].as_str().unwrap().ends_with("secret") && o["seal_id"].as_str().unwrap().len() == 32, "{receipt}");
    assert!(receipt["date"].as_str().unwrap().ends_with('Z') && !receipt["not_reached"].as_array().unwrap().is_empty());
    for key in &keys {
        assert_eq!(found(&m, key), Vec::<String>::new());
    }
    assert!(!found(&m, &other).is_empty(), "of nothing else");
    // It is there and says what it is; what is open has no pages of it.
    assert_eq!(errno(File::open(m.at("secret"))), libc::EKEYREVOKED);
    let words = get_xattr_text(m.path(), "user.sse.last-error").unwrap();
    assert!(words.contains("erased") && words.contains(receipt["receipt"].as_str().unwrap()), "{words}");
    let mut page = [0; 4096];
    assert_eq!(errno(open.read_exact_at(&mut page, 0)), libc::EKEYREVOKED);
    drop(open);
    assert_eq!(fs::metadata(m.at("secret")).unwrap().len(), 3 << 20);
    let shown = show(&m, "secret");
    assert_eq!(shown["method"], "erased", "{shown}");
    let c = coverage(&m, 0);
    assert_eq!((objects(&c, "erased"), objects(&c, "AES256"), &c["erased_objects"]), (1, 50, &1.into()), "{c}");
    for i in 0..50 {
        assert!(fs::read(m.at(format!("f{i}"))).unwrap() == content(i, 10_000), "f{i}");
    }
    m.ssefs(&["check", BUCKET, "--read-data"]).ok();
    // After a crash and a remount it is the same; it can be renamed, written anew and deleted.
    m.kill9();
    m.mount();
    for key in &keys {
        assert_eq!(found(&m, key), Vec::<String>::new(), "after a crash");
    }
    assert_eq!(errno(File::open(m.at("secret"))), libc::EKEYREVOKED);
    fs::rename(m.at("secret"), m.at("was")).unwrap();
    assert_eq!(errno(File::options().append(true).open(m.at("was"))), libc::EKEYREVOKED);
    fs::write(m.at("was"), "new content").unwrap();
    assert_eq!(fs::read(m.at("was")).unwrap(), b"new content");
    assert_eq!(show(&m, "was")["method"], "AES256");
    m.ssefs(&["object", "erase", m.at("f1").to_str().unwrap()]).ok();
    fs::remove_file(m.at("f1")).unwrap();
    m.remount();
}

#[test]
fn r77_objects_under_customer_keys_are_erased_and_do_not_hide_others_in_the_log() {
    let Some(mut m) = Mount::real("AES256") else { return };
    for name in ["own", "kept"] {
        File::create(m.at(name)).unwrap();
        crate::mount::set_xattr(m.at(name), "user.sse.customer-key", [name.len() as u8; 32]).unwrap();
    }
    put(&m, "own", content(1, 50_000));
    put(&m, "kept", content(2, 50_000));
    put(&m, "managed", content(3, 50_000));
    let keys = [wrapped(&m, "own"), wrapped(&m, "managed")];
    m.remount();
    // Locked: what is to be destroyed need not be read.
    let receipt = erase(&m, &["own", "managed"]);
    assert_eq!((&receipt["complete"], &receipt["objects_erased"]), (&true.into(), &2.into()), "{receipt}");
    keys.iter().for_each(|key| assert_eq!(found(&m, key), Vec::<String>::new()));
    crate::mount::set_xattr(m.at("kept"), "user.sse.unlock", [4; 32]).unwrap();
    assert!(fs::read(m.at("kept")).unwrap() == content(2, 50_000));
    // The request of the erased one stays, so its key is still the one that the next PUT needs; it opens nothing.
    crate::mount::set_xattr(m.at("own"), "user.sse.unlock", [3; 32]).unwrap();
    assert_eq!(errno(File::open(m.at("own"))), libc::EKEYREVOKED);
}

#[test]
fn r77_a_directory_is_erased_without_a_mount_and_the_receipt_is_text_too() {
    let Some(mut m) = Mount::real("") else { return };
    fs::create_dir_all(m.at("d/e")).unwrap();
    let marker = b"PLAIN-CONTENT-THAT-IS-ERASED-5512";
    put(&m, "d/plain", marker.repeat(1000));
    crate::mount::set_xattr(m.path(), crate::RULE, "KMS").unwrap();
    put(&m, "d/a", content(1, 5000));
    put(&m, "d/e/b", content(2, 2 << 20));
    put(&m, "keep", content(3, 5000));
    fs::hard_link(m.at("d/a"), m.at("linked")).unwrap();
    let keys = [wrapped(&m, "d/a"), wrapped(&m, "d/e/b")];
    m.umount();
    m.ssefs(&["object", "erase", "b:d"]).fails_saying(&["is a directory"]);
    let text = m.ssefs(&["object", "erase", "-r", "b:d"]).ok();
    for words in ["ERASURE RECEIPT", "complete      yes", "d/e/b (inode ", "not reached "] {
        assert!(text.contains(words), "{words}: {text}");
    }
    for key in &keys {
        assert_eq!(found(&m, key), Vec::<String>::new());
    }
    let mut all = Vec::new();
    files_below(m.store(), &mut all);
    let left = all.iter().filter(|p| fs::read(p).unwrap().windows(marker.len()).any(|w| w == marker));
    assert_eq!(left.count(), 0, "plain content is overwritten");
    m.mount();
    assert_eq!(errno(fs::read(m.at("linked"))), libc::EKEYREVOKED, "by every name");
    assert!(fs::read(m.at("keep")).unwrap() == content(3, 5000));
    fs::remove_dir_all(m.at("d")).unwrap();
}

/// An erasure that was acknowledged is complete; one that was cut off says so, and goes on.
#[test]
fn r77_an_erasure_that_is_killed_at_any_moment_goes_on() {
    let Some(mut m) = Mount::real("AES256") else { return };
    let (mut cut_off, mut erased) = (0, 0);
    for delay in [0, 2, 4, 7, 11, 16, 25, 40] {
        let d = format!("d{delay}");
        fs::create_dir(m.at(&d)).unwrap();
        for i in 0..150 {
            put(&m, &format!("{d}/f{i}"), content(i, 4000));
        }
        let keys = [wrapped(&m, &format!("{d}/f0")), wrapped(&m, &format!("{d}/f149"))];
        let dir = m.at(&d);
        let args = ["object", "erase", "-r", dir.to_str().unwrap()];
        let mut c = m.command(&args);
        let mut child = c.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(delay));
        m.kill9();
        let acknowledged = child.wait().unwrap().success();
        m.mount();
        let unfinished = json(&m, 0, &["bucket", "show", BUCKET])["unfinished"].as_array().unwrap().len();
        let resumed = m.ssefs(&["object", "erase", "--resume", "b:", "--json"]);
        match resumed.code {
            Some(0) => {
                assert!(!acknowledged && unfinished == 1, "what was acknowledged is complete");
                cut_off += 1;
                let receipt: Value = serde_json::from_str(&resumed.stdout).unwrap();
                assert_eq!(receipt["complete"], true, "{receipt}");
            }
            _ => assert!(resumed.stderr.contains("no erasure was cut off") && unfinished == 0, "{resumed:?}"),
        }
        // Before the first commit of it nothing was done; then it begins anew.
        if fs::read(m.at(format!("{d}/f149"))).is_ok() {
            assert!(!acknowledged);
            assert_eq!(json(&m, 0, &args)["complete"], true);
        }
        for key in &keys {
            assert_eq!(found(&m, key), Vec::<String>::new(), "killed after {delay} ms");
        }
        m.ssefs(&["check", BUCKET]).ok();
        erased += 150;
        assert_eq!(objects(&coverage(&m, 0), "erased"), erased);
    }
    println!("{cut_off} erasures were cut off");
}

#[test]
fn r77_a_whole_bucket_is_erased() {
    let Some(mut m) = Mount::real("KMS") else { return };
    put(&m, "a", content(1, 50_000));
    let key = wrapped(&m, "a");
    m.ssefs(&["object", "erase", "--bucket", BUCKET]).fails_saying(&["is mounted at"]);
    m.umount();
    m.no_check_at_end();
    let receipt = json(&m, 0, &["object", "erase", "--bucket", BUCKET]);
    assert_eq!((&receipt["complete"], &receipt["objects_erased"]), (&true.into(), &1.into()), "{receipt}");
    assert_eq!(found(&m, &key), Vec::<String>::new());
    assert!(!m.folder().exists());
}
