//! Which code each error of the layers below has. One exhaustive match a layer, so that a new variant must be given
//! one.

use super::{ErrorCode, OpError};
use crate::bucket::{BucketError, CustomerError};
use crate::catalog::CatalogError;
use crate::keys::KeyError;
use crate::keys::provider::ProviderError;
use crate::log::LogError;
use crate::rule::RuleError;

impl From<KeyError> for OpError {
    fn from(e: KeyError) -> OpError {
        let error = OpError::new(of_key(&e), e.to_string());
        match e {
            KeyError::NoPassphrase { what, .. } if what.contains("kit") => {
                error.hint("--kit-passphrase-file FILE, --kit-passphrase-fd N or --kit-passphrase-command COMMAND")
            }
            KeyError::NoPassphrase { what, .. } if what.contains("new") => {
                error.hint("--new-passphrase-file FILE, --new-passphrase-fd N or --new-passphrase-command COMMAND")
            }
            KeyError::NoPassphrase { .. } => error.hint(
                "--passphrase-file FILE, --passphrase-fd N or --passphrase-command COMMAND; in fstab the option \
                 passphrase_file=FILE; or keep the root key where nobody is asked: ssefs key root change",
            ),
            KeyError::Disabled(key) => error.hint(format!("to use it again: ssefs key enable {key}")),
            KeyError::PendingDeletion(key) => {
                error.hint(format!("to keep it: ssefs key cancel-deletion {key}, then ssefs key enable {key}"))
            }
            _ => error,
        }
    }
}

impl From<BucketError> for OpError {
    fn from(e: BucketError) -> OpError {
        match e {
            BucketError::Key(e) => e.into(),
            e => OpError::new(of_bucket(&e), e.to_string()),
        }
    }
}

/// A rule's error keeps the vendor's code and message word for word.
impl From<RuleError> for OpError {
    fn from(e: RuleError) -> OpError {
        OpError::new(of_rule(&e), format!("{}: {}", e.code(), e.message()))
    }
}

fn of_rule(e: &RuleError) -> ErrorCode {
    match e {
        RuleError::NoRule { .. } => ErrorCode::NotFound,
        RuleError::KeyNotFound { .. }
        | RuleError::KeyDestroyed { .. }
        | RuleError::KeyDisabled { .. }
        | RuleError::KeyPendingImport { .. }
        | RuleError::KeyPendingDeletion { .. } => ErrorCode::Key,
        _ => ErrorCode::Refused,
    }
}

fn of_key(e: &KeyError) -> ErrorCode {
    match e {
        KeyError::RootMissing { .. }
        | KeyError::RootUnreadable { .. }
        | KeyError::RootTooOpen { .. }
        | KeyError::RootForeign { .. }
        | KeyError::RootMalformed { .. }
        | KeyError::RootWrong { .. }
        | KeyError::RootSourceMalformed { .. }
        | KeyError::RootPassphraseWrong(_)
        | KeyError::NoPassphrase { .. }
        | KeyError::BadPassphrase { .. }
        | KeyError::Command { .. }
        | KeyError::NoCredential { .. }
        | KeyError::RootChanged { .. }
        | KeyError::KitWrong { .. }
        | KeyError::KeyringMissing(_)
        | KeyError::NotAKeyring { .. }
        | KeyError::NotFound(_)
        | KeyError::NoVersion { .. }
        | KeyError::Disabled(_)
        | KeyError::PendingDeletion(_)
        | KeyError::Service { .. }
        | KeyError::PendingImport(_)
        | KeyError::Destroyed { .. }
        | KeyError::UnknownProvider { .. } => ErrorCode::Key,
        KeyError::KeyringDamaged { .. }
        | KeyError::RowAltered { .. }
        | KeyError::RowsAltered { .. }
        | KeyError::KeyringOlder { .. }
        | KeyError::Unwrap { .. }
        | KeyError::KitMalformed { .. }
        | KeyError::KitDamaged { .. }
        | KeyError::StoreIdLost(_)
        | KeyError::StoreIdMalformed { .. } => ErrorCode::Damage,
        KeyError::KeyringNewer { .. } => ErrorCode::Newer,
        KeyError::KeyringBusy(_) => ErrorCode::Busy,
        KeyError::KeyringFull(_) => ErrorCode::Full,
        KeyError::Managed(_) | KeyError::RootPlace { .. } | KeyError::InUse { .. } | KeyError::NotNow { .. } => {
            ErrorCode::Refused
        }
        KeyError::Denied { .. } => ErrorCode::Permission,
        KeyError::Material { .. } | KeyError::Recovery { .. } => ErrorCode::Key,
        KeyError::AliasTaken(_)
        | KeyError::BucketKnown(_)
        | KeyError::KeyThere(_)
        | KeyError::FileExists(_)
        | KeyError::KitExists(_)
        | KeyError::KitInTheWay(_) => ErrorCode::Exists,
        KeyError::BadProvider(ProviderError::Setup(_))
        | KeyError::BadAlias(_)
        | KeyError::WaitDays(_)
        | KeyError::RotateDays
        | KeyError::BadDescription => ErrorCode::Usage,
        KeyError::BadProvider(_) => ErrorCode::Key,
        KeyError::StoreMissing(_)
        | KeyError::StoreGone { .. }
        | KeyError::StoreUnknown(_)
        | KeyError::BucketUnknown(_) => ErrorCode::NotFound,
        KeyError::Io { source, .. } => ErrorCode::of_io(source),
        KeyError::Sql { .. } | KeyError::StoreSwapped { .. } | KeyError::Crypto(_) => ErrorCode::General,
    }
}

fn of_bucket(e: &BucketError) -> ErrorCode {
    match e {
        BucketError::NotFound(_)
        | BucketError::NoAttribute
        | BucketError::NoBucket { .. }
        | BucketError::FolderGone(_) => ErrorCode::NotFound,
        BucketError::Exists(_) | BucketError::BucketExists(_) => ErrorCode::Exists,
        BucketError::Busy { .. } => ErrorCode::Busy,
        BucketError::Denied(_) | BucketError::ReadOnly => ErrorCode::Permission,
        BucketError::NoSpace => ErrorCode::Full,
        BucketError::Rule(e) => of_rule(e),
        BucketError::Key(e) => of_key(e),
        BucketError::Customer(e) => match e {
            CustomerError::Missing { .. } | CustomerError::Wrong { .. } => ErrorCode::Key,
            CustomerError::NotCustomer { .. } | CustomerError::TooMany(_) => ErrorCode::Refused,
            CustomerError::NotUnlocked { .. } => ErrorCode::NotFound,
        },
        BucketError::UnknownToKeyring(_) | BucketError::Erased(_) => ErrorCode::Key,
        BucketError::Damaged { .. } | BucketError::Altered { .. } => ErrorCode::Damage,
        BucketError::Unsupported(_) | BucketError::BucketNotEmpty(_) => ErrorCode::Refused,
        BucketError::NameTooLong
        | BucketError::Invalid(_)
        | BucketError::NotDirectory
        | BucketError::IsDirectory
        | BucketError::NotEmpty
        | BucketError::TooBig
        | BucketError::TooManyLinks => ErrorCode::General,
        BucketError::Catalog(e) => of_catalog(e),
        BucketError::Log(e) => of_log(e),
        BucketError::Io { source, .. } => ErrorCode::of_io(source),
        BucketError::Stopped => ErrorCode::Incomplete,
        BucketError::Failed(_) | BucketError::Crypto(_) => ErrorCode::General,
    }
}

/// A bucket's folder without its catalog is damage, not an absent bucket.
fn of_catalog(e: &CatalogError) -> ErrorCode {
    match e {
        CatalogError::Missing(_) | CatalogError::Damaged { .. } | CatalogError::BadRow { .. } => ErrorCode::Damage,
        CatalogError::Newer { .. } => ErrorCode::Newer,
        CatalogError::Full => ErrorCode::Full,
        CatalogError::Io(e) => ErrorCode::of_io(e),
        CatalogError::Sql(_) => ErrorCode::General,
    }
}

fn of_log(e: &LogError) -> ErrorCode {
    match e {
        LogError::Missing(_) | LogError::Damaged { .. } => ErrorCode::Damage,
        LogError::Newer { .. } => ErrorCode::Newer,
        LogError::Io { source, .. } => ErrorCode::of_io(source),
        LogError::Failed(_) | LogError::Random(_) => ErrorCode::General,
    }
}
