//! `ssefs check`: is everything in a bucket what was written, and does it fit together? Names, objects with their maps,
//! the log; with `read_data` every chunk is opened too. It changes nothing, and works while the bucket is in use: it
//! looks at the last commit, whose chunks it pins.

mod names;
mod objects;
mod report;

use std::time::Instant;

pub use report::{CheckReport, Code, Problem};

use super::{ErrorCode, OpError, Progress};
use crate::bucket::{BadChunk, Bucket, Watch};
use crate::catalog::CatalogError;
use parking_lot::Mutex;
use report::{Log, lost_path};
use std::collections::HashMap;

/// Inodes, names and nodes read at once.
const PAGE: usize = 1000;

/// How much is checked.
#[derive(Debug, Clone, Copy, Default)]
pub struct CheckOptions {
    /// Open every chunk, not only its map.
    pub read_data: bool,
}

/// Check a bucket as of now. Problems are no error: an error means that the check could not be made.
pub fn check(bucket: &Bucket, o: CheckOptions, progress: &dyn Progress) -> Result<CheckReport, OpError> {
    let begun = Instant::now();
    bucket.commit()?;
    let mut log = Log::default();
    {
        let view = bucket.inspect()?;
        let rows = view.rows();
        progress.stage("catalog", None);
        for line in rows.integrity().map_err(catalog)? {
            log.problem(Problem::new(Code::Catalog, line, "restore catalog.db from a copy of the store"));
        }
        names::check(&view, progress, &mut log)?;
        objects::check(&view, progress, &mut log)?;
        for p in &mut log.problems {
            p.path = p.object.and_then(|ino| lost_path(rows, ino));
        }
    }
    if o.read_data {
        read_data(bucket, progress, &mut log)?;
    }
    log.report.seconds = begun.elapsed().as_secs_f64();
    Ok(log.finish())
}

fn read_data(bucket: &Bucket, progress: &dyn Progress, log: &mut Log) -> Result<(), OpError> {
    progress.stage("data", Some(log.report.bytes));
    let bad: Mutex<Vec<BadChunk>> = Mutex::new(Vec::new());
    let read = std::sync::atomic::AtomicU64::new(0);
    bucket.read_everything(&Watch {
        bad: &|b| bad.lock().push(b),
        advance: &|n| {
            read.fetch_add(n, std::sync::atomic::Ordering::Relaxed);
            progress.advance(n);
        },
        stop: &|| progress.cancelled(),
    })?;
    stop_if_cancelled(progress)?;
    log.report.bytes_read = read.into_inner();
    let mut bad = bad.into_inner();
    bad.sort_by_key(|b| (b.ino, b.from));
    let view = bucket.inspect()?;
    let mut paths: HashMap<u64, Option<String>> = HashMap::new();
    let mut last: Option<Problem> = None;
    for b in bad {
        // Neighbours that fail alike are one harm.
        if let Some(p) = last.as_mut()
            && p.object == Some(b.ino)
            && p.to == Some(b.from)
            && p.what == b.why
            && p.segment == Some(segment_name(b.segment))
        {
            p.to = Some(b.to);
            continue;
        }
        if let Some(p) = last.take() {
            log.problem(p)
        }
        let todo = "restore the object from a copy; its other bytes stay readable";
        let mut p = Problem::new(Code::ChunkData, b.why, todo).object(b.ino).range(b.from, b.to).segment(b.segment);
        p.path = paths.entry(b.ino).or_insert_with(|| lost_path(view.rows(), b.ino)).clone();
        last = Some(p);
    }
    if let Some(p) = last {
        log.problem(p)
    }
    Ok(())
}

/// A segment as its file is called.
fn segment_name(id: u32) -> String {
    format!("{id:08x}")
}

fn catalog(e: CatalogError) -> OpError {
    crate::bucket::BucketError::from(e).into()
}

fn stop_if_cancelled(progress: &dyn Progress) -> Result<(), OpError> {
    match progress.cancelled() {
        true => Err(OpError::new(ErrorCode::General, "the check was stopped before its end")),
        false => Ok(()),
    }
}
