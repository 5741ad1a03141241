//! The bucket against plain byte vectors: whatever is written, cut, punched and read, with commits and reopening in
//! between, and for several chunk sizes and rules.

use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use ssefs::bucket::{Bucket, BucketError, CreateOptions, NewInode, OpenOptions, ROOT};
use ssefs::crypto::secret::CustomerKey;
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
        Place { dir, keys: Arc::new(keys) }
    }
    fn store(&self) -> std::path::PathBuf {
        self.dir.path().join("store")
    }
    fn create(&self, name: &str, rule: Option<&str>, chunk_bytes: u32) {
        let id = self.keys.open_store(&self.store(), true).unwrap();
        let o = CreateOptions {
            dialect: Dialect::Native,
            rule: rule.map(|r| r.parse().unwrap()),
            owner_uid: 0,
            chunk_bytes,
            require_encryption: false,
        };
        Bucket::create(&self.store(), id, &name.parse::<BucketName>().unwrap(), &self.keys, &o).unwrap();
    }
    fn open(&self, name: &str) -> Arc<Bucket> {
        let id = self.keys.open_store(&self.store(), false).unwrap();
        Bucket::open(&self.store(), id, &name.parse().unwrap(), &self.keys, &OpenOptions::default()).unwrap()
    }
}

#[derive(Debug, Clone)]
enum Op {
    Write {
        file: usize,
        at: u64,
        len: usize,
        fill: u8,
    },
    Append {
        file: usize,
        len: usize,
        fill: u8,
    },
    Truncate {
        file: usize,
        size: u64,
    },
    Punch {
        file: usize,
        at: u64,
        len: u64,
    },
    Read {
        file: usize,
        at: u64,
        len: usize,
    },
    Commit,
    /// Every segment moved, wasteful leaves merged.
    Compact,
    Reopen,
    SetRule(Option<&'static str>),
    Request {
        file: usize,
        rule: Option<&'static str>,
    },
    /// A customer key, the first or another.
    Key {
        file: usize,
        key: u8,
    },
    Lock {
        file: usize,
    },
}

/// The customer keys of the files: which each has, and whether it is unlocked.
#[derive(Default)]
struct Keys([(Option<u8>, bool); 3]);

impl Keys {
    fn key(n: u8) -> CustomerKey {
        CustomerKey::take(&mut [n; 32])
    }

    /// As open(2) does it: a locked file is found to be, and unlocked.
    fn open(&mut self, bucket: &Bucket, file: usize, ino: u64) {
        if let (Some(key), unlocked @ false) = (self.0[file].0, &mut self.0[file].1) {
            for refused in [bucket.access(0, ino).err(), bucket.unlock(0, ino, Self::key(key ^ 1)).err()] {
                assert!(matches!(refused, Some(BucketError::Customer(_))), "file {file} is locked: {refused:?}");
            }
            bucket.unlock(0, ino, Self::key(key)).unwrap();
            bucket.access(0, ino).unwrap();
            *unlocked = true;
        }
    }
}

fn op() -> impl Strategy<Value = Op> {
    let at = prop_oneof![0u64..300_000, (0u64..80).prop_map(|b| b * 4096), 0u64..3_000_000];
    let len = prop_oneof![1usize..100, 4000usize..5000, 1usize..400_000, Just(4096), Just(65536), Just(1 << 20)];
    prop_oneof![
        6 => (0usize..3, at.clone(), len.clone(), any::<u8>()).prop_map(|(file, at, len, fill)| Op::Write { file, at, len, fill }),
        2 => (0usize..3, len.clone(), any::<u8>()).prop_map(|(file, len, fill)| Op::Append { file, len, fill }),
        3 => (0usize..3, prop_oneof![at.clone(), Just(0)]).prop_map(|(file, size)| Op::Truncate { file, size }),
        2 => (0usize..3, at.clone(), 1u64..500_000).prop_map(|(file, at, len)| Op::Punch { file, at, len }),
        4 => (0usize..3, at, len).prop_map(|(file, at, len)| Op::Read { file, at, len }),
        2 => Just(Op::Commit),
        2 => Just(Op::Compact),
        1 => Just(Op::Reopen),
        1 => prop_oneof![Just(Op::SetRule(None)), Just(Op::SetRule(Some("AES256"))), Just(Op::SetRule(Some("KMS")))],
        1 => (0usize..3, prop_oneof![Just(None), Just(Some("AES256")), Just(Some("KMS"))]).prop_map(|(file, rule)| Op::Request { file, rule }),
        2 => (0usize..3, 0u8..4).prop_map(|(file, key)| Op::Key { file, key }),
        3 => (0usize..3).prop_map(|file| Op::Lock { file }),
    ]
}

fn content(fill: u8, at: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| fill.wrapping_add(((at + i) * 31 % 251) as u8)).collect()
}

fn run(place: &Place, name: &str, rule: Option<&str>, chunk: u32, ops: &[Op]) {
    place.create(name, rule, chunk);
    let mut bucket = place.open(name);
    let mut models: Vec<Vec<u8>> = vec![Vec::new(); 3];
    let inos: Vec<u64> = (0..3)
        .map(|i| {
            let new = NewInode { mode: libc::S_IFREG | 0o644, uid: 0, gid: 0, rdev: 0, target: None };
            bucket.make(ROOT, format!("f{i}").as_bytes(), &new).unwrap().ino
        })
        .collect();
    let mut keys = Keys::default();
    for (n, op) in ops.iter().enumerate() {
        if let Op::Write { file, .. }
        | Op::Append { file, .. }
        | Op::Truncate { file, .. }
        | Op::Punch { file, .. }
        | Op::Read { file, .. }
        | Op::Request { file, .. }
        | Op::Key { file, .. } = op
        {
            keys.open(&bucket, *file, inos[*file]);
        }
        match op.clone() {
            Op::Write { file, at, len, fill } => {
                let data = content(fill, at, len);
                bucket.write(inos[file], Some(at), &data).unwrap();
                let m = &mut models[file];
                if m.len() < at as usize + len {
                    m.resize(at as usize + len, 0);
                }
                m[at as usize..at as usize + len].copy_from_slice(&data);
            }
            Op::Append { file, len, fill } => {
                let data = content(fill, 7, len);
                bucket.write(inos[file], None, &data).unwrap();
                models[file].extend_from_slice(&data);
            }
            Op::Truncate { file, size } => {
                bucket.truncate(inos[file], size).unwrap();
                models[file].resize(size as usize, 0);
            }
            Op::Punch { file, at, len } => {
                bucket.punch(inos[file], at, len).unwrap();
                let m = &mut models[file];
                let end = (at + len).min(m.len() as u64) as usize;
                if (at as usize) < end {
                    m[at as usize..end].fill(0);
                }
            }
            Op::Read { file, at, len } => {
                let got = bucket.read(inos[file], at, len).unwrap();
                let m = &models[file];
                let (a, b) = ((at as usize).min(m.len()), (at as usize + len).min(m.len()));
                assert!(got == m[a..b], "op {n}: read of file {file} at {at}, {len} bytes differs");
            }
            Op::Commit => bucket.commit().unwrap(),
            Op::Compact => bucket.compact_now().unwrap(),
            Op::Reopen => {
                bucket.close().unwrap();
                bucket = place.open(name);
                keys.0.iter_mut().for_each(|k| k.1 = false);
            }
            Op::SetRule(r) => bucket.set_rule(0, r.map(|r| r.parse().unwrap())).unwrap(),
            // What a customer key has sealed stays under it when the request ends, which the model does not follow.
            Op::Request { file, rule: None } if keys.0[file].0.is_some() => {}
            Op::Request { file, rule } => {
                bucket.set_request(inos[file], rule.map(|r| r.parse().unwrap())).unwrap();
                keys.0[file].0 = None;
            }
            Op::Key { file, key } => {
                bucket.set_customer_key(0, inos[file], Keys::key(key)).unwrap();
                keys.0[file] = (Some(key), true);
            }
            Op::Lock { file } => {
                let (tx, rx) = std::sync::mpsc::channel();
                bucket.lock_object(0, inos[file], Box::new(move |r| tx.send(r).unwrap()));
                let locked = rx.recv().unwrap();
                assert_eq!(locked.is_ok(), keys.0[file].0.is_some() && keys.0[file].1, "op {n}: {locked:?}");
                keys.0[file].1 = false;
            }
        }
        for (i, m) in models.iter().enumerate() {
            assert_eq!(bucket.attr(inos[i]).unwrap().size, m.len() as u64, "op {n} {op:?}: size of file {i}");
        }
    }
    for _ in 0..2 {
        for (i, m) in models.iter().enumerate() {
            keys.open(&bucket, i, inos[i]);
            let got = bucket.read(inos[i], 0, m.len() + 10).unwrap();
            if let Some(at) = got.iter().zip(m).position(|(a, b)| a != b) {
                panic!("file {i} differs at {at} ({} against {})", got[at], m[at]);
            }
            assert_eq!(got.len(), m.len());
            let mut at = 0;
            while let Some(hole) = bucket.seek(inos[i], at, false).unwrap() {
                if hole >= m.len() as u64 {
                    break;
                }
                let data = bucket.seek(inos[i], hole, true).unwrap().unwrap_or(m.len() as u64);
                assert!(m[hole as usize..data as usize].iter().all(|b| *b == 0), "a hole of file {i} that is none");
                at = data;
                if at >= m.len() as u64 {
                    break;
                }
            }
        }
        bucket.close().unwrap();
        bucket = place.open(name);
        keys.0.iter_mut().for_each(|k| k.1 = false);
    }
    // Everything goes, also what is locked: no byte of the log may stay live.
    for i in 0..3 {
        bucket.unlink(ROOT, format!("f{i}").as_bytes()).unwrap();
    }
    bucket.close().unwrap();
    let bucket = place.open(name);
    assert_eq!(bucket.info().log_bytes, 0, "space that nobody owns");
    bucket.close().unwrap();
}

#[test]
fn a_bucket_holds_what_a_byte_vector_holds() {
    let place = Place::new();
    let n = std::cell::Cell::new(0);
    let mut runner =
        TestRunner::new(Config { cases: 60, max_shrink_iters: 300, failure_persistence: None, ..Config::default() });
    let strategy =
        (prop::collection::vec(op(), 1..40), prop_oneof![Just(4096u32), Just(16384), Just(262_144)], 0usize..3);
    runner
        .run(&strategy, |(ops, chunk, rule)| {
            n.set(n.get() + 1);
            run(&place, &format!("b{}", n.get()), [None, Some("AES256"), Some("KMS")][rule], chunk, &ops);
            Ok(())
        })
        .unwrap();
}
