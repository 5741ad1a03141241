//! Rows 20 and 73: rewraps of master key versions, and renewal of KEKs.

use crate::mount::{BUCKET, Mount};
use crate::{content, coverage, json, put, show, sync};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

fn segments(m: &Mount) -> BTreeMap<PathBuf, Vec<u8>> {
    m.segments().into_iter().map(|p| (p.clone(), fs::read(&p).unwrap())).collect()
}

#[test]
fn r20_a_rewrap_on_a_live_mount_changes_no_byte_of_data_while_files_are_read_and_written() {
    let Some(mut m) = Mount::real("KMS") else { return };
    for d in 0..4 {
        fs::create_dir(m.at(format!("d{d}"))).unwrap();
        for i in 0..500 {
            put(&m, &format!("d{d}/f{i}"), content(d * 500 + i, 3000));
        }
    }
    sync(&m);
    let before = segments(&m);
    let key = show(&m, "d0/f0")["key"].as_str().unwrap().to_owned();
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            let mut i = 0;
            while !stop.load(Ordering::Relaxed) {
                assert!(
                    fs::read(m.at(format!("d{}/f{}", i % 4, i % 500))).unwrap() == content(i % 4 * 500 + i % 500, 3000)
                );
                fs::write(m.at("written"), content(i, 5000)).unwrap();
                i += 1;
            }
        });
        for version in 2..5 {
            m.ssefs(&["key", "rotate", &key]).ok();
            let report = json(&m, 0, &["key", "rewrap", BUCKET]);
            assert_eq!((&report["rewrapped"], &report["key_version"]), (&report["keks"], &version.into()), "{report}");
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(show(&m, "d3/f499")["key_version"], 4);
    sync(&m);
    for (path, bytes) in before {
        // What was there is there, but for holes where a file was written over; the last segment goes on.
        let now = fs::read(&path).unwrap();
        let same = bytes.iter().zip(&now).filter(|(a, b)| a == b).count();
        assert!(now.len() >= bytes.len() && same * 100 >= bytes.len() * 99, "{path:?}: {same} of {}", bytes.len());
        let frames = 4096..bytes.len().min(1 << 20);
        assert!(bytes[frames.clone()] == now[frames], "{path:?}: the objects' frames");
    }
    m.remount();
    assert!(fs::read(m.at("d2/f77")).unwrap() == content(2 * 500 + 77, 3000));
    coverage(&m, 0);
}

#[test]
fn r20_one_key_that_cannot_be_used_does_not_keep_the_others_from_being_rewrapped() {
    let Some(mut m) = Mount::real("AES256") else { return };
    for key in ["one", "two"] {
        m.ssefs(&["key", "create", "--alias", key]).ok();
        fs::create_dir(m.at(key)).unwrap();
        crate::mount::set_xattr(m.at(key), crate::RULE, format!("KMS:{key}")).unwrap();
        put(&m, &format!("{key}/f"), content(key.len(), 5000));
    }
    put(&m, "one/large", content(9, 5 << 20));
    put(&m, "a", "under the bucket's own key");
    m.umount();
    let version = |m: &Mount, n: &str| show(m, n)["key_version"].as_u64().unwrap();
    let before = version(&m, "a");
    for key in ["one", "two", &format!("bucket:{BUCKET}")] {
        m.ssefs(&["key", "rotate", key]).ok();
    }
    m.ssefs(&["key", "disable", "one"]).ok();
    let report = json(&m, 13, &["key", "rewrap", BUCKET]);
    assert_eq!((&report["rewrapped"], report["left"].as_array().unwrap().len()), (&2.into(), 1), "{report}");
    assert_eq!((version(&m, "a"), version(&m, "two/f"), version(&m, "one/f")), (before + 1, 2, 1));
    // A conversion goes on over it, and names it.
    let report = json(&m, 13, &["object", "convert", "b:", "--new-keys"]);
    assert_eq!(
        (&report["objects"], &report["left"][0]["path"], &report["left_objects"]),
        (&2.into(), &"one/f".into(), &2.into()),
        "{report}"
    );
    // Its keys can be destroyed all the same.
    let receipt = json(&m, 0, &["object", "erase", "-r", "b:one"]);
    assert_eq!((&receipt["complete"], &receipt["objects_erased"]), (&true.into(), &2.into()), "{receipt}");
    m.ssefs(&["key", "enable", "one"]).ok();
    m.ssefs(&["key", "rewrap", BUCKET]).ok();
    m.mount();
    assert!(fs::read(m.at("two/f")).unwrap() == content(3, 5000));
    assert_eq!(crate::mount::errno(fs::read(m.at("one/f"))), libc::EKEYREVOKED);
}

#[test]
fn r73_keks_are_renewed_live_and_old_ones_wrap_nothing_any_more() {
    let Some(mut m) = Mount::real("KMS") else { return };
    for i in 0..300 {
        put(&m, &format!("f{i}"), content(i, 2000 + i * 10));
    }
    put(&m, "open", content(7, 100_000));
    sync(&m);
    let (kek, seal) = (show(&m, "f0")["kek"].clone(), show(&m, "f0")["seal_id"].clone());
    let report = json(&m, 0, &["key", "rewrap", BUCKET, "--renew"]);
    assert_eq!((&report["objects"], &report["finished"]), (&301.into(), &true.into()), "{report}");
    for n in ["f0", "f299", "open"] {
        assert_ne!(show(&m, n)["kek"], kek, "{n}");
    }
    assert_eq!(show(&m, "f0")["seal_id"], seal, "the same PUT, the same data key");
    put(&m, "new", "x");
    assert_ne!(show(&m, "new")["kek"], kek);
    m.kill9();
    m.mount();
    m.umount();
    m.mount();
    for i in 0..300 {
        assert!(fs::read(m.at(format!("f{i}"))).unwrap() == content(i, 2000 + i * 10), "f{i}");
    }
    let db = rusqlite::Connection::open_with_flags(
        m.folder().join("catalog.db"),
        rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY,
    )
    .unwrap();
    let old: i64 =
        db.query_row("SELECT count(*) FROM seal WHERE kek = ?1", [kek.as_i64().unwrap()], |r| r.get(0)).unwrap();
    assert_eq!(old, 0);
}
