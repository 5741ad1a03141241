//! The namespace: create, look up, link, unlink, rename. Names are written to the open transaction at once, inodes by
//! the next commit; one lock orders the changes of all directories.

use std::sync::Arc;
use std::time::Instant;

use super::inode::{Inode, State};
use super::{Bucket, BucketError, now_ns};
use crate::catalog::{Dirent, FLAG_REQUEST, InodeRow};

pub const RENAME_NOREPLACE: u32 = 1;
pub const RENAME_EXCHANGE: u32 = 2;
const NAME_BYTES_MAX: usize = 255;
/// Names of a file at most, as ext4 has it. A directory takes any number of subdirectories, as there.
const LINKS_MAX: u32 = 65_000;

/// What a new inode is to be.
pub struct NewInode<'a> {
    /// Type and permissions.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    /// Of a symlink.
    pub target: Option<&'a [u8]>,
}

/// Attributes to change; ctime follows.
#[derive(Debug, Default, Clone, Copy)]
pub struct SetAttr {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// Nanoseconds since 1970.
    pub atime: Option<i64>,
    pub mtime: Option<i64>,
}

fn kind(mode: u32) -> u8 {
    ((mode & libc::S_IFMT) >> 12) as u8
}

fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

fn check_name(name: &[u8]) -> Result<(), BucketError> {
    if name.len() > NAME_BYTES_MAX {
        return Err(BucketError::NameTooLong);
    }
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
        return Err(BucketError::Invalid("not a name"));
    }
    Ok(())
}

impl Bucket {
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Result<InodeRow, BucketError> {
        if name.len() > NAME_BYTES_MAX {
            return Err(BucketError::NameTooLong);
        }
        let asked = Instant::now();
        let found = self.catalog().lock().lookup(parent, name)?;
        self.catalog().warm_if_cold(asked);
        match found {
            Some((ino, _)) => self.attr(ino),
            None => Err(BucketError::NotFound(shown(name))),
        }
    }

    pub fn attr(&self, ino: u64) -> Result<InodeRow, BucketError> {
        if let Some(inode) = self.table.get(ino) {
            return Ok(inode.state.lock().shown());
        }
        // Not in memory, so as the catalog has it; a listing of many files need not bring them all. What changes it from
        // here on comes through the kernel, which then passes this answer over.
        let asked = Instant::now();
        let row = self.catalog().lock().inode(ino)?;
        self.catalog().warm_if_cold(asked);
        row.ok_or_else(|| BucketError::NotFound(format!("inode {ino}")))
    }

    pub fn set_attr(&self, ino: u64, set: &SetAttr) -> Result<InodeRow, BucketError> {
        let inode = self.inode(ino)?;
        self.health()?;
        let _permit = self.gate.data();
        let mut st = inode.state.lock();
        if let Some(mode) = set.mode {
            st.row.mode = st.row.mode & libc::S_IFMT | mode & 0o7777;
        }
        st.row.uid = set.uid.unwrap_or(st.row.uid);
        st.row.gid = set.gid.unwrap_or(st.row.gid);
        st.row.atime = set.atime.unwrap_or(st.row.atime);
        st.row.mtime = set.mtime.unwrap_or(st.row.mtime);
        st.row.ctime = now_ns();
        self.note_change(&inode, &mut st);
        Ok(st.shown())
    }

    /// A directory that still has a name, for a change inside it.
    fn directory(&self, ino: u64) -> Result<Arc<Inode>, BucketError> {
        let dir = self.inode(ino)?;
        let st = dir.state.lock();
        if !st.is_dir() {
            return Err(BucketError::NotDirectory);
        }
        if st.row.nlink == 0 {
            return Err(BucketError::NotFound("the directory was removed".into()));
        }
        drop(st);
        Ok(dir)
    }

    fn touch(&self, inode: &Arc<Inode>, f: impl FnOnce(&mut State)) -> InodeRow {
        let mut st = inode.state.lock();
        st.row.ctime = now_ns();
        f(&mut st);
        self.note_change(inode, &mut st);
        st.shown()
    }

    fn touch_dir(&self, dir: &Arc<Inode>, links: i32) {
        self.touch(dir, |st| {
            st.row.mtime = st.row.ctime;
            st.row.nlink = st.row.nlink.saturating_add_signed(links);
        });
    }

    /// Make a file, directory, symlink or node.
    pub fn make(&self, parent: u64, name: &[u8], new: &NewInode) -> Result<InodeRow, BucketError> {
        check_name(name)?;
        self.health()?;
        self.admit_rows(4096)?;
        let _permit = self.gate.names();
        let _ns = self.ns.lock();
        let dir = self.directory(parent)?;
        let is_dir = new.mode & libc::S_IFMT == libc::S_IFDIR;
        if self.catalog().lock().lookup(parent, name)?.is_some() {
            return Err(BucketError::Exists(shown(name)));
        }
        let ino = self.new_ino();
        let is_file = new.mode & libc::S_IFMT == libc::S_IFREG;
        let request = if is_file { self.inherited_request(new.uid, parent, ino)? } else { None };
        let now = now_ns();
        let row = InodeRow {
            ino,
            mode: new.mode,
            uid: new.uid,
            gid: new.gid,
            nlink: if is_dir { 2 } else { 1 },
            rdev: new.rdev,
            size: new.target.map_or(0, |t| t.len() as u64),
            sealed: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            parent,
            flags: if request.is_some() { FLAG_REQUEST } else { 0 },
        };
        // The inode is there before its name: whoever finds the name finds the inode.
        let inode = self.table.insert(Arc::new(Inode::new(row, true)));
        let named = (|| {
            let tx = self.catalog().lock();
            if new.target.is_none() && request.is_none() {
                return tx.insert_dirent(parent, name, ino, kind(new.mode));
            }
            tx.together(|| {
                if let Some(target) = new.target {
                    tx.put_symlink(ino, target)?;
                }
                if let Some(request) = &request {
                    let (text, tag) = self.request_row(ino, request);
                    tx.put_request(ino, &text, &tag)?;
                }
                tx.insert_dirent(parent, name, ino, kind(new.mode))
            })
        })();
        if let Err(e) = named {
            self.table.remove(ino);
            return Err(e.into());
        }
        self.note_change(&inode, &mut inode.state.lock());
        self.touch_dir(&dir, is_dir as i32);
        Ok(row)
    }

    pub fn readlink(&self, ino: u64) -> Result<Vec<u8>, BucketError> {
        self.catalog().lock().symlink(ino)?.ok_or(BucketError::Invalid("not a symlink"))
    }

    /// Entries of a directory in name order, behind `after`.
    pub fn entries(&self, dir: u64, after: &[u8], most: usize) -> Result<Vec<Dirent>, BucketError> {
        let asked = Instant::now();
        let page = self.catalog().lock().entries(dir, after, most)?;
        self.catalog().warm_if_cold(asked);
        Ok(page)
    }

    pub fn link(&self, ino: u64, parent: u64, name: &[u8]) -> Result<InodeRow, BucketError> {
        check_name(name)?;
        self.health()?;
        self.admit_rows(4096)?;
        let _permit = self.gate.names();
        let _ns = self.ns.lock();
        let (dir, inode) = (self.directory(parent)?, self.inode(ino)?);
        let mode = {
            let st = inode.state.lock();
            if st.is_dir() {
                return Err(BucketError::Denied("directories have one name".into()));
            }
            if st.row.nlink == 0 {
                return Err(BucketError::NotFound("the file was removed".into()));
            }
            if st.row.nlink >= LINKS_MAX {
                return Err(BucketError::TooManyLinks);
            }
            st.row.mode
        };
        {
            let tx = self.catalog().lock();
            if tx.lookup(parent, name)?.is_some() {
                return Err(BucketError::Exists(shown(name)));
            }
            tx.insert_dirent(parent, name, ino, kind(mode))?;
        }
        self.touch_dir(&dir, 0);
        Ok(self.touch(&inode, |st| st.row.nlink += 1))
    }

    /// A name has gone; at the last one the inode waits to be reaped.
    fn unnamed(&self, inode: &Arc<Inode>, links: u32) {
        let row = self.touch(inode, |st| st.row.nlink = st.row.nlink.saturating_sub(links));
        if row.nlink == 0 {
            if row.mode & libc::S_IFMT == libc::S_IFDIR {
                let settings = self.settings();
                if settings.dir_rules.contains_key(&inode.ino) {
                    self.forget_dir_rule(inode.ino);
                }
                if settings.dir_customers.contains_key(&inode.ino) {
                    self.forget_dir_requests(inode.ino);
                }
                self.unlocked.forget(inode.ino);
            }
            self.maybe_reap(inode);
        }
    }

    pub fn unlink(&self, parent: u64, name: &[u8]) -> Result<(), BucketError> {
        self.health()?;
        let _permit = self.gate.names();
        let _ns = self.ns.lock();
        let dir = self.directory(parent)?;
        let found = self.catalog().lock().lookup(parent, name)?;
        let (ino, k) = found.ok_or_else(|| BucketError::NotFound(shown(name)))?;
        if k == kind(libc::S_IFDIR) {
            return Err(BucketError::IsDirectory);
        }
        let inode = self.inode(ino)?;
        self.catalog().lock().delete_dirent(parent, name)?;
        self.touch_dir(&dir, 0);
        self.unnamed(&inode, 1);
        Ok(())
    }

    pub fn rmdir(&self, parent: u64, name: &[u8]) -> Result<(), BucketError> {
        self.health()?;
        let _permit = self.gate.names();
        let _ns = self.ns.lock();
        let dir = self.directory(parent)?;
        let found = self.catalog().lock().lookup(parent, name)?;
        let (ino, k) = found.ok_or_else(|| BucketError::NotFound(shown(name)))?;
        if k != kind(libc::S_IFDIR) {
            return Err(BucketError::NotDirectory);
        }
        let inode = self.inode(ino)?;
        {
            let tx = self.catalog().lock();
            if tx.has_entries(ino)? {
                return Err(BucketError::NotEmpty);
            }
            tx.delete_dirent(parent, name)?;
        }
        self.touch_dir(&dir, -1);
        self.unnamed(&inode, 2);
        Ok(())
    }

    /// rename(2) with its flags. Loops are refused here as well as by the kernel.
    pub fn rename(&self, parent: u64, name: &[u8], to: u64, to_name: &[u8], flags: u32) -> Result<(), BucketError> {
        check_name(to_name)?;
        self.health()?;
        if flags & !(RENAME_NOREPLACE | RENAME_EXCHANGE) != 0 || flags == RENAME_NOREPLACE | RENAME_EXCHANGE {
            return Err(BucketError::Invalid("rename flags"));
        }
        let _permit = self.gate.names();
        let _ns = self.ns.lock();
        let (from_dir, to_dir) = (self.directory(parent)?, self.directory(to)?);
        let (found, target) = {
            let tx = self.catalog().lock();
            (tx.lookup(parent, name)?, tx.lookup(to, to_name)?)
        };
        let (ino, k) = found.ok_or_else(|| BucketError::NotFound(shown(name)))?;
        let dir_kind = kind(libc::S_IFDIR);
        let inode = self.inode(ino)?;
        if k == dir_kind {
            self.refuse_loop(ino, to)?;
        }
        let moved = |inode: &Arc<Inode>, parent: u64| {
            self.touch(inode, |st| {
                st.row.parent = parent;
                if let Some(c) = &mut st.content {
                    c.rule_generation = 0;
                }
            });
        };
        if flags & RENAME_EXCHANGE != 0 {
            let (other, other_kind) = target.ok_or_else(|| BucketError::NotFound(shown(to_name)))?;
            if other_kind == dir_kind {
                self.refuse_loop(other, parent)?;
            }
            let other_inode = self.inode(other)?;
            {
                let tx = self.catalog().lock();
                tx.together(|| {
                    tx.replace_dirent(parent, name, other, other_kind)?;
                    tx.replace_dirent(to, to_name, ino, k)
                })?;
            }
            let shift = (k == dir_kind) as i32 - (other_kind == dir_kind) as i32;
            let shift = if parent == to { 0 } else { shift };
            self.touch_dir(&from_dir, -shift);
            self.touch_dir(&to_dir, shift);
            moved(&inode, to);
            moved(&other_inode, parent);
            self.directories_moved(k == dir_kind || other_kind == dir_kind);
            return Ok(());
        }
        let mut replaced = None;
        if let Some((old, old_kind)) = target {
            if flags & RENAME_NOREPLACE != 0 {
                return Err(BucketError::Exists(shown(to_name)));
            }
            if old == ino {
                return Ok(());
            }
            match (k == dir_kind, old_kind == dir_kind) {
                (true, false) => return Err(BucketError::NotDirectory),
                (false, true) => return Err(BucketError::IsDirectory),
                (true, true) if self.catalog().lock().has_entries(old)? => return Err(BucketError::NotEmpty),
                _ => {}
            }
            replaced = Some((self.inode(old)?, old_kind == dir_kind));
        }
        {
            let tx = self.catalog().lock();
            tx.together(|| {
                tx.delete_dirent(parent, name)?;
                tx.replace_dirent(to, to_name, ino, k)
            })?;
        }
        let is_dir = (k == dir_kind) as i32;
        let lost = replaced.as_ref().is_some_and(|r| r.1) as i32;
        if parent == to {
            self.touch_dir(&from_dir, -lost);
        } else {
            self.touch_dir(&from_dir, -is_dir);
            self.touch_dir(&to_dir, is_dir - lost);
        }
        moved(&inode, to);
        if let Some((old, was_dir)) = replaced {
            self.unnamed(&old, if was_dir { 2 } else { 1 });
        }
        self.directories_moved(k == dir_kind);
        Ok(())
    }

    /// A directory must not become its own descendant.
    fn refuse_loop(&self, dir: u64, into: u64) -> Result<(), BucketError> {
        let mut at = into;
        while at != super::ROOT && at != 0 {
            if at == dir {
                return Err(BucketError::Invalid("a directory cannot be moved below itself"));
            }
            at = self.inode(at)?.state.lock().row.parent;
        }
        Ok(())
    }

    /// The path of an inode from the bucket's root, by the name it was last created or renamed under.
    pub(super) fn path_of(&self, ino: u64) -> Result<std::path::PathBuf, BucketError> {
        use std::os::unix::ffi::OsStringExt;
        let mut names = Vec::new();
        let mut at = ino;
        while at != super::ROOT && names.len() < 4096 {
            let Ok(inode) = self.inode(at) else { break };
            let parent = inode.state.lock().row.parent;
            let name = self.catalog().lock().name_of(parent, at)?;
            let Some(name) = name else { break };
            names.push(std::ffi::OsString::from_vec(name));
            at = parent;
        }
        Ok(names.into_iter().rev().collect())
    }

    /// The inode at a path relative to the root; symlinks are not followed.
    pub(super) fn walk(&self, path: &std::path::Path) -> Result<u64, BucketError> {
        use std::os::unix::ffi::OsStrExt;
        let mut at = super::ROOT;
        for c in path.components() {
            match c {
                std::path::Component::Normal(name) => at = self.lookup(at, name.as_bytes())?.ino,
                std::path::Component::CurDir | std::path::Component::RootDir => {}
                _ => return Err(BucketError::Invalid("a path inside the bucket has no ..")),
            }
        }
        Ok(at)
    }

    // Extended attributes of the user's own.

    pub fn xattr(&self, ino: u64, name: &[u8]) -> Result<Vec<u8>, BucketError> {
        if self.attr(ino)?.flags & crate::catalog::FLAG_XATTR == 0 {
            return Err(BucketError::NoAttribute);
        }
        self.catalog().lock().xattr(ino, name)?.ok_or(BucketError::NoAttribute)
    }

    pub fn xattr_names(&self, ino: u64) -> Result<Vec<Vec<u8>>, BucketError> {
        if self.attr(ino)?.flags & crate::catalog::FLAG_XATTR == 0 {
            return Ok(Vec::new());
        }
        Ok(self.catalog().lock().xattr_names(ino)?)
    }

    /// `flags` are those of setxattr(2).
    pub fn set_xattr(&self, ino: u64, name: &[u8], value: &[u8], flags: i32) -> Result<(), BucketError> {
        self.health()?;
        self.admit_rows(value.len() as u64)?;
        let inode = self.inode(ino)?;
        let _permit = self.gate.names();
        let _ns = self.ns.lock();
        {
            let tx = self.catalog().lock();
            let there = tx.xattr(ino, name)?.is_some();
            if flags & libc::XATTR_CREATE != 0 && there {
                return Err(BucketError::Exists(shown(name)));
            }
            if flags & libc::XATTR_REPLACE != 0 && !there {
                return Err(BucketError::NoAttribute);
            }
            tx.put_xattr(ino, name, value)?;
        }
        self.touch(&inode, |st| st.row.flags |= crate::catalog::FLAG_XATTR);
        Ok(())
    }

    pub fn remove_xattr(&self, ino: u64, name: &[u8]) -> Result<(), BucketError> {
        self.health()?;
        let inode = self.inode(ino)?;
        let _permit = self.gate.names();
        let _ns = self.ns.lock();
        if !self.catalog().lock().delete_xattr(ino, name)? {
            return Err(BucketError::NoAttribute);
        }
        self.touch(&inode, |_| {});
        Ok(())
    }
}
