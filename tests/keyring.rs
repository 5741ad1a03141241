//! The keyring from outside: root key, file, tampering, master keys, stores and buckets.

#[path = "keyring/dependants.rs"]
mod dependants;
#[path = "keyring/files.rs"]
mod files;
#[path = "keyring/life.rs"]
mod life;
#[path = "keyring/masters.rs"]
mod masters;
#[path = "keyring/material.rs"]
mod material;
#[path = "keyring/stores.rs"]
mod stores;

use ssefs::keys::{Keyring, Moment, RootSource};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
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
    /// Opened by a clock that the test sets.
    pub fn open_by(&self, time: &Time) -> Keyring {
        let time = time.clone();
        let root = RootSource::in_config(&self.dir());
        Keyring::open_with_clock(&self.dir(), root, Box::new(move || *time.0.lock().unwrap())).unwrap()
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

pub const DAY: i64 = 24 * 3600;

/// The clocks of a machine, in the hands of a test.
#[derive(Clone)]
pub struct Time(Arc<Mutex<Moment>>);

impl Time {
    /// As the system's clock has it, which made the keyring.
    pub fn now() -> Time {
        let unix = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
        Time(Arc::new(Mutex::new(Moment { unix, uptime: 1000, boot: [1; 16] })))
    }
    pub fn get(&self) -> i64 {
        self.0.lock().unwrap().unix
    }
    /// Time passes.
    pub fn pass(&self, seconds: i64) {
        let mut m = self.0.lock().unwrap();
        m.unix += seconds;
        m.uptime += seconds;
    }
    /// The clock is set, and no time passes.
    pub fn jump(&self, seconds: i64) {
        self.0.lock().unwrap().unix += seconds;
    }
    /// The machine is started anew.
    pub fn reboot(&self) {
        let mut m = self.0.lock().unwrap();
        m.uptime = 10;
        m.boot[0] += 1;
    }
}
