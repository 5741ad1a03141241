//! Syncs that no commit followed: what they acknowledged is there after a crash, whatever kind of change it was, and a log
//! that was damaged or cut is noticed as far as it can be. A crash is a copy of the store made between two syncs.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ssefs::bucket::{Bucket, BucketError, CreateOptions, NewInode, OpenOptions, RENAME_EXCHANGE, ROOT};
use ssefs::keys::{Keyring, RootSource};
use ssefs::rule::Dialect;

struct Place {
    dir: tempfile::TempDir,
    keys: Arc<Keyring>,
}

impl Place {
    fn new(rule: Option<&str>) -> Place {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config");
        let (keys, _) = Keyring::open_or_create(&config, RootSource::in_config(&config)).unwrap();
        let place = Place { dir, keys: Arc::new(keys) };
        let id = place.keys.open_store(&place.store(), true).unwrap();
        let rule = rule.map(|r| r.parse().unwrap());
        let o = CreateOptions {
            dialect: Dialect::Native,
            rule,
            owner_uid: 0,
            chunk_bytes: 16384,
            require_encryption: false,
        };
        Bucket::create(&place.store(), id, &"b".parse().unwrap(), &place.keys, &o).unwrap();
        place
    }

    fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// Opened so that no commit happens unless somebody asks.
    fn try_open(&self) -> Result<Arc<Bucket>, BucketError> {
        let id = self.keys.open_store(&self.store(), false).unwrap();
        let o = OpenOptions { commit_interval: Duration::from_secs(3600), ..OpenOptions::default() };
        Bucket::open(&self.store(), id, &"b".parse().unwrap(), &self.keys, &o)
    }

    fn open(&self) -> Arc<Bucket> {
        self.try_open().unwrap()
    }

    /// The store as a crash at this moment would leave it, for [`Place::crash`].
    fn copy(&self, name: &str) -> PathBuf {
        let to = self.dir.path().join(name);
        copy_tree(&self.store(), &to);
        to
    }

    /// The store becomes this copy of it; no bucket may be open.
    fn crash(&self, copy: &Path) {
        fs::remove_dir_all(self.store()).unwrap();
        copy_tree(copy, &self.store());
    }

    /// The newest segment of the store.
    fn segment(&self) -> PathBuf {
        let mut found: Vec<PathBuf> =
            fs::read_dir(self.store().join("buckets/b/seg")).unwrap().map(|e| e.unwrap().path()).collect();
        found.sort();
        found.pop().unwrap()
    }
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for e in fs::read_dir(from).unwrap() {
        let e = e.unwrap();
        let target = to.join(e.file_name());
        if e.file_type().unwrap().is_dir() {
            copy_tree(&e.path(), &target);
        } else {
            fs::copy(e.path(), target).unwrap();
        }
    }
}

fn sync(bucket: &Arc<Bucket>) {
    let (tx, rx) = std::sync::mpsc::channel();
    bucket.sync(Box::new(move |r| tx.send(r).unwrap()));
    rx.recv().unwrap().unwrap();
}

fn new(kind: u32) -> NewInode<'static> {
    NewInode { mode: kind | 0o755, uid: 0, gid: 0, rdev: 0, target: None }
}

fn make(bucket: &Arc<Bucket>, name: &str) -> u64 {
    bucket.make(ROOT, name.as_bytes(), &new(libc::S_IFREG)).unwrap().ino
}

/// The first PUT makes a key that encrypts keys, which only a commit can carry, and the sync behind it is one as well.
fn warm_up(bucket: &Arc<Bucket>) {
    let f = make(bucket, "warm");
    for _ in 0..2 {
        bucket.write(f, Some(0), b"warm").unwrap();
        sync(bucket);
    }
    bucket.unlink(ROOT, b"warm").unwrap();
    sync(bucket);
}

fn names(bucket: &Bucket) -> Vec<String> {
    bucket.entries(ROOT, b"", 100).unwrap().into_iter().map(|d| String::from_utf8(d.name).unwrap()).collect()
}

fn content(bucket: &Arc<Bucket>, name: &str) -> Vec<u8> {
    let attr = bucket.lookup(ROOT, name.as_bytes()).unwrap();
    bucket.read(attr.ino, 0, attr.size as usize + 1).unwrap()
}

#[test]
fn r62_every_kind_of_change_that_was_synced_is_there_after_a_crash() {
    for rule in [Some("AES256"), Some("KMS"), None] {
        let place = Place::new(rule);
        let bucket = place.open();
        let (a, b) = (make(&bucket, "a"), make(&bucket, "b"));
        make(&bucket, "gone");
        warm_up(&bucket);
        bucket.write(a, Some(0), &[1; 100_000]).unwrap();
        sync(&bucket);
        bucket.write(a, Some(50_000), &[2; 10]).unwrap();
        bucket.write(b, Some(3 << 20), b"far").unwrap();
        sync(&bucket);
        bucket.truncate(a, 90_000).unwrap();
        bucket.punch(a, 8192, 8192).unwrap();
        sync(&bucket);
        bucket.set_xattr(a, b"user.x", b"value", 0).unwrap();
        bucket.set_xattr(a, b"user.y", b"value", 0).unwrap();
        sync(&bucket);
        bucket.remove_xattr(a, b"user.y").unwrap();
        bucket.link(a, ROOT, b"hard").unwrap();
        bucket.unlink(ROOT, b"gone").unwrap();
        sync(&bucket);
        bucket.rename(ROOT, b"a", ROOT, b"b", RENAME_EXCHANGE).unwrap();
        let dir = bucket.make(ROOT, b"dir", &new(libc::S_IFDIR)).unwrap();
        bucket.make(dir.ino, b"in it", &new(libc::S_IFREG)).unwrap();
        sync(&bucket);
        // Not synced: may be missing, and is.
        make(&bucket, "late");
        let crashed = place.copy("crashed");
        bucket.close().unwrap();

        let mut want = vec![1; 90_000];
        want[50_000..50_010].fill(2);
        want[8192..16384].fill(0);
        place.crash(&crashed);
        let bucket = place.open();
        let look = |bucket: &Arc<Bucket>| {
            assert_eq!(names(bucket), ["a", "b", "dir", "hard"]);
            assert!(content(bucket, "b") == want && content(bucket, "hard") == want);
            assert_eq!(content(bucket, "a").len(), (3 << 20) + 3);
            assert!(content(bucket, "a").ends_with(b"\0far"));
            assert_eq!(bucket.xattr_names(a).unwrap(), [b"user.x".to_vec()]);
            assert_eq!(bucket.attr(a).unwrap().nlink, 2);
            assert_eq!(bucket.entries(dir.ino, b"", 9).unwrap().len(), 1);
        };
        look(&bucket);
        // What was made again is in the catalog now: a second crash, right away, loses nothing either.
        let again = place.copy("again");
        make(&bucket, "new");
        sync(&bucket);
        let third = place.copy("third");
        bucket.close().unwrap();
        place.crash(&again);
        let bucket = place.open();
        look(&bucket);
        bucket.close().unwrap();
        place.crash(&third);
        let bucket = place.open();
        assert_eq!(names(&bucket), ["a", "b", "dir", "hard", "new"]);
        // All of it can be deleted, and its space comes back.
        for name in ["a", "b", "hard", "new"] {
            bucket.unlink(ROOT, name.as_bytes()).unwrap();
        }
        bucket.close().unwrap();
        let bucket = place.open();
        bucket.close().unwrap();
        assert_eq!(place.open().info().log_bytes, 0, "space that nobody owns");
    }
}

/// Where the records of a flush with one chunk of 4096 bytes are.
const RECORDS: u64 = 4096 + 28;

/// A store that crashed behind three syncs, and where the flush of each ended in the newest segment; the first end is where
/// they begin.
fn three_syncs() -> (Place, Vec<u64>) {
    let place = Place::new(Some("AES256"));
    let bucket = place.open();
    warm_up(&bucket);
    let f = make(&bucket, "f");
    let mut ends = Vec::new();
    for n in 0..=3u8 {
        bucket.write(f, Some(0), &[n; 4096]).unwrap();
        sync(&bucket);
        ends.push(fs::metadata(place.segment()).unwrap().len());
    }
    let crashed = place.copy("crashed");
    bucket.close().unwrap();
    place.crash(&crashed);
    (place, ends)
}

fn flip(path: &Path, at: u64) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at as usize] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn r64_a_sync_that_was_acknowledged_and_is_damaged_is_refused() {
    let (place, ends) = three_syncs();
    flip(&place.segment(), ends[1] + RECORDS + 9);
    let e = place.try_open().err().expect("refused");
    assert!(matches!(e, BucketError::Altered { .. }), "{e}");
    assert!(e.to_string().contains("log"), "{e}");
    // Nothing was touched: put right, it opens with everything.
    flip(&place.segment(), ends[1] + RECORDS + 9);
    assert!(content(&place.open(), "f") == [3; 4096]);
}

#[test]
fn r64_a_damaged_chunk_of_an_earlier_sync_costs_only_itself() {
    let place = Place::new(Some("AES256"));
    let bucket = place.open();
    let (f, g) = (make(&bucket, "f"), make(&bucket, "g"));
    warm_up(&bucket);
    let start = fs::metadata(place.segment()).unwrap().len();
    bucket.write(f, Some(0), &[1; 4096]).unwrap();
    sync(&bucket);
    bucket.write(g, Some(0), &[2; 4096]).unwrap();
    sync(&bucket);
    let crashed = place.copy("crashed");
    bucket.close().unwrap();
    place.crash(&crashed);
    flip(&place.segment(), start + 100);
    let bucket = place.open();
    assert!(matches!(bucket.read(f, 0, 4096), Err(BucketError::Damaged { .. })));
    assert!(bucket.read(g, 0, 4096).unwrap() == [2; 4096]);
}

#[test]
fn r62_a_sync_torn_by_a_power_cut_is_left_out_whole() {
    // Nobody was told of the third. Its frames, its records or all of it are not there.
    for damage in 0..3 {
        let (place, ends) = three_syncs();
        match damage {
            0 => flip(&place.segment(), ends[2] + 100),
            1 => flip(&place.segment(), ends[2] + RECORDS + 9),
            _ => fs::File::options().write(true).open(place.segment()).unwrap().set_len(ends[2]).unwrap(),
        }
        assert!(content(&place.open(), "f") == [2; 4096], "damage {damage}");
    }
}

#[test]
fn r64_a_catalog_older_than_the_syncs_behind_it_is_refused() {
    let place = Place::new(Some("AES256"));
    place.open().close().unwrap();
    let old = place.copy("old");
    let bucket = place.open();
    warm_up(&bucket);
    let f = make(&bucket, "f");
    bucket.write(f, Some(0), &[1; 4096]).unwrap();
    sync(&bucket);
    let crashed = place.copy("crashed");
    bucket.close().unwrap();
    // The catalog of before the opening, beside the log of after the sync.
    place.crash(&crashed);
    for file in ["catalog.db", "catalog.db-wal", "catalog.db-shm"] {
        let to = place.store().join("buckets/b").join(file);
        let _ = fs::remove_file(&to);
        let _ = fs::copy(old.join("buckets/b").join(file), to);
    }
    let e = place.try_open().err().expect("refused");
    assert!(matches!(e, BucketError::Altered { .. }), "{e}");
}

/// Many syncs, with a commit whenever one is due, over several segments: what the last one acknowledged is there.
#[test]
fn r62_syncs_beside_a_stream_over_several_segments() {
    let place = Place::new(Some("AES256"));
    let bucket = place.open();
    let (f, stream) = (make(&bucket, "f"), make(&bucket, "stream"));
    let big = vec![7u8; 1 << 20];
    std::thread::scope(|s| {
        s.spawn(|| (0..150u64).for_each(|i| bucket.write(stream, Some(i << 20), &big).unwrap()));
        for n in 0..200u64 {
            bucket.write(f, Some(n * 8), &n.to_le_bytes()).unwrap();
            sync(&bucket);
        }
    });
    bucket.write(f, Some(0), &u64::MAX.to_le_bytes()).unwrap();
    sync(&bucket);
    let crashed = place.copy("crashed");
    bucket.close().unwrap();
    place.crash(&crashed);
    let bucket = place.open();
    let got = content(&bucket, "f");
    for n in 1..200usize {
        assert_eq!(got[n * 8..n * 8 + 8], (n as u64).to_le_bytes(), "sync {n}");
    }
    assert_eq!(got[..8], [255; 8]);
    assert!(content(&bucket, "stream").chunks(1 << 20).all(|c| c == big));
}
