//! Where the store and the keys lie, and how a command reaches a bucket: through the control socket of the process
//! that has it open, else by opening it here. First use makes store, root key and keyring, and says so.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::args;
use super::print;
use crate::bucket::{Bucket, OpenOptions};
use crate::control::{self, Request};
use crate::keys::Keyring;
use crate::ops::{self, Command, ErrorCode, OpError, Progress, Store};
use crate::types::BucketName;

/// The user this process acts for.
pub fn effective_uid() -> u32 {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() }
}

/// The directories of this invocation, absolute.
#[derive(Debug, Clone)]
pub struct Place {
    pub store: PathBuf,
    pub config: PathBuf,
}

impl Place {
    /// Resolves options, environment and defaults (FORMAT.md, Files).
    pub fn resolve(asked: &args::Place) -> Result<Place, OpError> {
        let var = |name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        // An XDG variable that is not absolute is to be ignored (XDG Base Directory Specification).
        let xdg = |name: &str| var(name).filter(|p| p.is_absolute());
        let root = effective_uid() == 0;
        let home = |below: &str| {
            var("HOME").map(|h| h.join(below)).ok_or_else(|| {
                OpError::usage("HOME is not set, so there is no default directory")
                    .hint("name the directories with --store and --config")
            })
        };
        let store = match asked.store.clone().or_else(|| var("SSEFS_STORE")) {
            Some(dir) => dir,
            None if root => PathBuf::from("/var/lib/ssefs"),
            None => match xdg("XDG_DATA_HOME") {
                Some(data) => data.join("ssefs"),
                None => home(".local/share/ssefs")?,
            },
        };
        let config = match asked.config.clone().or_else(|| var("SSEFS_CONFIG")) {
            Some(dir) => dir,
            None => match xdg("XDG_CONFIG_HOME") {
                Some(config) => config.join("ssefs"),
                None if root => PathBuf::from("/etc/ssefs"),
                None => home(".config/ssefs")?,
            },
        };
        Ok(Place { store: absolute(&store)?, config: absolute(&config)? })
    }

    /// The store, which must be there.
    pub fn store(&self) -> Result<Store, OpError> {
        Store::open(&self.store)?.ok_or_else(|| {
            OpError::new(ErrorCode::NotFound, format!("there is no store in {}", self.store.display()))
                .hint("make the first bucket: ssefs bucket create NAME (or name another store with --store)")
        })
    }

    /// The store, made on first use.
    pub fn store_or_new(&self) -> Result<Store, OpError> {
        let (store, new) = Store::open_or_create(&self.store)?;
        if new {
            print::note(&format!("made a new store in {}", self.store.display()));
        }
        Ok(store)
    }

    /// The keyring, which must be there.
    pub fn keyring(&self) -> Result<Arc<Keyring>, OpError> {
        super::keyring::open(&self.config)
    }

    /// The keyring, made on first use together with the root key; then it says where that lies.
    pub fn keyring_or_new(&self) -> Result<Arc<Keyring>, OpError> {
        super::keyring::open_or_create(&self.config)
    }
}

/// The path made absolute without asking the disk, because a mount leaves the current directory.
pub fn absolute(path: &Path) -> Result<PathBuf, OpError> {
    std::path::absolute(path).map_err(|e| OpError::io(format_args!("find {}", path.display()), &e))
}

/// True when the store has a directory for this bucket.
pub fn bucket_exists(store: &Store, name: &BucketName) -> bool {
    store.path.join("buckets").join(name.as_str()).is_dir()
}

/// The error for a bucket that is not there; names those that are.
pub fn no_such_bucket(store: &Store, name: &BucketName) -> OpError {
    let known = Bucket::list(&store.path).unwrap_or_default();
    let mut listed: Vec<&str> = known.iter().map(BucketName::as_str).take(8).collect();
    if known.len() > listed.len() {
        listed.push("...");
    }
    let message = format!("there is no bucket {name} in {}", store.path.display());
    OpError::new(ErrorCode::NotFound, message).hint(if listed.is_empty() {
        format!("make it: ssefs bucket create {name}")
    } else {
        format!("buckets here: {}; make a new one: ssefs bucket create {name}", listed.join(", "))
    })
}

/// Runs one command on a bucket, mounted or not.
pub fn run(place: &Place, name: &BucketName, command: &Command, progress: &dyn Progress) -> Result<Value, OpError> {
    let store = place.store()?;
    if !bucket_exists(&store, name) {
        return Err(no_such_bucket(&store, name));
    }
    if let Some(holder) = Bucket::who_has(&store.path, name) {
        let Some(socket) = holder.socket else {
            return Err(OpError::new(ErrorCode::Busy, format!("bucket {name} is in use by process {}", holder.pid))
                .hint("wait until it is done"));
        };
        return control::ask(&socket, &Request::Run(command.clone()), progress);
    }
    let keys = place.keyring()?;
    let options = OpenOptions { read_only: command.only_reads(), ..OpenOptions::default() };
    let bucket = Bucket::open(&store.path, store.id, name, &keys, &options)?;
    let answer = ops::run(&bucket, effective_uid(), command, progress);
    let closed = bucket.close();
    let answer = answer?;
    closed?;
    Ok(answer)
}
