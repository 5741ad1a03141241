//! Asks external key services whether the keys in use may go on being used, each interval, from a thread of its own that
//! nobody waits for. What a service has revoked is cut off at once; what it says nothing about, or lets nobody have, after the
//! time of grace. Only keys with a KEK in memory are asked for, and those that were cut off, until they are usable again.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::Bucket;
use super::cutoff::What;
use crate::keys::{Keyring, Standing};
use crate::types::KeyId;

/// How often a service is asked, and when to stop.
pub(super) struct ServiceWatch {
    each: Duration,
    grace: Duration,
    stop: Arc<(Mutex<bool>, Condvar)>,
}

impl ServiceWatch {
    pub fn new(each: Duration, grace: Duration) -> ServiceWatch {
        ServiceWatch { each, grace, stop: Arc::default() }
    }

    /// Does not wait for a call under way: it ends by its own time limit.
    pub fn stop(&self) {
        *self.stop.0.lock() = true;
        self.stop.1.notify_all();
    }
}

impl Bucket {
    pub(super) fn start_service_watch(self: &Arc<Self>) -> std::io::Result<()> {
        let Some(keys) = self.keys.clone() else { return Ok(()) };
        let (bucket, each, stop) = (Arc::downgrade(self), self.services.each, Arc::clone(&self.services.stop));
        let run = move || watch(&bucket, &keys, each, &stop);
        std::thread::Builder::new().name("ssefs-services".into()).spawn(run).map(drop)
    }

    /// External keys that something in memory hangs on.
    fn external_in_use(&self) -> HashSet<KeyId> {
        let external = self.external_keys.lock();
        let (keks, unwrapped) = (self.keks.lock(), self.unwrapped.lock());
        let of_use = keks.iter().filter(|r| unwrapped.keys().any(|id| id.0 == r.id) && external.contains(&r.key_id));
        of_use.map(|r| KeyId(r.key_id.clone())).collect()
    }

    /// Cut off what hangs on a key. Does not wait for it.
    fn cut_off_external(&self, key: &KeyId) {
        self.cutoff.cutting_there.lock().insert(key.clone());
        self.access_changed();
        self.drop_keks(|k| k == key);
        let (bucket, cut) = (self.me.clone(), key.clone());
        let done = move |done: Result<(), super::BucketError>| {
            if let Err(e) = done {
                log::error!("cutting off: {e}");
            }
            // From here on the service is asked, which may say otherwise by now.
            if let Some(bucket) = bucket.upgrade() {
                bucket.cutoff.cutting_there.lock().remove(&cut);
            }
        };
        self.cut_off(What::Keys(HashSet::from([key.clone()])), Box::new(done));
    }
}

fn watch(bucket: &Weak<Bucket>, keys: &Keyring, each: Duration, stop: &(Mutex<bool>, Condvar)) {
    // Keys whose service said nothing good when it was asked last: whether they are cut off by now.
    let mut doubtful: HashMap<KeyId, bool> = HashMap::new();
    loop {
        {
            let mut stopped = stop.0.lock();
            if !*stopped {
                stop.1.wait_for(&mut stopped, each);
            }
            if *stopped {
                return;
            }
        }
        let Some(in_use) = bucket.upgrade().map(|b| b.external_in_use()) else { return };
        let asked: HashSet<KeyId> = in_use.iter().chain(doubtful.keys()).cloned().collect();
        for key in asked {
            // Nothing of the bucket is held while a service is asked.
            let standing = keys.check(&key, each);
            let Some(bucket) = bucket.upgrade() else { return };
            let (error, cut) = match standing {
                Standing::Usable => {
                    if doubtful.remove(&key).is_some() {
                        log::info!("key {key} can be used again");
                    }
                    continue;
                }
                Standing::Revoked(e) => (e, true),
                Standing::Unknown(since, e) => (e, since.elapsed() >= bucket.services.grace),
            };
            let before = doubtful.insert(key.clone(), cut);
            if cut && (before != Some(true) || in_use.contains(&key)) {
                log::warn!("{error}: what it encrypts is cut off");
                bucket.cut_off_external(&key);
            } else if before.is_none() {
                let grace = bucket.services.grace.as_secs();
                log::warn!("{error}; what is in use of it goes on for {grace} s at most");
            }
        }
    }
}
