//! What a file system adds to a bucket: handles, set-id rules, directory listings, extended attributes, errnos. It knows
//! nothing of FUSE, so that all of it can be tested without a mount; and nothing here decides an encryption.

mod acl;
mod dirs;
mod errno;
mod handles;
mod last_error;
mod sse;
mod xattr;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

pub use dirs::OpenDir;
pub use errno::{FsError, errno};
pub use handles::{Failures, OpenFile, Since, Table};
pub use xattr::{is_lock, is_slow};

use crate::bucket::{Attr, Bucket, BucketError, Dirent, NewInode, SetAttr};
use crate::catalog::FLAG_XATTR;
use crate::keys::KeyError;

/// Who calls.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    /// The thread that calls, 0 where the kernel does not tell (another pid namespace).
    pub pid: u32,
}

impl Caller {
    /// Whether the caller may keep the set-group-ID bit of what belongs to `gid`: root, or in that group, be it only by a
    /// supplementary group. Those are not in a request; proc(5) has them. Who cannot be looked up is in no other group.
    fn in_group(self, gid: u32) -> bool {
        let listed = || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
            let groups = status.lines().find_map(|l| l.strip_prefix("Groups:")).unwrap_or_default();
            groups.split_whitespace().any(|g| g.parse() == Ok(gid))
        };
        self.uid == 0 || self.gid == gid || (self.pid != 0 && listed())
    }
}

/// What setattr was asked to change. Times in nanoseconds since 1970.
#[derive(Debug, Clone, Copy, Default)]
pub struct Change {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<i64>,
    pub mtime: Option<i64>,
    /// The open file through which the size is changed, if it is.
    pub handle: Option<u64>,
}

/// Where a write goes.
#[derive(Debug, Clone, Copy)]
pub struct WriteAs {
    /// At the end of the file, wherever that is by then.
    pub append: bool,
    /// The writer may not keep set-id bits.
    pub kill_set_id: bool,
    /// Pages of a mapping, which the kernel writes back on its own.
    pub paged: bool,
}

/// Whose fsync it is.
#[derive(Debug, Clone, Copy)]
pub enum Handle {
    File(u64),
    Dir(u64),
}

/// One bucket as a file system.
pub struct Fs {
    pub bucket: Arc<Bucket>,
    pub files: Table<OpenFile>,
    pub dirs: Table<OpenDir>,
    pub failures: Failures,
    list_sse: bool,
    last_errors: last_error::LastErrors,
    rule_edits: Mutex<()>,
    /// Grows with every file capability set: handles that have looked for one since need not look again.
    capabilities: AtomicU64,
}

/// The mode after somebody without privilege has changed the content or the owner (chown(2), write(2)): no set-user-ID, and
/// no set-group-ID where the group may execute.
pub fn without_set_id(mode: u32) -> u32 {
    if mode & libc::S_IFMT == libc::S_IFDIR {
        return mode;
    }
    let mode = mode & !libc::S_ISUID;
    if mode & libc::S_IXGRP != 0 { mode & !libc::S_ISGID } else { mode }
}

/// Group and mode of a new inode: what is made in a set-group-ID directory belongs to its group, and directories pass the
/// bit on (inode(7)).
fn inherited(parent: &Attr, mode: u32, caller: Caller) -> (u32, u32) {
    if parent.mode & libc::S_ISGID == 0 {
        return (caller.gid, mode);
    }
    let is_dir = mode & libc::S_IFMT == libc::S_IFDIR;
    (parent.gid, if is_dir { mode | libc::S_ISGID } else { mode })
}

/// The flags of renameat2(2) that a bucket can do.
fn rename_flags(flags: u32) -> Result<u32, FsError> {
    match flags {
        0 | libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE => Ok(flags),
        _ => Err(FsError::Invalid("flags of renameat2")),
    }
}

impl Fs {
    pub fn new(bucket: Arc<Bucket>, list_sse: bool) -> Fs {
        Fs {
            bucket,
            files: Table::default(),
            dirs: Table::default(),
            failures: Failures::default(),
            list_sse,
            last_errors: last_error::LastErrors::default(),
            rule_edits: Mutex::new(()),
            capabilities: AtomicU64::new(1),
        }
    }

    /// The errno of an error, after its words were kept for the caller and what concerns the operator was logged.
    pub fn refused(&self, uid: u32, e: &FsError) -> i32 {
        if e.needs_words() {
            self.last_errors.set(uid, e.words());
        }
        match e {
            FsError::Bucket(BucketError::Damaged { .. } | BucketError::Altered { .. } | BucketError::Failed(_)) => {
                log::error!("{e}");
            }
            FsError::Bucket(
                BucketError::Io { .. } | BucketError::Log(_) | BucketError::Catalog(_) | BucketError::Crypto(_),
            )
            | FsError::Bucket(BucketError::Key(KeyError::Service { .. })) => log::warn!("{e}"),
            _ => {}
        }
        e.errno()
    }

    fn capability_was_set(&self) {
        self.capabilities.fetch_add(1, Ordering::AcqRel);
    }

    /// Clear a file capability, as the kernel leaves to us on write, truncate and chown.
    fn drop_capability(&self, a: &Attr) -> Result<(), FsError> {
        if a.flags & FLAG_XATTR == 0 {
            return Ok(());
        }
        match self.bucket.remove_xattr(a.ino, xattr::CAPABILITY) {
            Ok(()) | Err(BucketError::NoAttribute) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Take set-id bits off; true when there were any.
    fn drop_set_id(&self, a: &Attr) -> Result<bool, FsError> {
        let mode = without_set_id(a.mode);
        if mode == a.mode {
            return Ok(false);
        }
        self.bucket.set_attr(a.ino, &SetAttr { mode: Some(mode), ..SetAttr::default() })?;
        Ok(true)
    }

    /// Change attributes. Whoever is not root loses set-id bits by changing the size; everybody by changing the owner.
    ///
    /// # Errors
    /// Those of the bucket.
    pub fn set_attr(&self, caller: Caller, ino: u64, c: &Change) -> Result<Attr, FsError> {
        let mut a = self.bucket.attr(ino)?;
        if let Some(size) = c.size {
            match c.handle.map(|h| self.files.get(h)) {
                Some(Ok(f)) => self.may_use(&f)?,
                _ => drop(self.bucket.access(caller.uid, ino)?),
            }
            a = self.bucket.truncate(ino, size)?;
            self.drop_capability(&a)?;
            if caller.uid != 0 && self.drop_set_id(&a)? {
                a = self.bucket.attr(ino)?;
            }
        }
        let others = c.mode.is_some() || c.atime.is_some() || c.mtime.is_some();
        let owner = c.uid.is_some() || c.gid.is_some();
        // The kernel passes on a chown(2) that names neither owner nor group as a change of nothing.
        let chown = owner || (!others && c.size.is_none());
        if !chown && !others {
            return Ok(a);
        }
        let mut mode = c.mode.map(|m| (a.mode & libc::S_IFMT) | (m & 0o7777));
        if chown && mode.is_none() && without_set_id(a.mode) != a.mode {
            mode = Some(without_set_id(a.mode));
        }
        if owner {
            self.drop_capability(&a)?;
        }
        if let Some(mode) = mode {
            self.acl_follows(&a, mode)?;
        }
        let set = SetAttr { mode, uid: c.uid, gid: c.gid, atime: c.atime, mtime: c.mtime };
        Ok(self.bucket.set_attr(ino, &set)?)
    }

    /// Make a file, directory, symlink or node. `mode` has the type bits; the umask counts where the directory has no default ACL.
    ///
    /// # Errors
    /// Those of the bucket; nothing is made then.
    #[allow(clippy::too_many_arguments)] // they are those of mknod(2) and symlink(2) together
    pub fn make(
        &self,
        caller: Caller,
        parent: u64,
        name: &[u8],
        mode: u32,
        umask: u32,
        rdev: u32,
        target: Option<&[u8]>,
    ) -> Result<Attr, FsError> {
        let p = self.bucket.attr(parent)?;
        let default = if p.flags & crate::catalog::FLAG_XATTR != 0 { self.acl(parent, acl::DEFAULT)? } else { None };
        let from_acl = acl::inherit(default.as_deref(), mode, umask);
        let (gid, mode) = inherited(&p, from_acl.mode, caller);
        let a = self.bucket.make(parent, name, &NewInode { mode, uid: caller.uid, gid, rdev, target })?;
        for (acl, value) in [(acl::ACCESS, from_acl.access), (acl::DEFAULT, from_acl.default)] {
            if let Some(value) = value
                && let Err(e) = self.bucket.set_xattr(a.ino, acl, &value, 0)
            {
                self.unmake(parent, name, mode);
                return Err(e.into());
            }
        }
        Ok(a)
    }

    /// Making has failed halfway: the kernel goes on believing that there is no such name, so there must be none.
    pub fn unmake(&self, parent: u64, name: &[u8], mode: u32) {
        let is_dir = mode & libc::S_IFMT == libc::S_IFDIR;
        let gone = if is_dir { self.bucket.rmdir(parent, name) } else { self.bucket.unlink(parent, name) };
        if let Err(e) = gone {
            log::warn!("{}: made in part, and not taken back: {e}", String::from_utf8_lossy(name));
        }
    }

    /// # Errors
    /// EPERM for a directory, EMLINK, EEXIST and those of the bucket.
    pub fn link(&self, ino: u64, parent: u64, name: &[u8]) -> Result<Attr, FsError> {
        let a = self.bucket.attr(ino)?;
        if a.mode & libc::S_IFMT == libc::S_IFDIR {
            return Err(FsError::NotPermitted("hard links to directories"));
        }
        Ok(self.bucket.link(ino, parent, name)?)
    }

    /// # Errors
    /// EINVAL for flags other than RENAME_NOREPLACE or RENAME_EXCHANGE alone.
    pub fn rename(&self, from: (u64, &[u8]), to: (u64, &[u8]), flags: u32) -> Result<(), FsError> {
        let flags = rename_flags(flags)?;
        Ok(self.bucket.rename(from.0, from.1, to.0, to.1, flags)?)
    }

    /// Open a file; `flags` are those of open(2). The answer is the handle and whether set-id bits were taken off.
    ///
    /// # Errors
    /// Those of the bucket; nothing is open then.
    pub fn open(&self, caller: Caller, ino: u64, flags: i32, direct: bool) -> Result<(u64, bool), FsError> {
        self.bucket.before_open(ino, flags & libc::O_ACCMODE != libc::O_RDONLY)?;
        self.bucket.opened(ino)?;
        let access = self.bucket.access(caller.uid, ino).inspect_err(|_| self.bucket.closed(ino))?;
        let mut killed = false;
        if flags & libc::O_TRUNC != 0 {
            let emptied = self.bucket.truncate(ino, 0).map_err(FsError::from).and_then(|a| {
                self.drop_capability(&a)?;
                if caller.uid == 0 { Ok(false) } else { self.drop_set_id(&a) }
            });
            killed = emptied.inspect_err(|_| self.bucket.closed(ino))?;
        }
        let file = OpenFile {
            ino,
            uid: caller.uid,
            access: AtomicU64::new(access),
            direct,
            since: self.failures.now(),
            caps_cleared: AtomicU64::new(0),
        };
        Ok((self.files.insert(file), killed))
    }

    pub fn close(&self, handle: u64) {
        if let Some(f) = self.files.remove(handle) {
            self.bucket.closed(f.ino);
        }
    }

    /// Whether an open file may still be used: its key may have been locked or disabled since (row 30).
    fn may_use(&self, file: &OpenFile) -> Result<(), FsError> {
        if file.access.load(Ordering::Acquire) != self.bucket.access_generation() {
            file.access.store(self.bucket.access(file.uid, file.ino)?, Ordering::Release);
        }
        Ok(())
    }

    /// The same by its handle.
    ///
    /// # Errors
    /// Those of keys, EBADF.
    pub fn usable(&self, handle: u64) -> Result<(), FsError> {
        if self.bucket.is_guarded() { self.may_use(&*self.files.get(handle)?) } else { Ok(()) }
    }

    /// Read from an open file.
    ///
    /// # Errors
    /// Those of the bucket.
    pub fn read(&self, handle: u64, ino: u64, offset: u64, len: usize) -> Result<Vec<u8>, FsError> {
        self.usable(handle)?;
        Ok(self.bucket.read(ino, offset, len)?)
    }

    /// Unlock a file, or all below a directory, for the caller; an empty name means `parent` itself.
    ///
    /// # Errors
    /// A key of another length or not the object's, an object without one.
    pub fn unlock(&self, caller: Caller, parent: u64, name: &[u8], key: &[u8]) -> Result<(), FsError> {
        let a = self.named(parent, name)?;
        self.sse_set(caller, &a, sse::Name::Unlock.text().as_bytes(), key, 0)
    }

    /// Lock again, and call `done` when nothing is left of what was unlocked; see [`Bucket::lock_object`].
    pub fn lock(&self, caller: Caller, parent: u64, name: &[u8], done: Box<dyn FnOnce(Result<(), FsError>) + Send>) {
        let what = self.named(parent, name).and_then(|a| {
            self.sse_name(&a, sse::Name::Unlock.text().as_bytes())?;
            Ok(a.ino)
        });
        match what {
            Ok(ino) => self.bucket.lock_object(caller.uid, ino, Box::new(|r| done(r.map_err(FsError::from)))),
            Err(e) => done(Err(e)),
        }
    }

    fn named(&self, parent: u64, name: &[u8]) -> Result<Attr, FsError> {
        Ok(if name.is_empty() { self.bucket.attr(parent)? } else { self.bucket.lookup(parent, name)? })
    }

    /// Write; true when set-id bits were taken off.
    ///
    /// # Errors
    /// Those of the bucket.
    pub fn write(&self, file: &OpenFile, offset: u64, data: &[u8], w: WriteAs) -> Result<bool, FsError> {
        if !w.paged {
            self.may_use(file)?;
        }
        self.bucket.write(file.ino, if w.append { None } else { Some(offset) }, data)?;
        let now = self.capabilities.load(Ordering::Acquire);
        let look = file.caps_cleared.load(Ordering::Acquire) != now;
        if !look && !w.kill_set_id {
            return Ok(false);
        }
        let a = self.bucket.attr(file.ino)?;
        if look {
            self.drop_capability(&a)?;
            file.caps_cleared.store(now, Ordering::Release);
        }
        if w.kill_set_id { self.drop_set_id(&a) } else { Ok(false) }
    }

    /// What close(2) reports: whether writing back has failed since the file was opened (row 63).
    ///
    /// # Errors
    /// That failure.
    pub fn flush(&self, handle: u64) -> Result<(), FsError> {
        self.failures.check(self.files.get(handle)?.since)?;
        match self.bucket.health() {
            // Nothing was written that could be lost.
            Ok(()) | Err(BucketError::ReadOnly) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Make everything so far durable, then call `done`, perhaps on another thread. The handle hears of every failure since
    /// its opening.
    pub fn sync(self: &Arc<Self>, handle: Handle, done: Box<dyn FnOnce(Result<(), FsError>) + Send>) {
        let since = match handle {
            Handle::File(h) => self.files.get(h).map(|f| f.since),
            Handle::Dir(h) => self.dirs.get(h).map(|d| d.since),
        };
        let since = match since {
            Ok(s) => s,
            Err(e) => return done(Err(e)),
        };
        let fs = Arc::clone(self);
        self.bucket.sync(Box::new(move |result| {
            if let Err(e) = &result {
                fs.failures.note(errno(e));
            }
            done(result.map_err(FsError::from).and_then(|()| fs.failures.check(since)));
        }));
    }

    /// fallocate(2). `mode` may be 0, KEEP_SIZE, PUNCH_HOLE with KEEP_SIZE, ZERO_RANGE with or without KEEP_SIZE.
    ///
    /// # Errors
    /// EOPNOTSUPP for other modes.
    pub fn allocate(&self, ino: u64, offset: u64, len: u64, mode: i32) -> Result<(), FsError> {
        const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
        const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
        const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
        const ZERO_KEEP: i32 = ZERO | KEEP;
        match mode {
            0 | KEEP => self.bucket.allocate(ino, offset, len, mode == KEEP)?,
            PUNCH => self.bucket.punch(ino, offset, len)?,
            ZERO | ZERO_KEEP => self.bucket.zero(ino, offset, len, mode == ZERO_KEEP)?,
            _ => return Err(FsError::Unsupported("this mode of fallocate")),
        }
        Ok(())
    }

    /// lseek(2) with SEEK_DATA or SEEK_HOLE.
    ///
    /// # Errors
    /// ENXIO behind the end of the file, EINVAL for another `whence`.
    pub fn seek(&self, ino: u64, offset: i64, whence: i32) -> Result<i64, FsError> {
        let data = match whence {
            libc::SEEK_DATA => true,
            libc::SEEK_HOLE => false,
            _ => return Err(FsError::Invalid("whence of lseek")),
        };
        let offset = u64::try_from(offset).map_err(|_| FsError::NoSuchOffset)?;
        let found = self.bucket.seek(ino, offset, data)?.ok_or(FsError::NoSuchOffset)?;
        i64::try_from(found).map_err(|_| FsError::Bucket(BucketError::TooBig))
    }

    /// # Errors
    /// ENOTDIR and those of the bucket.
    pub fn open_dir(&self, ino: u64) -> Result<u64, FsError> {
        let a = self.bucket.attr(ino)?;
        if a.mode & libc::S_IFMT != libc::S_IFDIR {
            return Err(BucketError::NotDirectory.into());
        }
        self.bucket.opened(ino)?;
        Ok(self.dirs.insert(OpenDir::new(ino, self.failures.now())))
    }

    pub fn close_dir(&self, handle: u64) {
        if let Some(d) = self.dirs.remove(handle) {
            self.bucket.closed(d.ino);
        }
    }

    /// Entries of an open directory behind `cookie`, see [`OpenDir::read`].
    ///
    /// # Errors
    /// As there.
    pub fn read_dir(
        &self,
        handle: u64,
        cookie: u64,
        take: &mut dyn FnMut(u64, &Dirent) -> Result<bool, FsError>,
    ) -> Result<(), FsError> {
        let dir = self.dirs.get(handle)?;
        // Asked anew: an open directory may be moved.
        let parent = if cookie < 2 { self.bucket.attr(dir.ino)?.parent } else { 0 };
        let parent = if parent == 0 { dir.ino } else { parent };
        dir.read(cookie, parent, &|after, most| self.bucket.entries(dir.ino, after, most), take)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r61_set_id_bits_go_where_linux_takes_them_and_stay_on_directories() {
        assert_eq!(without_set_id(libc::S_IFREG | 0o6755), libc::S_IFREG | 0o755);
        assert_eq!(without_set_id(libc::S_IFREG | 0o2745), libc::S_IFREG | 0o2745);
        assert_eq!(without_set_id(libc::S_IFDIR | 0o6755), libc::S_IFDIR | 0o6755);
    }

    #[test]
    fn r61_a_set_group_id_directory_gives_its_group_and_only_directories_the_bit() {
        let caller = Caller { uid: 7, gid: 8, pid: 0 };
        let plain = Attr { mode: libc::S_IFDIR | 0o755, gid: 9, ..Attr::default() };
        let set = Attr { mode: libc::S_IFDIR | 0o2755, ..plain };
        let (file, dir) = (libc::S_IFREG | 0o644, libc::S_IFDIR | 0o755);
        assert_eq!(inherited(&plain, dir, caller), (8, dir));
        assert_eq!(inherited(&set, file, caller), (9, file));
        assert_eq!(inherited(&set, dir, caller), (9, dir | libc::S_ISGID));
    }

    #[test]
    fn who_is_in_a_group_is_known_also_by_its_supplementary_groups() {
        let me = std::process::id();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let groups = status.lines().find_map(|l| l.strip_prefix("Groups:")).unwrap();
        let of = |pid| Caller { uid: 7, gid: 8, pid };
        for g in groups.split_whitespace().map(|g| g.parse::<u32>().unwrap()) {
            assert!(of(me).in_group(g) && !of(0).in_group(g), "{g}");
        }
        assert!(of(0).in_group(8) && !of(me).in_group(4_000_111));
        assert!(Caller { uid: 0, ..of(0) }.in_group(4_000_111), "root is in every group");
    }

    #[test]
    fn r61_renameat2_takes_one_flag_at_a_time() {
        for good in [0, libc::RENAME_NOREPLACE, libc::RENAME_EXCHANGE] {
            assert_eq!(rename_flags(good).unwrap(), good);
        }
        for bad in [libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE, libc::RENAME_WHITEOUT, 64] {
            assert_eq!(rename_flags(bad).unwrap_err().errno(), libc::EINVAL);
        }
    }
}
