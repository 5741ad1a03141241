//! The FUSE side of the lossy disk: decodes a request, asks the disk, replies. Locks, mmap and O_DIRECT are the
//! kernel's affair: files are opened in plain cached mode, where shared mappings work, and no lock is handled.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use parking_lot::{Mutex, MutexGuard};

use super::super::rng::Rng;
use super::content::{BLOCK, Content, FileOp};
use super::disk::{Dir, Disk, Errno as Errnum, File, Inode, Node, Verdict};
use super::faults::{Action, Call};

/// All changes come through this one mount, so the kernel may remember names and attributes.
const TTL: Duration = Duration::from_secs(30);
const DISK_BLOCKS: u64 = (64 << 30) / BLOCK;

/// One mount of the disk, valid for one boot of it.
pub struct LossyFs {
    pub disk: Arc<Mutex<Disk>>,
    pub boot: u64,
    listings: Mutex<HashMap<u64, Vec<(OsString, u64)>>>,
    next_handle: AtomicU64,
}

type Answer<T> = Result<T, Errnum>;

impl LossyFs {
    pub fn new(disk: Arc<Mutex<Disk>>) -> LossyFs {
        let boot = disk.lock().boot;
        LossyFs { disk, boot, listings: Mutex::default(), next_handle: AtomicU64::new(1) }
    }

    /// The disk, if its power is on and this mount is not from before a reboot.
    fn on(&self) -> Answer<MutexGuard<'_, Disk>> {
        let disk = self.disk.lock();
        if disk.dead || disk.boot != self.boot { Err(libc::EIO) } else { Ok(disk) }
    }

    /// Counts a call that changes something and carries it out; one that power went out in leaves its change
    /// behind, unacknowledged.
    fn step<T>(
        &self,
        call: Call,
        name: impl FnOnce(&Disk) -> Answer<OsString>,
        act: impl FnOnce(&mut Disk, Verdict) -> Answer<T>,
    ) -> Answer<T> {
        let mut disk = self.on()?;
        let name = name(&disk)?;
        let verdict = disk.step(call, &name)?;
        let done = act(&mut disk, verdict)?;
        if verdict == Verdict::Dies { Err(libc::EIO) } else { Ok(done) }
    }

    fn named(ino: INodeNo) -> impl FnOnce(&Disk) -> Answer<OsString> {
        move |disk| Ok(disk.inode(ino.0)?.name.clone())
    }

    fn fsync_any(&self, ino: INodeNo) -> Answer<()> {
        self.step(Call::Fsync, Self::named(ino), |disk, verdict| match verdict {
            Verdict::Pass => disk.sync(ino.0),
            Verdict::Dies if Rng::new(disk.steps).chance(50) => disk.sync(ino.0),
            Verdict::Fault(Action::SyncFails) => {
                disk.fail_sync(ino.0);
                Err(libc::EIO)
            }
            Verdict::Dies | Verdict::Fault(_) => Ok(()),
        })
    }

    fn make(&self, req: &Request, parent: INodeNo, name: &OsStr, node: Node, mode: u32) -> Answer<FileAttr> {
        let owner = (req.uid(), req.gid());
        self.step(
            Call::Create,
            |_| Ok(name.to_owned()),
            |disk, _| {
                let ino = disk.make(parent.0, name, node, mode, owner)?;
                attr_of(disk, ino)
            },
        )
    }

    fn remove(&self, parent: INodeNo, name: &OsStr, want_dir: bool) -> Answer<()> {
        let step_name = |_: &Disk| Ok(name.to_owned());
        self.step(Call::Unlink, step_name, |disk, _| disk.unlink(parent.0, name, want_dir))
    }
}

fn empty_file() -> Node {
    Node::File(File { live: Content::default(), stable: Content::default(), pending: Vec::new() })
}

fn kind_of(inode: &Inode) -> FileType {
    match (&inode.node, inode.attr.mode & libc::S_IFMT) {
        (Node::File(_), _) => FileType::RegularFile,
        (Node::Dir(_), _) => FileType::Directory,
        (Node::Symlink(_), _) => FileType::Symlink,
        (Node::Special, libc::S_IFSOCK) => FileType::Socket,
        (Node::Special, _) => FileType::NamedPipe,
    }
}

fn attr_of(disk: &Disk, ino: u64) -> Answer<FileAttr> {
    let inode = disk.inode(ino)?;
    let (size, blocks) = match &inode.node {
        Node::File(file) => (file.live.size(), file.live.allocated_blocks() * BLOCK / 512),
        Node::Dir(_) => (BLOCK, 8),
        Node::Symlink(target) => (target.as_os_str().len() as u64, 0),
        Node::Special => (0, 0),
    };
    let a = &inode.attr;
    Ok(FileAttr {
        ino: INodeNo(ino),
        size,
        blocks,
        atime: a.atime,
        mtime: a.mtime,
        ctime: a.ctime,
        crtime: a.ctime,
        kind: kind_of(inode),
        perm: (a.mode & 0o7777) as u16,
        nlink: inode.nlink,
        uid: a.uid,
        gid: a.gid,
        rdev: 0,
        blksize: BLOCK as u32,
        flags: 0,
    })
}

fn time_of(time: TimeOrNow) -> SystemTime {
    match time {
        TimeOrNow::SpecificTime(time) => time,
        TimeOrNow::Now => SystemTime::now(),
    }
}

macro_rules! answer {
    ($reply:ident, $result:expr, $ok:expr) => {
        match $result {
            Ok(value) => $ok(value),
            Err(errno) => $reply.error(Errno::from_i32(errno)),
        }
    };
}

impl fuser::Filesystem for LossyFs {
    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.on().and_then(|d| d.lookup(parent.0, name).and_then(|ino| attr_of(&d, ino)));
        answer!(reply, found, |attr| reply.entry(&TTL, &attr, Generation(0)));
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let found = self.on().and_then(|disk| attr_of(&disk, ino.0));
        answer!(reply, found, |attr| reply.attr(&TTL, &attr));
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let call = if size.is_some() { Call::Truncate } else { Call::Attr };
        let done = self.step(call, Self::named(ino), |disk, _| {
            if let Some(size) = size {
                disk.change(ino.0, FileOp::Resize(size))?;
            }
            let attr = &mut disk.inode_mut(ino.0)?.attr;
            if let Some(mode) = mode {
                attr.mode = (attr.mode & libc::S_IFMT) | (mode & 0o7777);
            }
            attr.uid = uid.unwrap_or(attr.uid);
            attr.gid = gid.unwrap_or(attr.gid);
            attr.atime = atime.map_or(attr.atime, time_of);
            attr.mtime = mtime.map_or(attr.mtime, time_of);
            attr.ctime = SystemTime::now();
            attr_of(disk, ino.0)
        });
        answer!(reply, done, |attr| reply.attr(&TTL, &attr));
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        use std::os::unix::ffi::OsStrExt;
        let target = self.on().and_then(|disk| match &disk.inode(ino.0)?.node {
            Node::Symlink(target) => Ok(target.clone()),
            _ => Err(libc::EINVAL),
        });
        answer!(reply, target, |t: std::path::PathBuf| reply.data(t.as_os_str().as_bytes()));
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        let node = match mode & libc::S_IFMT {
            libc::S_IFREG => empty_file(),
            libc::S_IFIFO | libc::S_IFSOCK => Node::Special,
            _ => return reply.error(Errno::EPERM),
        };
        let made = self.make(req, parent, name, node, mode & !(umask & 0o777));
        answer!(reply, made, |attr| reply.entry(&TTL, &attr, Generation(0)));
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let mode = libc::S_IFDIR | (mode & 0o7777 & !umask);
        let made = self.make(req, parent, name, Node::Dir(Dir::default()), mode);
        answer!(reply, made, |attr| reply.entry(&TTL, &attr, Generation(0)));
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(reply, self.remove(parent, name, false), |()| reply.ok());
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(reply, self.remove(parent, name, true), |()| reply.ok());
    }

    fn symlink(&self, req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry) {
        let node = Node::Symlink(target.to_owned());
        let made = self.make(req, parent, link_name, node, libc::S_IFLNK | 0o777);
        answer!(reply, made, |attr| reply.entry(&TTL, &attr, Generation(0)));
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let noreplace = flags.contains(RenameFlags::RENAME_NOREPLACE);
        let exchange = flags.contains(RenameFlags::RENAME_EXCHANGE);
        let step_name = |_: &Disk| Ok(newname.to_owned());
        let done = self.step(Call::Rename, step_name, |disk, _| {
            disk.rename((parent.0, name), (newparent.0, newname), noreplace, exchange)
        });
        answer!(reply, done, |()| reply.ok());
    }

    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let step_name = |_: &Disk| Ok(newname.to_owned());
        let done = self.step(Call::Link, step_name, |disk, _| {
            disk.link(ino.0, newparent.0, newname)?;
            attr_of(disk, ino.0)
        });
        answer!(reply, done, |attr| reply.entry(&TTL, &attr, Generation(0)));
    }

    fn open(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let found = self.on().and_then(|disk| disk.inode(ino.0).map(|_| ()));
        answer!(reply, found, |()| reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE));
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let mode = libc::S_IFREG | (mode & 0o7777 & !umask);
        let made = self.make(req, parent, name, empty_file(), mode);
        answer!(reply, made, |attr| reply.created(
            &TTL,
            &attr,
            Generation(0),
            FileHandle(0),
            FopenFlags::FOPEN_KEEP_CACHE
        ));
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let bytes = self.on().and_then(|d| Ok(d.file(ino.0)?.live.read(offset, u64::from(size))));
        answer!(reply, bytes, |bytes: Vec<u8>| reply.data(&bytes));
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let done = self.step(Call::Write, Self::named(ino), |disk, verdict| {
            let short = verdict == Verdict::Fault(Action::ShortWrite);
            let len = if short { data.len().div_ceil(2) } else { data.len() };
            disk.change(ino.0, FileOp::Write { offset, data: data[..len].into() })?;
            Ok(len as u32)
        });
        answer!(reply, done, |len| reply.written(len));
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        answer!(reply, self.on().map(|_| ()), |()| reply.ok());
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        answer!(reply, self.fsync_any(ino), |()| reply.ok());
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        answer!(reply, self.fsync_any(ino), |()| reply.ok());
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let listing = self.on().and_then(|disk| {
            let entries = &disk.dir(ino.0)?.live;
            let dots = [(OsString::from("."), ino.0), (OsString::from(".."), ino.0)];
            Ok(dots.into_iter().chain(entries.iter().map(|(n, i)| (n.clone(), *i))).collect())
        });
        answer!(reply, listing, |listing| {
            let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
            self.listings.lock().insert(handle, listing);
            reply.opened(FileHandle(handle), FopenFlags::empty());
        });
    }

    fn readdir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let disk = match self.on() {
            Ok(disk) => disk,
            Err(errno) => return reply.error(Errno::from_i32(errno)),
        };
        let listings = self.listings.lock();
        let listing = listings.get(&fh.0).map_or(&[][..], Vec::as_slice);
        for (at, (name, ino)) in listing.iter().enumerate().skip(offset as usize) {
            let kind = disk.inode(*ino).map_or(FileType::RegularFile, kind_of);
            if reply.add(INodeNo(*ino), at as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.listings.lock().remove(&fh.0);
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let free = DISK_BLOCKS / 2;
        let block = BLOCK as u32;
        reply.statfs(DISK_BLOCKS, free, free, 1 << 20, 1 << 19, block, 255, block);
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
        const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
        const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
        let end = offset + length;
        let done = self.step(Call::Fallocate, Self::named(ino), |disk, _| {
            let size = disk.file(ino.0)?.live.size();
            let grow = end > size && (mode == 0 || mode == ZERO);
            match mode {
                0 | KEEP => {}
                PUNCH | ZERO => disk.change(ino.0, FileOp::Zero { offset, len: length })?,
                _ if mode == ZERO | KEEP => {
                    disk.change(ino.0, FileOp::Zero { offset, len: length })?;
                }
                _ => return Err(libc::EOPNOTSUPP),
            }
            if grow { disk.change(ino.0, FileOp::Resize(end)) } else { Ok(()) }
        });
        answer!(reply, done, |()| reply.ok());
    }

    fn lseek(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let found = self.on().and_then(|disk| {
            let content = &disk.file(ino.0)?.live;
            let offset = u64::try_from(offset).map_err(|_| libc::ENXIO)?;
            match whence {
                _ if offset >= content.size() => Err(libc::ENXIO),
                libc::SEEK_DATA => content.next_data(offset).ok_or(libc::ENXIO),
                libc::SEEK_HOLE => Ok(content.next_hole(offset)),
                _ => Err(libc::EINVAL),
            }
        });
        answer!(reply, found, |at: u64| reply.offset(at as i64));
    }
}
