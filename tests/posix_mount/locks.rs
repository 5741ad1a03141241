//! The three kinds of locks between processes: flock(2), fcntl(2) record locks, open file description locks.

use crate::mount::{Mount, eventually};
use crate::sys::{in_child, open};
use std::ffi::CString;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;

fn region(kind: i32, start: i64, len: i64) -> libc::flock {
    // SAFETY: flock is plain numbers, for which zero is a value.
    let mut l: libc::flock = unsafe { std::mem::zeroed() };
    l.l_type = kind as libc::c_short;
    l.l_whence = libc::SEEK_SET as libc::c_short;
    (l.l_start, l.l_len) = (start, len);
    l
}

/// 0 when the lock was got, else the errno. System calls only.
fn fcntl_lock(fd: RawFd, command: i32, kind: i32, start: i64, len: i64) -> u8 {
    let l = region(kind, start, len);
    // SAFETY: the structure outlives the call.
    if unsafe { libc::fcntl(fd, command, &l) } == 0 { 0 } else { unsafe { *libc::__errno_location() as u8 } }
}

fn flock(fd: RawFd, how: i32) -> u8 {
    // SAFETY: no memory is passed.
    if unsafe { libc::flock(fd, how | libc::LOCK_NB) } == 0 { 0 } else { unsafe { *libc::__errno_location() as u8 } }
}

/// Opens the file in another process, as it must be for locks that belong to processes, and asks there.
fn elsewhere(path: &CString, ask: impl Fn(RawFd) -> u8) -> i32 {
    // SAFETY: the path ends with NUL; the child only makes system calls and ends.
    in_child(|| match unsafe { libc::open(path.as_ptr(), libc::O_RDWR) } {
        -1 => 255,
        fd => ask(fd),
    })
}

const REFUSED: i32 = libc::EAGAIN;

#[test]
fn flock_excludes_other_processes_until_it_is_given_back() {
    let m = Mount::new("AES256");
    let f = open(m.at("f"), libc::O_RDWR | libc::O_CREAT, 0o644).unwrap();
    let p = CString::new(m.at("f").as_os_str().as_bytes()).unwrap();
    assert_eq!(flock(f.as_raw_fd(), libc::LOCK_EX), 0);
    assert_eq!(elsewhere(&p, |fd| flock(fd, libc::LOCK_EX)), REFUSED);
    assert_eq!(elsewhere(&p, |fd| flock(fd, libc::LOCK_SH)), REFUSED);
    assert_eq!(flock(f.as_raw_fd(), libc::LOCK_SH), 0);
    assert_eq!(elsewhere(&p, |fd| flock(fd, libc::LOCK_SH)), 0);
    assert_eq!(elsewhere(&p, |fd| flock(fd, libc::LOCK_EX)), REFUSED);
    drop(f);
    // A child that another test forks at this moment shares the open file until it ends, and with it the lock.
    assert!(eventually(|| elsewhere(&p, |fd| flock(fd, libc::LOCK_EX)) == 0), "closing gives it back");
}

#[test]
fn record_locks_exclude_other_processes_by_range() {
    let m = Mount::new("AES256");
    let f = open(m.at("f"), libc::O_RDWR | libc::O_CREAT, 0o644).unwrap();
    let p = CString::new(m.at("f").as_os_str().as_bytes()).unwrap();
    let here = |kind, start, len| fcntl_lock(f.as_raw_fd(), libc::F_SETLK, kind, start, len);
    let there = |kind, start, len| elsewhere(&p, move |fd| fcntl_lock(fd, libc::F_SETLK, kind, start, len));
    assert_eq!(here(libc::F_WRLCK, 100, 100), 0);
    assert_eq!(there(libc::F_WRLCK, 0, 100), 0, "another range");
    assert_eq!(there(libc::F_RDLCK, 199, 1), REFUSED);
    assert_eq!(there(libc::F_WRLCK, 0, 0), REFUSED, "0 means to the end");
    assert_eq!(here(libc::F_UNLCK, 120, 30), 0);
    assert_eq!(there(libc::F_WRLCK, 120, 30), 0, "a hole in the middle");
    assert_eq!(there(libc::F_WRLCK, 119, 1), REFUSED);
    // Who holds it is told.
    let me = std::process::id() as i32;
    let told = elsewhere(&p, |fd| {
        let mut l = region(libc::F_WRLCK, 100, 1);
        // SAFETY: the structure outlives the call.
        let r = unsafe { libc::fcntl(fd, libc::F_GETLK, &mut l) };
        u8::from(r == 0 && i32::from(l.l_type) == libc::F_WRLCK && l.l_pid == me)
    });
    assert_eq!(told, 1);
    drop(f);
    assert_eq!(there(libc::F_WRLCK, 0, 0), 0, "closing gives it back");
}

#[test]
fn locks_of_open_files_exclude_even_the_same_process() {
    let m = Mount::new("AES256");
    let f = open(m.at("f"), libc::O_RDWR | libc::O_CREAT, 0o644).unwrap();
    let g = open(m.at("f"), libc::O_RDWR, 0).unwrap();
    let p = CString::new(m.at("f").as_os_str().as_bytes()).unwrap();
    assert_eq!(fcntl_lock(f.as_raw_fd(), libc::F_OFD_SETLK, libc::F_WRLCK, 0, 10), 0);
    assert_eq!(i32::from(fcntl_lock(g.as_raw_fd(), libc::F_OFD_SETLK, libc::F_RDLCK, 5, 1)), REFUSED);
    assert_eq!(fcntl_lock(g.as_raw_fd(), libc::F_OFD_SETLK, libc::F_RDLCK, 10, 1), 0);
    assert_eq!(elsewhere(&p, |fd| fcntl_lock(fd, libc::F_OFD_SETLK, libc::F_WRLCK, 0, 1)), REFUSED);
    drop(f);
    assert!(eventually(|| fcntl_lock(g.as_raw_fd(), libc::F_OFD_SETLK, libc::F_WRLCK, 0, 10) == 0));
}

#[test]
fn a_waiting_lock_is_got_when_its_holder_lets_go() {
    let m = Mount::new("AES256");
    let f = open(m.at("f"), libc::O_RDWR | libc::O_CREAT, 0o644).unwrap();
    let g = open(m.at("f"), libc::O_RDWR, 0).unwrap();
    assert_eq!(fcntl_lock(f.as_raw_fd(), libc::F_OFD_SETLK, libc::F_WRLCK, 0, 0), 0);
    let (started, wait) = std::sync::mpsc::channel();
    let waiter = std::thread::spawn(move || {
        started.send(()).unwrap();
        fcntl_lock(g.as_raw_fd(), libc::F_OFD_SETLKW, libc::F_WRLCK, 0, 0)
    });
    wait.recv().unwrap();
    // Whether it waits by now or comes a little later: it must get the lock, and other calls go on.
    std::fs::write(m.at("meanwhile"), b"x").unwrap();
    drop(f);
    assert_eq!(waiter.join().unwrap(), 0);
}
