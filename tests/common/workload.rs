//! Random but reproducible work on a directory: chooses operations that are possible in the model's state,
//! carries each out as one request to the file system, and writes the history that a crash is judged by.
#![allow(dead_code)]

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::history::History;
use super::model::{Op, State, pattern};
use super::rng::Rng;

/// Above this a write could reach the file system as two requests, and half of it be a state of its own.
const WRITE_MAX: u64 = 128 * 1024;
const FILE_MAX: u64 = 512 * 1024;
const NAMES_MAX: usize = 24;

/// A worker: its choices, and what it has open.
pub struct Worker {
    rng: Rng,
    queue: VecDeque<Op>,
    held: Option<File>,
    tag: u64,
    fsync_percent: u64,
    /// Every write goes through the kernel's page cache, not only those of files opened to read and write.
    pub page_cache: bool,
    /// Has the bucket give back its room; done now and then between two operations.
    pub compact: Option<Box<dyn Fn() -> io::Result<()> + Send>>,
}

/// How a run ended.
#[derive(Debug)]
pub enum Ended {
    /// All operations were carried out, or the caller said stop.
    Done,
    /// This operation failed; it stands in the history as one that may have happened.
    Failed(Op, io::Error),
}

impl Worker {
    /// A worker whose choices follow from `seed`, which also marks the bytes it writes.
    pub fn new(seed: u64) -> Worker {
        // SAFETY: sets one number of the process. The model's modes are those under this umask.
        unsafe { libc::umask(0o022) };
        let mut rng = Rng::new(seed ^ 0x5eed);
        let fsync_percent = *rng.pick(&[4, 10, 25]);
        let tag = (seed & 0xffff) << 24;
        Worker { rng, queue: VecDeque::new(), held: None, tag, fsync_percent, page_cache: false, compact: None }
    }

    /// Carries out up to `count` operations below `root`, until one fails or `stop` says so after one.
    /// `clock` ticks at each begin and end; `synced` is called with the tick before an fsync that succeeded.
    pub fn run(
        &mut self,
        root: &Path,
        history: &mut History,
        count: usize,
        clock: &AtomicU64,
        stop: &dyn Fn() -> bool,
        synced: &dyn Fn(u64),
    ) -> Ended {
        for _ in 0..count {
            if let Some(compact) = &self.compact
                && self.tag % 9 == 4
                && let Err(error) = compact()
            {
                return Ended::Failed(Op::Fsync { path: "compaction".into() }, error);
            }
            let op = self.next(history.now());
            let begin = clock.fetch_add(1, Ordering::SeqCst);
            let done = self.carry_out(root, history.now(), &op);
            let end = clock.fetch_add(1, Ordering::SeqCst);
            let is_fsync = matches!(op, Op::Fsync { .. });
            match done {
                Ok(()) => {
                    self.record(history, op, (begin, end));
                    if is_fsync {
                        history.acknowledge();
                        synced(begin);
                    }
                }
                Err(error) => {
                    self.record(history, op.clone(), (begin, u64::MAX));
                    return Ended::Failed(op, error);
                }
            }
            if stop() {
                break;
            }
        }
        Ended::Done
    }

    /// Writes an operation into the history, in the requests that it reaches the file system as: the page cache
    /// sends a page that is written in part, and was not read before, by itself.
    fn record(&self, history: &mut History, op: Op, span: (u64, u64)) {
        let size = |path: &str| history.now().size(path);
        let (offset, len) = match &op {
            Op::Write { offset, len, read_write, .. } if self.page_cache || *read_write => (*offset, *len),
            Op::Append { path, len, .. } if self.page_cache => (size(path), *len),
            Op::HeldWrite { offset, len, .. } if self.page_cache => (*offset, *len),
            _ => return history.push(op, span),
        };
        let end = offset + len;
        let mut cuts = vec![offset, offset.next_multiple_of(4096).min(end), end & !4095, end];
        cuts.retain(|at| *at >= offset);
        cuts.dedup();
        for (from, to) in cuts.iter().zip(&cuts[1..]) {
            history.push(part_of(&op, *from, to - from), span);
        }
    }

    /// Closes what is held open.
    pub fn release(&mut self, history: &mut History) {
        self.held = None;
        self.queue.clear();
        let last = history.states.len() - 1;
        history.states[last].release();
    }

    fn tag(&mut self) -> u64 {
        self.tag += 1;
        self.tag
    }

    fn len(&mut self) -> u64 {
        match self.rng.below(5) {
            0 => 1 + self.rng.below(100),
            1 => 4096,
            2 => 16_384 * (1 + self.rng.below(4)),
            _ => 1 + self.rng.below(WRITE_MAX / 2),
        }
    }

    fn new_path(&mut self, state: &State) -> String {
        let mut dirs = state.dirs();
        dirs.retain(|d| d.matches('/').count() < 3);
        let place = self.rng.below(2 * dirs.len() as u64 + 2) as usize;
        let prefix = dirs.get(place).map_or(String::new(), |d| format!("{d}/"));
        loop {
            let path = format!("{prefix}{}", *self.rng.pick(&NAME_PARTS));
            let path = format!("{path}{}", self.rng.below(40));
            if !state.exists(&path) {
                return path;
            }
        }
    }

    fn next(&mut self, state: &State) -> Op {
        while let Some(op) = self.queue.pop_front() {
            if possible(state, &op) {
                return op;
            }
        }
        let files = state.files();
        let dirs = state.dirs();
        if self.rng.chance(self.fsync_percent) {
            let place = self.rng.below(files.len() as u64 + dirs.len() as u64 + 1) as usize;
            let path = files.iter().chain(&dirs).nth(place).cloned().unwrap_or_default();
            return Op::Fsync { path };
        }
        if files.is_empty() {
            return Op::Create { path: self.new_path(state), mode: 0o644 };
        }
        if files.len() + dirs.len() >= NAMES_MAX {
            return Op::Unlink { path: self.rng.pick(&files).clone() };
        }
        let path = self.rng.pick(&files).clone();
        let size = state.size(&path);
        let tag = self.tag();
        match self.rng.below(100) {
            0..10 => {
                let mode = *self.rng.pick(&[0o644, 0o600, 0o755]);
                let path = self.new_path(state);
                let len = self.len();
                self.queue.push_back(Op::Append { path: path.clone(), len, tag });
                Op::Create { path, mode }
            }
            10..28 => {
                let offset = self.rng.below(size + 1);
                let offset = if self.rng.chance(50) { offset & !4095 } else { offset };
                Op::Write { path, offset, len: self.len(), tag, read_write: self.rng.chance(30) }
            }
            // Leaves a hole.
            28..33 => {
                let offset = (size + self.rng.below(150_000)).min(FILE_MAX);
                Op::Write { path, offset, len: self.len(), tag, read_write: false }
            }
            33..48 if size < FILE_MAX => Op::Append { path, len: self.len(), tag },
            48..54 => Op::Truncate { path, size: self.rng.below(size + 1) },
            54..56 => Op::Truncate { path, size: (size + self.rng.below(50_000)).min(FILE_MAX) },
            56..59 => Op::Punch { path, offset: self.rng.below(size + 1), len: self.len() },
            // What editors, rsync and package managers do.
            59..69 => {
                let tmp = self.new_path(state);
                let len = self.len();
                self.queue.push_back(Op::Append { path: tmp.clone(), len, tag });
                if self.rng.chance(40) {
                    self.queue.push_back(Op::Fsync { path: tmp.clone() });
                }
                self.queue.push_back(Op::Rename { from: tmp.clone(), to: path });
                Op::Create { path: tmp, mode: 0o600 }
            }
            69..75 => Op::Rename { from: path, to: self.new_path(state) },
            75..78 => Op::Rename { from: path, to: self.rng.pick(&files).clone() },
            78..83 => Op::Unlink { path },
            83..87 => Op::Mkdir { path: self.new_path(state) },
            87..89 => match dirs.iter().find(|d| state.is_empty_dir(d)) {
                Some(path) => Op::Rmdir { path: path.clone() },
                None => Op::Mkdir { path: self.new_path(state) },
            },
            89..91 if !dirs.is_empty() => {
                let from = self.rng.pick(&dirs).clone();
                let to = self.new_path(state);
                let inside = to.starts_with(&format!("{from}/"));
                if inside { Op::Unlink { path } } else { Op::Rename { from, to } }
            }
            91..94 => Op::Link { from: path, to: self.new_path(state) },
            94..95 => Op::Symlink { path: self.new_path(state), target: path },
            95..97 => Op::Chmod { path, mode: *self.rng.pick(&[0o600, 0o644, 0o640, 0o755]) },
            97..98 => {
                for _ in 0..3 {
                    let (offset, len, tag) = (self.rng.below(60_000), self.len(), self.tag());
                    self.queue.push_back(Op::HeldWrite { offset, len, tag });
                }
                self.queue.push_back(Op::Unlink { path: path.clone() });
                Op::Hold { path }
            }
            _ if state.holds() => Op::HeldWrite { offset: self.rng.below(60_000), len: self.len(), tag },
            _ => Op::Append { path, len: 1 + self.rng.below(500), tag },
        }
    }

    fn carry_out(&mut self, root: &Path, state: &State, op: &Op) -> io::Result<()> {
        let at = |path: &str| root.join(path);
        match op {
            Op::Create { path, mode } => {
                let mut options = OpenOptions::new();
                options.write(true).create_new(true).mode(*mode).open(at(path)).map(drop)
            }
            Op::Write { path, offset, len, tag, read_write } => {
                let file = OpenOptions::new().write(true).read(*read_write).open(at(path))?;
                write_once(&file, &pattern(*tag, *offset, *len), *offset)
            }
            Op::Append { path, len, tag } => {
                let file = OpenOptions::new().append(true).open(at(path))?;
                let bytes = pattern(*tag, state.size(path), *len);
                whole(io::Write::write(&mut &file, &bytes)?, bytes.len())
            }
            Op::Truncate { path, size } => OpenOptions::new().write(true).open(at(path))?.set_len(*size),
            Op::Punch { path, offset, len } => {
                let file = OpenOptions::new().write(true).open(at(path))?;
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                // SAFETY: a plain system call on an open file.
                let done = unsafe { libc::fallocate(file.as_raw_fd(), mode, *offset as i64, *len as i64) };
                if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
            }
            Op::Rename { from, to } => fs::rename(at(from), at(to)),
            Op::Link { from, to } => fs::hard_link(at(from), at(to)),
            Op::Symlink { path, target } => std::os::unix::fs::symlink(target, at(path)),
            Op::Unlink { path } => fs::remove_file(at(path)),
            Op::Mkdir { path } => fs::create_dir(at(path)),
            Op::Rmdir { path } => fs::remove_dir(at(path)),
            Op::Chmod { path, mode } => fs::set_permissions(at(path), PermissionsExt::from_mode(*mode)),
            Op::Hold { path } => {
                let file = OpenOptions::new().write(true).open(at(path))?;
                self.held = Some(file);
                Ok(())
            }
            Op::HeldWrite { offset, len, tag } => match &self.held {
                Some(file) => write_once(file, &pattern(*tag, *offset, *len), *offset),
                None => Err(io::Error::other("no file is held open")),
            },
            Op::Fsync { path } => File::open(at(path))?.sync_all(),
        }
    }
}

const NAME_PARTS: [&str; 6] = ["a", "b", "report-", "Makefile.", "données ", "x"];

/// The part of a write at `from`, `n` bytes long.
fn part_of(op: &Op, from: u64, n: u64) -> Op {
    let mut part = op.clone();
    match &mut part {
        Op::Write { offset, len, .. } | Op::HeldWrite { offset, len, .. } => (*offset, *len) = (from, n),
        Op::Append { len, .. } => *len = n,
        _ => {}
    }
    part
}

fn possible(state: &State, op: &Op) -> bool {
    match op {
        Op::Append { path, .. } | Op::Unlink { path } | Op::Fsync { path } => state.exists(path),
        Op::Rename { from, to } => state.exists(from) && state.exists(to),
        Op::HeldWrite { .. } => state.holds(),
        _ => true,
    }
}

/// One write call; a short one would make the model wrong, so it is an error.
fn write_once(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    whole(file.write_at(bytes, offset)?, bytes.len())
}

fn whole(written: usize, asked: usize) -> io::Result<()> {
    if written == asked {
        return Ok(());
    }
    Err(io::Error::other(format!("a short write: {written} of {asked} bytes")))
}
