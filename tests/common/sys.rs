//! The system calls that the standard library does not offer, each a plain function with an `io::Result`.
//! Nothing here knows of ssefs.
#![allow(dead_code)]

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

fn check(r: impl Into<i64>) -> io::Result<u64> {
    u64::try_from(r.into()).map_err(|_| io::Error::last_os_error())
}

/// open(2) with all its flags.
pub fn open(path: impl AsRef<Path>, flags: i32, mode: u32) -> io::Result<File> {
    let p = cstr(path.as_ref());
    // SAFETY: the string ends with NUL; the descriptor is new and nobody else's.
    unsafe { check(libc::open(p.as_ptr(), flags | libc::O_CLOEXEC, mode)).map(|fd| File::from_raw_fd(fd as i32)) }
}

/// renameat2(2); `flags` of RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT.
pub fn rename2(from: impl AsRef<Path>, to: impl AsRef<Path>, flags: u32) -> io::Result<()> {
    let (a, b) = (cstr(from.as_ref()), cstr(to.as_ref()));
    // SAFETY: both strings end with NUL.
    let r =
        unsafe { libc::syscall(libc::SYS_renameat2, libc::AT_FDCWD, a.as_ptr(), libc::AT_FDCWD, b.as_ptr(), flags) };
    check(r).map(drop)
}

pub fn fallocate(f: &File, mode: i32, offset: u64, len: u64) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::fallocate(f.as_raw_fd(), mode, offset as i64, len as i64) }).map(drop)
}

/// lseek(2), for SEEK_DATA and SEEK_HOLE.
pub fn lseek(f: &File, offset: u64, whence: i32) -> io::Result<u64> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::lseek(f.as_raw_fd(), offset as i64, whence) })
}

/// flock(2): alone, waiting; until the file is closed.
pub fn flock(f: &File) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::flock(f.as_raw_fd(), libc::LOCK_EX) }).map(drop)
}

pub fn truncate(path: impl AsRef<Path>, len: i64) -> io::Result<()> {
    let p = cstr(path.as_ref());
    // SAFETY: the string ends with NUL.
    check(unsafe { libc::truncate(p.as_ptr(), len) }).map(drop)
}

/// copy_file_range(2) at given offsets; how many bytes were copied.
pub fn copy_range(from: &File, from_at: u64, to: &File, to_at: u64, len: usize) -> io::Result<u64> {
    let (mut a, mut b) = (from_at as i64, to_at as i64);
    // SAFETY: both offsets live through the call.
    check(unsafe { libc::copy_file_range(from.as_raw_fd(), &mut a, to.as_raw_fd(), &mut b, len, 0) } as i64)
}

/// A time as utimensat(2) takes it: seconds and nanoseconds, or UTIME_NOW, UTIME_OMIT as nanoseconds.
pub type Time = (i64, i64);

fn spec(times: [Time; 2]) -> [libc::timespec; 2] {
    times.map(|(s, n)| libc::timespec { tv_sec: s, tv_nsec: n })
}

/// utimensat(2): access and modification time; links are not followed.
pub fn utimens(path: impl AsRef<Path>, atime: Time, mtime: Time) -> io::Result<()> {
    let (p, t) = (cstr(path.as_ref()), spec([atime, mtime]));
    // SAFETY: the string ends with NUL, and there are two times.
    check(unsafe { libc::utimensat(libc::AT_FDCWD, p.as_ptr(), t.as_ptr(), libc::AT_SYMLINK_NOFOLLOW) }).map(drop)
}

/// futimens(3) on an open file.
pub fn futimens(f: &File, atime: Time, mtime: Time) -> io::Result<()> {
    let t = spec([atime, mtime]);
    // SAFETY: there are two times.
    check(unsafe { libc::futimens(f.as_raw_fd(), t.as_ptr()) }).map(drop)
}

/// utimensat(2) with its flags; None is a null pointer: now.
pub fn utimensat(path: impl AsRef<Path>, times: Option<[Time; 2]>, flags: i32) -> io::Result<()> {
    let (p, t) = (cstr(path.as_ref()), times.map(spec));
    let t = t.as_ref().map_or(std::ptr::null(), |t| t.as_ptr());
    // SAFETY: the string ends with NUL, and there are two times or none.
    check(unsafe { libc::utimensat(libc::AT_FDCWD, p.as_ptr(), t, flags) }).map(drop)
}

/// pwritev2(2) of one buffer; `flags` of RWF_DSYNC, RWF_SYNC, RWF_APPEND.
pub fn pwrite2(f: &File, bytes: &[u8], at: u64, flags: i32) -> io::Result<u64> {
    let v = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: the one buffer is as long as said and only read.
    check(unsafe { libc::pwritev2(f.as_raw_fd(), &v, 1, at as i64, flags) } as i64)
}

/// mount(2) to change the flags of what is mounted at `path`.
pub fn remount(path: impl AsRef<Path>, flags: libc::c_ulong) -> io::Result<()> {
    let p = cstr(path.as_ref());
    let none = std::ptr::null();
    // SAFETY: the string ends with NUL; a remount takes nothing else here.
    check(unsafe { libc::mount(none, p.as_ptr(), none, flags | libc::MS_REMOUNT, none.cast()) }).map(drop)
}

/// close(2), with its answer, which `File` keeps to itself.
pub fn close(f: File) -> io::Result<()> {
    // SAFETY: the descriptor was ours alone and is not used again.
    check(unsafe { libc::close(f.into_raw_fd()) }).map(drop)
}

pub fn mknod(path: impl AsRef<Path>, mode: u32, dev: u64) -> io::Result<()> {
    let p = cstr(path.as_ref());
    // SAFETY: the string ends with NUL.
    check(unsafe { libc::mknod(p.as_ptr(), mode, dev) }).map(drop)
}

pub fn chmod(path: impl AsRef<Path>, mode: u32) -> io::Result<()> {
    let p = cstr(path.as_ref());
    // SAFETY: the string ends with NUL.
    check(unsafe { libc::chmod(p.as_ptr(), mode) }).map(drop)
}

/// lchown(2); u32::MAX leaves a value as it is.
pub fn chown(path: impl AsRef<Path>, uid: u32, gid: u32) -> io::Result<()> {
    let p = cstr(path.as_ref());
    // SAFETY: the string ends with NUL.
    check(unsafe { libc::lchown(p.as_ptr(), uid, gid) }).map(drop)
}

pub fn access(path: impl AsRef<Path>, mode: i32) -> io::Result<()> {
    let p = cstr(path.as_ref());
    // SAFETY: the string ends with NUL. AT_EACCESS: the thread's effective user is asked about.
    check(unsafe { libc::faccessat(libc::AT_FDCWD, p.as_ptr(), mode, libc::AT_EACCESS) }).map(drop)
}

pub fn statvfs(path: impl AsRef<Path>) -> io::Result<libc::statvfs> {
    let p = cstr(path.as_ref());
    // SAFETY: statvfs is plain numbers, for which zero is a value; the string ends with NUL.
    unsafe {
        let mut out: libc::statvfs = std::mem::zeroed();
        check(libc::statvfs(p.as_ptr(), &mut out)).map(|_| out)
    }
}

/// Every entry of a directory with its inode number and type, `.` and `..` too, as readdir(3) gives them.
pub fn read_dir(path: impl AsRef<Path>) -> io::Result<Vec<(Vec<u8>, u64, u8)>> {
    let p = cstr(path.as_ref());
    let mut v = vec![];
    // SAFETY: the stream is ours until closedir; each entry is read before the next call.
    unsafe {
        let d = libc::opendir(p.as_ptr());
        if d.is_null() {
            return Err(io::Error::last_os_error());
        }
        loop {
            *libc::__errno_location() = 0;
            let e = libc::readdir(d);
            if e.is_null() {
                let failed = io::Error::last_os_error();
                libc::closedir(d);
                return if failed.raw_os_error() == Some(0) { Ok(v) } else { Err(failed) };
            }
            let name = std::ffi::CStr::from_ptr((*e).d_name.as_ptr()).to_bytes().to_vec();
            v.push((name, (*e).d_ino, (*e).d_type));
        }
    }
}

/// A file mapped into memory.
pub struct Map {
    at: *mut u8,
    len: usize,
}

impl Map {
    /// Maps the first `len` bytes, readable and writable; `flags` MAP_SHARED or MAP_PRIVATE.
    pub fn new(f: &File, len: usize, flags: i32) -> io::Result<Map> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping of the kernel's choice; f is open.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, f.as_raw_fd(), 0) };
        if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Map { at: at.cast(), len }) }
    }

    /// Bytes as they are now: another may change them at any time, hence a copy.
    pub fn get(&self, at: usize, len: usize) -> Vec<u8> {
        assert!(at + len <= self.len);
        // SAFETY: within the mapping; volatile, because the file may change below.
        (at..at + len).map(|i| unsafe { self.at.add(i).read_volatile() }).collect()
    }

    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.len);
        // SAFETY: within the mapping, which is writable.
        bytes.iter().enumerate().for_each(|(i, b)| unsafe { self.at.add(at + i).write_volatile(*b) });
    }

    /// One byte, without taking memory for it: for a child.
    pub fn byte(&self, at: usize) -> u8 {
        assert!(at < self.len);
        // SAFETY: within the mapping.
        unsafe { self.at.add(at).read_volatile() }
    }

    /// msync(2), waiting.
    pub fn sync(&self) -> io::Result<()> {
        // SAFETY: exactly the mapping.
        check(unsafe { libc::msync(self.at.cast(), self.len, libc::MS_SYNC) }).map(drop)
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping, which nobody uses any more.
        unsafe { libc::munmap(self.at.cast(), self.len) };
    }
}

/// A buffer whose start is aligned to 4096 bytes, as O_DIRECT asks for it.
pub struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    pub fn new(len: usize) -> Aligned {
        let bytes = vec![0; len + 4096];
        let start = bytes.as_ptr().align_offset(4096);
        Aligned { bytes, start, len }
    }
}

impl std::ops::Deref for Aligned {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

impl std::ops::DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

/// In a forked child: files that other tests have open are not kept open by it.
fn leave_files() {
    // SAFETY: takes no memory; the child uses none of the descriptors it has inherited.
    unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
}

/// Runs `f` in a forked process, which has no open files, and gives what it returns, 0 to 255. `f` may only make system calls:
/// other threads of the test may have held the allocator's lock at the fork.
pub fn in_child(f: impl FnOnce() -> u8) -> i32 {
    // SAFETY: the child makes system calls only and leaves by _exit; the parent waits for that child.
    unsafe {
        let pid = libc::fork();
        assert!(pid >= 0, "fork: {}", io::Error::last_os_error());
        if pid == 0 {
            leave_files();
            libc::_exit(f().into());
        }
        let mut status = 0;
        while libc::waitpid(pid, &mut status, 0) != pid {}
        assert!(libc::WIFEXITED(status), "the child was ended by a signal");
        libc::WEXITSTATUS(status)
    }
}

/// The signal that ends a forked process which runs `f`, None if it lives through it. The rule of [`in_child`] holds.
pub fn signal_of_child(f: impl FnOnce()) -> Option<i32> {
    // SAFETY: as in `in_child`.
    unsafe {
        let pid = libc::fork();
        assert!(pid >= 0, "fork: {}", io::Error::last_os_error());
        if pid == 0 {
            leave_files();
            // Nothing to look at in a core.
            libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
            f();
            libc::_exit(0);
        }
        let mut status = 0;
        while libc::waitpid(pid, &mut status, 0) != pid {}
        libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status))
    }
}

/// Runs `f` with the credentials of another user, its own group and no others, on a thread of its own:
/// credentials belong to the thread on Linux, only the C library spreads them. Programs it starts inherit them.
#[track_caller]
pub fn as_user<T: Send>(uid: u32, f: impl FnOnce() -> T + Send) -> T {
    as_user_in(uid, &[], f)
}

/// The same, with supplementary groups.
#[track_caller]
pub fn as_user_in<T: Send>(uid: u32, groups: &[u32], f: impl FnOnce() -> T + Send) -> T {
    let run = move || {
        // SAFETY: the three calls change this thread's credentials only and touch no memory of ours.
        unsafe {
            assert_eq!(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()), 0);
            assert_eq!(libc::syscall(libc::SYS_setresgid, uid, uid, uid), 0);
            assert_eq!(libc::syscall(libc::SYS_setresuid, uid, uid, uid), 0);
        }
        f()
    };
    std::thread::scope(|s| match s.spawn(run).join() {
        Ok(v) => v,
        Err(e) => std::panic::resume_unwind(e),
    })
}

/// A path or name as the kernel takes it.
pub fn cstr(s: impl AsRef<OsStr>) -> CString {
    CString::new(s.as_ref().as_bytes()).expect("no NUL in a path")
}

/// An extended attribute's value, whole. Links are not followed, here and below.
pub fn get_xattr(path: impl AsRef<Path>, name: impl AsRef<OsStr>) -> io::Result<Vec<u8>> {
    let mut buf = vec![0; 1 << 16];
    let n = get_xattr_into(path, name, &mut buf)?;
    buf.truncate(n);
    Ok(buf)
}

/// As getxattr(2): into a buffer that may be too small, or empty to ask for the size.
pub fn get_xattr_into(path: impl AsRef<Path>, name: impl AsRef<OsStr>, buf: &mut [u8]) -> io::Result<usize> {
    let (p, n) = (cstr(path.as_ref()), cstr(name));
    // SAFETY: both strings end with NUL, and the buffer is as long as said.
    let r = unsafe { libc::lgetxattr(p.as_ptr(), n.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) };
    usize::try_from(r).map_err(|_| io::Error::last_os_error())
}

/// An extended attribute that is text.
pub fn get_xattr_text(path: impl AsRef<Path>, name: &str) -> io::Result<String> {
    get_xattr(path, name).map(|v| String::from_utf8(v).expect("text"))
}

pub fn set_xattr(path: impl AsRef<Path>, name: impl AsRef<OsStr>, value: impl AsRef<[u8]>) -> io::Result<()> {
    set_xattr_flags(path, name, value, 0)
}

/// `flags`: 0, `XATTR_CREATE` or `XATTR_REPLACE`.
pub fn set_xattr_flags(
    path: impl AsRef<Path>,
    name: impl AsRef<OsStr>,
    value: impl AsRef<[u8]>,
    flags: i32,
) -> io::Result<()> {
    let (p, n, v) = (cstr(path.as_ref()), cstr(name), value.as_ref());
    // SAFETY: both strings end with NUL, and the value is as long as said.
    let r = unsafe { libc::lsetxattr(p.as_ptr(), n.as_ptr(), v.as_ptr().cast(), v.len(), flags) };
    if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

pub fn remove_xattr(path: impl AsRef<Path>, name: impl AsRef<OsStr>) -> io::Result<()> {
    let (p, n) = (cstr(path.as_ref()), cstr(name));
    // SAFETY: both strings end with NUL.
    if unsafe { libc::lremovexattr(p.as_ptr(), n.as_ptr()) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The names of all extended attributes that are listed, sorted.
pub fn list_xattr(path: impl AsRef<Path>) -> io::Result<Vec<Vec<u8>>> {
    let p = cstr(path.as_ref());
    let mut buf = vec![0u8; 1 << 16];
    // SAFETY: the string ends with NUL, and the buffer is as long as said.
    let n = unsafe { libc::llistxattr(p.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) };
    buf.truncate(usize::try_from(n).map_err(|_| io::Error::last_os_error())?);
    let mut names: Vec<Vec<u8>> = buf.split(|&b| b == 0).filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect();
    names.sort();
    Ok(names)
}
