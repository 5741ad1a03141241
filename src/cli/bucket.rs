//! `ssefs bucket`: make, list, show, delete, grant.

use std::ffi::CString;

use serde_json::{Value, json};

use super::args::BucketCmd;
use super::mount::create_options;
use super::place::{self, Place, bucket_exists, no_such_bucket};
use super::print;
use crate::bucket::Bucket;
use crate::ops::{Command, ErrorCode, OpError, Quiet};
use crate::types::BucketName;

pub fn run(place: &Place, command: &BucketCmd) -> Result<(), OpError> {
    match command {
        BucketCmd::Create { bucket, new } => {
            let options = create_options(new)?;
            let store = place.open_or_create()?;
            if bucket_exists(&store.path, bucket) {
                return Err(OpError::new(ErrorCode::Exists, format!("bucket {bucket} exists already")));
            }
            Bucket::create(&store.path, store.id, bucket, &store.keys, &options)?;
            if options.rule.is_none() && options.require_encryption {
                print::note(&format!(
                    "bucket {bucket} has no rule: only files with a request of their own can be written there"
                ));
            } else if options.rule.is_none() {
                print::note(&format!("bucket {bucket} has no rule: what is written there is not encrypted"));
            }
            Ok(())
        }
        BucketCmd::List(output) => list(place, output.json),
        BucketCmd::Show { bucket, output } => {
            let mut info = place::run(place, bucket, &Command::Info, &Quiet)?;
            if let (false, Some(created)) = (output.json, info["created"].as_i64()) {
                info["created"] = print::time(created).into();
            }
            if output.json { print::json(&info) } else { print::fields(&info) }
        }
        BucketCmd::Compact { bucket } => {
            place::run(place, bucket, &Command::Compact, &Quiet)?;
            Ok(())
        }
        BucketCmd::Delete { bucket, force } => {
            let dir = place.store_dir()?;
            if !bucket_exists(dir, bucket) {
                return Err(no_such_bucket(dir, bucket));
            }
            if let Some(holder) = Bucket::who_has(dir, bucket) {
                return Err(in_use(bucket, &holder));
            }
            let store = place.open()?;
            Bucket::delete(&store.path, store.id, bucket, &store.keys, *force)?;
            Ok(())
        }
        BucketCmd::RequireEncryption { bucket, off } => {
            place::run(place, bucket, &Command::RequireEncryption { on: !off }, &Quiet)?;
            Ok(())
        }
        BucketCmd::Grant { bucket, user, revoke } => {
            let uid = uid_of(user)?;
            place::run(place, bucket, &Command::Grant { uid, allow: !revoke }, &Quiet)?;
            Ok(())
        }
    }
}

/// The error for a bucket that another process has open.
pub fn in_use(bucket: &BucketName, holder: &crate::bucket::Holder) -> OpError {
    match &holder.mountpoint {
        Some(dir) => OpError::new(
            ErrorCode::Busy,
            format!("bucket {bucket} is mounted at {} by process {}", dir.display(), holder.pid),
        )
        .hint(format!("unmount it: ssefs umount {}", dir.display())),
        None => OpError::new(ErrorCode::Busy, format!("bucket {bucket} is in use by process {}", holder.pid)),
    }
}

/// The list needs no key: names, and where each is mounted.
fn list(place: &Place, as_json: bool) -> Result<(), OpError> {
    // No store yet is an empty list, not an error.
    let names = match place.store_dir() {
        Ok(dir) => Bucket::list(dir)?,
        Err(e) if e.code == ErrorCode::NotFound => Vec::new(),
        Err(e) => return Err(e),
    };
    let buckets: Vec<_> = names
        .into_iter()
        .map(|name| {
            let holder = Bucket::who_has(&place.store, &name);
            (name, holder)
        })
        .collect();
    if as_json {
        let all: Vec<Value> = buckets
            .iter()
            .map(|(name, holder)| {
                json!({
                    "name": name.as_str(),
                    "mountpoint": holder.as_ref().and_then(|h| h.mountpoint.as_ref().map(|m| m.to_string_lossy())),
                    "pid": holder.as_ref().map(|h| h.pid),
                })
            })
            .collect();
        return print::json(&Value::Array(all));
    }
    let rows: Vec<Vec<String>> = buckets
        .into_iter()
        .map(|(name, holder)| {
            let at = holder.and_then(|h| h.mountpoint).map_or_else(|| "-".into(), |m| m.display().to_string());
            vec![name.to_string(), at]
        })
        .collect();
    print::table(&["BUCKET", "MOUNTED AT"], &rows)
}

/// A user by number or by name.
pub fn uid_of(user: &str) -> Result<u32, OpError> {
    if let Ok(uid) = user.parse() {
        return Ok(uid);
    }
    let unknown = || OpError::new(ErrorCode::NotFound, format!("there is no user {user:?}"));
    let name = CString::new(user).map_err(|_| unknown())?;
    let mut buffer = vec![0u8; 64 * 1024];
    // SAFETY: passwd is plain data that getpwnam_r fills.
    let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
    let mut found = std::ptr::null_mut();
    // SAFETY: name is NUL-terminated; entry, buffer with its length, and found are writable and outlive the call.
    let rc = unsafe {
        libc::getpwnam_r(name.as_ptr(), &raw mut entry, buffer.as_mut_ptr().cast(), buffer.len(), &raw mut found)
    };
    if rc == 0 && !found.is_null() { Ok(entry.pw_uid) } else { Err(unknown()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_and_number() {
        assert_eq!(uid_of("root").unwrap(), 0);
        assert_eq!(uid_of("1000").unwrap(), 1000);
        for bad in ["", "no such user", "a\0b", "-1", "4294967296"] {
            assert_eq!(uid_of(bad).unwrap_err().code, ErrorCode::NotFound, "{bad:?}");
        }
    }
}
