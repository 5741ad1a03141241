//! Keys that are not there, disabled, pending import or deletion, destroyed: when a rule or a request names one, when
//! something is written under one, and when it is read.

use crate::mount::{Mount, errno, get_xattr_text, remove_xattr, set_xattr};
use crate::{ALGORITHM, KEY_ID, RULE, key, last_error, make_key, put, refused, refused_by_command, write};
use ssefs::keys::{Keyring, RootSource};
use ssefs::types::{BucketId, KeyId};
use std::fs;

const MATERIAL: &str = "404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f";

/// Takes away what keeps a key from deletion, as if it hung on a bucket that another keyring knows.
fn release(m: &Mount, key: &str) {
    let k = Keyring::open(&m.config(), RootSource::in_config(&m.config())).unwrap();
    let key = KeyId(key.into());
    let users: Vec<BucketId> = k.describe_all(&key);
    for bucket in users {
        k.release(&bucket, &key).unwrap();
    }
}

trait Users {
    fn describe_all(&self, key: &KeyId) -> Vec<BucketId>;
}

impl Users for Keyring {
    fn describe_all(&self, key: &KeyId) -> Vec<BucketId> {
        use ssefs::keys::KeyService;
        self.describe(key).unwrap().used_by.iter().map(|d| d.bucket).collect()
    }
}

#[test]
fn r59_naming_a_key_that_cannot_be_used_is_refused_in_the_vendors_words() {
    let Some(m) = Mount::real("AES256") else { return };
    fs::write(m.at("f"), "").unwrap();
    let material = m.beside("material");
    fs::write(&material, MATERIAL).unwrap();
    let ids: Vec<String> = ["disabled", "pending", "gone"].iter().map(|alias| make_key(&m, alias)).collect();
    m.ssefs(&["key", "disable", "disabled"]).ok();
    m.ssefs(&["key", "delete", "pending"]).ok();
    m.ssefs(&["key", "delete", "gone", "--unsafe-seconds", "0"]).ok();
    let import = ["key", "import", "--alias", "empty", "--material-file", material.to_str().unwrap(), "--json"];
    let empty = m.ssefs(&import).json()["key"].as_str().unwrap().to_string();
    m.ssefs(&["key", "delete-material", "empty"]).ok();
    let gone = key(&m, &ids[2]);
    assert_eq!((gone["state"].as_str(), gone["alias"].as_str()), (Some("destroyed"), None));
    let when = gone["destroyed"].as_str().unwrap();

    let cases = [
        ("nobody", "KMS.NotFoundException: the key nobody does not exist: list the keys that do, or create it".into()),
        ("gone", "KMS.NotFoundException: the key gone does not exist: list the keys that do, or create it".into()),
        (
            ids[2].as_str(),
            format!(
                "KMS.NotFoundException: the key {} does not exist any more: it was destroyed {when}; name another key",
                ids[2]
            ),
        ),
        (
            "disabled",
            format!("KMS.DisabledException: the key disabled ({}) is disabled: enable it, or name another key", ids[0]),
        ),
        (
            "pending",
            format!(
                "KMS.KMSInvalidStateException: the key pending ({}) is pending deletion: cancel the deletion, or name \
                 another key",
                ids[1]
            ),
        ),
        (
            "empty",
            format!(
                "KMS.KMSInvalidStateException: the key empty ({empty}) is pending import: import its material again, or \
                 name another key"
            ),
        ),
    ];
    set_xattr(m.at("f"), ALGORITHM, "KMS").unwrap();
    for (name, words) in &cases {
        let rule = format!("KMS:{name}");
        refused(&m, set_xattr(m.path(), RULE, &rule), libc::EINVAL, words);
        refused(&m, set_xattr(m.at("f"), KEY_ID, name), libc::EINVAL, words);
        fs::create_dir_all(m.at("d")).unwrap();
        refused(&m, set_xattr(m.at("d"), RULE, &rule), libc::EINVAL, words);
        for place in [&["encryption", "put", "b"][..], &["encryption", "put", "b", "--dir", "d"]] {
            refused_by_command(&m, &[place, &[&rule]].concat(), 6, words);
        }
        refused_by_command(&m, &["bucket", "create", "new", "--rule", &rule], 6, words);
        assert_eq!(get_xattr_text(m.path(), RULE).unwrap(), "AES256", "nothing changed");
        assert_eq!(errno(get_xattr_text(m.at("d"), RULE)), libc::ENODATA);
    }
    assert!(!m.store().join("buckets/new").exists());
    refused_by_command(
        &m,
        &["key", "show", "nobody"],
        6,
        "KMS.NotFoundException: there is no key \"nobody\" in the keyring",
    );
    // And again when they can be used, without a remount.
    m.ssefs(&["key", "enable", "disabled"]).ok();
    m.ssefs(&["key", "cancel-deletion", "pending"]).ok();
    m.ssefs(&["key", "enable", "pending"]).ok();
    m.ssefs(&["key", "import", "empty", "--material-file", material.to_str().unwrap()]).ok();
    for name in ["disabled", "pending", "empty"] {
        set_xattr(m.path(), RULE, format!("KMS:{name}")).unwrap();
        put(&m, name);
    }
}

#[test]
fn r30_r59_what_is_under_such_a_key_is_neither_written_nor_read_and_last_error_names_it() {
    let Some(mut m) = Mount::real("") else { return };
    m.no_check_at_end();
    let material = m.beside("material");
    fs::write(&material, MATERIAL).unwrap();
    let material = material.to_str().unwrap();
    let import = ["key", "import", "--alias", "mine", "--material-file", material, "--json"];
    let id = m.ssefs(&import).json()["key"].as_str().unwrap().to_string();
    set_xattr(m.path(), RULE, "KMS:mine").unwrap();
    assert_eq!(put(&m, "old"), id);
    let locked = |m: &mut Mount, words: &str| {
        m.remount();
        assert_eq!(errno(fs::read(m.at("old"))), libc::EKEYREVOKED, "{words}");
        assert!(last_error(m).starts_with(words), "{} should begin {words}", last_error(m));
        assert_eq!(errno(write(m, "new")), libc::EKEYREVOKED);
        assert!(last_error(m).starts_with(words), "{}", last_error(m));
        assert_eq!(
            errno(fs::OpenOptions::new().append(true).open(m.at("old")).and_then(|mut f| {
                use std::io::Write;
                f.write_all(b"more")?;
                f.sync_all()
            })),
            libc::EKEYREVOKED
        );
        // Metadata is not encrypted (15).
        assert_eq!(fs::metadata(m.at("old")).unwrap().len(), "content of old".len() as u64);
        let _ = fs::remove_file(m.at("new"));
    };
    let name = format!("\"mine ({id})\"");
    m.ssefs(&["key", "disable", "mine"]).ok();
    locked(&mut m, &format!("KMS.DisabledException: key {name} is disabled"));
    m.ssefs(&["key", "enable", "mine"]).ok();
    assert_eq!(fs::read(m.at("old")).unwrap(), b"content of old", "enabling it is enough");
    m.ssefs(&["key", "delete-material", "mine"]).ok();
    locked(&mut m, &format!("KMS.KMSInvalidStateException: key {name} is pending import"));
    m.ssefs(&["key", "import", "mine", "--material-file", material]).ok();
    assert_eq!(fs::read(m.at("old")).unwrap(), b"content of old");

    let file = m.beside("mine.key");
    m.ssefs(&["key", "export", "mine", "--to", file.to_str().unwrap(), "--seal-key-file", material]).ok();
    release(&m, &id);
    m.ssefs(&["key", "delete", "mine"]).ok();
    locked(&mut m, &format!("KMS.KMSInvalidStateException: key {name} is pending deletion"));
    m.ssefs(&["key", "cancel-deletion", "mine"]).ok();
    m.ssefs(&["key", "enable", "mine"]).ok();
    assert_eq!(fs::read(m.at("old")).unwrap(), b"content of old");
    put(&m, "again");
    release(&m, &id);
    m.ssefs(&["key", "delete", "mine", "--unsafe-seconds", "0"]).ok();
    let when = key(&m, &id)["destroyed"].as_str().unwrap().to_string();
    locked(&mut m, &format!("KMS.NotFoundException: key \"{id}\" was destroyed {when}"));
    // Its recovery file opens everything again, on the live mount.
    m.ssefs(&["key", "import", "--recovery-file", file.to_str().unwrap(), "--seal-key-file", material]).ok();
    for f in ["old", "again"] {
        assert_eq!(fs::read_to_string(m.at(f)).unwrap(), format!("content of {f}"));
    }
    assert_eq!(key(&m, "mine")["key"].as_str(), Some(id.as_str()));
    remove_xattr(m.path(), RULE).unwrap();
}

#[test]
fn a_damaged_or_foreign_keyring_is_told_to_mount_and_command_and_changes_nothing() {
    let Some(mut m) = Mount::real("") else { return };
    make_key(&m, "mine");
    set_xattr(m.path(), RULE, "KMS:mine").unwrap();
    put(&m, "f");
    let db = m.config().join("keyring.db");
    let good = fs::read(&db).unwrap();
    let replace = |bytes: &[u8]| {
        fs::write(m.beside("db"), bytes).unwrap();
        fs::rename(m.beside("db"), &db).unwrap();
    };
    let other = Mount::builder().unmounted();
    make_key(&other, "mine");
    let foreign = fs::read(other.config().join("keyring.db")).unwrap();
    let mut damaged = good.clone();
    let middle = damaged.len() / 2;
    damaged[middle..].fill(0);
    for (bytes, word) in
        [(&foreign, "root key"), (&damaged, "keyring"), (&b"no keyring".repeat(500), "not an ssefs keyring")]
    {
        replace(bytes);
        m.ssefs(&["key", "list"]).fails_saying(&[word]);
        m.ssefs(&["key", "disable", "mine"]).fails_saying(&[word]);
        let set = set_xattr(m.path(), RULE, "KMS");
        assert!(set.is_err(), "the live mount takes it no better");
        assert_eq!(fs::read(m.at("f")).unwrap(), b"content of f", "what is unwrapped goes on");
        assert_eq!(&fs::read(&db).unwrap(), bytes, "and nothing is written to it");
    }
    replace(&good);
    set_xattr(m.path(), RULE, "KMS").unwrap();
    put(&m, "g");
    m.remount();
    assert_eq!(fs::read(m.at("f")).unwrap(), b"content of f");
}
