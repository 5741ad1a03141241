//! Setting one part of a rule or a request, as the xattrs do.

use super::*;
use ssefs::rule::{
    Request, request_with_algorithm, request_with_data_encryption, request_with_kms_key, with_algorithm,
    with_data_encryption, with_kms_key,
};

#[test]
fn the_algorithm_of_a_rule_can_be_set_alone() {
    assert_eq!(with_algorithm(None, "AES256"), Ok(Rule::Aes256));
    assert_eq!(with_algorithm(None, "KMS\n"), Ok(kms(None, false)));
    assert_eq!(with_algorithm(Some(Rule::None), "KMS"), Ok(kms(None, false)));
    assert_eq!(with_algorithm(Some(Rule::Aes256), "KMS"), Ok(kms(None, false)));
    assert_eq!(with_algorithm(Some(kms(Some("k1"), true)), "KMS"), Ok(kms(Some("k1"), true)));
    assert_eq!(with_algorithm(Some(kms(Some("k1"), true)), "AES256"), Ok(Rule::Aes256));
    for wrong in ["", "none", "aes256", "KMS:k1", "aws:kms"] {
        let error = refused(with_algorithm(Some(Rule::Aes256), wrong), "InvalidEncryptionAlgorithmError");
        assert_eq!(error.message(), SUPPORTED);
    }
}

#[test]
fn the_key_of_a_rule_can_be_set_alone_where_the_algorithm_is_kms() {
    assert_eq!(with_kms_key(Some(kms(None, true)), Some("k1")), Ok(kms(Some("k1"), true)));
    assert_eq!(with_kms_key(Some(kms(Some("k1"), true)), None), Ok(kms(None, true)));
    assert_eq!(with_kms_key(Some(kms(Some("k1"), false)), Some("")), Ok(kms(None, false)));
    for rule in [None, Some(Rule::None), Some(Rule::Aes256)] {
        assert_eq!(refused(with_kms_key(rule, Some("k1")), "InvalidArgument").message(), NO_KEY);
    }
    refused(with_kms_key(Some(kms(None, false)), Some("a:b")), "InvalidArgument");
}

#[test]
fn the_data_encryption_of_a_rule_can_be_set_alone_where_the_algorithm_is_kms() {
    assert_eq!(with_data_encryption(Some(kms(Some("k1"), false)), Some("SM4")), Ok(kms(Some("k1"), true)));
    assert_eq!(with_data_encryption(Some(kms(Some("k1"), true)), Some("AES256")), Ok(kms(Some("k1"), false)));
    assert_eq!(with_data_encryption(Some(kms(Some("k1"), true)), None), Ok(kms(Some("k1"), false)));
    for rule in [None, Some(Rule::None), Some(Rule::Aes256)] {
        let error = refused(with_data_encryption(rule, Some("SM4")), "InvalidArgument");
        assert_eq!(error, RuleError::DataEncryptionWithoutKms);
    }
    refused(with_data_encryption(Some(kms(None, false)), Some("sm4")), "InvalidArgument");
}

#[test]
fn a_request_is_edited_as_a_rule_is() {
    let request = request_with_algorithm(None, "KMS").unwrap();
    let request = request_with_kms_key(Some(request), Some("k1")).unwrap();
    let request = request_with_data_encryption(Some(request), Some("SM4")).unwrap();
    assert_eq!(request, Request::Kms { key: Some("k1".to_owned()), sm4: true });
    assert_eq!(request.to_string(), "KMS:k1:SM4");
    assert_eq!(serde_json::to_string(&request).unwrap(), "\"KMS:k1:SM4\"");
    assert_eq!(serde_json::from_str::<Request>("\"KMS:k1:SM4\"").unwrap(), request);
    assert_eq!(request_with_algorithm(Some(request), "AES256"), Ok(Request::Aes256));
    refused(request_with_algorithm(None, "DES"), "InvalidEncryptionAlgorithmError");
    assert_eq!(refused(request_with_kms_key(None, Some("k1")), "InvalidArgument").message(), NO_KEY);
    refused(request_with_data_encryption(Some(Request::Aes256), Some("SM4")), "InvalidArgument");
    refused("none".parse::<Request>(), "InvalidEncryptionAlgorithmError");
}
