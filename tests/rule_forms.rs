//! The rule in all its forms: what is read, what is printed, what is refused and in which words. Broken inputs are
//! files under `tests/data/rules/broken`, named for their defect; rows are those of SEMANTICS.md.

#[path = "rule_forms/dialects.rs"]
mod dialects;
#[path = "rule_forms/edits.rs"]
mod edits;
#[path = "rule_forms/errors.rs"]
mod errors;
#[path = "rule_forms/generated.rs"]
mod generated;
#[path = "rule_forms/resolve.rs"]
mod resolve;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use ssefs::rule::{Cipher, Dialect, Method, Rule, RuleError, parse};

const SUPPORTED: &str = "The Encryption request you specified is not valid. Supported value: AES256/KMS";
const NO_KEY: &str = "KMSMasterKeyID is not applicable if the default sse algorithm is not KMS";

fn kms(key: Option<&str>, sm4: bool) -> Rule {
    Rule::Kms { key: key.map(str::to_owned), sm4 }
}

fn native(text: &str) -> Result<Rule, RuleError> {
    parse(text.as_bytes(), Dialect::Native)
}

fn oss_xml(fields: &str) -> String {
    format!(
        "<ServerSideEncryptionRule><ApplyServerSideEncryptionByDefault>{fields}\
         </ApplyServerSideEncryptionByDefault></ServerSideEncryptionRule>"
    )
}

fn config_xml(fields: &str) -> String {
    format!(
        "<ServerSideEncryptionConfiguration><Rule><ApplyServerSideEncryptionByDefault>{fields}\
         </ApplyServerSideEncryptionByDefault></Rule></ServerSideEncryptionConfiguration>"
    )
}

fn s3api_json(fields: &str) -> String {
    format!("{{\"Rules\": [{{\"ApplyServerSideEncryptionByDefault\": {{{fields}}}}}]}}")
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, RuleError>, code: &str) -> RuleError {
    let error = result.expect_err("this should have been refused");
    assert_eq!(error.code(), code, "{error}");
    assert_eq!(error.message(), error.to_string());
    error
}

fn data(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/rules").join(folder)
}

/// Reads every file that `table` names and holds that it names every file there is.
fn each_file<'t, T>(folder: &str, table: &'t [(&'t str, T)]) -> impl Iterator<Item = (&'t str, Vec<u8>, &'t T)> {
    let on_disk: BTreeSet<String> =
        fs::read_dir(data(folder)).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let named: BTreeSet<String> = table.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(on_disk, named, "the table and the folder {folder} differ");
    let folder = data(folder);
    table.iter().map(move |(name, expected)| (*name, fs::read(folder.join(name)).unwrap(), expected))
}

#[test]
fn the_short_form_is_read_and_printed_alike() {
    for (text, rule) in [
        ("none", Rule::None),
        ("AES256", Rule::Aes256),
        ("KMS", kms(None, false)),
        ("KMS:k1", kms(Some("k1"), false)),
        ("KMS:alias/photos:SM4", kms(Some("alias/photos"), true)),
        ("KMS::SM4", kms(None, true)),
        ("KMS:arn:aws:kms:eu-west-1:1:key/k1", kms(Some("arn:aws:kms:eu-west-1:1:key/k1"), false)),
        ("KMS:arn:aws:kms:eu-west-1:1:key/k1:SM4", kms(Some("arn:aws:kms:eu-west-1:1:key/k1"), true)),
    ] {
        assert_eq!(native(text).as_ref(), Ok(&rule), "{text}");
        assert_eq!(rule.to_string(), text);
        assert_eq!(serde_json::to_string(&rule).unwrap(), format!("\"{text}\""));
        assert_eq!(serde_json::from_str::<Rule>(&format!("\"{text}\"")).unwrap(), rule);
    }
}

#[test]
fn spellings_that_say_a_default_aloud_are_made_canonical() {
    for (text, canonical) in [
        ("KMS:", "KMS"),
        ("KMS::", "KMS"),
        ("KMS::AES256", "KMS"),
        ("KMS:k1:AES256", "KMS:k1"),
        ("KMS:k1:", "KMS:k1"),
        ("AES256:", "AES256"),
        (" AES256\n", "AES256"),
    ] {
        assert_eq!(native(text).unwrap().to_string(), canonical, "{text:?}");
    }
}

#[test]
fn documents_as_the_vendors_show_them_are_read() {
    let table = [
        ("oss-kms-key-sm4.xml", "KMS:9468da86-3509-4f8d-a61e-6eab1eac0000:SM4"),
        ("oss-aes256-empty-key.xml", "AES256"),
        ("aws-kms-bucket-key.xml", "KMS:arn:aws:kms:us-east-1:111122223333:key/k1"),
        ("cos-kms.xml", "KMS:alias/photos"),
        ("prefixed-namespace.xml", "KMS"),
        ("s3api-kms.json", "KMS:alias/photos"),
        ("s3api-aes256-empty-key.json", "AES256"),
        ("short-with-white-space.txt", "KMS::SM4"),
        ("byte-order-mark.txt", "AES256"),
    ];
    for (name, bytes, expected) in each_file("accepted", &table) {
        match parse(&bytes, Dialect::Native) {
            Ok(rule) => assert_eq!(rule.to_string(), *expected, "{name}"),
            Err(error) => panic!("{name}: {error}"),
        }
    }
}

#[test]
fn r51_absent_data_encryption_means_aes256() {
    let text = oss_xml("<SSEAlgorithm>KMS</SSEAlgorithm><KMSDataEncryption/>");
    for text in ["KMS", "KMS:k1", &text] {
        let rule = native(text).unwrap();
        assert_eq!((rule.data_encryption(), rule.cipher()), (Some("AES256"), Cipher::Aes256Gcm), "{text}");
    }
    let sm4 = native("KMS::SM4").unwrap();
    assert_eq!((sm4.data_encryption(), sm4.cipher(), sm4.method()), (Some("SM4"), Cipher::Sm4Gcm, Method::Kms));
    assert_eq!((Rule::Aes256.data_encryption(), Rule::Aes256.method()), (None, Method::Aes256));
    assert_eq!((Rule::None.cipher(), Rule::None.method()), (Cipher::Plain, Method::None));
}

#[test]
fn r52_a_key_is_named_by_id_or_alias_and_an_empty_one_means_none() {
    for empty in ["<KMSMasterKeyID></KMSMasterKeyID>", "<KMSMasterKeyID/>", "<KMSMasterKeyID> \n </KMSMasterKeyID>"] {
        for form in [oss_xml, config_xml] {
            let kms_text = form(&format!("<SSEAlgorithm>KMS</SSEAlgorithm>{empty}"));
            assert_eq!(native(&kms_text), Ok(kms(None, false)), "{empty}");
            let aes_text = form(&format!("{empty}<SSEAlgorithm>AES256</SSEAlgorithm>"));
            assert_eq!(native(&aes_text), Ok(Rule::Aes256), "{empty}");
        }
    }
    assert_eq!(native(&s3api_json(r#""SSEAlgorithm": "KMS", "KMSMasterKeyID": null"#)), Ok(kms(None, false)));
    for key in ["9468da86-3509-4f8d-a61e-6eab1eac0000", "alias/photos", "arn:aws:kms:x:1:alias/a&b"] {
        let escaped = key.replace('&', "&amp;");
        let text = oss_xml(&format!("<SSEAlgorithm>KMS</SSEAlgorithm><KMSMasterKeyID>{escaped}</KMSMasterKeyID>"));
        assert_eq!(native(&text).unwrap().key(), Some(key));
    }
}
