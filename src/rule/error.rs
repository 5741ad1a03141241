//! What can be wrong with a rule. Codes and the words of rows 55 and 56 are the vendors' own, so that scripts
//! written against a cloud recognise them; everything else says what was wrong, where, and what to write instead.

use std::fmt;

use super::dialect::Dialect;

/// Longest piece of the user's text that a message repeats, in characters.
const QUOTED_CHARS_MAX: usize = 64;

/// A place in a rule's text, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Line, counted from 1.
    pub line: u32,
    /// Column counted from 1, where the parser knows it.
    pub column: Option<u32>,
}

impl Position {
    pub(super) fn line(line: u32) -> Position {
        Position { line, column: None }
    }

    /// The line in which byte `offset` of `text` lies.
    pub(super) fn of_byte(text: &[u8], offset: usize) -> Position {
        let before = &text[..offset.min(text.len())];
        let newlines = before.iter().filter(|b| **b == b'\n').count();
        Position::line(u32::try_from(newlines).unwrap_or(u32::MAX).saturating_add(1))
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.column {
            Some(column) => write!(f, "line {}, column {column}", self.line),
            None => write!(f, "line {}", self.line),
        }
    }
}

/// Why a rule or a request was refused. Nothing has been changed when one of these comes back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// Not well-formed, not one rule, or holding something that a rule has no place for (rows 48, 60).
    #[error("{at}: {what}")]
    MalformedXml { at: Position, what: String },
    /// The algorithm is neither AES256 nor KMS (row 55); SSE-C as a rule ends here too (row 29).
    #[error("The Encryption request you specified is not valid. Supported value: AES256/KMS")]
    UnknownAlgorithm,
    /// A key was named where the algorithm is not KMS (row 56).
    #[error("KMSMasterKeyID is not applicable if the default sse algorithm is not KMS")]
    KeyWithoutKms,
    /// A data encryption was named where the algorithm is not KMS (row 48).
    #[error("KMSDataEncryption is not applicable if the default sse algorithm is not KMS")]
    DataEncryptionWithoutKms,
    /// The data encryption is neither AES256 nor SM4 (row 48).
    #[error("KMSDataEncryption {value} is not valid. Supported value: AES256/SM4")]
    UnknownDataEncryption { value: String },
    /// The key's name cannot be the id or the alias of any key.
    #[error("KMSMasterKeyID {name} is not valid: {why}; give the key's id or alias")]
    KeyName { name: String, why: &'static str },
    /// The bucket's dialect does not know this rule or request (row 13).
    #[error("{what} is not allowed in a bucket of dialect {dialect}: {instead}")]
    NotInDialect { what: String, dialect: Dialect, instead: &'static str },
    /// The bucket's dialect has bucket rules only (row 33).
    #[error("a directory has no rule of its own in a bucket of dialect {dialect}: set the rule on the bucket")]
    DirectoryRule { dialect: Dialect },
    /// `none` was given as a bucket's rule.
    #[error("none is a rule for directories only: delete the bucket's rule instead")]
    NoneOnBucket,
    /// XML has no word for the rule `none`.
    #[error("the rule none has no XML form: read it in the short form")]
    NoneHasNoXml,
    /// There is no rule here (row 58).
    #[error("no encryption rule is set here: objects are stored plain unless a request or a rule above says otherwise")]
    NoRule { dialect: Dialect },
    /// The named key does not exist (row 59).
    #[error("the key {key} does not exist: list the keys that do, or create it")]
    KeyNotFound { key: String },
    /// The named key did exist (row 59).
    #[error("the key {key} does not exist any more: it was destroyed {when}; name another key")]
    KeyDestroyed { key: String, when: String },
    /// The named key is disabled (row 59).
    #[error("the key {key} is disabled: enable it, or name another key")]
    KeyDisabled { key: String },
    /// The named key waits for its deletion (row 59).
    #[error("the key {key} is pending deletion: cancel the deletion, or name another key")]
    KeyPendingDeletion { key: String },
    /// The named key has lost its imported material (row 59).
    #[error("the key {key} is pending import: import its material again, or name another key")]
    KeyPendingImport { key: String },
    /// No dialect has this name.
    #[error("there is no dialect {name}: use native, cos, oss, jd or aws")]
    UnknownDialect { name: String },
}

impl RuleError {
    pub(super) fn malformed(at: Position, what: impl Into<String>) -> RuleError {
        RuleError::MalformedXml { at, what: what.into() }
    }

    /// The error code that HTTP, the command line and `user.sse.last-error` show.
    pub fn code(&self) -> &'static str {
        match self {
            RuleError::MalformedXml { .. } => "MalformedXML",
            RuleError::UnknownAlgorithm => "InvalidEncryptionAlgorithmError",
            RuleError::KeyWithoutKms
            | RuleError::DataEncryptionWithoutKms
            | RuleError::UnknownDataEncryption { .. }
            | RuleError::KeyName { .. }
            | RuleError::NotInDialect { .. }
            | RuleError::DirectoryRule { .. }
            | RuleError::NoneOnBucket
            | RuleError::NoneHasNoXml
            | RuleError::UnknownDialect { .. } => "InvalidArgument",
            RuleError::NoRule { dialect } => dialect.no_rule_code(),
            RuleError::KeyNotFound { .. } | RuleError::KeyDestroyed { .. } => "KMS.NotFoundException",
            RuleError::KeyDisabled { .. } => "KMS.DisabledException",
            RuleError::KeyPendingDeletion { .. } | RuleError::KeyPendingImport { .. } => "KMS.KMSInvalidStateException",
        }
    }

    /// The HTTP status: 404 where there is no rule, else 400 (S3's list of error codes has 400 for its three
    /// `KMS.` codes as well).
    pub fn http_status(&self) -> u16 {
        match self {
            RuleError::NoRule { .. } => 404,
            _ => 400,
        }
    }

    /// The message without its code, word for word where the contract gives the words.
    pub fn message(&self) -> String {
        self.to_string()
    }
}

/// The user's own text as a message may repeat it: on one line, without control characters, of bounded length.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::new();
    for (i, c) in text.chars().enumerate() {
        if i == QUOTED_CHARS_MAX {
            out.push('…');
            break;
        }
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}
