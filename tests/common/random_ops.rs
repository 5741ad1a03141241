//! Random operations for tests that do the same on two directories and compare: what there is to choose from, and one
//! side that carries it out and tells what came back. Nothing here knows of ssefs.
#![allow(dead_code)] // each test program uses a part of it

use super::sys::{self, Map, get_xattr, list_xattr, remove_xattr, set_xattr_flags};
use super::tree::Dice;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

const LARGEST: u64 = 3 << 20;
const FLAGS: [i32; 7] = [
    libc::O_RDWR,
    libc::O_RDWR,
    libc::O_WRONLY,
    libc::O_RDONLY,
    libc::O_RDWR | libc::O_APPEND,
    libc::O_WRONLY | libc::O_TRUNC,
    libc::O_RDWR | libc::O_SYNC,
];

/// One operation, the same for both sides: names are relative, handles are slots.
#[derive(Debug, Clone)]
pub enum Op {
    Open {
        slot: usize,
        name: String,
        flags: i32,
    },
    Close {
        slot: usize,
    },
    Write {
        slot: usize,
        at: u64,
        len: usize,
        fill: u64,
    },
    Read {
        slot: usize,
        at: u64,
        len: usize,
    },
    SetLen {
        slot: usize,
        len: u64,
    },
    Truncate {
        name: String,
        len: u64,
    },
    Allocate {
        slot: usize,
        mode: i32,
        at: u64,
        len: u64,
    },
    CopyRange {
        from: usize,
        from_at: u64,
        to: usize,
        to_at: u64,
        len: usize,
    },
    Map {
        slot: usize,
        at: usize,
        len: usize,
        fill: u64,
    },
    Sync {
        slot: usize,
    },
    Whole {
        name: String,
    },
    Mkdir {
        name: String,
    },
    Rmdir {
        name: String,
    },
    Unlink {
        name: String,
    },
    Rename {
        from: String,
        to: String,
        flags: u32,
    },
    Link {
        from: String,
        to: String,
    },
    Symlink {
        name: String,
        target: String,
    },
    Chmod {
        name: String,
        mode: u32,
    },
    Chown {
        name: String,
        uid: u32,
        gid: u32,
    },
    Times {
        name: String,
        at: i64,
    },
    SetXattr {
        name: String,
        key: String,
        len: usize,
        flags: i32,
    },
    RemoveXattr {
        name: String,
        key: String,
    },
    Stat {
        name: String,
    },
    List {
        name: String,
    },
    /// What of a directory that others change meanwhile has this tag.
    ListOwn {
        name: String,
        tag: String,
    },
}

/// Which names there are to choose from.
#[derive(Clone, Default)]
pub struct Names {
    /// What every name begins with: processes that share a directory keep to their own.
    tag: String,
    /// A directory, below the side's root or beside it, that some of the names lie in.
    shared: Option<String>,
}

impl Names {
    /// Names with this tag, one in four of them in the directory `shared`.
    pub fn of_process(tag: &str, shared: &str) -> Names {
        Names { tag: tag.into(), shared: Some(shared.into()) }
    }
}

fn name(dice: &mut Dice, names: &Names) -> String {
    if let Some(shared) = &names.shared
        && dice.one_in(4)
    {
        let plain = Names { tag: names.tag.clone(), shared: None };
        return format!("{shared}/{}", name(dice, &plain));
    }
    let depth = dice.below(10);
    let mut part = |of: &[&str]| format!("{}{}", names.tag, dice.pick(of));
    match depth {
        0..4 => part(&["a", "b", "c", "d", "e", "f"]),
        4..8 => format!("{}/{}", part(&["d", "e", "x"]), part(&["a", "b", "f", "y"])),
        _ => format!("{}/{}/{}", part(&["d", "x"]), part(&["y", "f"]), part(&["a", "b", "z"])),
    }
}

/// An offset that is often at or beside a place where something changes.
fn offset(dice: &mut Dice) -> u64 {
    let edge: [u64; 8] = [0, 4096, 8192, 16384, 32768, 65536, 1 << 20, 2 << 20];
    let at = match dice.below(4) {
        0 => dice.below(LARGEST),
        1 => dice.below(20_000),
        _ => dice.pick(&edge).wrapping_add(dice.below(5)).wrapping_sub(2),
    };
    if at > LARGEST { 0 } else { at }
}

fn length(dice: &mut Dice) -> usize {
    let usual = [1, 2, 100, 4095, 4096, 4097, 16383, 16384, 16385, 40_000, 150_000];
    if dice.one_in(3) { dice.below(9000) as usize } else { *dice.pick(&usual) }
}

/// The next operation.
pub fn choose(dice: &mut Dice, names: &Names) -> Op {
    let name = |dice: &mut Dice| name(dice, names);
    let slot = dice.below(5) as usize;
    match dice.below(100) {
        0..14 => {
            let create = if dice.one_in(4) { 0 } else { libc::O_CREAT };
            let excl = if dice.one_in(8) { libc::O_EXCL } else { 0 };
            let excl = if create == 0 { 0 } else { excl };
            Op::Open { slot, name: name(dice), flags: dice.pick(&FLAGS) | create | excl }
        }
        14..17 => Op::Close { slot },
        17..40 => Op::Write { slot, at: offset(dice), len: length(dice), fill: dice.next() },
        40..50 => Op::Read { slot, at: offset(dice), len: length(dice) },
        50..54 => Op::SetLen { slot, len: offset(dice) },
        54..56 => Op::Truncate { name: name(dice), len: offset(dice) },
        56..60 => {
            let modes = [0, libc::FALLOC_FL_KEEP_SIZE, libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE];
            Op::Allocate { slot, mode: *dice.pick(&modes), at: offset(dice), len: 1 + length(dice) as u64 }
        }
        60..63 => Op::CopyRange {
            from: slot,
            from_at: offset(dice),
            to: dice.below(5) as usize,
            to_at: offset(dice),
            len: length(dice),
        },
        63..66 => Op::Map { slot, at: offset(dice) as usize, len: length(dice), fill: dice.next() },
        66..68 => Op::Sync { slot },
        68..72 => Op::Whole { name: name(dice) },
        72..76 => Op::Mkdir { name: name(dice) },
        76..78 => Op::Rmdir { name: name(dice) },
        78..82 => Op::Unlink { name: name(dice) },
        82..88 => Op::Rename {
            from: name(dice),
            to: name(dice),
            flags: *dice.pick(&[0, 0, 0, libc::RENAME_NOREPLACE, libc::RENAME_EXCHANGE]),
        },
        88..90 => Op::Link { from: name(dice), to: name(dice) },
        90..92 => Op::Symlink { name: name(dice), target: name(dice) },
        92 if dice.one_in(2) => {
            Op::Chown { name: name(dice), uid: dice.below(3) as u32 * 1000, gid: dice.below(3) as u32 * 1000 }
        }
        92..93 => Op::Chmod { name: name(dice), mode: *dice.pick(&[0o644, 0o600, 0o755, 0o4711]) },
        93..95 => Op::Times { name: name(dice), at: dice.below(2_000_000_000) as i64 },
        95..97 => Op::SetXattr {
            name: name(dice),
            key: format!("user.k{}", dice.below(3)),
            len: dice.below(300) as usize,
            flags: dice.below(3) as i32,
        },
        97..98 => Op::RemoveXattr { name: name(dice), key: format!("user.k{}", dice.below(3)) },
        98..99 => match &names.shared {
            Some(shared) => Op::ListOwn { name: shared.clone(), tag: names.tag.clone() },
            None => Op::List { name: name(dice) },
        },
        _ => Op::Stat { name: name(dice) },
    }
}

/// One side: a directory and its open files.
pub struct Side {
    pub root: PathBuf,
    pub open: [Option<File>; 5],
}

fn sum(bytes: &[u8]) -> String {
    let h = bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
    format!("{} bytes {h:016x}", bytes.len())
}

impl Side {
    pub fn new(root: PathBuf) -> Side {
        Side { root, open: Default::default() }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn file(&self, slot: usize) -> io::Result<&File> {
        self.open[slot].as_ref().ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }

    /// Does it and tells what came back.
    pub fn apply(&mut self, op: &Op) -> String {
        match self.attempt(op) {
            Ok(s) => s,
            Err(e) => format!("errno {:?}", e.raw_os_error()),
        }
    }

    fn attempt(&mut self, op: &Op) -> io::Result<String> {
        let ok = |()| "ok".to_string();
        match op {
            Op::Open { slot, name, flags } => {
                self.open[*slot] = None;
                let f = sys::open(self.at(name), *flags, 0o644)?;
                if f.metadata()?.is_dir() {
                    return Ok("directory".into());
                }
                let len = f.metadata()?.len();
                self.open[*slot] = Some(f);
                Ok(format!("{len} long"))
            }
            Op::Close { slot } => Ok(self.open[*slot].take().map_or("none", |_| "closed").into()),
            Op::Write { slot, at, len, fill } => {
                self.file(*slot)?.write_at(&Dice::new(*fill).bytes(*len), *at).map(|n| n.to_string())
            }
            Op::Read { slot, at, len } => {
                let mut buf = vec![0; *len];
                let mut n = 0;
                while n < *len {
                    match self.file(*slot)?.read_at(&mut buf[n..], at + n as u64)? {
                        0 => break,
                        more => n += more,
                    }
                }
                Ok(sum(&buf[..n]))
            }
            Op::SetLen { slot, len } => self.file(*slot)?.set_len(*len).map(ok),
            Op::Truncate { name, len } => sys::truncate(self.at(name), *len as i64).map(ok),
            Op::Allocate { slot, mode, at, len } => sys::fallocate(self.file(*slot)?, *mode, *at, *len).map(ok),
            Op::CopyRange { from, from_at, to, to_at, len } => {
                let (a, b) = (self.file(*from)?, self.file(*to)?);
                let mut done = 0;
                while done < *len as u64 {
                    match sys::copy_range(a, from_at + done, b, to_at + done, *len - done as usize)? {
                        0 => break,
                        n => done += n,
                    }
                }
                Ok(done.to_string())
            }
            Op::Map { slot, at, len, fill } => {
                let f = self.file(*slot)?;
                let size = f.metadata()?.len() as usize;
                if size == 0 {
                    return Ok("empty".into());
                }
                let mut map = Map::new(f, size, libc::MAP_SHARED)?;
                let at = (*at).min(size - 1);
                let n = (*len).min(size - at);
                let was = sum(&map.get(at, n));
                map.put(at, &Dice::new(*fill).bytes(n));
                Ok(was)
            }
            Op::Sync { slot } => self.file(*slot)?.sync_all().map(ok),
            Op::Whole { name } => fs::read(self.at(name)).map(|b| sum(&b)),
            Op::Mkdir { name } => fs::create_dir(self.at(name)).map(ok),
            Op::Rmdir { name } => fs::remove_dir(self.at(name)).map(ok),
            Op::Unlink { name } => fs::remove_file(self.at(name)).map(ok),
            Op::Rename { from, to, flags } => sys::rename2(self.at(from), self.at(to), *flags).map(ok),
            Op::Link { from, to } => fs::hard_link(self.at(from), self.at(to)).map(ok),
            Op::Symlink { name, target } => symlink(target, self.at(name)).map(ok),
            Op::Chmod { name, mode } => sys::chmod(self.at(name), *mode).map(ok),
            Op::Chown { name, uid, gid } => sys::chown(self.at(name), *uid, *gid).map(ok),
            Op::Times { name, at } => {
                let t = (*at, at % 1_000_000_000);
                sys::utimens(self.at(name), t, t)?;
                let s = fs::symlink_metadata(self.at(name))?;
                Ok(format!("{}.{}", s.mtime(), s.mtime_nsec()))
            }
            Op::SetXattr { name, key, len, flags } => {
                set_xattr_flags(self.at(name), key, vec![7; *len], *flags).map(ok)
            }
            Op::RemoveXattr { name, key } => remove_xattr(self.at(name), key).map(ok),
            Op::Stat { name } => self.stat(&self.at(name)),
            Op::List { name } => self.list(name, b""),
            Op::ListOwn { name, tag } => self.list(name, tag.as_bytes()),
        }
    }

    fn list(&self, name: &str, tag: &[u8]) -> io::Result<String> {
        let mut v = vec![];
        for e in fs::read_dir(self.at(name))? {
            let name = e?.file_name();
            if name.as_bytes().starts_with(tag) {
                v.push(name);
            }
        }
        v.sort();
        Ok(format!("{v:?}"))
    }

    fn stat(&self, p: &Path) -> io::Result<String> {
        let s = fs::symlink_metadata(p)?;
        let mut x = vec![];
        for n in list_xattr(p)?.into_iter().filter(|n| n.starts_with(b"user.")) {
            x.push((get_xattr(p, OsStr::from_bytes(&n))?.len(), n));
        }
        let len = if s.is_dir() { 0 } else { s.len() };
        Ok(format!("{:o} {}:{} {} links {len} bytes {x:?}", s.mode(), s.uid(), s.gid(), s.nlink()))
    }
}

/// The last operations before a failure, with what each gave.
pub fn story(done: &[(Op, String)]) -> String {
    let from = done.len().saturating_sub(60);
    done[from..].iter().enumerate().map(|(i, (o, r))| format!("{:5} {o:?} -> {r}\n", from + i)).collect()
}
