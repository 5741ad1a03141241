//! The keyring from outside: root key, file, tampering, master keys, stores and buckets.

#[path = "keyring/files.rs"]
mod files;
#[path = "keyring/masters.rs"]
mod masters;
#[path = "keyring/stores.rs"]
mod stores;

use ssefs::keys::{Keyring, RootSource};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A configuration directory that goes when dropped.
pub struct Config(TempDir);

impl Config {
    pub fn temp() -> Self {
        Config(TempDir::new().unwrap())
    }
    pub fn dir(&self) -> PathBuf {
        self.0.path().join("config")
    }
    pub fn beside(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    pub fn root(&self) -> PathBuf {
        self.dir().join("root.key")
    }
    pub fn db(&self) -> PathBuf {
        self.dir().join("keyring.db")
    }
    pub fn make(&self) -> Keyring {
        Keyring::open_or_create(&self.dir(), RootSource::in_config(&self.dir())).unwrap().0
    }
    pub fn open(&self) -> Result<Keyring, ssefs::keys::KeyError> {
        Keyring::open(&self.dir(), RootSource::in_config(&self.dir()))
    }
    /// Changes the keyring as an outsider would.
    pub fn sql(&self, sql: &str) {
        rusqlite::Connection::open(self.db()).unwrap().execute_batch(sql).unwrap();
    }
    /// The error of opening it.
    pub fn refusal(&self) -> ssefs::keys::KeyError {
        self.open().err().expect("the keyring must be refused")
    }
}

pub fn chmod(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}
