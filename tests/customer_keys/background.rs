//! What goes on without anybody asking copes with objects whose key is not there: moving, merging, deleting, committing.

use crate::mount::{Mount, errno, set_xattr};
use crate::{KEY, UNLOCK, key, lock, put, rows};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

/// Bytes that all segments take.
fn taken(m: &Mount) -> u64 {
    use std::os::unix::fs::MetadataExt;
    m.segments().iter().map(|p| fs::metadata(p).unwrap().blocks() * 512).sum()
}

#[test]
fn locked_objects_are_moved_without_their_keys_and_come_back_whole() {
    let Some(mut m) = Mount::real("AES256") else { return };
    let mut dice = crate::tree::Dice::new(9);
    let (a, b) = (dice.bytes(1_300_000), dice.bytes(700_000));
    put(&m, "a", &key(1), &a);
    put(&m, "b", &key(2), &b);
    // Much that is dead lies between.
    for n in 0..20 {
        fs::write(m.at("waste"), dice.bytes(400_000 + n)).unwrap();
        // Small pieces of the objects: wasteful leaves to be merged.
        let f = OpenOptions::new().write(true).open(m.at("a")).unwrap();
        f.write_all_at(&a[n * 30_000..n * 30_000 + 500], n as u64 * 30_000).unwrap();
        f.sync_all().unwrap();
    }
    fs::remove_file(m.at("waste")).unwrap();
    lock(&m, "a");
    m.remount();
    let (before, first) = (taken(&m), m.segments()[0].clone());
    m.ssefs(&["bucket", "compact", "b"]).ok();
    assert!(taken(&m) < before && !first.exists(), "{} of {before} bytes are taken, {}", taken(&m), first.display());
    assert_eq!(errno(fs::read(m.at("a"))), libc::ENOKEY);
    // With keys it is merged, too; and what was moved is told with salt and verifier in the log.
    set_xattr(m.at("a"), UNLOCK, key(1)).unwrap();
    assert!(fs::read(m.at("a")).unwrap() == a);
    m.ssefs(&["bucket", "compact", "b"]).ok();
    assert!(fs::read(m.at("a")).unwrap() == a);
    m.remount();
    for (name, content, n) in [("a", &a, 1), ("b", &b, 2)] {
        set_xattr(m.at(name), UNLOCK, key(n)).unwrap();
        assert!(fs::read(m.at(name)).unwrap() == *content, "{name}");
    }
    m.umount();
    let kept = rows(&m, "SELECT customer_salt, customer_verifier FROM seal WHERE method = 3", |r| {
        Ok((r.get::<_, Vec<u8>>(0)?, r.get::<_, Vec<u8>>(1)?))
    });
    let log: Vec<u8> = m.segments().iter().flat_map(|p| fs::read(p).unwrap()).collect();
    for (salt, verifier) in kept {
        let told = [salt, verifier].concat();
        assert!(log.windows(64).any(|w| w == told), "a PUT in the log has salt and verifier behind its wrapped key");
    }
}

#[test]
fn a_locked_object_is_deleted_with_its_space_however_large_it_is() {
    let Some(mut m) = Mount::real("") else { return };
    put(&m, "small", &key(1), &[1; 50_000]);
    // A map of several nodes: 70 MiB, with holes.
    let f = put(&m, "large", &key(1), &[2; 1000]);
    let file = OpenOptions::new().write(true).open(&f).unwrap();
    for mib in (0..70).step_by(3) {
        file.write_all_at(&[3; 30_000], mib << 20).unwrap();
    }
    drop(file);
    fs::write(m.at("other"), [4; 10_000]).unwrap();
    m.remount();
    for name in ["small", "large"] {
        fs::remove_file(m.at(name)).unwrap();
    }
    // The check at the end finds each byte that is not given back; here that nothing but "other" is counted.
    m.remount();
    m.umount();
    assert_eq!(rows(&m, "SELECT count(*) FROM seal", |r| r.get::<_, i64>(0)), [1]);
    assert_eq!(rows(&m, "SELECT count(*) FROM node", |r| r.get::<_, i64>(0)), [0]);
    let live: i64 = rows(&m, "SELECT sum(live) FROM segment", |r| r.get(0))[0];
    assert!(live < 20_000, "{live}");
    m.mount();
    assert_eq!(fs::read(m.at("other")).unwrap(), [4; 10_000]);
}

#[test]
fn unlinked_and_open_while_it_is_locked_an_object_goes_when_it_is_closed() {
    let Some(mut m) = Mount::real("") else { return };
    let f = put(&m, "f", &key(1), &[1; 500_000]);
    let file = OpenOptions::new().read(true).write(true).open(&f).unwrap();
    file.write_all_at(b"more", 100).unwrap();
    fs::remove_file(&f).unwrap();
    set_xattr(m.path(), UNLOCK, key(9)).unwrap();
    lock(&m, "");
    file.read_at(&mut [0], 0).unwrap();
    drop(file);
    m.remount();
    m.umount();
    assert_eq!(rows(&m, "SELECT count(*) FROM seal", |r| r.get::<_, i64>(0)), [0]);
    // And when a crash has left it: nobody has its key any more.
    m.mount();
    let g = put(&m, "g", &key(1), &[1; 500_000]);
    let file = OpenOptions::new().read(true).write(true).open(&g).unwrap();
    fs::remove_file(&g).unwrap();
    file.sync_all().unwrap();
    m.kill9();
    drop(file);
    m.mount();
    m.remount();
    m.umount();
    assert_eq!(rows(&m, "SELECT count(*) FROM seal", |r| r.get::<_, i64>(0)), [0]);
    assert_eq!(rows(&m, "SELECT count(*) FROM orphan", |r| r.get::<_, i64>(0)), [0]);
    m.mount();
}

#[test]
fn a_tree_of_locked_objects_is_deleted_and_renamed_over_without_a_key() {
    let Some(mut m) = Mount::real("AES256") else { return };
    fs::create_dir_all(m.at("d/e")).unwrap();
    set_xattr(m.at("d"), KEY, key(1)).unwrap();
    for n in 0..30 {
        fs::write(m.at(format!("d/e/{n}")), vec![n as u8; 20_000]).unwrap();
    }
    m.remount();
    fs::write(m.at("new"), b"new").unwrap();
    fs::rename(m.at("new"), m.at("d/e/5")).unwrap();
    assert_eq!(fs::read(m.at("d/e/5")).unwrap(), b"new");
    fs::remove_dir_all(m.at("d")).unwrap();
    m.remount();
    m.umount();
    for table in ["seal", "request", "dir_customer", "orphan"] {
        let sql = format!("SELECT count(*) FROM {table}");
        assert_eq!(rows(&m, &sql, |r| r.get::<_, i64>(0)), [0], "{table}");
    }
    m.mount();
}

#[test]
fn a_kill_at_any_moment_leaves_whole_objects_under_one_key_or_the_other() {
    let Some(mut m) = Mount::real("") else { return };
    let content = crate::tree::Dice::new(3).bytes(300_000);
    let f = put(&m, "f", &key(0), &content);
    fs::create_dir(m.at("d")).unwrap();
    set_xattr(m.at("d"), KEY, key(0)).unwrap();
    let mut now = 0;
    for round in 1..6 {
        set_xattr(m.at("d"), UNLOCK, key(0)).unwrap();
        set_xattr(&f, UNLOCK, key(now)).unwrap();
        set_xattr(&f, KEY, key(round)).unwrap();
        fs::write(m.at("d/g"), &content[..round as usize * 1000]).unwrap();
        if round % 2 == 0 {
            fs::File::open(&f).unwrap().sync_all().unwrap();
        }
        m.kill9();
        m.mount();
        now = [round, now].into_iter().find(|n| set_xattr(&f, UNLOCK, key(*n)).is_ok()).expect("one of the two keys");
        if round % 2 == 0 {
            assert_eq!(now, round, "what was synced is there");
        }
        assert!(fs::read(&f).unwrap() == content);
        set_xattr(m.at("d"), UNLOCK, key(0)).unwrap();
        if let Ok(g) = fs::read(m.at("d/g")) {
            assert!(g == content[..g.len()], "torn");
        }
    }
}
