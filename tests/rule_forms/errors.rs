//! What is refused, with which code, line and words (rows 29, 48, 55, 56, 58, 59, 60).

use super::*;
use ssefs::rule::{KEY_NAME_BYTES_MAX, Position, RULE_TEXT_BYTES_MAX, XML_NODES_MAX};

#[test]
fn r60_malformed_input_is_refused_with_its_line() {
    // File, line, and a piece of the message that names the defect.
    let table = [
        ("two-rules.xml", (5, "a second <Rule>")),
        ("two-algorithms.xml", (4, "a second <SSEAlgorithm>")),
        ("two-root-elements.xml", (4, "")),
        ("unknown-element.xml", (5, "unknown element <KMSMasterKeyId> in <ApplyServerSideEncryptionByDefault>")),
        ("unknown-root.xml", (2, "<EncryptionRule> is no rule")),
        ("blocked-encryption-types.xml", (4, "unknown element <BlockedEncryptionTypes>")),
        ("bucket-key-enabled-maybe.xml", (4, "neither true nor false")),
        ("bucket-key-in-oss-form.xml", (3, "unknown element <BucketKeyEnabled>")),
        ("foreign-namespace.xml", (3, "unknown element <SSEAlgorithm>")),
        ("attribute.xml", (3, "unknown attribute enabled")),
        ("algorithm-missing.xml", (2, "SSEAlgorithm is required")),
        ("algorithm-empty.xml", (3, "SSEAlgorithm is required")),
        ("rule-empty.xml", (2, "SSEAlgorithm is required")),
        ("configuration-empty.xml", (1, "there is no <Rule>")),
        ("element-inside-a-value.xml", (3, "<SSEAlgorithm> holds text only")),
        ("comment-inside-a-value.xml", (3, "<SSEAlgorithm> holds text only")),
        ("text-between-elements.xml", (5, "text between elements: SM4")),
        ("text-after-the-end.xml", (4, "")),
        ("tag-not-closed.xml", (3, "ends inside an element")),
        ("tags-crossed.xml", (3, "")),
        ("document-type.xml", (2, "a document type has no place")),
        ("entities-that-expand.xml", (3, "a document type has no place")),
        ("processing-instruction.xml", (2, "a processing instruction")),
        ("duplicate-key.json", (6, "duplicate field `SSEAlgorithm`")),
        ("unknown-field.json", (5, "unknown field `BlockedEncryptionTypes`")),
        ("two-rules.json", (4, "a second rule")),
        ("no-rule.json", (2, "Rules is empty")),
        ("algorithm-missing.json", (2, "missing field `SSEAlgorithm`")),
        ("algorithm-a-number.json", (3, "invalid type: integer `256`")),
        ("arrays-for-objects.json", (1, "expected an object")),
        ("array-for-rule.json", (2, "expected an object")),
        ("text-after-the-end.json", (2, "trailing characters")),
        ("brace-not-closed.json", (2, "EOF")),
        ("comma-missing.json", (3, "expected `,` or `}`")),
        ("two-words.txt", (2, "neither one rule in the short form nor XML nor JSON")),
        ("empty.txt", (1, "SSEAlgorithm is required")),
        ("not-utf-8.txt", (2, "not UTF-8")),
    ];
    for (name, bytes, (line, words)) in each_file("broken", &table) {
        for dialect in Dialect::ALL {
            let error = match parse(&bytes, dialect) {
                Ok(rule) => panic!("{name} was read as {rule}"),
                Err(error) => error,
            };
            let message = error.message();
            assert_eq!((error.code(), error.http_status()), ("MalformedXML", 400), "{name}: {message}");
            let RuleError::MalformedXml { at, .. } = error else { panic!("{name}: {message}") };
            assert_eq!(at.line, *line, "{name}: {message}");
            assert!(message.starts_with(&at.to_string()), "{name}: {message}");
            assert!(message.contains(words), "{name}: {message}");
            assert!(!message.contains('\n') && message.len() < 400, "{name}: {message}");
            if name.ends_with(".json") {
                assert!(at.column.is_some(), "{name}: {message}");
            }
        }
    }
}

#[test]
fn r60_more_than_64_kib_is_refused_with_the_line_it_is_passed_on() {
    let comment = format!("<!--\n{}-->", "x".repeat(RULE_TEXT_BYTES_MAX));
    let error = refused(native(&(comment + &oss_xml("<SSEAlgorithm>KMS</SSEAlgorithm>"))), "MalformedXML");
    assert_eq!(error.message(), "line 2: the rule is longer than 64 KiB");
    let fits = "KMS".to_owned() + &" ".repeat(RULE_TEXT_BYTES_MAX - 3);
    assert_eq!(native(&fits), Ok(kms(None, false)));
    refused(native(&(fits + " ")), "MalformedXML");
}

#[test]
fn r60_depth_and_number_of_elements_are_bounded() {
    let deep = "<a>".repeat(RULE_TEXT_BYTES_MAX / 3);
    refused(native(&deep), "MalformedXML");
    let many = oss_xml(&"<SSEAlgorithm/>".repeat(XML_NODES_MAX as usize));
    assert!(refused(native(&many), "MalformedXML").message().contains("far more elements"));
    refused(native(&"[".repeat(RULE_TEXT_BYTES_MAX)), "MalformedXML");
    refused(native(&"{\"Rules\":".repeat(RULE_TEXT_BYTES_MAX / 9)), "MalformedXML");
}

#[test]
fn r48_the_algorithm_is_required_and_data_encryption_needs_kms() {
    for form in [oss_xml, config_xml] {
        refused(native(&form("<KMSDataEncryption>SM4</KMSDataEncryption>")), "MalformedXML");
        let with = |algorithm: &str, data: &str| {
            native(&form(&format!(
                "<SSEAlgorithm>{algorithm}</SSEAlgorithm><KMSDataEncryption>{data}</KMSDataEncryption>"
            )))
        };
        for data in ["SM4", "AES256", "abc"] {
            let error = refused(with("AES256", data), "InvalidArgument");
            assert_eq!(error, RuleError::DataEncryptionWithoutKms);
        }
        assert_eq!(with("KMS", "AES256"), Ok(kms(None, false)));
        assert_eq!(with("KMS", "SM4"), Ok(kms(None, true)));
        let error = refused(with("KMS", "abc"), "InvalidArgument");
        assert_eq!(error.message(), "KMSDataEncryption abc is not valid. Supported value: AES256/SM4");
    }
    refused(native(&s3api_json("")), "MalformedXML");
    refused(native(&s3api_json("\"SSEAlgorithm\": \" \"")), "MalformedXML");
    refused(native("AES256::SM4"), "InvalidArgument");
    refused(native("KMS:k1:sm4"), "InvalidArgument");
    refused(native("KMS:k1:SM4:x"), "InvalidArgument");
}

#[test]
fn a_name_that_no_key_can_have_is_refused() {
    let longest = "k".repeat(KEY_NAME_BYTES_MAX);
    assert_eq!(native(&format!("KMS:{longest}")).unwrap().key(), Some(longest.as_str()));
    let longer = longest + "k";
    for key in [longer.as_str(), "two words", "schlüssel", "a\tb", "a:b", "arn:x:SM4", "arn:x:AES256", "arn:"] {
        let text = oss_xml(&format!("<SSEAlgorithm>KMS</SSEAlgorithm><KMSMasterKeyID>{key}</KMSMasterKeyID>"));
        let error = refused(native(&text), "InvalidArgument");
        assert!(matches!(error, RuleError::KeyName { .. }), "{error}");
        assert!(error.message().len() < 300, "{error}");
    }
}

#[test]
fn r55_an_algorithm_other_than_aes256_and_kms_is_refused_in_the_vendors_words() {
    let mut texts: Vec<String> =
        ["DES", "aes256", "kms", "SM4", "None", "SSE-C", "DES:k1:SM4", "aws:kms", "-"].map(str::to_owned).into();
    for algorithm in ["DES", "SM4", "aws:kms:dsse", "SSE-C", "none", "KMS:k1"] {
        texts.push(oss_xml(&format!("<SSEAlgorithm>{algorithm}</SSEAlgorithm>")));
        texts.push(config_xml(&format!("<SSEAlgorithm>{algorithm}</SSEAlgorithm>")));
        texts.push(s3api_json(&format!("\"SSEAlgorithm\": \"{algorithm}\"")));
    }
    texts.push(oss_xml("<SSEAlgorithm>aws:kms</SSEAlgorithm>"));
    for text in texts {
        for dialect in Dialect::ALL {
            let error = refused(parse(text.as_bytes(), dialect), "InvalidEncryptionAlgorithmError");
            assert_eq!((error.http_status(), error.message().as_str()), (400, SUPPORTED), "{text}");
        }
    }
}

#[test]
fn r56_a_key_beside_another_algorithm_than_kms_is_refused_in_the_vendors_words() {
    let fields = "<SSEAlgorithm>AES256</SSEAlgorithm><KMSMasterKeyID>k1</KMSMasterKeyID>";
    let json = s3api_json(r#""SSEAlgorithm": "AES256", "KMSMasterKeyID": "k1""#);
    for text in ["AES256:k1", "AES256:k1:SM4", &oss_xml(fields), &config_xml(fields), &json] {
        let error = refused(native(text), "InvalidArgument");
        assert_eq!((error.http_status(), error.message().as_str()), (400, NO_KEY), "{text}");
    }
}

#[test]
fn r58_no_rule_has_the_code_of_the_dialect() {
    for (dialect, code) in [
        (Dialect::Native, "NoSuchServerSideEncryptionRule"),
        (Dialect::Oss, "NoSuchServerSideEncryptionRule"),
        (Dialect::Cos, "NoSuchEncryptionConfiguration"),
        (Dialect::Aws, "ServerSideEncryptionConfigurationNotFoundError"),
        (Dialect::Jd, "ServerSideEncryptionConfigurationNotFoundError"),
    ] {
        let error = RuleError::NoRule { dialect };
        assert_eq!((error.code(), error.http_status()), (code, 404), "{dialect}");
    }
}

#[test]
fn r59_what_is_wrong_with_a_key_is_said_with_its_name() {
    let key = || "alias/photos".to_owned();
    for (error, code) in [
        (RuleError::KeyNotFound { key: key() }, "KMS.NotFoundException"),
        (RuleError::KeyDisabled { key: key() }, "KMS.DisabledException"),
        (RuleError::KeyPendingDeletion { key: key() }, "KMS.KMSInvalidStateException"),
    ] {
        assert_eq!((error.code(), error.http_status()), (code, 400));
        assert!(error.message().contains("alias/photos"), "{error}");
    }
}

#[test]
fn r29_a_customer_key_is_no_rule() {
    for text in ["SSE-C", &oss_xml("<SSEAlgorithm>SSE-C</SSEAlgorithm>")] {
        refused(native(text), "InvalidEncryptionAlgorithmError");
    }
}

#[test]
fn a_message_repeats_input_on_one_line_and_not_at_length() {
    let name = "x".repeat(5000);
    let error =
        refused(native(&format!("<ServerSideEncryptionRule><{name}/></ServerSideEncryptionRule>")), "MalformedXML");
    assert!(error.message().len() < 300, "{error}");
    let error = refused(native(&s3api_json(&format!("\"a\\n{name}\": 1"))), "MalformedXML");
    assert!(error.message().len() < 300 && !error.message().contains('\n'), "{error}");
    assert_eq!(Position { line: 3, column: Some(7) }.to_string(), "line 3, column 7");
}
