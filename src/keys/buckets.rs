//! K_bucket of each bucket, by store and name. It is wrapped by the root key alone, so that metadata can be verified
//! while a master key is disabled. A name that is known stays with its bucket until that is forgotten.

use super::KeyError;
use super::dependants::put_dependant;
use super::keyring::Keyring;
use super::masters;
use super::masters::KeyKind;
use super::rows::{BUCKET, DEPENDANT, MASTER, VERSION};
use crate::crypto::secret::BucketKey;
use crate::crypto::wrap::{self, BucketCtx};
use crate::types::{BucketId, BucketName, KeyId, StoreId};
use rusqlite::types::Value;

/// A bucket the keyring knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketInfo {
    pub id: BucketId,
    pub name: String,
    /// Unix seconds.
    pub created: i64,
}

impl Keyring {
    /// Keeps the key of a new bucket, and with it that the bucket hangs on the customer master key its rule names.
    ///
    /// # Errors
    /// `BucketKnown` when the store has had a bucket of this name that was not forgotten, or the id is in use; those of a
    /// master key that cannot be used.
    pub fn register_bucket(
        &self,
        store: &StoreId,
        name: &BucketName,
        id: &BucketId,
        key: &BucketKey,
        rule_key: Option<&KeyId>,
    ) -> Result<(), KeyError> {
        let ctx = BucketCtx { bucket: *id, store: *store, name: name.as_str() };
        self.change(|c| {
            let wrapped = wrap::wrap_bucket_key(&self.root(), &ctx, key)?;
            if !c.snapshot.stores.contains_key(store) {
                return Err(KeyError::StoreUnknown(*store));
            }
            let taken = |b: &super::rows::BucketRow| b.id == *id || (b.store == *store && b.name == name.as_str());
            if c.snapshot.buckets.iter().any(taken) {
                return Err(KeyError::BucketKnown(name.to_string()));
            }
            if let Some(key) = rule_key {
                masters::usable(c.snapshot, key)?;
                put_dependant(c, id, key, self.now())?;
            }
            c.put(
                &BUCKET,
                &[
                    Value::Blob(id.0.to_vec()),
                    Value::Blob(store.0.to_vec()),
                    Value::Text(name.to_string()),
                    Value::Blob(wrapped),
                    Value::Integer(self.now()),
                    Value::Null,
                    Value::Null,
                ],
            )
        })
    }

    /// Id and key of the bucket of this name; None when the keyring knows none.
    pub fn bucket_key(&self, store: &StoreId, name: &BucketName) -> Result<Option<(BucketId, BucketKey)>, KeyError> {
        self.read(|inner| {
            let mut rows = inner.snapshot.buckets.iter();
            let Some(row) = rows.find(|b| b.store == *store && b.name == name.as_str()) else {
                return Ok(None);
            };
            let ctx = BucketCtx { bucket: row.id, store: *store, name: name.as_str() };
            let key = wrap::unwrap_bucket_key(&self.root(), &ctx, &row.wrapped)
                .map_err(|source| KeyError::Unwrap { what: format!("the key of bucket {name}"), source })?;
            Ok(Some((row.id, key)))
        })
    }

    /// Drops a deleted bucket's key and its managed master key. What they sealed cannot be opened again.
    pub fn forget_bucket(&self, id: &BucketId) -> Result<(), KeyError> {
        self.change(|c| {
            if !c.snapshot.buckets.iter().any(|b| b.id == *id) {
                return Err(KeyError::BucketUnknown(id.to_string()));
            }
            c.wipes.set(true);
            c.delete(&BUCKET, "id", Value::Blob(id.0.to_vec()))?;
            c.delete(&DEPENDANT, "bucket_id", Value::Blob(id.0.to_vec()))?;
            let managed = |k: &&super::rows::MasterRow| k.kind == KeyKind::Managed && k.bucket.as_ref() == Some(id);
            for key in c.snapshot.masters.values().filter(managed) {
                c.delete(&VERSION, "key_id", Value::Text(key.id.0.clone()))?;
                c.delete(&MASTER, "id", Value::Text(key.id.0.clone()))?;
            }
            Ok(())
        })
    }

    /// The buckets of a store, by name.
    pub fn list_buckets(&self, store: &StoreId) -> Result<Vec<BucketInfo>, KeyError> {
        self.read(|inner| {
            let of_store = inner.snapshot.buckets.iter().filter(|b| b.store == *store);
            let mut out: Vec<_> =
                of_store.map(|b| BucketInfo { id: b.id, name: b.name.clone(), created: b.created }).collect();
            out.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(out)
        })
    }
}
