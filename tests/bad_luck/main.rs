//! Bad luck and bad input: every case ends with a clear message, a documented exit code and no harm done.
//! Only ssefs has these, so they are skipped with `SSEFS_TEST_PLAIN=1`.

#[path = "../common/mount.rs"]
mod mount;
#[path = "../common/run.rs"]
mod run;
#[path = "../common/sys.rs"]
mod sys;
#[path = "../common/tree.rs"]
mod tree;

mod damage;
mod full_disk;
mod mounting;
mod root_key;
mod signals;

/// Exit codes as ssefs(1) documents them.
pub mod exit {
    pub const USAGE: Option<i32> = Some(2);
    pub const NOT_FOUND: Option<i32> = Some(3);
    pub const BUSY: Option<i32> = Some(4);
    pub const KEY: Option<i32> = Some(6);
    pub const DAMAGE: Option<i32> = Some(7);
    pub const MOUNT: Option<i32> = Some(9);
    pub const NEWER: Option<i32> = Some(11);
}
