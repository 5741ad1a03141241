//! Row 12: what is sealed is sealed before it reaches the disk. A known text is searched for in the raw bytes of
//! every file of store and keyring, at every moment: dirty, synced, killed, recovered, unmounted.

use crate::mount::Mount;
use crate::sys::{self, Map};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const MARKER: &[u8] = b"ssefs-known-plaintext-0123456789";

fn files(dir: &Path, out: &mut Vec<PathBuf>) {
    for e in fs::read_dir(dir).into_iter().flatten() {
        let p = e.unwrap().path();
        if p.is_dir() { files(&p, out) } else { out.push(p) }
    }
}

/// The files of store and keyring in which `marker` stands, with the offset of its first place.
pub fn found_in_store(m: &Mount, marker: &[u8]) -> Vec<String> {
    let mut all = vec![];
    files(m.store(), &mut all);
    files(&m.config(), &mut all);
    assert!(all.len() >= 4, "the store has catalog, lock and segments: {all:?}");
    let mut found = vec![];
    for p in all {
        // A file may be gone by now: temporary, or a segment that was freed.
        let Ok(bytes) = fs::read(&p) else { continue };
        let hit = bytes.windows(marker.len()).position(|w| w[0] == marker[0] && w == marker);
        found.extend(hit.map(|at| format!("{} at {at}", p.strip_prefix(m.beside("")).unwrap_or(&p).display())));
    }
    found
}

/// A marker in every file, by every way in which content comes into one.
fn write_markers(m: &Mount, round: usize) {
    let at = |n: &str| m.at(format!("{n}{round}"));
    fs::write(at("small"), MARKER).unwrap();
    fs::write(at("large"), MARKER.repeat(100_000)).unwrap();
    let mut f = File::options().create(true).append(true).open(at("appended")).unwrap();
    (0..50).for_each(|_| f.write_all(MARKER).unwrap());
    let f = File::options().create_new(true).read(true).write(true).open(at("mapped")).unwrap();
    f.set_len(20_000).unwrap();
    let mut map = Map::new(&f, 20_000, libc::MAP_SHARED).unwrap();
    map.put(9_000, MARKER);
    map.sync().unwrap();
    let f = File::create(at("sparse")).unwrap();
    f.write_all_at(MARKER, 10 << 20).unwrap();
    let f = File::create(at("overwritten")).unwrap();
    (0..10).for_each(|i| f.write_all_at(MARKER, i * 1000).unwrap());
    f.sync_all().unwrap();
    f.write_all_at(&[b'x'; 12_000], 0).unwrap();
    fs::copy(at("large"), at("copied")).unwrap();
    let (from, to) = (File::open(at("large")).unwrap(), File::create(at("ranged")).unwrap());
    sys::copy_range(&from, 0, &to, 0, 60_000).unwrap();
    fs::write(at("deleted"), MARKER.repeat(1000)).unwrap();
    fs::remove_file(at("deleted")).unwrap();
    fs::write(at("cut"), MARKER.repeat(1000)).unwrap();
    sys::truncate(at("cut"), 17_000).unwrap();
    let mut direct = sys::Aligned::new(8192);
    direct[..MARKER.len()].copy_from_slice(MARKER);
    let f = sys::open(at("direct"), libc::O_WRONLY | libc::O_CREAT | libc::O_DIRECT, 0o644).unwrap();
    f.write_all_at(&direct, 0).unwrap();
}

fn sync(m: &Mount) {
    File::open(m.path()).unwrap().sync_all().unwrap();
}

#[test]
fn r12_with_a_rule_a_known_text_is_found_nowhere_in_the_store() {
    for rule in ["AES256", "KMS", "KMS::SM4"] {
        let Some(mut m) = Mount::real(rule) else { return };
        let nowhere =
            |m: &Mount, when: &str| assert_eq!(found_in_store(m, MARKER), Vec::<String>::new(), "{rule}, {when}");
        write_markers(&m, 0);
        nowhere(&m, "not yet synced");
        sync(&m);
        nowhere(&m, "synced");
        write_markers(&m, 1);
        m.kill9();
        nowhere(&m, "killed");
        m.mount();
        nowhere(&m, "recovered");
        assert!(fs::read(m.at("large0")).unwrap() == MARKER.repeat(100_000), "and it is all there");
        assert_eq!(fs::read(m.at("mapped0")).unwrap()[9_000..9_000 + MARKER.len()], *MARKER);
        m.umount();
        nowhere(&m, "unmounted");
        m.mount();
    }
}

#[test]
fn r12_without_a_rule_the_known_text_is_found() {
    let Some(m) = Mount::real("") else { return };
    for (name, content) in [("small", MARKER.to_vec()), ("large", MARKER.repeat(10_000))] {
        fs::write(m.at(name), &content).unwrap();
        sync(&m);
        assert!(!found_in_store(&m, MARKER).is_empty(), "{name}");
        fs::remove_file(m.at(name)).unwrap();
    }
}

#[test]
fn r12_a_sealed_directory_in_a_plain_bucket_leaks_nothing() {
    let Some(m) = Mount::real("") else { return };
    fs::create_dir(m.at("sealed")).unwrap();
    crate::mount::set_xattr(m.at("sealed"), crate::RULE, "AES256").unwrap();
    for i in 0..20 {
        fs::write(m.at(format!("plain{i}")), b"another text, plain".repeat(100)).unwrap();
        fs::write(m.at(format!("sealed/{i}")), MARKER.repeat(200)).unwrap();
    }
    sync(&m);
    assert_eq!(found_in_store(&m, MARKER), Vec::<String>::new());
    assert!(!found_in_store(&m, b"another text, plain").is_empty());
}
