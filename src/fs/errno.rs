//! What a file system call can fail with, and the one place where that becomes an errno.
//!
//! | errno | when |
//! | --- | --- |
//! | ENOENT, EEXIST, ENOTDIR, EISDIR, ENOTEMPTY, ENAMETOOLONG, EFBIG, EMLINK | as on any file system |
//! | EINVAL | a malformed or impossible rule (rows 48, 51, 55, 56, 59, 60), an unknown `user.sse.` name, bad arguments |
//! | ENODATA | no such attribute; no rule or request is set here (row 58) |
//! | EACCES | the caller may not change the rule (row 46), or may not name this master key; the bucket refuses plain objects (row 76) |
//! | EPERM | a hard link to a directory |
//! | ENOKEY | the root key, the keyring's entry for this bucket, or a customer key is not there; the key's external service is down, or refuses |
//! | EKEYREVOKED | the master key is disabled, pending import or deletion, or destroyed, here or in its external service; the object was erased |
//! | EKEYREJECTED | a key that is not the one needed |
//! | EBADMSG | content, rules, keys or the catalog are not what was written (row 64) |
//! | ENOSPC, EROFS, EBUSY | the store is full; open for reading only; open elsewhere |
//! | EOPNOTSUPP | not supported |
//! | EIO | an I/O error, and everything after a commit failed (row 63) |

use crate::bucket::{BucketError, CustomerError};
use crate::catalog::CatalogError;
use crate::crypto::CryptoError;
use crate::keys::KeyError;
use crate::keys::provider::ProviderError;
use crate::log::LogError;
use crate::rule::RuleError;

/// What a call on the mount can fail with.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// A name that begins with `user.sse.` and means nothing, here or at all.
    #[error("InvalidArgument: there is no attribute {name} {place}")]
    UnknownAttribute { name: String, place: &'static str },
    /// The attribute is a report.
    #[error("AccessDenied: {0} can only be read")]
    ReadOnlyAttribute(&'static str),
    /// What was given as a customer key has another length, or is no base64.
    #[error("InvalidArgument: a customer key is 32 bytes, or 44 characters of base64: {bytes} bytes were given")]
    BadCustomerKey { bytes: usize },
    #[error("NotImplemented: {0}")]
    Unsupported(&'static str),
    /// XATTR_CREATE, and it is there.
    #[error("the attribute exists already")]
    AttributeExists,
    /// Only root or the owner of the inode may do this.
    #[error("operation not permitted: {0}")]
    NotPermitted(&'static str),
    #[error("invalid: {0}")]
    Invalid(&'static str),
    /// No data or hole behind this offset.
    #[error("no such offset")]
    NoSuchOffset,
    /// A handle that is not open.
    #[error("bad handle")]
    BadHandle,
    /// Writing back failed while the file was open: errno of that failure (row 63).
    #[error("writing back failed while this file was open: close it")]
    WritingBack(i32),
}

impl From<RuleError> for FsError {
    fn from(e: RuleError) -> Self {
        FsError::Bucket(BucketError::Rule(e))
    }
}

impl FsError {
    /// The errno, see the table of the module.
    pub fn errno(&self) -> i32 {
        match self {
            FsError::Bucket(e) => errno(e),
            FsError::UnknownAttribute { .. } | FsError::Invalid(_) => libc::EINVAL,
            FsError::ReadOnlyAttribute(_) => libc::EINVAL,
            FsError::NotPermitted(_) => libc::EPERM,
            FsError::BadCustomerKey { .. } => libc::EINVAL,
            FsError::Unsupported(_) => libc::EOPNOTSUPP,
            FsError::AttributeExists => libc::EEXIST,
            FsError::NoSuchOffset => libc::ENXIO,
            FsError::BadHandle => libc::EBADF,
            FsError::WritingBack(errno) => *errno,
        }
    }

    /// Whether an errno alone would leave the caller in the dark: these are kept for `user.sse.last-error`.
    pub fn needs_words(&self) -> bool {
        match self {
            FsError::Bucket(e) => match e {
                BucketError::Rule(e) => !matches!(e, RuleError::NoRule { .. }),
                BucketError::Key(_)
                | BucketError::Customer(_)
                | BucketError::Denied(_)
                | BucketError::Erased(_)
                | BucketError::Damaged { .. }
                | BucketError::Altered { .. }
                | BucketError::Failed(_)
                | BucketError::Crypto(_)
                | BucketError::Log(_)
                | BucketError::Catalog(_) => true,
                _ => false,
            },
            FsError::UnknownAttribute { .. } | FsError::ReadOnlyAttribute(_) | FsError::BadCustomerKey { .. } => true,
            FsError::Unsupported(_)
            | FsError::AttributeExists
            | FsError::NotPermitted(_)
            | FsError::Invalid(_)
            | FsError::NoSuchOffset
            | FsError::BadHandle
            | FsError::WritingBack(_) => false,
        }
    }

    /// `Code: message`, as `user.sse.last-error` shows it. Codes are the vendors' where they have one.
    pub fn words(&self) -> String {
        let text = self.to_string();
        let code = match self {
            FsError::Bucket(
                BucketError::Rule(_) | BucketError::Denied(_) | BucketError::Erased(_) | BucketError::Customer(_),
            ) => return text,
            FsError::Bucket(BucketError::Key(k)) if k.code().is_some() => return text,
            FsError::UnknownAttribute { .. } | FsError::ReadOnlyAttribute(_) | FsError::BadCustomerKey { .. } => {
                return text;
            }
            FsError::Unsupported(_) => return text,
            FsError::Bucket(BucketError::Damaged { .. } | BucketError::Altered { .. }) => "BadDigest",
            FsError::Bucket(BucketError::NoSpace) => "InsufficientStorage",
            FsError::Bucket(BucketError::Invalid(_)) | FsError::Invalid(_) => "InvalidArgument",
            _ => "InternalError",
        };
        format!("{code}: {text}")
    }
}

/// The errno of a bucket's error.
pub fn errno(e: &BucketError) -> i32 {
    match e {
        BucketError::NotFound(_) | BucketError::NoBucket { .. } | BucketError::FolderGone(_) => libc::ENOENT,
        BucketError::Exists(_) | BucketError::BucketExists(_) => libc::EEXIST,
        BucketError::NotDirectory => libc::ENOTDIR,
        BucketError::IsDirectory => libc::EISDIR,
        BucketError::NotEmpty | BucketError::BucketNotEmpty(_) => libc::ENOTEMPTY,
        BucketError::NameTooLong => libc::ENAMETOOLONG,
        BucketError::TooBig => libc::EFBIG,
        BucketError::TooManyLinks => libc::EMLINK,
        BucketError::Invalid(_) => libc::EINVAL,
        BucketError::Unsupported(_) => libc::EOPNOTSUPP,
        BucketError::NoAttribute => libc::ENODATA,
        BucketError::Denied(_) => libc::EACCES,
        BucketError::Erased(_) => libc::EKEYREVOKED,
        BucketError::Stopped => libc::EINTR,
        BucketError::ReadOnly => libc::EROFS,
        BucketError::NoSpace => libc::ENOSPC,
        BucketError::Rule(e) => rule_errno(e),
        BucketError::Key(e) => key_errno(e),
        BucketError::Customer(e) => match e {
            CustomerError::Missing { .. } => libc::ENOKEY,
            CustomerError::Wrong { .. } => libc::EKEYREJECTED,
            CustomerError::NotCustomer { .. } | CustomerError::TooMany(_) => libc::EINVAL,
            CustomerError::NotUnlocked { .. } => libc::ENODATA,
        },
        BucketError::Damaged { .. } | BucketError::Altered { .. } => libc::EBADMSG,
        BucketError::UnknownToKeyring(_) => libc::ENOKEY,
        BucketError::Busy { .. } => libc::EBUSY,
        BucketError::Failed(_) => libc::EIO,
        BucketError::Catalog(e) => match e {
            CatalogError::Full => libc::ENOSPC,
            CatalogError::Damaged { .. } | CatalogError::BadRow { .. } => libc::EBADMSG,
            CatalogError::Missing(_) | CatalogError::Newer { .. } | CatalogError::Sql(_) => libc::EIO,
            CatalogError::Io(e) => io_errno(e),
        },
        BucketError::Log(e) => match e {
            LogError::Io { source, .. } => io_errno(source),
            LogError::Damaged { .. } => libc::EBADMSG,
            LogError::Missing(_) | LogError::Newer { .. } | LogError::Failed(_) | LogError::Random(_) => libc::EIO,
        },
        BucketError::Crypto(e) => crypto_errno(e),
        BucketError::Io { source, .. } => io_errno(source),
    }
}

/// Only a full disk keeps its errno: others (EACCES, ENOENT of a file in the store) would say something wrong about the mount.
fn io_errno(e: &std::io::Error) -> i32 {
    match e.raw_os_error() {
        Some(n @ (libc::ENOSPC | libc::EDQUOT)) => n,
        _ => libc::EIO,
    }
}

fn rule_errno(e: &RuleError) -> i32 {
    match e {
        RuleError::NoRule { .. } => libc::ENODATA,
        RuleError::MalformedXml { .. }
        | RuleError::UnknownAlgorithm
        | RuleError::KeyWithoutKms
        | RuleError::DataEncryptionWithoutKms
        | RuleError::UnknownDataEncryption { .. }
        | RuleError::KeyName { .. }
        | RuleError::NotInDialect { .. }
        | RuleError::DirectoryRule { .. }
        | RuleError::NoneOnBucket
        | RuleError::NoneHasNoXml
        | RuleError::KeyNotFound { .. }
        | RuleError::KeyDestroyed { .. }
        | RuleError::KeyDisabled { .. }
        | RuleError::KeyPendingImport { .. }
        | RuleError::KeyPendingDeletion { .. }
        | RuleError::UnknownDialect { .. } => libc::EINVAL,
    }
}

fn crypto_errno(e: &CryptoError) -> i32 {
    match e {
        CryptoError::WrongKey => libc::EKEYREJECTED,
        CryptoError::Damaged | CryptoError::Malformed { .. } => libc::EBADMSG,
        CryptoError::NewerVersion(_) | CryptoError::Random(_) => libc::EIO,
        CryptoError::Memory { .. } => libc::ENOMEM,
    }
}

/// What an external key service said, or did not say. A service that is down or lets nobody in is a key that is not there.
fn service_errno(e: &ProviderError) -> i32 {
    match e {
        ProviderError::Unreachable(_) | ProviderError::Refused(_) | ProviderError::Setup(_) => libc::ENOKEY,
        ProviderError::Disabled(_) | ProviderError::PendingDeletion(_) | ProviderError::Gone(_) => libc::EKEYREVOKED,
        ProviderError::WrongKey(_) => libc::EKEYREJECTED,
        ProviderError::Altered(_) => libc::EBADMSG,
    }
}

/// Keys that an object needs. A key that is not in the keyring any more was destroyed, which is EKEYREVOKED (row 30).
fn key_errno(e: &KeyError) -> i32 {
    match e {
        KeyError::NotFound(_)
        | KeyError::NoVersion { .. }
        | KeyError::Disabled(_)
        | KeyError::PendingImport(_)
        | KeyError::PendingDeletion(_)
        | KeyError::Destroyed { .. } => libc::EKEYREVOKED,
        KeyError::Denied { .. } => libc::EACCES,
        KeyError::RootMissing { .. }
        | KeyError::RootUnreadable { .. }
        | KeyError::RootTooOpen { .. }
        | KeyError::RootForeign { .. }
        | KeyError::KeyringMissing(_)
        | KeyError::UnknownProvider { .. }
        | KeyError::NoPassphrase { .. }
        | KeyError::Command { .. }
        | KeyError::NoCredential { .. }
        | KeyError::RootChanged { .. }
        | KeyError::StoreUnknown(_)
        | KeyError::BucketUnknown(_) => libc::ENOKEY,
        KeyError::RootMalformed { .. }
        | KeyError::RootWrong { .. }
        | KeyError::RootSourceMalformed { .. }
        | KeyError::RootPassphraseWrong(_)
        | KeyError::BadPassphrase { .. }
        | KeyError::KitWrong { .. } => libc::EKEYREJECTED,
        KeyError::NotAKeyring { .. }
        | KeyError::KeyringDamaged { .. }
        | KeyError::RowAltered { .. }
        | KeyError::RowsAltered { .. }
        | KeyError::KitMalformed { .. }
        | KeyError::KitDamaged { .. }
        | KeyError::KeyringOlder { .. }
        | KeyError::StoreIdMalformed { .. } => libc::EBADMSG,
        KeyError::KeyringBusy(_) => libc::EAGAIN,
        KeyError::KeyringFull(_) => libc::ENOSPC,
        KeyError::Managed(_) | KeyError::InUse { .. } | KeyError::NotNow { .. } => libc::EPERM,
        KeyError::AliasTaken(_)
        | KeyError::BucketKnown(_)
        | KeyError::KeyThere(_)
        | KeyError::FileExists(_)
        | KeyError::KitExists(_)
        | KeyError::KitInTheWay(_) => libc::EEXIST,
        KeyError::BadAlias(_)
        | KeyError::RootPlace { .. }
        | KeyError::WaitDays(_)
        | KeyError::RotateDays
        | KeyError::BadDescription
        | KeyError::Material { .. }
        | KeyError::Recovery { .. } => libc::EINVAL,
        KeyError::Service { source, .. } | KeyError::BadProvider(source) => service_errno(source),
        KeyError::Unwrap { source, .. } => crypto_errno(source),
        KeyError::Crypto(e) => crypto_errno(e),
        KeyError::KeyringNewer { .. }
        | KeyError::Sql { .. }
        | KeyError::StoreMissing(_)
        | KeyError::StoreGone { .. }
        | KeyError::StoreSwapped { .. }
        | KeyError::StoreIdLost(_) => libc::EIO,
        KeyError::Io { source, .. } => io_errno(source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r30_each_trouble_with_a_key_has_its_own_errno() {
        let of = |e: KeyError| FsError::from(BucketError::from(e)).errno();
        assert_eq!(of(KeyError::Disabled("k".into())), libc::EKEYREVOKED);
        assert_eq!(of(KeyError::NotFound("k".into())), libc::EKEYREVOKED);
        let customer = |e: CustomerError| FsError::from(BucketError::from(e)).errno();
        assert_eq!(customer(CustomerError::Missing { what: "the object", path: "f".into() }), libc::ENOKEY);
        assert_eq!(customer(CustomerError::Wrong { what: "the object", path: "f".into() }), libc::EKEYREJECTED);
        assert_eq!(of(KeyError::RootMissing { path: "r".into(), needed: None }), libc::ENOKEY);
        assert_eq!(of(KeyError::Unwrap { what: "k".into(), source: CryptoError::WrongKey }), libc::EKEYREJECTED);
        assert_eq!(of(KeyError::Unwrap { what: "k".into(), source: CryptoError::Damaged }), libc::EBADMSG);
        assert_eq!(errno(&BucketError::Damaged { object: 1, from: 0, to: 1, why: "tag" }), libc::EBADMSG);
        let service = |source| of(KeyError::Service { key: "k".into(), service: "s".into(), source });
        assert_eq!(service(ProviderError::Unreachable("down".into())), libc::ENOKEY);
        assert_eq!(service(ProviderError::Refused("no".into())), libc::ENOKEY);
        assert_eq!(service(ProviderError::Gone("deleted".into())), libc::EKEYREVOKED);
        assert_eq!(service(ProviderError::WrongKey("other".into())), libc::EKEYREJECTED);
        assert_eq!(service(ProviderError::Altered("tag".into())), libc::EBADMSG);
    }

    #[test]
    fn a_full_disk_is_enospc_wherever_it_was_noticed_and_other_errors_of_the_store_are_eio() {
        let io = |n| BucketError::Io { what: "w".into(), source: std::io::Error::from_raw_os_error(n) };
        assert_eq!(errno(&io(libc::ENOSPC)), libc::ENOSPC);
        assert_eq!(errno(&io(libc::EACCES)), libc::EIO);
        assert_eq!(errno(&BucketError::from(CatalogError::Full)), libc::ENOSPC);
        let log = LogError::Io { path: "s".into(), source: std::io::Error::from_raw_os_error(libc::ENOSPC) };
        assert_eq!(errno(&log.into()), libc::ENOSPC);
    }

    #[test]
    fn r55_the_words_begin_with_the_vendors_code_once() {
        let words = FsError::from(RuleError::UnknownAlgorithm).words();
        assert_eq!(
            words,
            "InvalidEncryptionAlgorithmError: The Encryption request you specified is not valid. Supported value: AES256/KMS"
        );
        let words = FsError::from(BucketError::from(KeyError::Disabled("k1".into()))).words();
        assert_eq!(words, "KMS.DisabledException: key \"k1\" is disabled");
        assert!(FsError::BadCustomerKey { bytes: 31 }.words().starts_with("InvalidArgument: "));
    }
}
