//! `check` through the library: a sound bucket has no problems, and each kind of harm is told under its code, with the
//! object it befell.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::Connection;
use ssefs::bucket::{Bucket, CreateOptions, NewInode, OpenOptions, ROOT};
use ssefs::keys::{Keyring, RootSource};
use ssefs::ops::Quiet;
use ssefs::ops::check::{CheckOptions, CheckReport, Code, check};
use ssefs::rule::Dialect;
use ssefs::types::{BucketName, StoreId};

struct Harmed {
    dir: tempfile::TempDir,
    keys: Arc<Keyring>,
    id: StoreId,
    name: BucketName,
    small: u64,
    large: u64,
    sub: u64,
    link: u64,
}

fn content(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i / 7 * 31 % 251) as u8).collect()
}

impl Harmed {
    /// A bucket with a file of one leaf, one of several, a hard link, a directory and a symbolic link. Closed.
    fn new(rule: &str) -> Harmed {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config");
        let (keys, _) = Keyring::open_or_create(&config, RootSource::in_config(&config)).unwrap();
        let keys = Arc::new(keys);
        let store = dir.path().join("store");
        fs::create_dir(&store).unwrap();
        let id = keys.open_store(&store, true).unwrap();
        let name: BucketName = "b".parse().unwrap();
        let o = CreateOptions {
            dialect: Dialect::Native,
            // A bucket without a rule keeps plain content.
            rule: (rule != "none").then(|| rule.parse().unwrap()),
            owner_uid: 0,
            chunk_bytes: 16384,
            require_encryption: false,
        };
        Bucket::create(&store, id, &name, &keys, &o).unwrap();
        let mut h = Harmed { dir, keys, id, name, small: 0, large: 0, sub: 0, link: 0 };
        let b = h.open();
        let new = |mode, target| NewInode { mode, uid: 0, gid: 0, rdev: 0, target };
        h.sub = b.make(ROOT, b"sub", &new(libc::S_IFDIR | 0o755, None)).unwrap().ino;
        h.small = b.make(ROOT, b"small", &new(libc::S_IFREG | 0o644, None)).unwrap().ino;
        h.large = b.make(h.sub, b"large", &new(libc::S_IFREG | 0o644, None)).unwrap().ino;
        h.link = b.make(ROOT, b"link", &new(libc::S_IFLNK | 0o777, Some(b"sub/large"))).unwrap().ino;
        b.link(h.small, h.sub, b"second").unwrap();
        b.set_xattr(h.small, b"user.a", b"1", 0).unwrap();
        b.write(h.small, Some(0), &content(50_000)).unwrap();
        b.write(h.large, Some(0), &content(3 << 20)).unwrap();
        b.commit().unwrap();
        // Chunks shown in part, and a hole.
        b.write(h.large, Some(20_480), &content(4096)).unwrap();
        b.punch(h.large, 1 << 20, 1 << 20).unwrap();
        b.close().unwrap();
        h
    }

    fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn open(&self) -> Arc<Bucket> {
        Bucket::open(&self.store(), self.id, &self.name, &self.keys, &OpenOptions::default()).unwrap()
    }

    fn check(&self, read_data: bool) -> CheckReport {
        let b = self.open();
        let r = check(&b, CheckOptions { read_data }, &Quiet).unwrap();
        b.close().unwrap();
        r
    }

    fn folder(&self) -> PathBuf {
        self.store().join("buckets/b")
    }

    fn sql(&self, sql: &str) {
        let db = Connection::open(self.folder().join("catalog.db")).unwrap();
        assert!(db.execute(sql, []).unwrap() > 0, "{sql}");
    }

    fn number(&self, sql: &str) -> i64 {
        let db = Connection::open(self.folder().join("catalog.db")).unwrap();
        db.query_row(sql, [], |r| r.get(0)).unwrap()
    }

    /// After one harmful statement, a problem with this code befalls this object.
    #[track_caller]
    fn harm(sql: impl Fn(&Harmed) -> String, code: Code, object: impl Fn(&Harmed) -> Option<u64>) -> CheckReport {
        let h = Harmed::new("AES256");
        h.sql(&sql(&h));
        let r = h.check(false);
        let object = object(&h);
        assert!(r.problems.iter().any(|p| p.code == code && p.object == object), "{object:?}: {r:#?}");
        r
    }
}

fn flip(path: &Path, at: u64) {
    let f = File::options().read(true).write(true).open(path).unwrap();
    let mut b = [0];
    f.read_exact_at(&mut b, at).unwrap();
    f.write_all_at(&[b[0] ^ 4], at).unwrap();
}

#[test]
fn a_sound_bucket_has_no_problems_sealed_or_plain_open_or_reopened() {
    for rule in ["AES256", "none"] {
        let h = Harmed::new(rule);
        let r = h.check(true);
        assert_eq!(r.problems, [], "{rule}");
        assert_eq!((r.inodes, r.names, r.objects), (5, 5, 2));
        assert_eq!(r.bytes, 50_000 + (2 << 20));
        // The whole chunk under the part that was overwritten is read as well.
        assert!(r.bytes_read >= r.bytes && r.chunks > 0 && r.nodes > 0 && r.notes.is_empty(), "{r:?}");
        let b = h.open();
        b.write(h.small, Some(0), &content(9000)).unwrap();
        b.rename(ROOT, b"link", h.sub, b"moved", 0).unwrap();
        b.unlink(h.sub, b"large").unwrap();
        let r = check(&b, CheckOptions { read_data: true }, &Quiet).unwrap();
        assert_eq!(r.problems, [], "{rule}, in use");
        b.close().unwrap();
        assert_eq!(h.check(true).problems, [], "{rule}, after deleting");
    }
}

#[test]
fn a_check_beside_a_writer_finds_nothing() {
    let h = Harmed::new("AES256");
    let b = h.open();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            let mut i = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                b.write(h.large, Some(i % 300 * 4096), &content(60_000)).unwrap();
                b.truncate(h.small, i % 7 * 10_000).unwrap();
                b.write(h.small, Some(i % 5 * 4096), &content(9000)).unwrap();
                b.commit().unwrap();
                i += 1;
            }
        });
        for _ in 0..20 {
            let r = check(&b, CheckOptions { read_data: true }, &Quiet);
            if r.as_ref().map_or(true, |r| !r.problems.is_empty()) {
                stop.store(true, std::sync::atomic::Ordering::Relaxed);
            }
            assert_eq!(r.unwrap().problems, []);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    b.close().unwrap();
}

#[test]
fn a_flipped_byte_in_a_chunk_is_told_with_its_place_when_data_is_read() {
    let h = Harmed::new("AES256");
    let leaf_first = "SELECT ino FROM seal WHERE height = 0";
    assert_eq!(h.number(leaf_first) as u64, h.small);
    let db = Connection::open(h.folder().join("catalog.db")).unwrap();
    let map: Vec<u8> = db.query_row("SELECT map FROM seal WHERE height = 0", [], |r| r.get(0)).unwrap();
    drop(db);
    // The first run: segment at 36, position at 40 of its 44 bytes.
    let u32_at = |i: usize| u32::from_le_bytes(map[2 + i..6 + i].try_into().unwrap());
    let (segment, position) = (u32_at(36), u32_at(40));
    flip(&h.folder().join(format!("seg/{segment:08x}.seg")), position as u64 + 16384 + 28 + 100);
    assert_eq!(h.check(false).problems, []);
    let r = h.check(true);
    assert_eq!(r.problems.len(), 1, "{r:#?}");
    let p = &r.problems[0];
    assert_eq!((p.code, p.object, p.from, p.to), (Code::ChunkData, Some(h.small), Some(16384), Some(32768)));
    assert_eq!((p.path.as_deref(), p.segment.clone()), (Some("small"), Some(format!("{segment:08x}"))));
}

#[test]
fn a_missing_or_cut_segment_is_told_by_name() {
    let h = Harmed::new("AES256");
    let id = h.number("SELECT id FROM segment WHERE live > 0 ORDER BY live DESC LIMIT 1");
    let path = h.folder().join(format!("seg/{id:08x}.seg"));
    let good = fs::read(&path).unwrap();
    let garbage = vec![7; good.len()];
    for bad in [None, Some(&good[..good.len() / 2]), Some(&[][..]), Some(&garbage[..])] {
        match bad {
            None => fs::remove_file(&path).unwrap(),
            Some(bytes) => fs::write(&path, bytes).unwrap(),
        }
        for read_data in [false, true] {
            let r = h.check(read_data);
            let told = |code| r.problems.iter().any(|p| p.code == code && p.segment == Some(format!("{id:08x}")));
            assert!(told(Code::Segment) && told(Code::ChunkData) == read_data, "{r:#?}");
        }
        fs::write(&path, &good).unwrap();
        assert_eq!(h.check(true).problems, []);
    }
}

#[test]
fn altered_attributes_are_told() {
    Harmed::harm(
        |h| format!("UPDATE inode SET size = size - 1 WHERE ino = {}", h.small),
        Code::Seal,
        |h| Some(h.small),
    );
    Harmed::harm(|h| format!("UPDATE inode SET nlink = 3 WHERE ino = {}", h.small), Code::Links, |h| Some(h.small));
    Harmed::harm(|h| format!("UPDATE inode SET nlink = 4 WHERE ino = {}", h.sub), Code::Links, |h| Some(h.sub));
    Harmed::harm(|h| format!("UPDATE inode SET sealed = 1 WHERE ino = {}", h.large), Code::Sealed, |h| Some(h.large));
    Harmed::harm(|h| format!("UPDATE inode SET flags = 0 WHERE ino = {}", h.small), Code::Attribute, |h| Some(h.small));
    Harmed::harm(|h| format!("UPDATE inode SET flags = 2 WHERE ino = {}", h.large), Code::Request, |h| Some(h.large));
    Harmed::harm(|h| format!("DELETE FROM symlink WHERE ino = {}", h.link), Code::Symlink, |h| Some(h.link));
    Harmed::harm(|h| format!("INSERT INTO symlink VALUES ({}, x'41')", h.sub), Code::Symlink, |h| Some(h.sub));
    Harmed::harm(|_| "INSERT INTO xattr VALUES (99, x'41', x'41')".into(), Code::Stray, |_| Some(99));
    let request = |h: &Harmed| format!("INSERT INTO request VALUES ({}, 'AES256', zeroblob(32))", h.small);
    Harmed::harm(request, Code::Request, |h| Some(h.small));
}

#[test]
fn altered_names_are_told() {
    Harmed::harm(|_| "DELETE FROM dirent WHERE name = x'6c61726765'".into(), Code::Links, |h| Some(h.large));
    Harmed::harm(|_| "UPDATE dirent SET ino = 77 WHERE name = x'6c61726765'".into(), Code::Name, |_| Some(77));
    Harmed::harm(|_| "UPDATE dirent SET kind = 12 WHERE name = x'6c61726765'".into(), Code::Name, |h| Some(h.large));
    Harmed::harm(
        |h| format!("UPDATE dirent SET parent = {0} WHERE ino = {0}", h.sub),
        Code::Directory,
        |h| Some(h.sub),
    );
    Harmed::harm(|h| format!("UPDATE inode SET parent = 9 WHERE ino = {}", h.sub), Code::Directory, |h| Some(h.sub));
    Harmed::harm(
        |h| format!("UPDATE dirent SET parent = {} WHERE name = x'6c61726765'", h.small),
        Code::Name,
        |h| Some(h.large),
    );
    Harmed::harm(|h| format!("DELETE FROM inode WHERE ino = {}", h.small), Code::Name, |h| Some(h.small));
}

#[test]
fn altered_seals_and_maps_are_told() {
    Harmed::harm(|h| format!("DELETE FROM seal WHERE ino = {}", h.small), Code::Seal, |h| Some(h.small));
    for column in ["seal_id", "wrapped", "tag", "place_tag", "map"] {
        let sql = |h: &Harmed| format!("UPDATE seal SET {column} = zeroblob(length({column})) WHERE ino = {}", h.small);
        Harmed::harm(sql, Code::Seal, |h| Some(h.small));
    }
    for rule in ["method = 0", "cipher = 0", "kek = 77", "key_id = 'mk-other'", "height = 1", "tag = x'00'"] {
        Harmed::harm(|h| format!("UPDATE seal SET {rule} WHERE ino = {}", h.small), Code::Seal, |h| Some(h.small));
    }
    for of in [|h: &Harmed| Some(h.small), |h: &Harmed| Some(h.large)] {
        let swap = |h: &Harmed| format!("UPDATE seal SET ino = -ino WHERE ino IN ({}, {})", h.small, h.large);
        let h = Harmed::new("AES256");
        h.sql(&swap(&h));
        h.sql(&format!("UPDATE seal SET ino = {} + ino WHERE ino < 0", h.small + h.large));
        let r = h.check(true);
        assert!(r.problems.iter().any(|p| p.code == Code::Seal && p.object == of(&h)), "{r:#?}");
    }
    let first = "(SELECT min(id) FROM node)";
    let r = Harmed::harm(|_| format!("DELETE FROM node WHERE id = {first}"), Code::Map, |h| Some(h.large));
    assert_eq!(r.problems.iter().filter(|p| p.code == Code::Map).count(), 1);
    assert!(r.problems.iter().any(|p| p.path.as_deref() == Some("sub/large")), "{r:#?}");
    // The 32nd byte of a leaf: the counter of its first run. Then a body that does not parse, then a node too many.
    let body = "substr(body, 1, 31) || x'ff' || substr(body, 33)";
    Harmed::harm(
        |_| format!("UPDATE node SET body = CAST({body} AS BLOB) WHERE id = {first}"),
        Code::Map,
        |h| Some(h.large),
    );
    Harmed::harm(|_| format!("UPDATE node SET body = zeroblob(44) WHERE id = {first}"), Code::Map, |h| Some(h.large));
    Harmed::harm(|_| "INSERT INTO node VALUES (4000, x'0000')".into(), Code::Node, |_| None);
}

#[test]
fn a_place_in_the_log_that_cannot_be_is_told() {
    // Places are no part of a leaf's tag: compaction moves chunks without their key.
    let first = "(SELECT min(id) FROM node)";
    let moved = |at: usize, hex: &str| {
        let body = format!("substr(body, 1, {at}) || x'{hex}' || substr(body, {})", at + 5);
        format!("UPDATE node SET body = CAST({body} AS BLOB) WHERE id = {first}")
    };
    Harmed::harm(|_| moved(2 + 36, "77000000"), Code::Chunk, |h| Some(h.large));
    Harmed::harm(|_| moved(2 + 40, "00000070"), Code::Chunk, |h| Some(h.large));
    Harmed::harm(|_| moved(2 + 40, "00000000"), Code::Chunk, |h| Some(h.large));
    Harmed::harm(|_| "UPDATE segment SET live = live + 1 WHERE live > 0".into(), Code::Segment, |_| None);
}

#[test]
fn keys_that_are_disabled_are_no_damage() {
    let h = Harmed::new("KMS");
    let key = h.keys.list_keys().unwrap().into_iter().find(|k| k.kind != ssefs::keys::KeyKind::Managed).unwrap();
    let b = h.open();
    assert_eq!(check(&b, CheckOptions { read_data: true }, &Quiet).unwrap().problems, []);
    b.close().unwrap();
    h.keys.set_state(&key.id, ssefs::keys::KeyState::Disabled).unwrap();
    let r = h.check(true);
    assert_eq!(r.problems, [], "what cannot be looked at is not harmed");
    assert_eq!((r.locked_objects, r.notes.len()), (Some(2), 1));
}

#[test]
fn a_finding_is_one_object_of_json() {
    let r =
        Harmed::harm(|h| format!("UPDATE inode SET nlink = 3 WHERE ino = {}", h.small), Code::Links, |h| Some(h.small));
    let v = serde_json::to_value(&r).unwrap();
    let p = &v["problems"][0];
    assert_eq!((p["code"].as_str(), p["path"].as_str()), (Some("links"), Some("small")));
    assert!(p.get("segment").is_none() && p["what"].is_string() && p["todo"].is_string());
}
