//! The short form: `none`, `AES256`, `KMS`, `KMS:KEY`, `KMS:KEY:SM4`, `KMS::SM4`. One line, no spaces; printing
//! and parsing are each other's inverse.

use std::fmt;

use super::error::RuleError;
use super::model::{Fields, Rule};

/// Writes the canonical short form.
pub(super) fn write(rule: &Rule, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match rule {
        Rule::None => f.write_str("none"),
        Rule::Aes256 => f.write_str("AES256"),
        Rule::Kms { key, sm4 } => {
            f.write_str("KMS")?;
            if key.is_some() || *sm4 {
                write!(f, ":{}", key.as_deref().unwrap_or_default())?;
            }
            if *sm4 {
                f.write_str(":SM4")?;
            }
            Ok(())
        }
    }
}

/// Reads the short form. Besides the canonical spellings it takes those that say a default aloud
/// (`KMS:KEY:AES256`, `KMS:`).
pub(super) fn parse(text: &str) -> Result<Rule, RuleError> {
    if text == "none" {
        return Ok(Rule::None);
    }
    let (algorithm, rest) = text.split_once(':').unwrap_or((text, ""));
    let (key, data_encryption) = split_rest(rest);
    Fields { algorithm, key: Some(key), data_encryption: Some(data_encryption) }.into_rule()
}

/// Splits `KEY`, `KEY:DATA` or `:DATA`. An ARN has colons of its own: of it, only a last field that reads as a
/// data encryption is one.
fn split_rest(rest: &str) -> (&str, &str) {
    match rest.rsplit_once(':') {
        Some((key, last @ ("SM4" | "AES256" | ""))) => (key, last),
        _ if rest.starts_with("arn:") => (rest, ""),
        _ => rest.split_once(':').unwrap_or((rest, "")),
    }
}
