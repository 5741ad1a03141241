//! A bucket with a million objects, open and in use: its master key is rotated and every key rewrapped; then the report on coverage,
//! and the renewal of its KEKs. `make rewrap`; SSEFS_REWRAP_OBJECTS says another number. The first must take less than a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ssefs::bucket::{Ask, Bucket, CreateOptions, NewInode, OpenOptions, ROOT};
use ssefs::keys::{KeyService, Keyring, RootSource};
use ssefs::rule::Dialect;

const OBJECTS: u64 = 1_000_000;
const BYTES: usize = 1000;
const IN_A_DIRECTORY: u64 = 1000;
const WRITERS: u64 = 2;

fn make(bucket: &Arc<Bucket>, parent: u64, name: &str, mode: u32) -> u64 {
    let new = NewInode { mode, uid: 0, gid: 0, rdev: 0, target: None };
    bucket.make(parent, name.as_bytes(), &new).expect("a new name").ino
}

fn fill(bucket: &Arc<Bucket>, objects: u64) {
    std::thread::scope(|s| {
        for w in 0..WRITERS {
            s.spawn(move || {
                for d in (w..objects / IN_A_DIRECTORY).step_by(WRITERS as usize) {
                    let dir = make(bucket, ROOT, &format!("d{d}"), libc::S_IFDIR | 0o755);
                    for i in 0..IN_A_DIRECTORY {
                        let ino = make(bucket, dir, &format!("f{i}"), libc::S_IFREG | 0o644);
                        bucket.write(ino, Some(0), &[i as u8; BYTES]).expect("written");
                    }
                }
            });
        }
    });
    bucket.commit().expect("a commit");
}

/// What the log's files hold, as one number a file.
fn log(dir: &std::path::Path) -> Vec<(String, u64)> {
    let mut all: Vec<_> = std::fs::read_dir(dir)
        .expect("segments")
        .map(|e| {
            let path = e.expect("an entry").path();
            let bytes = std::fs::read(&path).expect("a segment");
            (path.display().to_string(), xxhash_rust::xxh3::xxh3_64(&bytes))
        })
        .collect();
    all.sort();
    all
}

fn main() {
    let objects = std::env::var("SSEFS_REWRAP_OBJECTS").ok().and_then(|n| n.parse().ok()).unwrap_or(OBJECTS);
    let dir = tempfile::tempdir().expect("a directory");
    let (config, store) = (dir.path().join("config"), dir.path().join("store"));
    let name = "b".parse().expect("a name");
    let keys = Arc::new(Keyring::open_or_create(&config, RootSource::in_config(&config)).expect("a keyring").0);
    let id = keys.open_store(&store, true).expect("a store");
    let o = CreateOptions {
        dialect: Dialect::Native,
        rule: Some("KMS".parse().expect("a rule")),
        owner_uid: 0,
        chunk_bytes: 16384,
        require_encryption: true,
    };
    Bucket::create(&store, id, &name, &keys, &o).expect("a bucket");
    let bucket = Bucket::open(&store, id, &name, &keys, &OpenOptions::default()).expect("open");
    let begun = Instant::now();
    fill(&bucket, objects);
    println!("{objects} objects of {BYTES} bytes: written in {:.1} s", begun.elapsed().as_secs_f64());

    let segments = store.join("buckets/b/seg");
    let before = log(&segments);
    let (stop, used) = (AtomicBool::new(false), AtomicU64::new(0));
    let first = bucket.lookup(ROOT, b"d0").expect("a directory").ino;
    let file = bucket.lookup(first, b"f7").expect("a file").ino;
    let mut took = Vec::new();
    std::thread::scope(|s| {
        s.spawn(|| {
            // Read all the while.
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(bucket.read(file, 0, BYTES).expect("read"), [7; BYTES]);
                used.fetch_add(1, Ordering::Relaxed);
            }
        });
        let key = keys.default_cmk().expect("the key");
        for _ in 0..5 {
            let begun = Instant::now();
            keys.rotate(&key).expect("rotated");
            let report = bucket.rewrap().expect("rewrapped");
            took.push(begun.elapsed());
            assert!(report.rewrapped == report.keks && report.keks > 0, "{report:?}");
        }
        stop.store(true, Ordering::Relaxed);
    });
    took.sort();
    println!(
        "rotate and rewrap: median {:.1} ms, worst {:.1} ms, with {} reads meanwhile",
        took[2].as_secs_f64() * 1e3,
        took[4].as_secs_f64() * 1e3,
        used.load(Ordering::Relaxed)
    );
    assert!(took[4] < Duration::from_secs(1), "a rewrap takes less than a second");
    let now = log(&segments);
    // The last segment has the records of the commits behind it.
    let same = before.iter().filter(|b| now.contains(b)).count();
    println!("{} of {} segments are as they were, byte for byte; the open one has grown", same, before.len());
    assert!(same + 1 >= before.len(), "no byte of a closed segment has changed");

    let quiet = Ask { stage: &|_, _| {}, advance: &|_| true };
    let begun = Instant::now();
    let coverage = bucket.coverage(None, 0, &quiet).expect("coverage");
    println!("coverage: {:.2} s", begun.elapsed().as_secs_f64());
    assert!(coverage.all_under_rule && coverage.objects == objects, "{coverage:?}");
    let begun = Instant::now();
    let renewed = bucket.renew_keks(&quiet).expect("renewed");
    println!("KEKs renewed, every data key wrapped anew: {:.1} s", begun.elapsed().as_secs_f64());
    assert!(renewed.finished && renewed.objects == objects, "{renewed:?}");
    bucket.close().expect("closed");
}
