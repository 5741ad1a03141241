//! How master keys are shown: `ssefs key show` and `ssefs key list`.

use serde_json::{Value, json};

use super::print;
use crate::keys::{Dependant, KeyInfo, KeyState, Keyring};
use crate::ops::OpError;
use crate::types::{BucketId, KeyId};

/// Prints all of one key.
pub fn show(keys: &Keyring, id: &KeyId, as_json: bool) -> Result<(), OpError> {
    let infos = keys.list_keys()?;
    let key = infos.iter().find(|k| k.id == *id).ok_or_else(|| print::unexpected("key"))?;
    let value = Names::of(keys).to_json(key);
    if as_json { print::json(&value) } else { print::fields(&value) }
}

/// A key as people know it.
pub fn name_of(key: &KeyInfo) -> String {
    key.alias.as_ref().map_or_else(|| key.id.0.clone(), |alias| format!("{alias} ({})", key.id))
}

/// Names of the buckets that the keyring knows, for their managed keys.
pub struct Names(Vec<(BucketId, String)>);

impl Names {
    /// A keyring that cannot list its stores has no names to show; the keys are shown all the same.
    pub fn of(keys: &Keyring) -> Names {
        let stores = keys.list_stores().unwrap_or_default();
        let buckets = stores.iter().flat_map(|(store, _)| keys.list_buckets(store).unwrap_or_default());
        Names(buckets.map(|b| (b.id, b.name)).collect())
    }

    pub fn bucket(&self, name: &str) -> Option<BucketId> {
        self.0.iter().find(|(_, n)| n == name).map(|(id, _)| *id)
    }

    fn name(&self, bucket: Option<&BucketId>) -> Option<String> {
        let bucket = bucket?;
        let known = self.0.iter().find(|(id, _)| id == bucket);
        Some(known.map_or_else(|| bucket.to_string(), |(_, name)| name.clone()))
    }

    pub fn to_json(&self, key: &KeyInfo) -> Value {
        let time = |t: Option<i64>| t.map(print::time);
        let user = |d: &Dependant| {
            let store = d.place.as_ref().map(|(_, store)| store.to_string_lossy());
            json!({ "bucket": self.name(Some(&d.bucket)), "store": store, "since": print::time(d.since) })
        };
        json!({
            "key": key.id.0,
            "alias": key.alias,
            "kind": key.kind.as_str(),
            "bucket": self.name(key.bucket.as_ref()),
            "description": if key.description.is_empty() { None } else { Some(&key.description) },
            "state": key.state.as_str(),
            "origin": key.origin.as_str(),
            "provider": key.provider,
            "created": print::time(key.created),
            "version": (key.newest_version > 0).then_some(key.newest_version),
            "versions": key.versions.iter()
                .map(|v| json!({ "version": v.version, "created": print::time(v.created) })).collect::<Vec<_>>(),
            "rotate_days": key.rotate_days,
            "next_rotation": time(key.next_rotation),
            "delete_after": time(key.delete_after.filter(|_| key.state == KeyState::PendingDeletion)),
            "destroyed": time(key.destroyed),
            "granted_uids": key.grants,
            "used_by": key.used_by.iter().map(user).collect::<Vec<_>>(),
        })
    }

    pub fn to_row(&self, key: &KeyInfo) -> Vec<String> {
        let bucket = self.name(key.bucket.as_ref()).map_or_else(|| "rules".into(), |b| format!("bucket {b}"));
        let next = match (key.state, key.delete_after, key.next_rotation) {
            (KeyState::PendingDeletion, Some(at), _) => format!("destroyed {}", print::time(at)),
            (KeyState::Enabled, _, Some(at)) => format!("rotates {}", print::time(at)),
            _ => String::new(),
        };
        vec![
            key.id.0.clone(),
            key.alias.clone().unwrap_or_default(),
            bucket,
            key.state.as_str().into(),
            if key.newest_version > 0 { key.newest_version.to_string() } else { String::new() },
            print::time(key.created),
            next,
        ]
    }
}
