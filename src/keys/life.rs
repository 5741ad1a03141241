//! The life of a customer master key: enabled, disabled, pending deletion for a time, destroyed; and its rotation. A
//! destroyed key leaves its row, so that whoever meets its id learns what became of it; its versions are gone.

use super::KeyError;
use super::dependants::dependants_of;
use super::keyring::{Change, Keyring};
use super::masters::{
    KeyOrigin, KeyState, ROTATE_DAYS_DEFAULT, ROTATE_DAYS_MAX, changeable, find, name_of, newest, put_master, usable,
    versions,
};
use super::rows::{GRANT, MasterRow, Snapshot, VERSION};
use super::upkeep::AT_ONCE;
use crate::crypto::secret::MasterKey;
use crate::types::KeyId;
use rusqlite::types::Value;

/// Days a deleted key waits unless another number is asked for, and the bounds of that number.
pub const WAIT_DAYS_DEFAULT: u32 = 30;
pub const WAIT_DAYS_MIN: u32 = 7;
pub const WAIT_DAYS_MAX: u32 = 30;

pub(super) const DAY_S: i64 = 24 * 3600;

impl Keyring {
    /// Lets a disabled key be used again.
    pub fn enable(&self, key: &KeyId) -> Result<(), KeyError> {
        self.set_state(key, KeyState::Enabled)
    }

    /// Keeps a key from being used until it is enabled.
    pub fn disable(&self, key: &KeyId) -> Result<(), KeyError> {
        self.set_state(key, KeyState::Disabled)
    }

    /// Enables or disables a customer master key; doing it twice is no error.
    ///
    /// # Errors
    /// `PendingDeletion`, `PendingImport`: that has to be ended first. The other states have calls of their own.
    pub fn set_state(&self, key: &KeyId, state: KeyState) -> Result<(), KeyError> {
        if !matches!(state, KeyState::Enabled | KeyState::Disabled) {
            return Err(KeyError::NotNow { key: key.0.clone(), why: "it cannot be brought into this state by hand" });
        }
        self.change(|c| {
            let row = changeable(c.snapshot, key)?;
            match row.state {
                KeyState::PendingDeletion => Err(KeyError::PendingDeletion(name_of(&row))),
                KeyState::PendingImport => Err(KeyError::PendingImport(name_of(&row))),
                _ => put_master(c, &MasterRow { state, ..row }),
            }
        })
    }

    /// Begins the waiting period of `days` at whose end the key is destroyed; it cannot be used from now on. Returns when.
    ///
    /// # Errors
    /// `InUse` while a bucket hangs on it; `WaitDays` outside 7 to 30.
    pub fn schedule_deletion(&self, key: &KeyId, days: u32) -> Result<i64, KeyError> {
        if !(WAIT_DAYS_MIN..=WAIT_DAYS_MAX).contains(&days) {
            return Err(KeyError::WaitDays(days));
        }
        self.schedule(key, i64::from(days) * DAY_S, None)
    }

    /// The same with a period in seconds, however short, at whose end nobody looks twice: for tests, and for those who know.
    pub fn schedule_deletion_in(&self, key: &KeyId, seconds: u32) -> Result<i64, KeyError> {
        self.schedule(key, seconds.into(), Some(AT_ONCE.into()))
    }

    fn schedule(&self, key: &KeyId, seconds: i64, due_seen: Option<String>) -> Result<i64, KeyError> {
        self.change(|c| {
            let row = changeable(c.snapshot, key)?;
            if row.state == KeyState::PendingDeletion {
                return Err(KeyError::PendingDeletion(name_of(&row)));
            }
            let users = dependants_of(c.snapshot, key);
            if !users.is_empty() {
                return Err(KeyError::InUse { key: name_of(&row), buckets: users.len() });
            }
            // Counted from the latest time the keyring has seen: a clock that is behind must not end the period early.
            let at = c.clock.get().saturating_add(seconds);
            let state = KeyState::PendingDeletion;
            put_master(c, &MasterRow { state, delete_after: Some(at), due_seen, ..row })?;
            Ok(at)
        })
    }

    /// Ends the waiting period. The key is disabled then, as in the clouds: nobody can have used it meanwhile.
    pub fn cancel_deletion(&self, key: &KeyId) -> Result<(), KeyError> {
        self.change(|c| {
            let row = changeable(c.snapshot, key)?;
            if row.state != KeyState::PendingDeletion {
                return Err(KeyError::NotNow { key: name_of(&row), why: "it is not pending deletion" });
            }
            let held = row.origin == KeyOrigin::Generated || !super::material::any_deleted(c.snapshot, key);
            let state = if held { KeyState::Disabled } else { KeyState::PendingImport };
            put_master(c, &MasterRow { state, delete_after: None, due_seen: None, ..row })
        })
    }

    /// Makes a new version, which wraps from now on; returns its number. Old versions still unwrap.
    pub fn rotate(&self, key: &KeyId) -> Result<u32, KeyError> {
        if self.is_external(key)? {
            return self.rotate_external(key);
        }
        self.change(|c| {
            let row = usable(c.snapshot, key)?;
            if row.origin == KeyOrigin::Imported {
                let why = "its material is imported: import new material into it instead (ssefs key import)";
                return Err(KeyError::NotNow { key: name_of(row), why });
            }
            self.new_version(c, key)
        })
    }

    pub(super) fn new_version(&self, c: &Change<'_>, key: &KeyId) -> Result<u32, KeyError> {
        let version = newest(c.snapshot, key)? + 1;
        self.insert_version(c, key, version, &MasterKey::random()?)?;
        Ok(version)
    }

    /// Sets the days after which a key rotates by itself: 0 for never, `None` for the default. Managed keys too.
    pub fn set_rotation(&self, key: &KeyId, days: Option<u32>) -> Result<(), KeyError> {
        if days.is_some_and(|d| d > ROTATE_DAYS_MAX) {
            return Err(KeyError::RotateDays);
        }
        self.change(|c| {
            let row = find(c.snapshot, key)?.clone();
            if row.state == KeyState::Destroyed {
                changeable(c.snapshot, key)?;
            }
            if days.is_some_and(|d| d > 0) && (row.origin == KeyOrigin::Imported || row.provider.is_some()) {
                let why = "its material does not come from here: it does not rotate by itself";
                return Err(KeyError::NotNow { key: name_of(&row), why });
            }
            put_master(c, &MasterRow { rotate_days: days, ..row })
        })
    }
}

/// Takes a key's material and names away and leaves its tombstone.
pub(super) fn destroy(c: &Change<'_>, row: &MasterRow, now: i64) -> Result<(), KeyError> {
    c.wipes.set(true);
    c.delete(&VERSION, "key_id", Value::Text(row.id.0.clone()))?;
    c.delete(&GRANT, "key_id", Value::Text(row.id.0.clone()))?;
    let state = KeyState::Destroyed;
    put_master(c, &MasterRow { state, alias: None, destroyed: Some(now), due_seen: None, ..row.clone() })
}

/// The period after which a key rotates by itself, in days; 0: never.
pub(super) fn rotate_days(row: &MasterRow) -> u32 {
    let by_itself = row.origin == KeyOrigin::Generated && row.provider.is_none();
    if by_itself { row.rotate_days.unwrap_or(ROTATE_DAYS_DEFAULT) } else { 0 }
}

/// When a key rotates by itself next, if it does.
pub(super) fn next_rotation(s: &Snapshot, row: &MasterRow) -> Option<i64> {
    let days = rotate_days(row);
    if days == 0 || row.state != KeyState::Enabled {
        return None;
    }
    Some(versions(s, &row.id).next_back()?.created.saturating_add(i64::from(days) * DAY_S))
}
