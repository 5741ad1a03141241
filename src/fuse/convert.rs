//! Inodes and times as fuser has them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};

use crate::bucket::Attr;

/// What programs are told to read and write at a time, in bytes.
const BLKSIZE: u32 = 128 * 1024;

/// The file type of a mode; what is none is shown as a regular file.
pub fn file_type(mode: u32) -> FileType {
    match mode & libc::S_IFMT {
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        libc::S_IFSOCK => FileType::Socket,
        _ => FileType::RegularFile,
    }
}

/// Time of a number of nanoseconds since 1970, which may be negative.
fn time(ns: i64) -> SystemTime {
    let away = Duration::from_nanos(ns.unsigned_abs());
    if ns < 0 { UNIX_EPOCH - away } else { UNIX_EPOCH + away }
}

/// Nanoseconds since 1970; times before 1677 or after 2262 become the first or last that can be told.
pub fn nanoseconds(t: TimeOrNow) -> i64 {
    let t = match t {
        TimeOrNow::SpecificTime(t) => t,
        TimeOrNow::Now => SystemTime::now(),
    };
    match t.duration_since(UNIX_EPOCH) {
        Ok(d) => i64::try_from(d.as_nanos()).unwrap_or(i64::MAX),
        // fuser 0.18 reads the kernel's (seconds, nanoseconds) before 1970 as -(seconds + nanoseconds), where the
        // nanoseconds count forward: so they are put right here.
        Err(e) => {
            let d = e.duration();
            i64::try_from(d.as_secs())
                .ok()
                .and_then(|s| s.checked_mul(-1_000_000_000))
                .map_or(i64::MIN, |s| s + i64::from(d.subsec_nanos()))
        }
    }
}

/// What stat(2) shows. Blocks are what the content takes in the log.
pub fn file_attr(a: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(a.ino),
        size: a.size,
        blocks: a.sealed.div_ceil(512),
        atime: time(a.atime),
        mtime: time(a.mtime),
        ctime: time(a.ctime),
        crtime: time(a.btime),
        kind: file_type(a.mode),
        perm: (a.mode & 0o7777) as u16,
        nlink: a.nlink,
        uid: a.uid,
        gid: a.gid,
        rdev: a.rdev,
        blksize: BLKSIZE,
        flags: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_go_there_and_back_to_the_nanosecond_and_far_ones_stop_at_the_end() {
        for ns in [0, 1, 1_700_000_000_123_456_789, -1_000_000_000, i64::MAX] {
            assert_eq!(nanoseconds(TimeOrNow::SpecificTime(time(ns))), ns);
        }
        // What fuser makes of the kernel's (-2 s, 300 ns), which is 299,999,700 ns after -2 s ... as -(2 s + 300 ns).
        let from_kernel = UNIX_EPOCH - Duration::new(2, 300);
        assert_eq!(nanoseconds(TimeOrNow::SpecificTime(from_kernel)), -2_000_000_000 + 300);
        let far = UNIX_EPOCH + Duration::from_secs(1 << 40);
        assert_eq!(nanoseconds(TimeOrNow::SpecificTime(far)), i64::MAX);
        let far = UNIX_EPOCH - Duration::from_secs(1 << 40);
        assert_eq!(nanoseconds(TimeOrNow::SpecificTime(far)), i64::MIN);
    }

    #[test]
    fn blocks_are_rounded_up_and_modes_taken_apart() {
        let a = Attr { ino: 7, mode: libc::S_IFIFO | 0o4640, sealed: 513, ..Attr::default() };
        let f = file_attr(&a);
        assert_eq!((f.blocks, f.kind, f.perm), (2, FileType::NamedPipe, 0o4640));
    }
}
