//! `ssefs encryption`: PUT, GET and DELETE of the rule of a bucket or of a directory in it. The text goes to the
//! process that has the bucket, which knows the dialect; nothing is judged here.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use super::args::{EncryptionCmd, RuleOf};
use super::place::{self, Place};
use super::print;
use crate::ops::{Command, ErrorCode, OpError, Quiet, RuleForm, WirePath};
use crate::rule::RULE_TEXT_BYTES_MAX;

pub fn run(place: &Place, command: &EncryptionCmd) -> Result<(), OpError> {
    match command {
        EncryptionCmd::Put { of, rule, xml, json } => {
            let rule = match (rule, xml, json) {
                (Some(rule), ..) => rule.clone(),
                (None, Some(file), _) => read(file, '<', "XML")?,
                (None, None, Some(file)) => read(file, '{', "JSON")?,
                (None, None, None) => return Err(OpError::usage("a rule is missing")),
            };
            place::run(place, &of.bucket, &Command::RulePut { dir: dir(of)?, rule }, &Quiet)?;
            Ok(())
        }
        EncryptionCmd::Get { of, xml, json } => {
            let form = match (xml, json) {
                (true, _) => RuleForm::Xml,
                (false, true) => RuleForm::Json,
                (false, false) => RuleForm::Short,
            };
            let value = place::run(place, &of.bucket, &Command::RuleGet { dir: dir(of)?, form }, &Quiet)?;
            let text = value.get("rule").and_then(Value::as_str).ok_or_else(|| print::unexpected("rule"))?;
            print::answer(&format!("{}\n", text.trim_end()))
        }
        EncryptionCmd::Delete { of } => {
            place::run(place, &of.bucket, &Command::RuleDelete { dir: dir(of)? }, &Quiet)?;
            Ok(())
        }
    }
}

/// The directory as the bucket names it: relative to its root, without `.`; `..` is refused.
fn dir(of: &RuleOf) -> Result<Option<WirePath>, OpError> {
    of.dir.as_deref().map(inside).transpose()
}

/// A path inside a bucket, cleaned. A leading `/` means the bucket's root.
pub fn inside(path: &Path) -> Result<WirePath, OpError> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(OpError::usage(format!("{path:?} is not a path inside a bucket: it goes upward")));
            }
        }
    }
    Ok(clean.into())
}

/// A rule from a file, `-` for standard input. It must begin like what it is said to be, so that the wrong option
/// is an error here and not a surprise there.
fn read(file: &Path, first: char, form: &str) -> Result<String, OpError> {
    let source: Box<dyn Read> = if file == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        let opened = File::open(file).map_err(|e| OpError::io(format_args!("read {}", file.display()), &e))?;
        Box::new(opened)
    };
    let mut bytes = Vec::new();
    source
        .take(RULE_TEXT_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| OpError::io(format_args!("read {}", file.display()), &e))?;
    let malformed = |why: String| OpError::new(ErrorCode::Refused, format!("MalformedXML: {why}"));
    let text = String::from_utf8(bytes).map_err(|_| malformed(format!("{} is not UTF-8 text", file.display())))?;
    let begins = text.trim_start_matches('\u{feff}').trim_start().starts_with(first);
    if !begins && !text.trim().is_empty() {
        return Err(malformed(format!("line 1: {} does not begin like {form}", file.display())));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_named_from_the_buckets_root() {
        assert_eq!(inside(Path::new("/a//b/./c/")).unwrap().as_path(), Path::new("a/b/c"));
        assert_eq!(inside(Path::new("/")).unwrap().as_path(), Path::new(""));
        for bad in ["..", "a/../b", "/.."] {
            assert_eq!(inside(Path::new(bad)).unwrap_err().code, ErrorCode::Usage);
        }
    }

    #[test]
    fn a_rule_file_of_the_wrong_form_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("rule");
        std::fs::write(&file, "\u{feff} <x/>").unwrap();
        assert!(read(&file, '<', "XML").is_ok());
        assert!(read(&file, '{', "JSON").unwrap_err().message.starts_with("MalformedXML: line 1: "));
        std::fs::write(&file, b"\xff").unwrap();
        assert_eq!(read(&file, '<', "XML").unwrap_err().code, ErrorCode::Refused);
        assert_eq!(read(&dir.path().join("none"), '<', "XML").unwrap_err().code, ErrorCode::NotFound);
    }
}
