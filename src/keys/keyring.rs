//! The embedded keyring: one SQLite file that several processes (each mount, the command line) use at once. Reads are
//! served from a verified snapshot that is taken again whenever the file changed; every change is one short
//! transaction. Open it after any fork: SQLite's connections do not survive one.

use super::KeyError;
use super::db;
use super::external::Externals;
use super::files::make_private_dir;
use super::rewrap::rewrap_row;
use super::root::{self, RootSource, root_id_text};
use super::rows::{Rows, Snapshot, TABLES, Table};
use crate::crypto::secret::{MacKey, MasterKey, RootKey};
use crate::crypto::{derive, wrap};
use crate::types::{KeyId, from_hex, to_hex};
use parking_lot::{Mutex, RwLock};
use rusqlite::types::Value;
use rusqlite::{Connection, TransactionBehavior};
use std::cell::Cell;
use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{SystemTime, UNIX_EPOCH};

/// What `open_or_create` had to make, so that the first run can say where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Created {
    pub root_key: bool,
    pub keyring: bool,
}

/// A moment, by clocks that can be wrong in different ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moment {
    /// Unix seconds: what people mean, and what can jump.
    pub unix: i64,
    /// Seconds since the machine was started, sleep included: cannot jump.
    pub uptime: i64,
    /// Which start that was.
    pub boot: [u8; 16],
}

/// Tells the time. Tests put another in the system's place.
pub type Clock = Box<dyn Fn() -> Moment + Send + Sync>;

/// An open keyring with its root key. May be shared by threads.
pub struct Keyring {
    path: PathBuf,
    /// Changed only while `inner` is locked.
    held: RwLock<Arc<Held>>,
    /// The root key that another process is about to change to, if it said so.
    next: Mutex<Option<RootKey>>,
    clock: Clock,
    inner: Mutex<Inner>,
    pub(super) calls: AtomicU64,
    pub(super) externals: Externals,
}

/// The root key and what is derived from it.
struct Held {
    root: Arc<RootKey>,
    id: [u8; 8],
    tag_key: MacKey,
}

impl Held {
    fn new(root: RootKey) -> Held {
        Held { id: derive::root_id(&root), tag_key: derive::keyring_key(&root), root: Arc::new(root) }
    }

    fn rows<'a>(&'a self, path: &'a Path) -> Rows<'a> {
        Rows { key: &self.tag_key, path }
    }
}

/// What the mutex guards.
pub(super) struct Inner {
    db: Connection,
    /// Device and inode of the open file: another may be put into its place.
    file: (u64, u64),
    data_version: i64,
    pub snapshot: Snapshot,
    /// Master key versions unwrapped since the keyring last changed.
    pub unwrapped: HashMap<(KeyId, u32), Arc<MasterKey>>,
}

/// A table and its rows.
pub(super) type Dumped = (&'static Table, Vec<Vec<Value>>);

/// An open transaction that changes the keyring.
pub(super) struct Change<'a> {
    db: &'a Connection,
    rows: Rows<'a>,
    /// As of the transaction's begin.
    pub snapshot: &'a Snapshot,
    /// The keyring's clock afterwards; never behind what it was, unless somebody says so.
    pub clock: Cell<i64>,
    /// Only the clock changes, which is nothing to watch for.
    pub quiet: Cell<bool>,
    /// Keys go for good: nothing of them may stay in what SQLite keeps beside the file for going back.
    pub wipes: Cell<bool>,
}

impl Change<'_> {
    /// Inserts or replaces a row by its primary key.
    pub fn put(&self, table: &Table, values: &[Value]) -> Result<(), KeyError> {
        self.rows.put(self.db, table, values)
    }

    /// Deletes the rows of `table` whose `column` is `value`.
    pub fn delete(&self, table: &Table, column: &str, value: Value) -> Result<(), KeyError> {
        let sql = format!("DELETE FROM {} WHERE {column} = ?", table.name);
        self.db.execute(&sql, [value]).map(drop).map_err(KeyError::sql(self.rows.path))
    }

    /// Deletes the row of `table` whose primary key is these two.
    pub fn delete_both(&self, table: &Table, (a, b): (Value, Value)) -> Result<(), KeyError> {
        let sql = format!("DELETE FROM {} WHERE {}=? AND {}=?", table.name, table.columns[0], table.columns[1]);
        self.db.execute(&sql, [a, b]).map(drop).map_err(KeyError::sql(self.rows.path))
    }
}

/// The keyring's file in a configuration directory.
pub fn keyring_path(config_dir: &Path) -> PathBuf {
    config_dir.join("keyring.db")
}

/// The id of the root key that the keyring in `config_dir` needs; None when there is no keyring.
pub fn needed_root(config_dir: &Path) -> Result<Option<[u8; 8]>, KeyError> {
    let path = keyring_path(config_dir);
    if path.symlink_metadata().is_err() {
        return Ok(None);
    }
    Rows::root_id(&db::open(&path)?, &path).map(Some)
}

impl Keyring {
    /// Opens the keyring of `config_dir`; makes root key and keyring where neither is there yet. A root key is never
    /// made beside a keyring, which needs its own.
    pub fn open_or_create(config_dir: &Path, root: RootSource) -> Result<(Keyring, Created), KeyError> {
        let mut created = Created::default();
        if keyring_path(config_dir).symlink_metadata().is_err() {
            make_private_dir(config_dir).map_err(KeyError::io(config_dir))?;
            if let RootSource::File(path) = &root
                && let Some(dir) = path.parent()
            {
                make_private_dir(dir).map_err(KeyError::io(dir))?;
                created.root_key = root.create_if_absent()?;
            }
            created.keyring = Keyring::create_empty(config_dir, &root.load(None)?)?;
        }
        Ok((Keyring::open(config_dir, root)?, created))
    }

    /// Makes an empty keyring under this root key unless there is a keyring: false then.
    pub fn create_empty(config_dir: &Path, root: &RootKey) -> Result<bool, KeyError> {
        Keyring::create_filled(config_dir, root, 1, |_| Ok(()))
    }

    /// Makes a keyring of this generation under this root key, filled by `fill`, unless there is one: false then.
    pub(super) fn create_filled(
        config_dir: &Path,
        root: &RootKey,
        generation: u64,
        fill: impl FnOnce(&dyn Fn(&Table, &[Value]) -> Result<(), KeyError>) -> Result<(), KeyError>,
    ) -> Result<bool, KeyError> {
        let path = keyring_path(config_dir);
        let tag_key = derive::keyring_key(root);
        db::create(&path, |db| {
            let rows = Rows { key: &tag_key, path: &path };
            fill(&|table, values| rows.put(db, table, values))?;
            let mut filled = rows.load(db)?;
            rows.put_meta(db, &derive::root_id(root), (generation, system_clock().unix), &mut filled)
        })
    }

    /// Opens the keyring of `config_dir`, verifies all of it, and destroys the keys whose waiting period is over.
    pub fn open(config_dir: &Path, source: RootSource) -> Result<Keyring, KeyError> {
        Keyring::open_with_clock(config_dir, source, Box::new(system_clock))
    }

    /// The same by another clock.
    pub fn open_with_clock(config_dir: &Path, source: RootSource, clock: Clock) -> Result<Keyring, KeyError> {
        let path = keyring_path(config_dir);
        let needed = to_hex(&Rows::root_id(&db::open(&path)?, &path)?);
        Keyring::opened(config_dir, source.load(Some(&needed))?, &source.name(), clock)
    }

    /// Opens the keyring of `config_dir` with this root key. `from` is what messages call the place of the key.
    pub fn open_with(config_dir: &Path, root: RootKey, from: &str) -> Result<Keyring, KeyError> {
        Keyring::opened(config_dir, root, from, Box::new(system_clock))
    }

    fn opened(config_dir: &Path, root: RootKey, from: &str, clock: Clock) -> Result<Keyring, KeyError> {
        let path = keyring_path(config_dir);
        let (db, file) = open_db(&path)?;
        let needed = Rows::root_id(&db, &path)?;
        let held = Held::new(root);
        if held.id != needed {
            let (found, needed) = (root_id_text(&held.root), to_hex(&needed));
            return Err(KeyError::RootWrong { path: from.into(), found, needed, keyring: path });
        }
        root::finish(config_dir, &needed);
        let inner = Inner { db, file, data_version: -1, snapshot: Snapshot::default(), unwrapped: HashMap::new() };
        let (held, next) = (RwLock::new(Arc::new(held)), Mutex::new(None));
        let (calls, externals) = (AtomicU64::new(0), Externals::default());
        let keyring = Keyring { path, held, next, clock, inner: Mutex::new(inner), calls, externals };
        keyring.generation()?;
        // A keyring that cannot be written to still opens what it can.
        if let Err(e) = keyring.upkeep(false) {
            log::warn!("the keyring could not be looked over for keys to be destroyed: {e}");
        }
        Ok(keyring)
    }

    /// The keyring's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory that the keyring lies in.
    pub fn config_dir(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    /// The root key's id, 16 hexadecimal digits.
    pub fn root_id(&self) -> String {
        to_hex(&self.held().id)
    }

    /// The root key. Within `read` and `change` it is the one that the rows are wrapped under.
    pub(super) fn root(&self) -> Arc<RootKey> {
        Arc::clone(&self.held().root)
    }

    fn held(&self) -> Arc<Held> {
        Arc::clone(&self.held.read())
    }

    /// Grows with every change, by whichever process: a mount that sees it grow asks for its keys again.
    pub fn generation(&self) -> Result<u64, KeyError> {
        self.read(|inner| Ok(inner.snapshot.generation))
    }

    /// Runs `f` on the newest verified snapshot.
    pub(super) fn read<T>(&self, f: impl FnOnce(&mut Inner) -> Result<T, KeyError>) -> Result<T, KeyError> {
        let mut inner = self.inner.lock();
        self.refresh(&mut inner)?;
        f(&mut inner)
    }

    /// Runs `f` in one transaction; all of it becomes durable with the next generation, or nothing does.
    pub(super) fn change<T>(&self, f: impl FnOnce(&Change<'_>) -> Result<T, KeyError>) -> Result<T, KeyError> {
        let mut guard = self.inner.lock();
        self.refresh(&mut guard)?;
        let held = self.held();
        let rows = held.rows(&self.path);
        let Inner { db, snapshot, unwrapped, .. } = &mut *guard;
        let sql = |e| KeyError::sql(&self.path)(e);
        let tx = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sql)?;
        // Verified inside the transaction: a change never puts its tag over rows that were not.
        held.is_needed(&tx, &self.path)?;
        let mut before = rows.load(&tx)?;
        rows.verify_meta(&tx, &mut before)?;
        not_gone_back(snapshot, &before, &self.path)?;
        let (clock, quiet) = (Cell::new(before.clock.max(self.now())), Cell::new(false));
        let change =
            Change { db: &tx, rows: held.rows(&self.path), snapshot: &before, clock, quiet, wipes: Cell::new(false) };
        let out = f(&change)?;
        let (clock, quiet, wipes) = (change.clock.get(), change.quiet.get(), change.wipes.get());
        let mut after = rows.load(&tx)?;
        rows.put_meta(&tx, &held.id, (before.generation + u64::from(!quiet), clock), &mut after)?;
        let journal = wipes.then(|| open_journal(&self.path)).flatten();
        tx.commit().map_err(sql)?;
        if let Some(journal) = journal {
            // It has no name any more, and held the pages as they were, wrapped keys and all.
            if let Err(e) = overwrite(&journal) {
                log::warn!("{}: the journal's blocks could not be overwritten: {e}", self.path.display());
            }
        }
        *snapshot = after;
        unwrapped.clear();
        Ok(out)
    }

    /// Now, in Unix seconds, as the clock has it.
    pub(super) fn now(&self) -> i64 {
        self.moment().unix
    }

    pub(super) fn moment(&self) -> Moment {
        (self.clock)()
    }

    /// Wraps every key under `new` and tags every row with it, in one transaction. `before_commit` may still end it.
    pub(super) fn rewrap_under(
        &self,
        new: RootKey,
        before_commit: &mut dyn FnMut() -> Result<(), KeyError>,
    ) -> Result<(), KeyError> {
        let mut guard = self.inner.lock();
        self.refresh(&mut guard)?;
        let (held, new) = (self.held(), Held::new(new));
        let Inner { db, snapshot, unwrapped, .. } = &mut *guard;
        let sql = |e| KeyError::sql(&self.path)(e);
        let tx = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sql)?;
        held.is_needed(&tx, &self.path)?;
        let (old_rows, new_rows) = (held.rows(&self.path), new.rows(&self.path));
        let mut before = old_rows.load(&tx)?;
        old_rows.verify_meta(&tx, &mut before)?;
        not_gone_back(snapshot, &before, &self.path)?;
        for table in TABLES {
            for mut row in old_rows.all(&tx, table, &mut Vec::new())? {
                rewrap_row(table, &mut row, &held.root, &new.root)?;
                new_rows.put(&tx, table, &row)?;
            }
        }
        let mut after = new_rows.load(&tx)?;
        let clock = before.clock.max(self.now());
        new_rows.put_meta(&tx, &new.id, (before.generation + 1, clock), &mut after)?;
        // Nothing is committed that the new key does not open.
        for table in TABLES {
            for mut row in new_rows.all(&tx, table, &mut Vec::new())? {
                rewrap_row(table, &mut row, &new.root, &new.root)?;
            }
        }
        before_commit()?;
        let journal = open_journal(&self.path);
        tx.commit().map_err(sql)?;
        *snapshot = after;
        unwrapped.clear();
        *self.held.write() = Arc::new(new);
        if let Some(Err(e)) = journal.map(|journal| overwrite(&journal)) {
            log::warn!("the root key is changed, but what the keyring's journal held could not be overwritten: {e}");
        }
        Ok(())
    }

    /// Takes the root key that another process is about to change to, wrapped under the present one
    /// (`Steps::tell`). It is used when the keyring needs it, and not before.
    ///
    /// # Errors
    /// `Unwrap`: it does not come from somebody who has the present root key.
    pub fn accept_root(&self, next_id: &[u8; 8], sealed: &[u8]) -> Result<(), KeyError> {
        // The key told last may be in force since: this one is sealed under that.
        if let Err(e) = self.generation() {
            log::warn!("told of a next root key: {e}");
        }
        let root = self.root();
        let next = wrap::unwrap_next_root(&root, next_id, sealed)
            .map_err(|source| KeyError::Unwrap { what: "the next root key".into(), source })?;
        *self.next.lock() = Some(next);
        Ok(())
    }

    /// The generation and every row of it as they lie in the file, verified; keys in them are wrapped under the root key,
    /// which comes along.
    pub(super) fn dump(&self) -> Result<(u64, Arc<RootKey>, Vec<Dumped>), KeyError> {
        let mut inner = self.inner.lock();
        self.refresh(&mut inner)?;
        let held = self.held();
        let rows = held.rows(&self.path);
        let tx = inner.db.transaction().map_err(KeyError::sql(&self.path))?;
        held.is_needed(&tx, &self.path)?;
        let mut snapshot = rows.load(&tx)?;
        rows.verify_meta(&tx, &mut snapshot)?;
        let tables = TABLES.map(|table| Ok((table, rows.all(&tx, table, &mut Vec::new())?)));
        let tables = tables.into_iter().collect::<Result<Vec<_>, KeyError>>()?;
        Ok((snapshot.generation, Arc::clone(&held.root), tables))
    }

    fn refresh(&self, inner: &mut Inner) -> Result<(), KeyError> {
        inner.reopen(&self.path)?;
        if db::data_version(&inner.db, &self.path)? == inner.data_version {
            return Ok(());
        }
        // One read transaction: the version, the rows and meta belong together.
        let tx = inner.db.transaction().map_err(KeyError::sql(&self.path))?;
        let needed = Rows::root_id(&tx, &self.path)?;
        let mut held = self.held();
        if held.id != needed {
            held = Arc::new(Held::new(self.changed_root(&held, needed)?));
        }
        let rows = held.rows(&self.path);
        let mut snapshot = rows.load(&tx)?;
        rows.verify_meta(&tx, &mut snapshot)?;
        not_gone_back(&inner.snapshot, &snapshot, &self.path)?;
        let version = db::data_version(&tx, &self.path)?;
        tx.commit().map_err(KeyError::sql(&self.path))?;
        inner.unwrapped.clear();
        inner.snapshot = snapshot;
        inner.data_version = version;
        if held.id != self.held().id {
            log::info!("the root key was changed to {}: using that", to_hex(&held.id));
            *self.held.write() = held;
        }
        Ok(())
    }

    /// The root key that the keyring was changed to: as it was told, or from its file, which asks nobody. Not from a
    /// program: a mount must not start one that may wait for the mount.
    fn changed_root(&self, held: &Held, needed: [u8; 8]) -> Result<RootKey, KeyError> {
        let mut next = self.next.lock();
        if next.as_ref().is_some_and(|k| derive::root_id(k) == needed)
            && let Some(told) = next.take()
        {
            return Ok(told);
        }
        if let Ok(found) = root::find(self.config_dir(), Some(&needed))
            && matches!(found.source, RootSource::File(_))
            && let Ok(key) = root::load(self.config_dir(), Some(&needed), &root::Nobody)
            && derive::root_id(&key) == needed
        {
            return Ok(key);
        }
        let (held, needed) = (to_hex(&held.id), to_hex(&needed));
        Err(KeyError::RootChanged { keyring: self.path.clone(), held, needed })
    }
}

impl Held {
    /// Err when the keyring was changed to another root key since it was looked at.
    fn is_needed(&self, db: &Connection, path: &Path) -> Result<(), KeyError> {
        match Rows::root_id(db, path)? {
            needed if needed == self.id => Ok(()),
            _ => Err(KeyError::KeyringBusy(path.to_owned())),
        }
    }
}

impl Inner {
    /// Follows the path to the file that lies there now; a connection stays with a file that was replaced.
    fn reopen(&mut self, path: &Path) -> Result<(), KeyError> {
        let there = file_id(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => KeyError::KeyringMissing(path.to_owned()),
            _ => KeyError::io(path)(e),
        })?;
        if there != self.file {
            let (db, file) = open_db(path)?;
            *self = Inner {
                db,
                file,
                data_version: -1,
                unwrapped: HashMap::new(),
                snapshot: std::mem::take(&mut self.snapshot),
            };
        }
        Ok(())
    }
}

fn open_db(path: &Path) -> Result<(Connection, (u64, u64)), KeyError> {
    // Before and not after: a file that is replaced meanwhile is met again at the next look.
    let file = file_id(path).unwrap_or_default();
    Ok((db::open(path)?, file))
}

fn file_id(path: &Path) -> std::io::Result<(u64, u64)> {
    fs::metadata(path).map(|m| (m.dev(), m.ino()))
}

/// An older keyring put into the place of a newer one is never taken up by a process that has seen the newer.
fn not_gone_back(seen: &Snapshot, now: &Snapshot, path: &Path) -> Result<(), KeyError> {
    match now.generation < seen.generation {
        true => Err(KeyError::KeyringOlder { path: path.to_owned(), found: now.generation, seen: seen.generation }),
        false => Ok(()),
    }
}

/// The rollback journal of the open transaction (sqlite.org/lockingv3.html); no lock hangs on its inode.
fn open_journal(keyring: &Path) -> Option<fs::File> {
    let mut name = keyring.as_os_str().to_owned();
    name.push("-journal");
    OpenOptions::new().write(true).open(name).ok()
}

fn overwrite(mut file: &fs::File) -> std::io::Result<()> {
    let zeroes = [0u8; 4096];
    let mut left = file.metadata()?.len();
    while left > 0 {
        let n = left.min(zeroes.len() as u64);
        file.write_all(&zeroes[..n as usize])?;
        left -= n;
    }
    file.sync_all()
}

fn system_clock() -> Moment {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
    let mut up = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: up is a writable timespec; where the clock is not known it stays 0.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut up) };
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let boot = from_hex(&boot.trim_ascii().replace('-', "")).unwrap_or_default();
    Moment { unix, uptime: up.tv_sec, boot }
}
