//! Master keys and their versions: made, named, rotated, switched off. Versions only grow in number; an old one stays,
//! since what it wrapped must open.

use super::KeyError;
use super::keyring::{Change, Inner, Keyring, now};
use super::rows::{MASTER, MasterRow, Snapshot, VERSION};
use crate::crypto::secret::{MasterKey, fill_random};
use crate::crypto::wrap;
use crate::types::{BucketId, KeyId, to_hex};
use rusqlite::types::Value;
use std::sync::Arc;

/// Alias of the default service CMK.
pub const DEFAULT_CMK_ALIAS: &str = "ssefs/default";

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
        PendingDeletion = "pending-deletion",
    }
);

/// What there is to tell about a master key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyInfo {
    pub id: KeyId,
    pub alias: Option<String>,
    pub kind: KeyKind,
    /// Of a managed key: its bucket.
    pub bucket: Option<BucketId>,
    pub description: String,
    pub state: KeyState,
    /// Unix seconds.
    pub created: i64,
    pub newest_version: u32,
}

impl Keyring {
    /// Makes a customer master key with its first version.
    pub fn create_key(&self, alias: Option<&str>, description: &str) -> Result<KeyId, KeyError> {
        if let Some(alias) = alias {
            check_alias(alias)?;
        }
        self.change(|c| self.insert_key(c, alias, KeyKind::Cmk, None, description))
    }

    /// All master keys, by id.
    pub fn list_keys(&self) -> Result<Vec<KeyInfo>, KeyError> {
        self.read(|inner| inner.snapshot.masters.values().map(|row| info(&inner.snapshot, row)).collect())
    }

    /// Makes a new version, which wraps from now on; returns its number. Old versions still unwrap.
    pub fn rotate(&self, key: &KeyId) -> Result<u32, KeyError> {
        self.change(|c| {
            usable(c.snapshot, key)?;
            let version = newest(c.snapshot, key)? + 1;
            self.insert_version(c, key, version)?;
            Ok(version)
        })
    }

    /// Enables or disables a customer master key, or marks it for deletion.
    pub fn set_state(&self, key: &KeyId, state: KeyState) -> Result<(), KeyError> {
        self.change(|c| {
            let row = find(c.snapshot, key)?;
            if row.kind == KeyKind::Managed {
                return Err(KeyError::Managed(key.0.clone()));
            }
            if let Some(provider) = &row.provider {
                return Err(KeyError::UnknownProvider { key: key.0.clone(), provider: provider.clone() });
            }
            let (alias, description) = (row.alias.clone(), row.description.clone());
            put_master(c, &MasterRow { id: key.clone(), alias, description, provider: None, state, ..*row })
        })
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
        self.change(|c| match (find(c.snapshot), bucket) {
            // Another process was faster.
            (Some(id), _) => Ok(id),
            (None, Some(b)) => self.insert_key(c, None, KeyKind::Managed, Some(*b), "service-managed key of a bucket"),
            (None, None) => self.insert_key(c, Some(DEFAULT_CMK_ALIAS), KeyKind::Cmk, None, "default service CMK"),
        })
    }

    /// This version of a usable key, unwrapped; from memory unless the keyring changed since.
    pub(super) fn master(&self, inner: &mut Inner, key: &KeyId, version: u32) -> Result<Arc<MasterKey>, KeyError> {
        usable(&inner.snapshot, key)?;
        let place = (key.clone(), version);
        if let Some(master) = inner.unwrapped.get(&place) {
            return Ok(Arc::clone(master));
        }
        let wrapped =
            inner.snapshot.versions.get(&place).ok_or_else(|| KeyError::NoVersion { key: key.0.clone(), version })?;
        let master = wrap::unwrap_master(&self.root(), key, version, wrapped)
            .map_err(|source| KeyError::Unwrap { what: format!("version {version} of key {key}"), source })?;
        let master = Arc::new(master);
        inner.unwrapped.insert(place, Arc::clone(&master));
        Ok(master)
    }

    fn insert_key(
        &self,
        c: &Change<'_>,
        alias: Option<&str>,
        kind: KeyKind,
        bucket: Option<BucketId>,
        description: &str,
    ) -> Result<KeyId, KeyError> {
        if let Some(alias) = alias
            && c.snapshot.masters.values().any(|k| k.alias.as_deref() == Some(alias))
        {
            return Err(KeyError::AliasTaken(alias.to_owned()));
        }
        let mut random = [0u8; 8];
        fill_random(&mut random)?;
        let id = KeyId(format!("mk-{}", to_hex(&random)));
        put_master(
            c,
            &MasterRow {
                id: id.clone(),
                alias: alias.map(str::to_owned),
                kind,
                bucket,
                description: description.to_owned(),
                state: KeyState::Enabled,
                created: now(),
                provider: None,
            },
        )?;
        self.insert_version(c, &id, 1)?;
        Ok(id)
    }

    fn insert_version(&self, c: &Change<'_>, key: &KeyId, version: u32) -> Result<(), KeyError> {
        let wrapped = wrap::wrap_master(&self.root(), key, version, &MasterKey::random()?)?;
        let values =
            [Value::Text(key.0.clone()), Value::Integer(version.into()), Value::Blob(wrapped), Value::Integer(now())];
        c.put(&VERSION, &values)
    }
}

fn put_master(c: &Change<'_>, row: &MasterRow) -> Result<(), KeyError> {
    let text = |t: &Option<String>| t.clone().map_or(Value::Null, Value::Text);
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
            Value::Null,
        ],
    )
}

fn find<'a>(s: &'a Snapshot, key: &KeyId) -> Result<&'a MasterRow, KeyError> {
    s.masters.get(key).ok_or_else(|| KeyError::NotFound(key.0.clone()))
}

/// The key's row, when it may wrap and unwrap.
pub(super) fn usable<'a>(s: &'a Snapshot, key: &KeyId) -> Result<&'a MasterRow, KeyError> {
    let row = find(s, key)?;
    // People know a key by its alias.
    let name = || row.alias.as_ref().map_or(key.0.clone(), |alias| format!("{alias} ({key})"));
    if let Some(provider) = &row.provider {
        return Err(KeyError::UnknownProvider { key: name(), provider: provider.clone() });
    }
    match row.state {
        KeyState::Enabled => Ok(row),
        KeyState::Disabled => Err(KeyError::Disabled(name())),
        KeyState::PendingDeletion => Err(KeyError::PendingDeletion(name())),
    }
}

/// The number of the newest version of a key.
pub(super) fn newest(s: &Snapshot, key: &KeyId) -> Result<u32, KeyError> {
    find(s, key)?;
    let mut versions = s.versions.range((key.clone(), 0)..=(key.clone(), u32::MAX));
    versions.next_back().map(|((_, v), _)| *v).ok_or_else(|| KeyError::NoVersion { key: key.0.clone(), version: 1 })
}

/// What there is to tell about `key`.
pub(super) fn describe(s: &Snapshot, key: &KeyId) -> Result<KeyInfo, KeyError> {
    info(s, find(s, key)?)
}

fn info(s: &Snapshot, row: &MasterRow) -> Result<KeyInfo, KeyError> {
    Ok(KeyInfo {
        id: row.id.clone(),
        alias: row.alias.clone(),
        kind: row.kind,
        bucket: row.bucket,
        description: row.description.clone(),
        state: row.state,
        created: row.created,
        newest_version: newest(s, &row.id)?,
    })
}

/// Ids and service keys must stay distinguishable from aliases that people choose.
fn check_alias(alias: &str) -> Result<(), KeyError> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.' | b'_' | b'-');
    let reserved = alias.starts_with("mk-") || alias.starts_with("ssefs/");
    if !(1..=255).contains(&alias.len()) || !alias.bytes().all(legal) || reserved {
        return Err(KeyError::BadAlias(alias.chars().take(80).collect()));
    }
    Ok(())
}
