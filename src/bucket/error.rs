//! What a bucket can refuse or fail with. Variants are named for what the caller can do; fs makes errnos of them.

use std::path::PathBuf;

use super::customer::CustomerError;
use crate::catalog::CatalogError;
use crate::crypto::CryptoError;
use crate::keys::KeyError;
use crate::log::LogError;
use crate::rule::RuleError;
use crate::types::BucketName;

/// Who has a bucket open.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Holder {
    pub pid: u32,
    pub mountpoint: Option<PathBuf>,
    pub socket: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum BucketError {
    #[error("no such file or directory: {0}")]
    NotFound(String),
    #[error("{0} exists already")]
    Exists(String),
    #[error("not a directory")]
    NotDirectory,
    #[error("is a directory")]
    IsDirectory,
    #[error("the directory is not empty")]
    NotEmpty,
    #[error("the name is longer than 255 bytes")]
    NameTooLong,
    #[error("the file would be larger than 2^62 bytes")]
    TooBig,
    #[error("too many links")]
    TooManyLinks,
    #[error("invalid: {0}")]
    Invalid(&'static str),
    #[error("not supported: {0}")]
    Unsupported(&'static str),
    #[error("no such attribute")]
    NoAttribute,
    /// AccessDenied: the caller may not do this.
    #[error("AccessDenied: {0}")]
    Denied(String),
    #[error("the bucket is open for reading only")]
    ReadOnly,
    #[error("no space left in the store: delete something, deleting still works")]
    NoSpace,
    #[error("{}: {}", .0.code(), .0.message())]
    Rule(RuleError),
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A customer key is missing or wrong.
    #[error(transparent)]
    Customer(#[from] CustomerError),
    /// Content or its map is not what was written.
    #[error("object {object}, bytes {from} to {to}: damaged or altered ({why}); the rest of it can be read")]
    Damaged { object: u64, from: u64, to: u64, why: &'static str },
    /// The settings, rules, grants or keys of the bucket are not what was written.
    #[error("bucket {bucket}: {what} were altered from outside, or belong to another state of the bucket: {hint}")]
    Altered { bucket: String, what: &'static str, hint: &'static str },
    #[error("bucket {name} has no folder in {store}; make it with: ssefs bucket create {name}")]
    NoBucket { name: BucketName, store: PathBuf },
    #[error("bucket {0} exists already")]
    BucketExists(BucketName),
    #[error(
        "bucket {0} is known to the keyring and its folder is gone: put the folder back, or forget it with: ssefs bucket delete {0} --force"
    )]
    FolderGone(BucketName),
    #[error(
        "bucket {0} is unknown to the keyring: its keys are elsewhere; use the keyring it was made with (--config DIR)"
    )]
    UnknownToKeyring(BucketName),
    #[error("bucket {0} still holds objects; delete them first, or use --force")]
    BucketNotEmpty(BucketName),
    #[error("bucket {name} is open in process {}{}", .holder.pid, .holder.mountpoint.as_ref().map(|m| format!(", mounted at {}", m.display())).unwrap_or_default())]
    Busy { name: BucketName, holder: Holder },
    /// A commit or a sync failed earlier: nothing is acknowledged until the bucket is opened again.
    #[error("the bucket stopped after an error ({0}): unmount and mount it again")]
    Failed(String),
    #[error(transparent)]
    Catalog(CatalogError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Crypto(#[from] CryptoError),
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
}

impl BucketError {
    /// Whether a key was disabled or destroyed, by the word of whoever keeps it: it may never come back.
    pub fn is_revoked(&self) -> bool {
        match self {
            BucketError::Key(KeyError::Service { source, .. }) => source.revokes(),
            BucketError::Key(e) => e.code().is_some(),
            _ => false,
        }
    }
}

impl From<CatalogError> for BucketError {
    fn from(e: CatalogError) -> Self {
        match e {
            CatalogError::Full => BucketError::NoSpace,
            e => BucketError::Catalog(e),
        }
    }
}

impl From<RuleError> for BucketError {
    fn from(e: RuleError) -> Self {
        BucketError::Rule(e)
    }
}
