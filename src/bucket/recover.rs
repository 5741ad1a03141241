//! What opening a bucket does about an earlier run that did not end well: segments against the catalog, what a crash
//! left in the log, and proof that the catalog has not gone back.

use std::collections::BTreeMap;

use super::BucketError;
use crate::catalog::SegmentRow;
use crate::crypto::secret::MacKey;
use crate::log::{LogError, Record, SegmentFiles, read_header, scan_flushes};
use crate::types::{BLOCK, BucketName};

pub const GONE_BACK: &str = "the log holds later commits than the catalog: its -wal file is missing or an older copy was put back; \
restore catalog.db and catalog.db-wal together with the segments";

/// The highest commit that a segment tells of behind `from`.
fn newest_commit(files: &SegmentFiles, key: &MacKey, id: u32, from: u64) -> Result<u64, LogError> {
    let mut newest = 0;
    for flush in scan_flushes(files, key, id, from)? {
        for r in flush.records {
            match r {
                // c.durable was on disk when this was written; c.number itself may have been cut off by a crash.
                Record::Commit(c) => newest = newest.max(c.durable).max(c.number.saturating_sub(1)),
                Record::Intent(i) => newest = newest.max(i.commit),
                _ => {}
            }
        }
    }
    Ok(newest)
}

/// Compare the segment files with the catalog's rows. Returns the rows that stand and the first free segment id.
pub fn segments(
    files: &SegmentFiles,
    key: &MacKey,
    name: &BucketName,
    commit: u64,
    rows: Vec<SegmentRow>,
) -> Result<(BTreeMap<u32, SegmentRow>, u32), BucketError> {
    let found: BTreeMap<u32, u64> = files.list()?.into_iter().collect();
    let mut rows: BTreeMap<u32, SegmentRow> = rows.into_iter().map(|r| (r.id, r)).collect();
    let next = found.keys().chain(rows.keys()).max().map_or(1, |m| m + 1);
    let gone_back = |newest: u64| {
        if newest > commit {
            return Err(BucketError::Altered {
                bucket: name.to_string(),
                what: "the catalog and its log",
                hint: GONE_BACK,
            });
        }
        Ok(())
    };
    // First look, then touch: nothing is removed from a bucket that is refused.
    let mut unknown = Vec::new();
    for (&id, &len) in &found {
        match rows.get(&id) {
            Some(r) if len < r.bytes && r.live > 0 => {
                log::error!(
                    "segment {id:08x} of bucket {name} is {len} bytes long and should be {}: what lay behind cannot be read",
                    r.bytes
                );
            }
            Some(r) if len > r.bytes => match newest_commit(files, key, id, r.bytes) {
                Ok(newest) => {
                    gone_back(newest)?;
                    unknown.push((id, Some(r.bytes)));
                }
                Err(e) => log::error!("{e}; the objects in it cannot be read"),
            },
            Some(_) => {}
            None if torn_at_birth(files, id, len)? => unknown.push((id, None)),
            None => match newest_commit(files, key, id, 0) {
                Ok(newest) => {
                    gone_back(newest)?;
                    unknown.push((id, None));
                }
                Err(e @ LogError::Newer { .. }) => return Err(e.into()),
                Err(e) => log::warn!("{e}; the catalog does not know it, so it is left alone"),
            },
        }
    }
    let missing: Vec<u32> = rows.keys().filter(|id| !found.contains_key(id)).copied().collect();
    for id in missing {
        if rows.get(&id).is_some_and(|r| r.live > 0) {
            log::error!("{}; the objects in it cannot be read", LogError::Missing(files.path(id)));
        } else {
            rows.remove(&id);
        }
    }
    for (&id, r) in &rows {
        if r.live > 0
            && found.contains_key(&id)
            && let Err(e) = read_header(files, key, id)
        {
            log::error!("{e}");
        }
    }
    for (id, keep) in unknown {
        match keep {
            Some(bytes) => files.truncate(id, bytes)?,
            None => files.remove(id)?,
        }
    }
    Ok((rows, next))
}

/// A segment whose creation a power cut interrupted: its header never reached the disk.
pub fn torn_at_birth(files: &SegmentFiles, id: u32, len: u64) -> Result<bool, LogError> {
    if len < BLOCK as u64 {
        return Ok(true);
    }
    let mut head = vec![0u8; BLOCK];
    files.read_exact(id, 0, &mut head)?;
    // Sectors of the header may have reached the disk one by one; the tag at its end tells whether all did.
    Ok(head[..16].iter().all(|b| *b == 0) || head[BLOCK - 32..].iter().all(|b| *b == 0))
}
