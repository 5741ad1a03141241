//! Catalog and segments missing, cut or altered: never wrong content, never a panic, and what is whole stays readable.

use crate::exit;
use crate::mount::{Mount, errno};
use crate::tree::Dice;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

#[test]
fn a_catalog_that_is_missing_cut_or_garbage_is_named_and_never_made_anew() {
    let Some(mut m) = Mount::real("AES256") else { return };
    fs::write(m.at("f"), "content").unwrap();
    m.umount();
    let catalog = m.folder().join("catalog.db");
    let good = fs::read(&catalog).unwrap();
    let refused = |m: &Mount, what: &str| {
        for r in
            [m.try_mount(), m.ssefs(&["mount", "b", m.path().to_str().unwrap(), "--create"]), m.ssefs(&["check", "b"])]
        {
            r.fails_saying(&["catalog"]);
            assert!(r.code != exit::USAGE && r.code.is_some(), "{what}: {r:?}");
        }
    };
    fs::remove_file(&catalog).unwrap();
    refused(&m, "missing");
    let _ = fs::remove_file(&catalog);
    let mut flipped = good.clone();
    flipped[0] ^= 1;
    for (what, bad) in [
        ("empty", vec![]),
        ("half", good[..good.len() / 2].to_vec()),
        ("garbage", Dice::new(1).bytes(good.len())),
        ("a flipped header", flipped),
        ("100 bytes", good[..100].to_vec()),
    ] {
        fs::write(&catalog, &bad).unwrap();
        refused(&m, what);
    }
    fs::write(&catalog, good).unwrap();
    m.mount();
    assert_eq!(fs::read(m.at("f")).unwrap(), b"content");
}

/// Each opening begins a segment: `first` lies in one, `second` in another. Unmounted.
fn two_segments() -> Option<(Mount, Vec<u8>)> {
    let mut m = Mount::real("AES256")?;
    let content = Dice::new(2).bytes(400_000);
    fs::write(m.at("first"), &content).unwrap();
    m.remount();
    fs::write(m.at("second"), &content).unwrap();
    m.umount();
    m.no_check_at_end();
    Some((m, content))
}

/// The segment in which the object's chunks lie: the largest of those the first opening wrote.
fn first_segment(m: &Mount) -> std::path::PathBuf {
    m.segments().into_iter().find(|p| fs::metadata(p).unwrap().len() > 300_000).expect("a segment with the first file")
}

#[test]
fn a_segment_that_is_missing_cut_or_garbage_costs_only_what_was_in_it() {
    type Harm = fn(&std::path::Path, &[u8]);
    let harms: [(&str, Harm); 4] = [
        ("missing", |p, _| fs::remove_file(p).unwrap()),
        ("cut", |p, good| fs::write(p, &good[..good.len() / 2]).unwrap()),
        ("empty", |p, _| fs::write(p, b"").unwrap()),
        ("garbage", |p, good| fs::write(p, Dice::new(5).bytes(good.len())).unwrap()),
    ];
    let Some((mut m, content)) = two_segments() else { return };
    let path = first_segment(&m);
    let good = fs::read(&path).unwrap();
    let name = path.file_stem().unwrap().to_str().unwrap().to_string();
    for (what, harm) in harms {
        harm(&path, &good);
        let check = m.ssefs(&["check", "b", "--read-data"]);
        assert_eq!(check.code, exit::DAMAGE, "{what}: {check:?}");
        assert!(
            (check.stdout.clone() + &check.stderr).contains(&name),
            "{what}: check must name segment {name}: {check:?}"
        );
        let mounted = m.try_mount();
        if mounted.code == Some(0) {
            assert!(fs::read(m.at("second")).unwrap() == content, "{what}: the other segment is whole");
            match fs::read(m.at("first")) {
                Ok(got) => panic!("{what}: content from nowhere, right: {}", got == content),
                Err(e) => assert!(matches!(e.raw_os_error(), Some(libc::EBADMSG | libc::EIO)), "{what}: {e}"),
            }
            assert_eq!(fs::metadata(m.at("first")).unwrap().len(), 400_000);
            m.umount();
        } else {
            mounted.fails_saying(&[&name]);
            assert_eq!(mounted.code, exit::DAMAGE, "{what}");
        }
        fs::write(&path, &good).unwrap();
    }
    m.ssefs(&["check", "b", "--read-data"]).ok();
    m.mount();
    assert!(fs::read(m.at("first")).unwrap() == content);
}

#[test]
fn r64_a_flipped_byte_costs_one_chunk_and_is_named_by_log_and_check() {
    if crate::mount::skip_without_ssefs() {
        return;
    }
    let mut m = Mount::builder().rule("AES256").foreground().mount();
    let content = Dice::new(3).bytes(600_000);
    fs::write(m.at("harmed"), &content).unwrap();
    fs::write(m.at("other"), &content).unwrap();
    m.umount();
    m.no_check_at_end();
    let segment = first_segment(&m);
    let f = File::options().read(true).write(true).open(&segment).unwrap();
    // 300 kB into the data of one of the two files.
    let mut byte = [0];
    f.read_exact_at(&mut byte, 304_321).unwrap();
    f.write_all_at(&[byte[0] ^ 0x10], 304_321).unwrap();
    drop(f);
    m.mount();
    let mut bad = vec![];
    for name in ["harmed", "other"] {
        let f = File::open(m.at(name)).unwrap();
        for at in (0..600_000u64).step_by(4096) {
            let mut block = vec![0; 4096.min(600_000 - at as usize)];
            match f.read_exact_at(&mut block, at) {
                Ok(()) => {
                    assert!(block == content[at as usize..at as usize + block.len()], "{name} at {at}: wrong content")
                }
                Err(e) => {
                    assert_eq!(e.raw_os_error(), Some(libc::EBADMSG), "{name} at {at}");
                    bad.push((name, at));
                }
            }
        }
    }
    assert!(!bad.is_empty() && bad.len() <= 4, "one chunk of at most 16 KiB: {bad:?}");
    assert!(
        bad.iter().all(|b| b.0 == bad[0].0) && bad[bad.len() - 1].1 - bad[0].1 == 4096 * (bad.len() as u64 - 1),
        "{bad:?}"
    );
    let (name, offset) = bad[0];
    assert_eq!(errno(fs::read(m.at(name))), libc::EBADMSG);
    let log = m.log();
    let number = std::os::unix::fs::MetadataExt::ino(&fs::metadata(m.at(name)).unwrap()).to_string();
    assert!(
        log.lines().any(|l| (l.contains(name) || l.contains(&number)) && l.contains(&offset.to_string())),
        "the log must name {name} (object {number}) and offset {offset}: {log}"
    );
    let said = |r: crate::mount::Ran| {
        assert_eq!(r.code, exit::DAMAGE, "{r:?}");
        let text = r.stdout + &r.stderr;
        assert!(
            (text.contains(name) || text.contains(&number)) && text.contains(&offset.to_string()),
            "check must name {name} (object {number}) and offset {offset}: {text}"
        );
    };
    said(m.ssefs(&["check", "b", "--read-data"]));
    // Without reading the data nothing is found, and after the object is replaced all is well.
    assert_eq!(m.ssefs(&["check", "b"]).code, Some(0));
    fs::write(m.at(name), &content).unwrap();
    m.remount();
    m.ssefs(&["check", "b", "--read-data"]).ok();
    assert!(fs::read(m.at("harmed")).unwrap() == content && fs::read(m.at("other")).unwrap() == content);
}

#[test]
fn r64_an_older_catalog_put_back_is_noticed() {
    let Some(mut m) = Mount::real("AES256") else { return };
    fs::write(m.at("f"), "first").unwrap();
    m.umount();
    let old = fs::read(m.folder().join("catalog.db")).unwrap();
    m.mount();
    fs::write(m.at("f"), "second").unwrap();
    File::open(m.at("f")).unwrap().sync_all().unwrap();
    fs::write(m.at("g"), "third").unwrap();
    m.umount();
    m.no_check_at_end();
    for suffix in ["-wal", "-shm"] {
        let _ = fs::remove_file(m.folder().join(format!("catalog.db{suffix}")));
    }
    fs::write(m.folder().join("catalog.db"), old).unwrap();
    let r = m.try_mount();
    r.fails_saying(&["b"]);
    assert_eq!(r.code, exit::DAMAGE);
}
