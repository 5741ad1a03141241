//! The embedded keyring: one SQLite file that several processes (each mount, the command line) use at once. Reads are
//! served from a verified snapshot that is taken again whenever the file changed; every change is one short
//! transaction. Open it after any fork: SQLite's connections do not survive one.

use super::KeyError;
use super::db;
use super::external::Externals;
use super::files::make_private_dir;
use super::root::{RootSource, root_id_text};
use super::rows::{Rows, Snapshot, Table};
use crate::crypto::derive;
use crate::crypto::secret::{MacKey, MasterKey, RootKey};
use crate::types::{KeyId, from_hex, to_hex};
use parking_lot::Mutex;
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
    pub(super) root: RootKey,
    root_id: [u8; 8],
    pub(super) tag_key: MacKey,
    clock: Clock,
    inner: Mutex<Inner>,
    pub(super) calls: AtomicU64,
    pub(super) externals: Externals,
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

impl Keyring {
    /// Opens the keyring of `config_dir`; makes root key and keyring where neither is there yet. A root key is never
    /// made beside a keyring, which needs its own.
    pub fn open_or_create(config_dir: &Path, root: RootSource) -> Result<(Keyring, Created), KeyError> {
        let path = keyring_path(config_dir);
        let mut created = Created::default();
        if path.symlink_metadata().is_err() {
            make_private_dir(config_dir).map_err(KeyError::io(config_dir))?;
            if let Some(dir) = root.path().parent() {
                make_private_dir(dir).map_err(KeyError::io(dir))?;
            }
            created.root_key = root.create_if_absent()?;
            let key = root.load(None)?;
            let tag_key = derive::keyring_key(&key);
            created.keyring = db::create(&path, |db| {
                let rows = Rows { key: &tag_key, path: &path };
                let mut empty = rows.load(db)?;
                rows.put_meta(db, &derive::root_id(&key), (1, system_clock().unix), &mut empty)
            })?;
        }
        Ok((Keyring::open(config_dir, root)?, created))
    }

    /// Opens the keyring of `config_dir`, verifies all of it, and destroys the keys whose waiting period is over.
    pub fn open(config_dir: &Path, source: RootSource) -> Result<Keyring, KeyError> {
        Keyring::open_with_clock(config_dir, source, Box::new(system_clock))
    }

    /// The same by another clock.
    pub fn open_with_clock(config_dir: &Path, source: RootSource, clock: Clock) -> Result<Keyring, KeyError> {
        let path = keyring_path(config_dir);
        let (db, file) = open_db(&path)?;
        let root_id = Rows::root_id(&db, &path)?;
        let needed = to_hex(&root_id);
        let root = source.load(Some(&needed))?;
        if derive::root_id(&root) != root_id {
            let found = root_id_text(&root);
            return Err(KeyError::RootWrong { path: source.path().to_owned(), found, needed, keyring: path });
        }
        let tag_key = derive::keyring_key(&root);
        let mut inner = Inner { db, file, data_version: -1, snapshot: Snapshot::default(), unwrapped: HashMap::new() };
        inner.refresh(&Rows { key: &tag_key, path: &path })?;
        let calls = AtomicU64::new(0);
        let externals = Externals::default();
        let keyring = Keyring { path, root, root_id, tag_key, clock, inner: Mutex::new(inner), calls, externals };
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

    /// The root key's id, 16 hexadecimal digits.
    pub fn root_id(&self) -> String {
        to_hex(&self.root_id)
    }

    /// Grows with every change, by whichever process: a mount that sees it grow asks for its keys again.
    pub fn generation(&self) -> Result<u64, KeyError> {
        self.read(|inner| Ok(inner.snapshot.generation))
    }

    /// Runs `f` on the newest verified snapshot.
    pub(super) fn read<T>(&self, f: impl FnOnce(&mut Inner) -> Result<T, KeyError>) -> Result<T, KeyError> {
        let mut inner = self.inner.lock();
        inner.refresh(&self.rows())?;
        f(&mut inner)
    }

    /// Runs `f` in one transaction; all of it becomes durable with the next generation, or nothing does.
    pub(super) fn change<T>(&self, f: impl FnOnce(&Change<'_>) -> Result<T, KeyError>) -> Result<T, KeyError> {
        let mut guard = self.inner.lock();
        let rows = self.rows();
        guard.reopen(&rows)?;
        let Inner { db, snapshot, unwrapped, .. } = &mut *guard;
        let sql = |e| KeyError::sql(&self.path)(e);
        let tx = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sql)?;
        // Verified inside the transaction: a change never puts its tag over rows that were not.
        let mut before = rows.load(&tx)?;
        rows.verify_meta(&tx, &mut before)?;
        not_gone_back(snapshot, &before, &self.path)?;
        let (clock, quiet) = (Cell::new(before.clock.max(self.now())), Cell::new(false));
        let change = Change { db: &tx, rows: self.rows(), snapshot: &before, clock, quiet, wipes: Cell::new(false) };
        let out = f(&change)?;
        let (clock, quiet, wipes) = (change.clock.get(), change.quiet.get(), change.wipes.get());
        let mut after = rows.load(&tx)?;
        rows.put_meta(&tx, &self.root_id, (before.generation + u64::from(!quiet), clock), &mut after)?;
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

    fn rows(&self) -> Rows<'_> {
        Rows { key: &self.tag_key, path: &self.path }
    }
}

impl Inner {
    /// Follows the path to the file that lies there now; a connection stays with a file that was replaced.
    fn reopen(&mut self, rows: &Rows<'_>) -> Result<(), KeyError> {
        let there = file_id(rows.path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => KeyError::KeyringMissing(rows.path.to_owned()),
            _ => KeyError::io(rows.path)(e),
        })?;
        if there != self.file {
            let (db, file) = open_db(rows.path)?;
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

    fn refresh(&mut self, rows: &Rows<'_>) -> Result<(), KeyError> {
        self.reopen(rows)?;
        if db::data_version(&self.db, rows.path)? == self.data_version {
            return Ok(());
        }
        // One read transaction: the version, the rows and meta belong together.
        let tx = self.db.transaction().map_err(KeyError::sql(rows.path))?;
        let mut snapshot = rows.load(&tx)?;
        rows.verify_meta(&tx, &mut snapshot)?;
        not_gone_back(&self.snapshot, &snapshot, rows.path)?;
        let version = db::data_version(&tx, rows.path)?;
        tx.commit().map_err(KeyError::sql(rows.path))?;
        self.unwrapped.clear();
        self.snapshot = snapshot;
        self.data_version = version;
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
