//! Directory entries.

use rusqlite::{OptionalExtension, params};

use super::redo::Change;
use super::{CatalogError, Reader, Tx};

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dirent {
    pub name: Vec<u8>,
    pub ino: u64,
    /// File type bits of st_mode, shifted right by 12.
    pub kind: u8,
}

impl Reader {
    /// The inode a name stands for, and its kind.
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Result<Option<(u64, u8)>, CatalogError> {
        let mut s = self.0.prepare_cached("SELECT ino, kind FROM dirent WHERE parent = ?1 AND name = ?2")?;
        Ok(s.query_row(params![parent as i64, name], |r| Ok((r.get::<_, i64>(0)? as u64, r.get::<_, i64>(1)? as u8)))
            .optional()?)
    }

    pub fn has_entries(&self, parent: u64) -> Result<bool, CatalogError> {
        let mut s = self.0.prepare_cached("SELECT 1 FROM dirent WHERE parent = ?1 LIMIT 1")?;
        Ok(s.exists([parent as i64])?)
    }

    /// Up to `most` entries of a directory behind the name `after` (empty: from the start), in name order.
    pub fn entries(&self, parent: u64, after: &[u8], most: usize) -> Result<Vec<Dirent>, CatalogError> {
        let mut s = self.0.prepare_cached(
            "SELECT name, ino, kind FROM dirent WHERE parent = ?1 AND name > ?2 ORDER BY name LIMIT ?3",
        )?;
        let rows = s.query_map(params![parent as i64, after, most as i64], |r| {
            Ok(Dirent { name: r.get(0)?, ino: r.get::<_, i64>(1)? as u64, kind: r.get::<_, i64>(2)? as u8 })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The path of a directory or of a file by its rule parent, from the root, as far as names tell.
    pub fn name_of(&self, parent: u64, ino: u64) -> Result<Option<Vec<u8>>, CatalogError> {
        let mut s = self.0.prepare_cached("SELECT name FROM dirent WHERE parent = ?1 AND ino = ?2 LIMIT 1")?;
        Ok(s.query_row(params![parent as i64, ino as i64], |r| r.get(0)).optional()?)
    }

    /// Up to `most` entries of the whole bucket behind (parent, name): for walks that page by key.
    pub fn dirents_after(&self, parent: u64, name: &[u8], most: usize) -> Result<Vec<(u64, Dirent)>, CatalogError> {
        let mut s = self.0.prepare_cached(
            "SELECT parent, name, ino, kind FROM dirent WHERE (parent, name) > (?1, ?2) ORDER BY parent, name LIMIT ?3",
        )?;
        let rows = s.query_map(params![parent as i64, name, most as i64], |r| {
            Ok((
                r.get::<_, i64>(0)? as u64,
                Dirent { name: r.get(1)?, ino: r.get::<_, i64>(2)? as u64, kind: r.get::<_, i64>(3)? as u8 },
            ))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

impl Tx<'_> {
    /// Fails with a constraint error when the name is there: callers look it up first.
    pub fn insert_dirent(&self, parent: u64, name: &[u8], ino: u64, kind: u8) -> Result<(), CatalogError> {
        self.change(Change::InsertDirent, &[&(parent as i64), &name, &(ino as i64), &kind])?;
        Ok(())
    }

    /// Point an existing name elsewhere.
    pub fn replace_dirent(&self, parent: u64, name: &[u8], ino: u64, kind: u8) -> Result<(), CatalogError> {
        self.change(Change::ReplaceDirent, &[&(parent as i64), &name, &(ino as i64), &kind])?;
        Ok(())
    }

    pub fn delete_dirent(&self, parent: u64, name: &[u8]) -> Result<(), CatalogError> {
        self.change(Change::DeleteDirent, &[&(parent as i64), &name])?;
        Ok(())
    }
}
