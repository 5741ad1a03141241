//! What each dialect allows and how it prints (rows 13, 33).

use super::*;
use ssefs::rule::{Place, Request, parse_for, print_xml};

#[test]
fn r13_every_dialect_allows_the_rules_of_its_column_and_no_others() {
    const BOTH: &str = "bucket, directory";
    // Rule, then where native, cos, oss, jd and aws take it.
    let table = [
        ("none", ["directory", "", "", "", ""]),
        ("AES256", [BOTH, BOTH, BOTH, "", BOTH]),
        ("KMS", [BOTH, BOTH, BOTH, "bucket", BOTH]),
        ("KMS:k1", [BOTH, BOTH, BOTH, "", BOTH]),
        ("KMS::SM4", [BOTH, BOTH, BOTH, "", ""]),
        ("KMS:k1:SM4", [BOTH, BOTH, BOTH, "", ""]),
    ];
    for (text, columns) in table {
        let rule: Rule = text.parse().unwrap();
        for (dialect, allowed) in Dialect::ALL.into_iter().zip(columns) {
            let mut taken = Vec::new();
            for (place, name) in [(Place::Bucket, "bucket"), (Place::Directory, "directory")] {
                let checked = dialect.check_rule(&rule, place);
                let parsed = parse_for(text.as_bytes(), dialect, place);
                assert_eq!(parsed.is_ok(), checked.is_ok(), "{text} in {dialect}");
                match checked {
                    Ok(()) => taken.push(name),
                    Err(error) => assert_eq!((error.code(), error.http_status()), ("InvalidArgument", 400), "{error}"),
                }
            }
            assert_eq!(taken.join(", "), allowed, "{text} in {dialect}");
            // What a dialect takes nowhere is not even read there.
            assert_eq!(parse(text.as_bytes(), dialect).is_ok(), !allowed.is_empty(), "{text} in {dialect}");
        }
    }
}

#[test]
fn every_dialect_has_the_habits_of_its_column() {
    // Dialect, requests win, directory rules, SM4, SSE-C.
    for (dialect, name, habits) in [
        (Dialect::Native, "native", [true, true, true, true]),
        (Dialect::Cos, "cos", [true, true, true, true]),
        (Dialect::Oss, "oss", [true, true, true, true]),
        (Dialect::Jd, "jd", [false, false, false, false]),
        (Dialect::Aws, "aws", [true, true, false, true]),
    ] {
        let actual = [dialect.requests_win(), dialect.directory_rules(), dialect.sm4(), dialect.sse_c()];
        assert_eq!(actual, habits, "{name}");
        assert_eq!(dialect.to_string(), name);
        assert_eq!(name.parse(), Ok(dialect));
        assert_eq!(serde_json::to_string(&dialect).unwrap(), format!("\"{name}\""));
    }
    assert_eq!(Dialect::default(), Dialect::Native);
    assert!(refused("Native".parse::<Dialect>(), "InvalidArgument").message().contains("native, cos, oss, jd or aws"));
}

#[test]
fn r33_a_jd_rule_names_no_key_and_stands_on_the_bucket_only() {
    let error = refused(parse(b"KMS:k1", Dialect::Jd), "InvalidArgument");
    assert_eq!(error.message(), "KMS:k1 is not allowed in a bucket of dialect jd: use KMS without a key");
    let error = refused(parse_for(b"KMS", Dialect::Jd, Place::Directory), "InvalidArgument");
    assert_eq!(error, RuleError::DirectoryRule { dialect: Dialect::Jd });
    let error = refused(Dialect::Native.check_rule(&Rule::None, Place::Bucket), "InvalidArgument");
    assert_eq!(error, RuleError::NoneOnBucket);
}

#[test]
fn xml_is_printed_in_the_shape_of_the_dialect() {
    const HEAD: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";
    let printed = |text: &str, dialect| print_xml(&text.parse().unwrap(), dialect).unwrap();
    let oss = "<ServerSideEncryptionRule>\n  <ApplyServerSideEncryptionByDefault>\n    \
               <SSEAlgorithm>KMS</SSEAlgorithm>\n    <KMSMasterKeyID>k&lt;1</KMSMasterKeyID>\n    \
               <KMSDataEncryption>SM4</KMSDataEncryption>\n  </ApplyServerSideEncryptionByDefault>\n\
               </ServerSideEncryptionRule>\n";
    assert_eq!(printed("KMS:k<1:SM4", Dialect::Oss), format!("{HEAD}{oss}"));
    assert_eq!(printed("KMS:k<1:SM4", Dialect::Native), format!("{HEAD}{oss}"));
    let config = |namespace: &str, algorithm: &str| {
        format!(
            "{HEAD}<ServerSideEncryptionConfiguration{namespace}>\n  <Rule>\n    \
             <ApplyServerSideEncryptionByDefault>\n      <SSEAlgorithm>{algorithm}</SSEAlgorithm>\n    \
             </ApplyServerSideEncryptionByDefault>\n  </Rule>\n</ServerSideEncryptionConfiguration>\n"
        )
    };
    assert_eq!(printed("KMS", Dialect::Cos), config("", "KMS"));
    assert_eq!(printed("KMS", Dialect::Jd), config("", "aws:kms"));
    let namespace = " xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"";
    assert_eq!(printed("KMS", Dialect::Aws), config(namespace, "aws:kms"));
    assert_eq!(printed("AES256", Dialect::Aws), config(namespace, "AES256"));
    assert_eq!(print_xml(&Rule::None, Dialect::Native), Err(RuleError::NoneHasNoXml));
    refused(print_xml(&kms(None, true), Dialect::Aws), "InvalidArgument");
}

#[test]
fn a_request_is_held_against_the_dialect_unless_it_has_no_effect_there() {
    let sm4 = Request::Kms { key: None, sm4: true };
    refused(Dialect::Aws.check_request(&sm4), "InvalidArgument");
    for dialect in [Dialect::Native, Dialect::Cos, Dialect::Oss, Dialect::Jd] {
        assert_eq!(dialect.check_request(&sm4), Ok(()), "{dialect}");
    }
    assert_eq!(Dialect::Jd.check_request(&Request::Aes256), Ok(()));
}
