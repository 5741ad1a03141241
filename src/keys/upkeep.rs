//! What time does to keys: those whose waiting period is over are destroyed, those older than their period rotate. Any
//! process may do it, each does it once. No clock that is wrong destroys a key early: periods are counted from the latest
//! time the keyring has seen, and their end must be seen twice, a day apart, by clocks that agree.

use super::KeyError;
use super::dependants::dependants_of;
use super::keyring::{Keyring, Moment};
use super::life::{DAY_S, destroy, next_rotation, rotate_days};
use super::masters::{KeyState, put_master};
use super::rows::{MasterRow, Snapshot};
use crate::types::{KeyId, from_hex, to_hex};
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// The keyring's clock is written down when it is behind by this much.
const CLOCK_STEP_S: i64 = 3600;
/// Between the two looks at the end of a waiting period, by the clock; and by that of the machine, unless it was started anew.
const LOOKS_APART_S: i64 = DAY_S;
const LOOKS_APART_UPTIME_S: i64 = 3600;
/// In the place of a first look: there need not be one.
pub(super) const AT_ONCE: &str = "at once";
/// A mount looks this often; most looks read nothing but whether the keyring has changed.
const LOOK_EACH: Duration = Duration::from_secs(5);

/// What was done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Upkept {
    pub destroyed: Vec<KeyId>,
    /// Keys with their new versions.
    pub rotated: Vec<(KeyId, u32)>,
}

/// A look at the end of a waiting period, as the keyring keeps it: `UNIX UPTIME BOOT`.
fn pack(m: &Moment) -> String {
    format!("{} {} {}", m.unix, m.uptime, to_hex(&m.boot))
}

fn parse(text: &str) -> Option<Moment> {
    let mut words = text.split(' ');
    let mut number = || words.next()?.parse().ok();
    let (unix, uptime) = (number()?, number()?);
    Some(Moment { unix, uptime, boot: from_hex(words.next()?)? })
}

/// What is to be done to a key.
enum Due {
    Destroy,
    /// Its end is seen for the first time; or with None a look was taken by a clock that was wrong.
    Look(Option<String>),
    Rotate,
}

fn due(s: &Snapshot, row: &MasterRow, now: &Moment, rotates: bool) -> Option<Due> {
    match (row.state, row.delete_after) {
        (KeyState::PendingDeletion, Some(at)) => {
            // Only a keyring from another time can have both; nothing is lost by waiting.
            let over = at <= now.unix && dependants_of(s, &row.id).is_empty();
            let seen = match row.due_seen.as_deref() {
                Some(AT_ONCE) => return over.then_some(Due::Destroy),
                Some(text) => parse(text),
                None => return over.then(|| Due::Look(Some(pack(now)))),
            };
            match seen {
                Some(first) if over && first.unix <= now.unix => {
                    let up = now.boot != first.boot || now.uptime - first.uptime >= LOOKS_APART_UPTIME_S;
                    (up && now.unix - first.unix >= LOOKS_APART_S).then_some(Due::Destroy)
                }
                _ => Some(Due::Look(over.then(|| pack(now)))),
            }
        }
        (KeyState::Enabled, _) if rotates => {
            // A clock that has gone back rotates nothing; a version far in the future is one that a wrong clock dated.
            let at = next_rotation(s, row)?;
            let far = at - now.unix > 2 * i64::from(rotate_days(row)) * DAY_S;
            (now.unix >= s.clock - DAY_S && (at <= now.unix || far)).then_some(Due::Rotate)
        }
        _ => None,
    }
}

impl Keyring {
    /// Destroys keys whose time is over and, with `rotate`, rotates those that are older than their period.
    pub fn upkeep(&self, rotate: bool) -> Result<Upkept, KeyError> {
        let now = self.moment();
        let (idle, behind) = self.read(|inner| {
            let s = &inner.snapshot;
            let idle = s.masters.values().all(|row| due(s, row, &now, rotate).is_none());
            Ok((idle, now.unix - s.clock >= CLOCK_STEP_S))
        })?;
        let mut done = Upkept::default();
        if idle {
            if behind {
                // The next who can write does it, if this one cannot.
                let _ = self.change(|c| {
                    c.quiet.set(true);
                    Ok(())
                });
            }
            return Ok(done);
        }
        self.change(|c| {
            c.quiet.set(true);
            for row in c.snapshot.masters.values() {
                match due(c.snapshot, row, &now, rotate) {
                    None => continue,
                    Some(Due::Destroy) => {
                        destroy(c, row, now.unix)?;
                        done.destroyed.push(row.id.clone());
                    }
                    // Nothing that anybody who watches the keyring would act upon.
                    Some(Due::Look(due_seen)) => {
                        put_master(c, &MasterRow { due_seen, ..row.clone() })?;
                        continue;
                    }
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
