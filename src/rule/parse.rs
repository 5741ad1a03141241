//! The one way in for a rule's text, whoever brings it: an xattr, the command line, HTTP. It finds out which of
//! the three forms it has and holds the result against the bucket's dialect.

use super::dialect::{Dialect, Place};
use super::error::{Position, RuleError};
use super::model::Rule;
use super::{json, short, xml};

/// Longest text of a rule, in bytes: the kernel's own limit on an xattr's value (XATTR_SIZE_MAX).
pub const RULE_TEXT_BYTES_MAX: usize = 64 * 1024;

const UTF8_BOM: &[u8] = b"\xef\xbb\xbf";

/// Reads a rule in the short form, as XML or as JSON. White space around the text does not count.
///
/// The answer is a rule that `dialect` allows somewhere; whether it may stand where it is to be set is
/// [`Dialect::check_rule`]'s to say, and [`parse_for`] asks both.
///
/// # Errors
/// [`RuleError::MalformedXml`] with the line, for JSON and XML with the column too (rows 48, 60); rows 48, 55 and
/// 56 for values that do not fit; [`RuleError::NotInDialect`].
pub fn parse(bytes: &[u8], dialect: Dialect) -> Result<Rule, RuleError> {
    if bytes.len() > RULE_TEXT_BYTES_MAX {
        let at = Position::of_byte(bytes, RULE_TEXT_BYTES_MAX);
        return Err(RuleError::malformed(at, "the rule is longer than 64 KiB"));
    }
    let bytes = bytes.strip_prefix(UTF8_BOM).unwrap_or(bytes);
    let text = std::str::from_utf8(bytes)
        .map_err(|e| RuleError::malformed(Position::of_byte(bytes, e.valid_up_to()), "the rule is not UTF-8 text"))?;
    let rule = match text.trim_ascii_start().as_bytes().first() {
        None => Err(RuleError::malformed(Position::line(1), "the rule is empty: SSEAlgorithm is required")),
        Some(b'<') => xml::parse(text),
        Some(b'{' | b'[') => json::parse(text),
        Some(_) => one_word(text),
    }?;
    dialect.check_anywhere(&rule)?;
    Ok(rule)
}

/// [`parse`], then [`Dialect::check_rule`].
///
/// # Errors
/// Those of both.
pub fn parse_for(bytes: &[u8], dialect: Dialect, place: Place) -> Result<Rule, RuleError> {
    let rule = parse(bytes, dialect)?;
    dialect.check_rule(&rule, place)?;
    Ok(rule)
}

/// The short form is one word. A second one is a second rule or no rule at all: row 60, not row 55.
fn one_word(text: &str) -> Result<Rule, RuleError> {
    let start = text.len() - text.trim_ascii_start().len();
    let word = text.trim_ascii();
    match word.find(|c: char| c.is_whitespace() || c.is_control()) {
        Some(gap) => {
            let second = word[gap..].find(|c: char| !c.is_whitespace()).unwrap_or(0);
            let at = Position::of_byte(text.as_bytes(), start + gap + second);
            Err(RuleError::malformed(at, "this is neither one rule in the short form nor XML nor JSON"))
        }
        None => short::parse(word),
    }
}
