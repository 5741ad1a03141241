//! What a write that asks for it makes durable before it returns, and temporary files without a name.

use crate::mount::{Mount, errno, plain};
use crate::sys::{self, Aligned};
use std::fs;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::FileExt;

/// Nothing is durable by itself while this lives.
fn lazy() -> Mount {
    Mount::builder().rule("AES256").option("commit_interval=3600").mount()
}

#[test]
fn o_sync_and_o_dsync_make_each_write_durable_on_every_kind_of_handle() {
    let mut m = lazy();
    let ways = [libc::O_WRONLY, libc::O_RDWR, libc::O_WRONLY | libc::O_APPEND, libc::O_RDWR | libc::O_DIRECT];
    for (i, way) in ways.into_iter().enumerate() {
        for sync in [libc::O_SYNC, libc::O_DSYNC] {
            let p = m.at(format!("f{i}-{sync:o}"));
            let f = sys::open(&p, way | sync | libc::O_CREAT, 0o644).unwrap();
            let mut bytes = Aligned::new(8192);
            bytes.fill(i as u8 + 1);
            f.write_all_at(&bytes, 0).unwrap();
            m.kill9();
            drop(f);
            m.mount();
            assert_eq!(fs::read(&p).unwrap(), &bytes[..], "flags {way:o} {sync:o}");
        }
    }
}

#[test]
fn a_single_write_can_ask_to_be_durable() {
    let mut m = lazy();
    for (i, way) in [libc::O_WRONLY, libc::O_RDWR].into_iter().enumerate() {
        for flag in [libc::RWF_DSYNC, libc::RWF_SYNC] {
            let p = m.at(format!("f{i}-{flag}"));
            let f = sys::open(&p, way | libc::O_CREAT, 0o644).unwrap();
            assert_eq!(sys::pwrite2(&f, b"asked", 0, flag).unwrap(), 5);
            m.kill9();
            drop(f);
            m.mount();
            assert_eq!(fs::read(&p).unwrap(), b"asked", "flags {way:o}, {flag}");
        }
    }
}

#[test]
fn a_file_without_a_name_is_refused_by_the_kernel_and_programs_find_another_way() {
    let m = Mount::new("AES256");
    let made = sys::open(m.path(), libc::O_TMPFILE | libc::O_RDWR, 0o600);
    // FUSE has O_TMPFILE; ssefs has not (ssefs(5), KNOWN GAPS).
    if plain() {
        drop(made.unwrap())
    } else {
        assert_eq!(errno(made), libc::EOPNOTSUPP)
    }
    let mut f = tempfile::tempfile_in(m.path()).unwrap();
    f.write_all(b"nameless").unwrap();
    f.rewind().unwrap();
    let mut back = String::new();
    f.read_to_string(&mut back).unwrap();
    assert_eq!((back.as_str(), fs::read_dir(m.path()).unwrap().count()), ("nameless", 0));
}
