//! Reading and writing: any offset, append, truncate, the flags of open, files without a name.

use crate::mount::{Mount, errno};
use crate::sys::{self, Aligned};
use crate::tree::Dice;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};

/// Places where something changes in ssefs: blocks, chunks, leaves of the map.
const EDGES: [u64; 8] = [0, 1, 4096, 16384, 65536, 131_072, 1 << 20, 3 << 20];

#[test]
fn bytes_written_at_any_offset_are_read_at_that_offset() {
    let mut m = Mount::new("AES256");
    let mut dice = Dice::new(1);
    let mut want = vec![];
    let f = sys::open(m.at("f"), libc::O_RDWR | libc::O_CREAT, 0o644).unwrap();
    for edge in EDGES {
        for (before, len) in [(0, 1), (1, 2), (5, 4096), (100, 20_000), (0, 16384), (4095, 4097)] {
            let at = edge.saturating_sub(before) as usize;
            let bytes = dice.bytes(len);
            want.resize(want.len().max(at + len), 0);
            want[at..at + len].copy_from_slice(&bytes);
            f.write_all_at(&bytes, at as u64).unwrap();
            let mut back = vec![0; len];
            f.read_exact_at(&mut back, at as u64).unwrap();
            assert!(back == bytes, "{len} bytes at {at}");
        }
    }
    assert!(fs::read(m.at("f")).unwrap() == want, "the whole file");
    drop(f);
    m.remount();
    assert!(fs::read(m.at("f")).unwrap() == want, "the whole file, after a remount");
}

#[test]
fn reading_ends_at_the_end_of_the_file() {
    let m = Mount::new("AES256");
    fs::write(m.at("f"), [7; 5000]).unwrap();
    let f = File::open(m.at("f")).unwrap();
    let mut buf = [0; 4096];
    assert_eq!(f.read_at(&mut buf, 4096).unwrap(), 904);
    assert_eq!(f.read_at(&mut buf, 5000).unwrap(), 0);
    assert_eq!(f.read_at(&mut buf, 1 << 40).unwrap(), 0);
    assert_eq!(f.read_at(&mut [], 0).unwrap(), 0);
}

#[test]
fn a_write_is_seen_by_every_other_handle_at_once() {
    let m = Mount::new("AES256");
    let p = m.at("f");
    let readers: Vec<_> =
        [libc::O_RDONLY, libc::O_RDWR].map(|flags| sys::open(&p, flags | libc::O_CREAT, 0o644).unwrap()).into();
    let writers: Vec<_> = [libc::O_WRONLY, libc::O_RDWR, libc::O_WRONLY | libc::O_APPEND]
        .map(|flags| sys::open(&p, flags, 0).unwrap())
        .into();
    let mut size = 0;
    for round in 0..30u8 {
        for (i, w) in writers.iter().enumerate() {
            let bytes = vec![round * 3 + i as u8; 3000 + round as usize * 100];
            let at = if i == 2 { size } else { u64::from(round) * 500 };
            w.write_all_at(&bytes, at).unwrap();
            size = size.max(at + bytes.len() as u64);
            for r in &readers {
                let mut back = vec![0; bytes.len()];
                r.read_exact_at(&mut back, at).unwrap();
                assert!(back == bytes, "round {round}, writer {i}");
                assert_eq!(r.metadata().unwrap().len(), size);
            }
            assert_eq!(fs::metadata(&p).unwrap().len(), size);
        }
    }
}

#[test]
fn appends_of_many_writers_are_all_there_and_whole() {
    let m = Mount::new("AES256");
    let p = m.at("log");
    std::thread::scope(|s| {
        for who in 0..4u8 {
            let p = &p;
            s.spawn(move || {
                let mut f = sys::open(p, libc::O_WRONLY | libc::O_APPEND | libc::O_CREAT, 0o644).unwrap();
                for n in 0..250u32 {
                    let mut record = [who; 107];
                    record[1..5].copy_from_slice(&n.to_le_bytes());
                    record[106] = b'\n';
                    assert_eq!(f.write(&record).unwrap(), 107);
                }
            });
        }
    });
    let all = fs::read(&p).unwrap();
    assert_eq!(all.len(), 4 * 250 * 107);
    let mut next = [0u32; 4];
    for r in all.chunks(107) {
        let who = r[0] as usize;
        assert!(r[5..106].iter().all(|&b| b == r[0]) && r[106] == b'\n', "a record is torn");
        assert_eq!(u32::from_le_bytes(r[1..5].try_into().unwrap()), next[who], "the order of writer {who}");
        next[who] += 1;
    }
}

#[test]
fn an_append_goes_to_the_end_whatever_the_offset_is() {
    let m = Mount::new("AES256");
    fs::write(m.at("f"), b"0123456789").unwrap();
    let mut f = sys::open(m.at("f"), libc::O_RDWR | libc::O_APPEND, 0).unwrap();
    let mut two = [0; 2];
    f.read_exact(&mut two).unwrap();
    f.write_all(b"ab").unwrap();
    sys::truncate(m.at("f"), 4).unwrap();
    f.write_all(b"cd").unwrap();
    assert_eq!(fs::read(m.at("f")).unwrap(), b"0123cd");
}

#[test]
fn a_single_write_can_ask_to_append_but_not_the_opposite() {
    const RWF_NOAPPEND: i32 = 0x20;
    let m = Mount::new("AES256");
    for (i, way) in [libc::O_WRONLY, libc::O_RDWR].into_iter().enumerate() {
        let p = m.at(format!("f{i}"));
        fs::write(&p, b"0123").unwrap();
        let f = sys::open(&p, way, 0).unwrap();
        assert_eq!(sys::pwrite2(&f, b"45", 1, libc::RWF_APPEND).unwrap(), 2);
        assert_eq!(fs::read(&p).unwrap(), b"012345");
        // Where the kernel keeps no pages, FUSE passes on only how the file was opened (ssefs(5), KNOWN GAPS).
        let f = sys::open(&p, way | libc::O_APPEND, 0).unwrap();
        match sys::pwrite2(&f, b"ab", 1, RWF_NOAPPEND) {
            Ok(_) if crate::mount::plain() || way == libc::O_RDWR => assert_eq!(fs::read(&p).unwrap(), b"0ab345"),
            Ok(_) => assert_eq!(fs::read(&p).unwrap(), b"012345ab"),
            // Linux before 6.9.
            Err(e) => assert_eq!(e.raw_os_error(), Some(libc::EOPNOTSUPP)),
        }
    }
}

#[test]
fn truncate_cuts_and_extends_with_zeroes_only() {
    let mut m = Mount::new("AES256");
    let mut dice = Dice::new(3);
    let p = m.at("f");
    let mut want = dice.bytes(2_000_000);
    fs::write(&p, &want).unwrap();
    let f = sys::open(&p, libc::O_RDWR, 0).unwrap();
    for len in [
        1_999_999, 1_048_577, 1_048_576, 3_000_000, 70_000, 16_385, 16_384, 20_000, 4097, 4096, 100, 5000, 1, 300_000,
        0, 10,
    ] {
        if dice.one_in(2) {
            f.set_len(len).unwrap()
        } else {
            sys::truncate(&p, len as i64).unwrap()
        }
        want.resize(len as usize, 0);
        assert!(fs::read(&p).unwrap() == want, "after truncation to {len}");
        assert_eq!(f.metadata().unwrap().len(), len);
    }
    f.write_all_at(b"x", 50_000).unwrap();
    want.resize(50_000, 0);
    want.push(b'x');
    drop(f);
    m.remount();
    assert!(fs::read(&p).unwrap() == want);
    assert_eq!(errno(sys::truncate(&p, -1)), libc::EINVAL);
    assert_eq!(errno(sys::truncate(m.path(), 0)), libc::EISDIR);
    assert_eq!(errno(File::open(&p).unwrap().set_len(0)), libc::EINVAL);
}

#[test]
fn bytes_cut_off_do_not_come_back_when_the_file_grows_again() {
    let mut m = Mount::new("AES256");
    let p = m.at("f");
    for (len, cut, grown) in [(9000, 4100, 9000), (40_000, 16_400, 40_000), (5000, 1, 4096)] {
        fs::write(&p, vec![0xee; len]).unwrap();
        sys::truncate(&p, cut).unwrap();
        m.remount();
        sys::truncate(&p, grown).unwrap();
        let got = fs::read(&p).unwrap();
        assert!(
            got[..cut as usize].iter().all(|&b| b == 0xee) && got[cut as usize..].iter().all(|&b| b == 0),
            "{len} {cut} {grown}"
        );
    }
}

#[test]
fn open_creates_exclusively_and_truncates_as_asked() {
    let m = Mount::new("AES256");
    let p = m.at("f");
    assert_eq!(errno(sys::open(&p, libc::O_RDONLY, 0)), libc::ENOENT);
    sys::open(&p, libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL, 0o600).unwrap().write_all(b"content").unwrap();
    assert_eq!(errno(sys::open(&p, libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL, 0o600)), libc::EEXIST);
    sys::open(&p, libc::O_WRONLY | libc::O_CREAT, 0o644).unwrap();
    assert_eq!(fs::read(&p).unwrap(), b"content");
    let reader = File::open(&p).unwrap();
    let before = reader.metadata().unwrap().ino();
    sys::open(&p, libc::O_WRONLY | libc::O_TRUNC, 0).unwrap();
    assert_eq!(reader.read_at(&mut [0; 10], 0).unwrap(), 0, "an open reader sees the truncation");
    assert_eq!(reader.metadata().unwrap().ino(), before);
    std::os::unix::fs::symlink("nowhere", m.at("link")).unwrap();
    assert_eq!(errno(sys::open(m.at("link"), libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL, 0o600)), libc::EEXIST);
    assert_eq!(errno(sys::open(m.at("link"), libc::O_RDONLY | libc::O_NOFOLLOW, 0)), libc::ELOOP);
    assert_eq!(errno(sys::open(&p, libc::O_RDONLY | libc::O_DIRECTORY, 0)), libc::ENOTDIR);
    assert_eq!(errno(sys::open(m.path(), libc::O_WRONLY, 0)), libc::EISDIR);
    assert_eq!(errno(sys::open(m.at("f/below"), libc::O_RDONLY, 0)), libc::ENOTDIR);
}

#[test]
fn two_who_create_exclusively_cannot_both_succeed() {
    let m = Mount::new("AES256");
    let won = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                for i in 0..100 {
                    let made =
                        sys::open(m.at(format!("lock{i}")), libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL, 0o600);
                    won.fetch_add(usize::from(made.is_ok()), std::sync::atomic::Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(won.into_inner(), 100);
}

#[test]
fn direct_io_reads_and_writes_the_same_bytes() {
    let m = Mount::new("AES256");
    let p = m.at("f");
    let f = sys::open(&p, libc::O_RDWR | libc::O_CREAT | libc::O_DIRECT, 0o644).unwrap();
    let mut dice = Dice::new(4);
    let mut buf = Aligned::new(64 << 10);
    let bytes = dice.bytes(64 << 10);
    buf.copy_from_slice(&bytes);
    for i in 0..16 {
        f.write_all_at(&buf, i * (64 << 10)).unwrap();
    }
    let mut back = Aligned::new(64 << 10);
    f.read_exact_at(&mut back, 5 * (64 << 10)).unwrap();
    assert!(*back == *bytes);
    assert!(fs::read(&p).unwrap() == bytes.repeat(16), "a cached reader");
    File::options().write(true).open(&p).unwrap().write_all_at(b"changed", 8192).unwrap();
    f.read_exact_at(&mut back, 0).unwrap();
    assert_eq!(&back[8192..8199], b"changed");
    assert_eq!(f.read_at(&mut back, 1 << 20).unwrap(), 0);
}

#[test]
fn an_unlinked_file_lives_until_it_is_closed() {
    let m = Mount::new("AES256");
    for by_rename in [false, true] {
        let p = m.at("f");
        let mut dice = Dice::new(5);
        let old = dice.bytes(300_000);
        fs::write(&p, &old).unwrap();
        let f = sys::open(&p, libc::O_RDWR, 0).unwrap();
        if by_rename {
            fs::write(m.at("new"), b"new").unwrap();
            fs::rename(m.at("new"), &p).unwrap();
            assert_eq!(fs::read(&p).unwrap(), b"new");
        } else {
            fs::remove_file(&p).unwrap();
            assert_eq!(errno(fs::metadata(&p)), libc::ENOENT);
        }
        assert_eq!(f.metadata().unwrap().nlink(), 0);
        let mut back = vec![0; old.len()];
        f.read_exact_at(&mut back, 0).unwrap();
        assert!(back == old);
        f.write_all_at(&old[..100_000], 300_000).unwrap();
        f.sync_all().unwrap();
        f.set_len(350_000).unwrap();
        let mut back = vec![0; 50_000];
        f.read_exact_at(&mut back, 300_000).unwrap();
        assert!(back == old[..50_000]);
        assert_eq!(f.metadata().unwrap().len(), 350_000);
        // A new file of the name is another one.
        fs::write(&p, b"other").unwrap();
        assert_ne!(fs::metadata(&p).unwrap().ino(), f.metadata().unwrap().ino());
        f.read_exact_at(&mut back, 300_000).unwrap();
    }
}

#[test]
fn large_streams_come_back_whole() {
    let mut m = Mount::new("AES256");
    let mut dice = Dice::new(6);
    let piece = dice.bytes(1 << 20);
    let mut f = File::create(m.at("big")).unwrap();
    for i in 0..150u8 {
        let mut p = piece.clone();
        p[0] = i;
        f.write_all(&p).unwrap();
    }
    f.sync_all().unwrap();
    drop(f);
    for round in 0..2 {
        let mut f = File::open(m.at("big")).unwrap();
        let mut p = vec![0; 1 << 20];
        for i in 0..150u8 {
            f.read_exact(&mut p).unwrap();
            assert!(p[0] == i && p[1..] == piece[1..], "round {round}, MiB {i}");
        }
        assert_eq!(f.read(&mut p).unwrap(), 0);
        drop(f);
        m.remount();
    }
}

#[test]
fn data_synced_is_there_after_kill_9() {
    let mut m = Mount::new("AES256");
    let mut dice = Dice::new(7);
    let mut f = File::create(m.at("f")).unwrap();
    let mut want = vec![];
    for i in 0..20 {
        let bytes = dice.bytes(5000 + i * 333);
        f.write_all(&bytes).unwrap();
        want.extend(bytes);
        if i % 2 == 0 { f.sync_all().unwrap() } else { f.sync_data().unwrap() }
    }
    fs::rename(m.at("f"), m.at("g")).unwrap();
    File::open(m.path()).unwrap().sync_all().unwrap();
    m.kill9();
    drop(f);
    m.mount();
    assert!(fs::read(m.at("g")).unwrap() == want);
    assert!(!m.at("f").exists());
}
