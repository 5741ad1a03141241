//! Source trees such as people back up, made the same every time from a seed, and a comparison of two trees
//! by everything that a local disk keeps: content, holes, modes, owners, times, links, attributes.
#![allow(dead_code)]

use super::mount::{get_xattr, is_root, list_xattr, plain, set_xattr};
use super::sys;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// A seeded generator (xorshift64*, Vigna 2016), for choices that a printed seed brings back.
#[derive(Clone)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// 0 to n-1.
    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }

    /// Bytes without a zero among them, so that a hole is never mistaken for data.
    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        let mut v = Vec::with_capacity(n + 8);
        while v.len() < n {
            v.extend(self.next().to_le_bytes().map(|b| b | 1));
        }
        v.truncate(n);
        v
    }
}

/// Which of the odder things a generated tree has: not every tool carries all.
#[derive(Clone, Copy)]
pub struct Contents {
    pub files: usize,
    pub xattrs: bool,
    pub sparse: bool,
    pub nodes: bool,
    /// Names that are not UTF-8.
    pub bytes_in_names: bool,
}

/// Makes a tree below `root`, which must not exist: directories, small files and a few large ones, links of
/// both kinds, empty files and directories, modes, times with nanoseconds, and what `what` asks for.
pub fn generate(root: &Path, seed: u64, what: Contents) {
    let mut dice = Dice::new(seed);
    fs::create_dir(root).unwrap();
    let mut dirs = vec![root.to_path_buf()];
    let mut files: Vec<PathBuf> = vec![];
    for i in 0..what.files {
        if i % 20 == 0 {
            let d = dice.pick(&dirs).join(format!("dir {i:04}"));
            fs::create_dir(&d).unwrap();
            dirs.push(d);
        }
        let name = match dice.below(40) {
            0 => format!(" two  words {i} "),
            1 => format!("Größe-日本-{i}"),
            2 => format!("new\nline-{i}"),
            3 => format!("-{i}-*?'\"\\$x"),
            4 => format!("{i}-{}", "l".repeat(240)),
            _ => format!("file{i:04}.dat"),
        };
        let mut name = name.into_bytes();
        if what.bytes_in_names && dice.one_in(50) {
            name.extend([0xff, 0x80, 0x01]);
        }
        let path = dice.pick(&dirs).join(OsStr::from_bytes(&name));
        if dice.one_in(25) {
            symlink(format!("../some where/{i}"), &path).unwrap();
            continue;
        }
        if dice.one_in(25) && !files.is_empty() {
            fs::hard_link(dice.pick(&files), &path).unwrap();
            continue;
        }
        let len = match dice.below(100) {
            0..5 => 0,
            5..60 => dice.below(4000),
            60..97 => 4096 + dice.below(30_000),
            97..99 => 16384 * (1 + dice.below(8)),
            _ => 1_000_000 + dice.below(1_500_000),
        };
        fs::write(&path, dice.bytes(len as usize)).unwrap();
        if what.xattrs && dice.one_in(10) {
            set_xattr(&path, "user.test.note", dice.bytes(30)).unwrap();
            set_xattr(&path, "user.empty", b"").unwrap();
        }
        files.push(path);
    }
    if what.sparse {
        sparse_file(&root.join("sparse.img"));
        files.push(root.join("sparse.img"));
    }
    if what.nodes && is_root() {
        sys::mknod(root.join("fifo"), libc::S_IFIFO | 0o640, 0).unwrap();
        sys::mknod(root.join("null"), libc::S_IFCHR | 0o666, libc::makedev(1, 3)).unwrap();
        sys::mknod(root.join("disk"), libc::S_IFBLK | 0o600, libc::makedev(7, 200)).unwrap();
    }
    for f in &files {
        sys::chmod(f, *dice.pick(&[0o644, 0o600, 0o755, 0o640, 0o444, 0o4755])).unwrap();
    }
    // Times last and deepest first: making an entry changes the times of its directory.
    let mut all = walk(root);
    all.reverse();
    for (path, _) in all {
        let at = 1_000_000_000 + dice.below(700_000_000) as i64;
        sys::utimens(
            root.join(path),
            (at, dice.below(1_000_000_000) as i64),
            (at - 5, dice.below(1_000_000_000) as i64),
        )
        .unwrap();
    }
}

/// 64 MiB, of which three places have data.
pub fn sparse_file(path: &Path) {
    let f = File::create(path).unwrap();
    f.set_len(64 << 20).unwrap();
    let mut dice = Dice::new(9);
    f.write_all_at(&dice.bytes(5000), 0).unwrap();
    f.write_all_at(&dice.bytes(100_000), 20 << 20).unwrap();
    f.write_all_at(&dice.bytes(1), (64 << 20) - 1).unwrap();
}

/// All below `root`, each before what is in it, in the order of bytes.
pub fn walk(root: &Path) -> Vec<(PathBuf, fs::Metadata)> {
    let mut out = vec![(PathBuf::new(), fs::symlink_metadata(root).unwrap())];
    let mut i = 0;
    while i < out.len() {
        if out[i].1.is_dir() {
            let dir = out[i].0.clone();
            let entries =
                fs::read_dir(root.join(&dir)).unwrap_or_else(|e| panic!("{}: {e}", root.join(&dir).display()));
            let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name()).collect();
            names.sort();
            out.extend(names.into_iter().map(|n| {
                let m = fs::symlink_metadata(root.join(&dir).join(&n)).unwrap();
                (dir.join(n), m)
            }));
        }
        i += 1;
    }
    out
}

/// What a comparison may leave out, because the tool in between does not carry it.
#[derive(Clone, Copy)]
pub struct Compare {
    pub times: bool,
    pub dir_times: bool,
    pub xattrs: bool,
    pub holes: bool,
    pub hard_links: bool,
}

pub const EVERYTHING: Compare = Compare { times: true, dir_times: true, xattrs: true, holes: true, hard_links: true };

/// Panics with the first differences unless both trees are the same.
#[track_caller]
pub fn assert_same(left: &Path, right: &Path, by: Compare) {
    let found = differences(left, right, by);
    assert!(
        found.is_empty(),
        "{} and {} differ in {} places:\n{}",
        left.display(),
        right.display(),
        found.len(),
        found[..found.len().min(20)].join("\n")
    );
}

/// A line for each difference.
pub fn differences(left: &Path, right: &Path, by: Compare) -> Vec<String> {
    let mut out = vec![];
    let a: BTreeMap<_, _> = walk(left).into_iter().collect();
    let b: BTreeMap<_, _> = walk(right).into_iter().collect();
    for p in a.keys().filter(|p| !b.contains_key(*p)) {
        out.push(format!("{p:?}: only left"));
    }
    for p in b.keys().filter(|p| !a.contains_key(*p)) {
        out.push(format!("{p:?}: only right"));
    }
    for (p, x) in &a {
        let Some(y) = b.get(p) else { continue };
        let mut differ = |what: &str, l: String, r: String| {
            if l != r {
                out.push(format!("{p:?}: {what}: {l} != {r}"));
            }
        };
        let type_of = |m: &fs::Metadata| m.mode() & libc::S_IFMT;
        differ("type", format!("{:o}", type_of(x)), format!("{:o}", type_of(y)));
        if type_of(x) != type_of(y) {
            continue;
        }
        differ("mode", format!("{:o}", x.permissions().mode()), format!("{:o}", y.permissions().mode()));
        differ("owner", format!("{}:{}", x.uid(), x.gid()), format!("{}:{}", y.uid(), y.gid()));
        if by.times && (by.dir_times || !x.is_dir()) {
            differ(
                "mtime",
                format!("{}.{:09}", x.mtime(), x.mtime_nsec()),
                format!("{}.{:09}", y.mtime(), y.mtime_nsec()),
            );
        }
        if by.hard_links && !x.is_dir() {
            differ("links", x.nlink().to_string(), y.nlink().to_string());
        }
        let kind = x.file_type();
        if kind.is_char_device() || kind.is_block_device() {
            differ("device", x.rdev().to_string(), y.rdev().to_string());
        }
        let (l, r) = (left.join(p), right.join(p));
        if kind.is_symlink() {
            differ("target", format!("{:?}", fs::read_link(&l)), format!("{:?}", fs::read_link(&r)));
        }
        if by.xattrs && !kind.is_symlink() {
            differ("xattrs", format!("{:?}", xattrs(&l)), format!("{:?}", xattrs(&r)));
        }
        if kind.is_file() {
            differ("size", x.size().to_string(), y.size().to_string());
            if x.size() == y.size() {
                differ("content", "same".into(), content_difference(&l, &r, x.size()));
            }
            if by.holes && x.size() > 1 << 20 && x.blocks() * 512 < x.size() / 2 && y.blocks() * 512 > x.size() / 2 {
                differ("allocated", (x.blocks() * 512).to_string(), (y.blocks() * 512).to_string());
            }
        }
    }
    if by.hard_links {
        let (l, r) = (link_groups(&a), link_groups(&b));
        out.extend(l.difference(&r).map(|g| format!("hard links only left: {g:?}")));
        out.extend(r.difference(&l).map(|g| format!("hard links only right: {g:?}")));
    }
    out
}

fn xattrs(path: &Path) -> Vec<(String, Vec<u8>)> {
    let names = list_xattr(path).unwrap().into_iter().filter(|n| n.starts_with(b"user."));
    names.map(|n| (String::from_utf8_lossy(&n).into_owned(), get_xattr(path, OsStr::from_bytes(&n)).unwrap())).collect()
}

fn link_groups(tree: &BTreeMap<PathBuf, fs::Metadata>) -> BTreeSet<Vec<&PathBuf>> {
    let mut by_inode: BTreeMap<u64, Vec<&PathBuf>> = BTreeMap::new();
    for (p, m) in tree.iter().filter(|(_, m)| m.is_file()) {
        by_inode.entry(m.ino()).or_default().push(p);
    }
    by_inode.into_values().filter(|g| g.len() > 1).collect()
}

/// "same", or where and how the first difference lies.
fn content_difference(l: &Path, r: &Path, size: u64) -> String {
    let (a, b) = match (File::open(l), File::open(r)) {
        (Ok(a), Ok(b)) => (a, b),
        (a, b) => return format!("cannot be opened: {:?} {:?}", a.err(), b.err()),
    };
    let (mut x, mut y) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    while at < size {
        let n = ((size - at) as usize).min(x.len());
        if let (Err(e), _) | (_, Err(e)) = (a.read_exact_at(&mut x[..n], at), b.read_exact_at(&mut y[..n], at)) {
            return format!("at {at}: {e}");
        }
        if x[..n] != y[..n] {
            let i = (0..n).find(|&i| x[i] != y[i]).unwrap();
            let run = (i..n).take_while(|&j| x[j] != y[j]).count();
            return format!("differs from byte {} on, {run} bytes: {:02x} {:02x}", at + i as u64, x[i], y[i]);
        }
        at += n as u64;
    }
    "same".into()
}

/// Whether the place where the tests run keeps the xattrs that a test wants to compare; ssefs must.
pub fn keeps_xattrs(dir: &Path) -> bool {
    let probe = dir.join(".probe");
    fs::write(&probe, b"").unwrap();
    let kept = set_xattr(&probe, "user.probe", b"1").is_ok();
    fs::remove_file(&probe).unwrap();
    assert!(kept || plain(), "a mount must keep user xattrs");
    kept
}
