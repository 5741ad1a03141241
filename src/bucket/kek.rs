//! KEKs: the keys between master keys and data keys. Unwrapped once a mount, renewed after a number of objects and a
//! time, so that small files pay no call to the key service (SEMANTICS 54).

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Bucket, BucketError};
use crate::catalog::KekRow;
use crate::crypto::secret::Kek;
use crate::keys::KeyService;
use crate::types::{KekId, KeyId};

/// Data keys that one KEK wraps at most.
const KEK_USES_MAX: u64 = 1 << 20;
/// Seconds after which a new KEK is made.
const KEK_AGE_MAX_S: i64 = 90 * 24 * 3600;

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
    /// A KEK by its number.
    pub(super) fn kek(&self, id: KekId) -> Result<Arc<Kek>, BucketError> {
        if let Some(k) = self.unwrapped.lock().get(&id) {
            return Ok(k.clone());
        }
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
        self.unwrapped.lock().insert(id, kek.clone());
        Ok(kek)
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
        let _making = self.kek_making.lock();
        if let Some(row) = self.keks.lock().iter().rev().find(|r| usable(r)) {
            let id = KekId(row.id);
            return self
                .unwrapped
                .lock()
                .get(&id)
                .cloned()
                .map(|k| (id, k))
                .ok_or(BucketError::Invalid("a KEK vanished"));
        }
        let id = KekId(self.counters.lock().next_kek);
        let new = self.keys()?.new_kek(key, &self.id, id)?;
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
        self.counters.lock().next_kek += 1;
        self.unwrapped.lock().insert(id, kek.clone());
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
        let mut report = RewrapReport { keks: 0, rewrapped: 0, key_version: 0 };
        let rows = self.keks.lock().clone();
        for row in rows {
            report.keks += 1;
            let key = KeyId(row.key_id.clone());
            let newest = self.keys()?.newest_version(&key)?;
            report.key_version = newest;
            if newest == row.key_version {
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
