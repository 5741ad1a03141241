//! KEKs: the keys between master keys and data keys. Unwrapped once a mount, renewed after a number of objects and a
//! time, so that small files pay no call to the key service (SEMANTICS 54).

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::inode::Inode;
use super::{Bucket, BucketError};
use crate::catalog::KekRow;
use crate::crypto::secret::Kek;
use crate::keys::{KeyService, Standing};
use crate::types::{KekId, KeyId};

/// Data keys that one KEK wraps at most.
const KEK_USES_MAX: u64 = 1 << 20;
/// Seconds after which a new KEK is made.
const KEK_AGE_MAX_S: i64 = 90 * 24 * 3600;

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
    fn of(&self, flight: Flight) -> Arc<Mutex<()>> {
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

/// What a rewrap did.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct RewrapReport {
    /// KEKs of the bucket, and how many of them were wrapped anew.
    pub keks: u64,
    pub rewrapped: u64,
    /// Newest version of the last key rewrapped.
    pub key_version: u32,
}

pub fn now_s() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

impl Bucket {
    /// A KEK by its number. Where its key lies with an external service this may take that service's time limit: it was
    /// had before (`warm`) when the caller holds a lock. Of those who want it at once, one asks.
    pub(super) fn kek(&self, id: KekId) -> Result<Arc<Kek>, BucketError> {
        let have = || {
            let unwrapped = self.unwrapped.lock();
            unwrapped.get(&id).cloned().ok_or_else(|| self.cutoff.cuts())
        };
        if let Ok(k) = have() {
            return Ok(k);
        }
        let flight = self.flights.of(Flight::Unwrap(id));
        let _asking = flight.lock();
        let cuts = match have() {
            Ok(k) => return Ok(k),
            Err(cuts) => cuts,
        };
        self.keyring_stands()?;
        let row = self.keks.lock().iter().find(|r| r.id == id.0).cloned();
        let Some(row) = row else {
            return Err(BucketError::Altered {
                bucket: self.name.to_string(),
                what: "the KEK rows",
                hint: "an object names a KEK that is not there; restore the catalog",
            });
        };
        let kek = self.keys()?.unwrap_kek(&KeyId(row.key_id), row.key_version, &self.id, id, &row.wrapped)?;
        let kek = Arc::new(kek);
        self.keep_kek(id, &kek, cuts);
        Ok(kek)
    }

    /// Keep an unwrapped KEK, unless keys were taken away since it was asked for: then this one may have been among them.
    fn keep_kek(&self, id: KekId, kek: &Arc<Kek>, cuts: u64) {
        let mut unwrapped = self.unwrapped.lock();
        if self.cutoff.cuts() == cuts {
            unwrapped.insert(id, kek.clone());
        }
    }

    /// The KEK that new objects under a master key use, made when there is none. The caller holds no gate.
    pub(super) fn current_kek(&self, key: &KeyId) -> Result<(KekId, Arc<Kek>), BucketError> {
        let now = now_s();
        let usable = |r: &KekRow| r.key_id == key.0 && r.uses < KEK_USES_MAX && now - r.created < KEK_AGE_MAX_S;
        let found = {
            let mut keks = self.keks.lock();
            let row = keks.iter_mut().rev().find(|r| usable(r));
            row.map(|row| {
                row.uses += 1;
                KekId(row.id)
            })
        };
        if let Some(id) = found {
            return Ok((id, self.kek(id)?));
        }
        let flight = self.flights.of(Flight::Make(key.0.clone()));
        let _making = flight.lock();
        let made = self.keks.lock().iter().rev().find(|r| usable(r)).map(|r| KekId(r.id));
        if let Some(id) = made {
            return Ok((id, self.kek(id)?));
        }
        self.keyring_stands()?;
        let cuts = self.cutoff.cuts();
        // A number of its own from the start: others may be making one under another key.
        let id = {
            let mut counters = self.counters.lock();
            counters.next_kek += 1;
            KekId(counters.next_kek - 1)
        };
        let new = match self.keys()?.new_kek(key, &self.id, id) {
            Ok(new) => new,
            Err(e) => return self.worn_kek(key).ok_or(e.into()),
        };
        let row = KekRow {
            id: id.0,
            key_id: key.0.clone(),
            key_version: new.version,
            wrapped: new.wrapped,
            created: now,
            uses: 1,
        };
        let kek = Arc::new(new.kek);
        let permit = self.gate.names();
        self.catalog().lock().put_kek(&row)?;
        self.keep_kek(id, &kek, cuts);
        self.keks.lock().push(row);
        self.lists_changed();
        drop(permit);
        Ok((id, kek))
    }

    /// The newest KEK of a key whose service does not answer, past its age or its number of uses, if it is unwrapped:
    /// both limits are far from what AES-GCM bears, and a write that could go on should.
    fn worn_kek(&self, key: &KeyId) -> Option<(KekId, Arc<Kek>)> {
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
        if self.external_keys.lock().is_empty() {
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
        if self.external_keys.lock().is_empty() {
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
        if self.external_keys.lock().is_empty() {
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
            self.external_keys.lock().insert(key.0.clone());
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

    /// Wrap every KEK under the newest version of its master key (SEMANTICS 20). Data is not touched; what is done stays done.
    pub fn rewrap(&self) -> Result<RewrapReport, BucketError> {
        let _no_kek_goes = self.sealing.read();
        let mut report = RewrapReport { keks: 0, rewrapped: 0, key_version: 0 };
        let rows = self.keks.lock().clone();
        for row in rows {
            report.keks += 1;
            let key = KeyId(row.key_id.clone());
            let newest = self.keys()?.newest_version(&key)?;
            report.key_version = newest;
            // An external service may wrap by a newer key of its own, without telling: ask it for a new secret.
            if newest == row.key_version && !self.keys()?.is_external(&key)? {
                continue;
            }
            let new = self.keys()?.rewrap_kek(&key, row.key_version, &self.id, KekId(row.id), &row.wrapped)?;
            let row = KekRow { key_version: new.version, wrapped: new.wrapped, ..row };
            let permit = self.gate.names();
            self.catalog().lock().put_kek(&row)?;
            if let Some(r) = self.keks.lock().iter_mut().find(|r| r.id == row.id) {
                r.key_version = row.key_version;
                r.wrapped = row.wrapped;
            }
            self.lists_changed();
            drop(permit);
            report.rewrapped += 1;
        }
        self.commit()?;
        Ok(report)
    }
}
