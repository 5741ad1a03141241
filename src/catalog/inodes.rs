//! Inodes, symlinks, extended attributes, requests and orphans: one row each.

use rusqlite::{OptionalExtension, params};

use super::redo::Change;
use super::{CatalogError, Reader, Tx};

/// The inode has rows in `xattr`.
pub const FLAG_XATTR: u32 = 1;
/// The inode has a row in `request`.
pub const FLAG_REQUEST: u32 = 2;

/// A row of `inode`. Times in nanoseconds since 1970; `sealed` in bytes of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct InodeRow {
    pub ino: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    pub rdev: u32,
    pub size: u64,
    pub sealed: u64,
    pub atime: i64,
    pub mtime: i64,
    pub ctime: i64,
    pub btime: i64,
    pub parent: u64,
    pub flags: u32,
}

fn row(r: &rusqlite::Row) -> Result<InodeRow, rusqlite::Error> {
    Ok(InodeRow {
        ino: r.get::<_, i64>(0)? as u64,
        mode: r.get::<_, i64>(1)? as u32,
        uid: r.get::<_, i64>(2)? as u32,
        gid: r.get::<_, i64>(3)? as u32,
        nlink: r.get::<_, i64>(4)? as u32,
        rdev: r.get::<_, i64>(5)? as u32,
        size: r.get::<_, i64>(6)? as u64,
        sealed: r.get::<_, i64>(7)? as u64,
        atime: r.get(8)?,
        mtime: r.get(9)?,
        ctime: r.get(10)?,
        btime: r.get(11)?,
        parent: r.get::<_, i64>(12)? as u64,
        flags: r.get::<_, i64>(13)? as u32,
    })
}

impl Reader {
    pub fn inode(&self, ino: u64) -> Result<Option<InodeRow>, CatalogError> {
        let mut s = self.0.prepare_cached("SELECT * FROM inode WHERE ino = ?1")?;
        Ok(s.query_row([ino as i64], row).optional()?)
    }

    /// Highest inode number in use, and number and bytes of regular files.
    pub fn max_ino(&self) -> Result<u64, CatalogError> {
        Ok(self.0.query_row("SELECT coalesce(max(ino), 0) FROM inode", [], |r| r.get::<_, i64>(0))? as u64)
    }

    /// (files, bytes of content, bytes of log) over all regular files. Walks the table.
    pub fn totals(&self) -> Result<(u64, u64, u64), CatalogError> {
        Ok(self.0.query_row(
            "SELECT count(*), coalesce(sum(size),0), coalesce(sum(sealed),0) FROM inode WHERE mode & 61440 = 32768",
            [],
            |r| Ok((r.get::<_, i64>(0)? as u64, r.get::<_, i64>(1)? as u64, r.get::<_, i64>(2)? as u64)),
        )?)
    }

    /// Up to `most` inodes above `after`, in order: for walks that page by key.
    pub fn inodes_after(&self, after: u64, most: usize) -> Result<Vec<InodeRow>, CatalogError> {
        let mut s = self.0.prepare_cached("SELECT * FROM inode WHERE ino > ?1 ORDER BY ino LIMIT ?2")?;
        let rows = s.query_map(params![after as i64, most as i64], row)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The inodes with these numbers and between them, in order.
    pub fn inodes_between(&self, first: u64, last: u64) -> Result<Vec<InodeRow>, CatalogError> {
        let mut s = self.0.prepare_cached("SELECT * FROM inode WHERE ino BETWEEN ?1 AND ?2 ORDER BY ino")?;
        let rows = s.query_map([first as i64, last as i64], row)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    pub fn symlink(&self, ino: u64) -> Result<Option<Vec<u8>>, CatalogError> {
        let mut s = self.0.prepare_cached("SELECT target FROM symlink WHERE ino = ?1")?;
        Ok(s.query_row([ino as i64], |r| r.get(0)).optional()?)
    }

    pub fn xattr(&self, ino: u64, name: &[u8]) -> Result<Option<Vec<u8>>, CatalogError> {
        let mut s = self.0.prepare_cached("SELECT value FROM xattr WHERE ino = ?1 AND name = ?2")?;
        Ok(s.query_row(params![ino as i64, name], |r| r.get(0)).optional()?)
    }

    pub fn xattr_names(&self, ino: u64) -> Result<Vec<Vec<u8>>, CatalogError> {
        let mut s = self.0.prepare_cached("SELECT name FROM xattr WHERE ino = ?1 ORDER BY name")?;
        let rows = s.query_map([ino as i64], |r| r.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The request's rule (short form) and tag.
    pub fn request(&self, ino: u64) -> Result<Option<(String, Vec<u8>)>, CatalogError> {
        let mut s = self.0.prepare_cached("SELECT rule, tag FROM request WHERE ino = ?1")?;
        Ok(s.query_row([ino as i64], |r| Ok((r.get(0)?, r.get(1)?))).optional()?)
    }

    pub fn orphans(&self) -> Result<Vec<u64>, CatalogError> {
        let mut s = self.0.prepare_cached("SELECT ino FROM orphan ORDER BY ino")?;
        let rows = s.query_map([], |r| r.get::<_, i64>(0))?;
        Ok(rows.map(|r| r.map(|i| i as u64)).collect::<Result<_, _>>()?)
    }
}

impl Tx<'_> {
    /// Insert or replace.
    pub fn put_inode(&self, i: &InodeRow) -> Result<(), CatalogError> {
        let (ino, size, sealed, parent) = (i.ino as i64, i.size as i64, i.sealed as i64, i.parent as i64);
        self.change(
            Change::PutInode,
            &[
                &ino, &i.mode, &i.uid, &i.gid, &i.nlink, &i.rdev, &size, &sealed, &i.atime, &i.mtime, &i.ctime,
                &i.btime, &parent, &i.flags,
            ],
        )?;
        Ok(())
    }

    /// Remove an inode and what hangs on it alone: symlink, xattrs, request, orphan mark. Its seal and nodes are the caller's.
    pub fn delete_inode(&self, i: &InodeRow) -> Result<(), CatalogError> {
        let ino = i.ino as i64;
        self.change(Change::DeleteInode, &[&ino])?;
        if i.mode & libc::S_IFMT == libc::S_IFLNK {
            self.change(Change::DeleteSymlink, &[&ino])?;
        }
        if i.flags & FLAG_XATTR != 0 {
            self.change(Change::DeleteXattrs, &[&ino])?;
        }
        if i.flags & FLAG_REQUEST != 0 {
            self.change(Change::DeleteRequest, &[&ino])?;
        }
        Ok(())
    }

    pub fn put_symlink(&self, ino: u64, target: &[u8]) -> Result<(), CatalogError> {
        self.change(Change::PutSymlink, &[&(ino as i64), &target])?;
        Ok(())
    }

    pub fn put_xattr(&self, ino: u64, name: &[u8], value: &[u8]) -> Result<(), CatalogError> {
        self.change(Change::PutXattr, &[&(ino as i64), &name, &value])?;
        Ok(())
    }

    /// True when there was one.
    pub fn delete_xattr(&self, ino: u64, name: &[u8]) -> Result<bool, CatalogError> {
        Ok(self.change(Change::DeleteXattr, &[&(ino as i64), &name])? > 0)
    }

    pub fn put_request(&self, ino: u64, rule: &str, tag: &[u8]) -> Result<(), CatalogError> {
        self.change(Change::PutRequest, &[&(ino as i64), &rule, &tag])?;
        Ok(())
    }

    pub fn delete_request(&self, ino: u64) -> Result<(), CatalogError> {
        self.change(Change::DeleteRequest, &[&(ino as i64)])?;
        Ok(())
    }

    pub fn put_orphan(&self, ino: u64) -> Result<(), CatalogError> {
        self.change(Change::PutOrphan, &[&(ino as i64)])?;
        Ok(())
    }

    pub fn delete_orphan(&self, ino: u64) -> Result<(), CatalogError> {
        self.change(Change::DeleteOrphan, &[&(ino as i64)])?;
        Ok(())
    }
}
