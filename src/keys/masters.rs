//! Master keys and their versions: made, named, described, used. Versions only grow in number; an old one stays, since
//! what it wrapped must open. `life.rs` has what becomes of a key later.

use super::KeyError;
use super::dependants::{Dependant, dependants_of, grants_of};
use super::keyring::{Change, Inner, Keyring};
use super::material;
use super::provider::Service;
use super::rows::{MASTER, MasterRow, Snapshot, VERSION};
use crate::crypto::secret::{MasterKey, fill_random};
use crate::crypto::wrap;
use crate::types::{BucketId, KeyId, to_hex};
use rusqlite::types::Value;
use std::sync::Arc;

/// Alias of the default service CMK.
pub const DEFAULT_CMK_ALIAS: &str = "ssefs/default";
/// Days after which a key rotates by itself, unless it says otherwise.
pub const ROTATE_DAYS_DEFAULT: u32 = 365;
/// Longest period that can be asked for.
pub const ROTATE_DAYS_MAX: u32 = 36_500;
const DESCRIPTION_BYTES_MAX: usize = 8192;

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$vdoc])* $variant),* }
        impl $name {
            /// As the keyring and the command line write it.
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $word),* }
            }
            pub(super) fn parse(word: &str) -> Option<Self> {
                match word { $($word => Some($name::$variant),)* _ => None }
            }
        }
    };
}
words!(
    /// Whose a master key is.
    KeyKind {
        /// Managed for one bucket (method SSE); never named by a rule.
        Managed = "managed",
        /// A customer master key (method SSE-KMS).
        Cmk = "cmk",
    }
);
words!(
    /// Whether a master key may be used.
    KeyState {
        Enabled = "enabled",
        Disabled = "disabled",
        /// Its imported material was deleted and can be imported again.
        PendingImport = "pending-import",
        PendingDeletion = "pending-deletion",
        /// Gone: what is left is its id.
        Destroyed = "destroyed",
    }
);
words!(
    /// Where a master key's material comes from.
    KeyOrigin {
        Generated = "generated",
        Imported = "imported",
    }
);

/// One version of a master key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VersionInfo {
    pub version: u32,
    /// Unix seconds.
    pub created: i64,
}

/// What there is to tell about a master key. Times are Unix seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyInfo {
    pub id: KeyId,
    pub alias: Option<String>,
    pub kind: KeyKind,
    /// Of a managed key: its bucket.
    pub bucket: Option<BucketId>,
    pub description: String,
    pub state: KeyState,
    pub origin: KeyOrigin,
    /// The URI of a key that lies with an external service.
    pub provider: Option<String>,
    pub created: i64,
    /// 0 when none is left.
    pub newest_version: u32,
    pub versions: Vec<VersionInfo>,
    /// 0: never.
    pub rotate_days: u32,
    /// When it rotates by itself.
    pub next_rotation: Option<i64>,
    /// When it will be destroyed.
    pub delete_after: Option<i64>,
    pub destroyed: Option<i64>,
    /// Who may name it besides root and the keyring's owner.
    pub grants: Vec<u32>,
    pub used_by: Vec<Dependant>,
}

/// A key to be made.
pub(super) struct NewKey<'a> {
    pub alias: Option<&'a str>,
    pub kind: KeyKind,
    pub bucket: Option<BucketId>,
    pub description: &'a str,
    pub origin: KeyOrigin,
    pub rotate_days: Option<u32>,
}

impl<'a> NewKey<'a> {
    pub fn cmk(alias: Option<&'a str>, description: &'a str) -> Self {
        let (kind, origin) = (KeyKind::Cmk, KeyOrigin::Generated);
        NewKey { alias, kind, bucket: None, description, origin, rotate_days: None }
    }
}

impl Keyring {
    /// Makes a customer master key with its first version.
    pub fn create_key(&self, alias: Option<&str>, description: &str) -> Result<KeyId, KeyError> {
        check_names(alias, Some(description))?;
        self.change(|c| self.insert_key(c, &NewKey::cmk(alias, description), &MasterKey::random()?))
    }

    /// All master keys, by id.
    pub fn list_keys(&self) -> Result<Vec<KeyInfo>, KeyError> {
        self.read(|inner| Ok(inner.snapshot.masters.values().map(|row| info(&inner.snapshot, row)).collect()))
    }

    /// Gives a customer master key another alias, or with `None` none. The old one is free for others.
    pub fn set_alias(&self, key: &KeyId, alias: Option<&str>) -> Result<(), KeyError> {
        check_names(alias, None)?;
        self.change(|c| {
            let mut row = changeable(c.snapshot, key)?;
            if row.alias.as_deref() == Some(DEFAULT_CMK_ALIAS) {
                return Err(KeyError::BadAlias(DEFAULT_CMK_ALIAS.into()));
            }
            if let Some(alias) = alias {
                alias_is_free(c.snapshot, alias, Some(key))?;
            }
            row.alias = alias.map(str::to_owned);
            put_master(c, &row)
        })
    }

    /// Changes a customer master key's description.
    pub fn set_description(&self, key: &KeyId, description: &str) -> Result<(), KeyError> {
        check_names(None, Some(description))?;
        self.change(|c| put_master(c, &MasterRow { description: description.into(), ..changeable(c.snapshot, key)? }))
    }

    /// The CMK of this id or alias. A bucket's managed key is no CMK.
    pub(super) fn find_cmk(&self, name: &str) -> Result<KeyId, KeyError> {
        self.read(|inner| {
            let mut keys = inner.snapshot.masters.values().filter(|k| k.kind == KeyKind::Cmk);
            keys.find(|k| k.id.0 == name || k.alias.as_deref() == Some(name))
                .map(|k| k.id.clone())
                .ok_or_else(|| KeyError::NotFound(name.to_owned()))
        })
    }

    /// The managed key of `bucket`, or without one the default CMK; made on first use.
    pub(super) fn service_key(&self, bucket: Option<&BucketId>) -> Result<KeyId, KeyError> {
        let find = |s: &Snapshot| {
            let is_it = |k: &&MasterRow| match bucket {
                Some(b) => k.kind == KeyKind::Managed && k.bucket.as_ref() == Some(b),
                None => k.kind == KeyKind::Cmk && k.alias.as_deref() == Some(DEFAULT_CMK_ALIAS),
            };
            s.masters.values().find(is_it).map(|k| k.id.clone())
        };
        if let Some(id) = self.read(|inner| Ok(find(&inner.snapshot)))? {
            return Ok(id);
        }
        self.change(|c| {
            if let Some(id) = find(c.snapshot) {
                // Another process was faster.
                return Ok(id);
            }
            let new = match bucket {
                Some(b) => {
                    let managed = NewKey::cmk(None, "service-managed key of a bucket");
                    NewKey { kind: KeyKind::Managed, bucket: Some(*b), ..managed }
                }
                None => NewKey::cmk(Some(DEFAULT_CMK_ALIAS), "default service CMK"),
            };
            self.insert_key(c, &new, &MasterKey::random()?)
        })
    }

    /// This version of a usable key, unwrapped; from memory unless the keyring changed since.
    pub(super) fn master(&self, inner: &mut Inner, key: &KeyId, version: u32) -> Result<Arc<MasterKey>, KeyError> {
        usable(&inner.snapshot, key)?;
        let place = (key.clone(), version);
        if let Some(master) = inner.unwrapped.get(&place) {
            return Ok(Arc::clone(master));
        }
        let master = Arc::new(self.unwrap_version(&inner.snapshot, key, version)?);
        inner.unwrapped.insert(place, Arc::clone(&master));
        Ok(master)
    }

    /// A version's material, whatever the key's state.
    pub(super) fn unwrap_version(&self, s: &Snapshot, key: &KeyId, version: u32) -> Result<MasterKey, KeyError> {
        let row = s.versions.get(&(key.clone(), version));
        let row = row.ok_or_else(|| KeyError::NoVersion { key: key.0.clone(), version })?;
        if material::is_deleted(&row.wrapped) {
            return Err(KeyError::PendingImport(key.0.clone()));
        }
        wrap::unwrap_master(&self.root(), key, version, &row.wrapped)
            .map_err(|source| KeyError::Unwrap { what: format!("version {version} of key {key}"), source })
    }

    pub(super) fn insert_key(&self, c: &Change<'_>, new: &NewKey<'_>, first: &MasterKey) -> Result<KeyId, KeyError> {
        if let Some(alias) = new.alias {
            alias_is_free(c.snapshot, alias, None)?;
        }
        let id = new_id()?;
        put_master(
            c,
            &MasterRow {
                id: id.clone(),
                alias: new.alias.map(str::to_owned),
                kind: new.kind,
                bucket: new.bucket,
                description: new.description.to_owned(),
                state: KeyState::Enabled,
                created: self.now(),
                provider: None,
                provider_ref: None,
                origin: new.origin,
                rotate_days: new.rotate_days,
                delete_after: None,
                destroyed: None,
                due_seen: None,
            },
        )?;
        self.insert_version(c, &id, 1, first)?;
        Ok(id)
    }

    pub(super) fn insert_version(
        &self,
        c: &Change<'_>,
        key: &KeyId,
        version: u32,
        material: &MasterKey,
    ) -> Result<(), KeyError> {
        put_version(c, key, version, wrap::wrap_master(&self.root(), key, version, material)?, self.now())
    }
}

/// A new id of a master key.
pub(super) fn new_id() -> Result<KeyId, KeyError> {
    let mut random = [0u8; 8];
    fill_random(&mut random)?;
    Ok(KeyId(format!("mk-{}", to_hex(&random))))
}

pub(super) fn put_version(
    c: &Change<'_>,
    key: &KeyId,
    version: u32,
    wrapped: Vec<u8>,
    created: i64,
) -> Result<(), KeyError> {
    let key = Value::Text(key.0.clone());
    let version = Value::Integer(version.into());
    c.put(&VERSION, &[key, version, Value::Blob(wrapped), Value::Integer(created), Value::Null])
}

/// A version that lies with an external service, by its name there.
pub(super) fn put_external_version(
    c: &Change<'_>,
    key: &KeyId,
    version: u32,
    there: &str,
    created: i64,
) -> Result<(), KeyError> {
    let key = Value::Text(key.0.clone());
    let (version, there) = (Value::Integer(version.into()), Value::Text(there.to_owned()));
    c.put(&VERSION, &[key, version, Value::Blob(Vec::new()), Value::Integer(created), there])
}

pub(super) fn put_master(c: &Change<'_>, row: &MasterRow) -> Result<(), KeyError> {
    let text = |t: &Option<String>| t.clone().map_or(Value::Null, Value::Text);
    let number = |n: Option<i64>| n.map_or(Value::Null, Value::Integer);
    c.put(
        &MASTER,
        &[
            Value::Text(row.id.0.clone()),
            text(&row.alias),
            Value::Text(row.kind.as_str().into()),
            row.bucket.map_or(Value::Null, |b| Value::Blob(b.0.to_vec())),
            Value::Text(row.description.clone()),
            Value::Text(row.state.as_str().into()),
            Value::Integer(row.created),
            text(&row.provider),
            text(&row.provider_ref),
            Value::Text(row.origin.as_str().into()),
            number(row.rotate_days.map(i64::from)),
            number(row.delete_after),
            number(row.destroyed),
            text(&row.due_seen),
        ],
    )
}

pub(super) fn find<'a>(s: &'a Snapshot, key: &KeyId) -> Result<&'a MasterRow, KeyError> {
    s.masters.get(key).ok_or_else(|| KeyError::NotFound(key.0.clone()))
}

/// A customer master key that is not gone, to be changed by hand.
pub(super) fn changeable(s: &Snapshot, key: &KeyId) -> Result<MasterRow, KeyError> {
    let row = find(s, key)?;
    match row {
        MasterRow { kind: KeyKind::Managed, .. } => Err(KeyError::Managed(key.0.clone())),
        MasterRow { state: KeyState::Destroyed, .. } => Err(destroyed(row)),
        row => Ok(row.clone()),
    }
}

/// People know a key by its alias.
pub(super) fn name_of(row: &MasterRow) -> String {
    row.alias.as_ref().map_or(row.id.0.clone(), |alias| format!("{alias} ({})", row.id))
}

fn destroyed(row: &MasterRow) -> KeyError {
    KeyError::Destroyed { key: row.id.0.clone(), when: row.destroyed.unwrap_or(0) }
}

/// The key's row, when it may wrap and unwrap.
pub(super) fn usable<'a>(s: &'a Snapshot, key: &KeyId) -> Result<&'a MasterRow, KeyError> {
    let row = find(s, key)?;
    if let Some(provider) = row.provider.as_ref().filter(|p| Service::parse(p).is_none()) {
        return Err(KeyError::UnknownProvider { key: name_of(row), provider: provider.clone() });
    }
    in_use(row)
}

/// The key's row, when its state lets it be used.
pub(super) fn in_use(row: &MasterRow) -> Result<&MasterRow, KeyError> {
    match row.state {
        KeyState::Enabled => Ok(row),
        KeyState::Disabled => Err(KeyError::Disabled(name_of(row))),
        KeyState::PendingImport => Err(KeyError::PendingImport(name_of(row))),
        KeyState::PendingDeletion => Err(KeyError::PendingDeletion(name_of(row))),
        KeyState::Destroyed => Err(destroyed(row)),
    }
}

/// The number of the newest version of a key.
pub(super) fn newest(s: &Snapshot, key: &KeyId) -> Result<u32, KeyError> {
    find(s, key)?;
    versions(s, key)
        .next_back()
        .map(|v| v.version)
        .ok_or_else(|| KeyError::NoVersion { key: key.0.clone(), version: 1 })
}

pub(super) fn versions<'a>(s: &'a Snapshot, key: &KeyId) -> impl DoubleEndedIterator<Item = VersionInfo> + use<'a> {
    s.versions
        .range((key.clone(), 0)..=(key.clone(), u32::MAX))
        .map(|((_, version), row)| VersionInfo { version: *version, created: row.created })
}

/// What there is to tell about `key`.
pub(super) fn describe(s: &Snapshot, key: &KeyId) -> Result<KeyInfo, KeyError> {
    Ok(info(s, find(s, key)?))
}

fn info(s: &Snapshot, row: &MasterRow) -> KeyInfo {
    let versions: Vec<_> = versions(s, &row.id).collect();
    KeyInfo {
        id: row.id.clone(),
        alias: row.alias.clone(),
        kind: row.kind,
        bucket: row.bucket,
        description: row.description.clone(),
        state: row.state,
        origin: row.origin,
        provider: row.provider.as_ref().map(|p| format!("{p}:{}", row.provider_ref.as_deref().unwrap_or_default())),
        created: row.created,
        newest_version: versions.last().map_or(0, |v| v.version),
        versions,
        rotate_days: super::life::rotate_days(row),
        next_rotation: super::life::next_rotation(s, row),
        delete_after: row.delete_after,
        destroyed: row.destroyed,
        grants: grants_of(s, &row.id),
        used_by: dependants_of(s, &row.id),
    }
}

pub(super) fn alias_is_free(s: &Snapshot, alias: &str, but: Option<&KeyId>) -> Result<(), KeyError> {
    let taken = |k: &MasterRow| k.alias.as_deref() == Some(alias) && Some(&k.id) != but;
    if s.masters.values().any(taken) {
        return Err(KeyError::AliasTaken(alias.to_owned()));
    }
    Ok(())
}

/// Ids and service keys must stay distinguishable from aliases that people choose.
pub(super) fn check_names(alias: Option<&str>, description: Option<&str>) -> Result<(), KeyError> {
    if let Some(alias) = alias {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.' | b'_' | b'-');
        let reserved = alias.starts_with("mk-") || alias.starts_with("ssefs/");
        if !(1..=255).contains(&alias.len()) || !alias.bytes().all(legal) || reserved {
            return Err(KeyError::BadAlias(alias.chars().take(80).collect()));
        }
    }
    match description {
        Some(d) if d.len() > DESCRIPTION_BYTES_MAX || d.contains('\0') => Err(KeyError::BadDescription),
        _ => Ok(()),
    }
}
