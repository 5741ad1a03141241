//! The costs of a bucket, without a mount: sealing into the log, creating and looking up names, committing.
//! `make bench`; the store lies in the folder that TMPDIR names.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ssefs::bucket::{Bucket, CreateOptions, NewInode, OpenOptions, ROOT};
use ssefs::keys::{Keyring, RootSource};
use ssefs::rule::Dialect;

struct Place {
    _dir: tempfile::TempDir,
    bucket: Arc<Bucket>,
    names: AtomicU64,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let (config, store) = (dir.path().join("config"), dir.path().join("store"));
        let (keys, _) = Keyring::open_or_create(&config, RootSource::in_config(&config)).unwrap();
        let keys = Arc::new(keys);
        let id = keys.open_store(&store, true).unwrap();
        let name = "bench".parse().unwrap();
        let rule = Some("AES256".parse().unwrap());
        let o = CreateOptions {
            dialect: Dialect::Native,
            rule,
            owner_uid: 0,
            chunk_bytes: 16384,
            require_encryption: false,
        };
        Bucket::create(&store, id, &name, &keys, &o).unwrap();
        let bucket = Bucket::open(&store, id, &name, &keys, &OpenOptions::default()).unwrap();
        Place { _dir: dir, bucket, names: AtomicU64::new(0) }
    }

    fn make(&self) -> u64 {
        let name = format!("file{}", self.names.fetch_add(1, Ordering::Relaxed));
        let new = NewInode { mode: libc::S_IFREG | 0o644, uid: 0, gid: 0, rdev: 0, target: None };
        self.bucket.make(ROOT, name.as_bytes(), &new).unwrap().ino
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.bucket.close();
    }
}

fn names(c: &mut Criterion) {
    let p = Place::new();
    let mut g = c.benchmark_group("names");
    g.bench_function("create", |b| b.iter(|| p.make()));
    g.bench_function("create, write 4 KiB", |b| b.iter(|| p.bucket.write(p.make(), Some(0), &[7; 4096]).unwrap()));
    p.bucket.commit().unwrap();
    g.bench_function("look up", |b| b.iter(|| p.bucket.lookup(ROOT, b"file0").unwrap()));
    g.finish();
}

fn content(c: &mut Criterion) {
    let p = Place::new();
    let ino = p.make();
    let data = vec![7u8; 1 << 20];
    let mut g = c.benchmark_group("content");
    g.sample_size(20);
    g.throughput(Throughput::Bytes(64 << 20));
    g.bench_function("write 64 MiB and commit", |b| {
        b.iter(|| {
            for i in 0..64 {
                p.bucket.write(ino, Some(i << 20), &data).unwrap();
            }
            p.bucket.commit().unwrap();
        })
    });
    g.bench_function("read 64 MiB", |b| {
        b.iter(|| {
            for i in 0..64 {
                assert_eq!(p.bucket.read(ino, i << 20, 1 << 20).unwrap().len(), 1 << 20);
            }
        })
    });
    g.finish();
}

fn commits(c: &mut Criterion) {
    let p = Place::new();
    let ino = p.make();
    let mut g = c.benchmark_group("commit");
    g.sample_size(50);
    g.bench_function("4 KiB written", |b| {
        b.iter(|| {
            p.bucket.write(ino, Some(0), &[1; 4096]).unwrap();
            p.bucket.commit().unwrap();
        })
    });
    g.bench_function("1000 new files of 4 KiB", |b| {
        b.iter_batched(
            || (0..1000).for_each(|_| p.bucket.write(p.make(), Some(0), &[1; 4096]).unwrap()),
            |()| p.bucket.commit().unwrap(),
            BatchSize::PerIteration,
        )
    });
    g.finish();
}

criterion_group!(benches, names, content, commits);
criterion_main!(benches);
