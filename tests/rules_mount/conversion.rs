//! What writing to an object does when its method is no longer what a PUT would get (SEMANTICS, after row 46).

use crate::mount::{Mount, eventually, remove_xattr, set_xattr};
use crate::plaintext::found_in_store;
use crate::tree::Dice;
use crate::{REQUEST, RULE, method, put, state};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

fn poke(m: &Mount, name: &str) {
    File::options().write(true).open(m.at(name)).unwrap().write_all_at(b"poke", 3).unwrap();
}

#[test]
fn a_write_to_a_plain_object_under_a_rule_seals_all_of_it() {
    let Some(mut m) = Mount::real("") else { return };
    let marker = b"PLAIN-UNTIL-IT-IS-CONVERTED-7391";
    let mut want = marker.repeat(60_000);
    fs::write(m.at("f"), &want).unwrap();
    File::open(m.at("f")).unwrap().sync_all().unwrap();
    assert!(!found_in_store(&m, marker).is_empty(), "as long as it is plain");
    set_xattr(m.path(), RULE, "AES256").unwrap();
    assert_eq!(method(&m, "f"), "none", "not by the rule alone");
    let f = File::options().write(true).open(m.at("f")).unwrap();
    f.write_all_at(b"x", 1_000_000).unwrap();
    want[1_000_000] = b'x';
    assert_eq!(method(&m, "f"), "AES256", "before the write returns");
    assert!(fs::read(m.at("f")).unwrap() == want);
    f.sync_all().unwrap();
    drop(f);
    assert!(
        eventually(|| found_in_store(&m, marker).is_empty()),
        "old plain bytes are left: {:?}",
        found_in_store(&m, marker)
    );
    m.remount();
    assert!(fs::read(m.at("f")).unwrap() == want);
    assert_eq!(method(&m, "f"), "AES256");
    assert_eq!(found_in_store(&m, marker), Vec::<String>::new());
}

/// The kernel keeps attributes for an hour: what a conversion changes of them must not wait for that.
#[test]
fn a_conversion_shows_in_stat_at_once() {
    let Some(mut m) = Mount::real("") else { return };
    fs::write(m.at("f"), Dice::new(8).bytes(300_000)).unwrap();
    let f = File::open(m.at("f")).unwrap();
    f.sync_all().unwrap();
    let look = |m: &Mount| {
        let s = fs::metadata(m.at("f")).unwrap();
        (s.mtime(), s.mtime_nsec(), s.ctime(), s.ctime_nsec(), s.blocks())
    };
    let before = look(&m);
    set_xattr(m.at("f"), REQUEST, "KMS").unwrap();
    let after = look(&m);
    assert_eq!((before.0, before.1), (after.0, after.1), "its content is the same");
    assert!((after.2, after.3) > (before.2, before.3), "ctime");
    f.sync_all().unwrap();
    drop(f);
    m.remount();
    assert_eq!(look(&m), after);
}

#[test]
fn every_way_of_changing_an_object_converts_it() {
    let Some(m) = Mount::real("AES256") else { return };
    type Change = fn(&Mount, &str);
    let ways: [(&str, Change); 5] = [
        ("write", poke),
        ("append", |m, n| {
            std::io::Write::write_all(&mut File::options().append(true).open(m.at(n)).unwrap(), b"more").unwrap()
        }),
        ("mapped", |m, n| {
            let f = File::options().read(true).write(true).open(m.at(n)).unwrap();
            let mut map = crate::sys::Map::new(&f, 8192, libc::MAP_SHARED).unwrap();
            map.put(5000, b"mapped");
            map.sync().unwrap();
        }),
        ("copied into", |m, n| {
            let from = File::open(m.at("source")).unwrap();
            crate::sys::copy_range(&from, 0, &File::options().write(true).open(m.at(n)).unwrap(), 100, 50).unwrap();
        }),
        ("emptied", |m, n| fs::write(m.at(n), "new").unwrap()),
    ];
    put(&m, "source");
    for (name, _) in &ways {
        fs::write(m.at(name), [b'a'; 40_000]).unwrap();
        assert_eq!(method(&m, name), "AES256");
    }
    set_xattr(m.path(), RULE, "KMS").unwrap();
    for (name, change) in &ways {
        let mut want = fs::read(m.at(name)).unwrap();
        change(&m, name);
        match *name {
            "write" => want[3..7].copy_from_slice(b"poke"),
            "append" => want.extend(b"more"),
            "mapped" => want[5000..5006].copy_from_slice(b"mapped"),
            "copied into" => want.splice(100..100 + 17, *b"content of source").for_each(drop),
            _ => want = b"new".to_vec(),
        }
        assert_eq!(method(&m, name), "KMS", "{name}");
        assert!(fs::read(m.at(name)).unwrap() == want, "{name}");
    }
}

#[test]
fn a_write_under_the_same_rule_keeps_the_objects_data_key() {
    let Some(mut m) = Mount::real("AES256") else { return };
    fs::write(m.at("f"), Dice::new(1).bytes(100_000)).unwrap();
    let before = state(&m, "f");
    let sealed = seal_id(&mut m);
    poke(&m, "f");
    assert_eq!(state(&m, "f"), before);
    assert_eq!(seal_id(&mut m), sealed, "no new PUT");
    // Setting the same rule again is no other rule.
    set_xattr(m.path(), RULE, "AES256").unwrap();
    poke(&m, "f");
    assert_eq!(seal_id(&mut m), sealed);
    fs::write(m.at("f"), "emptied and written: a PUT").unwrap();
    assert_ne!(seal_id(&mut m), sealed);
}

/// The seal id of the only object, from the catalog.
fn seal_id(m: &mut Mount) -> Vec<u8> {
    m.umount();
    let catalog = rusqlite::Connection::open_with_flags(
        m.folder().join("catalog.db"),
        rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY,
    )
    .unwrap();
    let id = catalog.query_row("SELECT seal_id FROM seal", [], |r| r.get(0)).unwrap();
    drop(catalog);
    m.mount();
    id
}

#[test]
fn a_write_never_makes_a_sealed_object_plain() {
    let Some(m) = Mount::real("AES256") else { return };
    put(&m, "f");
    put(&m, "g");
    remove_xattr(m.path(), RULE).unwrap();
    poke(&m, "f");
    assert_eq!(method(&m, "f"), "AES256");
    assert_eq!(fs::read(m.at("f")).unwrap(), b"conpoke of f");
    // Emptied and written anew it is a new PUT, and no rule is in force.
    assert_eq!(put(&m, "g"), "none");
}

#[test]
fn a_requested_method_stays_when_the_rule_changes() {
    let Some(m) = Mount::real("") else { return };
    File::create(m.at("f")).unwrap();
    set_xattr(m.at("f"), REQUEST, "KMS").unwrap();
    put(&m, "f");
    let before = state(&m, "f");
    for rule in ["AES256", "KMS"] {
        set_xattr(m.path(), RULE, rule).unwrap();
        poke(&m, "f");
        assert_eq!((method(&m, "f"), state(&m, "f")), ("KMS".into(), before.clone()), "rule {rule}");
    }
}

#[test]
fn a_moved_object_is_converted_by_the_first_write_in_its_new_place() {
    let Some(m) = Mount::real("") else { return };
    fs::create_dir(m.at("sealed")).unwrap();
    set_xattr(m.at("sealed"), RULE, "AES256").unwrap();
    put(&m, "f");
    fs::rename(m.at("f"), m.at("sealed/f")).unwrap();
    assert_eq!(method(&m, "sealed/f"), "none");
    poke(&m, "sealed/f");
    assert_eq!(method(&m, "sealed/f"), "AES256");
    fs::rename(m.at("sealed/f"), m.at("f")).unwrap();
    poke(&m, "f");
    assert_eq!(method(&m, "f"), "AES256");
}

#[test]
fn a_conversion_cut_short_by_kill_9_leaves_the_object_whole() {
    let Some(mut m) = Mount::real("AES256") else { return };
    let want = Dice::new(3).bytes(30 << 20);
    fs::write(m.at("f"), &want).unwrap();
    File::open(m.at("f")).unwrap().sync_all().unwrap();
    for round in 0..4u64 {
        let to = if method(&m, "f") == "AES256" { "KMS" } else { "AES256" };
        let at = m.at("f");
        let converting = std::thread::spawn(move || set_xattr(&at, REQUEST, to));
        std::thread::sleep(std::time::Duration::from_millis(7 * round));
        m.kill9();
        let _ = converting.join().unwrap();
        m.mount();
        assert!(fs::read(m.at("f")).unwrap() == want, "round {round}");
        method(&m, "f");
    }
}
