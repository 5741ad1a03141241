//! `ssefs key`: master keys. They live in the keyring, which several processes may change at once; mounts notice.

use serde_json::{Value, json};

use super::args::KeyCmd;
use super::place::{self, Place};
use super::print::{self, Bar};
use crate::keys::{KeyError, KeyInfo, Keyring};
use crate::ops::{Command, OpError};
use crate::types::{BucketId, KeyId};

pub fn run(place: &Place, command: &KeyCmd) -> Result<(), OpError> {
    match command {
        KeyCmd::List(output) => {
            let keys = place.keyring()?;
            let names = Names::of(&keys);
            let infos = keys.list_keys()?;
            if output.json {
                return print::json(&Value::Array(infos.iter().map(|k| names.to_json(k)).collect()));
            }
            let rows: Vec<Vec<String>> = infos.iter().map(|k| names.to_row(k)).collect();
            print::table(&["KEY", "ALIAS", "FOR", "STATE", "VERSION", "CREATED"], &rows)
        }
        KeyCmd::Show { key, output } => {
            let keys = place.keyring()?;
            show(&keys, &find(&keys, key)?.id, output.json)
        }
        KeyCmd::Create { alias, output } => {
            let keys = place.keyring_or_new()?;
            let id = keys.create_key(alias.as_deref(), "")?;
            show(&keys, &id, output.json)
        }
        KeyCmd::Rotate { key, output } => {
            let keys = place.keyring()?;
            let id = find(&keys, key)?.id;
            keys.rotate(&id)?;
            show(&keys, &id, output.json)
        }
        KeyCmd::Root(command) => super::root::run(place, command),
        KeyCmd::Kit(command) => super::kit::run(place, command),
        KeyCmd::Rewrap { bucket, output } => {
            let bar = Bar::new();
            let report = place::run(place, bucket, &Command::Rewrap, &bar)?;
            drop(bar);
            if output.json { print::json(&report) } else { print::fields(&report) }
        }
    }
}

/// A key by id or alias, or as `bucket:NAME` the managed key of a bucket.
fn find(keys: &Keyring, name: &str) -> Result<KeyInfo, OpError> {
    let bucket = match name.strip_prefix("bucket:") {
        Some(bucket) => Some(Names::of(keys).bucket(bucket).ok_or_else(|| KeyError::BucketUnknown(bucket.to_owned()))?),
        None => None,
    };
    let is_it = |k: &KeyInfo| match &bucket {
        Some(id) => k.bucket.as_ref() == Some(id),
        None => k.id.0 == name || k.alias.as_deref() == Some(name),
    };
    let found = keys.list_keys()?.into_iter().find(is_it);
    found.ok_or_else(|| {
        OpError::from(KeyError::NotFound(name.to_owned())).hint("see which keys there are: ssefs key list")
    })
}

fn show(keys: &Keyring, id: &KeyId, as_json: bool) -> Result<(), OpError> {
    let value = Names::of(keys).to_json(&find(keys, &id.0)?);
    if as_json { print::json(&value) } else { print::fields(&value) }
}

/// Names of the buckets that the keyring knows, for their managed keys.
struct Names(Vec<(BucketId, String)>);

impl Names {
    /// A keyring that cannot list its stores has no names to show; the keys are shown all the same.
    fn of(keys: &Keyring) -> Names {
        let stores = keys.list_stores().unwrap_or_default();
        let buckets = stores.iter().flat_map(|(store, _)| keys.list_buckets(store).unwrap_or_default());
        Names(buckets.map(|b| (b.id, b.name)).collect())
    }

    fn bucket(&self, name: &str) -> Option<BucketId> {
        self.0.iter().find(|(_, n)| n == name).map(|(id, _)| *id)
    }

    fn name(&self, bucket: Option<&BucketId>) -> Option<String> {
        let bucket = bucket?;
        let known = self.0.iter().find(|(id, _)| id == bucket);
        Some(known.map_or_else(|| bucket.to_string(), |(_, name)| name.clone()))
    }

    fn to_json(&self, key: &KeyInfo) -> Value {
        json!({
            "key": key.id.0,
            "alias": key.alias,
            "kind": key.kind.as_str(),
            "bucket": self.name(key.bucket.as_ref()),
            "state": key.state.as_str(),
            "version": key.newest_version,
            "created": print::time(key.created),
            "description": if key.description.is_empty() { None } else { Some(&key.description) },
        })
    }

    fn to_row(&self, key: &KeyInfo) -> Vec<String> {
        let bucket = self.name(key.bucket.as_ref()).map_or_else(|| "rules".into(), |b| format!("bucket {b}"));
        vec![
            key.id.0.clone(),
            key.alias.clone().unwrap_or_default(),
            bucket,
            key.state.as_str().into(),
            key.newest_version.to_string(),
            print::time(key.created),
        ]
    }
}
