//! `ssefs key delete`: asks every bucket that may hang on the key what it holds of it. A bucket that holds nothing lets the
//! key go; the first that holds something, or cannot be asked, keeps it.

use super::key_show::name_of;
use super::place::{self, Place, bucket_exists};
use super::print;
use crate::bucket::KeyUse;
use crate::keys::{Dependant, KeyInfo, Keyring};
use crate::ops::{Command, ErrorCode, OpError, Quiet};
use crate::types::BucketName;

/// Begins the waiting period of `days`, or of so many seconds.
pub fn run(place: &Place, keys: &Keyring, key: &KeyInfo, days: u32, seconds: Option<u32>) -> Result<(), OpError> {
    let mut objects = 0;
    let mut holding = Vec::new();
    for user in &key.used_by {
        let (held, what) = ask(place, key, user);
        objects += held;
        holding.extend(what.map(|what| format!("{what}, since {}", print::time(user.since))));
    }
    if !holding.is_empty() {
        let message = format!(
            "key {} is in use by {} in {}:\n{}",
            name_of(key),
            plural(objects, "object"),
            plural(holding.len() as u64, "bucket"),
            holding.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n"),
        );
        return Err(OpError::new(ErrorCode::Refused, message).hint(
            "change the rules that name it, convert or delete its objects, attach the buckets that are away (or delete \
             them with ssefs bucket delete), then try again",
        ));
    }
    if let Some(uri) = &key.provider {
        let there = uri.split('?').next().unwrap_or(uri);
        print::note(&format!("ssefs lets go of it; the service keeps it until it is deleted there: {there}"));
    }
    match seconds {
        Some(seconds) => keys.schedule_deletion_in(&key.id, seconds)?,
        None => keys.schedule_deletion(&key.id, days)?,
    };
    let kits = keys.kits_with(&key.id)?;
    if !kits.is_empty() {
        let numbers = kits.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
        print::note(&format!(
            "recovery kits {numbers} hold it too, and go on opening what it wrapped: burn them if it is to be gone"
        ));
    }
    Ok(())
}

/// How many objects the bucket has under the key, and if it hangs on it in any way, how; None when it does not any more.
fn ask(place: &Place, key: &KeyInfo, user: &Dependant) -> (u64, Option<String>) {
    let Some((name, store)) = &user.place else {
        return (0, Some(format!("bucket {}: unknown to the keyring", user.bucket)));
    };
    let Ok(bucket) = name.parse::<BucketName>() else {
        return (0, Some(format!("bucket {name:?}: cannot be asked")));
    };
    let at = format!("bucket {name} in {}", store.display());
    if !bucket_exists(store, &bucket) {
        return (0, Some(format!("{at}: not attached, so its objects cannot be counted")));
    }
    let place = place.with_store(store);
    let answer = place::run(&place, &bucket, &Command::KeyUse { key: key.id.0.clone() }, &Quiet)
        .and_then(|value| serde_json::from_value::<KeyUse>(value).map_err(|_| print::unexpected("use of the key")));
    let held = match answer {
        Ok(held) if held.released => return (0, None),
        Ok(held) => held,
        Err(e) => return (0, Some(format!("{at}: cannot be asked ({e})"))),
    };
    let mut how = Vec::new();
    if held.objects > 0 {
        how.push(plural(held.objects, "object"));
    }
    if held.requests > 0 {
        how.push(plural(held.requests, "request"));
    }
    how.extend(held.rules.iter().map(|rule| format!("the rule of the {rule}")));
    if how.is_empty() {
        how.push("nothing any more, but it is open for reading only: unmount it".into());
    }
    (held.objects, Some(format!("{at}: {}", how.join(", "))))
}

fn plural(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}
