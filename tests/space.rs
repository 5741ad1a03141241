//! Room (SEMANTICS, Space): what is deleted or overwritten gives its room back, a bucket at rest is little larger than its
//! files, and nobody's bytes change when that is made so. The bucket is driven without a mount, its tidying by hand.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use ssefs::bucket::{Bucket, CreateOptions, NewInode, OpenOptions, ROOT};
use ssefs::keys::{Keyring, RootSource};
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
            most = most.max(place.du());
            assert!(place.du() < 2 * size, "after {i} of {writes} writes: {} MiB", place.du() >> 20);
        }
    }
    eprintln!("most while writing: {:.3}", most as f64 / size as f64);
    bucket.tidy_now().unwrap();
    let at_rest = place.du();
    eprintln!("at rest: {:.4} x, segments {:.4} x", at_rest as f64 / size as f64, place.segments() as f64 / size as f64);
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
