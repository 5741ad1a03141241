//! SEMANTICS row 61: what a local disk does, the mount does. Every test here also passes on a plain
//! directory (`SSEFS_TEST_PLAIN=1`), so what it expects is what the kernel's own file systems do.

#[path = "../common/mount.rs"]
mod mount;
#[path = "../common/random_ops.rs"]
mod random_ops;
#[path = "../common/run.rs"]
mod run;
#[path = "../common/sys.rs"]
mod sys;
#[path = "../common/tree.rs"]
mod tree;

mod acls;
mod attributes;
mod data;
mod differential;
mod durable;
mod holes;
mod load;
mod locks;
mod mapped;
mod names;
mod permissions;
mod read_only;
mod xattrs;

/// A mount that other users may use, with a root that all may write to; None, with a line saying so, where only root
/// could test it.
fn shared() -> Option<mount::Mount> {
    if mount::skip_without_root() {
        return None;
    }
    let m = mount::Mount::builder().rule("AES256").shared().mount();
    sys::chmod(m.path(), 0o777).unwrap();
    Some(m)
}
