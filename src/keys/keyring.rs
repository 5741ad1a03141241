//! The embedded keyring: one SQLite file that several processes (each mount, the command line) use at once. Reads are
//! served from a verified snapshot that is taken again whenever the file changed; every change is one short
//! transaction. Open it after any fork: SQLite's connections do not survive one.

use super::KeyError;
use super::db;
use super::files::make_private_dir;
use super::root::{RootSource, root_id_text};
use super::rows::{Rows, Snapshot, Table};
use crate::crypto::derive;
use crate::crypto::secret::{MacKey, MasterKey, RootKey};
use crate::types::{KeyId, to_hex};
use parking_lot::Mutex;
use rusqlite::types::Value;
use rusqlite::{Connection, TransactionBehavior};
use std::collections::HashMap;
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

/// An open keyring with its root key. May be shared by threads.
pub struct Keyring {
    path: PathBuf,
    pub(super) root: RootKey,
    root_id: [u8; 8],
    tag_key: MacKey,
    inner: Mutex<Inner>,
    pub(super) calls: AtomicU64,
}

/// What the mutex guards.
pub(super) struct Inner {
    db: Connection,
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
                rows.put_meta(db, &derive::root_id(&key), 1, &mut empty)
            })?;
        }
        Ok((Keyring::open(config_dir, root)?, created))
    }

    /// Opens the keyring of `config_dir` and verifies all of it.
    pub fn open(config_dir: &Path, source: RootSource) -> Result<Keyring, KeyError> {
        let path = keyring_path(config_dir);
        let db = db::open(&path)?;
        let root_id = Rows::root_id(&db, &path)?;
        let needed = to_hex(&root_id);
        let root = source.load(Some(&needed))?;
        if derive::root_id(&root) != root_id {
            let found = root_id_text(&root);
            return Err(KeyError::RootWrong { path: source.path().to_owned(), found, needed, keyring: path });
        }
        let tag_key = derive::keyring_key(&root);
        let mut inner = Inner { db, data_version: -1, snapshot: Snapshot::default(), unwrapped: HashMap::new() };
        inner.refresh(&Rows { key: &tag_key, path: &path })?;
        let calls = AtomicU64::new(0);
        Ok(Keyring { path, root, root_id, tag_key, inner: Mutex::new(inner), calls })
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

    /// Opens anew what lies at the keyring's path: another file may have been put there by a rename, which an open one does
    /// not see. It must belong to the same root key, and be no older than what was seen last.
    ///
    /// # Errors
    /// Those of opening and verifying it; what was open stays so then.
    pub fn open_again(&self) -> Result<(), KeyError> {
        let db = db::open(&self.path)?;
        let mut new = Inner { db, data_version: -1, snapshot: Snapshot::default(), unwrapped: HashMap::new() };
        new.refresh(&self.rows())?;
        let mut inner = self.inner.lock();
        if new.snapshot.generation < inner.snapshot.generation {
            return Err(KeyError::RowsAltered { path: self.path.clone() });
        }
        *inner = new;
        Ok(())
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
        let Inner { db, snapshot, unwrapped, .. } = &mut *guard;
        let sql = |e| KeyError::sql(&self.path)(e);
        let tx = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sql)?;
        // Verified inside the transaction: a change never puts its tag over rows that were not.
        let mut before = rows.load(&tx)?;
        rows.verify_meta(&tx, &mut before)?;
        let out = f(&Change { db: &tx, rows: self.rows(), snapshot: &before })?;
        let mut after = rows.load(&tx)?;
        rows.put_meta(&tx, &self.root_id, before.generation + 1, &mut after)?;
        tx.commit().map_err(sql)?;
        *snapshot = after;
        unwrapped.clear();
        Ok(out)
    }

    fn rows(&self) -> Rows<'_> {
        Rows { key: &self.tag_key, path: &self.path }
    }
}

impl Inner {
    fn refresh(&mut self, rows: &Rows<'_>) -> Result<(), KeyError> {
        if db::data_version(&self.db, rows.path)? == self.data_version {
            return Ok(());
        }
        // One read transaction: the version, the rows and meta belong together.
        let tx = self.db.transaction().map_err(KeyError::sql(rows.path))?;
        let mut snapshot = rows.load(&tx)?;
        rows.verify_meta(&tx, &mut snapshot)?;
        let version = db::data_version(&tx, rows.path)?;
        tx.commit().map_err(KeyError::sql(rows.path))?;
        self.unwrapped.clear();
        self.snapshot = snapshot;
        self.data_version = version;
        Ok(())
    }
}

/// Now, in Unix seconds.
pub(super) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}
