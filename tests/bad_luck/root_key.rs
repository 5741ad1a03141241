//! The root key missing, unreadable, malformed or another one: the bucket stays closed, the message names the key
//! that is needed, and no new key ever takes the place of a lost one.

use crate::exit;
use crate::mount::{Mount, Ran};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// A bucket with a file in it, unmounted, and where its root key lies.
fn closed() -> Option<(Mount, PathBuf)> {
    let mut m = Mount::real("AES256")?;
    fs::write(m.at("f"), "content").unwrap();
    m.umount();
    let key = m.config().join("root.key");
    Some((m, key))
}

/// The id of a root key that a message names: 16 hex digits.
fn ids(r: &Ran) -> Vec<String> {
    let words = r.stderr.split(|c: char| !c.is_ascii_alphanumeric());
    words.filter(|w| w.len() == 16 && w.chars().all(|c| c.is_ascii_hexdigit())).map(str::to_string).collect()
}

fn still_good(mut m: Mount) {
    m.mount();
    assert_eq!(fs::read(m.at("f")).unwrap(), b"content");
}

#[test]
fn a_missing_or_wrong_root_key_is_named_by_the_id_that_is_needed() {
    let Some((m, key)) = closed() else { return };
    let good = fs::read_to_string(&key).unwrap();
    fs::remove_file(&key).unwrap();
    let missing = m.try_mount();
    missing.fails_saying(&[key.to_str().unwrap()]);
    assert_eq!(missing.code, exit::KEY);
    let needed = ids(&missing);
    assert_eq!(needed.len(), 1, "the id that is needed: {missing:?}");
    assert!(!key.exists(), "a new root key beside a keyring that needs the old one");
    // --create does not make a bucket anew under a name that the keyring knows.
    let create = m.ssefs(&["mount", "b", m.path().to_str().unwrap(), "--create"]);
    assert_eq!(create.code, exit::KEY);
    assert!(!key.exists());
    let (head, digits) = good.trim_end().split_at(good.trim_end().len() - 64);
    let other: String = digits.chars().map(|c| if c == '0' { '1' } else { '0' }).collect();
    fs::write(&key, format!("{head}{other}\n")).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let wrong = m.try_mount();
    wrong.fails_saying(&[key.to_str().unwrap(), &needed[0]]);
    assert_eq!(wrong.code, exit::KEY);
    assert!(ids(&wrong).len() >= 2, "and the id that was found: {wrong:?}");
    for r in [&missing, &wrong] {
        assert!(!r.stderr.contains(digits) && !r.stderr.contains(&other), "a message with a key in it");
    }
    fs::write(&key, good).unwrap();
    still_good(m);
}

#[test]
fn a_root_key_that_is_none_or_open_to_others_is_refused() {
    let Some((m, key)) = closed() else { return };
    let good = fs::read_to_string(&key).unwrap();
    let cut = &good[..good.len() - 10];
    let long = good.trim_end().to_string() + "00\n";
    let odd = good.replace("root-key-1", "root-key-9");
    for bad in ["", "\n", "nonsense", cut, &long, &odd, "\0\0\0\0"] {
        fs::write(&key, bad).unwrap();
        let r = m.try_mount();
        r.fails_saying(&[key.to_str().unwrap()]);
        assert_eq!(r.code, exit::KEY, "{bad:?}");
        assert_eq!(fs::read_to_string(&key).unwrap(), bad, "it is left as it was");
    }
    fs::remove_file(&key).unwrap();
    fs::create_dir(&key).unwrap();
    m.try_mount().fails_saying(&[key.to_str().unwrap()]);
    fs::remove_dir(&key).unwrap();
    fs::write(&key, &good).unwrap();
    for mode in [0o644, 0o660, 0o606] {
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        let r = m.try_mount();
        r.fails_saying(&[key.to_str().unwrap(), "chmod 600"]);
        assert_eq!(r.code, exit::KEY);
    }
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    still_good(m);
}

#[test]
fn a_keyring_missing_or_damaged_is_named_and_never_replaced() {
    let Some((m, _)) = closed() else { return };
    let ring = m.config().join("keyring.db");
    let good = fs::read(&ring).unwrap();
    fs::remove_file(&ring).unwrap();
    m.try_mount().fails_saying(&["keyring"]);
    m.ssefs(&["mount", "b", m.path().to_str().unwrap(), "--create"]).fails_saying(&["keyring"]);
    let _ = fs::remove_file(&ring);
    for bad in [vec![], good[..good.len() / 2].to_vec(), vec![0x55; good.len()]] {
        fs::write(&ring, &bad).unwrap();
        m.try_mount().fails_saying(&["keyring"]);
    }
    fs::write(&ring, good).unwrap();
    fs::set_permissions(&ring, fs::Permissions::from_mode(0o600)).unwrap();
    still_good(m);
}
