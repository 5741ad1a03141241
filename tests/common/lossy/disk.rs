//! The lossy disk without FUSE: what programs see (live), what would be there after a power cut (stable), and
//! the changes between the two (pending), for names and for bytes. A sync moves changes from pending to stable.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::SystemTime;

use super::content::{Content, FileOp};
use super::faults::{Action, Call, Fault};

/// The inode of the root directory, as FUSE wants it.
pub const ROOT: u64 = 1;

/// When the name of a new or renamed file is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// When its directory was synced, as POSIX says.
    Strict,
    /// When anything was synced: a sync commits the whole journal, as on ext4.
    Journal,
}

/// What stat(2) tells apart from size and links.
#[derive(Clone, Debug)]
pub struct Attr {
    /// Type and permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub atime: SystemTime,
    pub mtime: SystemTime,
    pub ctime: SystemTime,
}

#[derive(Clone)]
pub struct File {
    pub live: Content,
    pub stable: Content,
    /// Each with its place in the disk's one sequence of changes.
    pub pending: Vec<(u64, FileOp)>,
}

#[derive(Clone, Default)]
pub struct Dir {
    pub live: BTreeMap<OsString, u64>,
    pub stable: BTreeMap<OsString, u64>,
}

#[derive(Clone)]
pub enum Node {
    File(File),
    Dir(Dir),
    Symlink(PathBuf),
    Special,
}

#[derive(Clone)]
pub struct Inode {
    pub node: Node,
    pub attr: Attr,
    pub stable_attr: Attr,
    pub nlink: u32,
    /// The name it was made under, or last renamed to; faults choose files by it.
    pub name: OsString,
}

/// One atomic change of names: after it, each (directory, name) means this inode or nothing.
#[derive(Clone)]
pub struct NameOp {
    pub seq: u64,
    pub changes: Vec<(u64, OsString, Option<u64>)>,
}

/// How the disk answers a call that may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    /// Power goes out inside this call: it leaves its change pending and answers EIO.
    Dies,
    Fault(Action),
}

/// An errno.
pub type Errno = i32;

/// The whole disk. `Clone` gives an image of it.
#[derive(Clone)]
pub struct Disk {
    pub inodes: HashMap<u64, Inode>,
    pub names: Vec<NameOp>,
    pub policy: Names,
    pub faults: Vec<Fault>,
    /// Calls so far that changed something, since the disk was made.
    pub steps: u64,
    pub cut_at: Option<u64>,
    /// Power is off: nothing answers, nothing changes.
    pub dead: bool,
    /// Counts reboots; a mount of an earlier boot answers EIO for ever.
    pub boot: u64,
    /// How many directories and files were synced, for the tests of the disk itself.
    pub syncs: u64,
    next_ino: u64,
    seq: u64,
}

impl Disk {
    /// An empty disk that is powered on.
    pub fn new(policy: Names) -> Disk {
        let now = SystemTime::now();
        // SAFETY: neither call can fail or touch memory.
        let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        let attr = Attr { mode: libc::S_IFDIR | 0o755, uid, gid, atime: now, mtime: now, ctime: now };
        let root = Inode {
            node: Node::Dir(Dir::default()),
            attr: attr.clone(),
            stable_attr: attr,
            nlink: 2,
            name: OsString::new(),
        };
        Disk {
            inodes: HashMap::from([(ROOT, root)]),
            names: Vec::new(),
            policy,
            faults: Vec::new(),
            steps: 0,
            cut_at: None,
            dead: false,
            boot: 0,
            syncs: 0,
            next_ino: ROOT,
            seq: 0,
        }
    }

    /// Counts a call that changes something and decides what becomes of it. SQLite's -shm files are memory, not
    /// data: their pages are written when the kernel likes, so they neither count nor cut.
    pub fn step(&mut self, call: Call, name: &OsStr) -> Result<Verdict, Errno> {
        if self.dead {
            return Err(libc::EIO);
        }
        if name.as_bytes().ends_with(b"-shm") {
            return Ok(Verdict::Pass);
        }
        self.steps += 1;
        if self.cut_at.is_some_and(|at| self.steps >= at) {
            self.dead = true;
            return Ok(Verdict::Dies);
        }
        match self.faults.iter_mut().find_map(|f| f.strikes(call, name.as_bytes()).then_some(f.action)) {
            Some(Action::Errno(errno)) => Err(errno),
            Some(action) => Ok(Verdict::Fault(action)),
            None => Ok(Verdict::Pass),
        }
    }

    /// The inode, or ENOENT (ESTALE would be kinder, but a forgotten inode is a bug of the adapter).
    pub fn inode(&self, ino: u64) -> Result<&Inode, Errno> {
        self.inodes.get(&ino).ok_or(libc::ENOENT)
    }

    /// The same, to change it.
    pub fn inode_mut(&mut self, ino: u64) -> Result<&mut Inode, Errno> {
        self.inodes.get_mut(&ino).ok_or(libc::ENOENT)
    }

    pub fn dir(&self, ino: u64) -> Result<&Dir, Errno> {
        match &self.inode(ino)?.node {
            Node::Dir(dir) => Ok(dir),
            _ => Err(libc::ENOTDIR),
        }
    }

    pub fn file(&self, ino: u64) -> Result<&File, Errno> {
        match &self.inode(ino)?.node {
            Node::File(file) => Ok(file),
            Node::Dir(_) => Err(libc::EISDIR),
            _ => Err(libc::EINVAL),
        }
    }

    /// The inode that `name` means in `parent`.
    pub fn lookup(&self, parent: u64, name: &OsStr) -> Result<u64, Errno> {
        self.dir(parent)?.live.get(name).copied().ok_or(libc::ENOENT)
    }

    /// Changes a file's bytes; they are pending until the file is synced.
    pub fn change(&mut self, ino: u64, op: FileOp) -> Result<(), Errno> {
        self.seq += 1;
        let seq = self.seq;
        let inode = self.inode_mut(ino)?;
        let now = SystemTime::now();
        inode.attr.mtime = now;
        inode.attr.ctime = now;
        let Node::File(file) = &mut inode.node else {
            return Err(libc::EINVAL);
        };
        file.live.apply(&op);
        file.pending.push((seq, op));
        Ok(())
    }

    /// Makes an inode with a name. The name is pending until the directory is synced.
    pub fn make(&mut self, parent: u64, name: &OsStr, node: Node, mode: u32, owner: (u32, u32)) -> Result<u64, Errno> {
        if self.dir(parent)?.live.contains_key(name) {
            return Err(libc::EEXIST);
        }
        let now = SystemTime::now();
        let (uid, gid) = owner;
        let attr = Attr { mode, uid, gid, atime: now, mtime: now, ctime: now };
        self.next_ino += 1;
        let ino = self.next_ino;
        let nlink = if matches!(node, Node::Dir(_)) { 2 } else { 1 };
        let inode = Inode { node, stable_attr: attr.clone(), attr, nlink, name: name.to_owned() };
        self.inodes.insert(ino, inode);
        self.rename_all(vec![(parent, name.to_owned(), Some(ino))]);
        Ok(ino)
    }

    /// Gives an inode another name.
    pub fn link(&mut self, ino: u64, parent: u64, name: &OsStr) -> Result<(), Errno> {
        if self.dir(parent)?.live.contains_key(name) {
            return Err(libc::EEXIST);
        }
        self.inode_mut(ino)?.nlink += 1;
        self.rename_all(vec![(parent, name.to_owned(), Some(ino))]);
        Ok(())
    }

    /// Takes a name away; `want_dir` tells rmdir from unlink.
    pub fn unlink(&mut self, parent: u64, name: &OsStr, want_dir: bool) -> Result<(), Errno> {
        let ino = self.lookup(parent, name)?;
        match &self.inode(ino)?.node {
            Node::Dir(dir) if want_dir && !dir.live.is_empty() => return Err(libc::ENOTEMPTY),
            Node::Dir(_) if !want_dir => return Err(libc::EISDIR),
            Node::Dir(_) => {}
            _ if want_dir => return Err(libc::ENOTDIR),
            _ => {}
        }
        self.drop_link(ino);
        self.rename_all(vec![(parent, name.to_owned(), None)]);
        Ok(())
    }

    /// rename(2), atomic also in what survives of it. `noreplace` is RENAME_NOREPLACE, `exchange` RENAME_EXCHANGE.
    pub fn rename(
        &mut self,
        from: (u64, &OsStr),
        to: (u64, &OsStr),
        noreplace: bool,
        exchange: bool,
    ) -> Result<(), Errno> {
        let ino = self.lookup(from.0, from.1)?;
        let target = self.dir(to.0)?.live.get(to.1).copied();
        if exchange {
            let target = target.ok_or(libc::ENOENT)?;
            self.rename_all(vec![(from.0, from.1.to_owned(), Some(target)), (to.0, to.1.to_owned(), Some(ino))]);
            return Ok(());
        }
        if let Some(target) = target {
            if noreplace {
                return Err(libc::EEXIST);
            }
            if target == ino {
                return Ok(());
            }
            let source_is_dir = matches!(self.inode(ino)?.node, Node::Dir(_));
            match &self.inode(target)?.node {
                Node::Dir(_) if !source_is_dir => return Err(libc::EISDIR),
                Node::Dir(dir) if !dir.live.is_empty() => return Err(libc::ENOTEMPTY),
                Node::Dir(_) => {}
                _ if source_is_dir => return Err(libc::ENOTDIR),
                _ => {}
            }
            self.drop_link(target);
        }
        self.inode_mut(ino)?.name = to.1.to_owned();
        self.rename_all(vec![(from.0, from.1.to_owned(), None), (to.0, to.1.to_owned(), Some(ino))]);
        Ok(())
    }

    fn drop_link(&mut self, ino: u64) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.nlink = if matches!(inode.node, Node::Dir(_)) { 0 } else { inode.nlink - 1 };
            inode.attr.ctime = SystemTime::now();
        }
    }

    fn rename_all(&mut self, changes: Vec<(u64, OsString, Option<u64>)>) {
        self.seq += 1;
        let op = NameOp { seq: self.seq, changes };
        self.apply_names(&op, true);
        self.names.push(op);
    }

    /// Carries out a change of names in what programs see, or in what survives.
    pub fn apply_names(&mut self, op: &NameOp, live: bool) {
        for (dir, name, ino) in &op.changes {
            let Some(Inode { node: Node::Dir(dir), attr, .. }) = self.inodes.get_mut(dir) else {
                continue;
            };
            let entries = if live { &mut dir.live } else { &mut dir.stable };
            match ino {
                Some(ino) => entries.insert(name.clone(), *ino),
                None => entries.remove(name),
            };
            if live {
                attr.mtime = SystemTime::now();
                attr.ctime = attr.mtime;
            }
        }
    }

    /// Makes a file or a directory durable, as its fsync promises.
    pub fn sync(&mut self, ino: u64) -> Result<(), Errno> {
        self.syncs += 1;
        let inode = self.inode_mut(ino)?;
        inode.stable_attr = inode.attr.clone();
        let is_dir = match &mut inode.node {
            Node::File(file) => {
                for (_, op) in file.pending.drain(..) {
                    file.stable.apply(&op);
                }
                false
            }
            Node::Dir(_) => true,
            _ => false,
        };
        if self.policy == Names::Journal {
            self.sync_names(|_| true);
        } else if is_dir {
            self.sync_names(|dir| dir == ino);
        }
        Ok(())
    }

    /// Makes durable the changes of names in the chosen directories, and whatever they rest on: a change can
    /// only survive together with every earlier one of the same name.
    fn sync_names(&mut self, chosen: impl Fn(u64) -> bool) {
        let ops = std::mem::take(&mut self.names);
        let mut needed: HashSet<(u64, OsString)> = HashSet::new();
        let mut keep = vec![false; ops.len()];
        for (i, op) in ops.iter().enumerate().rev() {
            keep[i] = op.changes.iter().any(|(dir, name, _)| chosen(*dir) || needed.contains(&(*dir, name.clone())));
            if keep[i] {
                needed.extend(op.changes.iter().map(|(dir, name, _)| (*dir, name.clone())));
            }
        }
        for (op, durable) in ops.into_iter().zip(keep) {
            if durable {
                self.apply_names(&op, false);
            } else {
                self.names.push(op);
            }
        }
    }
}
