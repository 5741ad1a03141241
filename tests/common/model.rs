//! What a directory must look like: an in-memory tree, the operations that change it, and its comparison with a real
//! directory, by names, kinds, modes, link counts, sizes and every byte.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

/// Bytes of one record of self-describing content.
pub const RECORD: usize = 32;

/// `len` bytes of the endless stream named `tag`, from `offset`: each 32-byte record names the stream and its own
/// place, so that a stray block tells where it came from.
pub fn pattern(tag: u64, offset: u64, len: u64) -> Vec<u8> {
    let first = offset / RECORD as u64;
    let skip = (offset % RECORD as u64) as usize;
    let mut out = Vec::with_capacity(len as usize + 2 * RECORD);
    let mut record = first;
    while out.len() < skip + len as usize {
        out.extend_from_slice(format!("tag {tag:010x} at {record:012x}.\n").as_bytes());
        record += 1;
    }
    out.drain(..skip);
    out.truncate(len as usize);
    out
}

/// One system call on the mount, besides the open and close around it. Paths are relative to the model's root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Create {
        path: String,
        mode: u32,
    },
    Write {
        path: String,
        offset: u64,
        len: u64,
        tag: u64,
        read_write: bool,
    },
    Append {
        path: String,
        len: u64,
        tag: u64,
    },
    Truncate {
        path: String,
        size: u64,
    },
    Punch {
        path: String,
        offset: u64,
        len: u64,
    },
    Rename {
        from: String,
        to: String,
    },
    Link {
        from: String,
        to: String,
    },
    Symlink {
        path: String,
        target: String,
    },
    Unlink {
        path: String,
    },
    Mkdir {
        path: String,
    },
    Rmdir {
        path: String,
    },
    Chmod {
        path: String,
        mode: u32,
    },
    /// Opens a file and keeps it open, whatever happens to its name.
    Hold {
        path: String,
    },
    /// Writes through the file that is held open.
    HeldWrite {
        offset: u64,
        len: u64,
        tag: u64,
    },
    Fsync {
        path: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    Dir { mode: u32 },
    File(u64),
    Symlink(String),
}

#[derive(Clone, Debug)]
struct FileState {
    content: Arc<Vec<u8>>,
    mode: u32,
}

/// The tree at one moment.
#[derive(Clone, Debug, Default)]
pub struct State {
    names: BTreeMap<String, Name>,
    files: BTreeMap<u64, FileState>,
    held: Option<u64>,
    next_file: u64,
}

impl State {
    /// The paths of all files (not symlinks), in order.
    pub fn files(&self) -> Vec<String> {
        self.paths(|name| matches!(name, Name::File(_)))
    }

    /// The paths of all directories but the root, in order.
    pub fn dirs(&self) -> Vec<String> {
        self.paths(|name| matches!(name, Name::Dir { .. }))
    }

    /// The paths of all symlinks, in order.
    pub fn symlinks(&self) -> Vec<String> {
        self.paths(|name| matches!(name, Name::Symlink(_)))
    }

    fn paths(&self, want: impl Fn(&Name) -> bool) -> Vec<String> {
        self.names.iter().filter(|(_, n)| want(n)).map(|(p, _)| p.clone()).collect()
    }

    /// Whether the path names anything.
    pub fn exists(&self, path: &str) -> bool {
        self.names.contains_key(path)
    }

    /// Whether a directory has nothing in it.
    pub fn is_empty_dir(&self, path: &str) -> bool {
        let below = format!("{path}/");
        !self.names.keys().any(|p| p.starts_with(&below))
    }

    /// Whether two paths are hard links of one file.
    pub fn same_file(&self, a: &str, b: &str) -> bool {
        matches!((self.names.get(a), self.names.get(b)), (Some(Name::File(a)), Some(Name::File(b))) if a == b)
    }

    /// Bytes in a file; 0 for what is none.
    pub fn size(&self, path: &str) -> u64 {
        self.file_id(path).map_or(0, |id| self.files[&id].content.len() as u64)
    }

    /// Whether a file is held open.
    pub fn holds(&self) -> bool {
        self.held.is_some()
    }

    /// The program that held a file open is gone.
    pub fn release(&mut self) {
        self.held = None;
    }

    fn file_id(&self, path: &str) -> Option<u64> {
        match self.names.get(path) {
            Some(Name::File(id)) => Some(*id),
            _ => None,
        }
    }

    fn edit(&mut self, id: Option<u64>, change: impl FnOnce(&mut Vec<u8>)) {
        if let Some(file) = id.and_then(|id| self.files.get_mut(&id)) {
            change(Arc::make_mut(&mut file.content));
        }
    }

    fn write(&mut self, id: Option<u64>, offset: u64, len: u64, tag: u64) {
        self.edit(id, |bytes| {
            let end = (offset + len) as usize;
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[offset as usize..end].copy_from_slice(&pattern(tag, offset, len));
        });
    }

    /// The tree after the operation, which must be possible in this one.
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::Create { path, mode } => {
                self.next_file += 1;
                let file = FileState { content: Arc::default(), mode: *mode };
                self.files.insert(self.next_file, file);
                self.names.insert(path.clone(), Name::File(self.next_file));
            }
            Op::Write { path, offset, len, tag, .. } => {
                self.write(self.file_id(path), *offset, *len, *tag);
            }
            Op::Append { path, len, tag } => {
                self.write(self.file_id(path), self.size(path), *len, *tag);
            }
            Op::Truncate { path, size } => {
                self.edit(self.file_id(path), |bytes| bytes.resize(*size as usize, 0));
            }
            Op::Punch { path, offset, len } => self.edit(self.file_id(path), |bytes| {
                let end = bytes.len().min((offset + len) as usize);
                if (*offset as usize) < end {
                    bytes[*offset as usize..end].fill(0);
                }
            }),
            Op::Rename { from, to } => {
                if !self.same_file(from, to) {
                    self.rename(from, to);
                }
            }
            Op::Link { from, to } => {
                if let Some(id) = self.file_id(from) {
                    self.names.insert(to.clone(), Name::File(id));
                }
            }
            Op::Symlink { path, target } => {
                self.names.insert(path.clone(), Name::Symlink(target.clone()));
            }
            Op::Unlink { path } | Op::Rmdir { path } => {
                self.names.remove(path);
            }
            Op::Mkdir { path } => {
                self.names.insert(path.clone(), Name::Dir { mode: 0o755 });
            }
            Op::Chmod { path, mode } => match self.names.get_mut(path) {
                Some(Name::Dir { mode: old }) => *old = *mode,
                Some(Name::File(id)) => {
                    if let Some(file) = self.files.get_mut(id) {
                        file.mode = *mode;
                    }
                }
                _ => {}
            },
            Op::Hold { path } => self.held = self.file_id(path),
            Op::HeldWrite { offset, len, tag } => self.write(self.held, *offset, *len, *tag),
            Op::Fsync { .. } => {}
        }
    }

    fn rename(&mut self, from: &str, to: &str) {
        let below = format!("{from}/");
        let moved: Vec<String> =
            self.names.keys().filter(|path| *path == from || path.starts_with(&below)).cloned().collect();
        for path in moved {
            if let Some(name) = self.names.remove(&path) {
                self.names.insert(format!("{to}{}", &path[from.len()..]), name);
            }
        }
    }

    /// The first thing in which the directory seen differs, None where nothing does.
    pub fn difference(&self, seen: &Seen) -> Option<String> {
        for path in seen.0.keys() {
            if !self.names.contains_key(path) {
                return Some(format!("{path} is there and should not be"));
            }
        }
        let mut links: BTreeMap<u64, u64> = BTreeMap::new();
        for name in self.names.values() {
            if let Name::File(id) = name {
                *links.entry(*id).or_default() += 1;
            }
        }
        let mut inodes: BTreeMap<u64, u64> = BTreeMap::new();
        for (path, name) in &self.names {
            let Some(found) = seen.0.get(path) else {
                return Some(format!("{path} is missing"));
            };
            let (kind, mode) = (found.mode & libc::S_IFMT, found.mode & 0o7777);
            match name {
                Name::Dir { mode: want } if kind == libc::S_IFDIR => {
                    if mode != *want {
                        return Some(format!("{path}: mode {mode:o}, should be {want:o}"));
                    }
                }
                Name::Symlink(target) if kind == libc::S_IFLNK => {
                    if found.content != target.as_bytes() {
                        return Some(format!("{path}: another target"));
                    }
                }
                Name::File(id) if kind == libc::S_IFREG => {
                    let want = &self.files[id];
                    if mode != want.mode {
                        return Some(format!("{path}: mode {mode:o}, should be {:o}", want.mode));
                    }
                    if found.nlink != links[id] {
                        return Some(format!("{path}: {} links, should be {}", found.nlink, links[id]));
                    }
                    if *inodes.entry(*id).or_insert(found.ino) != found.ino {
                        return Some(format!("{path}: its hard links are different files"));
                    }
                    if let Some(difference) = content_difference(&want.content, &found.content) {
                        return Some(format!("{path}: {difference}"));
                    }
                }
                _ => {
                    return Some(format!("{path}: kind {kind:o} where the model has {name:?}"));
                }
            }
        }
        None
    }
}

fn content_difference(want: &[u8], found: &[u8]) -> Option<String> {
    if want == found {
        return None;
    }
    let at = want.iter().zip(found).position(|(a, b)| a != b).unwrap_or(want.len().min(found.len()));
    let record = at / RECORD * RECORD;
    let show = |bytes: &[u8]| {
        let part = &bytes[record.min(bytes.len())..bytes.len().min(record + RECORD)];
        String::from_utf8_lossy(part).escape_debug().to_string()
    };
    Some(format!(
        "size {} should be {}; first difference at {at}: found \"{}\", should be \"{}\"",
        found.len(),
        want.len(),
        show(found),
        show(want)
    ))
}

/// One entry of a real directory tree.
pub struct Found {
    mode: u32,
    nlink: u64,
    ino: u64,
    content: Vec<u8>,
}

/// A real directory tree, read whole.
pub struct Seen(BTreeMap<String, Found>);

impl Seen {
    /// Reads everything below `root`; an entry that cannot be read is an error that names it.
    pub fn read(root: &Path) -> Result<Seen, String> {
        let mut seen = BTreeMap::new();
        read_dir(root, "", &mut seen)?;
        Ok(Seen(seen))
    }
}

fn read_dir(dir: &Path, prefix: &str, seen: &mut BTreeMap<String, Found>) -> Result<(), String> {
    let fail = |what: &str, e: std::io::Error| format!("{what}: {e}");
    for entry in fs::read_dir(dir).map_err(|e| fail(&format!("readdir of '{prefix}'"), e))? {
        let entry = entry.map_err(|e| fail(&format!("readdir of '{prefix}'"), e))?;
        let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let meta = fs::symlink_metadata(entry.path()).map_err(|e| fail(&format!("stat of {path}"), e))?;
        let content = if meta.is_file() {
            fs::read(entry.path()).map_err(|e| fail(&format!("read of {path}"), e))?
        } else if meta.is_symlink() {
            let target = fs::read_link(entry.path()).map_err(|e| fail(&format!("readlink of {path}"), e))?;
            target.to_string_lossy().into_owned().into_bytes()
        } else {
            read_dir(&entry.path(), &format!("{path}/"), seen)?;
            Vec::new()
        };
        if meta.is_file() && content.len() as u64 != meta.len() {
            return Err(format!("{path}: stat says {} bytes, read gives {}", meta.len(), content.len()));
        }
        let found = Found { mode: meta.mode(), nlink: meta.nlink(), ino: meta.ino(), content };
        seen.insert(path, found);
    }
    Ok(())
}
