//! The log: append-only segment files of sealed chunks. Chunks gather in aligned buffers that a writer thread puts on
//! disk in large aligned writes; a sync makes everything appended so far durable. It knows nothing of objects' maps:
//! what is live is the bucket's business.

mod buffer;
mod files;
mod record;
mod scan;
mod segment;
mod writer;

pub use files::SegmentFiles;
pub use record::{CommitRecord, IndexEntry, IntentRecord, KekRecord, PutRecord, Record};
pub use record::{KeyPlace, key_places, pack_puts};
pub use scan::{Flush, flushes_backwards, read_header, scan_flushes};
pub use segment::{Footer, HEADER_BYTES, SegmentHeader};
pub use writer::{Log, LogIdentity, Next, SLOT_BYTES_MAX, Slot};

use std::path::PathBuf;

/// A new segment is begun when the last one has reached this many bytes.
pub const SEGMENT_BYTES: u64 = 64 << 20;

/// What the log can fail with.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("segment {path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    /// A segment that the catalog names is not there.
    #[error("segment {0} is missing from the bucket's seg folder: put it back from a copy of the store")]
    Missing(PathBuf),
    /// The header is not what this bucket wrote.
    #[error("segment {path}: {why}")]
    Damaged { path: PathBuf, why: &'static str },
    #[error("segment {path} has format {found}; this ssefs knows up to {known}: use a newer ssefs")]
    Newer { path: PathBuf, found: u32, known: u32 },
    /// An earlier write or sync failed: nothing more is written until the bucket is opened again.
    #[error("the log failed earlier ({0}); unmount and mount the bucket again")]
    Failed(String),
    #[error("random numbers are not to be had: {0}")]
    Random(String),
}
