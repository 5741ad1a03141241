//! What opening a bucket does about an earlier run that did not end well: segments against the catalog, what a crash
//! left in the log, and proof that the catalog has not gone back.

use std::collections::{BTreeMap, HashSet};

use super::BucketError;
use super::leaf::{LEAF_BYTES, Leaf};
use super::map::{FANOUT, HEIGHT_MAX, Index};
use crate::catalog::{Catalog, CatalogError, SealRow, SegmentRow, Tx};
use crate::crypto::secret::MacKey;
use crate::log::{Flush, IndexEntry, LogError, Record, SegmentFiles, flushes_backwards, read_header, scan_flushes};
use crate::types::{BLOCK, BucketName, FRAME_OVERHEAD, Location, OpenId, SealId};

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
    burn: bool,
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
        if burn {
            let (from, len) = (keep.unwrap_or(0), files.len(id)?);
            files.wipe(id, from, len.saturating_sub(from))?;
        }
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

/// Chunks (segment, position, bytes) that may be plain and that no map shows, after a crash: a write that was under way is
/// sealed into the flushes of a commit or an intent whose maps are frozen already, and nobody else knows of it. They can only
/// lie behind the sync before the newest one, which took everything that was under way by then into the maps.
pub fn unshown_plain(
    catalog: &Catalog,
    files: &SegmentFiles,
    key: &MacKey,
    open_id: &OpenId,
    segments: &BTreeMap<u32, SegmentRow>,
) -> Result<Vec<(u32, u32, u32)>, BucketError> {
    let tx = catalog.lock();
    // Content that was let go of and waits for being freed: its chunks name the object that had it.
    let mut not_these: HashSet<SealId> = HashSet::new();
    for ino in tx.orphans()? {
        not_these.extend(tx.seal(ino)?.map(|row| row.seal_id));
    }
    let mut chunks: Vec<(u32, IndexEntry)> = Vec::new();
    for (id, flush) in newest_flushes(files, key, open_id, segments)? {
        for r in flush.records {
            match r {
                Record::Index { entries, .. } => chunks.extend(entries.into_iter().map(|e| (id, e))),
                Record::Puts { puts, .. } => {
                    not_these.extend(puts.into_iter().filter(|p| p.method != 0).map(|p| p.seal));
                }
                _ => {}
            }
        }
    }
    chunks.retain(|(_, e)| !not_these.contains(&e.seal));
    chunks.sort_unstable_by_key(|(_, e)| (e.object, e.offset));
    let mut out = Vec::new();
    for some in chunks.chunk_by(|(_, a), (_, b)| (a.object, a.offset / LEAF_BYTES) == (b.object, b.offset / LEAF_BYTES))
    {
        let (object, leaf) = (some[0].1.object, some[0].1.offset / LEAF_BYTES);
        let Ok(row) = tx.seal(object) else { continue };
        let shown = match &row {
            Some(row) if row.method == 0 => leaf_as_committed(&tx, row, leaf)?,
            _ => Some(Leaf::default()),
        };
        // What cannot be read of a map is not taken for empty.
        let Some(shown) = shown else { continue };
        for (segment, e) in some {
            let at = Location { segment: *segment, position: e.position };
            let sealed = row.as_ref().is_some_and(|r| r.seal_id == e.seal && r.method != 0);
            if sealed || shown.entries().iter().any(|x| x.at == at) {
                continue;
            }
            let bytes = e.n + FRAME_OVERHEAD as u32;
            let mut frame = vec![0u8; bytes as usize];
            files.read_exact(*segment, u64::from(e.position), &mut frame)?;
            // Overwritten or punched already.
            if frame.iter().any(|b| *b != 0) {
                out.push((*segment, e.position, bytes));
            }
        }
    }
    Ok(out)
}

/// The flushes of an opening behind the one that carries the commit or intent before the newest, newest first.
fn newest_flushes(
    files: &SegmentFiles,
    key: &MacKey,
    open_id: &OpenId,
    segments: &BTreeMap<u32, SegmentRow>,
) -> Result<Vec<(u32, Flush)>, LogError> {
    let (mut out, mut syncs) = (Vec::new(), 0);
    for id in segments.keys().rev() {
        match read_header(files, key, *id) {
            Ok(h) if h.open_id == *open_id => {}
            Ok(_) => break,
            Err(e) => {
                log::debug!("{e}");
                continue;
            }
        }
        for flush in flushes_backwards(files, key, *id)?.into_iter().rev() {
            syncs += usize::from(flush.records.iter().any(|r| matches!(r, Record::Commit(_) | Record::Intent(_))));
            if syncs > 1 {
                return Ok(out);
            }
            out.push((*id, flush));
        }
    }
    Ok(out)
}

/// A leaf as the rows have it, an empty one for a hole; None where they cannot be read.
fn leaf_as_committed(tx: &Tx, row: &SealRow, leaf: u64) -> Result<Option<Leaf>, CatalogError> {
    if row.height > HEIGHT_MAX {
        return Ok(None);
    }
    if leaf >= FANOUT.pow(u32::from(row.height)) {
        return Ok(Some(Leaf::default()));
    }
    let mut body = row.map.clone();
    for level in (0..row.height).rev() {
        let Some(node) = Index::parse(&body) else { return Ok(None) };
        let child = node.0[((leaf >> (6 * level)) % FANOUT) as usize];
        if child.is_hole() {
            return Ok(Some(Leaf::default()));
        }
        let Some(next) = tx.node(child.id)? else { return Ok(None) };
        body = next;
    }
    Ok(Leaf::parse(&body).ok())
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    use crate::bucket::inode::Content;
    use crate::bucket::{Bucket, CreateOptions, NewInode, OpenOptions, ROOT};
    use crate::keys::{Keyring, RootSource};
    use crate::types::{BucketName, StoreId};

    const UNDER_WAY: &[u8; 32] = b"a write that nobody has waited f";

    fn copy_tree(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for e in std::fs::read_dir(from).unwrap().flatten() {
            let to = to.join(e.file_name());
            if e.path().is_dir() { copy_tree(&e.path(), &to) } else { std::fs::copy(e.path(), to).map(drop).unwrap() }
        }
    }

    fn holds(dir: &Path, what: &[u8]) -> bool {
        std::fs::read_dir(dir).unwrap().flatten().any(|e| {
            let bytes = std::fs::read(e.path()).unwrap_or_default();
            bytes.windows(what.len()).any(|w| w == what)
        })
    }

    fn sync(bucket: &Arc<Bucket>) {
        let (tx, rx) = std::sync::mpsc::channel();
        bucket.sync(Box::new(move |r| tx.send(r).unwrap()));
        rx.recv().unwrap().unwrap();
    }

    /// What a write that is under way has sealed lies in the flush of a sync that does not know of it. After a crash it is in
    /// no map; were it left there, the object could be sealed, and its plain text would still be found.
    #[test]
    fn r12_a_plain_write_under_way_at_a_sync_is_overwritten_after_a_crash_and_nothing_else_is() {
        for committed in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let (config, store, crashed) =
                (dir.path().join("config"), dir.path().join("store"), dir.path().join("crashed"));
            let name: BucketName = "b".parse().unwrap();
            let keys = Arc::new(Keyring::open_or_create(&config, RootSource::in_config(&config)).unwrap().0);
            let id: StoreId = keys.open_store(&store, true).unwrap();
            let dialect = crate::rule::Dialect::Native;
            let o = CreateOptions { dialect, rule: None, owner_uid: 0, chunk_bytes: 16384, require_encryption: false };
            Bucket::create(&store, id, &name, &keys, &o).unwrap();
            let o = OpenOptions { commit_interval: Duration::from_secs(3600), ..OpenOptions::default() };
            let bucket = Bucket::open(&store, id, &name, &keys, &o).unwrap();
            let new = NewInode { mode: libc::S_IFREG | 0o644, uid: 0, gid: 0, rdev: 0, target: None };
            let make = |name: &[u8]| bucket.make(ROOT, name, &new).unwrap().ino;
            let (f, g) = (make(b"f"), make(b"g"));
            bucket.write(f, Some(0), &[1; 300_000]).unwrap();
            bucket.commit().unwrap();
            bucket.write(g, Some(0), &[2; 5000]).unwrap();
            // As a batch made behind the freeze does it.
            let seal = bucket.inode(f).unwrap().state.lock().content.as_ref().unwrap().seal.clone().unwrap();
            let mut batch = Content { seal: Some(seal.clone()), ..Content::default() };
            bucket.seal_into(&mut batch, &seal, f, 65536, UNDER_WAY.repeat(1024)).unwrap();
            if committed {
                bucket.commit().unwrap()
            } else {
                sync(&bucket)
            }
            assert!(holds(&store.join("buckets/b/seg"), UNDER_WAY));
            copy_tree(&store, &crashed);
            bucket.close().unwrap();
            std::fs::remove_dir_all(&store).unwrap();
            copy_tree(&crashed, &store);
            let bucket = Bucket::open(&store, id, &name, &keys, &o).unwrap();
            assert!(!holds(&store.join("buckets/b/seg"), UNDER_WAY), "committed {committed}");
            assert_eq!(bucket.read(f, 0, 400_000).unwrap(), [1; 300_000]);
            assert_eq!(bucket.read(g, 0, 9999).unwrap(), [2; 5000]);
            bucket.close().unwrap();
        }
    }
}
