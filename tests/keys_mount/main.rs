//! Customer master keys through a mount and through the command line alike: each test is named after its row in
//! SEMANTICS.md. What these tests are about only ssefs has, so they are skipped with `SSEFS_TEST_PLAIN=1`.

#[path = "../common/mount.rs"]
mod mount;
#[path = "../common/run.rs"]
mod run;
#[path = "../common/sys.rs"]
mod sys;

mod bad_keys;
mod delete;
mod grants;
mod import;
mod naming;

use mount::{Mount, get_xattr_text};
use serde_json::Value;
use std::fs::{self, File};
use std::io;

pub const RULE: &str = "user.sse.default";
pub const KEY_ID: &str = "user.sse.kms-key-id";
pub const ALGORITHM: &str = "user.sse.algorithm";

/// Makes a key with an alias; its id.
#[track_caller]
pub fn make_key(m: &Mount, alias: &str) -> String {
    let made = m.ssefs(&["key", "create", "--alias", alias, "--json"]).json();
    made["key"].as_str().unwrap().to_string()
}

/// What `key show --json` says.
#[track_caller]
pub fn key(m: &Mount, name: &str) -> Value {
    m.ssefs(&["key", "show", name, "--json"]).json()
}

/// Writes a file, makes it durable, and gives the key it is under.
#[track_caller]
pub fn put(m: &Mount, name: &str) -> String {
    write(m, name).unwrap();
    get_xattr_text(m.at(name), KEY_ID).unwrap()
}

/// Writes a new file; the first of all errors.
pub fn write(m: &Mount, name: &str) -> io::Result<()> {
    fs::write(m.at(name), format!("content of {name}"))?;
    File::open(m.at(name))?.sync_all()
}

pub fn last_error(m: &Mount) -> String {
    get_xattr_text(m.path(), "user.sse.last-error").unwrap()
}

/// That it was refused with this errno, and that `user.sse.last-error` has just these words.
#[track_caller]
pub fn refused(m: &Mount, what: io::Result<()>, errno: i32, words: &str) {
    assert_eq!(mount::errno(what), errno, "{words}");
    assert_eq!(last_error(m), words);
}

/// That a command was refused with this exit code and just these words, up to its hint.
#[track_caller]
pub fn refused_by_command(m: &Mount, args: &[&str], code: i32, words: &str) {
    let ran = m.ssefs(args);
    assert_eq!(ran.code, Some(code), "{ran:?}");
    assert_eq!(ran.stderr.lines().next(), Some(format!("ssefs: error: {words}").as_str()), "{ran:?}");
    assert_eq!(ran.stdout, "");
}
