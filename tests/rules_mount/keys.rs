//! Rows 19 and 20: a data key for each object, and master keys that rotate below them.

use crate::mount::{Mount, get_xattr_text};
use crate::{RULE, put};
use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};

/// The longest run of bytes that occurs twice in `bytes`, runs of one value left out.
fn longest_repeat(bytes: &[u8]) -> usize {
    let mut seen: HashMap<&[u8], usize> = HashMap::new();
    let mut longest = 0;
    for i in 0..bytes.len().saturating_sub(32) {
        let window = &bytes[i..i + 32];
        if window.iter().all(|b| *b == window[0]) {
            continue;
        }
        match seen.get(window) {
            Some(&first) => {
                longest = longest.max(bytes[first..].iter().zip(&bytes[i..]).take_while(|(a, b)| a == b).count())
            }
            None => drop(seen.insert(window, i)),
        }
    }
    longest
}

fn log(m: &Mount) -> Vec<u8> {
    m.segments().iter().flat_map(|p| fs::read(p).unwrap()).collect()
}

#[test]
fn r19_equal_files_have_different_ciphertext_and_different_wrapped_keys() {
    for rule in ["AES256", "KMS", "KMS::SM4", ""] {
        let Some(mut m) = Mount::real(rule) else { return };
        let content = crate::tree::Dice::new(1).bytes(40_000);
        for name in ["a", "b", "c"] {
            fs::write(m.at(name), &content).unwrap();
        }
        m.umount();
        let repeat = longest_repeat(&log(&m));
        if rule.is_empty() {
            assert!(repeat >= 4096, "plain files repeat, or this test could not fail: {repeat}");
            continue;
        }
        assert!(repeat < 512, "{rule}: {repeat} bytes occur twice in the log");
        let catalog = rusqlite::Connection::open_with_flags(
            m.folder().join("catalog.db"),
            rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY,
        )
        .unwrap();
        let mut rows = catalog.prepare("SELECT wrapped, seal_id FROM seal").unwrap();
        let rows: Vec<(Vec<u8>, Vec<u8>)> =
            rows.query_map([], |r| Ok((r.get(0)?, r.get(1)?))).unwrap().map(Result::unwrap).collect();
        assert_eq!(rows.len(), 3);
        assert_eq!(rows.iter().map(|r| &r.0).collect::<BTreeSet<_>>().len(), 3, "wrapped data keys");
        assert_eq!(rows.iter().map(|r| &r.1).collect::<BTreeSet<_>>().len(), 3, "seal ids");
    }
}

#[test]
fn r20_rotating_and_rewrapping_a_master_key_rewrites_no_data() {
    let Some(mut m) = Mount::real("AES256") else { return };
    let content = crate::tree::Dice::new(2).bytes(500_000);
    let version = |m: &Mount, name: &str| get_xattr_text(m.at(name), "user.sse.key-version").unwrap();
    fs::write(m.at("old"), &content).unwrap();
    File::open(m.at("old")).unwrap().sync_all().unwrap();
    assert_eq!(version(&m, "old"), "1");
    m.ssefs(&["key", "rotate", "bucket:b"]).ok();
    assert_eq!(version(&m, "old"), "1", "rotating alone wraps nothing anew");
    assert!(fs::read(m.at("old")).unwrap() == content);
    put(&m, "new");
    let sealed = log(&m).len();
    m.ssefs(&["key", "rewrap", "b"]).ok();
    assert_eq!((version(&m, "old"), version(&m, "new")), ("2".into(), "2".into()));
    assert!(log(&m).len() - sealed < 200_000, "the data was not written again");
    m.remount();
    assert!(fs::read(m.at("old")).unwrap() == content);
    assert_eq!((version(&m, "old"), fs::read(m.at("new")).unwrap()), ("2".into(), b"content of new".to_vec()));
    // A second rewrap has nothing to do and succeeds; so does one of an unmounted bucket.
    m.ssefs(&["key", "rewrap", "b"]).ok();
    m.umount();
    m.ssefs(&["key", "rotate", "bucket:b"]).ok();
    m.ssefs(&["key", "rewrap", "b"]).ok();
    m.mount();
    assert_eq!(version(&m, "old"), "3");
    assert!(fs::read(m.at("old")).unwrap() == content);
}

#[test]
fn r36_the_default_service_key_is_made_when_it_is_first_needed() {
    let Some(m) = Mount::real("") else { return };
    let keys = || m.ssefs(&["key", "list", "--json"]).json().to_string();
    let before = keys();
    crate::mount::set_xattr(m.path(), RULE, "KMS").unwrap();
    assert_eq!(put(&m, "f"), "KMS");
    let id = get_xattr_text(m.at("f"), "user.sse.kms-key-id").unwrap();
    assert!(!id.is_empty() && !before.contains(&id) && keys().contains(&id), "{id}\n{before}\n{}", keys());
}
