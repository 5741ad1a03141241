//! What is at a mountpoint: the kernel's mount table, the checks before a mount, and the clean-up of a mount whose
//! process died. Unmounting goes through umount2(2) as root and through fusermount3 for everybody else.

use std::ffi::{CString, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::place::{absolute, effective_uid};
use super::print;
use crate::control;
use crate::ops::{ErrorCode, OpError};

/// One line of /proc/self/mountinfo, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    pub mountpoint: PathBuf,
    pub fs_type: String,
    pub source: OsString,
}

impl MountEntry {
    pub fn is_fuse(&self) -> bool {
        self.fs_type == "fuse" || self.fs_type.starts_with("fuse.")
    }
}

/// Every mount this process sees, in mount order.
pub fn mounts() -> Result<Vec<MountEntry>, OpError> {
    let text = fs::read("/proc/self/mountinfo").map_err(|e| OpError::io("read /proc/self/mountinfo", &e))?;
    Ok(parse_mountinfo(&text))
}

/// The mount on top at exactly this path.
pub fn mount_at(path: &Path) -> Result<Option<MountEntry>, OpError> {
    Ok(mounts()?.into_iter().rev().find(|m| m.mountpoint == path))
}

/// The mount in which this absolute, resolved path lies.
pub fn mount_of(path: &Path) -> Result<Option<MountEntry>, OpError> {
    let candidates = mounts()?.into_iter().enumerate().filter(|(_, m)| path.starts_with(&m.mountpoint));
    // Deepest wins, and of several at one place the last one mounted.
    Ok(candidates.max_by_key(|(i, m)| (m.mountpoint.as_os_str().len(), *i)).map(|(_, m)| m))
}

/// proc_pid_mountinfo(5): optional fields end at a lone `-`, blanks inside fields are octal escapes.
fn parse_mountinfo(text: &[u8]) -> Vec<MountEntry> {
    text.split(|b| *b == b'\n')
        .filter_map(|line| {
            let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
            let dash = fields.iter().skip(6).position(|f| *f == b"-")? + 6;
            Some(MountEntry {
                mountpoint: unescape(fields.get(4)?).into(),
                fs_type: String::from_utf8_lossy(fields.get(dash + 1)?).into_owned(),
                source: unescape(fields.get(dash + 2)?),
            })
        })
        .collect()
}

fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut i = 0;
    while i < field.len() {
        let octal = field.get(i + 1..i + 4).filter(|d| d.iter().all(|b| (b'0'..=b'7').contains(b)));
        match (field[i], octal) {
            (b'\\', Some(d)) => {
                out.push(((d[0] - b'0') << 6) | ((d[1] - b'0') << 3) | (d[2] - b'0'));
                i += 4;
            }
            (byte, _) => {
                out.push(byte);
                i += 1;
            }
        }
    }
    OsString::from_vec(out)
}

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
    fn the_mount_table_is_read_with_its_escapes_and_optional_fields() {
        let text = b"36 35 98:0 / / rw,noatime master:1 shared:2 - ext4 /dev/root rw\n\
            40 36 0:50 / /mnt/a\\040b\\134 rw - fuse.ssefs my\\011bucket rw,user_id=0\n\
            41 36 0:51 / /mnt/- rw - fuse x rw\n\
            garbage\n\n";
        let found = parse_mountinfo(text);
        assert_eq!(found.len(), 3);
        assert_eq!(found[0].mountpoint, Path::new("/"));
        assert!(!found[0].is_fuse());
        assert_eq!(found[1].mountpoint, Path::new("/mnt/a b\\"));
        assert_eq!(found[1].source, "my\tbucket");
        assert!(found[1].is_fuse() && found[2].is_fuse());
    }

    #[test]
    fn every_path_lies_in_some_mount_and_the_root_is_one() {
        assert_eq!(mount_of(Path::new("/proc/self")).unwrap().unwrap().fs_type, "proc");
        assert!(mount_at(Path::new("/")).unwrap().is_some());
        assert!(mount_at(Path::new("/no/such/place")).unwrap().is_none());
    }

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
