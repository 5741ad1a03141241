//! `ssefs object erase`: the keys of objects are destroyed, and a receipt says what was, when, and what could not be reached.

use std::path::PathBuf;

use serde_json::Value;

use super::object::find_together;
use super::place::{Place, bucket_exists, no_such_bucket};
use super::print::{self, Bar};
use crate::bucket::Bucket;
use crate::ops::{Command, ErrorCode, OpError};
use crate::types::BucketName;

pub fn run(
    place: &Place,
    paths: &[PathBuf],
    recursive: bool,
    bucket: Option<&BucketName>,
    resume: bool,
    as_json: bool,
) -> Result<(), OpError> {
    let bar = Bar::new();
    let receipt = match bucket {
        Some(bucket) => {
            let dir = place.store_dir()?;
            if !bucket_exists(dir, bucket) {
                return Err(no_such_bucket(dir, bucket));
            }
            if let Some(holder) = Bucket::who_has(dir, bucket) {
                return Err(super::bucket::in_use(bucket, &holder));
            }
            let store = place.open()?;
            let receipt = Bucket::erase_bucket(&store.path, store.id, bucket, &store.keys)?;
            serde_json::to_value(receipt).map_err(|e| OpError::new(ErrorCode::General, e.to_string()))?
        }
        None => {
            let (at, paths) = find_together(paths)?;
            let command = if resume { Command::EraseResume } else { Command::Erase { paths, recursive } };
            at.ask(place, &command, &bar)?
        }
    };
    drop(bar);
    // Told by the exit code as well when nobody reads it: there is no second one.
    print::only_once(&if as_json { format!("{receipt}\n") } else { text(&receipt) })?;
    match receipt["complete"] == Value::Bool(true) {
        true => Ok(()),
        false => {
            Err(OpError::new(ErrorCode::Incomplete, "the erasure is not complete; the receipt says what is missing")
                .hint(format!("go on with: ssefs object erase --resume {}:", print::cell(&receipt["bucket"]))))
        }
    }
}

/// The receipt as a person reads it.
fn text(r: &Value) -> String {
    let mut out = String::from("ERASURE RECEIPT\n");
    let mut line = |name: &str, value: String| out.push_str(&format!("{name:12}  {}\n", print::printable(&value)));
    for name in ["receipt", "date", "bucket", "bucket_id"] {
        line(&name.replace('_', " "), print::cell(&r[name]));
    }
    line("complete", if r["complete"] == Value::Bool(true) { "yes".into() } else { "NO".into() });
    for (name, key) in [
        ("object", "objects"),
        ("left", "left"),
        ("destroyed", "destroyed"),
        ("verified", "verified"),
        ("not reached", "not_reached"),
    ] {
        for v in r[key].as_array().into_iter().flatten() {
            let words = match v.as_object() {
                None => print::cell(v),
                Some(o) if o.contains_key("why") => format!("{}: {}", print::cell(&v["path"]), print::cell(&v["why"])),
                Some(_) => format!(
                    "{} (inode {}, seal {}, {}, key {}, {} bytes)",
                    print::cell(&v["path"]),
                    print::cell(&v["object"]),
                    print::cell(&v["seal_id"]),
                    print::cell(&v["method"]),
                    print::cell(&v["key"]),
                    print::cell(&v["bytes"])
                ),
            };
            line(name, words);
        }
    }
    out
}
