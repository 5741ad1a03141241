//! The thin adapter between the kernel (crate fuser) and [`Fs`]: it takes requests apart, answers them, and keeps the
//! kernel's caches right. Nothing is decided here that a test without a mount would want to see.

mod aside;
mod convert;
pub mod ioctl;
mod mount;
pub mod mount_table;

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    IoctlFlags, KernelConfig, LockOwner, Notifier, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

pub use mount::{MountOptions, Mounted, Unmounter, mount};

use crate::bucket::{Attr, BucketError, Listing};
use crate::fs::{Caller, Change, Fs, FsError, Handle, WriteAs, is_lock, is_slow};
use zeroize::Zeroizing;

use aside::{WAITING_MAX, guard};
use convert::{file_attr, file_type, nanoseconds};

/// Names and attributes change only through this mount, so the kernel may keep them.
const KEEP: Duration = Duration::from_secs(3600);
const NEVER_REUSED: Generation = Generation(0);
/// Largest write request, in bytes.
const WRITE_BYTES_MAX: u32 = 1 << 20;
/// Read-ahead asked of the kernel, in bytes; it gives what its own limit allows.
const READAHEAD_BYTES: u32 = 4 << 20;
/// Most one copy_file_range request copies, in bytes: callers go on where it stopped.
const COPY_BYTES_MAX: u64 = 256 << 20;
/// Copies up to this many bytes are made where they arrive.
const COPY_INLINE_BYTES_MAX: u64 = 1 << 20;
/// Wanted where the kernel has it. Never FUSE_WRITEBACK_CACHE: it would own size and times.
const WANTED: [InitFlags; 11] = [
    // The kernel judges by ACLs; inheriting them, and the umask with that, is ours (fs/acl.rs).
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_DONT_MASK,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
    InitFlags::FUSE_EXPLICIT_INVAL_DATA,
];

#[derive(Clone)]
struct Adapter {
    fs: Arc<Fs>,
    notifier: Arc<OnceLock<Notifier>>,
    slow: Arc<AtomicUsize>,
    direct_rdwr: bool,
}

fn caller(req: &Request) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), pid: req.pid() }
}

/// How a file is to be opened: the answer to the kernel, and whether it then keeps no pages.
fn open_flags(flags: i32, direct_rdwr: bool) -> (FopenFlags, bool) {
    let direct = flags & libc::O_DIRECT != 0;
    // The kernel need not order direct writes of one file, since we do.
    let direct_io = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
    match OpenFlags(flags).acc_mode() {
        // What is only written is not worth keeping: write-behind is ours.
        OpenAccMode::O_WRONLY => (direct_io, true),
        // NOFLUSH: closing what has written nothing costs no round trip. That it can report nothing either is in ssefs(5).
        OpenAccMode::O_RDONLY if direct => (FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH, true),
        OpenAccMode::O_RDONLY => (FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH, false),
        OpenAccMode::O_RDWR if direct || direct_rdwr => (direct_io, true),
        OpenAccMode::O_RDWR => (FopenFlags::FOPEN_KEEP_CACHE, false),
    }
}

impl Adapter {
    fn errno(&self, uid: u32, e: &FsError) -> Errno {
        Errno::from_i32(self.fs.refused(uid, e))
    }

    /// The kernel shows set-id bits from its cache until told. Only attributes are dropped, which waits for no page.
    fn mode_changed(&self, ino: u64) {
        if let Some(Err(e)) = self.notifier.get().map(|n| n.inval_inode(INodeNo(ino), -1, 0)) {
            log::debug!("inode {ino}: the kernel did not forget its attributes: {e}");
        }
    }

    /// Answer with an entry, which the kernel holds from then on.
    fn enter(&self, uid: u32, made: Result<Attr, FsError>, reply: ReplyEntry) {
        match made {
            Ok(a) => {
                self.fs.bucket.remember(a.ino, 1);
                reply.entry(&KEEP, &file_attr(&a), NEVER_REUSED);
            }
            Err(e) => reply.error(self.errno(uid, &e)),
        }
    }

    fn empty(&self, uid: u32, done: Result<(), FsError>, reply: ReplyEmpty) {
        match done {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(self.errno(uid, &e)),
        }
    }

    fn sync(&self, uid: u32, handle: Handle, reply: ReplyEmpty) {
        let fs = Arc::clone(&self.fs);
        let done = move |result: Result<(), FsError>| match result {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(Errno::from_i32(fs.refused(uid, &e))),
        };
        self.fs.sync(handle, Box::new(done));
    }

    #[allow(clippy::too_many_arguments)] // they are those of FUSE_WRITE
    fn write_now(
        &self,
        uid: u32,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        reply: ReplyWrite,
    ) {
        // Pages of a mapping: handle and flags are the kernel's guess, the place is right.
        let paged = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let len = data.len() as u32;
        let written = self.fs.files.get(fh.0).and_then(|f| {
            let w = WriteAs {
                // Where the kernel keeps pages it has put the bytes at their place already, at the end as it knows it.
                append: f.direct && !paged && flags.0 & libc::O_APPEND != 0,
                kill_set_id: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
                paged,
            };
            Ok((self.fs.write(&f, offset, data, w)?, f))
        });
        match written {
            Ok((killed, file)) => {
                if killed {
                    self.mode_changed(ino.0);
                }
                // The kernel syncs for O_SYNC and O_DSYNC itself, except where it keeps no pages.
                if file.direct && !paged && flags.0 & libc::O_DSYNC != 0 {
                    let fs = Arc::clone(&self.fs);
                    let done = move |result: Result<(), FsError>| match result {
                        Ok(()) => reply.written(len),
                        Err(e) => reply.error(Errno::from_i32(fs.refused(uid, &e))),
                    };
                    return self.fs.sync(Handle::File(fh.0), Box::new(done));
                }
                reply.written(len);
            }
            Err(e) => {
                let errno = self.errno(uid, &e);
                if paged {
                    // The kernel forgets the pages and tells of it once, and nobody waited for this answer.
                    self.fs.failures.note(errno.into());
                }
                reply.error(errno);
            }
        }
    }

    /// Lock something; `answer` is called when it is done, with what went wrong.
    fn lock(&self, caller: Caller, ino: u64, name: &[u8], answer: impl FnOnce(Option<Errno>) + Send + 'static) {
        let fs = Arc::clone(&self.fs);
        let done = move |r: Result<(), FsError>| {
            answer(r.err().map(|e| Errno::from_i32(fs.refused(caller.uid, &e))));
        };
        self.fs.lock(caller, ino, name, Box::new(done));
    }

    fn bytes(&self, uid: u32, value: Result<Vec<u8>, FsError>, size: u32, reply: ReplyXattr) {
        match value {
            Ok(v) if size == 0 => reply.size(v.len() as u32),
            Ok(v) if v.len() > size as usize => reply.error(Errno::ERANGE),
            Ok(v) => reply.data(&v),
            Err(e) => reply.error(self.errno(uid, &e)),
        }
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for flag in WANTED {
            if config.add_capabilities(flag).is_err() {
                log::debug!("the kernel does not offer {flag:?}");
            }
        }
        // Each of these refuses by naming the nearest value that it takes.
        if let Err(nearest) = config.set_max_write(WRITE_BYTES_MAX) {
            let _ = config.set_max_write(nearest);
        }
        if let Err(nearest) = config.set_max_readahead(READAHEAD_BYTES) {
            let _ = config.set_max_readahead(nearest);
        }
        let _ = config.set_max_background(64);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        guard("lookup", || match self.fs.bucket.lookup(parent.0, name.as_bytes()) {
            // Inode 0 is an entry that says there is none, and that the kernel may keep.
            Err(BucketError::NotFound(_)) => {
                reply.entry_with_ttls(&Duration::ZERO, &KEEP, &file_attr(&Attr::default()), NEVER_REUSED);
            }
            found => self.enter(req.uid(), found.map_err(FsError::from), reply),
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        guard("forget", || self.fs.bucket.forget(ino.0, nlookup));
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        guard("getattr", || match self.fs.bucket.attr(ino.0) {
            Ok(a) => reply.attr(&KEEP, &file_attr(&a)),
            Err(e) => reply.error(self.errno(req.uid(), &e.into())),
        });
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (caller, atime, mtime) = (caller(req), atime.map(nanoseconds), mtime.map(nanoseconds));
        let change = Change { mode, uid, gid, size, atime, mtime, handle: fh.map(|h| h.0) };
        let waits = size.is_some() && self.fs.bucket.may_wait(ino.0, true);
        self.perhaps_waiting("setattr", waits, move |me| match me.fs.set_attr(caller, ino.0, &change) {
            Ok(a) => reply.attr(&KEEP, &file_attr(&a)),
            Err(e) => reply.error(me.errno(caller.uid, &e)),
        });
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        guard("readlink", || match self.fs.bucket.readlink(ino.0) {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(self.errno(req.uid(), &e.into())),
        });
    }

    fn mknod(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: ReplyEntry) {
        guard("mknod", || {
            let mode = if mode & libc::S_IFMT == 0 { mode | libc::S_IFREG } else { mode };
            self.enter(req.uid(), self.fs.make(caller(req), parent.0, name.as_bytes(), mode, umask, rdev, None), reply);
        });
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        guard("mkdir", || {
            let mode = mode & 0o7777 | libc::S_IFDIR;
            self.enter(req.uid(), self.fs.make(caller(req), parent.0, name.as_bytes(), mode, umask, 0, None), reply);
        });
    }

    fn symlink(&self, req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry) {
        guard("symlink", || {
            let target = Some(target.as_os_str().as_bytes());
            let mode = libc::S_IFLNK | 0o777;
            self.enter(req.uid(), self.fs.make(caller(req), parent.0, link_name.as_bytes(), mode, 0, 0, target), reply);
        });
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        guard("unlink", || {
            self.empty(req.uid(), self.fs.bucket.unlink(parent.0, name.as_bytes()).map_err(FsError::from), reply);
        });
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        guard("rmdir", || {
            self.empty(req.uid(), self.fs.bucket.rmdir(parent.0, name.as_bytes()).map_err(FsError::from), reply);
        });
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        guard("rename", || {
            let (from, to) = ((parent.0, name.as_bytes()), (newparent.0, newname.as_bytes()));
            self.empty(req.uid(), self.fs.rename(from, to, flags.bits()), reply);
        });
    }

    fn link(&self, req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        guard("link", || self.enter(req.uid(), self.fs.link(ino.0, newparent.0, newname.as_bytes()), reply));
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (caller, name) = (caller(req), name.to_owned());
        let (answer, direct) = open_flags(flags, self.direct_rdwr);
        let mode = mode & 0o7777 | libc::S_IFREG;
        self.perhaps_waiting("create", self.fs.bucket.making_may_wait(), move |me| {
            let opened = me.fs.make(caller, parent.0, name.as_bytes(), mode, umask, 0, None).and_then(|a| {
                // It is new, so there is nothing to empty.
                let opened = me.fs.open(caller, a.ino, flags & !libc::O_TRUNC, direct);
                let (handle, _) = opened.inspect_err(|_| me.fs.unmake(parent.0, name.as_bytes(), mode))?;
                Ok((a, handle))
            });
            match opened {
                Ok((a, handle)) => {
                    me.fs.bucket.remember(a.ino, 1);
                    reply.created(&KEEP, &file_attr(&a), NEVER_REUSED, FileHandle(handle), answer);
                }
                Err(e) => reply.error(me.errno(caller.uid, &e)),
            }
        });
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let caller = caller(req);
        let (answer, direct) = open_flags(flags.0, self.direct_rdwr);
        let waits = self.fs.bucket.may_wait(ino.0, flags.acc_mode() != OpenAccMode::O_RDONLY);
        self.perhaps_waiting("open", waits, move |me| match me.fs.open(caller, ino.0, flags.0, direct) {
            Ok((handle, killed)) => {
                if killed {
                    me.mode_changed(ino.0);
                }
                reply.opened(FileHandle(handle), answer);
            }
            Err(e) => reply.error(me.errno(caller.uid, &e)),
        });
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let uid = req.uid();
        self.perhaps_waiting("read", self.fs.bucket.may_wait(ino.0, false), move |me| {
            match me.fs.read(fh.0, ino.0, offset, size as usize) {
                Ok(data) => reply.data(&data),
                Err(e) => reply.error(me.errno(uid, &e)),
            }
        });
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let uid = req.uid();
        if self.fs.bucket.may_wait(ino.0, true) {
            let (me, data) = (self.clone(), data.to_vec());
            return self.aside("write", WAITING_MAX, move || {
                me.write_now(uid, ino, fh, offset, &data, write_flags, flags, reply)
            });
        }
        guard("write", || self.write_now(uid, ino, fh, offset, data, write_flags, flags, reply));
    }

    fn flush(&self, req: &Request, _ino: INodeNo, fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        guard("flush", || self.empty(req.uid(), self.fs.flush(fh.0), reply));
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        guard("release", || {
            self.fs.close(fh.0);
            reply.ok();
        });
    }

    fn fsync(&self, req: &Request, _ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        guard("fsync", || self.sync(req.uid(), Handle::File(fh.0), reply));
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        guard("opendir", || match self.fs.open_dir(ino.0) {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(e) => reply.error(self.errno(req.uid(), &e)),
        });
    }

    fn readdir(&self, req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        guard("readdir", || {
            let read = self.fs.read_dir(fh.0, offset, &mut |cookie, d| {
                let kind = file_type(u32::from(d.kind) << 12);
                Ok(!reply.add(INodeNo(d.ino), cookie, kind, OsStr::from_bytes(&d.name)))
            });
            match read {
                Ok(()) => reply.ok(),
                Err(e) => reply.error(self.errno(req.uid(), &e)),
            }
        });
    }

    fn readdirplus(&self, req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        guard("readdirplus", || {
            let (bucket, mut listing) = (&self.fs.bucket, Listing::default());
            let read = self.fs.read_dir(fh.0, offset, &mut |cookie, d| {
                let a = match bucket.attr_in(&mut listing, d.ino) {
                    Ok(a) => a,
                    // Removed since the page was read: it is not there, which is the truth.
                    Err(BucketError::NotFound(_)) => return Ok(true),
                    Err(e) => return Err(e.into()),
                };
                let name = OsStr::from_bytes(&d.name);
                let full = reply.add(INodeNo(a.ino), cookie, name, &KEEP, &file_attr(&a), NEVER_REUSED);
                // The kernel counts a lookup for each entry but these two.
                if !full && !matches!(d.name.as_slice(), b"." | b"..") {
                    bucket.remember(a.ino, 1);
                }
                Ok(!full)
            });
            match read {
                Ok(()) => reply.ok(),
                Err(e) => reply.error(self.errno(req.uid(), &e)),
            }
        });
    }

    fn releasedir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        guard("releasedir", || {
            self.fs.close_dir(fh.0);
            reply.ok();
        });
    }

    fn fsyncdir(&self, req: &Request, _ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        guard("fsyncdir", || self.sync(req.uid(), Handle::Dir(fh.0), reply));
    }

    fn statfs(&self, req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        guard("statfs", || match self.fs.bucket.statfs() {
            Ok(s) => reply.statfs(s.blocks, s.bfree, s.bavail, s.files, s.ffree, s.bsize, s.namelen, s.bsize),
            Err(e) => reply.error(self.errno(req.uid(), &e.into())),
        });
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let caller = caller(req);
        if !is_slow(name.as_bytes()) {
            return guard("setxattr", || {
                self.empty(caller.uid, self.fs.set_xattr(caller, ino.0, name.as_bytes(), value, flags), reply);
            });
        }
        let (fs, name) = (Arc::clone(&self.fs), name.to_owned());
        // It may be a key.
        let copy = Zeroizing::new(value.to_vec());
        ioctl::wipe(value);
        let value = copy;
        self.slowly("setxattr", move || match fs.set_xattr(caller, ino.0, name.as_bytes(), &value, flags) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(Errno::from_i32(fs.refused(caller.uid, &e))),
        });
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let caller = caller(req);
        let waits = is_slow(name.as_bytes()) && self.fs.bucket.may_wait(ino.0, false);
        let name = name.to_owned();
        self.perhaps_waiting("getxattr", waits, move |me| {
            me.bytes(caller.uid, me.fs.get_xattr(caller, ino.0, name.as_bytes()), size, reply);
        });
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        guard("listxattr", || self.bytes(req.uid(), self.fs.list_xattr(caller(req), ino.0), size, reply));
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let caller = caller(req);
        if !is_slow(name.as_bytes()) {
            return guard("removexattr", || {
                self.empty(caller.uid, self.fs.remove_xattr(caller, ino.0, name.as_bytes()), reply);
            });
        }
        let (fs, name) = (Arc::clone(&self.fs), name.to_owned());
        if is_lock(name.as_bytes()) {
            return guard("removexattr", || {
                self.lock(caller, ino.0, b"", move |r| match r {
                    None => reply.ok(),
                    Some(errno) => reply.error(errno),
                })
            });
        }
        self.slowly("removexattr", move || match fs.remove_xattr(caller, ino.0, name.as_bytes()) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(Errno::from_i32(fs.refused(caller.uid, &e))),
        });
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let uid = req.uid();
        self.perhaps_waiting("fallocate", self.fs.bucket.may_wait(ino.0, true), move |me| {
            let allocated = me.fs.usable(fh.0).and_then(|()| me.fs.allocate(ino.0, offset, length, mode));
            me.empty(uid, allocated, reply);
        });
    }

    fn lseek(&self, req: &Request, ino: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let uid = req.uid();
        self.perhaps_waiting("lseek", self.fs.bucket.may_wait(ino.0, false), move |me| {
            match me.fs.usable(fh.0).and_then(|()| me.fs.seek(ino.0, offset, whence)) {
                Ok(found) => reply.offset(found),
                Err(e) => reply.error(me.errno(uid, &e)),
            }
        });
    }

    fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let (fs, uid, len) = (Arc::clone(&self.fs), req.uid(), len.min(COPY_BYTES_MAX));
        let copy = move |fs: &Fs| -> Result<u64, FsError> {
            fs.usable(fh_in.0)?;
            fs.usable(fh_out.0)?;
            Ok(fs.bucket.copy_range(ino_in.0, offset_in, ino_out.0, offset_out, len)?)
        };
        let job = move || match copy(&fs) {
            Ok(copied) => reply.written(copied as u32),
            Err(e) => reply.error(Errno::from_i32(fs.refused(uid, &e))),
        };
        let waits = self.fs.bucket.may_wait(ino_in.0, false) || self.fs.bucket.may_wait(ino_out.0, true);
        if len <= COPY_INLINE_BYTES_MAX && !waits {
            return guard("copy_file_range", job);
        }
        self.slowly("copy_file_range", job);
    }

    fn ioctl(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        cmd: u32,
        in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        let caller = caller(req);
        let asked = ioctl::parse(cmd, in_data);
        ioctl::wipe(in_data);
        match asked {
            Some(ioctl::Asked::Unlock { name, key }) => {
                let fs = Arc::clone(&self.fs);
                self.slowly("unlock", move || match fs.unlock(caller, ino.0, &name, &key) {
                    Ok(()) => reply.ioctl(0, &[]),
                    Err(e) => reply.error(Errno::from_i32(fs.refused(caller.uid, &e))),
                });
            }
            Some(ioctl::Asked::Lock { name }) => guard("lock", || {
                self.lock(caller, ino.0, &name, move |r| match r {
                    None => reply.ioctl(0, &[]),
                    Some(errno) => reply.error(errno),
                });
            }),
            None => reply.error(Errno::ENOTTY),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_only_written_bypasses_the_page_cache_and_what_is_only_read_is_kept() {
        let direct_io = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
        assert_eq!(open_flags(libc::O_WRONLY | libc::O_APPEND, false), (direct_io, true));
        let kept = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH;
        assert_eq!(open_flags(libc::O_RDONLY, false), (kept, false));
        assert_eq!(open_flags(libc::O_RDWR | libc::O_TRUNC, false), (FopenFlags::FOPEN_KEEP_CACHE, false));
        assert_eq!(open_flags(libc::O_RDWR | libc::O_DIRECT, false), (direct_io, true));
        assert_eq!(open_flags(libc::O_RDWR, true), (direct_io, true));
        assert_eq!(open_flags(libc::O_RDONLY, true), (kept, false));
    }

    #[test]
    fn a_panic_in_a_handler_goes_no_further() {
        guard("test", || panic!("for the test"));
    }
}
