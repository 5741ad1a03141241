//! Recovery kits: made, tested, restored; what they miss; and every way a kit, a code or a place can be wrong.

use crate::cli_support::{Outcome, Sandbox};
use crate::{LITTLE, PASSPHRASE, Ring, child, passphrase, secret_file, with_env};
use ssefs::crypto::passphrase::Passphrase;
use ssefs::keys::root::{NewRoot, NoSteps};
use ssefs::keys::{KeyError, Keyring, Kit, KitHas, KitSeal, RootSource};
use std::fs;
use std::path::{Path, PathBuf};

fn by_phrase() -> KitSeal {
    KitSeal::Passphrase(passphrase(PASSPHRASE))
}

fn made(ring: &Ring) -> PathBuf {
    let path = ring.beside("kit.txt");
    let (number, code) = ring.open().unwrap().create_kit(&path, by_phrase(), LITTLE).unwrap();
    assert_eq!((number, code.is_none()), (1, true));
    path
}

fn typed(text: &str) -> Passphrase {
    passphrase(text)
}

#[test]
fn a_kit_opens_everything_that_was_there_and_names_what_was_made_since() {
    let ring = Ring::made();
    let path = made(&ring);
    let keys = ring.open().unwrap();
    let contents = || Kit::read(&path).unwrap().open(typed(PASSPHRASE)).unwrap();
    assert_eq!(contents().root_id(), keys.root_id());
    assert_eq!(contents().counts(), (1, 2), "a key in two versions");
    let lines = contents().compare(&keys).unwrap();
    assert_eq!(lines.len(), 2);
    assert!(lines.iter().all(|l| l.has == KitHas::Opens), "{lines:?}");
    assert_eq!(keys.list_kits().unwrap()[0].missing, [""; 0]);
    let cmk = ssefs::keys::KeyService::resolve(&keys, "mine").unwrap();
    assert_eq!(keys.kits_with(&cmk).unwrap(), [1]);

    keys.rotate(&cmk).unwrap();
    let later = keys.create_key(Some("later"), "").unwrap();
    let bucket = ssefs::types::BucketId([4; 16]);
    let key = ssefs::crypto::secret::BucketKey::random().unwrap();
    keys.register_bucket(&ring.store, &"films".parse().unwrap(), &bucket, &key, None).unwrap();
    let lines = contents().compare(&keys).unwrap();
    let missed: Vec<_> = lines.iter().filter(|l| l.has == KitHas::Misses).map(|l| (&l.what[..], &l.note[..])).collect();
    let mut expected = [
        ("bucket films".to_owned(), "made after the kit"),
        (format!("key {cmk} (mine)"), "version 3 was made after the kit"),
        (format!("key {later} (later)"), "made after the kit"),
    ];
    // Keys come by their ids, which are random.
    expected[1..].sort();
    assert_eq!(missed, expected.iter().map(|(a, b)| (&a[..], *b)).collect::<Vec<_>>());
    let listed = &keys.list_kits().unwrap()[0].missing;
    let mut want = [format!("{cmk} version 3"), later.to_string()];
    want.sort();
    assert_eq!(listed[..2], want);
    assert_eq!(listed[2], "bucket films");
    // The next one has it all, and the next number.
    let (number, _) = keys.create_kit(&ring.beside("kit-2.txt"), by_phrase(), LITTLE).unwrap();
    assert_eq!(number, 2);
    assert!(keys.list_kits().unwrap()[1].missing.is_empty());
    assert_eq!(keys.kits_with(&later).unwrap(), [2]);
}

#[test]
fn a_kit_restores_root_key_and_keyring_also_after_the_root_key_was_changed() {
    let ring = Ring::made();
    let path = made(&ring);
    ring.open().unwrap().change_root(NewRoot::File(None), false, &mut NoSteps).unwrap();
    let contents = Kit::read(&path).unwrap().open(typed(PASSPHRASE)).unwrap();
    let lines = contents.compare(&ring.open().unwrap()).unwrap();
    assert!(lines.iter().all(|l| l.has == KitHas::Opens), "by the keys' own bytes: {lines:?}");
    let dir = ring.beside("restored");
    let restored = contents.restore(&dir).unwrap();
    assert!(!restored.keyring_was_there && restored.set_aside.is_none());
    let keys = Keyring::open(&dir, RootSource::in_config(&dir)).unwrap();
    ring.is_whole(&keys);
    assert_eq!(keys.list_kits().unwrap().len(), 1, "it knows the kit it came from");
    // Once more, over what it has made: nothing is written over, and it says that all is there.
    fs::write(dir.join("keyring.db.mark"), "").unwrap();
    assert!(contents.restore(&dir).unwrap().keyring_was_there);
    // Into a place with another keyring: refused, and that stays as it is.
    let (key, db) =
        (fs::read(ring.config().join("root.key")).unwrap(), fs::read(ring.config().join("keyring.db")).unwrap());
    assert!(matches!(contents.restore(&ring.config()), Err(KeyError::KitInTheWay(_))));
    assert_eq!(fs::read(ring.config().join("root.key")).unwrap(), key);
    assert_eq!(fs::read(ring.config().join("keyring.db")).unwrap(), db);
    // A crash after the root key and before the keyring: run again.
    let half = ring.beside("half");
    fs::create_dir(&half).unwrap();
    fs::copy(dir.join("root.key"), half.join("root.key")).unwrap();
    contents.restore(&half).unwrap();
    ring.is_whole(&Keyring::open(&half, RootSource::in_config(&half)).unwrap());
}

#[test]
fn a_lost_root_key_or_a_forgotten_passphrase_comes_back_from_a_kit_and_the_newer_keyring_stays() {
    let ring = Ring::made();
    let path = made(&ring);
    let keys = ring.open().unwrap();
    keys.create_key(Some("later"), "").unwrap();
    drop(keys);
    let contents = Kit::read(&path).unwrap().open(typed(PASSPHRASE)).unwrap();
    fs::remove_file(ring.config().join("root.key")).unwrap();
    assert!(contents.restore(&ring.config()).unwrap().keyring_was_there);
    let keys = ring.open().unwrap();
    assert!(ssefs::keys::KeyService::resolve(&keys, "later").is_ok(), "made after the kit, and still there");
    let to = NewRoot::Passphrase { passphrase: typed("forgotten at once"), memory_kib: LITTLE };
    keys.change_root(to, true, &mut NoSteps).unwrap();
    assert!(matches!(ring.open().err(), Some(KeyError::RootPassphraseWrong(_))));
    let restored = contents.restore(&ring.config()).unwrap();
    assert!(restored.set_aside.is_some_and(|p| p.exists()), "what was in the way is kept");
    ring.is_whole(&ring.open().unwrap());
}

#[test]
fn a_kit_cut_altered_or_newer_is_refused_and_a_wrong_passphrase_told_from_damage() {
    let ring = Ring::made();
    let path = made(&ring);
    let good = fs::read_to_string(&path).unwrap();
    let bad = ring.beside("bad.txt");
    let open = |text: &str| {
        fs::write(&bad, text).unwrap();
        Kit::read(&bad).and_then(|kit| kit.open(typed(PASSPHRASE)))
    };
    assert!(open(&good).is_ok());
    assert!(open(&good.replace('\n', "\r\n")).is_ok(), "as mail leaves it");
    assert!(open(&format!("> forwarded\n\n{good}\n-- \nregards\n")).is_ok(), "with text around it");
    let wrong = Kit::read(&path).unwrap().open(typed("another passphrase"));
    assert!(matches!(wrong.err(), Some(KeyError::KitWrong { number: 1 })));
    for (text, word) in [
        (String::new(), "BEGIN"),
        ("hello".into(), "BEGIN"),
        (good.replace("ssefs-kit-1", "ssefs-kit-2"), "newer"),
        (good.replace("number 1", "number one"), "number"),
        (good.replace("sealed-by passphrase", "sealed-by wax"), "sealed-by"),
        (good.replace("argon2id 19 64 ", "argon2id 19 88888888 "), "kdf"),
        (good[..good.rfind("-----END").unwrap()].to_owned(), "cut short"),
        (good[..good.len() - 200].to_owned(), "cut short"),
        (good.replacen("wrapped 01", "wrapped zz", 1), "wrapped"),
    ] {
        match open(&text).err() {
            Some(KeyError::KitMalformed { why, .. }) => assert!(why.contains(word), "{why}"),
            other => panic!("{word}: {other:?}"),
        }
    }
    // Lines of the head that parse and are not what was sealed, and any line of the content.
    let lines: Vec<&str> = good.lines().collect();
    let begin = lines.iter().position(|l| l.starts_with("-----BEGIN")).unwrap();
    let altered: Vec<usize> = (begin + 2..lines.len() - 1).collect();
    for i in altered {
        let mut copy: Vec<String> = lines.iter().map(|l| l.to_string()).collect();
        let line = copy[i].clone();
        let at = line.len() - 1;
        let other = if line.ends_with('0') { "1" } else { "0" };
        if !line.as_bytes()[at].is_ascii_hexdigit() || line.starts_with("sealed-by") {
            continue;
        }
        copy[i] = format!("{}{other}", &line[..at]);
        assert!(open(&(copy.join("\n") + "\n")).is_err(), "line {i}: {line}");
    }
    let (first, second) = (begin + 9, begin + 10);
    let mut swapped: Vec<&str> = lines.clone();
    swapped.swap(first, second);
    assert!(matches!(open(&(swapped.join("\n") + "\n")).err(), Some(KeyError::KitDamaged { .. })));
    let mut without: Vec<&str> = lines.clone();
    without.remove(second);
    assert!(matches!(open(&(without.join("\n") + "\n")).err(), Some(KeyError::KitDamaged { .. })));
    let mut twice: Vec<&str> = lines.clone();
    twice.insert(first, lines[first]);
    assert!(matches!(open(&(twice.join("\n") + "\n")).err(), Some(KeyError::KitDamaged { .. })));
    let digits = fs::read_to_string(ring.config().join("root.key")).unwrap()[17..81].to_owned();
    assert!(!good.contains(&digits), "the root key stands in the kit");
}

#[test]
fn a_kit_that_cannot_be_written_leaves_no_record_and_no_file() {
    let ring = Ring::made();
    let keys = ring.open().unwrap();
    fs::write(ring.beside("taken"), "mine").unwrap();
    let taken = keys.create_kit(&ring.beside("taken"), by_phrase(), LITTLE).err();
    assert!(matches!(taken, Some(KeyError::KitExists(_))));
    assert_eq!(fs::read_to_string(ring.beside("taken")).unwrap(), "mine");
    let nowhere = keys.create_kit(&ring.beside("no/such/dir/kit"), by_phrase(), LITTLE).err();
    assert!(matches!(nowhere, Some(KeyError::Io { .. })), "{nowhere:?}");
    let full = keys.create_kit(Path::new("/proc/kit"), by_phrase(), LITTLE).err();
    assert!(full.is_some());
    assert!(keys.list_kits().unwrap().is_empty());
    assert_eq!(keys.create_kit(&ring.beside("kit"), by_phrase(), LITTLE).unwrap().0, 1);
}

const DIR: &str = "SSEFS_TEST_KIT_DIR";

/// Not a test of its own: what the next test kills.
#[test]
#[ignore = "run by a_kit_in_the_making_that_is_killed_is_whole_or_not_there"]
fn child_makes_kits_until_killed() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let config = Path::new(&dir).join("config");
    let keys = Keyring::open(&config, RootSource::in_config(&config)).unwrap();
    for i in 0.. {
        keys.create_kit(&Path::new(&dir).join(format!("kit-{i}")), by_phrase(), LITTLE).unwrap();
    }
}

#[test]
fn a_kit_in_the_making_that_is_killed_is_whole_or_not_there() {
    for round in 0..5 {
        let ring = Ring::made();
        let mut child = child("kits::child_makes_kits_until_killed")
            .env(DIR, ring.dir.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        crate::cli_support::until("a kit", || ring.beside("kit-0").exists());
        std::thread::sleep(std::time::Duration::from_millis(7 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let numbers: Vec<u32> = ring.open().unwrap().list_kits().unwrap().iter().map(|k| k.number).collect();
        for i in 0.. {
            let path = ring.beside(&format!("kit-{i}"));
            if !path.exists() {
                break;
            }
            let kit = Kit::read(&path).unwrap();
            assert!(numbers.contains(&kit.number), "no kit is unknown to the keyring");
            kit.open(typed(PASSPHRASE)).unwrap();
        }
    }
}

/// The code that was printed.
fn code(o: &str) -> String {
    let line = o.lines().map(str::trim).find(|l| l.len() == 41 && l.matches('-').count() == 6);
    line.unwrap_or_else(|| panic!("no code in {o}")).to_owned()
}

#[test]
fn a_disk_that_is_lost_with_its_keys_is_read_with_the_kit() {
    let s = Sandbox::new();
    let dir = s.mounted("photos", "mnt");
    let at = dir.to_str().unwrap().to_owned();
    fs::write(dir.join("managed"), "managed").unwrap();
    s.ssefs(&["key", "create", "--alias", "mine"]).ok();
    s.ssefs(&["encryption", "put", "photos", "KMS:mine"]).ok();
    fs::write(dir.join("cmk"), "cmk").unwrap();
    s.ssefs(&["umount", &at]).ok();
    let kit = s.path("kit.txt").to_str().unwrap().to_owned();
    let shown = code(&s.ssefs(&["key", "kit", "create", &kit, "--kdf-memory", "1M"]).ok());
    let code_file = secret_file(&s.path("code"), &format!("{}\n", shown.to_lowercase().replace('-', " ")));
    let with =
        |args: &[&str]| -> Outcome { with_env(&s, &[], &[args, &["--kit-passphrase-file", &code_file]].concat()) };
    let tested = with(&["key", "kit", "test", &kit]).ok();
    assert!(tested.contains("opens") && !tested.contains("misses"), "{tested}");
    assert!(s.ssefs(&["key", "kit", "list"]).ok().contains("CREATED"));
    s.ssefs(&["key", "rotate", "mine"]).ok();
    let missed = with(&["key", "kit", "test", &kit]);
    assert!(missed.code == 6 && missed.out.contains("version 2 was made after the kit"), "{missed:?}");
    assert!(missed.err.contains("misses 1 of") && missed.err.contains("ssefs key kit create"), "{missed:?}");
    let before = fs::read_to_string(&kit).unwrap();
    s.ssefs(&["key", "kit", "create", &kit]).fails(12, &["exists already"]);
    assert_eq!(fs::read_to_string(&kit).unwrap(), before);
    // The configuration directory is gone; the store and the kit are there.
    fs::rename(s.path("config"), s.path("lost")).unwrap();
    s.ssefs(&["mount", "photos", &at]).fails(6, &["keyring"]);
    let typo =
        secret_file(&s.path("typo"), &shown.replacen(&shown[..1], if shown.starts_with('7') { "8" } else { "7" }, 1));
    s.ssefs(&["key", "kit", "restore", &kit, "--kit-passphrase-file", &typo]).fails(6, &["typing error"]);
    s.ssefs(&["key", "kit", "restore", &kit]).fails(6, &["recovery kit 1", "no terminal"]);
    assert!(!s.path("config").exists());
    assert!(with(&["key", "kit", "test", &kit]).err.contains("no keyring here"));
    let o = with(&["key", "kit", "restore", &kit]);
    assert!(o.code == 0 && o.err.contains("root.key"), "{o:?}");
    s.ssefs(&["mount", "photos", &at]).ok();
    assert_eq!(fs::read_to_string(dir.join("managed")).unwrap(), "managed");
    assert_eq!(fs::read_to_string(dir.join("cmk")).unwrap(), "cmk");
    s.ssefs(&["umount", &at]).ok();
    s.ssefs(&["check", "photos", "--read-data"]).ok();
    // The keyring of before is not that of the kit alone: another keyring is in the way.
    let other = Sandbox::new();
    other.ssefs(&["key", "create"]).ok();
    let args = ["key", "kit", "restore", &kit, "--kit-passphrase-file", &code_file];
    other.ssefs(&args).fails(12, &["holds a root key or a keyring already"]);
    let foreign = other.ssefs(&["key", "kit", "test", &kit, "--kit-passphrase-file", &code_file]);
    assert!(foreign.code == 6 && foreign.err.contains("misses 1 of 1"), "{foreign:?}");
}

#[test]
fn the_deletion_of_a_key_names_the_kits_that_hold_it() {
    let s = Sandbox::new();
    s.ssefs(&["key", "create", "--alias", "mine"]).ok();
    let kit = s.path("kit.txt").to_str().unwrap().to_owned();
    s.ssefs(&["key", "kit", "create", &kit, "--kdf-memory", "1M"]).ok();
    s.ssefs(&["key", "create", "--alias", "later"]).ok();
    let o = s.ssefs(&["key", "delete", "mine"]);
    assert!(o.code == 0 && o.err.contains("recovery kits 1 hold it too"), "{o:?}");
    let o = s.ssefs(&["key", "delete", "later"]);
    assert!(o.code == 0 && !o.err.contains("recovery kit"), "{o:?}");
}

#[test]
fn a_kit_by_passphrase_shows_no_code_and_json_says_the_same() {
    let s = Sandbox::new();
    s.ssefs(&["key", "create"]).ok();
    let phrase = secret_file(&s.path("phrase"), "correct horse battery\n");
    let kit = s.path("kit.txt").to_str().unwrap().to_owned();
    let args = ["key", "kit", "create", &kit, "--kdf-memory", "1M", "--kit-passphrase-file", &phrase, "--json"];
    let shown: serde_json::Value = serde_json::from_str(&s.ssefs(&args).ok()).unwrap();
    assert_eq!((shown["number"].as_u64(), &shown["code"]), (Some(1), &serde_json::Value::Null));
    let tested = s.ssefs(&["key", "kit", "test", &kit, "--kit-passphrase-file", &phrase, "--json"]).ok();
    let tested: serde_json::Value = serde_json::from_str(&tested).unwrap();
    assert_eq!((tested["misses"].as_u64(), tested["keys"].as_u64()), (Some(0), Some(1)));
    let wrong = secret_file(&s.path("wrong"), "wrong horse battery\n");
    s.ssefs(&["key", "kit", "test", &kit, "--kit-passphrase-file", &wrong]).fails(6, &["wrong passphrase or code"]);
    let list: serde_json::Value = serde_json::from_str(&s.ssefs(&["key", "kit", "list", "--json"]).ok()).unwrap();
    assert_eq!((list[0]["number"].as_u64(), list[0]["keys"].as_u64()), (Some(1), Some(1)));
}
