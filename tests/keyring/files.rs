//! Root key and keyring file: made once, refused when wrong, tampering noticed.

use crate::{Config, chmod};
use ssefs::crypto::passphrase::{Passphrase, SecretText};
use ssefs::crypto::secret::BucketKey;
use ssefs::keys::{Created, KeyError, KeyService, KeyState, Keyring, KitSeal, RootSource};
use ssefs::types::BucketId;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

#[test]
fn the_first_run_makes_both_files_private_and_the_second_makes_nothing() {
    let c = Config::temp();
    let source = RootSource::in_config(&c.dir());
    let (first, created) = Keyring::open_or_create(&c.dir(), source.clone()).unwrap();
    assert_eq!(created, Created { root_key: true, keyring: true });
    for (path, mode) in [(c.dir(), 0o700), (c.root(), 0o600), (c.db(), 0o600)] {
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, mode, "{path:?}");
    }
    let text = fs::read_to_string(c.root()).unwrap();
    assert!(text.starts_with("ssefs-root-key-1 ") && text.ends_with('\n') && text.len() == 82);
    let (second, created) = Keyring::open_or_create(&c.dir(), source).unwrap();
    assert_eq!(created, Created::default());
    assert_eq!(first.root_id(), second.root_id());
    assert_eq!(fs::read_dir(c.dir()).unwrap().count(), 2, "nothing is left lying about");
}

#[test]
fn a_root_key_that_was_there_before_the_keyring_is_used() {
    let c = Config::temp();
    let place = c.beside("safe/root.key");
    fs::create_dir(c.beside("safe")).unwrap();
    let source = RootSource::File(place.clone());
    assert!(source.create_if_absent().unwrap());
    assert!(!source.create_if_absent().unwrap());
    let before = fs::read(&place).unwrap();
    let (_, created) = Keyring::open_or_create(&c.dir(), source).unwrap();
    assert_eq!(created, Created { root_key: false, keyring: true });
    assert_eq!(fs::read(&place).unwrap(), before);
}

#[test]
fn a_missing_root_key_is_named_by_place_and_id_and_never_made_anew() {
    let c = Config::temp();
    let id = c.make().root_id();
    fs::remove_file(c.root()).unwrap();
    for refused in [c.open(), Keyring::open_or_create(&c.dir(), RootSource::in_config(&c.dir())).map(|k| k.0)] {
        let error = refused.err().unwrap();
        assert!(matches!(error, KeyError::RootMissing { .. }));
        let message = error.to_string();
        assert!(message.contains(&id) && message.contains(c.root().to_str().unwrap()), "{message}");
    }
    assert!(!c.root().exists());
}

#[test]
fn a_wrong_root_key_is_told_from_the_one_needed() {
    let (a, b) = (Config::temp(), Config::temp());
    let (id_a, id_b) = (a.make().root_id(), b.make().root_id());
    fs::copy(b.root(), a.root()).unwrap();
    let error = a.refusal();
    let message = error.to_string();
    assert!(matches!(error, KeyError::RootWrong { .. }), "{message}");
    assert!(message.contains(&format!("id {id_b}")) && message.contains(&format!("needs the one with id {id_a}")));
}

#[test]
fn a_root_key_that_others_can_read_is_refused() {
    let c = Config::temp();
    c.make();
    for mode in [0o604, 0o640, 0o660, 0o622, 0o601] {
        chmod(&c.root(), mode);
        assert!(matches!(c.refusal(), KeyError::RootTooOpen { mode: m, .. } if m == mode), "{mode:o}");
    }
    chmod(&c.root(), 0o400);
    assert!(c.open().is_ok());
}

#[test]
fn a_malformed_root_key_is_refused_and_not_printed() {
    let c = Config::temp();
    c.make();
    let good = fs::read_to_string(c.root()).unwrap();
    let secret = good[17..81].to_owned();
    for bad in [
        String::new(),
        "hello\n".into(),
        good.trim_end().into(),
        good[..60].into(),
        good.replace("key-1", "key-2"),
        format!("{good}\n"),
        format!("{}x{}", &good[..30], &good[31..]),
        good.replacen(&secret[..2], "é", 1),
    ] {
        fs::write(c.root(), &bad).unwrap();
        let error = c.refusal();
        assert!(matches!(error, KeyError::RootMalformed { .. }), "{bad:?}: {error}");
        assert!(!format!("{error} {error:?}").contains(&secret[..16]));
    }
    fs::remove_file(c.root()).unwrap();
    fs::create_dir(c.root()).unwrap();
    assert!(matches!(c.refusal(), KeyError::RootUnreadable { .. } | KeyError::RootTooOpen { .. }));
}

#[test]
fn a_missing_foreign_truncated_or_newer_keyring_is_refused_by_name() {
    let c = Config::temp();
    c.make().create_key(Some("photos"), "").unwrap();
    let good = fs::read(c.db()).unwrap();
    let named = |error: KeyError| {
        assert!(error.to_string().contains(c.db().to_str().unwrap()), "{error}");
        error
    };

    fs::write(c.db(), b"not a database at all, but long enough to be read as a header of one. ".repeat(20)).unwrap();
    assert!(matches!(named(c.refusal()), KeyError::NotAKeyring { .. }));
    fs::write(c.db(), b"").unwrap();
    assert!(matches!(named(c.refusal()), KeyError::NotAKeyring { .. }));
    let refused = Keyring::open_or_create(&c.dir(), RootSource::in_config(&c.dir())).err().unwrap();
    assert!(matches!(named(refused), KeyError::NotAKeyring { .. }), "an empty file is not filled");

    for pages in 1..good.len() / 4096 {
        fs::write(c.db(), &good[..pages * 4096]).unwrap();
        let error = named(c.refusal());
        assert!(matches!(error, KeyError::KeyringDamaged { .. }), "{pages} pages: {error}");
    }

    fs::write(c.db(), &good).unwrap();
    c.sql("PRAGMA user_version = 2");
    assert!(matches!(named(c.refusal()), KeyError::KeyringNewer { found: 2, known: 1, .. }));
    c.sql("PRAGMA user_version = 1; PRAGMA application_id = 7");
    assert!(matches!(named(c.refusal()), KeyError::NotAKeyring { .. }));

    fs::remove_file(c.db()).unwrap();
    assert!(matches!(named(c.refusal()), KeyError::KeyringMissing(_)));
    fs::write(c.db(), &good).unwrap();
    assert!(c.open().is_ok());
}

/// A keyring with a row in every table, and the ids in it.
fn full(c: &Config) -> Keyring {
    let k = c.make();
    let store = k.open_store(&c.beside("store"), true).unwrap();
    let bucket = BucketId([3; 16]);
    k.register_bucket(&store, &"photos".parse().unwrap(), &bucket, &BucketKey::random().unwrap(), None).unwrap();
    k.managed_key(&bucket).unwrap();
    let cmk = k.create_key(Some("mine"), "of mine").unwrap();
    k.rotate(&cmk).unwrap();
    k.depend(&bucket, &cmk).unwrap();
    k.grant(&cmk, 1000, true).unwrap();
    let phrase = SecretText::copy_of(b"correct horse").and_then(|t| Passphrase::from_line(t).ok()).unwrap();
    k.create_kit(&c.beside("kit"), KitSeal::Passphrase(phrase), 64).unwrap();
    k
}

#[test]
fn r64_an_edit_of_any_column_is_noticed_and_the_row_named() {
    let c = Config::temp();
    full(&c);
    let good = fs::read(c.db()).unwrap();
    let edits = [
        ("store", "id", "zeroblob(16)"),
        ("store", "path", "x'2f61'"),
        ("store", "tag", "zeroblob(32)"),
        ("bucket", "id", "zeroblob(16)"),
        ("bucket", "store_id", "zeroblob(16)"),
        ("bucket", "name", "'other'"),
        ("bucket", "wrapped_key", "zeroblob(113)"),
        ("bucket", "created", "created + 1"),
        ("bucket", "tree_root", "zeroblob(32)"),
        ("bucket", "commit_no", "1"),
        ("master_key", "alias", "'other' || id"),
        ("master_key", "kind", "'cmk' || kind"),
        ("master_key", "bucket_id", "randomblob(16)"),
        ("master_key", "description", "''"),
        ("master_key", "state", "'disabled'"),
        ("master_key", "provider", "'p'"),
        ("master_key", "provider_ref", "'p'"),
        ("master_key", "origin", "'imported'"),
        ("master_key", "rotate_days", "1"),
        ("master_key", "delete_after", "1"),
        ("master_key", "destroyed", "1"),
        ("master_key", "due_seen", "'at once'"),
        ("master_key_version", "version", "version + 7"),
        ("master_key_version", "wrapped", "zeroblob(113)"),
        ("master_key_version", "tag", "x''"),
        ("dependant", "bucket_id", "zeroblob(16)"),
        ("dependant", "key_id", "'mk-0'"),
        ("dependant", "since", "0"),
        ("key_grant", "key_id", "'mk-0'"),
        ("key_grant", "uid", "uid + 1"),
        ("kit", "number", "number + 7"),
        ("kit", "created", "created - 1"),
        ("kit", "id", "zeroblob(16)"),
        ("kit_key", "number", "number + 7"),
        ("kit_key", "key_id", "'mk-0' || key_id"),
        ("kit_key", "version", "version + 1"),
        ("kit_bucket", "number", "number + 7"),
        ("kit_bucket", "bucket_id", "zeroblob(16)"),
    ];
    for (in_table, column, value) in edits {
        fs::write(c.db(), &good).unwrap();
        c.sql(&format!("UPDATE {in_table} SET {column} = {value}"));
        match c.refusal() {
            KeyError::RowAltered { table, row, .. } => {
                assert_eq!(table, in_table);
                assert!(!row.is_empty());
            }
            other => panic!("{in_table}.{column}: {other}"),
        }
    }
    fs::write(c.db(), &good).unwrap();
    c.open().unwrap();
}

#[test]
fn r64_removed_rows_and_older_rows_put_back_are_noticed() {
    let c = Config::temp();
    let k = full(&c);
    let cmk = k.resolve("mine").unwrap();
    let good = fs::read(c.db()).unwrap();
    for table in [
        "store",
        "bucket",
        "master_key",
        "master_key_version",
        "dependant",
        "key_grant",
        "kit",
        "kit_key",
        "kit_bucket",
    ] {
        fs::write(c.db(), &good).unwrap();
        c.sql(&format!("DELETE FROM {table} WHERE rowid = (SELECT max(rowid) FROM {table})"));
        assert!(matches!(c.refusal(), KeyError::RowsAltered { .. }), "{table}");
    }
    fs::write(c.db(), &good).unwrap();
    for meta in ["generation = generation + 1", "clock = clock - 1"] {
        fs::write(c.db(), &good).unwrap();
        c.sql(&format!("UPDATE meta SET {meta}"));
        assert!(matches!(c.refusal(), KeyError::RowsAltered { .. }));
    }

    // The row of the enabled key, with its own good tag, over the one of the disabled key.
    fs::write(c.db(), &good).unwrap();
    let k = c.open().unwrap();
    fs::copy(c.db(), c.beside("old.db")).unwrap();
    k.set_state(&cmk, KeyState::Disabled).unwrap();
    c.sql(&format!(
        "ATTACH '{}' AS old; DELETE FROM main.master_key; INSERT INTO main.master_key SELECT * FROM old.master_key",
        c.beside("old.db").display()
    ));
    assert!(matches!(c.refusal(), KeyError::RowsAltered { .. }));
    // Also by a process that has it open.
    assert!(matches!(k.describe(&cmk), Err(KeyError::RowsAltered { .. })));
    assert!(matches!(k.create_key(None, ""), Err(KeyError::RowsAltered { .. })), "and it is never tagged over");
}

#[test]
fn what_one_handle_changes_another_sees_at_its_next_call() {
    let c = Config::temp();
    let (a, b) = (c.make(), c.make());
    let before = b.generation().unwrap();
    let key = a.create_key(Some("mine"), "").unwrap();
    assert_eq!(b.resolve("mine").unwrap(), key);
    assert_eq!(b.generation().unwrap(), before + 1);
    let kek = b.new_kek(&key, &BucketId([1; 16]), ssefs::types::KekId(1)).unwrap();
    a.set_state(&key, KeyState::Disabled).unwrap();
    let again = b.unwrap_kek(&key, 1, &BucketId([1; 16]), ssefs::types::KekId(1), &kek.wrapped);
    assert!(matches!(again, Err(KeyError::Disabled(_))), "the unwrapped key in memory is gone as well");
}

#[test]
fn a_keyring_put_into_the_place_of_another_is_followed_but_an_older_one_is_not_taken_up() {
    let c = Config::temp();
    let k = c.make();
    let key = k.create_key(Some("mine"), "").unwrap();
    let put = |from: &std::path::Path| {
        fs::copy(from, c.beside("copy")).unwrap();
        fs::rename(c.beside("copy"), c.db()).unwrap();
    };
    fs::copy(c.db(), c.beside("old")).unwrap();
    c.open().unwrap().disable(&key).unwrap();
    fs::copy(c.db(), c.beside("new")).unwrap();
    assert_eq!(k.describe(&key).unwrap().state, KeyState::Disabled);

    put(&c.beside("old"));
    assert!(matches!(k.describe(&key), Err(KeyError::KeyringOlder { .. })), "disabled keys do not come back");
    assert!(matches!(k.enable(&key), Err(KeyError::KeyringOlder { .. })));
    put(&c.beside("new"));
    assert_eq!(k.describe(&key).unwrap().state, KeyState::Disabled);
    c.open().unwrap().enable(&key).unwrap();
    assert_eq!(k.describe(&key).unwrap().state, KeyState::Enabled, "it watches the file that lies there now");

    let other = Config::temp();
    other.make();
    put(&other.db());
    assert!(k.describe(&key).is_err(), "a keyring of another root key");
    fs::remove_file(c.db()).unwrap();
    assert!(matches!(k.describe(&key), Err(KeyError::KeyringMissing(_))));
}

const CHILD: &str = "SSEFS_TEST_KEYRING_CHILD";
const KEYS_EACH: usize = 20;

/// Not a test of its own: what the processes of the next test run.
#[test]
#[ignore = "run by processes_that_change_one_keyring_at_once_lose_nothing"]
fn child_makes_keys() {
    let Some(dir) = std::env::var_os(CHILD).map(std::path::PathBuf::from) else { return };
    let (k, _) = Keyring::open_or_create(&dir, RootSource::in_config(&dir)).unwrap();
    k.default_cmk().unwrap();
    k.managed_key(&BucketId([1; 16])).unwrap();
    for _ in 0..KEYS_EACH {
        k.create_key(None, "").unwrap();
    }
}

#[test]
fn processes_that_change_one_keyring_at_once_lose_nothing() {
    let c = Config::temp();
    let spawn = || {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "files::child_makes_keys", "--ignored"])
            .env(CHILD, c.dir())
            .spawn()
            .unwrap()
    };
    // They also race for making root key and keyring.
    let children: Vec<_> = (0..3).map(|_| spawn()).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let k = c.open().unwrap();
    // One default CMK and one managed key, whoever was first.
    assert_eq!(k.list_keys().unwrap().len(), 3 * KEYS_EACH + 2);
    assert_eq!(fs::read_dir(c.dir()).unwrap().count(), 2);
}
