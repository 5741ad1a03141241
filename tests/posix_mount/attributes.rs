//! What stat(2) and statfs(2) tell: times to the nanosecond, sizes, space.

use crate::mount::{Mount, errno};
use crate::sys::{self, Aligned, Map};
use std::fs::{self, File, Metadata};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{SystemTime, UNIX_EPOCH};

const OLD: sys::Time = (1_000_000_000, 123_456_789);

fn mtime(m: &Metadata) -> sys::Time {
    (m.mtime(), m.mtime_nsec())
}

fn stat(p: impl AsRef<std::path::Path>) -> Metadata {
    fs::symlink_metadata(p).unwrap()
}

/// Now, but not later than a clock that ticks only now and then would show it.
fn about_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64 - 2
}

#[test]
fn times_are_kept_to_the_nanosecond() {
    let mut m = Mount::new("AES256");
    fs::write(m.at("f"), "x").unwrap();
    fs::create_dir(m.at("d")).unwrap();
    std::os::unix::fs::symlink("x", m.at("l")).unwrap();
    let times = [
        ((0, 0), (0, 1)),
        ((1, 999_999_999), (4_102_444_800, 7)),
        ((-1, 500_000_000), (-86_400, 1)),
        (OLD, (2_147_483_648, 5)),
    ];
    for (atime, mtime) in times {
        for n in ["f", "d", "l"] {
            sys::utimens(m.at(n), atime, mtime).unwrap();
        }
        for round in 0..2 {
            for n in ["f", "d", "l"] {
                let s = stat(m.at(n));
                assert_eq!(
                    ((s.atime(), s.atime_nsec()), (s.mtime(), s.mtime_nsec())),
                    (atime, mtime),
                    "{n}, round {round}"
                );
            }
            m.remount();
        }
    }
}

#[test]
fn a_time_can_be_now_or_left_alone() {
    let m = Mount::new("AES256");
    let p = m.at("f");
    fs::write(&p, "x").unwrap();
    sys::utimens(&p, OLD, OLD).unwrap();
    sys::utimens(&p, (0, libc::UTIME_OMIT), (5, 6)).unwrap();
    let s = stat(&p);
    assert_eq!(((s.atime(), s.atime_nsec()), mtime(&s)), (OLD, (5, 6)));
    sys::utimens(&p, (0, libc::UTIME_NOW), (0, libc::UTIME_OMIT)).unwrap();
    let s = stat(&p);
    assert!(s.atime() >= about_now());
    assert_eq!(mtime(&s), (5, 6));
    assert!(s.ctime() >= about_now(), "ctime is the change of the times");
}

#[test]
fn writing_through_every_kind_of_handle_changes_mtime() {
    let m = Mount::new("AES256");
    let p = m.at("f");
    let kinds = [
        libc::O_WRONLY,
        libc::O_RDWR,
        libc::O_WRONLY | libc::O_APPEND,
        libc::O_RDWR | libc::O_APPEND,
        libc::O_WRONLY | libc::O_DIRECT,
        libc::O_RDWR | libc::O_DIRECT,
        libc::O_WRONLY | libc::O_SYNC,
    ];
    for flags in kinds {
        fs::write(&p, [0; 8192]).unwrap();
        let f = sys::open(&p, flags, 0).unwrap();
        let reader = File::open(&p).unwrap();
        sys::utimens(&p, OLD, OLD).unwrap();
        assert_eq!(mtime(&stat(&p)), OLD);
        f.write_all_at(&Aligned::new(4096), 4096).unwrap();
        for s in [stat(&p), f.metadata().unwrap(), reader.metadata().unwrap()] {
            assert!(s.mtime() >= about_now() && s.ctime() >= about_now(), "flags {flags:o}: {:?}", mtime(&s));
        }
        let after = mtime(&stat(&p));
        drop(f);
        assert_eq!(mtime(&stat(&p)), after, "closing is no change, flags {flags:o}");
    }
}

#[test]
fn other_changes_of_content_change_mtime() {
    let m = Mount::new("AES256");
    let p = m.at("f");
    let changes: [(&str, fn(&File)); 8] = [
        ("ftruncate", |f| f.set_len(100).unwrap()),
        ("ftruncate to the same size", |f| f.set_len(8192).unwrap()),
        ("punch", |f| sys::fallocate(f, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 0, 4096).unwrap()),
        ("fallocate", |f| sys::fallocate(f, 0, 0, 100_000).unwrap()),
        ("fallocate of what is there", |f| sys::fallocate(f, 0, 0, 10).unwrap()),
        ("fallocate behind the end", |f| sys::fallocate(f, libc::FALLOC_FL_KEEP_SIZE, 0, 100_000).unwrap()),
        ("punch behind the end", |f| {
            sys::fallocate(f, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 1 << 20, 4096).unwrap();
        }),
        ("a mapping", |f| {
            let mut map = Map::new(f, 4096, libc::MAP_SHARED).unwrap();
            map.put(5, b"x");
            map.sync().unwrap();
        }),
    ];
    for (what, change) in changes {
        fs::write(&p, [0; 8192]).unwrap();
        let f = sys::open(&p, libc::O_RDWR, 0).unwrap();
        sys::utimens(&p, OLD, OLD).unwrap();
        change(&f);
        assert!(stat(&p).mtime() >= about_now() && stat(&p).ctime() >= about_now(), "{what}");
    }
    sys::utimens(&p, OLD, OLD).unwrap();
    sys::open(&p, libc::O_WRONLY | libc::O_TRUNC, 0).unwrap();
    assert!(stat(&p).mtime() >= about_now(), "O_TRUNC");
    sys::utimens(&p, OLD, OLD).unwrap();
    fs::read(&p).unwrap();
    sys::chmod(&p, 0o600).unwrap();
    fs::rename(&p, m.at("g")).unwrap();
    let s = stat(m.at("g"));
    assert_eq!(mtime(&s), OLD, "reading, chmod and rename are no change of content");
    assert!(s.ctime() >= about_now());
}

#[test]
fn a_time_set_after_a_write_survives_close_and_remount() {
    let mut m = Mount::new("AES256");
    // As cp -p and tar do it: write, set the times through the handle, close.
    for (i, flags) in [libc::O_WRONLY, libc::O_RDWR].into_iter().enumerate() {
        let f = sys::open(m.at(format!("f{i}")), flags | libc::O_CREAT, 0o644).unwrap();
        f.write_all_at(&[1; 100_000], 0).unwrap();
        sys::futimens(&f, OLD, OLD).unwrap();
        drop(f);
        assert_eq!(mtime(&stat(m.at(format!("f{i}")))), OLD);
    }
    m.remount();
    for i in 0..2 {
        let s = stat(m.at(format!("f{i}")));
        assert_eq!((mtime(&s), s.len()), (OLD, 100_000));
    }
}

#[test]
fn times_are_set_by_every_form_of_utimensat() {
    let m = Mount::builder().rule("AES256").option("allow_other").mount();
    let p = m.at("f");
    fs::write(&p, "x").unwrap();
    std::os::unix::fs::symlink("f", m.at("l")).unwrap();
    sys::utimens(&p, OLD, OLD).unwrap();
    // Both left alone: not even ctime moves.
    let ctime = |p| (stat(p).ctime(), stat(p).ctime_nsec());
    let before = ctime(&p);
    let leave = (0, libc::UTIME_OMIT);
    sys::utimensat(&p, Some([leave, leave]), 0).unwrap();
    assert_eq!((mtime(&stat(&p)), ctime(&p)), (OLD, before));
    // Out of range is refused as a whole.
    for bad in [(0, 1_000_000_000), (0, -1)] {
        assert_eq!(errno(sys::utimensat(&p, Some([(7, 7), bad]), 0)), libc::EINVAL);
    }
    assert_eq!(mtime(&stat(&p)), OLD);
    // Through a link, and on the link.
    sys::utimensat(m.at("l"), Some([(7, 8), (9, 10)]), 0).unwrap();
    assert_eq!((mtime(&stat(&p)), mtime(&stat(m.at("l"))) == (9, 10)), ((9, 10), false));
    sys::utimensat(m.at("l"), Some([(11, 12), (13, 14)]), libc::AT_SYMLINK_NOFOLLOW).unwrap();
    assert_eq!((mtime(&stat(&p)), mtime(&stat(m.at("l")))), ((9, 10), (13, 14)));
    // Through a handle that only reads; now, by no times and by name.
    let f = File::open(&p).unwrap();
    sys::futimens(&f, (15, 16), OLD).unwrap();
    assert_eq!((stat(&p).atime(), mtime(&stat(&p))), (15, OLD));
    sys::utimensat(&p, None, 0).unwrap();
    assert!(stat(&p).atime() >= about_now() && stat(&p).mtime() >= about_now());
    sys::utimens(&p, OLD, OLD).unwrap();
    let now = (0, libc::UTIME_NOW);
    sys::utimens(&p, now, now).unwrap();
    assert!(stat(&p).atime() >= about_now() && stat(&p).mtime() >= about_now());
    if crate::mount::is_root() {
        // Who may only write may set both to now and nothing else.
        sys::chmod(&p, 0o666).unwrap();
        crate::mount::as_user(crate::mount::USER, || {
            sys::utimens(&p, now, now).unwrap();
            sys::utimensat(&p, None, 0).unwrap();
            sys::utimens(&p, leave, leave).unwrap();
            for times in [[now, leave], [leave, now], [now, (1, 1)], [(1, 1), leave]] {
                assert_eq!(errno(sys::utimensat(&p, Some(times), 0)), libc::EPERM, "{times:?}");
            }
        });
    }
}

#[test]
fn size_and_time_are_right_after_each_write_whichever_handle_wrote() {
    let m = Mount::new("AES256");
    let p = m.at("f");
    fs::write(&p, [0; 4096]).unwrap();
    let open = |flags| sys::open(&p, flags, 0).unwrap();
    let (direct, cached) = (open(libc::O_RDWR | libc::O_DIRECT), open(libc::O_RDWR));
    let (write_only, append) = (open(libc::O_WRONLY), open(libc::O_RDWR | libc::O_APPEND));
    let block = Aligned::new(4096);
    let mut size = 4096;
    let mut grown = |what: &str, by: u64| {
        size += by;
        for s in [stat(&p), direct.metadata().unwrap(), cached.metadata().unwrap(), append.metadata().unwrap()] {
            assert_eq!(s.len(), size, "{what}");
            assert!(s.mtime() >= about_now() && s.ctime() >= about_now(), "{what}");
        }
        assert_eq!(fs::read(&p).unwrap().len() as u64, size, "{what}");
        sys::utimens(&p, OLD, OLD).unwrap();
        assert_eq!(mtime(&stat(&p)), OLD, "{what}");
    };
    for _ in 0..3 {
        let end = || stat(&p).len().next_multiple_of(4096);
        let at = end();
        direct.write_all_at(&block, at).unwrap();
        grown("direct", 4096);
        cached.write_all_at(&block[..4096], end()).unwrap();
        grown("cached", 4096);
        write_only.write_all_at(&block, end()).unwrap();
        grown("write-only", 4096);
        (&append).write_all(&block).unwrap();
        grown("appended", 4096);
        let mut map = Map::new(&cached, 8192, libc::MAP_SHARED).unwrap();
        map.put(4095, b"both pages");
        map.sync().unwrap();
        grown("mapped", 0);
        assert_eq!(sys::copy_range(&cached, 0, &write_only, end(), 4096).unwrap(), 4096);
        grown("copied", 4096);
        sys::fallocate(&cached, 0, end(), 4096).unwrap();
        grown("allocated", 4096);
    }
}

#[test]
fn changing_its_entries_changes_a_directorys_time() {
    let m = Mount::new("AES256");
    let d = m.at("d");
    fs::create_dir(&d).unwrap();
    let changed = |what: &str| {
        assert!(stat(&d).mtime() >= about_now(), "{what}");
        sys::utimens(&d, OLD, OLD).unwrap();
    };
    sys::utimens(&d, OLD, OLD).unwrap();
    fs::write(d.join("f"), "x").unwrap();
    changed("create");
    fs::write(d.join("f"), "y").unwrap();
    assert_eq!(mtime(&stat(&d)), OLD, "writing to a file is no change of its directory");
    fs::hard_link(d.join("f"), d.join("g")).unwrap();
    changed("link");
    fs::rename(d.join("g"), d.join("h")).unwrap();
    changed("rename");
    std::os::unix::fs::symlink("x", d.join("l")).unwrap();
    changed("symlink");
    fs::create_dir(d.join("s")).unwrap();
    changed("mkdir");
    fs::remove_dir(d.join("s")).unwrap();
    changed("rmdir");
    fs::remove_file(d.join("h")).unwrap();
    changed("unlink");
}

#[test]
fn blocks_tell_the_space_of_the_content() {
    let m = Mount::new("AES256");
    fs::write(m.at("f"), vec![1; 1_000_000]).unwrap();
    File::open(m.at("f")).unwrap().sync_all().unwrap();
    let s = stat(m.at("f"));
    assert!((1_000_000..1_100_000).contains(&(s.blocks() * 512)), "{} blocks", s.blocks());
    assert!(s.blksize() >= 4096);
    File::create(m.at("empty")).unwrap();
    assert_eq!(stat(m.at("empty")).blocks(), 0);
}

#[test]
fn statfs_tells_space_that_makes_sense() {
    let m = Mount::new("AES256");
    fs::write(m.at("f"), vec![1; 1_000_000]).unwrap();
    for p in [m.path(), m.at("f")] {
        let s = sys::statvfs(&p).unwrap();
        assert_eq!(s.f_namemax, 255);
        assert!(s.f_bsize >= 512 && s.f_frsize >= 512 && s.f_blocks > 0);
        assert!(s.f_bavail <= s.f_bfree && s.f_bfree <= s.f_blocks);
        assert!(s.f_ffree <= s.f_files && s.f_files > 0);
        let below = sys::statvfs(m.beside("")).unwrap();
        assert!(s.f_bavail * s.f_frsize <= below.f_blocks * below.f_frsize, "more than the disk has");
        assert!(s.f_bavail * s.f_frsize >= below.f_bavail * below.f_frsize / 2, "much less than the disk has");
    }
    assert_eq!(errno(sys::statvfs(m.at("none"))), libc::ENOENT);
    crate::mount::sh(&m.path(), "df . && df -i . && du -s .");
}
