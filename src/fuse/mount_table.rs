//! The kernel's mount table. What is to be known of our own mount is read here and never asked of the mount: a process
//! that is killed while it waits for an answer from itself cannot end, since its dying threads keep the mount alive.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One line of /proc/self/mountinfo, as far as it matters here (proc_pid_mountinfo(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    pub mountpoint: PathBuf,
    /// Major and minor number of the file system's device.
    pub device: (u32, u32),
    pub fs_type: String,
    pub source: OsString,
    /// This mount's own options: `ro`, `nosuid` and the like.
    options: String,
    /// Those of the file system, whichever mount shows it.
    everywhere: String,
}

impl MountEntry {
    pub fn is_fuse(&self) -> bool {
        self.fs_type == "fuse" || self.fs_type.starts_with("fuse.")
    }

    pub fn has_option(&self, name: &str) -> bool {
        self.options.split(',').any(|o| o == name)
    }

    /// Nothing can be changed through it.
    pub fn is_read_only(&self) -> bool {
        self.has_option("ro") || self.everywhere.split(',').any(|o| o == "ro")
    }
}

/// Every mount this process sees, in mount order.
///
/// # Errors
/// Those of reading /proc/self/mountinfo.
pub fn mounts() -> io::Result<Vec<MountEntry>> {
    Ok(parse(&fs::read("/proc/self/mountinfo")?))
}

/// The mount on top at exactly this path.
///
/// # Errors
/// As [`mounts`].
pub fn mount_at(path: &Path) -> io::Result<Option<MountEntry>> {
    Ok(mounts()?.into_iter().rev().find(|m| m.mountpoint == path))
}

/// The mount in which this absolute, resolved path lies.
///
/// # Errors
/// As [`mounts`].
pub fn mount_of(path: &Path) -> io::Result<Option<MountEntry>> {
    let candidates = mounts()?.into_iter().enumerate().filter(|(_, m)| path.starts_with(&m.mountpoint));
    // Deepest wins, and of several at one place the last one mounted.
    Ok(candidates.max_by_key(|(i, m)| (m.mountpoint.as_os_str().len(), *i)).map(|(_, m)| m))
}

/// Optional fields end at a lone `-`, blanks inside fields are octal escapes.
fn parse(text: &[u8]) -> Vec<MountEntry> {
    text.split(|b| *b == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let dash = fields.iter().skip(6).position(|f| *f == b"-")? + 6;
    let text = |i: usize| Some(String::from_utf8_lossy(fields.get(i)?).into_owned());
    let device = text(2)?;
    let (major, minor) = device.split_once(':')?;
    Some(MountEntry {
        mountpoint: unescape(fields.get(4)?).into(),
        device: (major.parse().ok()?, minor.parse().ok()?),
        fs_type: text(dash + 1)?,
        source: unescape(fields.get(dash + 2)?),
        options: text(5)?,
        everywhere: text(dash + 3).unwrap_or_default(),
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_table_is_read_with_its_escapes_and_optional_fields() {
        let text = b"36 35 98:0 / / ro,noatime master:1 shared:2 - ext4 /dev/root rw\n\
            40 36 0:50 / /mnt/a\\040b\\134 rw - fuse.ssefs my\\011bucket rw,user_id=0\n\
            41 36 0:51 / /mnt/- rw - fuse x ro\n\
            garbage\n\n";
        let found = parse(text);
        assert_eq!(found.len(), 3);
        assert_eq!(found[0].mountpoint, Path::new("/"));
        assert!(!found[0].is_fuse());
        assert!(found[0].has_option("ro") && found[0].has_option("noatime") && !found[0].has_option("rw"));
        assert_eq!(found[1].mountpoint, Path::new("/mnt/a b\\"));
        assert_eq!((found[1].device, &found[1].source), ((0, 50), &OsString::from("my\tbucket")));
        assert!(found[1].is_fuse() && found[2].is_fuse());
        assert_eq!(found.iter().map(MountEntry::is_read_only).collect::<Vec<_>>(), [true, false, true]);
    }

    #[test]
    fn every_path_lies_in_some_mount_and_the_root_is_one() {
        assert_eq!(mount_of(Path::new("/proc/self")).unwrap().unwrap().fs_type, "proc");
        assert!(mount_at(Path::new("/")).unwrap().is_some());
        assert!(mount_at(Path::new("/no/such/place")).unwrap().is_none());
    }
}
