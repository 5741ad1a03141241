//! Sight over what is encrypted how, and power over it: coverage, buckets that refuse plain objects, conversion of many objects,
//! rewraps, erasure. Through the command line and attributes, on mounts and without; tests are named after rows of SEMANTICS.md.

#[path = "../common/mount.rs"]
mod mount;
#[path = "../common/run.rs"]
mod run;
#[path = "../common/sys.rs"]
mod sys;

mod convert;
mod coverage;
mod erase;
mod require;
mod rewrap;

use mount::{BUCKET, Mount};
use serde_json::Value;
use std::fs::{self, File};
use std::path::Path;

pub const RULE: &str = "user.sse.default";

/// `ssefs ARGS --json` with its exit code, whatever that is.
#[track_caller]
pub fn json(m: &Mount, code: i32, args: &[&str]) -> Value {
    let ran = m.ssefs(&[args, &["--json"]].concat());
    assert_eq!(ran.code, Some(code), "{args:?}: {ran:?}");
    serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{args:?}: {e}: {ran:?}"))
}

/// The report on coverage, whose exit code must be this.
#[track_caller]
pub fn coverage(m: &Mount, code: i32) -> Value {
    json(m, code, &["coverage", BUCKET])
}

/// The objects of a report under a method.
pub fn objects(report: &Value, method: &str) -> u64 {
    let groups = report["groups"].as_array().expect("groups");
    groups.iter().filter(|g| g["method"] == method).map(|g| g["objects"].as_u64().expect("a number")).sum()
}

pub fn put(m: &Mount, name: &str, content: impl AsRef<[u8]>) {
    fs::write(m.at(name), content).unwrap_or_else(|e| panic!("{name}: {e}"));
}

pub fn sync(m: &Mount) {
    File::open(m.path()).unwrap().sync_all().unwrap();
}

pub fn show(m: &Mount, name: &str) -> Value {
    json(m, 0, &["object", "show", &format!("{BUCKET}:{name}")])
}

/// Bytes that differ from file to file and from page to page.
pub fn content(seed: usize, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i * 7 + i / 4096 * 13 + seed * 31) as u8).collect()
}

pub fn files_below(dir: &Path, into: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
        if entry.path().is_dir() { files_below(&entry.path(), into) } else { into.push(entry.path()) }
    }
}
