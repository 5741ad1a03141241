//! Room (SEMANTICS, Space): what is deleted or overwritten gives its room back, a bucket at rest is little larger than its
//! files, and nobody's bytes change when that is made so. The bucket is driven without a mount, its tidying by hand.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ssefs::bucket::{Bucket, CreateOptions, NewInode, OpenOptions, ROOT};
use ssefs::keys::{KeyState, Keyring, RootSource};
use ssefs::ops::Quiet;
use ssefs::ops::check::{CheckOptions, check};
use ssefs::rule::Dialect;
use ssefs::types::BucketName;

/// What a bucket has beside its files: an empty catalog, headers, the waste that is not worth a pass.
const FIXED: u64 = 1 << 20;
const BLOCK: usize = 4096;

struct Place {
    dir: tempfile::TempDir,
    keys: Arc<Keyring>,
}

impl Place {
    fn new(rule: &str) -> Place {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config");
        let (keys, _) = Keyring::open_or_create(&config, RootSource::in_config(&config)).unwrap();
        let place = Place { dir, keys: Arc::new(keys) };
        let id = place.keys.open_store(&place.store(), true).unwrap();
        let o = CreateOptions {
            dialect: Dialect::Native,
            rule: if rule.is_empty() { None } else { Some(rule.parse().unwrap()) },
            owner_uid: 0,
            chunk_bytes: 16384,
            require_encryption: false,
        };
        Bucket::create(&place.store(), id, &Self::name(), &place.keys, &o).unwrap();
        place
    }
    fn name() -> BucketName {
        "b".parse().unwrap()
    }
    fn store(&self) -> std::path::PathBuf {
        self.dir.path().join("store")
    }
    fn open(&self) -> Arc<Bucket> {
        let id = self.keys.open_store(&self.store(), false).unwrap();
        Bucket::open(&self.store(), id, &Self::name(), &self.keys, &OpenOptions::default()).unwrap()
    }
    /// Bytes of disk that the store takes, without the reserve of an open bucket.
    fn du(&self) -> u64 {
        du(&self.store())
    }
    fn segments(&self) -> u64 {
        du(&self.store().join("buckets/b/seg"))
    }
    fn clean(&self, bucket: &Arc<Bucket>, when: &str) {
        let report = check(bucket, CheckOptions { read_data: true }, &Quiet).unwrap();
        assert!(report.problems.is_empty(), "{when}: {:?}", report.problems);
    }
}

fn du(dir: &Path) -> u64 {
    let mut sum = 0;
    for e in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(meta) = e.path().symlink_metadata() else { continue };
        if meta.is_dir() {
            sum += du(&e.path());
        } else if e.file_name() != "reserve" {
            sum += meta.blocks() * 512;
        }
    }
    sum
}

fn make(bucket: &Bucket, name: &str) -> u64 {
    let new = NewInode { mode: libc::S_IFREG | 0o644, uid: 0, gid: 0, rdev: 0, target: None };
    bucket.make(ROOT, name.as_bytes(), &new).unwrap().ino
}

/// Numbers that follow from a seed.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

fn block(tag: u64) -> Vec<u8> {
    let mut rng = Rng(tag.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    (0..BLOCK / 8).flat_map(|_| rng.next().to_le_bytes()).collect()
}

/// A file of which every block has a number that its bytes follow from; 0: a hole.
struct Numbered {
    ino: u64,
    tags: Vec<u64>,
    next: u64,
}

impl Numbered {
    fn new(bucket: &Arc<Bucket>, name: &str, blocks: usize) -> Numbered {
        let mut f = Numbered { ino: make(bucket, name), tags: vec![0; blocks], next: 0 };
        for first in (0..blocks).step_by(256) {
            f.write(bucket, first, 256.min(blocks - first));
        }
        f
    }
    fn write(&mut self, bucket: &Arc<Bucket>, first: usize, n: usize) {
        let mut data = Vec::with_capacity(n * BLOCK);
        for i in first..first + n {
            self.next += 1;
            self.tags[i] = self.ino << 40 | self.next;
            data.extend(block(self.tags[i]));
        }
        bucket.write(self.ino, Some((first * BLOCK) as u64), &data).unwrap();
    }
    fn verify(&self, bucket: &Arc<Bucket>, when: &str) {
        for (first, tags) in self.tags.chunks(256).enumerate() {
            let at = (first * 256 * BLOCK) as u64;
            let got = bucket.read(self.ino, at, tags.len() * BLOCK).unwrap();
            for (i, tag) in tags.iter().enumerate() {
                let want = if *tag == 0 { vec![0; BLOCK] } else { block(*tag) };
                assert!(got[i * BLOCK..(i + 1) * BLOCK] == want, "{when}: block {} differs", first * 256 + i);
            }
        }
    }
}

#[test]
fn ten_random_overwrites_stay_under_twice_the_file_and_come_to_rest_at_little_more_than_it() {
    let place = Place::new("AES256");
    let bucket = place.open();
    let blocks = (160 << 20) / BLOCK;
    let mut f = Numbered::new(&bucket, "f", blocks);
    bucket.commit().unwrap();
    let size = (blocks * BLOCK) as u64;
    let (mut rng, mut most) = (Rng(7), 0);
    let writes = 10 * blocks;
    for i in 0..writes {
        f.write(&bucket, rng.below(blocks as u64) as usize, 1);
        if i % 4096 == 0 {
            bucket.commit().unwrap();
            bucket.tidy_busy().unwrap();
            // Segments are removed by a thread of its own, which gets its turn; meanwhile the bucket is used, not idle.
            let end = Instant::now() + Duration::from_secs(60);
            while place.du() >= 2 * size && Instant::now() < end {
                (0..10).for_each(|_| drop(bucket.read(f.ino, 0, BLOCK).unwrap()));
                std::thread::sleep(Duration::from_millis(5));
            }
            most = most.max(place.du());
            assert!(most < 2 * size, "after {i} of {writes} writes: {} MiB", most >> 20);
        }
    }
    eprintln!("most while writing: {:.3}", most as f64 / size as f64);
    bucket.tidy_now().unwrap();
    let at_rest = place.du();
    eprintln!(
        "at rest: {:.4} x, segments {:.4} x",
        at_rest as f64 / size as f64,
        place.segments() as f64 / size as f64
    );
    assert!(at_rest <= size + size / 50 + 1024 + FIXED, "{at_rest} bytes for {size}");
    f.verify(&bucket, "at rest");
    place.clean(&bucket, "at rest");
    bucket.close().unwrap();
    let bucket = place.open();
    f.verify(&bucket, "after a remount");
    bucket.close().unwrap();
    assert!(place.du() <= size + size / 50 + 1024 + FIXED);
}

#[test]
fn deleting_gives_the_room_back() {
    let place = Place::new("KMS");
    let bucket = place.open();
    let files: Vec<Numbered> = (0..40).map(|i| Numbered::new(&bucket, &format!("f{i}"), 512)).collect();
    bucket.tidy_now().unwrap();
    let full = place.segments();
    assert!(full > 80 << 20);
    for i in (0..40).filter(|i| i % 4 != 0) {
        bucket.unlink(ROOT, format!("f{i}").as_bytes()).unwrap();
    }
    bucket.tidy_now().unwrap();
    let left = 10 * 512 * BLOCK as u64;
    assert!(place.segments() <= left + left / 50 + FIXED, "{} of {full}", place.segments());
    files.iter().step_by(4).for_each(|f| f.verify(&bucket, "of those that stay"));
    place.clean(&bucket, "after deleting some");
    for i in (0..40).step_by(4) {
        bucket.unlink(ROOT, format!("f{i}").as_bytes()).unwrap();
    }
    bucket.tidy_now().unwrap();
    assert!(place.segments() < FIXED / 4, "{}", place.segments());
    bucket.close().unwrap();
}

#[test]
fn an_idle_bucket_tidies_itself_and_then_writes_nothing_more() {
    let place = Place::new("AES256");
    let bucket = place.open();
    let mut f = Numbered::new(&bucket, "f", 4096);
    for i in (0..4096).step_by(2) {
        f.write(&bucket, i, 1);
    }
    bucket.commit().unwrap();
    let size = 4096 * BLOCK as u64;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(120);
    let small = || place.segments() <= size + size / 50 + FIXED / 4;
    while !small() {
        assert!(std::time::Instant::now() < deadline, "{} bytes for {size}", place.segments());
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    // Quiet when nothing has changed for three seconds; it may take a while until then, not for ever.
    let state = || {
        let mut all: Vec<(u64, i64, i64)> = Vec::new();
        for dir in ["buckets/b", "buckets/b/seg"] {
            for e in std::fs::read_dir(place.store().join(dir)).unwrap().flatten() {
                let m = e.metadata().unwrap();
                all.push((m.len(), m.mtime(), m.mtime_nsec()));
            }
        }
        all.sort_unstable();
        all
    };
    loop {
        let before = state();
        std::thread::sleep(std::time::Duration::from_secs(3));
        if state() == before {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "it goes on writing");
    }
    f.verify(&bucket, "idle");
    place.clean(&bucket, "idle");
    bucket.close().unwrap();
}

/// Half of what is there stays live and lies scattered, so that only moving gives the room back.
fn scattered(bucket: &Arc<Bucket>, name: &str) -> Numbered {
    let mut f = Numbered::new(bucket, name, 2048);
    bucket.commit().unwrap();
    for i in (0..2048).step_by(8) {
        f.write(bucket, i, 4);
    }
    bucket.commit().unwrap();
    f
}

fn segment_ids(place: &Place) -> Vec<String> {
    let mut ids: Vec<String> = std::fs::read_dir(place.store().join("buckets/b/seg"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    ids.sort();
    ids
}

#[test]
fn chunks_shown_in_part_are_merged_and_neither_times_nor_size_nor_holes_change() {
    for rule in ["", "AES256", "KMS"] {
        let place = Place::new(rule);
        let bucket = place.open();
        let mut f = Numbered::new(&bucket, "f", 1024);
        bucket.commit().unwrap();
        // Of each chunk one block stays, and a hole.
        for first in (0..1024).step_by(4) {
            f.write(&bucket, first, 2);
            f.tags[first + 3] = 0;
            bucket.punch(f.ino, ((first + 3) * BLOCK) as u64, BLOCK as u64).unwrap();
        }
        bucket.commit().unwrap();
        let holes = |b: &Arc<Bucket>| {
            let (mut all, mut at) = (Vec::new(), 0);
            while let Some(hole) = b.seek(f.ino, at, false).unwrap().filter(|h| *h < 1024 * BLOCK as u64) {
                let data = b.seek(f.ino, hole, true).unwrap();
                all.push((hole, data));
                let Some(data) = data else { break };
                at = data;
            }
            all
        };
        let (before, holes_before) = (bucket.attr(f.ino).unwrap(), holes(&bucket));
        assert_eq!(holes_before.len(), 256);
        assert!(before.sealed > 1024 * BLOCK as u64, "what is not shown is there as well: {}", before.sealed);
        bucket.tidy_now().unwrap();
        let after = bucket.attr(f.ino).unwrap();
        assert_eq!(after.sealed, 256 * (3 * BLOCK as u64 + 28), "{rule:?}: one chunk a stretch");
        assert_eq!(ssefs::bucket::Attr { sealed: before.sealed, ..after }, before);
        assert_eq!(holes(&bucket), holes_before);
        f.verify(&bucket, "merged");
        place.clean(&bucket, "merged");
        bucket.close().unwrap();
        let bucket = place.open();
        assert_eq!(holes(&bucket), holes_before);
        f.verify(&bucket, "merged and remounted");
        bucket.close().unwrap();
    }
}

#[test]
fn plain_content_is_wiped_where_it_was_moved_from_or_merged() {
    let place = Place::new("");
    let bucket = place.open();
    let marker = b"ssefs-known-plaintext-0123456789";
    let f = make(&bucket, "f");
    let mut bytes = marker.repeat(40_000);
    bucket.write(f, None, &bytes).unwrap();
    let other = scattered(&bucket, "other");
    // The old copies, whose names go: with the map in memory, and with rows alone.
    let old_copies_are_wiped = |bucket: &Arc<Bucket>, when: &str| {
        bucket.commit().unwrap();
        let open = |id: &String| std::fs::File::open(place.store().join("buckets/b/seg").join(id)).unwrap();
        let ids = segment_ids(&place);
        let old: Vec<std::fs::File> = ids.iter().map(open).collect();
        bucket.compact_now().unwrap();
        assert!(segment_ids(&place).iter().all(|id| !ids.contains(id)), "{when}: {ids:?}");
        for mut f in old {
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut f, &mut bytes).unwrap();
            let hit = bytes.windows(marker.len()).position(|w| w[0] == marker[0] && w == marker);
            assert_eq!(hit, None, "{when}");
        }
    };
    old_copies_are_wiped(&bucket, "in memory");
    bucket.close().unwrap();
    let bucket = place.open();
    old_copies_are_wiped(&bucket, "not in memory");
    // A small write leaves most of a chunk shown in part, and that is merged.
    bucket.write(f, Some(4096), &[b'x'; 3 * 4096]).unwrap();
    bytes[4096..4 * 4096].fill(b'x');
    bucket.compact_now().unwrap();
    assert_eq!(bucket.read(f, 0, bytes.len()).unwrap(), bytes);
    // From here on it is sealed: no copy of the plain text may be left anywhere.
    bucket.set_request(f, Some("AES256".parse().unwrap())).unwrap();
    bucket.compact_now().unwrap();
    assert_eq!(bucket.read(f, 0, bytes.len()).unwrap(), bytes);
    let found = |when: &str| {
        let mut dirs = vec![place.store()];
        while let Some(dir) = dirs.pop() {
            for e in std::fs::read_dir(dir).unwrap().flatten() {
                if e.path().is_dir() {
                    dirs.push(e.path());
                    continue;
                }
                let bytes = std::fs::read(e.path()).unwrap_or_default();
                let hit = bytes.windows(marker.len()).position(|w| w[0] == marker[0] && w == marker);
                assert_eq!(hit, None, "{when}: {}", e.path().display());
            }
        }
    };
    found("converted");
    bucket.close().unwrap();
    found("closed");
    let bucket = place.open();
    other.verify(&bucket, "the other");
    place.clean(&bucket, "at the end");
    bucket.close().unwrap();
}

#[test]
fn frames_of_objects_whose_key_is_disabled_are_moved_all_the_same() {
    let place = Place::new("");
    let key = place.keys.create_key(Some("k"), "").unwrap();
    let bucket = place.open();
    let locked = make(&bucket, "locked");
    bucket.set_request(locked, Some("KMS:k".parse().unwrap())).unwrap();
    let content: Vec<u8> = (0..600).flat_map(block).collect();
    bucket.write(locked, None, &content).unwrap();
    let small = make(&bucket, "small");
    bucket.set_request(small, Some("KMS:k".parse().unwrap())).unwrap();
    bucket.write(small, None, &content[..5000]).unwrap();
    bucket.close().unwrap();
    place.keys.set_state(&key, KeyState::Disabled).unwrap();
    let bucket = place.open();
    let before = segment_ids(&place);
    assert!(bucket.read(locked, 0, 10).is_err() && bucket.read(small, 0, 10).is_err(), "its key is not to be had");
    bucket.compact_now().unwrap();
    assert!(segment_ids(&place).iter().all(|id| !before.contains(id)), "{before:?} {:?}", segment_ids(&place));
    assert!(bucket.read(locked, 0, 10).is_err());
    place.clean(&bucket, "locked");
    bucket.close().unwrap();
    place.keys.set_state(&key, KeyState::Enabled).unwrap();
    let bucket = place.open();
    // Moved once more, now as frames of an opening long gone, between others of this one.
    let before = segment_ids(&place);
    let f = scattered(&bucket, "f");
    bucket.compact_now().unwrap();
    assert!(segment_ids(&place).iter().all(|id| !before.contains(id)), "{before:?} {:?}", segment_ids(&place));
    f.verify(&bucket, "beside it");
    assert!(bucket.read(locked, 0, content.len() + 1).unwrap() == content);
    assert_eq!(bucket.read(small, 0, 9999).unwrap(), content[..5000]);
    place.clean(&bucket, "unlocked");
    bucket.close().unwrap();
}

#[test]
fn a_damaged_frame_is_still_damaged_after_it_was_moved_and_everything_else_is_readable() {
    let place = Place::new("AES256");
    let bucket = place.open();
    // Whole and live, so that any frame will do.
    let f = Numbered::new(&bucket, "f", 2048);
    bucket.close().unwrap();
    // A byte in the middle of a frame.
    let path = place.store().join("buckets/b/seg").join(&segment_ids(&place)[0]);
    let mut bytes = std::fs::read(&path).unwrap();
    let at = 4096 + 100 * (16384 + 28) + 9000;
    bytes[at] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let bucket = place.open();
    let bad = |b: &Arc<Bucket>| -> Vec<usize> {
        let read = |i: &usize| b.read(f.ino, (i * BLOCK) as u64, BLOCK);
        (0..2048).filter(|i| !read(i).is_ok_and(|got| got == block(f.tags[*i]))).collect()
    };
    let before = bad(&bucket);
    assert!(!before.is_empty() && before.len() <= 4, "{before:?}");
    bucket.compact_now().unwrap();
    assert_eq!(bad(&bucket), before, "moved as it was");
    let old = bucket.read(f.ino, (before[0] * BLOCK) as u64, 1).unwrap_err();
    assert!(matches!(old, ssefs::bucket::BucketError::Damaged { .. }), "{old}");
    bucket.close().unwrap();
    let bucket = place.open();
    assert_eq!(bad(&bucket), before);
    bucket.close().unwrap();
}

#[test]
fn a_segment_whose_records_do_not_verify_is_left_alone() {
    let place = Place::new("AES256");
    let bucket = place.open();
    let f = scattered(&bucket, "f");
    bucket.close().unwrap();
    let first = segment_ids(&place)[0].clone();
    let path = place.store().join("buckets/b/seg").join(&first);
    let mut bytes = std::fs::read(&path).unwrap();
    // Every footer: no flush can be told from the outside any more, and the maps still know every chunk.
    for end in
        (8192..=bytes.len()).step_by(4096).filter(|e| bytes[e - 64..].starts_with(b"SSEFSFLU")).collect::<Vec<_>>()
    {
        bytes[end - 1] ^= 1;
    }
    std::fs::write(&path, &bytes).unwrap();
    let bucket = place.open();
    bucket.compact_now().unwrap();
    bucket.compact_now().unwrap();
    assert!(segment_ids(&place).contains(&first), "what cannot be found in it is not lost");
    f.verify(&bucket, "left alone");
    bucket.close().unwrap();
}

#[test]
fn compacting_under_load_changes_no_byte_that_anybody_reads() {
    let place = Place::new("AES256");
    let bucket = place.open();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let files: Vec<Numbered> = (0..3).map(|i| Numbered::new(&bucket, &format!("f{i}"), 700)).collect();
    let (bucket, stop, place) = (&bucket, &stop, &place);
    let files: Vec<Numbered> = std::thread::scope(|s| {
        let compacting = s.spawn(move || {
            let mut rounds = 0;
            while !stop.load(std::sync::atomic::Ordering::SeqCst) || rounds < 3 {
                bucket.compact_now().unwrap();
                rounds += 1;
            }
            rounds
        });
        let workers: Vec<_> = files
            .into_iter()
            .map(|mut f| {
                s.spawn(move || {
                    let mut rng = Rng(f.ino + 77);
                    for round in 0..1500 {
                        let first = rng.below(690) as usize;
                        match rng.below(12) {
                            0 => {
                                f.tags[first..first + 3].fill(0);
                                bucket.punch(f.ino, (first * BLOCK) as u64, 3 * BLOCK as u64).unwrap();
                            }
                            1 => {
                                f.tags[first..].fill(0);
                                bucket.truncate(f.ino, (first * BLOCK) as u64).unwrap();
                                bucket.truncate(f.ino, 700 * BLOCK as u64).unwrap();
                            }
                            2 => bucket.commit().unwrap(),
                            3 => {
                                let (tx, rx) = std::sync::mpsc::channel();
                                bucket.sync(Box::new(move |r| tx.send(r).unwrap()));
                                rx.recv().unwrap().unwrap();
                            }
                            4 => {
                                let name = format!("t{}-{round}", f.ino);
                                let mut short = Numbered::new(bucket, &name, 5);
                                short.write(bucket, 2, 2);
                                short.verify(bucket, "a file that lives shortly");
                                bucket.unlink(ROOT, name.as_bytes()).unwrap();
                            }
                            5 => f.verify(bucket, "under load"),
                            _ => f.write(bucket, first, 1 + rng.below(9) as usize),
                        }
                    }
                    f
                })
            })
            .collect();
        let files = workers.into_iter().map(|w| w.join().unwrap()).collect();
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
        assert!(compacting.join().unwrap() >= 3);
        files
    });
    files.iter().for_each(|f| f.verify(bucket, "at the end"));
    place.clean(bucket, "at the end");
    bucket.close().unwrap();
    let bucket = place.open();
    files.iter().for_each(|f| f.verify(&bucket, "after a remount"));
    for i in 0..3 {
        bucket.unlink(ROOT, format!("f{i}").as_bytes()).unwrap();
    }
    bucket.close().unwrap();
    let bucket = place.open();
    assert_eq!(bucket.info().log_bytes, 0, "every byte was accounted for");
    bucket.close().unwrap();
}

#[test]
fn a_catalog_gives_its_pages_back() {
    let place = Place::new("");
    let bucket = place.open();
    let name = |i: u32| format!("a-name-of-some-length-{i}");
    for i in 0..40_000 {
        make(&bucket, &name(i));
    }
    bucket.tidy_now().unwrap();
    let catalog = || du(&place.store().join("buckets/b")) - place.segments();
    let full = catalog();
    for i in 0..40_000 {
        bucket.unlink(ROOT, name(i).as_bytes()).unwrap();
    }
    bucket.tidy_now().unwrap();
    assert!(full > 3 << 20 && catalog() < FIXED, "{} of {full}", catalog());
    place.clean(&bucket, "afterwards");
    bucket.close().unwrap();
}

#[test]
fn small_files_take_at_most_a_kib_more_each_also_when_every_other_one_was_deleted() {
    let place = Place::new("AES256");
    let bucket = place.open();
    let content: Vec<u8> = (0..1).flat_map(block).collect();
    let mut inos = Vec::new();
    for i in 0..20_000usize {
        let ino = make(&bucket, &format!("small-{i}"));
        bucket.write(ino, None, &content[..2000 + i % 2000]).unwrap();
        inos.push(ino);
    }
    let size = |kept: &dyn Fn(usize) -> bool| {
        let kept: Vec<u64> = (0..20_000).filter(|i| kept(*i)).map(|i| 2000 + i as u64 % 2000).collect();
        let bytes: u64 = kept.iter().sum();
        bytes + bytes / 50 + 1024 * kept.len() as u64 + FIXED
    };
    bucket.tidy_now().unwrap();
    assert!(place.du() <= size(&|_| true), "{} of {}", place.du(), size(&|_| true));
    for i in (0..20_000).filter(|i| i % 2 == 0) {
        bucket.unlink(ROOT, format!("small-{i}").as_bytes()).unwrap();
    }
    bucket.tidy_now().unwrap();
    eprintln!("half: {} of {}, segments {}", place.du(), size(&|i| i % 2 == 1), place.segments());
    assert!(place.du() <= size(&|i| i % 2 == 1), "{} of {}", place.du(), size(&|i| i % 2 == 1));
    for i in (1..20_000).step_by(2) {
        assert_eq!(bucket.read(inos[i], 0, 5000).unwrap(), content[..2000 + i % 2000]);
    }
    place.clean(&bucket, "half of them");
    bucket.close().unwrap();
}
