//! `ssefs coverage`: what is encrypted how, and whether that is what the rules want. Exit status 13 when not.

use serde_json::Value;

use super::args::CoverageArgs;
use super::place::{self, Place};
use super::print::{self, Bar};
use crate::bucket::Listed;
use crate::ops::{Command, ErrorCode, OpError};

pub fn run(place: &Place, args: &CoverageArgs) -> Result<(), OpError> {
    let list = match (args.plain, args.outside) {
        (true, _) => Some(Listed::Plain),
        (_, true) => Some(Listed::Outside),
        _ => None,
    };
    let bar = Bar::new();
    let report = place::run(place, &args.bucket, &Command::Coverage { list, most: args.limit as usize }, &bar)?;
    drop(bar);
    let groups = report.get("groups").and_then(Value::as_array).ok_or_else(|| print::unexpected("groups"))?;
    if args.output.json {
        print::json(&report)?;
    } else {
        let text = |v: &Value| if v.is_null() { String::new() } else { print::cell(v) };
        let rows: Vec<Vec<String>> = groups
            .iter()
            .map(|g| ["method", "cipher", "key", "key_version", "objects", "bytes"].map(|name| text(&g[name])).to_vec())
            .collect();
        print::table(&["METHOD", "CIPHER", "KEY", "VERSION", "OBJECTS", "BYTES"], &rows)?;
        let mut counts = report.clone();
        if let Some(map) = counts.as_object_mut() {
            map.remove("groups");
            map.remove("listed");
        }
        print::answer("\n")?;
        print::fields(&counts)?;
        for l in report["listed"].as_array().into_iter().flatten() {
            let line = format!("{}: {}", print::cell(&l["path"]), print::cell(&l["why"]));
            print::answer(&format!("{}\n", print::printable(&line)))?;
        }
    }
    match report["all_under_rule"] == Value::Bool(true) {
        true => Ok(()),
        false => Err(OpError::new(
            ErrorCode::Incomplete,
            format!(
                "{} objects of bucket {} are not as the rules want them, {} are altered",
                report["outside_objects"], args.bucket, report["altered_objects"]
            ),
        )
        .hint(format!("name them with --outside; ssefs object convert {}: seals them by the rules", args.bucket))),
    }
}
