//! Much at once: files that live without a name while commits go on, and numbers that stay.

use crate::mount::{Mount, eventually, plain, sh};
use crate::sys;
use crate::tree::Dice;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

const WRITERS: u64 = 4;
const ROUNDS: usize = 12;
const FILES: usize = 24;
const BYTES: usize = 100_000;

/// A writer's life: many files open at once, all removed while open, then written, cut and read as if nothing had been.
fn write_unlinked(m: &Mount, writer: u64) {
    let mut dice = Dice::new(writer);
    for round in 0..ROUNDS {
        let content = dice.bytes(BYTES);
        let files: Vec<File> = (0..FILES)
            .map(|i| {
                let p = m.at(format!("w{writer}-{i}"));
                let way = if i % 2 == 0 && !plain() { libc::O_DIRECT } else { 0 };
                let f = sys::open(&p, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | way, 0o600).unwrap();
                f.write_all_at(&content[..BYTES / 2], 0).unwrap();
                // Some go by their name, some because another file takes it.
                if i % 3 == 0 {
                    fs::write(m.at(format!("over{writer}")), "x").unwrap();
                    fs::rename(m.at(format!("over{writer}")), &p).unwrap();
                }
                fs::remove_file(&p).unwrap();
                f
            })
            .collect();
        for (i, f) in files.iter().enumerate() {
            f.write_all_at(&content[BYTES / 2..], (BYTES / 2) as u64).unwrap();
            if i % 5 == 0 {
                f.set_len(BYTES as u64 / 4).unwrap();
                f.write_all_at(&content[BYTES / 4..], (BYTES / 4) as u64).unwrap();
            }
        }
        for (i, f) in files.iter().enumerate() {
            let mut back = vec![0; BYTES];
            f.read_exact_at(&mut back, 0).unwrap();
            assert!(back == content, "writer {writer}, round {round}, file {i}");
            let s = f.metadata().unwrap();
            assert_eq!((s.nlink(), s.len()), (0, BYTES as u64));
        }
    }
}

fn space_taken(dir: &Path) -> u64 {
    sh(dir, "du -s --block-size=1 .").split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn unlinked_open_files_keep_their_content_under_load_and_give_it_back_when_closed() {
    let mut m = Mount::new("AES256");
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|w| {
                s.spawn({
                    let m = &m;
                    move || write_unlinked(m, w)
                })
            })
            .collect();
        // Commits in the middle of all that.
        s.spawn(|| {
            let beat = File::create(m.at("beat")).unwrap();
            while !done.load(Ordering::Acquire) {
                beat.write_all_at(b"beat", 0).unwrap();
                beat.sync_all().unwrap();
            }
        });
        let ended: Vec<_> = writers.into_iter().map(|w| w.join()).collect();
        done.store(true, Ordering::Release);
        ended.into_iter().for_each(|e| e.unwrap());
    });
    assert_eq!(fs::read_dir(m.path()).unwrap().count(), 1, "only the beat has a name");
    if plain() {
        return;
    }
    // All in all 115 MB were written, and nothing of it is left.
    let small = 16 << 20;
    let folder = m.folder().join("seg");
    assert!(eventually(|| space_taken(&folder) < small), "{} bytes", space_taken(&folder));
    m.remount();
    assert!(eventually(|| space_taken(&folder) < small), "{} bytes after a remount", space_taken(&folder));
}

#[test]
fn inode_numbers_stay_through_rename_remount_and_crash_and_are_not_given_again() {
    let mut m = Mount::new("AES256");
    fs::create_dir_all(m.at("d/e")).unwrap();
    fs::write(m.at("d/f"), "x").unwrap();
    fs::hard_link(m.at("d/f"), m.at("h")).unwrap();
    symlink("d", m.at("l")).unwrap();
    sys::mknod(m.at("p"), libc::S_IFIFO | 0o600, 0).unwrap();
    fs::rename(m.at("d"), m.at("D")).unwrap();
    let numbers = |m: &Mount| -> BTreeMap<&str, u64> {
        let names = ["", "D", "D/e", "D/f", "h", "l", "p"];
        names.into_iter().map(|n| (n, fs::symlink_metadata(m.at(n)).unwrap().ino())).collect()
    };
    let before = numbers(&m);
    assert_eq!(before["D/f"], before["h"]);
    assert_eq!(before.values().collect::<BTreeSet<_>>().len(), before.len() - 1);
    m.remount();
    assert_eq!(numbers(&m), before);
    fs::write(m.at("gone"), "").unwrap();
    let gone = fs::metadata(m.at("gone")).unwrap().ino();
    fs::remove_file(m.at("gone")).unwrap();
    File::open(m.path()).unwrap().sync_all().unwrap();
    m.kill9();
    m.mount();
    assert_eq!(numbers(&m), before);
    // A local disk gives numbers again, with another generation; here whoever kept a number finds nothing else under it.
    if !plain() {
        let fresh = (0..100).map(|i| {
            fs::write(m.at(format!("n{i}")), "").unwrap();
            fs::metadata(m.at(format!("n{i}"))).unwrap().ino()
        });
        assert!(fresh.into_iter().all(|n| n != gone && !before.values().any(|b| *b == n)));
    }
}
