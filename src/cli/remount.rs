//! `mount -o remount,...`: mount(8) asks the helper, and the helper the kernel, which changes the flags of a live mount. The
//! process that serves it goes on; options of ssefs itself stay as they were.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::{mountpoint, options};
use crate::fuse::mount_table;
use crate::ops::{ErrorCode, OpError};
use crate::types::BucketName;

/// What a remount is to change.
#[derive(Debug, PartialEq, Eq)]
pub struct Remount {
    pub bucket: BucketName,
    pub dir: std::path::PathBuf,
    /// MS_* flags: all that are to stand. mount(8) has added those that stood before.
    pub flags: libc::c_ulong,
}

/// The flags that a list of options says; None if it is no remount. Other words are passed over: mount(8) hands on
/// whatever the mount table and fstab say, too.
pub fn flags(lists: &[String]) -> Option<libc::c_ulong> {
    let words = || lists.iter().flat_map(|l| l.split(','));
    words().any(|w| w == "remount").then_some(())?;
    let read_only = words().rfind(|w| matches!(*w, "ro" | "rw")) == Some("ro");
    let kernel = options::KERNEL.iter().filter(|(name, _)| words().any(|w| w == *name)).fold(0, |all, (_, f)| all | f);
    Some(kernel | if read_only { libc::MS_RDONLY } else { 0 })
}

pub fn run(r: &Remount) -> Result<(), OpError> {
    let shown = r.dir.display();
    let dir = mountpoint::resolve(&r.dir)?;
    let there = mount_table::mount_at(&dir).map_err(|e| OpError::io("read the mount table", &e))?;
    if !there.is_some_and(|m| m.is_fuse() && m.source == r.bucket.as_str()) {
        return Err(OpError::new(ErrorCode::NotFound, format!("bucket {} is not mounted at {shown}", r.bucket))
            .hint("see what is mounted: findmnt -t fuse,fuse.ssefs"));
    }
    remount(&dir, r.flags).map_err(|e| match e.raw_os_error() {
        Some(libc::EBUSY) => {
            OpError::new(ErrorCode::Busy, format!("{shown} is in use: files are open for writing, or removed and open"))
                .hint(format!("see who uses it: fuser -vm {shown}"))
        }
        Some(libc::EPERM) => OpError::new(ErrorCode::Permission, "only root may change a mount's flags"),
        _ => OpError::io(format_args!("remount {shown}"), &e),
    })
}

fn remount(dir: &Path, flags: libc::c_ulong) -> io::Result<()> {
    let dir = CString::new(dir.as_os_str().as_bytes())?;
    let flags = flags | libc::MS_REMOUNT;
    // SAFETY: dir is NUL-terminated and outlives the call; the kernel takes no options for a remount of FUSE.
    match unsafe { libc::mount(std::ptr::null(), dir.as_ptr(), std::ptr::null(), flags, std::ptr::null()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_are_those_named_and_everything_else_is_passed_over() {
        let of = |list: &str| flags(&[list.to_owned()]);
        assert_eq!(of("ro,noexec"), None);
        assert_eq!(of("rw,relatime,remount,ro,user_id=0,allow_other,rule=AES256"), Some(libc::MS_RDONLY));
        assert_eq!(of("ro,remount,rw,nosuid,nodev"), Some(libc::MS_NOSUID | libc::MS_NODEV));
        assert_eq!(flags(&["remount".into(), "ro".into()]), Some(libc::MS_RDONLY));
    }
}
