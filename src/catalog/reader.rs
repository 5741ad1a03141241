//! Reading, by whoever has a connection: the epoch's writer sees its own open transaction, a snapshot sees one commit.
//! The methods lie with their tables; here are those that look at the catalog as a whole.

use std::ops::Deref;
use std::path::Path;

use rusqlite::{Connection, OpenFlags, params};

use super::{CatalogError, Tx};

/// Page cache of a snapshot's connection, KiB.
const CACHE_KIB: i64 = 8 * 1024;

/// Reads rows; changes nothing.
pub struct Reader(pub(super) Connection);

/// The catalog as one commit left it, on a connection of its own.
pub struct Snapshot(Reader);

impl Deref for Tx<'_> {
    type Target = Reader;
    fn deref(&self) -> &Reader {
        &self.conn
    }
}

impl Deref for Snapshot {
    type Target = Reader;
    fn deref(&self) -> &Reader {
        &self.0
    }
}

impl Snapshot {
    pub(super) fn open(path: &Path) -> Result<Snapshot, CatalogError> {
        let conn =
            Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        conn.busy_timeout(std::time::Duration::from_secs(10))?;
        conn.pragma_update(None, "trusted_schema", false)?;
        conn.pragma_update(None, "temp_store", "MEMORY")?;
        conn.pragma_update(None, "cache_size", -CACHE_KIB)?;
        conn.execute_batch("BEGIN")?;
        // A transaction sees nothing until its first read.
        conn.query_row("SELECT count(*) FROM setting", [], |_| Ok(()))?;
        Ok(Snapshot(Reader(conn)))
    }
}

impl Reader {
    /// Number of inodes.
    pub fn inode_count(&self) -> Result<u64, CatalogError> {
        Ok(self.0.query_row("SELECT count(*) FROM inode", [], |r| r.get::<_, i64>(0))? as u64)
    }

    /// True when the inode has rows in `xattr`.
    pub fn has_xattrs(&self, ino: u64) -> Result<bool, CatalogError> {
        let mut s = self.0.prepare_cached("SELECT 1 FROM xattr WHERE ino = ?1 LIMIT 1")?;
        Ok(s.exists([ino as i64])?)
    }

    /// True when the inode is one of the unlinked ones still to be freed.
    pub fn is_orphan(&self, ino: u64) -> Result<bool, CatalogError> {
        let mut s = self.0.prepare_cached("SELECT 1 FROM orphan WHERE ino = ?1")?;
        Ok(s.exists([ino as i64])?)
    }

    /// Up to `most` ids of nodes above `after`, in order.
    pub fn node_ids_after(&self, after: u64, most: usize) -> Result<Vec<u64>, CatalogError> {
        let mut s = self.0.prepare_cached("SELECT id FROM node WHERE id > ?1 ORDER BY id LIMIT ?2")?;
        let rows = s.query_map(params![after as i64, most as i64], |r| r.get::<_, i64>(0))?;
        Ok(rows.map(|r| r.map(|i| i as u64)).collect::<Result<_, _>>()?)
    }

    /// Rows that hang on an inode that is not there: (table, ino), at most `most` of each table.
    pub fn strays(&self, most: usize) -> Result<Vec<(&'static str, u64)>, CatalogError> {
        let mut out = Vec::new();
        for table in ["seal", "symlink", "xattr", "request", "orphan", "dir_rule"] {
            let sql = format!(
                "SELECT DISTINCT t.ino FROM {table} t LEFT JOIN inode i ON i.ino = t.ino WHERE i.ino IS NULL LIMIT ?1"
            );
            let mut s = self.0.prepare(&sql)?;
            let rows = s.query_map([most as i64], |r| r.get::<_, i64>(0))?;
            for ino in rows {
                out.push((table, ino? as u64));
            }
        }
        Ok(out)
    }

    /// SQLite's own check of its file, as lines; empty when it is sound.
    pub fn integrity(&self) -> Result<Vec<String>, CatalogError> {
        let mut s = self.0.prepare("PRAGMA integrity_check(100)")?;
        let rows = s.query_map([], |r| r.get::<_, String>(0))?;
        let mut out = Vec::new();
        for r in rows {
            let line = r?;
            if line != "ok" {
                out.push(line);
            }
        }
        Ok(out)
    }
}
