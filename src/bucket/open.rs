//! Opening a bucket: its lock, what a crash left, an opening of its own; then it is put together and its threads start.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, RwLock};

use super::gate::Gate;
use super::lock::{self, BucketLock};
use super::settings::{self, Counters, Settings};
use super::{Bucket, BucketError, Control, Holder, intent, reclaim, recover, replay, space, table, tidy};
use crate::catalog::Catalog;
use crate::crypto::derive;
use crate::crypto::secret::{BucketKey, random_id};
use crate::keys::Keyring;
use crate::log::{Log, LogIdentity, SegmentFiles};
use crate::seal::Pool;
use crate::types::{BucketId, BucketName, OpenId, StoreId};

/// How a bucket is opened.
pub struct OpenOptions {
    /// Every change is refused with [`BucketError::ReadOnly`]; opening itself still repairs what a crash left.
    pub read_only: bool,
    /// What was written is durable after this long without anybody asking.
    pub commit_interval: Duration,
    /// How often the keyring is looked at for keys that may not be used any more.
    pub key_check: Duration,
    /// How long keys in use go on when the keyring cannot be read, or their external service does not answer.
    pub key_grace: Duration,
    /// How often external key services are asked whether the keys in use may go on being used.
    pub service_check: Duration,
    pub mountpoint: Option<PathBuf>,
    pub socket: Option<PathBuf>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        OpenOptions {
            read_only: false,
            commit_interval: Duration::from_secs(1),
            key_check: Duration::from_secs(5),
            key_grace: Duration::from_secs(300),
            service_check: Duration::from_secs(60),
            mountpoint: None,
            socket: None,
        }
    }
}

pub(super) fn io(path: &Path) -> impl Fn(std::io::Error) -> BucketError {
    let what = path.display().to_string();
    move |source| BucketError::Io { what: what.clone(), source }
}

/// What an open bucket is put together from.
struct Parts<'a> {
    name: &'a BucketName,
    dir: &'a Path,
    id: BucketId,
    keys: Option<Arc<Keyring>>,
    key: BucketKey,
    catalog: Catalog,
    files: SegmentFiles,
    settings: Settings,
    counters: Counters,
    openings: Vec<OpenId>,
    open_no: u32,
    open_id: OpenId,
    keks: Vec<crate::catalog::KekRow>,
    segments: BTreeMap<u32, crate::catalog::SegmentRow>,
    lock: BucketLock,
}

impl Bucket {
    /// Who has a bucket open, if anybody.
    pub fn who_has(store: &Path, name: &BucketName) -> Option<Holder> {
        lock::holder(&Self::folder(store, name))
    }

    /// Open a bucket: take its lock, verify its settings, mend what an earlier run left, begin an opening.
    pub fn open(
        store: &Path,
        store_id: StoreId,
        name: &BucketName,
        keys: &Arc<Keyring>,
        o: &OpenOptions,
    ) -> Result<Arc<Bucket>, BucketError> {
        let dir = Self::folder(store, name);
        let known = keys.bucket_key(&store_id, name)?;
        if !dir.is_dir() {
            return Err(match known {
                Some(_) => BucketError::FolderGone(name.clone()),
                None => BucketError::NoBucket { name: name.clone(), store: store.to_owned() },
            });
        }
        let Some((id, key)) = known else { return Err(BucketError::UnknownToKeyring(name.clone())) };
        let me = Holder { pid: std::process::id(), mountpoint: o.mountpoint.clone(), socket: o.socket.clone() };
        let lock = BucketLock::take(&dir, name, &me)?;

        // A clean end leaves neither.
        let crashed = std::fs::metadata(dir.join("catalog.db-wal")).is_ok_and(|m| m.len() > 0)
            || dir.join(space::RESERVE_FILE).exists();
        let catalog = Catalog::open(&dir.join("catalog.db"))?;
        let settings_key = derive::settings_key(&key);
        let log_key = derive::log_key(&key);
        let mut stored = settings::load(&catalog.lock(), Some(&settings_key), name)?;
        if stored.settings.id != id {
            return Err(BucketError::Altered {
                bucket: name.to_string(),
                what: "the bucket's id and settings",
                hint: "this is another bucket's folder; put the right one back",
            });
        }
        let files = SegmentFiles::new(dir.join("seg"));
        if replay::make_again(&catalog, &files, &log_key, name, &stored)? {
            stored = settings::load(&catalog.lock(), Some(&settings_key), name)?;
        }
        let mut counters = stored.counters;
        let rows = catalog.lock().segments()?;
        let (segments, next_segment) = recover::segments(&files, &log_key, name, counters.commit, rows)?;
        let left = match stored.openings.last() {
            Some(last) if crashed => recover::unshown_plain(&catalog, &files, &log_key, last, &segments),
            _ => Ok(Vec::new()),
        };
        let left = left.unwrap_or_else(|e| {
            log::error!("bucket {name}: what a plain write that the crash ended has left could not be looked for: {e}");
            Vec::new()
        });

        // An opening of its own: no chunk key of an earlier one is used again, whatever was restored from where.
        let open_id = OpenId(random_id()?);
        let open_no = stored.openings.len() as u32;
        let mut openings = stored.openings;
        openings.push(open_id);
        counters.next_segment = counters.next_segment.max(next_segment);
        let lists = settings::lists_tag(&settings_key, &stored.settings, &openings, &stored.keks);
        {
            let tx = catalog.lock();
            counters.next_ino = counters.next_ino.max(tx.max_ino()? + 1);
            counters.next_node = counters.next_node.max(tx.max_node()? + 1);
            counters.commit += 1;
            tx.put_opening(open_no, &open_id)?;
            for (segment, position, bytes) in left {
                tx.put_wipe(segment, position, bytes)?;
            }
            settings::store(
                &tx,
                &settings_key,
                &lists,
                (&stored.settings, &counters),
                Some((&stored.settings, &stored.counters)),
            )?;
            tx.commit()?;
        }
        catalog.sync()?;
        // Not before: intents made again above may lie among the bytes that are overwritten.
        let wipes = catalog.lock().wipes()?;
        for (segment, position, bytes) in wipes {
            files.wipe(segment, position as u64, bytes as u64)?;
            catalog.lock().delete_wipe(segment, position)?;
        }
        let orphans = catalog.lock().orphans()?;

        let (reclaim, queue) = reclaim::queue();
        let bucket = Self::assemble(
            Parts {
                name,
                dir: &dir,
                id,
                keys: Some(keys.clone()),
                key,
                catalog,
                files,
                settings: stored.settings,
                counters,
                openings,
                open_no,
                open_id,
                keks: stored.keks,
                segments,
                lock,
            },
            o,
            reclaim,
        )?;
        for ino in orphans {
            match bucket.inode(ino) {
                Ok(inode) => bucket.reap.lock().push(inode),
                Err(e) => log::warn!("orphan {ino}: {e}"),
            }
        }
        bucket.start(queue)
    }

    /// Open a bucket whose keyring is away: `ls` and `stat` work, unverified; content, rules and changes are refused
    /// (SEMANTICS 15).
    pub fn open_unverified(store: &Path, name: &BucketName, o: &OpenOptions) -> Result<Arc<Bucket>, BucketError> {
        let dir = Self::folder(store, name);
        if !dir.is_dir() {
            return Err(BucketError::NoBucket { name: name.clone(), store: store.to_owned() });
        }
        let me = Holder { pid: std::process::id(), mountpoint: o.mountpoint.clone(), socket: o.socket.clone() };
        let lock = BucketLock::take(&dir, name, &me)?;
        let catalog = Catalog::open(&dir.join("catalog.db"))?;
        let stored = settings::load(&catalog.lock(), None, name)?;
        let segments = catalog.lock().segments()?.into_iter().map(|r| (r.id, r)).collect();
        log::warn!("bucket {name} is open without its keyring: read-only, and nothing of what it shows is verified");
        let parts = Parts {
            name,
            dir: &dir,
            id: stored.settings.id,
            keys: None,
            // Stands for the real one, which is wrapped in the keyring; it opens nothing and nothing is written under it.
            key: BucketKey::random()?,
            catalog,
            files: SegmentFiles::new(dir.join("seg")),
            settings: stored.settings,
            counters: stored.counters,
            openings: stored.openings,
            open_no: 0,
            open_id: OpenId(random_id()?),
            keks: stored.keks,
            segments,
            lock,
        };
        let (reclaim, queue) = reclaim::queue();
        Self::assemble(parts, o, reclaim)?.start(queue)
    }

    /// Put an open bucket together; its threads are not running yet.
    fn assemble(p: Parts, o: &OpenOptions, reclaim: reclaim::Reclaim) -> Result<Arc<Bucket>, BucketError> {
        let Parts {
            name,
            dir,
            id,
            keys,
            key,
            catalog,
            files,
            settings,
            counters,
            openings,
            open_no,
            open_id,
            keks,
            segments,
            lock,
        } = p;
        let (settings_key, log_key) = (derive::settings_key(&key), derive::log_key(&key));
        let lists = settings::lists_tag(&settings_key, &settings, &openings, &keks);
        let identity = LogIdentity { bucket: id, open_id, commit: counters.commit, key: log_key };
        let log = Arc::new(Log::start(files, identity, counters.next_segment));
        let pool = Pool::start(std::thread::available_parallelism().map_or(2, Into::into)).map_err(io(dir))?;
        let (settings, keys_away) = (Arc::new(settings), keys.is_none());
        let chain = intent::Chain::new(counters.commit, log.end());
        Ok(Arc::new_cyclic(|me| Bucket {
            name: name.clone(),
            id,
            dir: dir.to_owned(),
            me: me.clone(),
            keys,
            place_key: derive::place_key(&key),
            key,
            settings_key,
            catalog,
            log,
            pool,
            settings: RwLock::new(settings.clone()),
            stored: Mutex::new(Some((settings, counters))),
            lists: Mutex::new(lists),
            settings_changed: AtomicBool::new(false),
            counters: Mutex::new(counters),
            openings: Arc::new(openings),
            open_no,
            open_id,
            counter: AtomicU64::new(0),
            keks: Mutex::new(keks),
            flights: super::external::Flights::default(),
            external_keys: Default::default(),
            fetched: Mutex::default(),
            sealing: RwLock::new(()),
            unwrapped: Mutex::new(HashMap::new()),
            resolved: Mutex::new(HashMap::new()),
            unlocked: super::customer::Unlocked::default(),
            access: AtomicU64::new(super::customer::FIRST_ACCESS),
            cutoff: super::cutoff::CutOff::new(o.key_check, o.key_grace),
            services: super::service_watch::ServiceWatch::new(o.service_check, o.key_grace),
            rule_generation: AtomicU64::new(1),
            table: table::Table::default(),
            gate: Gate::default(),
            ns: Mutex::new(()),
            changed: Mutex::new(Vec::new()),
            reap: Mutex::new(Vec::new()),
            epoch: AtomicU64::new(1),
            durable: AtomicU64::new(0),
            committed: AtomicU64::new(0),
            pins: super::pins::Pins::default(),
            segments: Mutex::new(segments),
            reclaim,
            space: space::Space::new(dir.to_owned()),
            tidy: tidy::Tidy::new(counters.next_segment),
            dirty_bytes: AtomicUsize::new(0),
            dirty_gate: Mutex::new(()),
            dirty_fell: Condvar::new(),
            ctl: Mutex::new(Control::default()),
            ctl_changed: Condvar::new(),
            committing: Mutex::new(()),
            chain: Mutex::new(chain),
            commit_interval: o.commit_interval,
            read_only: o.read_only || keys_away,
            failed: Mutex::new(None),
            is_failed: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            threads: Mutex::new(Vec::new()),
            lock: Mutex::new(Some(lock)),
        }))
    }

    /// Start the bucket's threads.
    fn start(self: Arc<Self>, queue: reclaim::Queue) -> Result<Arc<Bucket>, BucketError> {
        let (bucket, dir) = (&self, self.dir.clone());
        if self.keys.is_some() {
            self.note_keys();
        }
        let spawn = |what: &str, f: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(what.into()).spawn(f).map_err(io(&dir))
        };
        let (a, b) = (bucket.clone(), bucket.clone());
        let threads = vec![
            spawn("ssefs-commit", Box::new(move || a.run_committer()))?,
            spawn("ssefs-reclaim", Box::new(move || b.run_reclaim(&queue)))?,
        ];
        *bucket.threads.lock() = threads;
        bucket.start_tidying().map_err(io(&bucket.dir))?;
        bucket.start_cut_off().map_err(io(&bucket.dir))?;
        bucket.start_service_watch().map_err(io(&bucket.dir))?;
        Ok(self)
    }
}
