//! Customer keys (SSE-C) through a mount, and what is cut off when a key is locked or disabled. Tests are named after the
//! rows of SEMANTICS.md they hold. Only ssefs has this, so all of it is skipped with `SSEFS_TEST_PLAIN=1`.

#[path = "../common/memory.rs"]
mod memory;
#[path = "../common/mount.rs"]
mod mount;
#[path = "../common/run.rs"]
mod run;
#[path = "../common/sys.rs"]
mod sys;
#[path = "../common/tree.rs"]
mod tree;

mod background;
mod bad_input;
mod cut_off;
mod files;
mod master_keys;
mod users;

use mount::{Mount, errno, get_xattr_text, remove_xattr, set_xattr};
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

pub const KEY: &str = "user.sse.customer-key";
pub const UNLOCK: &str = "user.sse.unlock";

/// A key of its own for each number.
pub fn key(n: u64) -> Vec<u8> {
    tree::Dice::new(0x5ec0_0000 + n).bytes(32)
}

/// An SSE-C object with this content.
pub fn put(m: &Mount, name: &str, key: &[u8], content: &[u8]) -> PathBuf {
    let at = m.at(name);
    File::create(&at).unwrap();
    set_xattr(&at, KEY, key).unwrap();
    fs::write(&at, content).unwrap();
    at
}

pub fn method(m: &Mount, name: &str) -> String {
    let state: serde_json::Value =
        serde_json::from_str(&get_xattr_text(m.at(name), "user.sse.state").unwrap()).expect("state is JSON");
    state["method"].as_str().unwrap().to_string()
}

pub fn last_error(m: &Mount) -> String {
    get_xattr_text(m.path(), "user.sse.last-error").unwrap()
}

/// That it was refused with this errno, and that `user.sse.last-error` says why.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(m: &Mount, what: io::Result<T>, no: i32, because: &[&str]) {
    assert_eq!(errno(what), no);
    let last = last_error(m);
    for b in because {
        assert!(last.contains(b), "last-error must say {b:?}: {last}");
    }
}

pub fn lock(m: &Mount, name: &str) {
    remove_xattr(m.at(name), UNLOCK).unwrap();
}

/// A key file beside the mount.
pub fn key_file(m: &Mount, name: &str, content: &[u8], mode: u32) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let at = m.beside(name);
    fs::write(&at, content).unwrap();
    fs::set_permissions(&at, fs::Permissions::from_mode(mode)).unwrap();
    at
}

/// Rows of the catalog of a bucket that is not mounted.
pub fn rows<T>(m: &Mount, sql: &str, f: impl Fn(&rusqlite::Row) -> rusqlite::Result<T>) -> Vec<T> {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let catalog = rusqlite::Connection::open_with_flags(m.folder().join("catalog.db"), flags).unwrap();
    let mut s = catalog.prepare(sql).unwrap();
    s.query_map([], |r| f(r)).unwrap().map(Result::unwrap).collect()
}
