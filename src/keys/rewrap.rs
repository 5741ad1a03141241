//! One row of the keyring wrapped under another root key: the key in it stays what it is, bound to the same place.

use super::KeyError;
use super::material::is_deleted;
use super::rows::{BUCKET, Table, VERSION};
use crate::crypto::CryptoError;
use crate::crypto::secret::RootKey;
use crate::crypto::wrap::{self, BucketCtx};
use crate::types::{BucketId, KeyId, StoreId};
use rusqlite::types::Value;

/// Wraps the key of `row`, if its table has one, under `new` instead of `old`. A key that another service holds has no
/// bytes here, and stays so; of deleted material the verifier is wrapped anew.
pub fn rewrap_row(table: &Table, row: &mut [Value], old: &RootKey, new: &RootKey) -> Result<(), KeyError> {
    if table.name == BUCKET.name
        && let [Value::Blob(id), Value::Blob(store), Value::Text(name), Value::Blob(wrapped), ..] = row
        && let (Ok(id), Ok(store)) = (id.as_slice().try_into(), store.as_slice().try_into())
    {
        let ctx = BucketCtx { bucket: BucketId(id), store: StoreId(store), name };
        let of = |source| KeyError::Unwrap { what: format!("the key of bucket {name}"), source };
        let key = wrap::unwrap_bucket_key(old, &ctx, wrapped).map_err(of)?;
        *wrapped = wrap::wrap_bucket_key(new, &ctx, &key)?;
    }
    if table.name == VERSION.name
        && let [Value::Text(id), Value::Integer(version), Value::Blob(wrapped), ..] = row
        && let Ok(version) = u32::try_from(*version)
        && !wrapped.is_empty()
    {
        let id = KeyId(id.clone());
        if let Some((&first, verifier)) = wrapped.split_first()
            && is_deleted(wrapped)
        {
            let of =
                |source| KeyError::Unwrap { what: format!("the verifier of version {version} of key {id}"), source };
            let verifier = wrap::unwrap_verifier(old, &id, version, verifier).map_err(of)?;
            let verifier = verifier
                .as_slice()
                .try_into()
                .map_err(|_| of(CryptoError::Malformed { what: "verifier", bytes: verifier.len() }))?;
            *wrapped = [&[first][..], &wrap::wrap_verifier(new, &id, version, verifier)?].concat();
            return Ok(());
        }
        let of = |source| KeyError::Unwrap { what: format!("version {version} of key {id}"), source };
        let key = wrap::unwrap_master(old, &id, version, wrapped).map_err(of)?;
        *wrapped = wrap::wrap_master(new, &id, version, &key)?;
    }
    Ok(())
}
