//! Keys of external services in a bucket: which they are, and how what they give is had before anybody waits for it under a
//! lock or on an event thread. Nothing here decides whether a key may be used.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use super::inode::Inode;
use super::kek::{KEK_AGE_MAX_S, KEK_USES_MAX, now_s};
use super::{Bucket, BucketError};
use crate::crypto::secret::Kek;
use crate::keys::{KeyService, Standing};
use crate::types::{KekId, KeyId};

/// What one asks the key service for while others who want the same wait.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Flight {
    Unwrap(KekId),
    /// A new KEK under this master key.
    Make(String),
}

/// A lock for each question under way, so that nobody waits for somebody else's.
#[derive(Default)]
pub struct Flights(Mutex<HashMap<Flight, Weak<Mutex<()>>>>);

impl Flights {
    pub fn of(&self, flight: Flight) -> Arc<Mutex<()>> {
        let mut all = self.0.lock();
        if let Some(lock) = all.get(&flight).and_then(Weak::upgrade) {
            return lock;
        }
        all.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(Mutex::new(()));
        all.insert(flight, Arc::downgrade(&lock));
        lock
    }
}

/// Ids of the master keys in use in a bucket that lie with external services. Most buckets have none, which costs nothing.
#[derive(Default)]
pub struct ExternalKeys {
    any: AtomicBool,
    ids: Mutex<HashSet<String>>,
}

impl ExternalKeys {
    pub fn is_empty(&self) -> bool {
        !self.any.load(Ordering::Acquire)
    }

    pub fn lock(&self) -> MutexGuard<'_, HashSet<String>> {
        self.ids.lock()
    }

    fn insert(&self, key: &KeyId) {
        self.ids.lock().insert(key.0.clone());
        self.any.store(true, Ordering::Release);
    }
}

impl Bucket {
    /// The newest KEK of a key whose service does not answer, past its age or its number of uses, if it is unwrapped:
    /// both limits are far from what AES-GCM bears, and a write that could go on should.
    pub(super) fn worn_kek(&self, key: &KeyId) -> Option<(KekId, Arc<Kek>)> {
        if !matches!(self.keys().ok()?.check(key, Duration::MAX), Standing::Unknown(..)) {
            return None;
        }
        let id = KekId(self.keks.lock().iter().rev().find(|r| r.key_id == key.0)?.id);
        self.unwrapped.lock().get(&id).cloned().map(|kek| (id, kek))
    }

    /// Has the KEK of an object unwrapped, where an external service has its key, before anybody holds the object's state.
    pub(super) fn warm(&self, inode: &Inode) -> Result<(), BucketError> {
        match self.cold(inode) {
            Some(id) => self.kek(id).map(drop),
            None => Ok(()),
        }
    }

    /// The KEK that an external service has to be asked for before this object's content can be loaded.
    pub(super) fn cold(&self, inode: &Inode) -> Option<KekId> {
        if self.external_keys.is_empty() {
            return None;
        }
        let st = inode.state.lock();
        if st.content.is_some() || st.fresh || !st.is_file() || st.row.size == 0 {
            return None;
        }
        // What cannot be read here is told by whoever loads the content.
        let row = self.catalog().lock().seal(st.row.ino).ok()??;
        let id = KekId(row.kek);
        let asks = self.external_keys.lock().contains(&row.key_id) && !self.unwrapped.lock().contains_key(&id);
        asks.then_some(id)
    }

    /// Has a KEK unwrapped by a thread that nobody waits for. Err: what came of the last try, which is over.
    pub(super) fn fetch_aside(&self, id: KekId) -> Result<(), BucketError> {
        let mut aside = self.fetched.lock();
        match aside.remove(&id) {
            Some(Some(e)) => return Err(e),
            Some(None) => {
                aside.insert(id, None);
                return Ok(());
            }
            None => {}
        }
        let Some(bucket) = self.me.upgrade() else { return Ok(()) };
        let spawned = std::thread::Builder::new().name("ssefs-fetch".into()).spawn(move || {
            let failed = bucket.kek(id).err();
            let mut aside = bucket.fetched.lock();
            match failed {
                Some(e) => aside.insert(id, Some(e)),
                None => aside.remove(&id),
            };
        });
        if spawned.is_ok() {
            aside.insert(id, None);
        }
        Ok(())
    }

    /// Whether reading this file, or writing it, may have to ask an external service first. An answer too many costs a
    /// thread, one too few an event thread's time.
    pub fn may_wait(&self, ino: u64, writes: bool) -> bool {
        if self.external_keys.is_empty() {
            return false;
        }
        let Ok(inode) = self.inode(ino) else { return false };
        if self.cold(&inode).is_some() {
            return true;
        }
        if !writes {
            return false;
        }
        let generation = self.rule_generation.load(Ordering::Acquire);
        let goes_on = {
            let st = inode.state.lock();
            st.content.as_ref().is_some_and(|c| c.seal.is_some() && c.rule_generation == generation)
        };
        !goes_on && self.making_may_wait()
    }

    /// Whether a PUT under one of the external keys in use would need the service.
    pub fn making_may_wait(&self) -> bool {
        if self.external_keys.is_empty() {
            return false;
        }
        let external = self.external_keys.lock();
        let (keks, unwrapped) = (self.keks.lock(), self.unwrapped.lock());
        let now = now_s();
        !external.iter().all(|key| {
            let current = keks.iter().rev().find(|r| r.key_id == *key);
            current.is_some_and(|r| {
                r.uses < KEK_USES_MAX && now - r.created < KEK_AGE_MAX_S && unwrapped.contains_key(&KekId(r.id))
            })
        })
    }

    /// Has what a PUT of this file would need: so that opening it fails, and not the write that nobody expects to.
    pub(super) fn warm_put(&self, inode: &Inode) -> Result<(), BucketError> {
        if !self.making_may_wait() {
            return Ok(());
        }
        let Some(rule) = self.effective_of(inode)?.asked.rule().cloned() else { return Ok(()) };
        let resolved = self.resolve_rule(&rule)?;
        if self.external_keys.lock().contains(&resolved.key.0) {
            // A KEK made here is a hold on the key, like one that a PUT makes.
            let _sealing = self.sealing.read();
            // Counts a use that may not come; a KEK has a million, and this happens before its first.
            self.current_kek(&resolved.key)?;
        }
        Ok(())
    }

    /// Before a file is opened: what its key's external service has to give.
    ///
    /// # Errors
    /// Those of the service: the file cannot be used then.
    pub fn before_open(&self, ino: u64, writes: bool) -> Result<(), BucketError> {
        if self.external_keys.is_empty() {
            return Ok(());
        }
        let inode = self.inode(ino)?;
        self.warm(&inode)?;
        let empty = inode.state.lock().row.size == 0;
        if writes && empty { self.warm_put(&inode) } else { Ok(()) }
    }

    /// A key that this bucket uses: whether asking for it may take time.
    pub(super) fn note_key(&self, key: &KeyId) -> Result<(), BucketError> {
        if !key.0.is_empty() && self.keys()?.is_external(key)? {
            self.external_keys.insert(key);
        }
        Ok(())
    }

    /// At the opening: the keys of KEKs and of rules that lie with external services. Asks none of them.
    pub(super) fn note_keys(&self) {
        let mut keys: Vec<KeyId> = self.keks.lock().iter().map(|r| KeyId(r.key_id.clone())).collect();
        keys.dedup();
        for key in keys {
            let _ = self.note_key(&key);
        }
        let settings = self.settings();
        for rule in settings.rule.iter().chain(settings.dir_rules.values()) {
            if let Some(key) = rule.key().and_then(|name| self.keys().ok()?.resolve(name).ok()) {
                let _ = self.note_key(&key);
            }
        }
    }
}
