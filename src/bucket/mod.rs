//! The bucket: objects sealed by its rule, a namespace over them, and commits that make both durable as one state.
//! Everything a mount does it does through here; nothing here knows FUSE. `gate.rs` has the order of all locks.

mod close;
mod commit;
mod compact;
mod convert;
mod customer;
mod cutoff;
mod encryption;
mod error;
mod external;
mod gate;
mod inode;
mod inspect;
mod inspect_data;
mod intent;
mod kek;
mod key_use;
mod leaf;
mod listing;
mod lock;
mod make;
mod map;
mod merge;
mod names;
mod open;
mod pins;
mod put;
mod read;
mod reap;
mod reclaim;
mod recover;
mod replay;
mod resize;
mod rows;
mod service_watch;
mod settings;
mod space;
mod table;
mod tidy;
mod unkeyed;
mod write;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::{Condvar, Mutex, RwLock};

pub use crate::catalog::{Dirent, InodeRow as Attr};
pub use customer::CustomerError;
pub use encryption::{BucketInfo, ObjectInfo, ObjectState};
pub use error::{BucketError, Holder};
pub(crate) use inspect::{Inspection, Seen};
pub(crate) use inspect_data::{BadChunk, Watch};
pub use kek::RewrapReport;
pub use key_use::KeyUse;
pub use listing::Listing;
pub use make::CreateOptions;
pub use names::{NewInode, RENAME_EXCHANGE, RENAME_NOREPLACE, SetAttr};
pub use open::OpenOptions;

use crate::catalog::{Catalog, KekRow, SegmentRow};
use crate::crypto::secret::{BucketKey, Kek, MacKey};
use crate::keys::Keyring;
use crate::log::Log;
use crate::rule::Rule;
use crate::seal::Pool;
use crate::types::{BucketId, BucketName, KekId, OpenId};
use gate::Gate;
use inode::{Inode, State};
use put::Resolved;
use settings::{Counters, Settings};

/// Inode number of a bucket's root directory.
pub const ROOT: u64 = 1;

/// Inodes changed since the last commit at which there is the next, however long the interval is: they stay in memory.
const INODES_CHANGED_MAX: usize = 32_768;

/// Called when a sync is durable or has failed.
pub type Done = Box<dyn FnOnce(Result<(), BucketError>) + Send>;

/// Nanoseconds since 1970.
pub fn now_ns() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos().min(i64::MAX as u128) as i64)
}

/// Room and limits, as statvfs(3) has them.
#[derive(Debug, Clone, Copy, Default)]
pub struct StatFs {
    pub blocks: u64,
    pub bfree: u64,
    pub bavail: u64,
    pub files: u64,
    pub ffree: u64,
    pub bsize: u32,
    pub namelen: u32,
}

/// Somebody who asked for a sync.
struct Waiter {
    /// The epoch that must be durable.
    epoch: u64,
    /// An intent will not do: the catalog itself must hold it.
    committed: bool,
    done: Done,
}

#[derive(Default)]
struct Control {
    waiters: Vec<Waiter>,
    wanted: bool,
    stop: bool,
}

/// An open bucket. Made by [`Bucket::open`], ended by [`Bucket::close`].
pub struct Bucket {
    name: BucketName,
    id: BucketId,
    dir: PathBuf,
    me: Weak<Bucket>,
    /// None when the bucket is open without its keyring: names and attributes only, nothing verified, nothing written.
    keys: Option<Arc<Keyring>>,
    key: BucketKey,
    settings_key: MacKey,
    place_key: MacKey,
    catalog: Catalog,
    log: Arc<Log>,
    pool: Pool,

    settings: RwLock<Arc<Settings>>,
    /// Settings and counters as the last commit wrote them.
    stored: Mutex<Option<(Arc<Settings>, Counters)>>,
    lists: Mutex<[u8; 32]>,
    settings_changed: AtomicBool,
    counters: Mutex<Counters>,
    openings: Arc<Vec<OpenId>>,
    open_no: u32,
    open_id: OpenId,
    counter: AtomicU64,
    keks: Mutex<Vec<KekRow>>,
    flights: external::Flights,
    /// Ids of the keys in use here that lie with external services.
    external_keys: external::ExternalKeys,
    /// KEKs that are being unwrapped aside (None), or were not to be had.
    fetched: Mutex<HashMap<KekId, Option<BucketError>>>,
    /// Held shared from taking a KEK until what it wraps is seen in an inode; exclusively to let go of a master key.
    sealing: RwLock<()>,
    unwrapped: Mutex<HashMap<KekId, Arc<Kek>>>,
    resolved: Mutex<HashMap<Rule, Resolved>>,
    unlocked: customer::Unlocked,
    /// Grows when somebody may have less than before.
    access: AtomicU64,
    cutoff: cutoff::CutOff,
    services: service_watch::ServiceWatch,
    rule_generation: AtomicU64,

    table: table::Table,
    gate: Gate,
    ns: Mutex<()>,
    /// Inodes changed in the open epoch.
    changed: Mutex<Vec<Arc<Inode>>>,
    reap: Mutex<Vec<Arc<Inode>>>,
    /// The epoch open for changes, and the last one that is durable.
    epoch: AtomicU64,
    durable: AtomicU64,
    /// The last epoch that is durable in the catalog.
    committed: AtomicU64,
    pins: pins::Pins,
    segments: Mutex<BTreeMap<u32, SegmentRow>>,
    reclaim: reclaim::Reclaim,
    space: space::Space,
    tidy: tidy::Tidy,
    dirty_bytes: AtomicUsize,
    dirty_gate: Mutex<()>,
    dirty_fell: Condvar,
    ctl: Mutex<Control>,
    ctl_changed: Condvar,
    /// Held by the one who commits.
    committing: Mutex<()>,
    /// What follows the last commit; the committer's.
    chain: Mutex<intent::Chain>,
    commit_interval: Duration,
    /// Asked for, or because the keyring is away: the kernel alone would let changes in after `mount -o remount,rw`.
    read_only: bool,
    failed: Mutex<Option<String>>,
    is_failed: AtomicBool,
    closing: AtomicBool,
    threads: Mutex<Vec<JoinHandle<()>>>,
    lock: Mutex<Option<lock::BucketLock>>,
}

impl Bucket {
    pub fn name(&self) -> &BucketName {
        &self.name
    }

    /// The catalog, for checks; all writing goes through the bucket.
    pub(crate) fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    fn settings(&self) -> Arc<Settings> {
        self.settings.read().clone()
    }

    fn opens(&self) -> Arc<Vec<OpenId>> {
        self.openings.clone()
    }

    /// One of the lists that settings' tag covers has changed.
    fn lists_changed(&self) {
        let tag = settings::lists_tag(&self.settings_key, &self.settings(), &self.openings, &self.keks.lock());
        *self.lists.lock() = tag;
        self.settings_changed.store(true, Ordering::Release);
    }

    fn new_ino(&self) -> u64 {
        let mut c = self.counters.lock();
        c.next_ino += 1;
        c.next_ino - 1
    }

    fn new_node(&self) -> u64 {
        let mut c = self.counters.lock();
        c.next_node += 1;
        c.next_node - 1
    }

    /// The inode in memory, or from the catalog.
    fn inode(&self, ino: u64) -> Result<Arc<Inode>, BucketError> {
        if let Some(i) = self.table.get(ino) {
            return Ok(i);
        }
        let row = self.catalog.lock().inode(ino)?;
        match row {
            // An orphan of an earlier run, or of this one, is told by its missing name.
            Some(row) => {
                let inode = Inode::new(row, false);
                inode.state.lock().orphan = row.nlink == 0;
                Ok(self.table.insert(Arc::new(inode)))
            }
            None => Err(BucketError::NotFound(format!("inode {ino}"))),
        }
    }

    /// Put an inode on the list of what the open epoch changed. The caller holds the data gate and the inode's state.
    fn note_change(&self, inode: &Arc<Inode>, st: &mut State) {
        if !st.listed {
            st.listed = true;
            let changed = {
                let mut list = self.changed.lock();
                list.push(inode.clone());
                list.len()
            };
            if changed.is_multiple_of(INODES_CHANGED_MAX) {
                self.wake_committer();
            }
        }
    }

    /// Stop acknowledging: something that was acknowledged may not be durable.
    fn fail(&self, why: &str) {
        let mut f = self.failed.lock();
        if f.is_none() {
            log::error!("bucket {}: {why}; nothing more is acknowledged until it is mounted again", self.name);
            *f = Some(why.to_owned());
        }
        self.is_failed.store(true, Ordering::Release);
        self.dirty_fell.notify_all();
        self.ctl_changed.notify_all();
    }

    fn keys(&self) -> Result<&Keyring, BucketError> {
        self.keys.as_deref().ok_or_else(|| crate::keys::KeyError::KeyringMissing(self.dir.clone()).into())
    }

    /// Err after a commit, a sync or a seal has failed, once the bucket is closing, and when it is open for reading only:
    /// before every change.
    pub fn health(&self) -> Result<(), BucketError> {
        if self.read_only {
            return Err(BucketError::ReadOnly);
        }
        if self.closing.load(Ordering::Acquire) {
            return Err(BucketError::Failed("it is being closed".into()));
        }
        self.sound()
    }

    /// Err after a commit, a sync or a seal has failed: for commits, which a bucket that is closing still makes.
    fn sound(&self) -> Result<(), BucketError> {
        if self.is_failed.load(Ordering::Acquire) || self.catalog.is_failed() {
            let why = self.failed.lock().clone();
            return Err(BucketError::Failed(why.unwrap_or_else(|| "the catalog gave up its transaction".into())));
        }
        Ok(())
    }

    pub fn statfs(&self) -> Result<StatFs, BucketError> {
        let s = space::disk(&self.dir)
            .map_err(|source| BucketError::Io { what: format!("statvfs {}", self.dir.display()), source })?;
        let used = self.counters.lock().next_ino;
        Ok(StatFs {
            blocks: s.f_blocks as u64 * s.f_frsize as u64 / 4096,
            bfree: s.f_bfree as u64 * s.f_frsize as u64 / 4096,
            bavail: s.f_bavail as u64 * s.f_frsize as u64 / 4096,
            files: u32::MAX as u64 + used,
            ffree: u32::MAX as u64,
            bsize: 4096,
            namelen: 255,
        })
    }

    fn folder(store: &Path, name: &BucketName) -> PathBuf {
        store.join("buckets").join(name.as_str())
    }
}
