//! The namespace: every name leads to an inode of its kind, every inode has the names it counts, and every directory
//! hangs below the root. Names are read once for each million inodes, so that memory does not grow with the bucket.

use std::collections::{BTreeMap, HashMap};

use super::report::{Code, Log, Problem};
use super::{PAGE, catalog, stop_if_cancelled};
use crate::bucket::{Inspection, ROOT};
use crate::catalog::{FLAG_REQUEST, FLAG_XATTR, InodeRow, Reader};
use crate::ops::{OpError, Progress};

/// Inodes held in memory at once.
const WINDOW: usize = 1 << 20;
const STRAYS_MAX: usize = 1000;
const RESTORE: &str = "restore the catalog from a copy of the store, or remove the name and put the file back";
const COUNTS: &str = "nothing is lost: copy what is named here to another name and delete it";

/// An inode of the window.
struct Held {
    mode: u32,
    nlink: u32,
    parent: u64,
    names: u32,
    subdirectories: u32,
}

pub(super) fn check(view: &Inspection, progress: &dyn Progress, log: &mut Log) -> Result<(), OpError> {
    let rows = view.rows();
    log.report.inodes = rows.inode_count().map_err(catalog)?;
    progress.stage("names", Some(log.report.inodes));
    let mut directories: HashMap<u64, u64> = HashMap::new();
    let mut after = 0;
    let mut first = true;
    loop {
        let mut window: BTreeMap<u64, Held> = BTreeMap::new();
        let begin = after;
        while window.len() < WINDOW {
            stop_if_cancelled(progress)?;
            let page = rows.inodes_after(after, PAGE).map_err(catalog)?;
            let Some(last) = page.last() else { break };
            after = last.ino;
            for row in &page {
                attributes(view, row, log)?;
                let held = Held { mode: row.mode, nlink: row.nlink, parent: row.parent, names: 0, subdirectories: 0 };
                window.insert(row.ino, held);
            }
            progress.advance(page.len() as u64);
        }
        let whole = window.len() < WINDOW;
        let upto = if whole { u64::MAX } else { after };
        names(rows, &mut window, (begin, upto), first, &mut directories, progress, log)?;
        for (ino, held) in &window {
            links(rows, *ino, held, log)?;
        }
        first = false;
        if whole {
            break;
        }
    }
    unreachable(&directories, log);
    for (table, ino) in rows.strays(STRAYS_MAX).map_err(catalog)? {
        let what = format!("a row of {table} belongs to an inode that is not there");
        log.problem(Problem::new(Code::Stray, what, COUNTS).object(ino));
    }
    Ok(())
}

fn is(mode: u32, kind: u32) -> bool {
    mode & libc::S_IFMT == kind
}

/// What hangs on one inode.
fn attributes(view: &Inspection, row: &InodeRow, log: &mut Log) -> Result<(), OpError> {
    let rows = view.rows();
    let mut bad = |code, what: &str| log.problem(Problem::new(code, what, RESTORE).object(row.ino));
    let target = rows.symlink(row.ino).map_err(catalog)?;
    match target {
        Some(t) if is(row.mode, libc::S_IFLNK) && t.len() as u64 != row.size => {
            bad(Code::Symlink, "its target has another length")
        }
        None if is(row.mode, libc::S_IFLNK) => bad(Code::Symlink, "the symbolic link has no target"),
        Some(_) if !is(row.mode, libc::S_IFLNK) => bad(Code::Symlink, "it has a link's target and is none"),
        _ => {}
    }
    // The flag alone is no harm: it stays when the last attribute is removed.
    if row.flags & FLAG_XATTR == 0 && rows.has_xattrs(row.ino).map_err(catalog)? {
        bad(Code::Attribute, "it has extended attributes that its flags deny");
    }
    match view.request(row.ino)? {
        Err(why) => bad(Code::Request, why),
        Ok(r) if r.is_some() != (row.flags & FLAG_REQUEST != 0) => {
            bad(
                Code::Request,
                if r.is_some() { "it has a request that its flags deny" } else { "its request is missing" },
            );
        }
        Ok(_) => {}
    }
    let orphan = rows.is_orphan(row.ino).map_err(catalog)?;
    if orphan != (row.nlink == 0) {
        bad(
            Code::Orphan,
            if orphan { "it is to be freed and has names" } else { "it has no names and is not to be freed" },
        );
    }
    Ok(())
}

#[allow(clippy::too_many_arguments)]
fn names(
    rows: &Reader,
    window: &mut BTreeMap<u64, Held>,
    (above, upto): (u64, u64),
    first: bool,
    directories: &mut HashMap<u64, u64>,
    progress: &dyn Progress,
    log: &mut Log,
) -> Result<(), OpError> {
    let dir_kind = (libc::S_IFDIR >> 12) as u8;
    let (mut parent, mut name) = (0, Vec::new());
    loop {
        stop_if_cancelled(progress)?;
        let page = rows.dirents_after(parent, &name, PAGE).map_err(catalog)?;
        let Some(last) = page.last() else { return Ok(()) };
        (parent, name) = (last.0, last.1.name.clone());
        if first {
            log.report.names += page.len() as u64;
        }
        for (parent, d) in page {
            let shown = || String::from_utf8_lossy(&d.name).into_owned();
            if first && d.kind == dir_kind && directories.insert(d.ino, parent).is_some() {
                let what = format!("the directory has a second name, {:?} in inode {parent}", shown());
                log.problem(Problem::new(Code::Directory, what, RESTORE).object(d.ino));
            }
            if d.ino > above && d.ino <= upto {
                match window.get_mut(&d.ino) {
                    None => {
                        let what =
                            format!("the name {:?} in directory {parent} leads to an inode that is not there", shown());
                        log.problem(Problem::new(Code::Name, what, RESTORE).object(d.ino));
                    }
                    Some(h) => {
                        h.names += 1;
                        if h.mode >> 12 != d.kind as u32 {
                            let what = format!("its name {:?} in directory {parent} says another file type", shown());
                            log.problem(Problem::new(Code::Name, what, RESTORE).object(d.ino));
                        }
                        if d.kind == dir_kind && h.parent != parent {
                            let what = format!("the directory is in {parent} and says {}", h.parent);
                            log.problem(Problem::new(Code::Directory, what, RESTORE).object(d.ino));
                        }
                    }
                }
            }
            if parent > above && parent <= upto {
                match window.get_mut(&parent) {
                    Some(h) if is(h.mode, libc::S_IFDIR) => h.subdirectories += (d.kind == dir_kind) as u32,
                    _ => {
                        let what = format!("the name {:?} is in {parent}, which is no directory", shown());
                        log.problem(Problem::new(Code::Name, what, RESTORE).object(d.ino));
                    }
                }
            }
        }
    }
}

fn links(rows: &Reader, ino: u64, h: &Held, log: &mut Log) -> Result<(), OpError> {
    let is_dir = is(h.mode, libc::S_IFDIR);
    let names = if ino == ROOT { 1 } else { h.names };
    let expect = match (names, is_dir) {
        (0, _) => 0,
        (_, true) => 2 + h.subdirectories,
        (n, false) => n,
    };
    if h.nlink == expect {
        return Ok(());
    }
    let what = match names {
        0 => format!("it counts {} links and has no name: it cannot be reached", h.nlink),
        n => format!("it counts {} links and should {expect} ({n} names)", h.nlink),
    };
    let todo = if names == 0 { RESTORE } else { COUNTS };
    // Without a name the content still can be had by whoever restores the name.
    let size = rows.inode(ino).map_err(catalog)?.map_or(0, |r| r.size);
    log.problem(Problem::new(Code::Links, what, todo).object(ino).range(0, size));
    Ok(())
}

/// Directories that no way leads to from the root: cycles, and what is below a directory without a name.
fn unreachable(parents: &HashMap<u64, u64>, log: &mut Log) {
    let mut known: HashMap<u64, bool> = HashMap::from([(ROOT, true)]);
    for &start in parents.keys() {
        let mut way = Vec::new();
        let mut at = start;
        let reached = loop {
            if let Some(&r) = known.get(&at) {
                break r;
            }
            // A directory of this very way again: a cycle.
            known.insert(at, false);
            way.push(at);
            match parents.get(&at) {
                Some(&up) => at = up,
                None => break false,
            }
        };
        for ino in way {
            known.insert(ino, reached);
        }
    }
    let mut lost: Vec<u64> = parents.keys().filter(|d| known.get(d) == Some(&false)).copied().collect();
    lost.sort_unstable();
    for ino in lost {
        log.problem(Problem::new(Code::Directory, "no way leads to the directory from the root", RESTORE).object(ino));
    }
}
