//! Reading a segment without the catalog: its header and every valid flush. Recovery asks it about what the catalog
//! does not know; salvage will ask it about everything.

use super::record::{Record, parse_records};
use super::segment::{FOOTER_BYTES, Footer, HEADER_BYTES, HeaderError, SegmentHeader, frames_check};
use super::{LogError, SegmentFiles};
use crate::crypto::secret::MacKey;
use crate::types::BLOCK;

/// One valid flush: [start, end) in the segment and its records.
#[derive(Debug)]
pub struct Flush {
    pub start: u64,
    pub end: u64,
    pub records: Vec<Record>,
    records_bytes: u32,
    /// Where the frames end, and their check.
    frames_end: u64,
    check: u64,
}

impl Flush {
    /// Where the frames end.
    pub fn frames_end(&self) -> u64 {
        self.frames_end
    }

    /// The records as they lie in the segment, from [`Flush::frames_end`] on.
    ///
    /// # Errors
    /// Those of reading.
    pub fn raw_records(&self, files: &SegmentFiles, id: u32) -> Result<Vec<u8>, LogError> {
        let mut records = vec![0u8; self.records_bytes as usize];
        files.read_exact(id, self.frames_end, &mut records)?;
        Ok(records)
    }

    /// The footer over changed records of the same length, and where it lies.
    pub fn footer_over(&self, key: &MacKey, header: &SegmentHeader, records: &[u8]) -> (u64, [u8; FOOTER_BYTES]) {
        let footer = Footer {
            start: self.start as u32,
            records_at: self.frames_end as u32,
            records_bytes: self.records_bytes,
            records: self.records.len() as u32,
            check: self.check,
        };
        let mut packed = [0u8; FOOTER_BYTES];
        footer.pack(key, &header.open_id, header.segment, records, &mut packed);
        (self.end - FOOTER_BYTES as u64, packed)
    }

    /// Whether the frames are as they were written: a power cut may have kept the footer and lost some of them.
    ///
    /// # Errors
    /// Those of reading the segment.
    pub fn is_whole(&self, files: &SegmentFiles, id: u32) -> Result<bool, LogError> {
        let mut frames = vec![0u8; (self.frames_end - self.start) as usize];
        files.read_exact(id, self.start, &mut frames)?;
        Ok(frames_check(&frames) == self.check)
    }
}

/// The header of a segment.
pub fn read_header(files: &SegmentFiles, key: &MacKey, id: u32) -> Result<SegmentHeader, LogError> {
    let mut block = vec![0u8; HEADER_BYTES];
    let path = files.path(id);
    files.read_exact(id, 0, &mut block)?;
    match SegmentHeader::parse(key, &block) {
        Ok(h) if h.segment == id => Ok(h),
        Ok(_) => Err(LogError::Damaged { path, why: "it is another segment under this name" }),
        Err(HeaderError::Newer(found)) => Err(LogError::Newer { path, found, known: super::segment::SEGMENT_VERSION }),
        Err(HeaderError::Features) => {
            Err(LogError::Damaged { path, why: "it needs features this ssefs does not know" })
        }
        Err(HeaderError::Magic) => Err(LogError::Damaged { path, why: "it does not begin as a segment does" }),
        Err(HeaderError::Short) => Err(LogError::Damaged { path, why: "it is shorter than a header" }),
        Err(HeaderError::Tag) => {
            Err(LogError::Damaged { path, why: "its header was altered, or it is another bucket's" })
        }
    }
}

/// Every valid flush that ends behind `from` (a block boundary), in order. Blocks that end no valid flush are passed over:
/// an interrupted run leaves such.
pub fn scan_flushes(files: &SegmentFiles, key: &MacKey, id: u32, from: u64) -> Result<Vec<Flush>, LogError> {
    let header = read_header(files, key, id)?;
    let len = files.len(id)?;
    let mut out: Vec<Flush> = Vec::new();
    let mut end = from.max(HEADER_BYTES as u64) + BLOCK as u64;
    while end <= len {
        let after = out.last().map_or(0, |last| last.end);
        out.extend(flush_ending(files, key, &header, end, after)?);
        end += BLOCK as u64;
    }
    Ok(out)
}

/// Every valid flush of a segment, in order, found from its end: each footer says where the flush before it ends, so that
/// a sound segment costs two reads a flush. For segments that are closed.
///
/// # Errors
/// Those of reading, and records that this program does not know.
pub fn flushes_backwards(files: &SegmentFiles, key: &MacKey, id: u32) -> Result<Vec<Flush>, LogError> {
    let header = read_header(files, key, id)?;
    let mut end = files.len(id)? / BLOCK as u64 * BLOCK as u64;
    let mut out = Vec::new();
    while end > HEADER_BYTES as u64 {
        match flush_ending(files, key, &header, end, HEADER_BYTES as u64)? {
            Some(f) => {
                end = f.start;
                out.push(f);
            }
            None => end -= BLOCK as u64,
        }
    }
    out.reverse();
    Ok(out)
}

/// The valid flush that ends at `end` and begins at or behind `after`, if there is one.
fn flush_ending(
    files: &SegmentFiles,
    key: &MacKey,
    header: &SegmentHeader,
    end: u64,
    after: u64,
) -> Result<Option<Flush>, LogError> {
    let id = header.segment;
    let mut foot = [0u8; FOOTER_BYTES];
    files.read_exact(id, end - FOOTER_BYTES as u64, &mut foot)?;
    let Some(f) = Footer::parse(&foot, end).filter(|f| f.start as u64 >= after) else { return Ok(None) };
    let mut records = vec![0u8; f.records_bytes as usize];
    files.read_exact(id, f.records_at as u64, &mut records)?;
    if !f.verify(key, &header.open_id, id, &records, &foot[32..]) {
        return Ok(None);
    }
    let Some(records) = parse_records(&records, f.records) else {
        return Err(LogError::Damaged { path: files.path(id), why: "a flush holds records this ssefs does not know" });
    };
    Ok(Some(Flush {
        start: f.start as u64,
        end,
        records,
        records_bytes: f.records_bytes,
        frames_end: f.records_at as u64,
        check: f.check,
    }))
}
