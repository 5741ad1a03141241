//! Bytes of a segment's header and of a flush's footer (FORMAT.md, Segment): packing and parsing, no I/O.

use crate::crypto::mac;
use crate::crypto::secret::MacKey;
use crate::types::{BLOCK, BucketId, OpenId};

pub const HEADER_BYTES: usize = BLOCK;
pub const FOOTER_BYTES: usize = 64;
/// Format of segments this program writes and the newest it reads.
pub const SEGMENT_VERSION: u32 = 1;
const HEADER_MAGIC: &[u8; 8] = b"SSEFSEG1";
const FOOTER_MAGIC: &[u8; 8] = b"SSEFSFLU";
const HEADER_MAC_AT: usize = HEADER_BYTES - 32;

/// The first block of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentHeader {
    pub segment: u32,
    pub bucket: BucketId,
    pub open_id: OpenId,
    /// The catalog's commit number when the bucket was opened.
    pub commit: u64,
}

/// Why a header was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderError {
    Short,
    Magic,
    Newer(u32),
    Features,
    Tag,
}

impl SegmentHeader {
    pub fn pack(&self, key: &MacKey, out: &mut [u8]) {
        out[..HEADER_BYTES].fill(0);
        out[0..8].copy_from_slice(HEADER_MAGIC);
        out[8..12].copy_from_slice(&SEGMENT_VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&self.segment.to_le_bytes());
        out[16..32].copy_from_slice(&self.bucket.0);
        out[32..48].copy_from_slice(&self.open_id.0);
        out[48..56].copy_from_slice(&self.commit.to_le_bytes());
        let tag = mac::tag(key, &[b"segment", &out[..HEADER_MAC_AT]]);
        out[HEADER_MAC_AT..HEADER_BYTES].copy_from_slice(&tag);
    }

    pub fn parse(key: &MacKey, b: &[u8]) -> Result<SegmentHeader, HeaderError> {
        if b.len() < HEADER_BYTES {
            return Err(HeaderError::Short);
        }
        if &b[..8] != HEADER_MAGIC {
            return Err(HeaderError::Magic);
        }
        let version = u32_at(b, 8);
        if version > SEGMENT_VERSION {
            return Err(HeaderError::Newer(version));
        }
        if !mac::verify(key, &[b"segment", &b[..HEADER_MAC_AT]], &b[HEADER_MAC_AT..HEADER_BYTES]) {
            return Err(HeaderError::Tag);
        }
        if u32_at(b, 56) != 0 {
            return Err(HeaderError::Features);
        }
        let mut bucket = BucketId::default();
        bucket.0.copy_from_slice(&b[16..32]);
        let mut open_id = OpenId::default();
        open_id.0.copy_from_slice(&b[32..48]);
        Ok(SegmentHeader { segment: u32_at(b, 12), bucket, open_id, commit: u64_at(b, 48) })
    }
}

/// The last 64 bytes of a flush. Positions are absolute in the segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footer {
    pub start: u32,
    pub records_at: u32,
    pub records_bytes: u32,
    pub records: u32,
    /// [`frames_check`] of the frames before the records.
    pub check: u64,
}

impl Footer {
    fn head(&self) -> [u8; 32] {
        let mut h = [0u8; 32];
        h[0..8].copy_from_slice(FOOTER_MAGIC);
        h[8..12].copy_from_slice(&self.start.to_le_bytes());
        h[12..16].copy_from_slice(&self.records_at.to_le_bytes());
        h[16..20].copy_from_slice(&self.records_bytes.to_le_bytes());
        h[20..24].copy_from_slice(&self.records.to_le_bytes());
        h[24..32].copy_from_slice(&self.check.to_le_bytes());
        h
    }

    /// `records` are the bytes of the flush's records.
    pub fn pack(&self, key: &MacKey, open_id: &OpenId, segment: u32, records: &[u8], out: &mut [u8]) {
        let head = self.head();
        let tag = mac::tag(key, &[&b"footer"[..], &open_id.0, &segment.to_le_bytes(), &head, records]);
        out[..32].copy_from_slice(&head);
        out[32..64].copy_from_slice(&tag);
    }

    /// A footer that fits a flush ending at `end`; its tag is still to be checked with [`Footer::verify`].
    pub fn parse(b: &[u8], end: u64) -> Option<Footer> {
        if b.len() < FOOTER_BYTES || &b[..8] != FOOTER_MAGIC {
            return None;
        }
        let f = Footer {
            start: u32_at(b, 8),
            records_at: u32_at(b, 12),
            records_bytes: u32_at(b, 16),
            records: u32_at(b, 20),
            check: u64_at(b, 24),
        };
        let fits = (f.start as usize).is_multiple_of(BLOCK)
            && f.start as usize >= HEADER_BYTES
            && f.start <= f.records_at
            && flush_end(f.records_at as u64 + f.records_bytes as u64) == end;
        fits.then_some(f)
    }

    pub fn verify(&self, key: &MacKey, open_id: &OpenId, segment: u32, records: &[u8], tag: &[u8]) -> bool {
        mac::verify(key, &[&b"footer"[..], &open_id.0, &segment.to_le_bytes(), &self.head(), records], tag)
    }
}

/// Tells frames torn by a power cut from whole ones (XXH3, 64 bits). No defence against an attacker: the chunks' tags are.
pub fn frames_check(frames: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(frames)
}

/// Where a flush ends whose records end at `records_end`: room for the footer, then up to a block.
pub fn flush_end(records_end: u64) -> u64 {
    (records_end + FOOTER_BYTES as u64).next_multiple_of(BLOCK as u64)
}

pub fn u32_at(b: &[u8], at: usize) -> u32 {
    let mut x = [0u8; 4];
    x.copy_from_slice(&b[at..at + 4]);
    u32::from_le_bytes(x)
}

pub fn u64_at(b: &[u8], at: usize) -> u64 {
    let mut x = [0u8; 8];
    x.copy_from_slice(&b[at..at + 8]);
    u64::from_le_bytes(x)
}
