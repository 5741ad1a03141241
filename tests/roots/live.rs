//! A change of the root key beside others that have the keyring open: handles in this process, and live mounts.

use crate::cli_support::Sandbox;
use crate::{LITTLE, PASSPHRASE, Ring, passphrase, secret_file};
use ssefs::crypto::derive;
use ssefs::crypto::secret::RootKey;
use ssefs::crypto::wrap;
use ssefs::keys::root::{NewRoot, NoSteps, Steps};
use ssefs::keys::{KeyError, KeyService, Keyring};
use std::fs;

fn to_passphrase() -> NewRoot {
    NewRoot::Passphrase { passphrase: passphrase(PASSPHRASE), memory_kib: LITTLE }
}

/// Tells one other handle.
struct Tell<'a>(&'a Keyring);

impl Steps for Tell<'_> {
    fn tell(&mut self, id: &[u8; 8], sealed: &[u8]) {
        self.0.accept_root(id, sealed).unwrap();
    }
}

#[test]
fn who_was_told_goes_on_with_the_new_key() {
    let ring = Ring::made();
    let (a, b) = (ring.open().unwrap(), ring.open().unwrap());
    let before = b.generation().unwrap();
    let changed = a.change_root(to_passphrase(), false, &mut Tell(&b)).unwrap();
    assert_eq!(b.generation().unwrap(), before + 1);
    assert_eq!(b.root_id(), changed.after);
    ring.is_whole(&b);
    // And it can change the keyring.
    b.create_key(Some("later"), "").unwrap();
    assert!(a.resolve("later").is_ok());
}

#[test]
fn who_was_told_twice_and_asked_nothing_between_goes_on_too() {
    let ring = Ring::made();
    let (a, b) = (ring.open().unwrap(), ring.open().unwrap());
    for _ in 0..3 {
        a.change_root(to_passphrase(), false, &mut Tell(&b)).unwrap();
    }
    ring.is_whole(&b);
    assert_eq!(a.root_id(), b.root_id());
}

#[test]
fn who_was_not_told_finds_a_key_in_a_file_and_otherwise_says_what_happened() {
    let ring = Ring::made();
    let (a, b) = (ring.open().unwrap(), ring.open().unwrap());
    a.change_root(NewRoot::File(Some(ring.beside("stick.key"))), false, &mut NoSteps).unwrap();
    ring.is_whole(&b);
    let changed = a.change_root(to_passphrase(), false, &mut NoSteps).unwrap();
    let cmk = a.resolve("mine").unwrap();
    for error in [b.resolve("mine").map(drop), b.create_key(None, "").map(drop), b.rotate(&cmk).map(drop)] {
        let error = error.unwrap_err();
        let words = error.to_string();
        assert!(matches!(error, KeyError::RootChanged { .. }), "not altered, not damaged: {words}");
        assert!(words.contains(&changed.after) && words.contains("mount again"), "{words}");
    }
    // Told late, it goes on.
    let mut tell = Tell(&b);
    let next = ring.open().unwrap();
    drop(next);
    assert!(b.accept_root(&[1; 8], &[0; 113]).is_err());
    // `b` has an older key than the one in force: what is wrapped under the one in force does not open there.
    let third = a.change_root(NewRoot::File(None), false, &mut NoSteps).unwrap();
    ring.is_whole(&b);
    assert_eq!(b.root_id(), third.after, "a file again: found by itself");
    a.change_root(to_passphrase(), false, &mut tell).unwrap();
    ring.is_whole(&b);
}

#[test]
fn a_next_key_from_somebody_without_the_present_one_is_refused() {
    let ring = Ring::made();
    let keys = ring.open().unwrap();
    let (forger, next) = (RootKey::random().unwrap(), RootKey::random().unwrap());
    let id = derive::root_id(&next);
    let sealed = wrap::wrap_next_root(&forger, &id, &next).unwrap();
    assert!(matches!(keys.accept_root(&id, &sealed), Err(KeyError::Unwrap { .. })));
    ring.is_whole(&keys);
}

#[test]
fn live_mounts_are_told_of_a_new_root_key_and_go_on() {
    let s = Sandbox::new();
    let (a, b) = (s.mounted("a", "mnt-a"), s.mounted("b", "mnt-b"));
    let file = secret_file(&s.path("phrase"), "correct horse battery\n");
    s.ssefs(&["key", "root", "change", "--to", "passphrase", "--new-passphrase-file", &file, "--kdf-memory", "1M"])
        .ok();
    assert!(!s.path("config/root.key").exists());
    let key = ["key", "create", "--alias", "later", "--passphrase-file", &file];
    s.ssefs(&key).ok();
    for (bucket, dir) in [("a", &a), ("b", &b)] {
        fs::write(dir.join("before"), "before").unwrap();
        // A key that no mount had unwrapped before: it takes the new root key to use it.
        s.ssefs(&["encryption", "put", bucket, "KMS:later"]).ok();
        fs::write(dir.join("after"), "after").unwrap();
        assert_eq!(fs::read_to_string(dir.join("after")).unwrap(), "after");
        let shown = s.ssefs(&["object", "show", dir.join("after").to_str().unwrap()]).ok();
        assert!(shown.contains("KMS"), "{shown}");
        s.ssefs(&["umount", dir.to_str().unwrap()]).ok();
        s.ssefs(&["check", bucket, "--read-data", "--passphrase-file", &file]).ok();
    }
}

#[test]
fn a_mount_that_is_not_told_says_so_and_keeps_what_it_has() {
    let s = Sandbox::new();
    let dir = s.mounted("a", "mnt");
    fs::write(dir.join("before"), "before").unwrap();
    // The change is made by somebody who does not look for mounts.
    let config = s.path("config");
    let keys = Keyring::open(&config, ssefs::keys::RootSource::in_config(&config)).unwrap();
    keys.create_key(Some("later"), "").unwrap();
    keys.change_root(to_passphrase(), false, &mut NoSteps).unwrap();
    let e = s.ssefs(&["encryption", "put", "a", "KMS:later"]);
    assert!(e.code == 6 && e.err.contains("root key") && e.err.contains("mount again"), "{e:?}");
    // The old rule's KEK is in use: reading and writing go on.
    fs::write(dir.join("more"), "more").unwrap();
    assert_eq!(fs::read_to_string(dir.join("before")).unwrap(), "before");
    s.ssefs(&["umount", dir.to_str().unwrap()]).ok();
    let file = secret_file(&s.path("phrase"), PASSPHRASE);
    s.ssefs(&["check", "a", "--read-data", "--passphrase-file", &file]).ok();
}
