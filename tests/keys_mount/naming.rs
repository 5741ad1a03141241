//! How keys are named, made and rotated, and what a call to the key service costs.

use crate::mount::{Mount, errno, get_xattr_text, set_xattr};
use crate::run::eventually;
use crate::{ALGORITHM, KEY_ID, RULE, key, make_key, put, refused_by_command};
use std::fs;

fn rule(m: &Mount) -> String {
    m.ssefs(&["encryption", "get", "b"]).ok().trim().to_string()
}

#[test]
fn r52_a_key_is_named_by_id_or_alias_and_its_id_is_what_is_stored() {
    let Some(m) = Mount::real("") else { return };
    let (id, other) = (make_key(&m, "mine"), make_key(&m, "other"));
    set_xattr(m.path(), RULE, "KMS:mine").unwrap();
    assert_eq!(get_xattr_text(m.path(), RULE).unwrap(), format!("KMS:{id}"));
    assert_eq!(get_xattr_text(m.path(), "user.sse.default.kms-key-id").unwrap(), id);
    m.ssefs(&["encryption", "put", "b", "KMS:other"]).ok();
    assert_eq!(rule(&m), format!("KMS:{other}"));
    m.ssefs(&["encryption", "put", "b", &format!("KMS:{id}")]).ok();
    assert_eq!(put(&m, "by-id"), id);
    // The alias goes to another key: rules that stand and objects that exist stay with theirs.
    m.ssefs(&["key", "set", "mine", "--alias", "old"]).ok();
    m.ssefs(&["key", "set", "other", "--alias", "mine"]).ok();
    assert_eq!(put(&m, "by-id"), id);
    assert_eq!(put(&m, "new"), id);
    fs::write(m.at("request"), "").unwrap();
    set_xattr(m.at("request"), ALGORITHM, "KMS").unwrap();
    set_xattr(m.at("request"), KEY_ID, "mine").unwrap();
    assert_eq!(get_xattr_text(m.at("request"), KEY_ID).unwrap(), other);
    assert_eq!(put(&m, "request"), other);
    set_xattr(m.path(), RULE, "KMS:mine").unwrap();
    assert_eq!(get_xattr_text(m.path(), "user.sse.default.kms-key-id").unwrap(), other);
    // An empty KMSMasterKeyID means none.
    let xml = "<ServerSideEncryptionRule><ApplyServerSideEncryptionByDefault><SSEAlgorithm>KMS</SSEAlgorithm>\
               <KMSMasterKeyID></KMSMasterKeyID></ApplyServerSideEncryptionByDefault></ServerSideEncryptionRule>";
    set_xattr(m.path(), RULE, xml).unwrap();
    assert_eq!(get_xattr_text(m.path(), RULE).unwrap(), "KMS");
    set_xattr(m.path(), "user.sse.default.kms-key-id", "old").unwrap();
    assert_eq!(rule(&m), format!("KMS:{id}"));
    set_xattr(m.path(), "user.sse.default.kms-key-id", "").unwrap();
    assert_eq!(rule(&m), "KMS");
}

#[test]
fn r02_r06_r36_which_key_an_object_gets() {
    let Some(m) = Mount::real("AES256") else { return };
    let mine = make_key(&m, "mine");
    let method = |name: &str| m.show(name);
    fs::write(m.at("sse"), "x").unwrap();
    let managed = key(&m, "bucket:b");
    assert_eq!((managed["kind"].as_str(), managed["bucket"].as_str()), (Some("managed"), Some("b")));
    assert_eq!(method("sse")["key"], managed["key"]);
    let list = || m.ssefs(&["key", "list", "--json"]).ok();
    assert!(!list().contains("ssefs/default"), "the default service key is made when first needed");
    fs::write(m.at("default"), "").unwrap();
    set_xattr(m.at("default"), ALGORITHM, "KMS").unwrap();
    assert!(list().contains("ssefs/default"));
    let default = put(&m, "default");
    assert_eq!(key(&m, "ssefs/default")["key"].as_str(), Some(default.as_str()));
    set_xattr(m.at("default"), KEY_ID, "mine").unwrap();
    assert_eq!(get_xattr_text(m.at("default"), KEY_ID).unwrap(), mine, "a request beats the rule, and converts");
    assert_eq!(fs::read(m.at("default")).unwrap(), b"content of default");
    assert_eq!(rule(&m), "AES256");
}

#[test]
fn r36_a_default_key_that_was_destroyed_is_made_anew_when_needed() {
    let Some(m) = Mount::real("KMS") else { return };
    m.ssefs(&["bucket", "create", "other"]).ok();
    m.ssefs(&["encryption", "put", "other", "KMS"]).ok();
    let first = key(&m, "ssefs/default");
    assert_eq!(first["used_by"][0]["bucket"].as_str(), Some("other"));
    m.ssefs(&["key", "delete", "ssefs/default"]).fails_saying(&["the rule of the bucket"]);
    m.ssefs(&["encryption", "delete", "other"]).ok();
    m.ssefs(&["key", "delete", "ssefs/default"]).ok();
    assert_eq!(errno(crate::write(&m, "f")), libc::EKEYREVOKED, "it is never replaced while it can come back");
    m.ssefs(&["key", "cancel-deletion", "ssefs/default"]).ok();
    m.ssefs(&["key", "delete", "ssefs/default", "--unsafe-seconds", "0"]).ok();
    m.ssefs(&["key", "list"]).ok();
    // The mount may have it in mind for one more try.
    let _ = crate::write(&m, "f");
    let second = put(&m, "f");
    assert_ne!(first["key"].as_str(), Some(second.as_str()));
    m.ssefs(&["key", "delete", "ssefs/default"]).fails_saying(&["1 object"]);
}

#[test]
fn r13_r33_the_dialects_say_which_keys_a_rule_may_name() {
    let Some(m) = Mount::real("") else { return };
    let id = make_key(&m, "mine");
    for dialect in ["native", "cos", "oss", "aws"] {
        m.ssefs(&["bucket", "create", dialect, "--dialect", dialect, "--rule", "KMS:mine"]).ok();
        assert_eq!(m.ssefs(&["encryption", "get", dialect]).ok().trim(), format!("KMS:{id}"));
    }
    let words = m.ssefs(&["bucket", "create", "jd", "--dialect", "jd", "--rule", "KMS:mine"]);
    words.fails_saying(&["InvalidArgument", "jd"]);
    m.ssefs(&["bucket", "create", "jd", "--dialect", "jd", "--rule", "KMS"]).ok();
    m.ssefs(&["encryption", "put", "jd", "KMS:mine"]).fails_saying(&["InvalidArgument", "jd"]);
    m.ssefs(&["encryption", "put", "jd", "--dir", "d", "AES256"]).fails_saying(&["InvalidArgument", "jd"]);
    assert_eq!(m.ssefs(&["encryption", "get", "jd"]).ok().trim(), "KMS");

    let mut jd = Mount::builder().bucket("jd").option("dialect=jd").rule("KMS").mount();
    let id = make_key(&jd, "mine");
    assert_eq!(errno(set_xattr(jd.path(), RULE, format!("KMS:{id}"))), libc::EINVAL);
    assert!(crate::last_error(&jd).starts_with("InvalidArgument: "));
    fs::create_dir(jd.at("d")).unwrap();
    assert_eq!(errno(set_xattr(jd.at("d"), RULE, "KMS")), libc::EINVAL);
    assert_eq!(get_xattr_text(jd.path(), RULE).unwrap(), "KMS");
    jd.umount();
}

#[test]
fn r54_ten_thousand_small_files_cost_a_constant_number_of_calls_to_the_key_service() {
    let Some(mut m) = Mount::real("") else { return };
    make_key(&m, "mine");
    set_xattr(m.path(), RULE, "KMS:mine").unwrap();
    let calls = |m: &Mount| m.ssefs(&["bucket", "show", "b", "--json"]).json()["key_service_calls"].as_u64().unwrap();
    for i in 0..10_000 {
        if i % 1000 == 0 {
            fs::create_dir(m.at(format!("{}", i / 1000))).unwrap();
        }
        fs::write(m.at(format!("{}/{i}", i / 1000)), format!("small file {i}")).unwrap();
        if i == 10 {
            assert_eq!(calls(&m), 1, "a KEK was made");
        }
    }
    assert_eq!(calls(&m), 1, "and no call was needed since");
    m.remount();
    for i in (0..10_000).step_by(9) {
        assert_eq!(fs::read_to_string(m.at(format!("{}/{i}", i / 1000))).unwrap(), format!("small file {i}"));
    }
    assert_eq!(calls(&m), 1, "a KEK was unwrapped");
}

#[test]
fn r20_a_mount_rotates_keys_that_are_older_than_their_period() {
    let Some(mut m) = Mount::real("AES256") else { return };
    put_plain(&m, "old");
    let id = make_key(&m, "mine");
    m.umount();
    // As if it were made so long ago: by a clock of our own, since no test can wait.
    let root = || ssefs::keys::RootSource::in_config(&m.config());
    let past = ssefs::keys::Moment { unix: 1_600_000_000, ..Default::default() };
    let k = ssefs::keys::Keyring::open_with_clock(&m.config(), root(), Box::new(move || past)).unwrap();
    let aged = k.create_key(Some("aged"), "").unwrap();
    k.set_rotation(&aged, Some(30)).unwrap();
    drop(k);
    m.ssefs(&["key", "set", "bucket:b", "--rotate-days", "0"]).ok();
    let shown = key(&m, "bucket:b");
    assert_eq!((shown["rotate_days"].as_u64(), shown["next_rotation"].as_str()), (Some(0), None));
    assert_eq!(key(&m, "aged")["version"].as_u64(), Some(1), "the command line alone rotates nothing");
    m.mount();
    assert!(eventually(|| key(&m, "aged")["version"].as_u64() == Some(2)));
    assert_eq!(key(&m, &id)["version"].as_u64(), Some(1));
    assert_eq!(key(&m, "bucket:b")["version"].as_u64(), Some(1));
    assert_eq!(fs::read(m.at("old")).unwrap(), b"content of old");
}

fn put_plain(m: &Mount, name: &str) {
    crate::write(m, name).unwrap();
}

#[test]
fn keys_are_made_shown_and_listed_with_all_there_is_to_tell() {
    let Some(m) = Mount::real("") else { return };
    let made =
        m.ssefs(&["key", "create", "--alias", "mine", "--description", "for photos", "--rotate-days", "90", "--json"]);
    let made = made.json();
    for (field, value) in [
        ("alias", "mine"),
        ("kind", "cmk"),
        ("state", "enabled"),
        ("origin", "generated"),
        ("description", "for photos"),
    ] {
        assert_eq!(made[field].as_str(), Some(value), "{made}");
    }
    assert_eq!((made["version"].as_u64(), made["rotate_days"].as_u64()), (Some(1), Some(90)));
    assert!(made["next_rotation"].as_str().is_some() && made["used_by"].as_array().unwrap().is_empty());
    m.ssefs(&["key", "rotate", "mine"]).ok();
    m.ssefs(&["key", "set", "mine", "--description", "for other photos", "--rotate-days", "0"]).ok();
    let shown = key(&m, "mine");
    assert_eq!(shown["versions"].as_array().unwrap().len(), 2);
    assert_eq!(shown["description"].as_str(), Some("for other photos"));
    set_xattr(m.path(), RULE, "KMS:mine").unwrap();
    m.ssefs(&["key", "grant", "mine", "4711"]).ok();
    let shown = key(&m, "mine");
    assert_eq!(shown["used_by"][0]["bucket"].as_str(), Some("b"));
    assert_eq!(shown["granted_uids"][0].as_u64(), Some(4711));
    let text = m.ssefs(&["key", "show", "mine"]).ok();
    assert!(text.contains("used by") && text.contains("for other photos"), "{text}");
    m.ssefs(&["key", "set", "mine", "--no-alias"]).ok();
    let listed = m.ssefs(&["key", "list"]).ok();
    assert!(listed.contains("enabled") && !listed.contains("mine"), "{listed}");
    assert!(m.ssefs(&["key", "clock"]).ok().contains("keyring"));
    // Bad input is an error of usage, and nothing changes.
    let id = shown["key"].as_str().unwrap();
    for args in [
        &["key", "set", id][..],
        &["key", "set", id, "--alias", "mk-1"],
        &["key", "set", id, "--alias", "a", "--no-alias"],
        &["key", "set", id, "--rotate-days", "36501"],
        &["key", "set", id, "--rotate-days", "-1"],
        &["key", "create", "--alias", "a b"],
        &["key", "create", "--rotate-days", "36501"],
    ] {
        assert_eq!(m.ssefs(args).code, Some(2), "{args:?}");
    }
    refused_by_command(&m, &["key", "disable", "bucket:nobody"], 3, "the keyring does not know the bucket nobody");
    assert_eq!(key(&m, id)["versions"].as_array().unwrap().len(), 2);
}
