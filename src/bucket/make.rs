//! Buckets as folders of a store: making one, listing them, deleting one. What a crash leaves in between is taken up by the
//! next try, and no bucket is ever there without its key or half made.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::kek::now_s;
use super::key_use::asked;
use super::lock::BucketLock;
use super::open::{OpenOptions, io};
use super::settings::{self, Counters, Settings};
use super::{Bucket, BucketError, Holder, ROOT, now_ns};
use crate::catalog::{Catalog, InodeRow};
use crate::crypto::derive;
use crate::crypto::secret::{BucketKey, random_id};
use crate::keys::Keyring;
use crate::rule::{Dialect, Place, Rule};
use crate::types::{BucketId, BucketName, CHUNK_BYTES_MAX, StoreId};

/// What a new bucket is to be.
pub struct CreateOptions {
    pub dialect: Dialect,
    pub rule: Option<Rule>,
    pub owner_uid: u32,
    /// A power of two, 4096 to 262144.
    pub chunk_bytes: u32,
}

fn make_dir(path: &Path) -> Result<(), BucketError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        r => r.map_err(io(path)),
    }
}

fn sync_dir(path: &Path) -> Result<(), BucketError> {
    File::open(path).and_then(|d| d.sync_all()).map_err(io(path))
}

/// A name beside the buckets that no bucket can have, short enough whatever the bucket's name is.
fn beside(buckets: &Path, name: &BucketName, what: &str) -> PathBuf {
    use sha2::Digest;
    let hash = sha2::Sha256::digest(name.as_str().as_bytes());
    buckets.join(format!(".{what}-{}", crate::types::to_hex(&hash[..16])))
}

impl Bucket {
    /// Make a bucket: built whole beside its place, then known to the keyring, then moved into place. What a crash leaves
    /// in between is taken up by the next try.
    pub fn create(
        store: &Path,
        store_id: StoreId,
        name: &BucketName,
        keys: &Arc<Keyring>,
        o: &CreateOptions,
    ) -> Result<(), BucketError> {
        let (mut rule, mut rule_key) = (o.rule.clone(), None);
        if let Some(rule) = &mut rule {
            o.dialect.check_rule(rule, Place::Bucket)?;
            if let Rule::Kms { key: Some(key), .. } = rule {
                let id = keys.name_key(o.owner_uid, key).map_err(|e| asked(e.into()))?;
                key.clone_from(&id.0);
                rule_key = Some(id);
            }
        }
        if !o.chunk_bytes.is_power_of_two() || !(4096..=CHUNK_BYTES_MAX).contains(&o.chunk_bytes) {
            return Err(BucketError::Invalid("a chunk size is a power of two from 4096 to 262144"));
        }
        let buckets = store.join("buckets");
        make_dir(&buckets)?;
        let (dir, new) = (Self::folder(store, name), beside(&buckets, name, "new"));
        sync_dir(store)?;
        let known = keys.bucket_key(&store_id, name)?;
        if dir.exists() {
            return Err(BucketError::BucketExists(name.clone()));
        }
        if known.is_some() && !new.join("catalog.db").exists() {
            return Err(BucketError::FolderGone(name.clone()));
        }
        if known.is_none() {
            if new.exists() {
                fs::remove_dir_all(&new).map_err(io(&new))?;
            }
            make_dir(&new)?;
            let seg = new.join("seg");
            make_dir(&seg)?;
            let id = BucketId(random_id()?);
            let key = BucketKey::random()?;
            let settings = Settings {
                name: name.clone(),
                id,
                dialect: o.dialect,
                owner: o.owner_uid,
                chunk_bytes: o.chunk_bytes,
                created: now_s(),
                rule,
                grants: BTreeSet::new(),
                dir_rules: HashMap::new(),
                dir_customers: HashMap::new(),
            };
            let counters = Counters { commit: 1, next_ino: ROOT + 1, next_node: 1, next_segment: 1, next_kek: 1 };
            let settings_key = derive::settings_key(&key);
            let mut failed = Ok(());
            Catalog::create(&new.join("catalog.db"), |tx| {
                let now = now_ns();
                // SAFETY: takes no memory.
                let gid = unsafe { libc::getegid() };
                tx.put_inode(&InodeRow {
                    ino: ROOT,
                    mode: libc::S_IFDIR | 0o755,
                    uid: o.owner_uid,
                    gid,
                    nlink: 2,
                    atime: now,
                    mtime: now,
                    ctime: now,
                    btime: now,
                    parent: ROOT,
                    ..InodeRow::default()
                })?;
                let lists = settings::lists_tag(&settings_key, &settings, &[], &[]);
                failed = settings::store(tx, &settings_key, &lists, (&settings, &counters), None);
                Ok(())
            })?;
            failed?;
            File::open(new.join("catalog.db")).and_then(|f| f.sync_all()).map_err(io(&new))?;
            sync_dir(&seg)?;
            sync_dir(&new)?;
            sync_dir(&buckets)?;
            keys.register_bucket(&store_id, name, &id, &key, rule_key.as_ref())?;
        }
        fs::rename(&new, &dir).map_err(io(&dir))?;
        sync_dir(&buckets)
    }

    /// Names of the buckets of a store, sorted.
    pub fn list(store: &Path) -> Result<Vec<BucketName>, BucketError> {
        let dir = store.join("buckets");
        let entries = match fs::read_dir(&dir) {
            Ok(e) => e,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(io(&dir)(e)),
        };
        let mut names: Vec<BucketName> = entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).collect();
        names.sort();
        Ok(names)
    }

    /// Delete a bucket with its keys. Without `force` only one that holds no objects.
    pub fn delete(
        store: &Path,
        store_id: StoreId,
        name: &BucketName,
        keys: &Arc<Keyring>,
        force: bool,
    ) -> Result<(), BucketError> {
        let dir = Self::folder(store, name);
        if dir.exists() {
            if force {
                let me = Holder { pid: std::process::id(), mountpoint: None, socket: None };
                let _lock = BucketLock::take(&dir, name, &me)?;
            } else {
                let bucket = Self::open(store, store_id, name, keys, &OpenOptions::default())?;
                let empty = !bucket.catalog().lock().has_entries(ROOT)?;
                bucket.close()?;
                if !empty {
                    return Err(BucketError::BucketNotEmpty(name.clone()));
                }
            }
        }
        let known = keys.bucket_key(&store_id, name)?;
        if known.is_none() && !dir.exists() {
            return Err(BucketError::NoBucket { name: name.clone(), store: store.to_owned() });
        }
        // Keys first: what is left after a crash cannot be read by anybody.
        if let Some((id, _)) = known {
            keys.forget_bucket(&id)?;
        }
        let dead = beside(&store.join("buckets"), name, "dead");
        if dead.exists() {
            fs::remove_dir_all(&dead).map_err(io(&dead))?;
        }
        if dir.exists() {
            fs::rename(&dir, &dead).map_err(io(&dir))?;
            fs::remove_dir_all(&dead).map_err(io(&dead))?;
            sync_dir(&store.join("buckets"))?;
        }
        Ok(())
    }
}
