//! The encryption rule through a mount, promise by promise: each test is named after its row in SEMANTICS.md.
//! What these tests are about only ssefs has, so they are skipped with `SSEFS_TEST_PLAIN=1`.

#[path = "../common/mount.rs"]
mod mount;
#[path = "../common/run.rs"]
mod run;
#[path = "../common/sys.rs"]
mod sys;
#[path = "../common/tree.rs"]
mod tree;

mod attributes;
mod conversion;
mod keys;
mod owner;
mod plaintext;
mod requests;
mod rules;
mod sm4;

use mount::{Mount, get_xattr_text};
use std::fs;
use std::io;

pub const RULE: &str = "user.sse.default";
pub const REQUEST: &str = "user.sse.algorithm";

/// Writes a file as a program does, makes it durable, and gives the method `user.sse.state` then tells.
pub fn put(m: &Mount, name: &str) -> String {
    fs::write(m.at(name), format!("content of {name}")).unwrap_or_else(|e| panic!("{name}: {e}"));
    fs::File::open(m.at(name)).unwrap().sync_all().unwrap();
    method(m, name)
}

/// The method of an object as `user.sse.state` and `object show` tell it, which must be the same: AES256, KMS or none.
#[track_caller]
pub fn method(m: &Mount, name: &str) -> String {
    let state: serde_json::Value =
        serde_json::from_str(&get_xattr_text(m.at(name), "user.sse.state").unwrap()).expect("state is JSON");
    let told = state["method"].as_str().unwrap_or_else(|| panic!("no method in {state}")).to_string();
    let shown = m.show(name);
    assert_eq!(shown["method"].as_str(), Some(told.as_str()), "{shown} {state}");
    let short = match told.as_str() {
        "none" => "none",
        "SSE" | "AES256" => "AES256",
        "SSE-KMS" | "KMS" => "KMS",
        _ => panic!("method {told}"),
    };
    let algorithm = get_xattr_text(m.at(name), REQUEST);
    match short {
        "none" => assert_eq!(mount::errno(algorithm), libc::ENODATA, "{name}"),
        _ => assert_eq!(algorithm.unwrap(), short, "{name}"),
    }
    short.to_string()
}

/// The whole of `user.sse.state`.
pub fn state(m: &Mount, name: &str) -> String {
    get_xattr_text(m.at(name), "user.sse.state").unwrap()
}

pub fn effective(m: &Mount, name: &str) -> String {
    get_xattr_text(m.at(name), "user.sse.effective").unwrap()
}

/// That it was refused with this errno, and that `user.sse.last-error` says why.
#[track_caller]
pub fn refused(m: &Mount, what: io::Result<()>, errno: i32, because: &[&str]) {
    assert_eq!(mount::errno(what), errno);
    let last = get_xattr_text(m.path(), "user.sse.last-error").unwrap();
    for b in because {
        assert!(last.contains(b), "last-error must say {b:?}: {last}");
    }
}
