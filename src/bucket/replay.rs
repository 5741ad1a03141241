//! The intents that a crash left behind the catalog's last commit (FORMAT.md, Commits, intents and going back): found,
//! verified, and made again in the transaction of the opening itself.

use std::collections::BTreeMap;

use super::BucketError;
use super::recover::{GONE_BACK, torn_at_birth};
use super::settings::Stored;
use crate::catalog::{Catalog, SegmentRow};
use crate::crypto::secret::MacKey;
use crate::log::{HEADER_BYTES, IntentRecord, LogError, Record, SEGMENT_BYTES, SegmentFiles};
use crate::log::{read_header, scan_flushes};
use crate::types::{BucketName, Location, OpenId};

const ALTERED: &str = "a part of the log that was acknowledged is damaged or missing; restore the segments from a copy of the store \
made after the crash";

/// Intents in order, and where the last flush of each segment that they need ends.
#[derive(Default)]
struct Found {
    intents: Vec<IntentRecord>,
    ends: BTreeMap<u32, u64>,
}

/// Whether every flush from `from` to the one that ends at `end` of `segment` is there and whole; if so, where the last of
/// them ends in each segment.
fn reaches(
    files: &SegmentFiles,
    key: &MacKey,
    open_id: &OpenId,
    from: Location,
    (segment, end): (u32, u64),
) -> Result<Option<BTreeMap<u32, u64>>, LogError> {
    let mut ends = BTreeMap::new();
    let (mut id, mut at) = (from.segment, from.position as u64);
    while (id, at) < (segment, end) {
        if at >= SEGMENT_BYTES {
            (id, at) = (id + 1, HEADER_BYTES as u64);
        }
        if !is_of(files, key, id, open_id)? {
            return Ok(None);
        }
        let begun = at;
        for flush in scan_flushes(files, key, id, at)?.iter().filter(|f| f.start >= begun) {
            if (id, at) >= (segment, end) {
                break;
            }
            if flush.start != at || !flush.is_whole(files, id)? {
                return Ok(None);
            }
            at = flush.end;
            ends.insert(id, at);
        }
        if at < SEGMENT_BYTES && (id, at) < (segment, end) {
            return Ok(None);
        }
    }
    Ok(((id, at) == (segment, end)).then_some(ends))
}

/// Make the changes of the intents that a crash left again, in the catalog's open transaction. True if there were any.
///
/// # Errors
/// As [`find`], and those of the catalog.
pub fn make_again(
    catalog: &Catalog,
    files: &SegmentFiles,
    log_key: &MacKey,
    name: &BucketName,
    stored: &Stored,
) -> Result<bool, BucketError> {
    let Some(open_id) = stored.openings.last() else { return Ok(false) };
    let mut rows = catalog.lock().segments()?;
    let found = find(files, log_key, name, stored.counters.commit, open_id, &rows)?;
    if found.intents.is_empty() {
        return Ok(false);
    }
    let tx = catalog.lock();
    for i in &found.intents {
        tx.make_again(&i.packed, i.changes)?.ok_or_else(|| BucketError::Altered {
            bucket: name.to_string(),
            what: "the log",
            hint: "it holds changes that this ssefs does not know; use a newer one",
        })?;
    }
    rows = tx.segments()?;
    for (id, end) in found.ends {
        let row = rows.iter().find(|r| r.id == id).copied().unwrap_or(SegmentRow { id, bytes: 0, live: 0 });
        if row.bytes < end {
            tx.put_segment(&SegmentRow { bytes: end, ..row })?;
        }
    }
    log::info!("bucket {name}: {} syncs that no commit followed were made again", found.intents.len());
    Ok(true)
}

/// Whether a segment belongs to an opening. One that a power cut tore while it was made belongs to none.
///
/// # Errors
/// Whatever else keeps its header from being read: taken for the end of the log, it would hide what was acknowledged.
fn is_of(files: &SegmentFiles, key: &MacKey, id: u32, open_id: &OpenId) -> Result<bool, LogError> {
    match read_header(files, key, id) {
        Ok(h) => Ok(h.open_id == *open_id),
        Err(LogError::Missing(_)) => Ok(false),
        Err(LogError::Io { source, .. }) if source.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => {
            if torn_at_birth(files, id, files.len(id)?)? {
                Ok(false)
            } else {
                Err(e)
            }
        }
    }
}

/// The intents that follow `commit`, made by the opening `open_id`.
///
/// # Errors
/// The catalog has gone back behind them, or one that was acknowledged is not whole.
fn find(
    files: &SegmentFiles,
    key: &MacKey,
    name: &BucketName,
    commit: u64,
    open_id: &OpenId,
    rows: &[SegmentRow],
) -> Result<Found, BucketError> {
    let altered = |what, hint| -> Result<Found, BucketError> {
        Err(BucketError::Altered { bucket: name.to_string(), what, hint })
    };
    let known: BTreeMap<u32, u64> = rows.iter().map(|r| (r.id, r.bytes)).collect();
    let mut told: BTreeMap<u32, (IntentRecord, u32, u64)> = BTreeMap::new();
    let mut last_flush: BTreeMap<u32, u64> = BTreeMap::new();
    let mut settled = false;
    for (id, len) in files.list()? {
        let from = known.get(&id).copied().unwrap_or(0);
        if len <= from || !is_of(files, key, id, open_id)? {
            continue;
        }
        // A process that was killed may not have synced what it wrote, and then the catalog must not name it; and what a
        // failed sync left in memory may not be on disk.
        files.settle(id)?;
        settled = true;
        for flush in scan_flushes(files, key, id, from)? {
            last_flush.insert(id, flush.end);
            for record in flush.records {
                let Record::Intent(i) = record else { continue };
                if i.commit > commit {
                    return altered("the catalog and its log", GONE_BACK);
                }
                if i.commit == commit && told.insert(i.n, (i, id, flush.end)).is_some() {
                    return altered("the log", ALTERED);
                }
            }
        }
    }
    if settled {
        files.sync_dir()?;
    }
    let mut found = Found::default();
    let last = told.keys().next_back().copied();
    for (n, (intent, segment, end)) in told {
        if n as usize != found.intents.len() + 1 {
            return altered("the log", ALTERED);
        }
        // One behind it was written when it was durable; only the newest may be torn, and then nobody was told of it.
        if Some(n) == last {
            match reaches(files, key, open_id, intent.from, (segment, end))? {
                Some(mut ends) => found.ends.append(&mut ends),
                None => {
                    log::warn!(
                        "bucket {name}: the sync that was under way when it ended (intent {n} of commit {commit}) is not \
                         whole; the bucket is as it was before it"
                    );
                    break;
                }
            }
        }
        // Of the segments that ended between its start and its own flush it needs all, and no row may know their whole length.
        found.ends.extend(last_flush.range(intent.from.segment..segment).map(|(id, end)| (*id, *end)));
        found.ends.insert(segment, end);
        found.intents.push(intent);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{Log, LogIdentity, Next, SLOT_BYTES_MAX};
    use crate::types::BucketId;

    /// The segment fills up between the rows of an intent and its record, and the intent behind it is torn: the row of the
    /// full segment is in neither, and what was acknowledged lies at its end.
    #[test]
    fn a_segment_that_filled_up_under_an_intent_is_kept_whole_when_the_next_intent_is_torn() {
        let dir = tempfile::tempdir().unwrap();
        let key = || MacKey::take(&mut [3; 32]);
        let open_id = OpenId([5; 16]);
        let identity = LogIdentity { bucket: BucketId([1; 16]), open_id, commit: 7, key: key() };
        let log = Log::start(SegmentFiles::new(dir.path().to_owned()), identity, 1);
        let intend = |n: u32, from: Location| {
            let mut packed = Vec::new();
            IntentRecord { commit: 7, n, from, changes: 0, packed: Vec::new() }.pack(&mut packed);
            log.append_record(&packed).unwrap();
            log.sync(Next::Anything).unwrap()
        };
        let begin = Location { segment: 1, position: HEADER_BYTES as u32 };
        let fill = |bytes: u64| {
            for _ in 0..bytes.div_ceil(SLOT_BYTES_MAX as u64) {
                let mut slot = log.reserve(SLOT_BYTES_MAX, 0).unwrap();
                slot.bytes_mut().fill(1);
                log.finish(slot, &[]);
            }
        };
        let mut from = begin;
        while from.segment == 1 {
            fill(4 << 20);
            from = log.sync(Next::Anything).unwrap();
        }
        let full = log.lengths()[&1];
        assert!(full >= SEGMENT_BYTES);
        let one = intend(1, begin);
        fill(1);
        intend(2, one);
        drop(log);
        // A frame of the second never reached the disk.
        let files = SegmentFiles::new(dir.path().to_owned());
        files.wipe(2, u64::from(one.position), 4096).unwrap();
        let rows = [SegmentRow { id: 1, bytes: HEADER_BYTES as u64, live: 0 }];
        let found = find(&files, &key(), &"b".parse().unwrap(), 7, &open_id, &rows).unwrap();
        assert_eq!(found.intents.len(), 1);
        assert_eq!(found.ends, BTreeMap::from([(1, full), (2, u64::from(one.position))]));
    }
}
