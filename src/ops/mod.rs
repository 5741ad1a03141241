//! What can be asked of a bucket from outside, as one `Command` and one `run`: the command line calls it on a bucket
//! it opened itself, and a mount calls it for whoever asks through its control socket. So there is one code path,
//! and a change means the same with and without a mount. Nothing here prints.

mod codes;
mod error;
mod progress;
mod wire;

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use error::{EXIT_CODES, ErrorCode, OpError};
pub use progress::{Progress, Quiet};
pub use wire::WirePath;

use crate::bucket::{Ask, Bucket, Listed};
use crate::crypto::wrap::WRAP_OVERHEAD;
use crate::rule::{self, Dialect, Place, Rule, RuleError};
use crate::types::{KeyId, from_hex};

pub mod check;
pub mod speed;

const WRAPPED_ROOT_BYTES: usize = WRAP_OVERHEAD + 32;

/// The forms a rule is shown in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuleForm {
    Short,
    Xml,
    Json,
}

/// Everything the command line asks of a bucket. Paths are relative to the bucket's root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "do", deny_unknown_fields)]
pub enum Command {
    /// What the bucket is: name, rule, owner, sizes.
    Info,
    /// The rule of the bucket, or of a directory.
    RuleGet { dir: Option<WirePath>, form: RuleForm },
    /// Sets it, from any accepted form.
    RulePut { dir: Option<WirePath>, rule: String },
    /// Deletes it; deleting a rule that is not there succeeds (SEMANTICS 58).
    RuleDelete { dir: Option<WirePath> },
    /// Allows a user to change rules, or takes that back.
    Grant { uid: u32, allow: bool },
    /// How one object is encrypted.
    ObjectShow { path: WirePath },
    /// Moves the keys that wrap data keys to the newest version of their master key.
    Rewrap,
    /// Makes new KEKs and wraps every data key under them; goes on where it was stopped.
    Renew,
    /// What is under which method, key and version; names up to `most` objects of a kind.
    Coverage { list: Option<Listed>, most: usize },
    /// Refuses plain objects, or no longer (SEMANTICS 76).
    RequireEncryption { on: bool },
    /// Seals an object, or all below a directory, anew: to a rule, or to the one in force.
    Convert { path: WirePath, rule: Option<String>, new_keys: bool },
    /// Goes on with the conversion that was stopped.
    ConvertResume,
    /// The conversion that was stopped, null where none was.
    ConvertStatus,
    /// Gives it up; what is done stays.
    ConvertAbandon,
    /// Destroys the keys of objects, with `recursive` of all below directories.
    Erase { paths: Vec<WirePath>, recursive: bool },
    /// Goes on with an erasure that was cut off.
    EraseResume,
    /// What the bucket holds of a master key; when that is nothing, the keyring learns it.
    KeyUse { key: String },
    /// Verifies the bucket's structure, with `read_data` every chunk as well.
    Check { read_data: bool },
    /// Gives back all room that can be given back, now.
    Compact,
    /// Makes everything durable that was acknowledged.
    Commit,
    /// The root key that the keyring is about to be changed to, wrapped under the present one; both in hexadecimal.
    NextRoot { id: String, sealed: String },
}

impl Command {
    /// True when a bucket opened for reading is enough.
    pub fn only_reads(&self) -> bool {
        matches!(
            self,
            Command::Info
                | Command::RuleGet { .. }
                | Command::ObjectShow { .. }
                | Command::Check { .. }
                | Command::Coverage { .. }
                | Command::ConvertStatus
        )
    }
}

/// Runs one command for the user `caller_uid`. Who may change a rule is judged by the bucket (SEMANTICS 46).
pub fn run(bucket: &Bucket, caller_uid: u32, command: &Command, progress: &dyn Progress) -> Result<Value, OpError> {
    match command {
        Command::Info => to_value(&bucket.info()),
        Command::RuleGet { dir, form } => rule_get(bucket, dir.as_ref().map(WirePath::as_path), *form),
        Command::RulePut { dir, rule } => {
            let rule = parse_rule(rule, bucket.info().dialect, dir.is_some())?;
            match dir {
                None => bucket.set_rule(caller_uid, Some(rule))?,
                Some(dir) => bucket.set_directory_rule(caller_uid, dir.as_path(), Some(rule))?,
            }
            Ok(Value::Null)
        }
        Command::RuleDelete { dir } => {
            match dir {
                None => bucket.set_rule(caller_uid, None)?,
                Some(dir) => bucket.set_directory_rule(caller_uid, dir.as_path(), None)?,
            }
            Ok(Value::Null)
        }
        Command::Grant { uid, allow } => {
            bucket.grant(caller_uid, *uid, *allow)?;
            Ok(Value::Null)
        }
        Command::ObjectShow { path } => to_value(&bucket.object_show(caller_uid, path.as_path())?),
        Command::Rewrap => to_value(&bucket.rewrap()?),
        Command::Renew => with(progress, |ask| bucket.renew_keks(ask)),
        Command::Coverage { list, most } => with(progress, |ask| bucket.coverage(*list, *most, ask)),
        Command::RequireEncryption { on } => {
            bucket.require_encryption(caller_uid, *on)?;
            Ok(Value::Null)
        }
        Command::Convert { path, rule, new_keys } => {
            let rule = rule.as_ref().map(|r| parse_rule(r, bucket.info().dialect, true)).transpose()?;
            with(progress, |ask| bucket.convert(caller_uid, path.as_path(), rule, *new_keys, ask))
        }
        Command::ConvertResume => with(progress, |ask| bucket.resume_convert(ask)),
        Command::ConvertStatus => Ok(match bucket.convert_status() {
            Some((job, path)) => json!({ "path": path, "job": job }),
            None => Value::Null,
        }),
        Command::ConvertAbandon => {
            bucket.abandon_convert()?;
            Ok(Value::Null)
        }
        Command::Erase { paths, recursive } => {
            let paths: Vec<&Path> = paths.iter().map(WirePath::as_path).collect();
            with(progress, |ask| bucket.erase(caller_uid, &paths, *recursive, ask))
        }
        Command::EraseResume => with(progress, |ask| bucket.resume_erase(caller_uid, ask)),
        Command::KeyUse { key } => to_value(&bucket.key_use(&KeyId(key.clone()))?),
        Command::Check { read_data } => {
            to_value(&check::check(bucket, check::CheckOptions { read_data: *read_data }, progress)?)
        }
        Command::Compact => {
            bucket.compact_now()?;
            Ok(Value::Null)
        }
        Command::Commit => {
            bucket.commit()?;
            Ok(Value::Null)
        }
        Command::NextRoot { id, sealed } => {
            let parsed = from_hex::<8>(id).zip(from_hex::<WRAPPED_ROOT_BYTES>(sealed));
            let (id, sealed) = parsed.ok_or_else(|| OpError::usage("that is no wrapped root key"))?;
            bucket.accept_root(&id, &sealed)?;
            Ok(Value::Null)
        }
    }
}

/// Run something long of the bucket with the progress of whoever waits for it.
fn with<T: Serialize>(
    progress: &dyn Progress,
    f: impl FnOnce(&Ask) -> Result<T, crate::bucket::BucketError>,
) -> Result<Value, OpError> {
    let ask = Ask {
        stage: &|what, total| progress.stage(what, total),
        advance: &|n| {
            progress.advance(n);
            !progress.cancelled()
        },
    };
    to_value(&f(&ask)?)
}

/// Reads a rule for a bucket or a directory in any accepted form; errors keep the vendors' words.
pub fn parse_rule(text: &str, dialect: Dialect, for_directory: bool) -> Result<Rule, OpError> {
    let place = if for_directory { Place::Directory } else { Place::Bucket };
    Ok(rule::parse_for(text.as_bytes(), dialect, place)?)
}

fn rule_get(bucket: &Bucket, dir: Option<&Path>, form: RuleForm) -> Result<Value, OpError> {
    let dialect = bucket.info().dialect;
    let rule = match dir {
        None => bucket.rule(),
        Some(dir) => bucket.directory_rule(dir)?,
    };
    let Some(rule) = rule else {
        return Err(RuleError::NoRule { dialect }.into());
    };
    Ok(json!({ "rule": print_rule(&rule, dialect, form)? }))
}

/// A rule in one of its forms. JSON is that of `aws s3api get-bucket-encryption`, which has no word for SM4 nor for
/// `none`.
pub fn print_rule(rule: &Rule, dialect: Dialect, form: RuleForm) -> Result<String, OpError> {
    match form {
        RuleForm::Short => Ok(rule.to_string()),
        RuleForm::Xml => Ok(rule::print_xml(rule, dialect)?),
        RuleForm::Json => {
            let mut default = serde_json::Map::new();
            match rule {
                Rule::Aes256 => default.insert("SSEAlgorithm".into(), json!("AES256")),
                Rule::Kms { sm4: false, .. } => default.insert("SSEAlgorithm".into(), json!("aws:kms")),
                Rule::Kms { sm4: true, .. } | Rule::None => {
                    return Err(OpError::new(ErrorCode::Refused, format!("the rule {rule} has no JSON form"))
                        .hint("read it in the short form"));
                }
            };
            if let Some(key) = rule.key() {
                default.insert("KMSMasterKeyID".into(), json!(key));
            }
            Ok(json!({ "Rules": [{ "ApplyServerSideEncryptionByDefault": default }] }).to_string())
        }
    }
}

fn to_value<T: Serialize>(report: &T) -> Result<Value, OpError> {
    serde_json::to_value(report).map_err(|e| OpError::new(ErrorCode::General, format!("cannot write the answer: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_goes_over_the_wire_as_one_line_and_back() {
        let dir = || Some(WirePath::from(std::path::PathBuf::from("a\nb")));
        for command in [
            Command::Info,
            Command::RuleGet { dir: dir(), form: RuleForm::Xml },
            Command::RulePut { dir: None, rule: "<a>\n</a>".into() },
            Command::RuleDelete { dir: dir() },
            Command::Grant { uid: 1000, allow: true },
            Command::ObjectShow { path: WirePath::from(std::path::PathBuf::from("x")) },
            Command::Rewrap,
            Command::Coverage { list: Some(Listed::Plain), most: 5 },
            Command::Convert {
                path: WirePath::from(std::path::PathBuf::new()),
                rule: Some("KMS".into()),
                new_keys: true,
            },
            Command::Erase { paths: vec![WirePath::from(std::path::PathBuf::from("x"))], recursive: false },
            Command::KeyUse { key: "mk-1".into() },
            Command::Check { read_data: true },
            Command::Commit,
        ] {
            let line = serde_json::to_string(&command).unwrap();
            assert!(!line.contains('\n'), "{line}");
            assert_eq!(serde_json::from_str::<Command>(&line).unwrap(), command);
        }
        assert!(serde_json::from_str::<Command>(r#"{"do":"erase-all"}"#).is_err());
    }

    #[test]
    fn printed_rules_are_accepted_again() {
        for text in ["AES256", "KMS", "KMS:my-key"] {
            let rule = parse_rule(text, Dialect::Native, false).unwrap();
            for form in [RuleForm::Short, RuleForm::Xml, RuleForm::Json] {
                let printed = print_rule(&rule, Dialect::Native, form).unwrap();
                assert_eq!(parse_rule(&printed, Dialect::Native, false).unwrap(), rule, "{printed}");
            }
        }
        let sm4 = parse_rule("KMS::SM4", Dialect::Native, false).unwrap();
        assert_eq!(print_rule(&sm4, Dialect::Native, RuleForm::Json).unwrap_err().code, ErrorCode::Refused);
    }

    #[test]
    fn r55_an_unknown_algorithm_is_refused_in_the_vendors_words() {
        let e = parse_rule("DES", Dialect::Native, false).unwrap_err();
        assert_eq!(e.code, ErrorCode::Refused);
        assert_eq!(
            e.message,
            "InvalidEncryptionAlgorithmError: The Encryption request you specified is not valid. \
             Supported value: AES256/KMS"
        );
    }
}
