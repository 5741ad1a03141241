//! Locking: what was acknowledged is on disk, handles and mappings end, pages and keys are gone.

use crate::mount::{Mount, errno, set_xattr, skip_without_root};
use crate::sys::{Map, in_child, signal_of_child};
use crate::{UNLOCK, key, lock, memory, put, rows};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

#[test]
fn r30_locking_cuts_off_open_files_mappings_and_pages_and_loses_nothing() {
    let Some(mut m) = Mount::real("") else { return };
    let f = put(&m, "f", &key(1), &[1; 200_000]);
    let read = File::open(&f).unwrap();
    let both = OpenOptions::new().read(true).write(true).open(&f).unwrap();
    let write = OpenOptions::new().append(true).open(&f).unwrap();
    let mut map = Map::new(&both, 200_000, libc::MAP_SHARED).unwrap();
    // Acknowledged and not synced; and in the pages of a mapping, which nobody has acknowledged.
    both.write_all_at(b"acknowledged", 5000).unwrap();
    (&write).write_all(b"appended").unwrap();
    map.put(100_000, b"mapped");
    let mut one = [0];
    read.read_at(&mut one, 150_000).unwrap();
    lock(&m, "f");
    for (what, no) in [
        ("read", errno(read.read_at(&mut one, 0))),
        ("read what was in the page cache", errno(read.read_at(&mut one, 150_000))),
        ("read again", errno(both.read_at(&mut one, 5000))),
        ("write", errno(both.write_at(b"x", 0))),
        ("append", errno((&write).write(b"x"))),
        ("ftruncate", errno(both.set_len(10))),
        ("fallocate", errno(crate::sys::fallocate(&both, 0, 0, 300_000))),
        ("punch", errno(crate::sys::fallocate(&both, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 0, 4096))),
        ("seek", errno(crate::sys::lseek(&read, 0, libc::SEEK_DATA))),
        ("open", errno(File::open(&f))),
    ] {
        assert_eq!(no, libc::ENOKEY, "{what}");
    }
    let bus = signal_of_child(|| {
        std::hint::black_box(map.byte(0));
    });
    assert_eq!(bus, Some(libc::SIGBUS), "the mapping shows nothing any more");
    both.metadata().unwrap();
    both.sync_all().unwrap();
    // Unlocked again, what is open goes on.
    set_xattr(&f, UNLOCK, key(1)).unwrap();
    let expect = |at: u64, bytes: &[u8]| {
        let mut got = vec![0; bytes.len()];
        read.read_at(&mut got, at).unwrap();
        assert_eq!(got, bytes, "at {at}");
    };
    expect(5000, b"acknowledged");
    expect(200_000, b"appended");
    expect(100_000, b"mapped");
    assert_eq!(map.byte(150_000), 1);
    lock(&m, "f");
    drop((map, read, both, write));
    m.kill9();
    m.mount();
    set_xattr(&f, UNLOCK, key(1)).unwrap();
    let got = fs::read(&f).unwrap();
    assert_eq!(
        (&got[5000..5012], &got[200_000..], &got[100_000..100_006]),
        (&b"acknowledged"[..], &b"appended"[..], &b"mapped"[..])
    );
}

#[test]
fn locking_a_directory_cuts_off_what_only_it_had_unlocked() {
    let Some(mut m) = Mount::real("") else { return };
    fs::create_dir_all(m.at("d/e")).unwrap();
    for name in ["d/a", "d/e/b", "c"] {
        put(&m, name, &key(1), name.as_bytes());
    }
    m.remount();
    set_xattr(m.at("d"), UNLOCK, key(1)).unwrap();
    set_xattr(m.at("c"), UNLOCK, key(1)).unwrap();
    set_xattr(m.at("d/a"), UNLOCK, key(1)).unwrap();
    let open: Vec<File> = ["d/a", "d/e/b", "c"].iter().map(|n| File::open(m.at(n)).unwrap()).collect();
    let read = |f: &File| f.read_at(&mut [0; 3], 0).map_or_else(|e| e.raw_os_error().unwrap(), |_| 0);
    assert_eq!(open.iter().map(read).collect::<Vec<_>>(), [0, 0, 0]);
    lock(&m, "d");
    assert_eq!(open.iter().map(read).collect::<Vec<_>>(), [0, libc::ENOKEY, 0]);
    assert_eq!(errno(crate::mount::remove_xattr(m.at("d/e/b"), UNLOCK)), libc::ENODATA);
    lock(&m, "d/a");
    assert_eq!(open.iter().map(read).collect::<Vec<_>>(), [libc::ENOKEY, libc::ENOKEY, 0]);
    // One that is unlinked and open is cut off as well, and its space comes back.
    fs::remove_file(m.at("c")).unwrap();
    assert_eq!(read(&open[2]), 0);
    drop(open);
}

#[test]
fn locking_while_others_read_write_and_map_never_hangs_and_never_lies() {
    let Some(mut m) = Mount::real("") else { return };
    const FILES: u64 = 4;
    for n in 0..FILES {
        put(&m, &format!("f{n}"), &key(n), &[n as u8; 100_000]);
    }
    let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let workers: Vec<_> = (0..FILES)
        .map(|n| {
            let (f, stop, acknowledged) = (m.at(format!("f{n}")), stop.clone(), acknowledged.clone());
            std::thread::spawn(move || {
                let mut counter = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    let Ok(file) = OpenOptions::new().read(true).write(true).open(&f) else { continue };
                    for at in (0..90_000).step_by(4096) {
                        let mut got = [0; 64];
                        if file.read_at(&mut got, at + 100).is_ok() {
                            assert_eq!(got, [n as u8; 64], "another content");
                        }
                        if file.write_all_at(&(counter + 1).to_le_bytes(), 99_000).is_ok() {
                            counter += 1;
                            acknowledged.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
                counter
            })
        })
        .collect();
    for round in 0..30 {
        for n in 0..FILES {
            let f = m.at(format!("f{n}"));
            if round % 2 == 0 {
                lock(&m, &format!("f{n}"));
                assert_eq!(errno(File::open(&f)), libc::ENOKEY);
            } else {
                set_xattr(&f, UNLOCK, key(n)).unwrap();
            }
        }
    }
    // Uneven: all are unlocked.
    let enough = crate::run::eventually(|| acknowledged.load(Ordering::Relaxed) > 200);
    stop.store(true, Ordering::Relaxed);
    let counters: Vec<u64> = workers.into_iter().map(|w| w.join().unwrap()).collect();
    assert!(enough);
    m.remount();
    for (n, counter) in counters.into_iter().enumerate() {
        let f = m.at(format!("f{n}"));
        set_xattr(&f, UNLOCK, key(n as u64)).unwrap();
        assert_eq!(fs::read(&f).unwrap()[99_000..99_008], counter.to_le_bytes(), "an acknowledged write is lost");
    }
}

#[test]
fn after_a_lock_no_key_is_left_in_memory() {
    let Some(m) = Mount::real("") else { return };
    if skip_without_root() {
        return;
    }
    let (mine, others) = (key(1), key(2));
    let f = put(&m, "f", &mine, &[5; 100_000]);
    let g = put(&m, "g", &others, &[6; 100_000]);
    set_xattr(m.path(), UNLOCK, &mine).unwrap();
    let files: Vec<File> =
        [&f, &g].iter().map(|p| OpenOptions::new().read(true).write(true).open(p).unwrap()).collect();
    for file in &files {
        file.write_all_at(b"more", 7000).unwrap();
        file.sync_all().unwrap();
        file.read_at(&mut [0; 5000], 3000).unwrap();
    }
    let pid = m.pid().unwrap();
    let committed = || rows(&m, "SELECT count(*) FROM seal", |r| r.get::<_, i64>(0)) == [2];
    assert!(crate::run::eventually(committed));
    // What can be computed from the key and the catalog: the keys between it and the content.
    use ssefs::crypto::{customer::Salted, derive, secret::CustomerKey, wrap};
    use ssefs::types::{KeyId, OpenId, SealId};
    let opening: Vec<Vec<u8>> = rows(&m, "SELECT open_id FROM opening ORDER BY no DESC LIMIT 1", |r| r.get(0));
    let opening = OpenId::try_from(&opening[0][..]).unwrap();
    let derived = |given: &[u8]| -> Vec<Vec<u8>> {
        let sealed: Vec<(Vec<u8>, Vec<u8>, Vec<u8>)> =
            rows(&m, "SELECT seal_id, customer_salt, wrapped FROM seal", |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)));
        let customer = CustomerKey::parse(given).unwrap();
        let empty = KeyId(String::new());
        let mut out = vec![given.to_vec()];
        for (id, salt, wrapped) in sealed {
            let id = SealId::try_from(&id[..]).unwrap();
            let kek = Salted::new(&customer, &salt.try_into().unwrap()).kek(&id);
            let ctx = wrap::DataCtx { seal_id: id, method: 3, cipher: 1, key_id: &empty };
            let Ok(data) = wrap::unwrap_data_key(&kek, &ctx, &wrapped) else { continue };
            out.extend([kek.expose().to_vec(), data.expose().to_vec(), derive::map_key(&data, &id).expose().to_vec()]);
            out.push(derive::chunk_key(&data, &opening, 0).expose().to_vec());
        }
        assert_eq!(out.len(), 5, "customer key, its KEK, data key, map key, chunk key");
        out
    };
    let (mine, others) = (derived(&mine), derived(&others));
    let count = |keys: &[Vec<u8>]| memory::count_in(pid, &keys.iter().map(Vec::as_slice).collect::<Vec<_>>());
    // Each way that a key comes in, so often that every event thread has had one in its buffer.
    let file = crate::key_file(&m, "key", &mine[0], 0o600);
    for _ in 0..8 {
        m.ssefs(&["object", "unlock", f.to_str().unwrap(), "--key-file", file.to_str().unwrap()]).ok();
    }
    for _ in 0..40 {
        set_xattr(&f, UNLOCK, &mine[0]).unwrap();
    }
    let before = count(&mine);
    assert!(
        before[0] > 0 && before[2] > 0 && before[4] > 0,
        "an unlocked key is found, or this test could not fail: {before:?}"
    );
    lock(&m, "f");
    assert!(count(&mine)[0] > 0, "it is unlocked for the directory still");
    lock(&m, "");
    assert_eq!(count(&mine), [0; 5], "customer key, KEK, data key, map key, chunk key");
    assert!(count(&others)[0] > 0, "what is not locked stays");
    assert_eq!(errno(files[0].read_at(&mut [0], 0)), libc::ENOKEY);
    files[1].read_at(&mut [0], 0).unwrap();
    lock(&m, "g");
    assert_eq!(count(&others), [0; 5]);
    assert_eq!(in_child(|| u8::from(File::open(&g).is_ok())), 0);
}
