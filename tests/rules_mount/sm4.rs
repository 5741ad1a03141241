//! Row 51: SM4 as data encryption, which only KMS has, and which must be asked for.

use crate::mount::{Mount, errno, get_xattr_text, set_xattr};
use crate::{REQUEST, RULE, effective, method, put};
use std::fs;
use std::os::unix::fs::FileExt;

const DATA: &str = "user.sse.data-encryption";

/// Method, cipher and data encryption of an object.
fn sealed(m: &Mount, name: &str) -> (String, String, String) {
    let state: serde_json::Value =
        serde_json::from_str(&get_xattr_text(m.at(name), "user.sse.state").unwrap()).unwrap();
    let cipher = state["cipher"].as_str().unwrap().to_string();
    assert_eq!(m.show(name)["cipher"].as_str(), Some(cipher.as_str()));
    (method(m, name), cipher, get_xattr_text(m.at(name), DATA).unwrap_or_default())
}

fn of(method: &str, cipher: &str, data: &str) -> (String, String, String) {
    (method.into(), cipher.into(), data.into())
}

#[test]
fn r51_sm4_seals_where_the_rule_asks_for_it_and_aes256_where_it_says_nothing() {
    let Some(mut m) = Mount::real("KMS::SM4") else { return };
    let content = crate::tree::Dice::new(9).bytes(3_000_000);
    fs::write(m.at("large"), &content).unwrap();
    put(&m, "small");
    assert_eq!(sealed(&m, "large"), of("KMS", "SM4-GCM", "SM4"));
    assert_eq!(effective(&m, "small"), "KMS::SM4 bucket");
    let f = fs::File::options().write(true).open(m.at("large")).unwrap();
    f.write_all_at(b"overwritten", 1_000_001).unwrap();
    drop(f);
    let mut want = content.clone();
    want[1_000_001..1_000_012].copy_from_slice(b"overwritten");
    assert!(fs::read(m.at("large")).unwrap() == want);
    fs::File::open(m.path()).unwrap().sync_all().unwrap();
    m.kill9();
    m.mount();
    m.remount();
    assert!(fs::read(m.at("large")).unwrap() == want, "after a crash and a remount");
    assert_eq!(fs::read(m.at("small")).unwrap(), b"content of small");
    m.ssefs(&["encryption", "put", "b", "KMS"]).ok();
    put(&m, "later");
    assert_eq!(sealed(&m, "later"), of("KMS", "AES-256-GCM", "AES256"), "absent means AES256");
    assert_eq!(sealed(&m, "small"), of("KMS", "SM4-GCM", "SM4"), "what was there stays");
    m.ssefs(&["check", "b", "--read-data"]).ok();
}

#[test]
fn r51_a_data_key_of_sm4_has_128_bits() {
    let Some(mut m) = Mount::real("KMS::SM4") else { return };
    put(&m, "f");
    m.ssefs(&["encryption", "put", "b", "KMS"]).ok();
    put(&m, "g");
    m.umount();
    let db = rusqlite::Connection::open_with_flags(
        m.folder().join("catalog.db"),
        rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY,
    )
    .unwrap();
    let mut rows = db.prepare("SELECT cipher, length(wrapped) FROM seal ORDER BY cipher").unwrap();
    let rows: Vec<(i64, i64)> =
        rows.query_map([], |r| Ok((r.get(0)?, r.get(1)?))).unwrap().map(Result::unwrap).collect();
    // FORMAT.md, "Wrapped keys": 81 bytes beside the key.
    assert_eq!(rows, [(1, 81 + 32), (2, 81 + 16)]);
}

#[test]
fn r51_sm4_goes_with_kms_only_by_rule_and_by_request() {
    let Some(m) = Mount::real("AES256") else { return };
    let refused = |r: std::io::Result<()>| {
        assert_eq!(errno(r), libc::EINVAL);
        let said = get_xattr_text(m.path(), "user.sse.last-error").unwrap();
        assert!(said.contains("InvalidArgument"), "{said}");
    };
    refused(set_xattr(m.path(), "user.sse.default.data-encryption", "SM4"));
    refused(set_xattr(m.path(), RULE, "AES256::SM4"));
    put(&m, "f");
    set_xattr(m.at("f"), REQUEST, "AES256").unwrap();
    refused(set_xattr(m.at("f"), DATA, "SM4"));
    assert_eq!(sealed(&m, "f"), of("AES256", "AES-256-GCM", ""));
    // A request converts what is there, both ways.
    set_xattr(m.at("f"), REQUEST, "KMS").unwrap();
    set_xattr(m.at("f"), DATA, "SM4").unwrap();
    assert_eq!(sealed(&m, "f"), of("KMS", "SM4-GCM", "SM4"));
    assert_eq!(fs::read(m.at("f")).unwrap(), b"content of f");
    set_xattr(m.at("f"), DATA, "AES256").unwrap();
    assert_eq!(sealed(&m, "f"), of("KMS", "AES-256-GCM", "AES256"));
    set_xattr(m.path(), RULE, "KMS").unwrap();
    set_xattr(m.path(), "user.sse.default.data-encryption", "SM4").unwrap();
    assert_eq!(get_xattr_text(m.path(), RULE).unwrap(), "KMS::SM4");
    let xml = m.ssefs(&["encryption", "get", "b", "--xml"]).ok();
    assert!(xml.contains("<KMSDataEncryption>SM4</KMSDataEncryption>"), "{xml}");
    for dialect in ["jd", "aws"] {
        let name = format!("in-{dialect}");
        m.ssefs(&["bucket", "create", &name, "--dialect", dialect, "--rule", "KMS::SM4"])
            .fails_saying(&["InvalidArgument"]);
    }
}

#[test]
fn r64_a_chunk_sealed_by_sm4_that_was_altered_is_never_content() {
    let Some(mut m) = Mount::real("KMS::SM4") else { return };
    let content = crate::tree::Dice::new(10).bytes(200_000);
    fs::write(m.at("f"), &content).unwrap();
    m.umount();
    m.no_check_at_end();
    let path = m.segments().into_iter().max_by_key(|p| fs::metadata(p).unwrap().len()).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    // Behind the header's block and the first chunk's nonce.
    bytes[4096 + 100] ^= 1;
    fs::write(&path, &bytes).unwrap();
    m.mount();
    assert_eq!(errno(fs::read(m.at("f"))), libc::EBADMSG);
    let f = fs::File::open(m.at("f")).unwrap();
    let mut rest = vec![0; 200_000 - 65_536];
    f.read_exact_at(&mut rest, 65_536).unwrap();
    assert!(rest == content[65_536..], "what was not touched stays readable");
}
