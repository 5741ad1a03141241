//! What the keys layer can refuse or fail with. Messages name the file or the key and the next step, never a secret.

use super::provider::ProviderError;
use crate::crypto::CryptoError;
use crate::types::StoreId;
use std::io;
use std::path::{Path, PathBuf};

/// Errors of root key, keyring and key service.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    // The root key.
    #[error(
        "there is no root key at {path}{}: put the key back from your backup; without it nothing that it protects can be read",
        needed.as_ref().map(|id| format!(" (the keyring needs the one with id {id})")).unwrap_or_default()
    )]
    RootMissing { path: PathBuf, needed: Option<String> },
    #[error("cannot read the secret in {path}: {source}")]
    RootUnreadable { path: PathBuf, source: io::Error },
    #[error(
        "{path} holds a secret and can be read by others (mode {mode:04o}): run chmod 600 on it, and consider what it holds known to them"
    )]
    RootTooOpen { path: PathBuf, mode: u32 },
    #[error("{path} belongs to user {uid}, who can read it: run chown on it, and consider it known to that user")]
    RootForeign { path: PathBuf, uid: u32 },
    #[error("{path} is not a root key: {why}. Put the key back from your backup")]
    RootMalformed { path: PathBuf, why: &'static str },
    #[error("{path} holds the root key with id {found}, but the keyring {keyring} needs the one with id {needed}")]
    RootWrong { path: PathBuf, found: String, needed: String, keyring: PathBuf },

    #[error("{path} does not say where the root key is: {why}. Put the file back from your backup")]
    RootSourceMalformed { path: PathBuf, why: String },
    #[error("wrong passphrase for the root key {0}")]
    RootPassphraseWrong(String),
    #[error("a passphrase is needed for {what}, and {why}")]
    NoPassphrase { what: String, why: String },
    #[error("no passphrase came from {from}: {why}")]
    BadPassphrase { from: String, why: String },
    #[error("the program {program} gave no key: {why}")]
    Command { program: String, why: String },
    #[error("the credential {name} cannot be read: {why}")]
    NoCredential { name: String, why: String },
    #[error("{what} cannot be the place of the root key: {why}")]
    RootPlace { what: String, why: String },
    #[error(
        "the root key of the keyring {keyring} was changed from {held} to {needed} and this process has the old one: what \
         is open stays open; mount again to use keys that were not yet in use"
    )]
    RootChanged { keyring: PathBuf, held: String, needed: String },

    // Recovery kits.
    #[error("{path} is not a recovery kit: {why}")]
    KitMalformed { path: PathBuf, why: String },
    #[error("wrong passphrase or code for recovery kit {number}")]
    KitWrong { number: u32 },
    #[error("recovery kit {number} in {path} was altered or is damaged: use another copy of it")]
    KitDamaged { path: PathBuf, number: u32 },
    #[error("{0} exists already: a recovery kit is a new file")]
    KitExists(PathBuf),
    #[error(
        "{0} holds a root key or a keyring already: restore into another directory with --config DIR, or move them away"
    )]
    KitInTheWay(PathBuf),

    // The keyring's file.
    #[error("there is no keyring at {0}: put it back from your backup, or name its directory with SSEFS_CONFIG")]
    KeyringMissing(PathBuf),
    #[error("{path} is not an ssefs keyring ({why}): move it away, or name another directory with SSEFS_CONFIG")]
    NotAKeyring { path: PathBuf, why: String },
    #[error("the keyring {path} is damaged ({why}): put it back from your backup")]
    KeyringDamaged { path: PathBuf, why: String },
    #[error("the keyring {path} has format {found}; this ssefs knows up to {known}: use a newer ssefs")]
    KeyringNewer { path: PathBuf, found: i64, known: i64 },
    #[error(
        "the keyring {path} was altered: row {row} of table {table} fails its tag. Put the keyring back from your backup"
    )]
    RowAltered { path: PathBuf, table: &'static str, row: String },
    #[error(
        "the keyring {path} was altered: rows were removed, or older ones put back. Put the keyring back from your backup"
    )]
    RowsAltered { path: PathBuf },
    #[error(
        "the keyring {path} has gone back from generation {seen} to {found}: put the newer one back, or unmount, if the older one is to count"
    )]
    KeyringOlder { path: PathBuf, found: u64, seen: u64 },
    #[error("the keyring {0} is in use by another process for longer than 10 s: try again")]
    KeyringBusy(PathBuf),
    #[error("no space left for the keyring {0}")]
    KeyringFull(PathBuf),
    #[error("the keyring {path}: {source}")]
    Sql { path: PathBuf, source: rusqlite::Error },

    // Master keys; the codes are those of the clouds' key services.
    #[error("KMS.NotFoundException: there is no key {0:?} in the keyring")]
    NotFound(String),
    #[error("KMS.NotFoundException: key {key:?} has no version {version} in the keyring")]
    NoVersion { key: String, version: u32 },
    #[error("KMS.DisabledException: key {0:?} is disabled")]
    Disabled(String),
    #[error("KMS.KMSInvalidStateException: key {0:?} is pending deletion")]
    PendingDeletion(String),
    #[error(
        "KMS.KMSInvalidStateException: key {0:?} is pending import: its material was deleted, import it again with: ssefs key import"
    )]
    PendingImport(String),
    #[error("KMS.NotFoundException: key {key:?} was destroyed {}", crate::types::utc(*when))]
    Destroyed { key: String, when: i64 },
    #[error(
        "AccessDenied: user {uid} may not use the key {key}; root or the keyring's owner can allow it: ssefs key grant {key} {uid}"
    )]
    Denied { uid: u32, key: String },
    #[error("key {key:?} is in use: {buckets} bucket{} on it", if *buckets == 1 { " hangs" } else { "s hang" })]
    InUse { key: String, buckets: usize },
    #[error("key {key:?}: {why}")]
    NotNow { key: String, why: &'static str },
    #[error("a key waits 7 to 30 days for its deletion, not {0}")]
    WaitDays(u32),
    #[error("a key rotates by itself after 1 to 36500 days, or with 0 never")]
    RotateDays,
    #[error("a description has at most 8192 bytes and no NUL")]
    BadDescription,
    #[error("{from} is no key material: {why}")]
    Material { from: PathBuf, why: String },
    #[error("{path} cannot be used as the recovery file of a key: {why}")]
    Recovery { path: PathBuf, why: &'static str },
    #[error("key {0:?} is in the keyring: a recovery file brings back only what is gone")]
    KeyThere(String),
    #[error("{0} is there already: it is not overwritten")]
    FileExists(PathBuf),
    #[error("key {key:?} belongs to the key service {provider:?}, which this ssefs does not know")]
    UnknownProvider { key: String, provider: String },
    #[error("key {0:?} is managed for a bucket: only customer master keys can be changed by hand")]
    Managed(String),
    #[error("there is a key with the alias {0:?} already")]
    AliasTaken(String),
    #[error("alias {0:?} is not allowed: use 1 to 255 of A-Z a-z 0-9 / . _ - and begin with neither mk- nor ssefs/")]
    BadAlias(String),
    /// An external key service did not do it.
    #[error("{}: key {key} at {service}: {source}", source.code())]
    Service { key: String, service: String, source: ProviderError },
    /// A key service that was named in a way that does not do; nothing was kept.
    #[error("{0}")]
    BadProvider(ProviderError),
    #[error("{what}: {source}")]
    Unwrap { what: String, source: CryptoError },

    // Stores and buckets.
    #[error("there is no store at {0}: name it with --store, or make it with its first bucket")]
    StoreMissing(PathBuf),
    #[error("the store {known} belongs at {path}, but its store.id is not there: is the disk mounted?")]
    StoreGone { path: PathBuf, known: StoreId },
    #[error(
        "{path} holds the store {found}, but the keyring knows the store {known} there: is the right disk mounted?"
    )]
    StoreSwapped { path: PathBuf, known: StoreId, found: StoreId },
    #[error("{0} has buckets but no store.id: put the file back from your backup")]
    StoreIdLost(PathBuf),
    #[error("{path} is not the id of a store: {why}. Put the file back from your backup")]
    StoreIdMalformed { path: PathBuf, why: &'static str },
    #[error("the keyring does not know the store {0}: open it first")]
    StoreUnknown(StoreId),
    #[error("the keyring knows a bucket {0:?} in this store already")]
    BucketKnown(String),
    #[error("the keyring does not know the bucket {0}")]
    BucketUnknown(String),

    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Crypto(#[from] CryptoError),
}

impl KeyError {
    /// The key services' error code, where they have one for this.
    pub fn code(&self) -> Option<&'static str> {
        match self {
            KeyError::NotFound(_) | KeyError::NoVersion { .. } | KeyError::Destroyed { .. } => {
                Some("KMS.NotFoundException")
            }
            KeyError::Disabled(_) => Some("KMS.DisabledException"),
            KeyError::PendingDeletion(_) | KeyError::PendingImport(_) => Some("KMS.KMSInvalidStateException"),
            KeyError::Service { source, .. } => Some(source.code()),
            KeyError::Denied { .. } => Some("AccessDenied"),
            _ => None,
        }
    }

    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> KeyError + '_ {
        move |source| KeyError::Io { path: path.to_owned(), source }
    }

    pub(super) fn sql(path: &Path) -> impl FnOnce(rusqlite::Error) -> KeyError + '_ {
        use rusqlite::ErrorCode::*;
        move |source| {
            let path = path.to_owned();
            match source.sqlite_error_code() {
                Some(DatabaseBusy | DatabaseLocked) => KeyError::KeyringBusy(path),
                Some(DiskFull) => KeyError::KeyringFull(path),
                Some(DatabaseCorrupt) => KeyError::KeyringDamaged { path, why: source.to_string() },
                Some(NotADatabase) => KeyError::NotAKeyring { path, why: "not an SQLite file".into() },
                _ => KeyError::Sql { path, source },
            }
        }
    }
}
