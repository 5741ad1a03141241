//! Keys that lie with other services, through real mounts: the AWS KMS API (a fake of ours, and moto), PKCS#11 (SoftHSM2).
//! What these tests are about only ssefs has, so they are skipped with `SSEFS_TEST_PLAIN=1`.

#[path = "../common/kms.rs"]
mod kms;
#[path = "../common/mount.rs"]
mod mount;
#[path = "../common/run.rs"]
mod run;
#[path = "../common/sys.rs"]
mod sys;

mod aws;
mod credentials;
mod moto;
mod outage;
mod pkcs11;

use std::fs;
use std::io;
use std::path::Path;

use kms::Kms;
use mount::{Mount, errno, get_xattr_text};

pub const RULE: &str = "user.sse.default";

/// A bucket `b` whose rule is a key of the fake, alias `ext`, mounted. Calls last a second at most.
pub fn mounted(kms: &Kms, options: &[&str]) -> Mount {
    let mut m = unmounted(kms, options);
    m.ssefs(&["key", "create", "--alias", "ext", "--provider", &kms.uri(1)]).ok();
    m.mount();
    m
}

/// The same with neither key nor mount.
pub fn unmounted(kms: &Kms, options: &[&str]) -> Mount {
    let _ = kms;
    let mut b = Mount::builder().rule("KMS:ext");
    for o in options {
        b = b.option(o);
    }
    for (name, value) in [
        ("AWS_ACCESS_KEY_ID", kms::ACCESS),
        ("AWS_SECRET_ACCESS_KEY", kms::SECRET),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent"),
        ("AWS_CONFIG_FILE", "/nonexistent"),
    ] {
        b = b.env(name, value);
    }
    b.unmounted()
}

/// That it was refused with this errno, and that `user.sse.last-error` says why.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(m: &Mount, what: io::Result<T>, expect: i32, because: &[&str]) {
    assert_eq!(errno(what), expect);
    let last = get_xattr_text(m.path(), "user.sse.last-error").unwrap();
    for b in because {
        assert!(last.contains(b), "last-error must say {b:?}: {last}");
    }
}

/// Whether `needle` lies anywhere in the files below `dir`.
pub fn holds(dir: &Path, needle: &[u8]) -> bool {
    let mut found = false;
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        found |= if path.is_dir() {
            holds(&path, needle)
        } else {
            fs::read(&path).unwrap_or_default().windows(needle.len()).any(|w| w == needle)
        };
    }
    found
}
