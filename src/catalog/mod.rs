//! The catalog: the only module that speaks SQL. One SQLite file a bucket, one writing connection whose transaction
//! stays open between two commits, so that every statement of an epoch becomes durable together or not at all.
//! It must never open the main file by other means while SQLite has it: closing that descriptor would drop SQLite's locks.

mod connect;
mod inodes;
mod jobs;
mod names;
mod objects;
mod patch;
mod reader;
mod redo;
mod settings;

pub use connect::{Catalog, Tx};
pub use inodes::{FLAG_REQUEST, FLAG_XATTR, InodeRow};
pub use jobs::{EraseRow, JobRow, ObjectRow};
pub use names::Dirent;
pub use objects::SealRow;
pub use reader::{Reader, Snapshot};
pub use redo::{Redo, wrapped_keys};
pub use settings::{KekRow, SegmentRow};

use std::path::PathBuf;

/// What a catalog can refuse or fail with.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The file is not there.
    #[error("there is no catalog at {0}")]
    Missing(PathBuf),
    /// The file is there and is not a catalog of ours, or it is damaged.
    #[error("{path} is not a readable ssefs catalog: {why}")]
    Damaged { path: PathBuf, why: String },
    /// Written by a newer ssefs.
    #[error("{path} has catalog format {found}; this ssefs knows up to {known}: use a newer ssefs")]
    Newer { path: PathBuf, found: i64, known: i64 },
    /// The disk is full; the open transaction may be gone, see [`Catalog::is_failed`].
    #[error("no space left for the catalog")]
    Full,
    /// A row holds what it cannot hold.
    #[error("catalog row {table} {key}: {why}")]
    BadRow { table: &'static str, key: i64, why: &'static str },
    #[error("catalog: {0}")]
    Sql(rusqlite::Error),
    #[error("catalog: {0}")]
    Io(#[from] std::io::Error),
}

impl From<rusqlite::Error> for CatalogError {
    fn from(e: rusqlite::Error) -> Self {
        match e.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => CatalogError::Full,
            _ => CatalogError::Sql(e),
        }
    }
}
