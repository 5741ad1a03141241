//! What is at a mountpoint: the checks before a mount, and the clean-up of a mount whose process died. Unmounting goes through umount2(2) as root and through fusermount3 for everybody else.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::place::{absolute, effective_uid};
use super::print;
use crate::control;
use crate::ops::{ErrorCode, OpError};

/// True when the directory is a FUSE mount whose process is gone ("Transport endpoint is not connected").
pub fn is_stale(path: &Path) -> bool {
    let gone = |e: &std::io::Error| matches!(e.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED));
    // Attributes may still be in the kernel's cache; reading the directory asks the process that should be there.
    fs::metadata(path).is_err_and(|e| gone(&e)) || fs::read_dir(path).is_err_and(|e| gone(&e))
}

/// The path as the kernel's mount table spells it: links resolved. Works for a stale mount too, by resolving the
/// directory above it.
pub fn resolve(path: &Path) -> Result<PathBuf, OpError> {
    let path = absolute(path)?;
    match path.canonicalize() {
        Ok(resolved) => Ok(resolved),
        Err(e) => match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) if e.raw_os_error() == Some(libc::ENOTCONN) => parent
                .canonicalize()
                .map(|p| p.join(name))
                .map_err(|e| OpError::io(format_args!("find {}", path.display()), &e)),
            _ => Err(OpError::io(format_args!("find {}", path.display()), &e)),
        },
    }
}

/// Checks that a bucket can be mounted at `path` and gives its resolved path. A stale mount found there is detached,
/// and said so.
pub fn prepare(path: &Path, nonempty: bool) -> Result<PathBuf, OpError> {
    let shown = path.display();
    let unusable = |why: String| OpError::new(ErrorCode::Mount, format!("mountpoint {shown} {why}"));
    let resolved = match resolve(path) {
        Ok(resolved) => resolved,
        Err(e) if e.code == ErrorCode::NotFound => {
            return Err(unusable("does not exist".into()).hint(format!("make it: mkdir -p {shown}")));
        }
        Err(e) => return Err(e),
    };
    if is_stale(&resolved) {
        unmount(&resolved, true)?;
        print::note(&format!("a mount of a process that died was still at {shown}; detached it"));
        if is_stale(&resolved) {
            return Err(unusable("has another stale mount below the first".into())
                .hint(format!("detach it too: umount -l {shown}")));
        }
    }
    if let Some(mount) = control::find_mount(&resolved) {
        return Err(OpError::new(
            ErrorCode::Busy,
            format!("bucket {} is mounted at {shown} already, by process {}", mount.bucket, mount.pid),
        )
        .hint(format!("unmount it: ssefs umount {shown}")));
    }
    let metadata = fs::metadata(&resolved).map_err(|e| OpError::io(format_args!("look at mountpoint {shown}"), &e))?;
    if !metadata.is_dir() {
        return Err(unusable("is not a directory".into()));
    }
    if !nonempty {
        let mut entries =
            fs::read_dir(&resolved).map_err(|e| OpError::io(format_args!("read mountpoint {shown}"), &e))?;
        if entries.next().is_some() {
            return Err(unusable("is not empty: what is in it would be hidden".into())
                .hint("use an empty directory, or -o nonempty"));
        }
    }
    Ok(resolved)
}

/// Unmounts; `lazy` detaches although it is in use.
pub fn unmount(path: &Path, lazy: bool) -> Result<(), OpError> {
    let busy = |message: String| {
        OpError::new(ErrorCode::Busy, message).hint(format!(
            "see who uses it: fuser -vm {0} (or lsof {0}); ssefs umount -l detaches it all the same",
            path.display()
        ))
    };
    if effective_uid() == 0 {
        let c_path =
            CString::new(path.as_os_str().as_bytes()).map_err(|_| OpError::usage("a path cannot hold a NUL byte"))?;
        let flags = if lazy { libc::MNT_DETACH } else { 0 } | libc::UMOUNT_NOFOLLOW;
        // SAFETY: c_path is a NUL-terminated string that outlives the call.
        if unsafe { libc::umount2(c_path.as_ptr(), flags) } == 0 {
            return Ok(());
        }
        let e = io::Error::last_os_error();
        return Err(match e.raw_os_error() {
            Some(libc::EBUSY) => busy(format!("{} is in use", path.display())),
            _ => OpError::io(format_args!("unmount {}", path.display()), &e),
        });
    }
    let mut command = Command::new("fusermount3");
    command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(path);
    let done = command.output().map_err(|e| {
        OpError::new(ErrorCode::Mount, format!("cannot run fusermount3: {e}")).hint("install the package fuse3")
    })?;
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
    Err(if said.contains("busy") { busy(said) } else { OpError::new(ErrorCode::Mount, said) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mountpoint_that_is_missing_a_file_or_not_empty_is_refused_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let missing = prepare(&dir.path().join("x"), false).unwrap_err();
        assert_eq!(missing.code, ErrorCode::Mount);
        assert!(missing.hint.unwrap().contains("mkdir -p"));
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(prepare(&file, true).unwrap_err().message.ends_with("is not a directory"));
        assert!(prepare(dir.path(), false).unwrap_err().message.contains("not empty"));
        assert_eq!(prepare(dir.path(), true).unwrap(), dir.path().canonicalize().unwrap());
    }
}
