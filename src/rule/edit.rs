//! Setting one part of a rule or a request: the xattrs `user.sse.default.algorithm`, `.kms-key-id` and
//! `.data-encryption`, and on files `user.sse.algorithm`, `.kms-key-id` and `.data-encryption`.
//!
//! The caller holds the result against [`super::Dialect::check_rule`] or `check_request` before storing it, and
//! answers the removal of an attribute that is not there (ENODATA) itself. White space around a value does not
//! count, an empty value of a key or a data encryption counts as removing it.

use super::error::RuleError;
use super::model::{Fields, Request, Rule};

/// The rule after its algorithm was set to `AES256` or `KMS`. Setting KMS keeps a key and a data encryption that
/// are there; setting AES256 drops them.
///
/// # Errors
/// [`RuleError::UnknownAlgorithm`] (row 55).
pub fn with_algorithm(rule: Option<Rule>, algorithm: &str) -> Result<Rule, RuleError> {
    let fresh = Fields { algorithm: algorithm.trim_ascii(), key: None, data_encryption: None }.into_rule()?;
    match (rule, fresh) {
        (Some(kept @ Rule::Kms { .. }), Rule::Kms { .. }) => Ok(kept),
        (_, fresh) => Ok(fresh),
    }
}

/// The rule after its key was set, or with `None` put back to the default CMK.
///
/// # Errors
/// [`RuleError::KeyWithoutKms`] (row 56) where the rule is not KMS, or there is none; [`RuleError::KeyName`].
pub fn with_kms_key(rule: Option<Rule>, key: Option<&str>) -> Result<Rule, RuleError> {
    let Some(rule @ Rule::Kms { .. }) = rule else {
        return Err(RuleError::KeyWithoutKms);
    };
    Fields { algorithm: "KMS", key: key.map(str::trim_ascii), data_encryption: rule.data_encryption() }.into_rule()
}

/// The rule after its data encryption was set to `AES256` or `SM4`, or with `None` put back to AES256.
///
/// # Errors
/// [`RuleError::DataEncryptionWithoutKms`] (row 48) where the rule is not KMS, or there is none;
/// [`RuleError::UnknownDataEncryption`].
pub fn with_data_encryption(rule: Option<Rule>, data_encryption: Option<&str>) -> Result<Rule, RuleError> {
    let Some(rule @ Rule::Kms { .. }) = rule else {
        return Err(RuleError::DataEncryptionWithoutKms);
    };
    Fields { algorithm: "KMS", key: rule.key(), data_encryption: data_encryption.map(str::trim_ascii) }.into_rule()
}

/// [`with_algorithm`] for a file's request.
///
/// # Errors
/// As there.
pub fn request_with_algorithm(request: Option<Request>, algorithm: &str) -> Result<Request, RuleError> {
    with_algorithm(request.and_then(|r| r.as_rule()), algorithm)?.try_into()
}

/// [`with_kms_key`] for a file's request.
///
/// # Errors
/// As there.
pub fn request_with_kms_key(request: Option<Request>, key: Option<&str>) -> Result<Request, RuleError> {
    with_kms_key(request.and_then(|r| r.as_rule()), key)?.try_into()
}

/// [`with_data_encryption`] for a file's request.
///
/// # Errors
/// As there.
pub fn request_with_data_encryption(
    request: Option<Request>,
    data_encryption: Option<&str>,
) -> Result<Request, RuleError> {
    with_data_encryption(request.and_then(|r| r.as_rule()), data_encryption)?.try_into()
}
