//! Overwriting wrapped data keys in the records of closed segments. What is overwritten, and with what, is durable in the catalog
//! before the first byte of it is written, so that a crash in between is made good by the next opening. Frames do not change, and
//! a flush has a valid footer before and after.

use std::collections::HashSet;

use super::{Bucket, BucketError};
use crate::catalog::{Catalog, wrapped_keys};
use crate::crypto::derive;
use crate::log::{Flush, KeyPlace, SegmentFiles, SegmentHeader, flushes_backwards, key_places, read_header};
use crate::types::SealId;

/// Bytes that take the place of others: position, bytes.
type Edits = Vec<(u32, Vec<u8>)>;

/// Whose keys are looked for, and what was found.
#[derive(Default)]
pub(super) struct Hunt {
    pub inos: HashSet<u64>,
    /// Also those of content that these objects had before.
    pub seals: HashSet<SealId>,
    /// The wrapped keys themselves, in memory alone: to look for them in the catalog's file.
    pub wrapped: HashSet<Vec<u8>>,
    pub segments: u64,
    pub records: u64,
    pub unreadable: Vec<String>,
}

/// What an erasure that was cut off was about to overwrite is overwritten. Nothing else may have touched the log before.
pub(super) fn finish(catalog: &Catalog, files: &SegmentFiles) -> Result<(), BucketError> {
    let left = catalog.lock().redactions()?;
    for some in left.chunk_by(|a, b| a.0 == b.0) {
        let edits: Edits = some.iter().map(|(_, at, bytes)| (*at, bytes.clone())).collect();
        files.overwrite(some[0].0, &edits)?;
        // The rows go with the opening's own commit; until then they may be applied again.
        catalog.lock().delete_redactions(some[0].0)?;
    }
    Ok(())
}

impl Hunt {
    fn is_guilty(&mut self, object: u64, seal: &SealId) -> bool {
        if self.inos.contains(&object) {
            self.seals.insert(*seal);
            return true;
        }
        self.seals.contains(seal)
    }

    /// What is to be overwritten in a flush; `records` become as they will be.
    fn edits(&mut self, flush: &Flush, records: &mut [u8]) -> Option<Edits> {
        let mut places = Vec::new();
        for place in key_places(records, flush.records.len() as u32)? {
            match place {
                KeyPlace::Put { seal, object, at } => {
                    if self.is_guilty(object, &seal) {
                        places.push(at);
                    }
                }
                KeyPlace::Intent { at, changes } => {
                    for (ino, seal, within) in wrapped_keys(&records[at.clone()], changes)? {
                        if self.is_guilty(ino, &seal) {
                            places.push(at.start + within.start..at.start + within.end);
                        }
                    }
                }
            }
        }
        places.retain(|p| records[p.clone()].iter().any(|b| *b != 0));
        let mut edits = Vec::with_capacity(places.len());
        for p in places {
            self.wrapped.insert(records[p.clone()].to_vec());
            records[p.clone()].fill(0);
            edits.push(((flush.frames_end() as usize + p.start) as u32, vec![0; p.len()]));
        }
        self.records += edits.len() as u64;
        Some(edits)
    }
}

impl Bucket {
    /// Overwrite what the hunt finds in all segments up to `last`. Returns how many places there were. The caller keeps others
    /// from moving segments.
    pub(super) fn redact(&self, hunt: &mut Hunt, last: u32) -> Result<u64, BucketError> {
        let before = hunt.records;
        // Twice where content that an object had earlier was found late: what it left lies anywhere.
        loop {
            let known = hunt.seals.len();
            hunt.unreadable.clear();
            hunt.segments = 0;
            for (id, _) in self.log.files().list()? {
                if id <= last {
                    self.redact_segment(hunt, id)?;
                    hunt.segments += 1;
                }
            }
            if hunt.seals.len() == known {
                break;
            }
        }
        Ok(hunt.records - before)
    }

    fn redact_segment(&self, hunt: &mut Hunt, id: u32) -> Result<(), BucketError> {
        let (files, key) = (self.log.files(), derive::log_key(&self.key));
        let read = || -> Result<(SegmentHeader, Vec<Flush>), crate::log::LogError> {
            Ok((read_header(files, &key, id)?, flushes_backwards(files, &key, id)?))
        };
        let (header, flushes) = match read() {
            Ok(read) => read,
            // Given back meanwhile, overwritten.
            Err(crate::log::LogError::Missing(_)) => return Ok(()),
            Err(e) => {
                hunt.unreadable.push(e.to_string());
                return Ok(());
            }
        };
        let mut all: Edits = Vec::new();
        for flush in &flushes {
            let mut records = flush.raw_records(files, id)?;
            let Some(edits) = hunt.edits(flush, &mut records) else {
                hunt.unreadable.push(format!("segment {id:08x}: the records at {} do not parse", flush.frames_end()));
                continue;
            };
            if !edits.is_empty() {
                let (at, footer) = flush.footer_over(&key, &header, &records);
                all.extend(edits);
                all.push((at as u32, footer.to_vec()));
            }
        }
        if all.is_empty() {
            return Ok(());
        }
        {
            let _permit = self.gate.names();
            let tx = self.catalog().lock();
            for (at, bytes) in &all {
                tx.put_redaction(id, *at, bytes)?;
            }
        }
        self.commit()?;
        files.overwrite(id, &all)?;
        let _permit = self.gate.names();
        Ok(self.catalog().lock().delete_redactions(id)?)
    }
}
