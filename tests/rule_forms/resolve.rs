//! Request, directory, bucket: which one a PUT follows (rows 5, 6, 38, 71).

use super::*;
use ssefs::rule::{Effective, Origin, Request, resolve};

fn said(request: Option<&Request>, dirs: &[(&str, &Rule)], bucket: Option<&Rule>, dialect: Dialect) -> String {
    resolve(request, dirs.iter().copied(), bucket, dialect).to_string()
}

#[test]
fn r05_the_nearest_directory_rule_beats_the_buckets() {
    let (key, plain) = (kms(Some("k1"), false), Rule::None);
    let dirs = [("photos/2024", &key), ("photos", &plain)];
    assert_eq!(said(None, &dirs, Some(&Rule::Aes256), Dialect::Native), "KMS:k1 directory photos/2024");
    assert_eq!(said(None, &dirs[1..], Some(&Rule::Aes256), Dialect::Native), "none directory photos");
    assert_eq!(said(None, &[], Some(&Rule::Aes256), Dialect::Native), "AES256 bucket");
    assert_eq!(said(None, &[], None, Dialect::Native), "none none");
}

#[test]
fn r06_request_beats_rule() {
    let key = kms(Some("k1"), false);
    for dialect in [Dialect::Native, Dialect::Cos, Dialect::Oss, Dialect::Aws] {
        let got = said(Some(&Request::Aes256), &[("photos", &key)], Some(&key), dialect);
        assert_eq!(got, "AES256 request", "{dialect}");
    }
}

#[test]
fn r38_a_request_has_no_effect_in_dialect_jd() {
    let rule = kms(None, false);
    assert_eq!(said(Some(&Request::Aes256), &[], Some(&rule), Dialect::Jd), "KMS bucket");
    assert_eq!(said(Some(&Request::Aes256), &[], None, Dialect::Jd), "none none");
    assert_eq!(said(None, &[("photos", &Rule::Aes256)], Some(&rule), Dialect::Jd), "KMS bucket");
}

#[test]
fn r71_an_origin_is_one_line_whatever_the_directory_is_called() {
    let rule = Rule::Aes256;
    let effective = resolve(None, [("a\nb", &rule)], None, Dialect::Native);
    assert_eq!(effective, Effective { asked: Rule::Aes256.into(), origin: Origin::Directory("a\nb".into()) });
    assert_eq!(effective.origin.to_string(), "directory a\\nb");
    assert_eq!([Origin::Request, Origin::Bucket, Origin::None].map(|o| o.to_string()), ["request", "bucket", "none"]);
}
