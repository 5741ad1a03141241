//! `ssefs key`: master keys. They live in the keyring, which several processes may change at once; mounts notice.

use serde_json::{Value, json};

use super::args::{AboutKey, KeyCmd};
use super::bucket::uid_of;
use super::key_delete;
use super::key_service;
use super::key_show::{Names, show};
use super::material;
use super::place::{self, Place};
use super::print::{self, Bar};
use crate::keys::{KeyError, KeyInfo, Keyring};
use crate::ops::{Command, ErrorCode, OpError};

pub fn run(place: &Place, command: &KeyCmd) -> Result<(), OpError> {
    let one = |name: &str| {
        let keys = place.keyring()?;
        let id = find(&keys, name)?.id;
        Ok::<_, OpError>((keys, id))
    };
    match command {
        KeyCmd::List(output) => {
            let keys = place.keyring()?;
            let names = Names::of(&keys);
            let infos = keys.list_keys()?;
            if output.json {
                return print::json(&Value::Array(infos.iter().map(|k| names.to_json(k)).collect()));
            }
            let rows: Vec<Vec<String>> = infos.iter().map(|k| names.to_row(k)).collect();
            print::table(&["KEY", "ALIAS", "FOR", "STATE", "VERSION", "CREATED", "NEXT"], &rows)
        }
        KeyCmd::Show { key, output } => {
            let keys = place.keyring()?;
            let info = find(&keys, key)?;
            let mut value = Names::of(&keys).to_json(&info);
            key_service::report(place, &keys, &info, &mut value)?;
            if output.json { print::json(&value) } else { print::fields(&value) }
        }
        KeyCmd::Create { alias, provider: Some(uri), about, output } => {
            if about.rotate_days.is_some_and(|days| days > 0) {
                return Err(OpError::usage(
                    "a key of another service rotates there, or by hand: leave out --rotate-days",
                ));
            }
            let keys = place.keyring_or_new()?;
            let settled =
                keys.create_external_key(alias.as_deref(), about.description.as_deref().unwrap_or_default(), uri)?;
            if settled.made {
                let key = &settled.description.key;
                print::note(&format!("made {key} in the service: see that it is backed up there"));
            }
            show(&keys, &settled.id, output.json)
        }
        KeyCmd::Create { alias, provider: None, about, output } => {
            let keys = place.keyring_or_new()?;
            let id = keys.create_key(alias.as_deref(), about.description.as_deref().unwrap_or_default())?;
            if about.rotate_days.is_some() {
                keys.set_rotation(&id, about.rotate_days)?;
            }
            show(&keys, &id, output.json)
        }
        KeyCmd::Set { key, alias, no_alias, about: AboutKey { description, rotate_days }, output } => {
            let (keys, id) = one(key)?;
            if alias.is_some() || *no_alias {
                keys.set_alias(&id, alias.as_deref())?;
            }
            if let Some(description) = description {
                keys.set_description(&id, description)?;
            }
            if rotate_days.is_some() {
                keys.set_rotation(&id, *rotate_days)?;
            }
            show(&keys, &id, output.json)
        }
        KeyCmd::Enable { key } => {
            let (keys, id) = one(key)?;
            Ok(keys.enable(&id)?)
        }
        KeyCmd::Disable { key } => {
            let (keys, id) = one(key)?;
            Ok(keys.disable(&id)?)
        }
        KeyCmd::Delete { key, days, unsafe_seconds, output } => {
            let keys = place.keyring()?;
            let key = find(&keys, key)?;
            key_delete::run(place, &keys, &key, *days, *unsafe_seconds)?;
            show(&keys, &key.id, output.json)
        }
        KeyCmd::CancelDeletion { key } => {
            let (keys, id) = one(key)?;
            keys.cancel_deletion(&id)?;
            print::note(&format!("the key is disabled; to use it again: ssefs key enable {key}"));
            Ok(())
        }
        KeyCmd::Rotate { key, output } => {
            let (keys, id) = one(key)?;
            keys.rotate(&id)?;
            show(&keys, &id, output.json)
        }
        KeyCmd::Root(command) => super::root::run(place, command),
        KeyCmd::Kit(command) => super::kit::run(place, command),
        KeyCmd::Import { key, alias, description, material_file, material_fd, recovery_file, seal, output, .. } => {
            if let Some(from) = recovery_file {
                let seal = material::read(seal.seal_key_file.as_deref(), seal.seal_key_fd, "--seal-key-file")?;
                let keys = place.keyring_or_new()?;
                let id = keys.restore_key(from, &seal)?;
                return show(&keys, &id, output.json);
            }
            let material = material::read(material_file.as_deref(), *material_fd, "--material-file")?;
            let keys = if key.is_some() { place.keyring()? } else { place.keyring_or_new()? };
            let id = match key {
                Some(key) => {
                    let id = find(&keys, key)?.id;
                    keys.import_into(&id, &material)?;
                    id
                }
                None => keys.import_key(alias.as_deref(), description.as_deref().unwrap_or_default(), &material)?,
            };
            show(&keys, &id, output.json)
        }
        KeyCmd::DeleteMaterial { key } => {
            let (keys, id) = one(key)?;
            Ok(keys.delete_material(&id)?)
        }
        KeyCmd::Export { key, to, seal } => {
            let (keys, id) = one(key)?;
            let seal = material::read(seal.seal_key_file.as_deref(), seal.seal_key_fd, "--seal-key-file")?;
            Ok(keys.export_key(&id, &seal, &place::absolute(to)?)?)
        }
        KeyCmd::Grant { key, user, revoke } => {
            let (keys, id) = one(key)?;
            Ok(keys.grant(&id, uid_of(user)?, !revoke)?)
        }
        KeyCmd::Clock { trust, output } => {
            let keys = place.keyring()?;
            if *trust {
                keys.trust_clock()?;
            }
            let (clock, seen) = keys.clocks()?;
            let told = json!({ "clock": print::time(clock), "keyring": print::time(seen), "behind": clock < seen });
            if output.json { print::json(&told) } else { print::fields(&told) }
        }
        KeyCmd::Rewrap { bucket, renew, output } => {
            let bar = Bar::new();
            let mut report = place::run(place, bucket, &Command::Rewrap, &bar)?;
            if *renew {
                let renewed = place::run(place, bucket, &Command::Renew, &bar)?;
                if let (Some(all), Value::Object(renewed)) = (report.as_object_mut(), renewed) {
                    all.extend(renewed.into_iter().filter(|(name, _)| name != "left"));
                }
            }
            drop(bar);
            if output.json {
                print::json(&report)?
            } else {
                print::fields(&report)?
            };
            let left: Vec<&str> =
                report["left"].as_array().into_iter().flatten().filter_map(serde_json::Value::as_str).collect();
            let objects = report["left_objects"].as_u64().unwrap_or(0);
            if !left.is_empty() || objects > 0 || report["finished"] == json!(false) {
                let mut what = format!("not all keys of bucket {bucket} are wrapped anew");
                left.iter().take(5).for_each(|why| what.push_str(&format!("; {why}")));
                if objects > 0 {
                    what.push_str(&format!("; {objects} objects could not be"));
                }
                return Err(OpError::new(ErrorCode::Incomplete, what)
                    .hint("when the reason is gone the same command goes on; --json lists all"));
            }
            Ok(())
        }
    }
}

/// A key by id or alias, or as `bucket:NAME` the managed key of a bucket.
pub fn find(keys: &Keyring, name: &str) -> Result<KeyInfo, OpError> {
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
