//! Who hangs on a customer master key, and who may name one. A bucket is registered, durable, before it uses a key for the
//! first time: so a key is never deleted under a bucket, not even under one that is not attached.

use super::KeyError;
use super::keyring::{Change, Keyring};
use super::masters::{DEFAULT_CMK_ALIAS, KeyKind, changeable, find, in_use, name_of};
use super::rows::{DEPENDANT, GRANT, Snapshot};
use crate::types::{BucketId, KeyId};
use rusqlite::types::Value;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// A bucket that hangs on a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependant {
    pub bucket: BucketId,
    /// Of the bucket, and where its store was last seen; None when the keyring knows the bucket no more.
    pub place: Option<(String, PathBuf)>,
    /// Unix seconds.
    pub since: i64,
}

impl Keyring {
    /// Registers that `bucket` hangs on `key`; durable when it returns. Managed keys belong to their bucket anyway.
    pub fn depend(&self, bucket: &BucketId, key: &KeyId) -> Result<(), KeyError> {
        let place = (*bucket, key.clone());
        let known = self.read(|inner| {
            let row = in_use(find(&inner.snapshot, key)?)?;
            Ok(row.kind == KeyKind::Managed || inner.snapshot.dependants.contains_key(&place))
        })?;
        if known {
            return Ok(());
        }
        self.change(|c| {
            // Once more inside the transaction: it may have been scheduled for deletion just now.
            in_use(find(c.snapshot, key)?)?;
            put_dependant(c, bucket, key, self.now())
        })
    }

    /// Takes that back, for a bucket that has proven that it holds nothing of the key.
    pub fn release(&self, bucket: &BucketId, key: &KeyId) -> Result<(), KeyError> {
        self.change(|c| c.delete_both(&DEPENDANT, (Value::Blob(bucket.0.to_vec()), Value::Text(key.0.clone()))))
    }

    /// The customer master keys that a bucket hangs on.
    pub fn keys_of(&self, bucket: &BucketId) -> Result<Vec<KeyId>, KeyError> {
        self.read(|inner| {
            let of_bucket = inner.snapshot.dependants.keys().filter(|(b, _)| b == bucket);
            Ok(of_bucket.map(|(_, key)| key.clone()).collect())
        })
    }

    /// Allows a user to name a customer master key in rules and requests, or takes that back.
    pub fn grant(&self, key: &KeyId, uid: u32, allow: bool) -> Result<(), KeyError> {
        self.change(|c| {
            let row = changeable(c.snapshot, key)?;
            let values = (Value::Text(row.id.0), Value::Integer(uid.into()));
            if allow { c.put(&GRANT, &[values.0, values.1]) } else { c.delete_both(&GRANT, values) }
        })
    }

    /// The key of this id or alias, if the user may name it and its state lets it be used.
    ///
    /// # Errors
    /// `Denied`, in the same words whether there is such a key or not: else it would tell which there are. For those who may,
    /// `NotFound` and those of its state.
    pub fn name_key(&self, uid: u32, name: &str) -> Result<KeyId, KeyError> {
        // Whoever can write the keyring's file has all keys anyway.
        let owner = std::fs::metadata(self.path()).map_err(KeyError::io(self.path()))?.uid();
        let found = self.find_cmk(name);
        self.read(|inner| {
            let s = &inner.snapshot;
            let may = |id: &KeyId| {
                let default = s.masters.get(id).is_some_and(|k| k.alias.as_deref() == Some(DEFAULT_CMK_ALIAS));
                default || s.grants.contains(&(id.clone(), uid))
            };
            if uid != 0 && uid != owner && !found.as_ref().is_ok_and(may) {
                return Err(KeyError::Denied { uid, key: name.to_owned() });
            }
            let id = found?;
            in_use(find(s, &id)?)?;
            Ok(id)
        })
    }
}

pub(super) fn put_dependant(c: &Change<'_>, bucket: &BucketId, key: &KeyId, now: i64) -> Result<(), KeyError> {
    if find(c.snapshot, key)?.kind == KeyKind::Managed {
        return Err(KeyError::Managed(name_of(find(c.snapshot, key)?)));
    }
    if c.snapshot.dependants.contains_key(&(*bucket, key.clone())) {
        return Ok(());
    }
    c.put(&DEPENDANT, &[Value::Blob(bucket.0.to_vec()), Value::Text(key.0.clone()), Value::Integer(now)])
}

pub(super) fn dependants_of(s: &Snapshot, key: &KeyId) -> Vec<Dependant> {
    let of_key = s.dependants.iter().filter(|((_, k), _)| k == key);
    of_key
        .map(|((bucket, _), since)| {
            let row = s.buckets.iter().find(|b| b.id == *bucket);
            let place = row.and_then(|b| Some((b.name.clone(), s.stores.get(&b.store)?.clone())));
            Dependant { bucket: *bucket, place, since: *since }
        })
        .collect()
}

pub(super) fn grants_of(s: &Snapshot, key: &KeyId) -> Vec<u32> {
    s.grants.range((key.clone(), 0)..=(key.clone(), u32::MAX)).map(|(_, uid)| *uid).collect()
}
