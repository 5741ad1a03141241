//! Objects and the log under them: seals and maps verify, chunks lie inside their segments and over no other, and what
//! inodes and segments count is the sum of their chunks.

use std::collections::{BTreeMap, HashSet};

use super::report::{Code, Log, Problem};
use super::{PAGE, catalog, stop_if_cancelled};
use crate::bucket::{BucketError, Inspection, Seen};
use crate::catalog::{CatalogError, InodeRow, SegmentRow};
use crate::ops::{OpError, Progress};
use crate::types::BLOCK;

const RESTORE: &str = "restore the object from a copy of the store";
const PUT_BACK: &str = "put the segment's file back from a copy of the store";
const SPACE: &str = "no content is lost; it is space that is not given back";

/// One segment, and the chunks in it.
struct Segment {
    row: SegmentRow,
    live: u64,
    /// (start, end, object); chunks of one object behind each other are one.
    taken: Vec<(u64, u64, u64)>,
}

#[derive(Default)]
struct Walked {
    segments: BTreeMap<u32, Segment>,
    nodes: HashSet<u64>,
    /// Some map could not be read to its end: what it uses is unknown.
    lost: u64,
    locked: u64,
}

pub(super) fn check(view: &Inspection, progress: &dyn Progress, log: &mut Log) -> Result<(), OpError> {
    let rows = view.rows();
    let mut w = Walked::default();
    for row in rows.segments().map_err(catalog)? {
        w.segments.insert(row.id, Segment { row, live: 0, taken: Vec::new() });
    }
    log.report.segments = w.segments.len() as u64;
    progress.stage("objects", Some(log.report.inodes));
    let mut after = 0;
    loop {
        stop_if_cancelled(progress)?;
        let page = rows.inodes_after(after, PAGE).map_err(catalog)?;
        let Some(last) = page.last() else { break };
        after = last.ino;
        for row in &page {
            object(view, row, &mut w, log)?;
        }
        progress.advance(page.len() as u64);
    }
    segments(view, &mut w, progress, log)?;
    if w.lost > 0 {
        log.report.notes.push(format!(
            "what the maps of {} objects used is unknown: unused nodes and the segments' live bytes were not checked",
            w.lost
        ));
    } else {
        leaks(view, &w, log)?;
    }
    if w.locked > 0 {
        log.report.locked_objects = Some(w.locked);
        log.report.notes.push(format!("{} objects were not verified: their key is not to be had now", w.locked));
    }
    log.report.nodes = w.nodes.len() as u64;
    Ok(())
}

fn object(view: &Inspection, row: &InodeRow, w: &mut Walked, log: &mut Log) -> Result<(), OpError> {
    let bad = |code, what: String| Problem::new(code, what, RESTORE).object(row.ino);
    let seal = match view.rows().seal(row.ino) {
        Ok(seal) => seal,
        Err(CatalogError::BadRow { why, .. }) => {
            w.lost += 1;
            log.problem(bad(Code::Seal, why.into()).range(0, row.size));
            return Ok(());
        }
        Err(e) => return Err(BucketError::from(e).into()),
    };
    let is_file = row.mode & libc::S_IFMT == libc::S_IFREG;
    let Some(seal) = seal else {
        if is_file && row.size > 0 {
            w.lost += 1;
            log.problem(bad(Code::Seal, "its seal is missing".into()).range(0, row.size));
        } else if row.sealed > 0 {
            log.problem(bad(Code::Sealed, format!("it counts {} bytes of log and has no content", row.sealed)));
        }
        return Ok(());
    };
    if !is_file {
        log.problem(bad(Code::Seal, "it has content and is no regular file".into()));
    }
    log.report.objects += 1;
    let request = view.request(row.ino)?.unwrap_or_default();
    let (mut sealed, mut chunks, mut shown, mut beyond) = (0u64, 0u64, 0u64, None);
    let (mut lost, mut sound) = (false, true);
    let mut found = Vec::new();
    let Walked { segments, nodes, locked, .. } = &mut *w;
    view.object(row, &seal, request.as_ref(), &mut |seen| {
        match seen {
            Seen::Node(id) => {
                if !nodes.insert(id) {
                    lost = true;
                    found.push(bad(Code::Node, format!("node {id} is used twice")));
                    return false;
                }
            }
            Seen::Chunk { at, frame_bytes } => {
                (sealed, chunks) = (sealed + frame_bytes as u64, chunks + 1);
                let (start, end) = (at.position as u64, at.position as u64 + frame_bytes as u64);
                match segments.get_mut(&at.segment) {
                    Some(s) => {
                        s.live += frame_bytes as u64;
                        if start < BLOCK as u64 || end > s.row.bytes {
                            let what = format!(
                                "a chunk at {start} to {end} lies outside its segment of {} bytes",
                                s.row.bytes
                            );
                            found.push(bad(Code::Chunk, what).segment(at.segment));
                        }
                        match s.taken.last_mut() {
                            Some(last) if last.1 == start && last.2 == row.ino => last.1 = end,
                            _ => s.taken.push((start, end, row.ino)),
                        }
                    }
                    None => found.push(
                        bad(Code::Chunk, "a chunk lies in a segment that is not known".into()).segment(at.segment),
                    ),
                }
            }
            Seen::Shown { from, to } => {
                shown += to - from;
                if to > row.size {
                    beyond = beyond.max(Some(to));
                }
            }
            Seen::BadSeal(why) => {
                sound = false;
                found.push(bad(Code::Seal, why).range(0, row.size));
            }
            Seen::Locked => *locked += 1,
            Seen::BadMap { from, to, why, lost: gone } => {
                lost |= gone;
                found.push(bad(Code::Map, why.into()).range(from, to.min(row.size.max(from + 1))));
            }
        }
        true
    })?;
    if let (Some(to), true) = (beyond, sound) {
        found.push(bad(Code::Map, "it maps bytes behind the file's end".into()).range(row.size, to));
    }
    if sealed != row.sealed && !lost && sound {
        found.push(bad(Code::Sealed, format!("it counts {} bytes of log and has {sealed}", row.sealed)));
    }
    w.lost += lost as u64;
    log.report.chunks += chunks;
    log.report.bytes += shown;
    found.into_iter().for_each(|p| log.problem(p));
    Ok(())
}

fn segments(view: &Inspection, w: &mut Walked, progress: &dyn Progress, log: &mut Log) -> Result<(), OpError> {
    progress.stage("segments", Some(w.segments.len() as u64));
    for (&id, s) in &mut w.segments {
        stop_if_cancelled(progress)?;
        s.taken.sort_unstable();
        for pair in s.taken.windows(2) {
            if pair[1].0 < pair[0].1 {
                let what = format!("a chunk at {} lies over one of object {}", pair[1].0, pair[0].2);
                log.problem(Problem::new(Code::Chunk, what, RESTORE).object(pair[1].2).segment(id));
            }
        }
        if w.lost == 0 && s.live != s.row.live {
            let what = format!("the catalog counts {} live bytes in it and its chunks are {}", s.row.live, s.live);
            log.problem(Problem::new(Code::Segment, what, SPACE).segment(id));
        }
        // A segment with nothing live is removed before its row is.
        if s.row.live == 0 && s.live == 0 {
            progress.advance(1);
            continue;
        }
        match view.segment(id) {
            Ok(bytes) if bytes < s.row.bytes => {
                let what = format!("it is {bytes} bytes long and should be {}", s.row.bytes);
                log.problem(Problem::new(Code::Segment, what, PUT_BACK).segment(id));
            }
            Ok(_) => {}
            Err(e) => log.problem(Problem::new(Code::Segment, e.to_string(), PUT_BACK).segment(id)),
        }
        progress.advance(1);
    }
    Ok(())
}

fn leaks(view: &Inspection, w: &Walked, log: &mut Log) -> Result<(), OpError> {
    let (mut after, mut unused, mut example) = (0, 0u64, 0);
    loop {
        let page = view.rows().node_ids_after(after, PAGE).map_err(catalog)?;
        let Some(&last) = page.last() else { break };
        after = last;
        for id in page.iter().filter(|id| !w.nodes.contains(id)) {
            (unused, example) = (unused + 1, *id);
        }
    }
    if unused > 0 {
        let what = format!("{unused} nodes belong to no map (one is {example})");
        log.problem(Problem::new(Code::Node, what, SPACE));
    }
    Ok(())
}
