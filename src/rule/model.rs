//! The values everything else in this module reads or writes: methods, ciphers, rules and requests.
//! A rule's text form is the canonical short form; the catalog, the control socket and xattrs all store that.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::customer::{self, Customer};
use super::error::{RuleError, quoted};
use super::short;

/// Longest name of a key, in bytes (the limit on KeyId in the AWS KMS API reference).
pub const KEY_NAME_BYTES_MAX: usize = 2048;

/// How an object's data key is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// Plain content.
    None,
    /// SSE: wrapped by the bucket's service-managed master key.
    Aes256,
    /// SSE-KMS: wrapped by a customer master key.
    Kms,
    /// SSE-C: wrapped by a key derived from the customer's own.
    SseC,
}

impl Method {
    /// `none`, `AES256`, `KMS` or `SSE-C`.
    pub fn as_str(self) -> &'static str {
        match self {
            Method::None => "none",
            Method::Aes256 => "AES256",
            Method::Kms => "KMS",
            Method::SseC => "SSE-C",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What seals an object's chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cipher {
    /// AES-256-GCM (NIST SP 800-38D), 256-bit data key.
    Aes256Gcm,
    /// SM4-GCM (RFC 8998), 128-bit data key.
    Sm4Gcm,
    /// No encryption; content is only authenticated.
    Plain,
}

impl Cipher {
    /// `AES-256-GCM`, `SM4-GCM` or `plain`.
    pub fn as_str(self) -> &'static str {
        match self {
            Cipher::Aes256Gcm => "AES-256-GCM",
            Cipher::Sm4Gcm => "SM4-GCM",
            Cipher::Plain => "plain",
        }
    }
}

impl fmt::Display for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The default encryption of a bucket or of a directory. "No rule" is `Option::None`; [`Rule::None`] is a rule
/// that says plain, which only a directory may have.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Rule {
    /// Objects below are stored plain.
    None,
    /// SSE.
    Aes256,
    /// SSE-KMS.
    Kms {
        /// The key's id or alias as it was given; absent: the default service CMK.
        key: Option<String>,
        /// SM4-GCM instead of AES-256-GCM.
        sm4: bool,
    },
}

impl Rule {
    /// The method a PUT under this rule gets.
    pub fn method(&self) -> Method {
        match self {
            Rule::None => Method::None,
            Rule::Aes256 => Method::Aes256,
            Rule::Kms { .. } => Method::Kms,
        }
    }

    /// The cipher a PUT under this rule gets.
    pub fn cipher(&self) -> Cipher {
        match self {
            Rule::None => Cipher::Plain,
            Rule::Aes256 | Rule::Kms { sm4: false, .. } => Cipher::Aes256Gcm,
            Rule::Kms { sm4: true, .. } => Cipher::Sm4Gcm,
        }
    }

    /// What `user.sse.default.algorithm` reads: `AES256` or `KMS`, nothing for `none`.
    pub fn algorithm(&self) -> Option<&'static str> {
        match self {
            Rule::None => None,
            Rule::Aes256 => Some("AES256"),
            Rule::Kms { .. } => Some("KMS"),
        }
    }

    /// The key as it was named. Nothing for the default CMK, whose id only the keyring knows.
    pub fn key(&self) -> Option<&str> {
        match self {
            Rule::Kms { key, .. } => key.as_deref(),
            Rule::None | Rule::Aes256 => None,
        }
    }

    /// What `user.sse.default.data-encryption` reads: `AES256` or `SM4`, and only where the algorithm is KMS.
    pub fn data_encryption(&self) -> Option<&'static str> {
        match self {
            Rule::Kms { sm4, .. } => Some(if *sm4 { "SM4" } else { "AES256" }),
            Rule::None | Rule::Aes256 => None,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        short::write(self, f)
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    /// Reads the short form alone, without a dialect's limits: for what ssefs itself has stored. Text from a
    /// user goes through [`super::parse`].
    fn from_str(text: &str) -> Result<Rule, RuleError> {
        short::parse(text)
    }
}

impl From<Rule> for String {
    fn from(rule: Rule) -> String {
        rule.to_string()
    }
}

impl TryFrom<String> for Rule {
    type Error = RuleError;

    fn try_from(text: String) -> Result<Rule, RuleError> {
        text.parse()
    }
}

/// The encryption asked for one object. There is no request for plain content.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Request {
    /// SSE.
    Aes256,
    /// SSE-KMS; the fields are those of [`Rule::Kms`].
    Kms {
        /// The key's id or alias as it was given; absent: the default service CMK.
        key: Option<String>,
        /// SM4-GCM instead of AES-256-GCM.
        sm4: bool,
    },
    /// SSE-C.
    SseC(Customer),
}

impl Request {
    /// The rule that gives the same method, cipher and key. SSE-C is none (row 29).
    pub fn as_rule(&self) -> Option<Rule> {
        match self {
            Request::Aes256 => Some(Rule::Aes256),
            Request::Kms { key, sm4 } => Some(Rule::Kms { key: key.clone(), sm4: *sm4 }),
            Request::SseC(_) => None,
        }
    }

    /// As the catalog keeps it, and as tags cover it. What people are shown is [`fmt::Display`]'s.
    pub fn stored(&self) -> String {
        match self {
            Request::SseC(customer) => customer.stored(),
            Request::Aes256 | Request::Kms { .. } => self.to_string(),
        }
    }
}

impl TryFrom<Rule> for Request {
    type Error = RuleError;

    /// Fails for [`Rule::None`] with [`RuleError::UnknownAlgorithm`].
    fn try_from(rule: Rule) -> Result<Request, RuleError> {
        match rule {
            Rule::None => Err(RuleError::UnknownAlgorithm),
            Rule::Aes256 => Ok(Request::Aes256),
            Rule::Kms { key, sm4 } => Ok(Request::Kms { key, sm4 }),
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_rule() {
            Some(rule) => rule.fmt(f),
            None => f.write_str(Method::SseC.as_str()),
        }
    }
}

impl FromStr for Request {
    type Err = RuleError;

    /// Reads what [`Request::stored`] wrote; text from a user goes through [`super::parse`], which knows no SSE-C.
    fn from_str(text: &str) -> Result<Request, RuleError> {
        if text.starts_with(customer::PREFIX) {
            return text.parse().map(Request::SseC);
        }
        text.parse::<Rule>()?.try_into()
    }
}

impl From<Request> for String {
    fn from(request: Request) -> String {
        request.stored()
    }
}

impl TryFrom<String> for Request {
    type Error = RuleError;

    fn try_from(text: String) -> Result<Request, RuleError> {
        text.parse()
    }
}

/// The three fields of a rule as every form has them, before anything is known to fit together.
pub(super) struct Fields<'a> {
    pub algorithm: &'a str,
    pub key: Option<&'a str>,
    pub data_encryption: Option<&'a str>,
}

impl Fields<'_> {
    /// Rows 48, 51, 52, 55 and 56, for all forms at once. Empty fields count as absent ones.
    pub(super) fn into_rule(self) -> Result<Rule, RuleError> {
        let key = self.key.filter(|key| !key.is_empty());
        let data_encryption = self.data_encryption.filter(|value| !value.is_empty());
        match self.algorithm {
            "AES256" if key.is_some() => Err(RuleError::KeyWithoutKms),
            "AES256" if data_encryption.is_some() => Err(RuleError::DataEncryptionWithoutKms),
            "AES256" => Ok(Rule::Aes256),
            "KMS" => Ok(Rule::Kms {
                key: key.map(key_name).transpose()?,
                sm4: match data_encryption {
                    None | Some("AES256") => false,
                    Some("SM4") => true,
                    Some(other) => {
                        return Err(RuleError::UnknownDataEncryption { value: quoted(other) });
                    }
                },
            }),
            _ => Err(RuleError::UnknownAlgorithm),
        }
    }
}

/// Checks that `name` can name a key and survives every form. Colons separate the fields of the short form, so
/// only ARNs of outside key services may hold them, and not such that the last field reads as a data encryption.
fn key_name(name: &str) -> Result<String, RuleError> {
    let wrong = |why| Err(RuleError::KeyName { name: quoted(name), why });
    if name.len() > KEY_NAME_BYTES_MAX {
        return wrong("it is longer than 2048 bytes");
    }
    if !name.bytes().all(|b| b.is_ascii_graphic()) {
        return wrong("it holds a space or a character outside ASCII");
    }
    if let Some((_, last)) = name.rsplit_once(':') {
        if !name.starts_with("arn:") {
            return wrong("it holds a colon and is no ARN");
        }
        if matches!(last, "" | "AES256" | "SM4") {
            return wrong("its last field names no key");
        }
    }
    Ok(name.to_owned())
}
