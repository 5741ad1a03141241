//! `ssefs object`: single objects, named by a path on a mount or as BUCKET:PATH.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::args::ObjectCmd;
use super::customer;
use super::encryption::inside;
use super::place::{self, Place, absolute};
use super::print;
use crate::control::{self, Request};
use crate::fuse::mount_table::{self, MountEntry};
use crate::ops::{Command, ErrorCode, OpError, Quiet, WirePath};
use crate::types::BucketName;

/// What a path on the command line names.
enum Named {
    OnMount { socket: PathBuf, path: WirePath },
    InBucket { bucket: BucketName, path: WirePath },
}

pub fn run(place: &Place, command: &ObjectCmd) -> Result<(), OpError> {
    let (path, output) = match command {
        ObjectCmd::Show { path, output } => (path, output),
        ObjectCmd::Unlock { path, key_file, key_fd } => {
            let key = match (key_file, key_fd) {
                (Some(file), _) => customer::read_file(file)?,
                (None, Some(fd)) => customer::read_fd(*fd)?,
                (None, None) => return Err(OpError::usage("a key is missing: --key-file or --key-fd")),
            };
            return customer::unlock(path, &key);
        }
        ObjectCmd::Lock { path } => return customer::lock(path),
    };
    let shown = match find(path)? {
        Named::OnMount { socket, path } => control::ask(&socket, &Request::Run(Command::ObjectShow { path }), &Quiet)?,
        Named::InBucket { bucket, path } => place::run(place, &bucket, &Command::ObjectShow { path }, &Quiet)?,
    };
    if output.json { print::json(&shown) } else { print::fields(&shown) }
}

/// A path that exists is one; else what stands before a colon may be a bucket.
fn find(path: &Path) -> Result<Named, OpError> {
    let missing = match absolute(path)?.canonicalize() {
        Ok(resolved) => return on_mount(path, &resolved),
        Err(e) => OpError::io(format_args!("find {}", path.display()), &e),
    };
    match in_bucket(path)? {
        Some(named) => Ok(named),
        None => Err(missing.hint("name a path on a mount, or an object of a bucket: BUCKET:PATH")),
    }
}

fn on_mount(path: &Path, resolved: &Path) -> Result<Named, OpError> {
    let mount = mount_table::mount_of(resolved).map_err(|e| OpError::io("read the mount table", &e))?;
    let Some(mount) = mount.filter(MountEntry::is_fuse) else {
        return Err(OpError::new(ErrorCode::NotFound, format!("{} is not on a mounted bucket", path.display()))
            .hint("name an object of a bucket that is not mounted as BUCKET:PATH"));
    };
    let Some(identity) = control::find_mount(&mount.mountpoint) else {
        return Err(OpError::new(
            ErrorCode::Permission,
            format!("the mount at {} does not answer this user", mount.mountpoint.display()),
        )
        .hint(
            "it belongs to another user or is no ssefs mount; getfattr -n user.sse.state FILE asks the file itself",
        ));
    };
    let relative = resolved.strip_prefix(&mount.mountpoint).unwrap_or(Path::new(""));
    Ok(Named::OnMount { socket: identity.socket, path: relative.to_owned().into() })
}

/// `BUCKET:PATH`, where BUCKET is a legal name; None where it is not of this form.
fn in_bucket(path: &Path) -> Result<Option<Named>, OpError> {
    let bytes = path.as_os_str().as_bytes();
    let Some(colon) = bytes.iter().position(|b| *b == b':') else { return Ok(None) };
    let (before, after) = (&bytes[..colon], &bytes[colon + 1..]);
    let Some(bucket) = std::str::from_utf8(before).ok().and_then(|b| b.parse().ok()) else { return Ok(None) };
    let path = inside(Path::new(std::ffi::OsStr::from_bytes(after)))?;
    Ok(Some(Named::InBucket { bucket, path }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_of_an_unmounted_bucket_are_named_with_a_colon() {
        match find(Path::new("photos:2024/a:b.jpg")).unwrap() {
            Named::InBucket { bucket, path } => {
                assert_eq!((bucket.as_str(), path.as_path()), ("photos", Path::new("2024/a:b.jpg")));
            }
            Named::OnMount { .. } => panic!("there is no such file"),
        }
        for (bad, code) in [
            ("no/such/file", ErrorCode::NotFound),
            ("a/b:c", ErrorCode::NotFound),
            ("photos:../x", ErrorCode::Usage),
            ("/proc/self", ErrorCode::NotFound),
        ] {
            assert_eq!(find(Path::new(bad)).err().map(|e| e.code), Some(code), "{bad}");
        }
    }
}
