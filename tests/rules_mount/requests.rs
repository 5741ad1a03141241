//! Requests: encryption asked for by an attribute of one file.

use crate::mount::{Mount, errno, get_xattr, remove_xattr, set_xattr};
use crate::{REQUEST, RULE, effective, method, put, refused, state};
use std::fs;

#[test]
fn r06_a_put_with_a_request_takes_the_request() {
    let Some(mut m) = Mount::real("AES256") else { return };
    fs::File::create(m.at("f")).unwrap();
    set_xattr(m.at("f"), REQUEST, "KMS").unwrap();
    assert_eq!(put(&m, "f"), "KMS");
    fs::File::create(m.at("g")).unwrap();
    set_xattr(m.at("g"), REQUEST, "KMS").unwrap();
    m.remount();
    assert_eq!(put(&m, "g"), "KMS", "the request of an empty file survives a remount");
    assert_eq!(put(&m, "h"), "AES256");
    // It stays: emptying and writing again is a PUT with the same request.
    let first = state(&m, "f");
    assert_eq!(put(&m, "f"), "KMS");
    assert_eq!(fs::read(m.at("f")).unwrap(), b"content of f");
    assert!(first.contains("request"), "where it came from: {first}");
    // Removing it ends it; the content keeps its method until the next PUT.
    remove_xattr(m.at("f"), REQUEST).unwrap();
    assert_eq!((method(&m, "f"), effective(&m, "f")), ("KMS".into(), "AES256 bucket".into()));
    assert_eq!(put(&m, "f"), "AES256");
}

#[test]
fn r06_a_request_beats_the_rule_of_a_directory_and_works_without_any() {
    let Some(m) = Mount::real("") else { return };
    fs::create_dir(m.at("d")).unwrap();
    set_xattr(m.at("d"), RULE, "AES256").unwrap();
    for name in ["f", "d/f"] {
        fs::File::create(m.at(name)).unwrap();
        set_xattr(m.at(name), REQUEST, "KMS").unwrap();
        assert_eq!(put(&m, name), "KMS", "{name}");
    }
}

#[test]
fn a_request_on_a_file_with_content_converts_it() {
    let Some(mut m) = Mount::real("") else { return };
    let content = crate::tree::Dice::new(1).bytes(2_500_000);
    for name in ["small", "large"] {
        fs::write(m.at(name), if name == "small" { &content[..5000] } else { &content }).unwrap();
        let before = fs::metadata(m.at(name)).unwrap();
        for to in ["AES256", "KMS", "AES256"] {
            set_xattr(m.at(name), REQUEST, to).unwrap();
            assert_eq!(method(&m, name), to, "{name}");
        }
        let after = fs::metadata(m.at(name)).unwrap();
        assert_eq!(
            (before.len(), before.modified().unwrap()),
            (after.len(), after.modified().unwrap()),
            "a conversion is no change of content"
        );
    }
    m.remount();
    assert!(fs::read(m.at("small")).unwrap() == content[..5000] && fs::read(m.at("large")).unwrap() == content);
    assert_eq!(method(&m, "large"), "AES256");
}

#[test]
fn a_request_that_cannot_be_met_is_refused_and_changes_nothing() {
    let Some(m) = Mount::real("AES256") else { return };
    put(&m, "f");
    let before = state(&m, "f");
    let f = m.at("f");
    refused(&m, set_xattr(&f, REQUEST, "DES"), libc::EINVAL, &["InvalidEncryptionAlgorithmError"]);
    refused(&m, set_xattr(&f, REQUEST, ""), libc::EINVAL, &[]);
    refused(&m, set_xattr(&f, "user.sse.kms-key-id", "some-key"), libc::EINVAL, &["KMSMasterKeyID is not applicable"]);
    assert_eq!(errno(set_xattr(&f, "user.sse.key-version", "1")), libc::EINVAL, "read-only");
    assert_eq!(state(&m, "f"), before);
    set_xattr(&f, REQUEST, "KMS").unwrap();
    refused(
        &m,
        set_xattr(&f, "user.sse.kms-key-id", "no-such-key"),
        libc::EINVAL,
        &["KMS.NotFoundException", "no-such-key"],
    );
    assert_eq!(fs::read(&f).unwrap(), b"content of f");
    let key = m.ssefs(&["key", "create", "--alias", "mine", "--json"]).json();
    set_xattr(&f, "user.sse.kms-key-id", "mine").unwrap();
    let id = String::from_utf8(get_xattr(&f, "user.sse.kms-key-id").unwrap()).unwrap();
    assert!(key.to_string().contains(&id), "the alias is resolved: {key} {id}");
}
