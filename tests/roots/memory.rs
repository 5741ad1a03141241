//! Keys in memory: what /proc/PID/mem of a process shows of them while they are in use, and that nothing is left when
//! they are not. Reading another process's memory takes root.

use crate::cli_support::Sandbox;
use crate::{Knows, PASSPHRASE, Ring, child, secret_file};
use ssefs::crypto::wrap;
use ssefs::keys::{Keyring, RootSource};
use ssefs::types::{BucketId, KekId, KeyId, SealId, StoreId};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;

fn is_root() -> bool {
    // SAFETY: geteuid cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        eprintln!("skipped: reading the memory of a process takes root");
    }
    root
}

/// One place in a process where a needle was found.
#[derive(Debug)]
#[allow(dead_code, reason = "printed when a test fails")]
struct Hit {
    at: u64,
    mapping: String,
    locked_and_not_dumped: bool,
}

/// Where `needle` is in a process's memory.
fn find(pid: u32, needle: &[u8]) -> Vec<Hit> {
    find_all(pid, &[needle]).remove(0)
}

/// Looks through all memory of a process that can be read and written, once for all needles.
fn find_all(pid: u32, needles: &[&[u8]]) -> Vec<Vec<Hit>> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mem = File::open(format!("/proc/{pid}/mem")).unwrap();
    let longest = needles.iter().map(|n| n.len()).max().unwrap();
    // By their first two bytes, so that most places are passed over at once.
    let first = |b: &[u8]| usize::from(u16::from_le_bytes([b[0], b[1]]));
    let mut begins = vec![false; 1 << 16];
    needles.iter().for_each(|n| begins[first(n)] = true);
    let mut hits: Vec<Vec<Hit>> = needles.iter().map(|_| Vec::new()).collect();
    let mut looked = 0;
    let mut mapping: Option<(u64, u64, String)> = None;
    for line in smaps.lines() {
        let word = line.split(' ').next().unwrap_or("");
        if let Some((from, to)) = word.split_once('-')
            && let (Ok(from), Ok(to)) = (u64::from_str_radix(from, 16), u64::from_str_radix(to, 16))
        {
            mapping = line.split(' ').nth(1).filter(|p| p.starts_with("rw")).map(|_| (from, to, line.to_owned()));
        }
        if let Some(flags) = line.strip_prefix("VmFlags:")
            && let Some((from, to, name)) = mapping.take()
        {
            let good = [" lo ", " dd "].iter().all(|f| format!("{flags} ").contains(f));
            const STEP: usize = 1 << 20;
            let mut at = from;
            while at < to {
                // Pieces overlap, so that a needle across two of them is seen.
                let length = usize::try_from(to - at).unwrap().min(STEP + longest);
                let mut bytes = vec![0u8; length];
                let n = mem.read_at(&mut bytes, at).unwrap_or(0);
                let bytes = &bytes[..n];
                looked += n;
                for i in 0..n.saturating_sub(1).min(STEP) {
                    if !begins[first(&bytes[i..])] {
                        continue;
                    }
                    for (needle, hits) in needles.iter().zip(&mut hits) {
                        if bytes[i..].starts_with(needle) {
                            let at = at + i as u64;
                            hits.push(Hit { at, mapping: name.clone(), locked_and_not_dumped: good });
                        }
                    }
                }
                at += STEP as u64;
            }
        }
    }
    assert!(looked > 100_000, "the memory was read");
    hits
}

fn hex_to_bytes(text: &str) -> Vec<u8> {
    (0..64).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

/// The root key's bytes, and its digits as the file has them.
fn root_key(file: &Path) -> (Vec<u8>, Vec<u8>) {
    let text = fs::read_to_string(file).unwrap();
    (hex_to_bytes(&text[17..81]), text.as_bytes()[17..81].to_vec())
}

fn pid_of(s: &Sandbox) -> u32 {
    let list = s.ssefs(&["bucket", "list", "--json"]).ok();
    serde_json::from_str::<serde_json::Value>(&list).unwrap()[0]["pid"].as_u64().unwrap() as u32
}

#[test]
fn the_root_key_of_a_live_mount_is_in_locked_memory_alone_and_the_old_one_goes_with_a_change() {
    if !is_root() {
        return;
    }
    let s = Sandbox::new();
    let dir = s.mounted("photos", "mnt");
    fs::write(dir.join("f"), "content").unwrap();
    let (key, digits) = root_key(&s.path("config/root.key"));
    let pid = pid_of(&s);
    let hits = find(pid, &key);
    assert!(!hits.is_empty(), "the mount has the key, so it must be found");
    assert!(hits.iter().all(|h| h.locked_and_not_dumped), "copies outside the arena: {hits:#?}");
    assert!(find(pid, &digits).is_empty(), "the text of the file is wiped");
    let phrase = secret_file(&s.path("phrase"), &format!("{PASSPHRASE}\n"));
    let to = ["key", "root", "change", "--to", "passphrase", "--new-passphrase-file", &phrase, "--kdf-memory", "1M"];
    s.ssefs(&to).ok();
    // The mount takes the new key when it next asks for one.
    s.ssefs(&["encryption", "put", "photos", "KMS"]).ok();
    fs::write(dir.join("g"), "content").unwrap();
    let hits = find(pid, &key);
    assert!(hits.is_empty(), "the old root key is still there: {hits:#?}");
    s.ssefs(&["umount", dir.to_str().unwrap()]).ok();
    // A mount in the background that was given the passphrase keeps nothing of it.
    s.ssefs(&["mount", "photos", dir.to_str().unwrap(), "--passphrase-file", &phrase]).ok();
    let hits = find(pid_of(&s), PASSPHRASE.as_bytes());
    assert!(hits.is_empty(), "the passphrase: {hits:#?}");
    let status = fs::read_to_string(format!("/proc/{}/status", pid_of(&s))).unwrap();
    let locked = status.lines().find(|l| l.starts_with("VmLck:")).unwrap();
    assert!(!locked.contains(" 0 kB"), "the child of the fork locks its keys again: {locked}");
    s.ssefs(&["umount", dir.to_str().unwrap()]).ok();
}

/// The keys by which a live bucket works: master keys, KEKs, data keys, and that of the bucket; from outside, as a holder
/// of root key, keyring and catalog has them.
fn keys_in_use(s: &Sandbox) -> Vec<(String, Vec<u8>)> {
    let root = RootSource::in_config(&s.path("config")).load(None).unwrap();
    let ring = rusqlite::Connection::open(s.path("config/keyring.db")).unwrap();
    let catalog = rusqlite::Connection::open(s.path("store/buckets/photos/catalog.db")).unwrap();
    let mut all = Vec::new();
    let mut rows = ring.prepare("SELECT id, store_id, wrapped_key FROM bucket").unwrap();
    let buckets = rows.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get::<_, Vec<u8>>(2)?))).unwrap();
    let (bucket, store, wrapped) = buckets.map(Result::unwrap).next().unwrap();
    let (bucket, store) = (BucketId(bucket), StoreId(store));
    let ctx = wrap::BucketCtx { bucket, store, name: "photos" };
    all.push(("bucket key".to_owned(), wrap::unwrap_bucket_key(&root, &ctx, &wrapped).unwrap().expose().to_vec()));
    let mut keks = catalog.prepare("SELECT id, key_id, key_version, wrapped FROM kek").unwrap();
    let row = |r: &rusqlite::Row<'_>| {
        Ok((r.get::<_, i64>(0)? as u64, r.get::<_, String>(1)?, r.get::<_, u32>(2)?, r.get::<_, Vec<u8>>(3)?))
    };
    for (id, key, version, wrapped) in keks.query_map([], row).unwrap().map(Result::unwrap) {
        let sql = "SELECT wrapped FROM master_key_version WHERE key_id = ? AND version = ?";
        let master: Vec<u8> = ring.query_row(sql, (&key, version), |r| r.get(0)).unwrap();
        let key_id = KeyId(key.clone());
        let master = wrap::unwrap_master(&root, &key_id, version, &master).unwrap();
        all.push((format!("master key {key}"), master.expose().to_vec()));
        let ctx = wrap::KekCtx { bucket, kek: KekId(id), key_id: &key_id };
        let kek = wrap::unwrap_kek(&master, &ctx, &wrapped).unwrap();
        all.push((format!("KEK {id}"), kek.expose().to_vec()));
        let mut seals = catalog.prepare("SELECT seal_id, method, cipher, wrapped FROM seal WHERE kek = ?").unwrap();
        let row = |r: &rusqlite::Row<'_>| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get::<_, Vec<u8>>(3)?));
        for (seal, method, cipher, wrapped) in seals.query_map([id as i64], row).unwrap().map(Result::unwrap) {
            let ctx = wrap::DataCtx { seal_id: SealId(seal), method, cipher, key_id: &key_id };
            let key = wrap::unwrap_data_key(&kek, &ctx, &wrapped).unwrap();
            all.push(("data key".to_owned(), key.expose().to_vec()));
        }
    }
    all
}

#[test]
fn keys_that_a_live_mount_works_with_are_in_locked_memory_alone() {
    if !is_root() {
        return;
    }
    let s = Sandbox::new();
    let dir = s.mounted("photos", "mnt");
    for i in 0..20 {
        fs::write(dir.join(format!("f{i}")), "content").unwrap();
    }
    s.ssefs(&["encryption", "put", "photos", "KMS"]).ok();
    fs::write(dir.join("g"), "content").unwrap();
    assert_eq!(fs::read_to_string(dir.join("f3")).unwrap(), "content");
    // Through another opening, so that keys are unwrapped and not made.
    s.ssefs(&["umount", dir.to_str().unwrap()]).ok();
    s.ssefs(&["mount", "photos", dir.to_str().unwrap()]).ok();
    assert_eq!(fs::read_to_string(dir.join("f3")).unwrap(), "content");
    assert_eq!(fs::read_to_string(dir.join("g")).unwrap(), "content");
    fs::write(dir.join("h"), "content").unwrap();
    s.ssefs(&["key", "rewrap", "photos"]).ok();
    let keys = keys_in_use(&s);
    assert!(keys.len() > 20, "{}", keys.len());
    let pid = pid_of(&s);
    let mut seen = 0;
    let needles: Vec<&[u8]> = keys.iter().map(|(_, key)| &key[..]).collect();
    for ((name, _), hits) in keys.iter().zip(find_all(pid, &needles)) {
        seen += usize::from(!hits.is_empty());
        assert!(hits.iter().all(|h| h.locked_and_not_dumped), "{name}: copies outside the arena: {hits:#?}");
    }
    assert!(seen >= 4, "keys in use are found where they belong: {seen}");
}

const DIR: &str = "SSEFS_TEST_MEMORY_DIR";

/// Not a test of its own: uses keys, drops them, and waits to be looked at.
#[test]
#[ignore = "run by after_keyring_and_bucket_are_closed_no_key_is_left_in_memory"]
fn child_uses_keys_and_drops_them() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let dir = Path::new(&dir);
    let config = dir.join("config");
    // On a thread of its own, whose stack goes with it, as that of a mount's event threads does.
    let work = std::thread::spawn({
        let (config, store) = (config.clone(), dir.join("store"));
        move || {
            use ssefs::bucket::{Bucket, OpenOptions};
            let keys = Keyring::open(&config, RootSource::in_config(&config)).unwrap();
            let id = keys.open_store(&store, false).unwrap();
            let keys = std::sync::Arc::new(keys);
            let name = "photos".parse().unwrap();
            let bucket = Bucket::open(&store, id, &name, &keys, &OpenOptions::default()).unwrap();
            bucket.set_rule(0, Some("AES256".parse().unwrap())).unwrap();
            bucket.rewrap().unwrap();
            show_and_wait("using");
            bucket.close().unwrap();
        }
    });
    work.join().unwrap();
    show_and_wait("dropped");
}

/// Says how far it is, and waits for a byte.
fn show_and_wait(word: &str) {
    println!("\n{word}");
    std::io::stdout().flush().unwrap();
    let mut wait = [0u8; 1];
    let _ = std::io::stdin().read(&mut wait);
}

#[test]
fn after_keyring_and_bucket_are_closed_no_key_is_left_in_memory() {
    if !is_root() {
        return;
    }
    let s = Sandbox::new();
    s.ssefs(&["bucket", "create", "photos", "--rule", "KMS"]).ok();
    let config = s.path("config");
    let keys = Keyring::open(&config, RootSource::in_config(&config)).unwrap();
    let store = keys.list_stores().unwrap()[0].0;
    let (_, bucket_key) = keys.bucket_key(&store, &"photos".parse().unwrap()).unwrap().unwrap();
    let bucket_key = bucket_key.expose().to_vec();
    let mut child = child("memory::child_uses_keys_and_drops_them")
        .env(DIR, s.dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut until = |word: &str| {
        let mut line = String::new();
        while line.trim() != word {
            line.clear();
            assert!(out.read_line(&mut line).unwrap() > 0, "the child says {word}");
        }
    };
    let (key, digits) = root_key(&config.join("root.key"));
    until("using");
    for (name, key) in [("root key", &key), ("bucket key", &bucket_key)] {
        let hits = find(child.id(), key);
        assert!(!hits.is_empty() && hits.iter().all(|h| h.locked_and_not_dumped), "{name} in use: {hits:#?}");
    }
    child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    until("dropped");
    let needles = [("root key", &key), ("its digits", &digits), ("bucket key", &bucket_key)];
    let found = needles.map(|(name, needle)| (name, find(child.id(), needle)));
    child.stdin.take();
    child.wait().unwrap();
    for (name, hits) in found {
        assert!(hits.is_empty(), "{name}: {hits:#?}");
    }
}

#[test]
fn the_command_that_loads_a_key_with_a_passphrase_wipes_both() {
    let ring = Ring::made();
    let keys = ring.open().unwrap();
    let to = crate::change_to_passphrase();
    keys.change_root(to, false, &mut ssefs::keys::root::NoSteps).unwrap();
    let needed = ssefs::keys::needed_root(&ring.config()).unwrap();
    let before = ssefs::crypto::arena::report().bytes;
    for _ in 0..50 {
        drop(ssefs::keys::root::load(&ring.config(), needed.as_ref(), &Knows).unwrap());
    }
    let after = ssefs::crypto::arena::report().bytes;
    // Other tests of this process take pages meanwhile, but fifty loads do not keep fifty of them.
    assert!(after < before + 40 * 4096, "{before} {after}: pages are given back");
}

#[test]
fn where_no_memory_may_be_locked_a_mount_says_so_and_works() {
    if !is_root() {
        return;
    }
    use std::os::unix::process::CommandExt;
    /// linux/capability.h
    const CAP_IPC_LOCK: libc::c_ulong = 14;
    let s = Sandbox::new();
    crate::cli_support::require_fuse();
    let dir = s.mkdir("mnt");
    let run = |args: &[&str]| {
        let mut command = s.command(crate::cli_support::SSEFS);
        command.args(args).stdin(Stdio::null());
        // SAFETY: both calls are safe between fork and exec.
        unsafe {
            command.pre_exec(|| {
                let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
                libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const none);
                // Root is not asked for the limit while it has this; without it in the bounding set, exec drops it.
                libc::prctl(libc::PR_CAPBSET_DROP, CAP_IPC_LOCK, 0, 0, 0);
                Ok(())
            })
        };
        crate::cli_support::Outcome::from(command.output().unwrap())
    };
    let o = run(&["mount", "photos", &dir, "--create", "--rule", "AES256", "--log", "log.txt"]);
    assert_eq!(o.code, 0, "{o:?}");
    fs::write(format!("{dir}/f"), "content").unwrap();
    assert_eq!(fs::read_to_string(format!("{dir}/f")).unwrap(), "content");
    run(&["umount", &dir]).ok();
    let log = fs::read_to_string(s.path("log.txt")).unwrap();
    assert!(log.contains("could not be locked in memory") && log.contains("ulimit -l"), "{log}");
}
