//! `ssefs check`: verifies a bucket, mounted or not, and says what is wrong and where. Exit status 7 when anything is.

use serde_json::Value;

use super::args::CheckArgs;
use super::place::{self, Place};
use super::print::{self, Bar};
use crate::ops::{Command, ErrorCode, OpError};

pub fn run(place: &Place, args: &CheckArgs) -> Result<(), OpError> {
    let bar = Bar::new();
    let report = place::run(place, &args.bucket, &Command::Check { read_data: args.read_data }, &bar)?;
    drop(bar);
    let problems = report.get("problems").and_then(Value::as_array).ok_or_else(|| print::unexpected("problems"))?;
    if args.output.json {
        print::json(&report)?;
    } else {
        for problem in problems {
            print::answer(&format!("{}\n", print::cell(problem)))?;
        }
        let mut counts = report.clone();
        if let Some(map) = counts.as_object_mut() {
            map.remove("problems");
        }
        print::fields(&counts)?;
    }
    match problems.len() {
        0 => Ok(()),
        n => Err(OpError::new(ErrorCode::Damage, format!("bucket {} has {n} problems", args.bucket))
            .hint("undamaged objects stay readable; restore what is named above from a copy")),
    }
}
