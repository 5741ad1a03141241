//! What time does to keys: those whose waiting period is over are destroyed, those older than their period rotate. Any
//! process may do it, each does it once. Nothing is destroyed before its time, whatever the clock does: the keyring
//! keeps the latest time it has seen, periods are counted from there, and the clock itself must have passed their end.

use super::KeyError;
use super::dependants::dependants_of;
use super::keyring::Keyring;
use super::life::{DAY_S, destroy, next_rotation, rotate_days};
use super::masters::{KeyState, name_of, put_master};
use super::rows::{MasterRow, Snapshot};
use crate::types::KeyId;
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// The keyring's clock is written down when it is behind by this much.
const CLOCK_STEP_S: i64 = 3600;
/// After so long a time in which nobody looked, the clock may be wrong: what it says is over gets `GRACE_S` more.
const UNSEEN_S: i64 = 7 * DAY_S;
const GRACE_S: i64 = DAY_S;
/// A mount looks this often; most looks read nothing but whether the keyring has changed.
const LOOK_EACH: Duration = Duration::from_secs(5);

/// What was done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Upkept {
    pub destroyed: Vec<KeyId>,
    /// Keys with their new versions.
    pub rotated: Vec<(KeyId, u32)>,
}

/// What is to be done to a key.
enum Due {
    Destroy,
    /// It is over, but nobody has looked for a week: noted now, destroyed a day later.
    Note,
    Rotate,
}

fn due(s: &Snapshot, row: &MasterRow, now: i64, rotates: bool) -> Option<Due> {
    match row.state {
        KeyState::PendingDeletion if row.delete_after.is_some_and(|at| at <= now) => match row.overdue {
            Some(since) => (now >= since.saturating_add(GRACE_S)).then_some(Due::Destroy),
            None if now - s.clock > UNSEEN_S => Some(Due::Note),
            None => Some(Due::Destroy),
        },
        KeyState::Enabled if rotates => {
            // A clock that has gone back rotates nothing; a version far in the future is one that a wrong clock dated.
            let at = next_rotation(s, row)?;
            let far = at - now > 2 * i64::from(rotate_days(row)) * DAY_S;
            (now >= s.clock - DAY_S && (at <= now || far)).then_some(Due::Rotate)
        }
        _ => None,
    }
}

impl Keyring {
    /// Destroys keys whose time is over and, with `rotate`, rotates those that are older than their period.
    pub fn upkeep(&self, rotate: bool) -> Result<Upkept, KeyError> {
        let now = self.now();
        let idle = self.read(|inner| {
            let s = &inner.snapshot;
            Ok(now - s.clock < CLOCK_STEP_S && s.masters.values().all(|row| due(s, row, now, rotate).is_none()))
        })?;
        let mut done = Upkept::default();
        if idle {
            return Ok(done);
        }
        self.change(|c| {
            c.quiet.set(true);
            for row in c.snapshot.masters.values() {
                match due(c.snapshot, row, now, rotate) {
                    None => continue,
                    // Only a keyring from another time can have both; nothing is lost by waiting.
                    Some(Due::Destroy) if !dependants_of(c.snapshot, &row.id).is_empty() => {
                        log::warn!("key {} is due to be destroyed, and buckets hang on it: it stays", name_of(row));
                        continue;
                    }
                    Some(Due::Destroy) => {
                        destroy(c, row, now)?;
                        done.destroyed.push(row.id.clone());
                    }
                    Some(Due::Note) => put_master(c, &MasterRow { overdue: Some(now), ..row.clone() })?,
                    Some(Due::Rotate) => done.rotated.push((row.id.clone(), self.new_version(c, &row.id)?)),
                }
                c.quiet.set(false);
            }
            Ok(())
        })?;
        for key in &done.destroyed {
            log::warn!("key {key} is destroyed: its waiting period is over");
        }
        for (key, version) in &done.rotated {
            log::info!("key {key} was older than its period: version {version} wraps from now on");
        }
        Ok(done)
    }

    /// The clock, and the latest time the keyring has seen, in Unix seconds.
    pub fn clocks(&self) -> Result<(i64, i64), KeyError> {
        Ok((self.now(), self.read(|inner| Ok(inner.snapshot.clock))?))
    }

    /// Takes the clock's word against a later time that the keyring has seen: for after a clock that was ahead.
    pub fn trust_clock(&self) -> Result<(), KeyError> {
        self.change(|c| {
            c.clock.set(self.now());
            Ok(())
        })
    }
}

/// Does the upkeep of a keyring as long as it lives.
pub struct Timer {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Timer {
    /// Begins at once, in a thread of its own.
    pub fn start(keys: Arc<Keyring>) -> std::io::Result<Timer> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let told = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("ssefs-keys".into()).spawn(move || {
            let mut failing = false;
            let (stopped, changed) = &*told;
            loop {
                match keys.upkeep(true) {
                    Ok(_) => failing = false,
                    // Said once, not each time.
                    Err(e) if !failing => {
                        log::warn!("keys could not be looked over: {e}");
                        failing = true;
                    }
                    Err(_) => {}
                }
                let mut stopped = stopped.lock();
                if !*stopped {
                    changed.wait_for(&mut stopped, LOOK_EACH);
                }
                if *stopped {
                    return;
                }
            }
        })?;
        Ok(Timer { stop, thread: Some(thread) })
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        *self.stop.0.lock() = true;
        self.stop.1.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
