//! Customer keys on the command line: read from a file or a descriptor, never from an argument, and given to a mount for the
//! user who calls (`ssefs object set-key`, `unlock`, `lock`, and the mount option `customer_key_file`).

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::mem::ManuallyDrop;
use std::os::fd::FromRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::place::absolute;
use super::print;
use crate::crypto::customer::CUSTOMER_TEXT_BYTES_MAX;
use crate::crypto::secret::CustomerKey;
use crate::fuse::{ioctl, mount_table};
use crate::ops::{ErrorCode, OpError};

/// The key from whichever was named.
pub fn read(file: Option<&Path>, fd: Option<i32>) -> Result<CustomerKey, OpError> {
    match (file, fd) {
        (Some(file), _) => read_file(file),
        (None, Some(fd)) => read_fd(fd),
        (None, None) => Err(OpError::usage("a key is missing: --key-file or --key-fd")),
    }
}

/// The key in a file, which others may not be able to read.
pub fn read_file(path: &Path) -> Result<CustomerKey, OpError> {
    let shown = path.display();
    let unreadable = |e: &io::Error| OpError::io(format_args!("read the customer key {shown}"), e);
    // Without waiting for a writer, should it be a fifo.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(|e| unreadable(&e))?;
    let meta = file.metadata().map_err(|e| unreadable(&e))?;
    if !meta.is_file() {
        return Err(OpError::new(ErrorCode::Key, format!("the customer key {shown} is not a regular file"))
            .hint("give a pipe as a descriptor: --key-fd N"));
    }
    let mode = meta.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        let why = format!("the customer key {shown} can be read by others (mode {mode:04o})");
        return Err(OpError::new(ErrorCode::Key, why).hint("run chmod 600 on it, and consider the key known to them"));
    }
    parse(&file, &shown.to_string())
}

/// The key from an open descriptor of this process, which stays open.
pub fn read_fd(fd: i32) -> Result<CustomerKey, OpError> {
    // SAFETY: asks only whether the descriptor is open.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(OpError::usage(format!("there is no open file descriptor {fd}")));
    }
    // SAFETY: the descriptor is open and is not closed here, since the file is never dropped.
    let file = ManuallyDrop::new(unsafe { File::from_raw_fd(fd) });
    parse(&file, &format!("file descriptor {fd}"))
}

fn parse(mut from: &File, shown: &str) -> Result<CustomerKey, OpError> {
    let mut text = Zeroizing::new([0u8; CUSTOMER_TEXT_BYTES_MAX + 1]);
    let mut n = 0;
    while n < text.len() {
        match from.read(&mut text[n..]) {
            Ok(0) => break,
            Ok(k) => n += k,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(OpError::io(format_args!("read the customer key from {shown}"), &e)),
        }
    }
    CustomerKey::parse(&text[..n]).map_err(|_| {
        let length = if n == text.len() { format!("more than {CUSTOMER_TEXT_BYTES_MAX}") } else { n.to_string() };
        OpError::new(ErrorCode::Key, format!("{shown} holds no customer key: {length} bytes"))
            .hint("a customer key is 32 raw bytes, or 44 characters of base64: openssl rand -base64 32")
    })
}

/// Unlock a file, or all below a directory, on the mount that it lies on.
pub fn unlock(path: &Path, key: &CustomerKey) -> Result<(), OpError> {
    let at = on_mount(path)?;
    let (dir, name) = ioctl::place_of(&at).map_err(|e| unopened(&at, &e))?;
    ioctl::unlock(&dir, &name, key).map_err(|e| refused("unlock", &at, &e))?;
    if name.is_empty() {
        print::note(
            "whether it is the right key, the files below it tell: each has its own. New files take this key only where ssefs object set-key has asked for it",
        );
    }
    Ok(())
}

/// Ask for encryption with this key: for a file, which is converted, or for new files below a directory.
pub fn set(path: &Path, key: &CustomerKey) -> Result<(), OpError> {
    use std::os::unix::ffi::OsStrExt;
    let at = on_mount(path)?;
    let file = std::ffi::CString::new(at.as_os_str().as_bytes()).map_err(|_| OpError::usage("a path has no NUL"))?;
    let bytes = key.expose();
    // SAFETY: both strings end with NUL, and the value is as long as is said.
    let done = unsafe {
        libc::setxattr(file.as_ptr(), c"user.sse.customer-key".as_ptr(), bytes.as_ptr().cast(), bytes.len(), 0)
    };
    if done == 0 { Ok(()) } else { Err(refused("set the customer key of", &at, &io::Error::last_os_error())) }
}

/// Lock it again.
pub fn lock(path: &Path) -> Result<(), OpError> {
    let at = on_mount(path)?;
    let (dir, name) = ioctl::place_of(&at).map_err(|e| unopened(&at, &e))?;
    ioctl::lock(&dir, &name).map_err(|e| refused("lock", &at, &e))
}

/// The path without links, if it lies on a mount of ssefs.
fn on_mount(path: &Path) -> Result<PathBuf, OpError> {
    let at = absolute(path)?.canonicalize().map_err(|e| OpError::io(format_args!("find {}", path.display()), &e))?;
    let mount = mount_table::mount_of(&at).map_err(|e| OpError::io("read the mount table", &e))?;
    if mount.is_some_and(|m| m.is_fuse()) {
        return Ok(at);
    }
    Err(OpError::new(ErrorCode::NotFound, format!("{} is not on a mounted bucket", path.display()))
        .hint("keys are held by mounts: mount the bucket first"))
}

fn unopened(at: &Path, e: &io::Error) -> OpError {
    OpError::io(format_args!("open the directory of {}", at.display()), e)
        .hint("the directory must be readable; who may write the file can set user.sse.unlock instead")
}

/// The mount's own words, where it has some.
fn refused(what: &str, at: &Path, e: &io::Error) -> OpError {
    let code = match e.raw_os_error() {
        Some(libc::ENOKEY | libc::EKEYREJECTED | libc::EKEYREVOKED) => ErrorCode::Key,
        Some(libc::ENODATA) => ErrorCode::NotFound,
        Some(libc::EINVAL) => ErrorCode::Refused,
        Some(libc::ENOTTY) => {
            return OpError::new(ErrorCode::NotFound, format!("{} is not on a mount of ssefs", at.display()));
        }
        _ => ErrorCode::of_io(e),
    };
    let words = last_error(at).unwrap_or_else(|| e.to_string());
    OpError::new(code, format!("cannot {what} {}: {words}", at.display()))
}

fn last_error(at: &Path) -> Option<String> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(at.as_os_str().as_bytes()).ok()?;
    let mut text = [0u8; 4096];
    // SAFETY: both strings end with NUL, and text is as long as is said.
    let n =
        unsafe { libc::getxattr(path.as_ptr(), c"user.sse.last-error".as_ptr(), text.as_mut_ptr().cast(), text.len()) };
    Some(String::from_utf8_lossy(text.get(..usize::try_from(n).ok()?)?).into_owned())
}
