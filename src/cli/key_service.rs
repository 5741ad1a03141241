//! What `ssefs key show` tells of a key that lies with an external service: what the service says of it now, and the
//! calls that mounts have made to it.

use std::time::Instant;

use serde_json::{Value, json};

use super::place::{self, Place};
use crate::bucket::Bucket;
use crate::keys::{KeyInfo, Keyring};
use crate::ops::{Command, OpError, Quiet};

/// Adds the service's word to what is known of a key. A service that is down is part of the report, not its failure.
pub fn report(place: &Place, keys: &Keyring, info: &KeyInfo, into: &mut Value) -> Result<(), OpError> {
    // Of a destroyed key there is nothing left to ask for.
    let Some(uri) = info.provider.as_ref().filter(|_| info.newest_version > 0) else { return Ok(()) };
    let asked = Instant::now();
    let Some(said) = keys.ask_service(&info.id)? else { return Ok(()) };
    match said {
        Ok(d) => {
            into["service"] = json!("the key can be used");
            into["service_key"] = json!(d.key);
            into["service_detail"] = json!(d.detail);
        }
        Err(e) => into["service"] = json!(e.to_string()),
    }
    into["service_ms"] = json!(asked.elapsed().as_millis() as u64);
    let calls = calls(place, uri.split('?').next().unwrap_or(uri));
    into["service_calls"] = if calls.is_empty() { Value::Null } else { Value::Array(calls) };
    Ok(())
}

/// Calls for this key by each mount of the store. A mount that does not answer is left out.
fn calls(place: &Place, key: &str) -> Vec<Value> {
    let Ok(dir) = place.store_dir() else { return Vec::new() };
    let mounted = Bucket::list(dir)
        .unwrap_or_default()
        .into_iter()
        .filter(|b| Bucket::who_has(dir, b).is_some_and(|holder| holder.socket.is_some()));
    mounted
        .filter_map(|bucket| {
            let info = place::run(place, &bucket, &Command::Info, &Quiet).ok()?;
            let calls = info.get("external_calls")?.get(key)?;
            let of = |name: &str| calls.get(name).and_then(Value::as_u64).unwrap_or(0);
            Some(json!(format!(
                "bucket {bucket}: {} generate, {} unwrap, {} describe, {} failed",
                of("generate"),
                of("unwrap"),
                of("describe"),
                of("failed")
            )))
        })
        .collect()
}
