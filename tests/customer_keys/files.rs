//! One object and its key: what works with it, and what without.

use crate::mount::{self, Mount, errno, get_xattr, get_xattr_text, remove_xattr, set_xattr};
use crate::sys::{self, Map};
use crate::{KEY, UNLOCK, key, lock, method, put, refused, rows};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;

#[test]
fn r25_an_object_is_sealed_with_the_users_key_and_comes_back_with_it_alone() {
    let Some(mut m) = Mount::real("") else { return };
    let content = crate::tree::Dice::new(1).bytes(300_000);
    let f = put(&m, "f", &key(1), &content);
    assert_eq!(fs::read(&f).unwrap(), content);
    assert_eq!(method(&m, "f"), "SSE-C");
    assert_eq!(get_xattr_text(&f, "user.sse.customer-algorithm").unwrap(), "AES256");
    assert_eq!(get_xattr_text(&f, "user.sse.effective").unwrap(), "SSE-C request");
    assert_eq!(errno(get_xattr(&f, "user.sse.algorithm")), libc::ENODATA);
    for never in [KEY, UNLOCK] {
        assert_eq!(errno(get_xattr(&f, never)), libc::ENODATA, "a key is never given back");
    }
    let shown = m.show("f");
    assert_eq!((shown["method"].as_str(), shown["request"].as_str()), (Some("SSE-C"), Some("SSE-C")), "{shown}");
    m.remount();
    assert_eq!(errno(fs::read(&f)), libc::ENOKEY);
    // Base64 is the same key.
    use base64ct::{Base64, Encoding};
    set_xattr(&f, UNLOCK, Base64::encode(&key(1), &mut [0; 44]).unwrap()).unwrap();
    assert_eq!(fs::read(&f).unwrap(), content);
    fs::write(&f, b"again").unwrap();
    assert_eq!((fs::read(&f).unwrap(), method(&m, "f")), (b"again".to_vec(), "SSE-C".into()));
    m.remount();
    set_xattr(&f, UNLOCK, key(1)).unwrap();
    assert_eq!(fs::read(&f).unwrap(), b"again");
}

#[test]
fn r26_the_key_is_nowhere_in_the_store_and_two_objects_have_other_salts_and_verifiers() {
    let Some(mut m) = Mount::real("AES256") else { return };
    let marker = b"a content that must not be found anywhere".repeat(200);
    put(&m, "a", &key(1), &marker);
    put(&m, "b", &key(1), &marker);
    fs::create_dir(m.at("d")).unwrap();
    set_xattr(m.at("d"), KEY, key(1)).unwrap();
    fs::write(m.at("d/c"), &marker).unwrap();
    m.umount();
    let sealed: Vec<(Vec<u8>, Vec<u8>, Vec<u8>)> =
        rows(&m, "SELECT customer_salt, customer_verifier, wrapped FROM seal WHERE method = 3", |r| {
            Ok((r.get(0)?, r.get(1)?, r.get(2)?))
        });
    assert_eq!(sealed.len(), 3);
    for (i, a) in sealed.iter().enumerate() {
        assert_eq!((a.0.len(), a.1.len()), (32, 32));
        assert!(sealed[i + 1..].iter().all(|b| a.0 != b.0 && a.1 != b.1 && a.2 != b.2));
    }
    let mut files = m.segments();
    files.extend(["catalog.db", "catalog.db-wal"].map(|n| m.folder().join(n)));
    for file in files {
        let bytes = fs::read(&file).unwrap_or_default();
        for needle in [&key(1)[..], &marker[..40]] {
            assert!(!bytes.windows(needle.len()).any(|w| w == needle), "{}", file.display());
        }
    }
}

#[test]
fn r27_r30_without_its_key_an_object_is_listed_and_moved_and_deleted_but_neither_read_nor_changed() {
    let Some(mut m) = Mount::real("") else { return };
    let content = vec![7u8; 50_000];
    let f = put(&m, "f", &key(1), &content);
    put(&m, "gone", &key(1), &content);
    let plain = m.at("plain");
    fs::write(&plain, b"plain").unwrap();
    m.remount();
    // Root is nobody here.
    refused(&m, File::open(&f), libc::ENOKEY, &["customer key", "f", "object unlock"]);
    for flags in [libc::O_RDWR, libc::O_WRONLY, libc::O_WRONLY | libc::O_TRUNC, libc::O_RDONLY | libc::O_TRUNC] {
        assert_eq!(errno(sys::open(&f, flags, 0)), libc::ENOKEY, "{flags:o}");
    }
    for len in [0, 10, 50_000, 60_000] {
        assert_eq!(errno(sys::truncate(&f, len)), libc::ENOKEY, "truncate to {len}");
    }
    assert_eq!(errno(set_xattr(&f, "user.sse.algorithm", "AES256")), libc::ENOKEY, "a conversion");
    assert_eq!(errno(set_xattr(&f, KEY, key(2))), libc::ENOKEY, "another key over the one that is not there");
    assert_eq!(errno(remove_xattr(&f, KEY)), libc::ENOKEY);
    assert_eq!(errno(fs::copy(&f, m.at("copy"))), libc::ENOKEY);
    // What needs no key.
    assert_eq!(fs::metadata(&f).unwrap().len(), 50_000);
    assert_eq!((method(&m, "f"), m.show("f")["method"].as_str()), ("SSE-C".into(), Some("SSE-C")));
    assert_eq!(get_xattr_text(&f, "user.sse.customer-algorithm").unwrap(), "AES256");
    assert_eq!(fs::read_dir(m.path()).unwrap().filter(|e| e.as_ref().unwrap().file_name() != "copy").count(), 3);
    set_xattr(&f, "user.mine", "x").unwrap();
    sys::chmod(&f, 0o640).unwrap();
    sys::chown(&f, 5, 6).unwrap();
    fs::create_dir(m.at("d")).unwrap();
    fs::rename(&f, m.at("d/g")).unwrap();
    fs::hard_link(m.at("d/g"), m.at("h")).unwrap();
    sys::rename2(m.at("h"), m.at("plain"), libc::RENAME_EXCHANGE).unwrap();
    assert_eq!((fs::read(m.at("h")).unwrap(), errno(fs::read(&plain))), (b"plain".to_vec(), libc::ENOKEY));
    fs::write(m.at("new"), b"new").unwrap();
    fs::rename(m.at("new"), m.at("gone")).unwrap();
    assert_eq!(fs::read(m.at("gone")).unwrap(), b"new", "renamed over");
    // A hard link is the same object, under either name.
    set_xattr(&plain, UNLOCK, key(1)).unwrap();
    assert_eq!(fs::read(m.at("d/g")).unwrap(), content);
    lock(&m, "d/g");
    assert_eq!(errno(fs::read(&plain)), libc::ENOKEY);
    for name in ["plain", "d/g"] {
        fs::remove_file(m.at(name)).unwrap();
    }
    fs::remove_dir(m.at("d")).unwrap();
}

#[test]
fn r30_a_wrong_key_is_told_from_a_missing_one_and_from_damage() {
    let Some(mut m) = Mount::real("") else { return };
    let f = put(&m, "f", &key(1), &[9; 20_000]);
    m.remount();
    refused(&m, set_xattr(&f, UNLOCK, key(2)), libc::EKEYREJECTED, &["AccessDenied", "f"]);
    assert_eq!(errno(fs::read(&f)), libc::ENOKEY);
    // Of all below a directory, each file tells.
    set_xattr(m.path(), UNLOCK, key(2)).unwrap();
    refused(&m, File::open(&f), libc::EKEYREJECTED, &["AccessDenied", "f"]);
    set_xattr(m.path(), UNLOCK, key(1)).unwrap();
    assert_eq!(fs::read(&f).unwrap(), [9; 20_000]);
    m.umount();
    // A byte of the content in the log.
    let segment = &m.segments()[0];
    let raw = fs::read(segment).unwrap();
    let file = OpenOptions::new().write(true).open(segment).unwrap();
    file.write_all_at(&[raw[9000] ^ 1], 9000).unwrap();
    m.mount();
    m.no_check_at_end();
    set_xattr(&f, UNLOCK, key(1)).unwrap();
    refused(&m, fs::read(&f), libc::EBADMSG, &["BadDigest"]);
}

#[test]
fn r64_a_salt_a_verifier_or_a_wrapped_key_that_was_altered_is_noticed() {
    let Some(mut m) = Mount::real("") else { return };
    put(&m, "f", &key(1), b"content");
    put(&m, "g", &key(2), b"content");
    m.umount();
    let catalog = m.folder().join("catalog.db");
    let good = fs::read(&catalog).unwrap();
    for change in [
        "UPDATE seal SET customer_salt = zeroblob(32)",
        "UPDATE seal SET customer_verifier = zeroblob(32)",
        "UPDATE seal SET customer_salt = NULL, customer_verifier = NULL",
        "UPDATE seal SET customer_salt = zeroblob(31)",
        // The other object's, whose key the attacker has.
        "UPDATE seal SET (customer_salt, customer_verifier, wrapped) =
             (SELECT customer_salt, customer_verifier, wrapped FROM seal s2 WHERE s2.ino > seal.ino)
         WHERE ino = (SELECT min(ino) FROM seal)",
        "UPDATE request SET rule = (SELECT rule FROM request r2 WHERE r2.ino != request.ino)",
        "UPDATE seal SET method = 1",
    ] {
        let db = rusqlite::Connection::open(&catalog).unwrap();
        assert!(db.execute(change, []).unwrap() > 0, "{change}");
        drop(db);
        m.mount();
        let unlocked = set_xattr(m.at("f"), UNLOCK, key(1)).and_then(|()| fs::read(m.at("f")));
        let no = errno(unlocked);
        assert!([libc::EBADMSG, libc::EKEYREJECTED, libc::EINVAL].contains(&no), "{change}: {no}");
        assert_ne!(m.ssefs(&["check", "b"]).code, Some(0), "{change}");
        m.umount();
        fs::write(&catalog, &good).unwrap();
    }
    m.mount();
    set_xattr(m.at("f"), UNLOCK, key(1)).unwrap();
    assert_eq!(fs::read(m.at("f")).unwrap(), b"content");
}

#[test]
fn r72_files_with_keys_of_their_own_live_on_one_mount() {
    let Some(mut m) = Mount::real("AES256") else { return };
    for n in 1..=4 {
        put(&m, &format!("f{n}"), &key(n), format!("content {n}").as_bytes());
    }
    fs::write(m.at("other"), "by the rule").unwrap();
    m.remount();
    set_xattr(m.at("f1"), UNLOCK, key(1)).unwrap();
    set_xattr(m.at("f3"), UNLOCK, key(3)).unwrap();
    assert_eq!(fs::read(m.at("f1")).unwrap(), b"content 1");
    assert_eq!(fs::read(m.at("f3")).unwrap(), b"content 3");
    for name in ["f2", "f4"] {
        assert_eq!(errno(fs::read(m.at(name))), libc::ENOKEY, "{name}");
    }
    assert_eq!((method(&m, "other"), fs::read(m.at("other")).unwrap()), ("AES256".into(), b"by the rule".to_vec()));
    // Between an unlocked one and a locked one nothing is copied, between two unlocked ones it is.
    let from = File::open(m.at("f1")).unwrap();
    assert_eq!(errno(OpenOptions::new().write(true).open(m.at("f2"))), libc::ENOKEY);
    let to = OpenOptions::new().write(true).open(m.at("f3")).unwrap();
    assert_eq!(sys::copy_range(&from, 0, &to, 0, 9).unwrap(), 9);
    lock(&m, "f3");
    assert_eq!(errno(sys::copy_range(&from, 0, &to, 0, 9)), libc::ENOKEY);
    lock(&m, "f1");
    set_xattr(m.at("f3"), UNLOCK, key(3)).unwrap();
    assert_eq!(errno(sys::copy_range(&from, 0, &to, 0, 9)), libc::ENOKEY);
    assert_eq!(fs::read(m.at("f3")).unwrap(), b"content 1");
}

#[test]
fn converting_to_and_from_a_customer_key_keeps_every_byte() {
    let Some(mut m) = Mount::real("AES256") else { return };
    let content = crate::tree::Dice::new(5).bytes(2_500_000);
    let f = m.at("f");
    fs::write(&f, &content).unwrap();
    assert_eq!(method(&m, "f"), "AES256");
    set_xattr(&f, KEY, key(1)).unwrap();
    assert_eq!((method(&m, "f"), fs::read(&f).unwrap() == content), ("SSE-C".into(), true));
    m.remount();
    assert_eq!(errno(fs::read(&f)), libc::ENOKEY);
    set_xattr(&f, UNLOCK, key(1)).unwrap();
    assert!(fs::read(&f).unwrap() == content);
    set_xattr(&f, "user.sse.algorithm", "KMS").unwrap();
    assert_eq!((method(&m, "f"), fs::read(&f).unwrap() == content), ("KMS".into(), true));
    m.remount();
    assert!(fs::read(&f).unwrap() == content);
    // Ending the request leaves the content as it is, until the next PUT.
    set_xattr(&f, KEY, key(2)).unwrap();
    remove_xattr(&f, KEY).unwrap();
    assert_eq!((method(&m, "f"), fs::read(&f).unwrap() == content), ("SSE-C".into(), true));
    assert_eq!(get_xattr_text(&f, "user.sse.effective").unwrap(), "AES256 bucket");
    OpenOptions::new().write(true).open(&f).unwrap().write_all_at(b"part", 10).unwrap();
    assert_eq!(method(&m, "f"), "SSE-C", "no rule takes it from under the user's key");
    fs::write(&f, b"new").unwrap();
    assert_eq!((method(&m, "f"), errno(remove_xattr(&f, KEY))), ("AES256".into(), libc::ENODATA));
    m.remount();
    assert_eq!(fs::read(&f).unwrap(), b"new");
}

#[test]
fn another_key_for_an_object_wraps_its_data_key_anew_and_rewrites_nothing() {
    let Some(mut m) = Mount::real("") else { return };
    let content = crate::tree::Dice::new(6).bytes(3_000_000);
    let f = put(&m, "f", &key(1), &content);
    m.remount();
    let before: Vec<(String, Vec<u8>)> =
        m.segments().iter().map(|p| (p.display().to_string(), fs::read(p).unwrap())).collect();
    set_xattr(&f, UNLOCK, key(1)).unwrap();
    let open = File::open(&f).unwrap();
    set_xattr(&f, KEY, key(2)).unwrap();
    // What is open goes on for who has changed the key.
    let mut some = [0; 100];
    open.read_at(&mut some, 1_000_000).unwrap();
    assert_eq!(some[..], content[1_000_000..1_000_100]);
    drop(open);
    m.umount();
    for (name, bytes) in &before {
        let now = fs::read(name).unwrap();
        assert!(now.len() >= bytes.len() && now[..bytes.len()] == bytes[..], "{name} was changed");
    }
    let size = |m: &Mount| m.segments().iter().map(|p| fs::metadata(p).unwrap().len()).sum::<u64>();
    let grown = size(&m) - before.iter().map(|(_, b)| b.len() as u64).sum::<u64>();
    assert!(grown < 100_000, "{grown} bytes were written");
    m.mount();
    assert_eq!(errno(set_xattr(&f, UNLOCK, key(1))), libc::EKEYREJECTED);
    set_xattr(&f, UNLOCK, key(2)).unwrap();
    assert!(fs::read(&f).unwrap() == content);
    // And what is written then goes on under the same PUT.
    OpenOptions::new().write(true).open(&f).unwrap().write_all_at(b"x", 5).unwrap();
    m.remount();
    set_xattr(&f, UNLOCK, key(2)).unwrap();
    assert!(fs::read(&f).unwrap()[6..] == content[6..]);
}

#[test]
fn a_mapping_of_an_unlocked_object_reads_and_writes() {
    let Some(mut m) = Mount::real("") else { return };
    let f = put(&m, "f", &key(1), &[1; 10_000]);
    let file = OpenOptions::new().read(true).write(true).open(&f).unwrap();
    let mut map = Map::new(&file, 10_000, libc::MAP_SHARED).unwrap();
    assert_eq!(map.byte(9000), 1);
    map.put(9000, &[2]);
    map.sync().unwrap();
    drop((map, file));
    m.remount();
    set_xattr(&f, UNLOCK, key(1)).unwrap();
    assert_eq!(fs::read(&f).unwrap()[8999..9001], [1, 2]);
    let _ = mount::list_xattr(&f).unwrap();
}
