//! The namespace of a bucket without a mount: what would take too long through one, and what no program on one can cause.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ssefs::bucket::{Bucket, BucketError, CreateOptions, Listing, NewInode, OpenOptions, ROOT, SetAttr};
use ssefs::keys::{Keyring, RootSource};
use ssefs::rule::Dialect;
use ssefs::types::BucketName;

struct Place {
    dir: tempfile::TempDir,
    keys: Arc<Keyring>,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config");
        let (keys, _) = Keyring::open_or_create(&config, RootSource::in_config(&config)).unwrap();
        let place = Place { dir, keys: Arc::new(keys) };
        let id = place.keys.open_store(&place.store(), true).unwrap();
        let o = CreateOptions {
            dialect: Dialect::Native,
            rule: None,
            owner_uid: 0,
            chunk_bytes: 16384,
            require_encryption: false,
        };
        Bucket::create(&place.store(), id, &Place::name(), &place.keys, &o).unwrap();
        place
    }

    fn name() -> BucketName {
        "b".parse().unwrap()
    }

    fn store(&self) -> std::path::PathBuf {
        self.dir.path().join("store")
    }

    fn open(&self) -> Arc<Bucket> {
        self.open_as(&OpenOptions::default())
    }

    fn open_as(&self, o: &OpenOptions) -> Arc<Bucket> {
        let id = self.keys.open_store(&self.store(), false).unwrap();
        Bucket::open(&self.store(), id, &Place::name(), &self.keys, o).unwrap()
    }
}

fn make(b: &Bucket, name: &str, mode: u32, target: Option<&[u8]>) -> Result<u64, BucketError> {
    b.make(ROOT, name.as_bytes(), &NewInode { mode, uid: 0, gid: 0, rdev: 0, target }).map(|a| a.ino)
}

/// ext4 has no limit there either, only on the names of a file.
#[test]
fn r61_a_directory_takes_more_than_65_000_subdirectories_and_counts_them() {
    let place = Place::new();
    let b = place.open();
    let n = 65_100;
    for i in 0..n {
        make(&b, &format!("d{i}"), libc::S_IFDIR | 0o755, None).unwrap();
    }
    assert_eq!(b.attr(ROOT).unwrap().nlink, n + 2);
    b.close().unwrap();
    let b = place.open();
    assert_eq!(b.attr(ROOT).unwrap().nlink, n + 2);
    for i in 0..200 {
        b.rmdir(ROOT, format!("d{i}").as_bytes()).unwrap();
    }
    assert_eq!(b.attr(ROOT).unwrap().nlink, n + 2 - 200);
    b.close().unwrap();
}

#[test]
fn r61_a_file_has_65_000_names_and_no_more() {
    let place = Place::new();
    let b = place.open();
    let f = make(&b, "f", libc::S_IFREG | 0o644, None).unwrap();
    for i in 1..65_000 {
        b.link(f, ROOT, format!("l{i}").as_bytes()).unwrap();
    }
    assert!(matches!(b.link(f, ROOT, b"more"), Err(BucketError::TooManyLinks)));
    b.unlink(ROOT, b"l7").unwrap();
    b.link(f, ROOT, b"more").unwrap();
    b.close().unwrap();
}

/// The row of a link's target is in the way, as after damage: the name must not stay without it.
#[test]
fn a_symlink_that_cannot_be_written_leaves_no_name() {
    let place = Place::new();
    let first = {
        let b = place.open();
        let first = make(&b, "first", libc::S_IFREG | 0o644, None).unwrap();
        b.close().unwrap();
        first
    };
    let catalog = place.store().join("buckets/b/catalog.db");
    let conn = rusqlite::Connection::open(catalog).unwrap();
    for ino in first + 1..first + 3 {
        conn.execute("INSERT INTO symlink VALUES (?1, x'00')", [ino as i64]).unwrap();
    }
    drop(conn);
    let b = place.open();
    assert!(matches!(make(&b, "link", libc::S_IFLNK | 0o777, Some(b"target")), Err(BucketError::Catalog(_))));
    assert!(matches!(b.lookup(ROOT, b"link"), Err(BucketError::NotFound(_))));
    assert_eq!(b.entries(ROOT, b"", 10).unwrap().len(), 1);
    // The bucket goes on, and the name is free.
    make(&b, "link", libc::S_IFREG | 0o644, None).unwrap();
    b.commit().unwrap();
    let link = make(&b, "another", libc::S_IFLNK | 0o777, Some(b"target")).unwrap();
    assert_eq!(b.readlink(link).unwrap(), b"target");
    b.close().unwrap();
    let b = place.open();
    assert_eq!(b.entries(ROOT, b"", 10).unwrap().len(), 3);
    assert_eq!(b.readlink(link).unwrap(), b"target");
    b.close().unwrap();
}

/// What is changed stays in memory until a commit, so a long interval must not be the only reason for one.
#[test]
fn many_changes_are_committed_however_long_the_interval_is() {
    let place = Place::new();
    let b = place.open_as(&OpenOptions { commit_interval: Duration::from_secs(3600), ..OpenOptions::default() });
    let before = b.info().commit_number;
    for i in 0..40_000 {
        make(&b, &format!("f{i}"), libc::S_IFREG | 0o644, None).unwrap();
    }
    let end = Instant::now() + Duration::from_secs(120);
    while b.info().commit_number == before {
        assert!(Instant::now() < end, "no commit came");
        std::thread::sleep(Duration::from_millis(10));
    }
    b.close().unwrap();
}

#[test]
fn a_bucket_closed_from_several_sides_at_once_is_closed_once_and_nobody_is_told_of_a_failure() {
    let place = Place::new();
    for round in 0..10 {
        let b = place.open();
        for i in 0..200 {
            make(&b, &format!("{round}-{i}"), libc::S_IFREG | 0o644, None).unwrap();
        }
        let begin = std::sync::Barrier::new(3);
        std::thread::scope(|s| {
            for _ in 0..3 {
                s.spawn(|| {
                    begin.wait();
                    b.close().unwrap();
                    // Closed for whoever is told so.
                    assert!(Bucket::who_has(&place.store(), &Place::name()).is_none());
                });
            }
        });
        b.close().unwrap();
    }
    let b = place.open();
    assert_eq!(b.entries(ROOT, b"", 5000).unwrap().len(), 2000);
    b.close().unwrap();
}

#[test]
fn a_listing_shows_each_inode_as_it_is_whether_its_row_was_read_alone_or_with_others() {
    let place = Place::new();
    let b = place.open();
    let inos: Vec<u64> =
        (0..200).map(|i| make(&b, &format!("f{i:03}"), libc::S_IFREG | (0o600 + i % 8), None).unwrap()).collect();
    b.close().unwrap();
    let b = place.open();
    let mut listing = Listing::default();
    let mode = |l: &mut Listing, i: usize| b.attr_in(l, inos[i]).map(|a| a.mode & 0o777);
    for i in 0..100 {
        assert_eq!(mode(&mut listing, i).unwrap(), 0o600 + i as u32 % 8);
    }
    // Behind the rows that were read: changed in memory, removed, new.
    b.set_attr(inos[50], &SetAttr { mode: Some(0o444), ..SetAttr::default() }).unwrap();
    b.unlink(ROOT, b"f051").unwrap();
    let new = make(&b, "new", libc::S_IFREG | 0o640, None).unwrap();
    assert_eq!(mode(&mut listing, 50).unwrap(), 0o444);
    assert!(b.attr(inos[51]).map_or(true, |a| a.nlink == 0));
    assert!(b.attr_in(&mut listing, inos[51]).map_or(true, |a| a.nlink == 0));
    assert_eq!(b.attr_in(&mut listing, new).unwrap().mode & 0o777, 0o640);
    for ino in &inos[100..] {
        assert_eq!(b.attr_in(&mut listing, *ino).unwrap(), b.attr(*ino).unwrap());
    }
    b.close().unwrap();
}
