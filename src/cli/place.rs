//! Where the store and the keys lie, and how a command reaches a bucket: through the control socket of the process
//! that has it open, else by opening it here. First use makes store, root key and keyring, and says so.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;

use super::args;
use super::print;
use super::secrets::Secrets;
use crate::bucket::{Bucket, OpenOptions};
use crate::control::{self, Request};
use crate::crypto::derive;
use crate::crypto::secret::RootKey;
use crate::keys::root::{self, NewRoot};
use crate::keys::{self, KeyError, Keyring, RootSource};
use crate::ops::{self, Command, ErrorCode, OpError, Progress};
use crate::types::{BucketName, StoreId};

/// The user this process acts for.
pub fn effective_uid() -> u32 {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() }
}

/// The directories of this invocation, absolute, and how its root key is found.
#[derive(Clone)]
pub struct Place {
    pub store: PathBuf,
    pub config: PathBuf,
    pub secrets: Secrets,
    /// The root key, once it was loaded.
    loaded: Arc<Mutex<Option<RootKey>>>,
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
        let secrets = Secrets::new(&asked.root)?;
        Ok(Place { store: absolute(&store)?, config: absolute(&config)?, secrets, loaded: Arc::default() })
    }

    /// The store's directory, which must be there; asks for no key.
    pub fn store_dir(&self) -> Result<&Path, OpError> {
        if self.has_store() {
            return Ok(&self.store);
        }
        if let Err(e) = self.store.join("store.id").symlink_metadata()
            && e.kind() == std::io::ErrorKind::PermissionDenied
        {
            let what = format_args!("look into the store {}", self.store.display());
            return Err(OpError::io(what, &e).hint("it belongs to another user: name your own with --store"));
        }
        Err(OpError::new(ErrorCode::NotFound, format!("there is no store in {}", self.store.display()))
            .hint("make the first bucket: ssefs mount NAME DIR --create, or ssefs bucket create NAME (or name another store with --store)"))
    }

    fn has_store(&self) -> bool {
        ["store.id", "buckets"].iter().any(|name| self.store.join(name).symlink_metadata().is_ok())
    }

    /// Whether there is a keyring; without it a bucket can only be looked at.
    pub fn has_keyring(&self) -> bool {
        self.config.join("keyring.db").symlink_metadata().is_ok()
    }

    /// Loads the root key now, if there is a keyring that needs one: while there is a terminal to ask at, and before any
    /// thread is made.
    pub fn load_root(&self) -> Result<(), OpError> {
        let needed = keys::needed_root(&self.config)?;
        if needed.is_some() || root::source_path(&self.config).symlink_metadata().is_ok() {
            *self.loaded.lock() = Some(self.root_key(needed.as_ref())?);
        }
        Ok(())
    }

    /// Forgets a root key that was loaded: after a fork it is the child's.
    pub fn forget_root(&self) {
        self.loaded.lock().take();
    }

    /// The root key that the keyring needs, or without a keyring the one that is to be its first.
    fn root_key(&self, needed: Option<&[u8; 8]>) -> Result<RootKey, OpError> {
        let mut loaded = self.loaded.lock();
        let fits = |key: &RootKey| needed.is_none_or(|id| derive::root_id(key) == *id);
        let key = match loaded.take().filter(fits) {
            Some(key) => key,
            None => match self.secrets.root_command() {
                Some(command) => RootSource::Command(command.clone()).load(None)?,
                None => root::load(&self.config, needed, &self.secrets)?,
            },
        };
        // Nobody is asked twice by one command.
        *loaded = Some(copy_of(&key)?);
        Ok(key)
    }

    /// The same for another store.
    pub fn with_store(&self, store: &Path) -> Place {
        Place { store: store.to_owned(), ..self.clone() }
    }

    /// The keyring, which must be there.
    pub fn keyring(&self) -> Result<Keyring, OpError> {
        loop {
            let needed = keys::needed_root(&self.config)?;
            if needed.is_none() {
                if let Err(e) = keys::keyring_path(&self.config).symlink_metadata()
                    && e.kind() == std::io::ErrorKind::PermissionDenied
                {
                    let what = format_args!("look into {}", self.config.display());
                    return Err(OpError::io(what, &e).hint("it belongs to another user: name your own with --config"));
                }
                return Err(KeyError::KeyringMissing(keys::keyring_path(&self.config)).into());
            }
            match self.keyring_with(needed.as_ref()) {
                // Another process changed the root key meanwhile: what was found belongs to the old one.
                Err(_) if keys::needed_root(&self.config)? != needed => {}
                opened => return opened,
            }
        }
    }

    fn keyring_with(&self, needed: Option<&[u8; 8]>) -> Result<Keyring, OpError> {
        let root = self.root_key(needed)?;
        let from = match self.secrets.root_command() {
            Some(command) => RootSource::Command(command.clone()).name(),
            None => root::find(&self.config, needed).map_or_else(|_| "root.key".into(), |f| f.source.name()),
        };
        Ok(Keyring::open_with(&self.config, root, &from)?)
    }

    /// The keyring, made if there is none, with the root key that it needs; says where that lies.
    pub fn keyring_or_new(&self) -> Result<Keyring, OpError> {
        if self.has_keyring() {
            return self.keyring();
        }
        if let Some(command) = self.secrets.root_command() {
            make_config_dir(&self.config)?;
            root::create(&self.config, NewRoot::Command(command.clone()))?;
        }
        if root::source_path(&self.config).symlink_metadata().is_ok() {
            let root = self.root_key(None)?;
            Keyring::create_empty(&self.config, &root)?;
            return Ok(Keyring::open_with(&self.config, root, "the root key")?);
        }
        let root = RootSource::in_config(&self.config);
        let (keys, created) = Keyring::open_or_create(&self.config, root.clone())?;
        if created.root_key {
            print::note(&format!(
                "made a new root key, {}: copy it to a safe place; whoever loses it loses the data",
                root.name()
            ));
            print::note("a thief of this disk has the key too, as long as both lie on it");
        }
        Ok(keys)
    }

    /// Store and keyring, which must be there.
    pub fn open(&self) -> Result<OpenStore, OpError> {
        self.store_dir()?;
        self.opened(self.keyring()?, false)
    }

    /// Store and keyring, made on first use. A store that is there needs the keyring that knows it: then none is made.
    pub fn open_or_create(&self) -> Result<OpenStore, OpError> {
        if self.has_store() {
            return self.open();
        }
        refuse_foreign(&self.store)?;
        self.opened(self.keyring_or_new()?, true)
    }

    fn opened(&self, keys: Keyring, create: bool) -> Result<OpenStore, OpError> {
        let id = keys.open_store(&self.store, create)?;
        Ok(OpenStore { path: self.store.clone(), id, keys: Arc::new(keys) })
    }
}

fn copy_of(key: &RootKey) -> Result<RootKey, OpError> {
    RootKey::try_from(&key.expose()[..]).map_err(|e| OpError::new(ErrorCode::General, e.to_string()))
}

/// Makes the configuration directory, 0700.
pub fn make_config_dir(dir: &Path) -> Result<(), OpError> {
    keys::make_private_dir(dir).map_err(|e| OpError::io(format_args!("make {}", dir.display()), &e))
}

/// A store that is open together with its keys.
pub struct OpenStore {
    pub path: PathBuf,
    pub id: StoreId,
    pub keys: Arc<Keyring>,
}

/// What may lie in a directory that is to become a store: a disk's own folder, and what a crash left of a first try.
fn is_ours(name: &std::ffi::OsStr) -> bool {
    name == "lost+found" || name.to_str().is_some_and(|n| n.starts_with("store.id.new-"))
}

/// A directory that holds something else is never made a store.
fn refuse_foreign(dir: &Path) -> Result<(), OpError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(OpError::io(format_args!("read the store {}", dir.display()), &e)),
    };
    match entries.filter_map(Result::ok).find(|entry| !is_ours(&entry.file_name())) {
        None => Ok(()),
        Some(entry) => Err(OpError::new(
            ErrorCode::Refused,
            format!("{} is not a store and not empty: it holds {:?}", dir.display(), entry.file_name()),
        )
        .hint("name an empty or a new directory with --store")),
    }
}

/// The path made absolute without asking the disk, because a mount leaves the current directory.
pub fn absolute(path: &Path) -> Result<PathBuf, OpError> {
    std::path::absolute(path).map_err(|e| OpError::io(format_args!("find {}", path.display()), &e))
}

/// True when the store has a directory for this bucket.
pub fn bucket_exists(store: &Path, name: &BucketName) -> bool {
    store.join("buckets").join(name.as_str()).is_dir()
}

/// The error for a bucket that is not there; names those that are.
pub fn no_such_bucket(store: &Path, name: &BucketName) -> OpError {
    let known = Bucket::list(store).unwrap_or_default();
    let mut listed: Vec<&str> = known.iter().map(BucketName::as_str).take(8).collect();
    if known.len() > listed.len() {
        listed.push("...");
    }
    let message = format!("there is no bucket {name} in {}", store.display());
    OpError::new(ErrorCode::NotFound, message).hint(if listed.is_empty() {
        format!("make it: ssefs bucket create {name}")
    } else {
        format!("buckets here: {}; make a new one: ssefs bucket create {name}", listed.join(", "))
    })
}

/// Runs one command on a bucket, mounted or not.
pub fn run(place: &Place, name: &BucketName, command: &Command, progress: &dyn Progress) -> Result<Value, OpError> {
    let dir = place.store_dir()?;
    if !bucket_exists(dir, name) {
        return Err(no_such_bucket(dir, name));
    }
    if let Some(holder) = Bucket::who_has(dir, name) {
        let Some(socket) = holder.socket else {
            return Err(OpError::new(ErrorCode::Busy, format!("bucket {name} is in use by process {}", holder.pid))
                .hint("wait until it is done"));
        };
        return control::ask(&socket, &Request::Run(command.clone()), progress);
    }
    let store = place.open()?;
    let options = OpenOptions { read_only: command.only_reads(), ..OpenOptions::default() };
    let bucket = Bucket::open(&store.path, store.id, name, &store.keys, &options)?;
    let answer = ops::run(&bucket, effective_uid(), command, progress);
    let closed = bucket.close();
    let answer = answer?;
    closed?;
    Ok(answer)
}
