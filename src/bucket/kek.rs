//! KEKs: the keys between master keys and data keys. Unwrapped once a mount, renewed after a number of objects and a
//! time, so that small files pay no call to the key service (SEMANTICS 54).

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::external::Flight;
use super::{Bucket, BucketError};
use crate::catalog::KekRow;
use crate::crypto::secret::Kek;
use crate::keys::KeyService;
use crate::types::{KekId, KeyId};

/// Data keys that one KEK wraps at most.
pub(super) const KEK_USES_MAX: u64 = 1 << 20;
/// Seconds after which a new KEK is made.
pub(super) const KEK_AGE_MAX_S: i64 = 90 * 24 * 3600;

/// What a rewrap did.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct RewrapReport {
    /// KEKs of the bucket, and how many of them were wrapped anew.
    pub keks: u64,
    pub rewrapped: u64,
    /// Newest version of the last key rewrapped.
    pub key_version: u32,
    /// Keys that could not be used, and why; their KEKs stay as they are.
    pub left: Vec<String>,
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
        let made = self.keks.lock().iter_mut().rev().find(|r| usable(r)).map(|r| {
            r.uses += 1;
            KekId(r.id)
        });
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

    /// Take the root key that the keyring is about to be changed to.
    pub fn accept_root(&self, id: &[u8; 8], sealed: &[u8]) -> Result<(), BucketError> {
        Ok(self.keys()?.accept_root(id, sealed)?)
    }

    /// Wrap every KEK under the newest version of its master key (SEMANTICS 20). Data is not touched; what is done stays done.
    pub fn rewrap(&self) -> Result<RewrapReport, BucketError> {
        self.health()?;
        let _no_kek_goes = self.sealing.read();
        let mut report = RewrapReport { keks: 0, rewrapped: 0, key_version: 0, left: Vec::new() };
        let rows = self.keks.lock().clone();
        for row in rows {
            report.keks += 1;
            let key = KeyId(row.key_id.clone());
            let keys = self.keys()?;
            let new = keys.newest_version(&key).and_then(|newest| {
                // An external service may wrap by a newer key of its own, without telling: ask it for a new secret.
                if newest == row.key_version && !keys.is_external(&key)? {
                    return Ok((newest, None));
                }
                let new = keys.rewrap_kek(&key, row.key_version, &self.id, KekId(row.id), &row.wrapped)?;
                Ok((newest, Some(new)))
            });
            let new = match new {
                Ok((newest, new)) => {
                    report.key_version = newest;
                    new
                }
                // One key that is not to be had leaves the others to be rewrapped.
                Err(e) => {
                    let why = format!("KEK {} under key {}: {e}", row.id, row.key_id);
                    log::warn!("bucket {}: {why}", self.name);
                    report.left.push(why);
                    continue;
                }
            };
            let Some(new) = new else { continue };
            let permit = self.gate.names();
            {
                // Only these two: how often it was used has gone on.
                let mut keks = self.keks.lock();
                let Some(r) = keks.iter_mut().find(|r| r.id == row.id) else { continue };
                r.key_version = new.version;
                r.wrapped = new.wrapped;
                let changed = r.clone();
                drop(keks);
                self.catalog().lock().put_kek(&changed)?;
            }
            self.lists_changed();
            drop(permit);
            report.rewrapped += 1;
        }
        self.commit()?;
        Ok(report)
    }
}
