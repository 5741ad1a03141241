//! Reading a key from a file or a descriptor that the user names; never from the command line itself, which `ps` shows.

use std::fs::File;
use std::os::fd::FromRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::print;
use crate::keys::Material;
use crate::ops::OpError;

/// Reads 32 bytes of key from `file` (`-`: standard input) or descriptor `fd`; `option` is what to name when neither is given.
pub fn read(file: Option<&Path>, fd: Option<i32>, option: &str) -> Result<Material, OpError> {
    let (opened, named) = match (file, fd) {
        (Some(path), _) if path == Path::new("-") => (duplicate(0)?, "standard input".into()),
        (Some(path), _) => {
            let opened = File::open(path).map_err(|e| OpError::io(format_args!("read {}", path.display()), &e))?;
            let others = opened.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o077 != 0);
            if others {
                print::note(&format!("{} can be read by others: chmod 600 it, or delete it", path.display()));
            }
            (opened, path.to_owned())
        }
        (None, Some(fd)) => (duplicate(fd)?, format!("descriptor {fd}").into()),
        (None, None) => return Err(OpError::usage(format!("a key is missing: name its file with {option}"))),
    };
    Ok(Material::read(&opened, &named)?)
}

/// A file of our own for a descriptor that we were given, which may be none.
fn duplicate(fd: i32) -> Result<File, OpError> {
    // SAFETY: dup takes any number and answers EBADF for one that is no descriptor.
    let ours = unsafe { libc::dup(fd) };
    if ours < 0 {
        return Err(OpError::io(format_args!("read descriptor {fd}"), &std::io::Error::last_os_error()));
    }
    // SAFETY: dup has just made it, and nobody else knows it.
    Ok(unsafe { File::from_raw_fd(ours) })
}
