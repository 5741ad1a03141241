//! Taking away what somebody may not have any more: objects whose customer key was locked, and those under a master key that
//! was disabled, destroyed, or cannot be asked about. What was acknowledged is sealed and committed first; then data keys,
//! ciphers and maps go, and the kernel drops its pages. All of it happens on a thread of its own, which also looks at the
//! keyring: the kernel may hold pages until a request is answered, so no event thread may wait for it.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::inode::{Inode, State};
use super::{Bucket, BucketError, Done};
use crate::keys::{KeyError, KeyService, KeyState, Keyring, Standing};
use crate::rule::Method;
use crate::types::KeyId;

/// Commits waited for until an object that somebody goes on changing is clean.
const TRIES_MAX: usize = 100;

/// What is taken away.
pub(super) enum What {
    /// What a user's customer keys of this file or directory opened, and no other key opens.
    Unlocked(u64),
    /// What hangs on these master keys.
    Keys(HashSet<KeyId>),
    /// What hangs on any.
    AllKeys,
}

impl What {
    fn is(&self, method: Method, key: &KeyId) -> bool {
        match self {
            What::Unlocked(_) => method == Method::SseC,
            What::Keys(keys) => keys.contains(key),
            What::AllKeys => matches!(method, Method::Aes256 | Method::Kms),
        }
    }
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<(What, Done)>,
    stop: bool,
}

/// See the module.
pub(super) struct CutOff {
    queue: Mutex<Queue>,
    changed: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Has the kernel drop its pages of a file, after it has written back those that are dirty.
    forget_pages: OnceLock<Box<dyn Fn(u64) + Send + Sync>>,
    check: Duration,
    grace: Duration,
    /// The keyring could not be asked for longer than the grace: nothing is unwrapped until it can.
    lost: AtomicBool,
    /// Grows when KEKs are taken away. Read and changed while those unwrapped are locked.
    cuts: AtomicU64,
    /// Master keys that are being cut off: what was let in under them is so no more, also while it is in memory.
    cutting: Mutex<HashSet<KeyId>>,
    /// The same by the word, or the silence, of an external service.
    pub cutting_there: Mutex<HashSet<KeyId>>,
}

impl CutOff {
    pub fn cuts(&self) -> u64 {
        self.cuts.load(Ordering::Acquire)
    }

    pub fn new(check: Duration, grace: Duration) -> CutOff {
        CutOff {
            queue: Mutex::default(),
            changed: Condvar::new(),
            thread: Mutex::default(),
            forget_pages: OnceLock::new(),
            check,
            grace,
            lost: AtomicBool::new(false),
            cuts: AtomicU64::new(0),
            cutting: Mutex::default(),
            cutting_there: Mutex::default(),
        }
    }

    pub fn stop(&self) {
        self.queue.lock().stop = true;
        self.changed.notify_all();
        if let Some(t) = self.thread.lock().take() {
            let _ = t.join();
        }
    }
}

/// What the watcher knows of the keyring.
#[derive(Default)]
struct Watch {
    generation: Option<u64>,
    /// Master keys of the bucket that were not usable then.
    unusable: HashSet<KeyId>,
    lost_since: Option<Instant>,
}

impl Bucket {
    pub(super) fn start_cut_off(self: &Arc<Self>) -> std::io::Result<()> {
        let Some(keys) = self.keys.clone() else { return Ok(()) };
        let watch = Watch::default();
        let me = self.clone();
        let run = move || me.run_cut_off(&keys, watch);
        *self.cutoff.thread.lock() = Some(std::thread::Builder::new().name("ssefs-cutoff".into()).spawn(run)?);
        Ok(())
    }

    /// From now on have the kernel drop its pages of what is cut off. Once.
    pub fn on_cut_off(&self, forget_pages: impl Fn(u64) + Send + Sync + 'static) {
        let _ = self.cutoff.forget_pages.set(Box::new(forget_pages));
    }

    /// Take something away soon, and call `done` when it is. Does not wait.
    pub(super) fn cut_off(&self, what: What, done: Done) {
        let mut queue = self.cutoff.queue.lock();
        if queue.stop {
            drop(queue);
            return done(Err(BucketError::Failed("the bucket is closing".into())));
        }
        queue.jobs.push_back((what, done));
        self.cutoff.changed.notify_one();
    }

    /// Whether keys may be unwrapped.
    ///
    /// # Errors
    /// The keyring could not be asked for too long whether they still may be.
    pub(super) fn keyring_stands(&self) -> Result<(), BucketError> {
        match self.keys.as_deref().filter(|_| self.cutoff.lost.load(Ordering::Acquire)) {
            Some(keys) => Err(KeyError::KeyringMissing(keys.path().to_owned()).into()),
            None => Ok(()),
        }
    }

    fn run_cut_off(self: &Arc<Self>, keys: &Keyring, mut watch: Watch) {
        let mut look_at = Instant::now() + self.cutoff.check;
        loop {
            let job = {
                let mut queue = self.cutoff.queue.lock();
                while queue.jobs.is_empty() && !queue.stop {
                    if self.cutoff.changed.wait_until(&mut queue, look_at).timed_out() {
                        break;
                    }
                }
                if queue.stop && queue.jobs.is_empty() {
                    return;
                }
                queue.jobs.pop_front()
            };
            if let Some((what, done)) = job {
                done(self.carry_out(&what));
            }
            if Instant::now() >= look_at {
                self.look_at_keys(keys, &mut watch);
                look_at = Instant::now() + self.cutoff.check;
            }
        }
    }

    fn look_at_keys(self: &Arc<Self>, keys: &Keyring, watch: &mut Watch) {
        let generation = match keys.generation() {
            Ok(g) => g,
            Err(e) => {
                let since = *watch.lost_since.get_or_insert_with(|| {
                    log::warn!("{e}; keys in use are used for {} s more", self.cutoff.grace.as_secs());
                    Instant::now()
                });
                if since.elapsed() >= self.cutoff.grace && !self.cutoff.lost.swap(true, Ordering::AcqRel) {
                    log::error!("{e}: nothing is read or written under its keys until it is there again");
                    self.access_changed();
                    self.drop_keks(|_| true);
                    self.report(self.carry_out(&What::AllKeys));
                }
                return;
            }
        };
        watch.lost_since = None;
        if self.cutoff.lost.swap(false, Ordering::AcqRel) {
            log::info!("the keyring is there again");
        }
        if watch.generation == Some(generation) {
            return;
        }
        let in_use: HashSet<KeyId> = self.keks.lock().iter().map(|r| KeyId(r.key_id.clone())).collect();
        let unusable: HashSet<KeyId> = in_use.into_iter().filter(|key| !is_usable(keys, key)).collect();
        let gone: HashSet<KeyId> = unusable.difference(&watch.unusable).cloned().collect();
        watch.unusable = unusable;
        // Names may mean other keys now.
        self.resolved.lock().clear();
        if !gone.is_empty() {
            for key in &gone {
                log::warn!("key {key} may not be used any more: what it encrypts is cut off");
            }
            self.cutoff.cutting.lock().clone_from(&gone);
            self.access_changed();
            self.drop_keks(|key| gone.contains(key));
            self.report(self.carry_out(&What::Keys(gone)));
            // From here on the keyring is asked, which may say otherwise by now.
            self.cutoff.cutting.lock().clear();
        }
        watch.generation = Some(generation);
    }

    fn report(&self, cut: Result<(), BucketError>) {
        if let Err(e) = cut {
            log::error!("cutting off: {e}");
        }
    }

    pub(super) fn drop_keks(&self, which: impl Fn(&KeyId) -> bool) {
        let ids: HashSet<u64> =
            self.keks.lock().iter().filter(|r| which(&KeyId(r.key_id.clone()))).map(|r| r.id).collect();
        let mut unwrapped = self.unwrapped.lock();
        unwrapped.retain(|id, _| !ids.contains(&id.0));
        self.cutoff.cuts.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether content under a master key that is in memory may be used.
    ///
    /// # Errors
    /// The key may not be used any more.
    pub(super) fn key_stands(&self, key: &KeyId) -> Result<(), BucketError> {
        self.keyring_stands()?;
        let here = self.cutoff.cutting.lock().contains(key);
        if !here && !self.cutoff.cutting_there.lock().contains(key) {
            return Ok(());
        }
        // The last word is asked for, and nobody is waited for.
        match self.keys()?.check(key, Duration::MAX) {
            Standing::Revoked(e) | Standing::Unknown(_, e) => Err(e.into()),
            // Enabled again while it is being cut off: that comes to its end first.
            Standing::Usable if here => Err(KeyError::Disabled(key.0.clone()).into()),
            Standing::Usable => Ok(()),
        }
    }

    fn carry_out(self: &Arc<Self>, what: &What) -> Result<(), BucketError> {
        let inos = self.affected(what)?;
        let forget = || {
            if let Some(forget) = self.cutoff.forget_pages.get() {
                inos.iter().for_each(|ino| forget(*ino));
            }
        };
        // Pages that a mapping has changed are written back by that, while there is still a key.
        forget();
        let committed = self.commit();
        let mut cut = Ok(());
        for ino in &inos {
            if let Some(inode) = self.table.get(*ino)
                && let Err(e) = self.drop_content(&inode, what)
            {
                cut = Err(e);
            }
        }
        // Whoever was let in before the last of it was gone asks again; and what was read until then is forgotten too.
        self.access_changed();
        forget();
        committed.and(cut)
    }

    /// The files that are concerned: those in memory, and those the kernel may have pages of.
    fn affected(&self, what: &What) -> Result<Vec<u64>, BucketError> {
        let mut found = HashSet::new();
        let here = self.table.all();
        if let What::Unlocked(ino) = what
            && !self.inode(*ino)?.state.lock().is_dir()
        {
            found.insert(*ino);
            // What it held before and is still being freed, under numbers of their own.
            let nameless = here.iter().filter(|i| {
                let st = i.state.lock();
                let seal = st.content.as_ref().and_then(|c| c.seal.as_ref());
                st.row.nlink == 0 && seal.is_some_and(|s| s.is_customer())
            });
            found.extend(nameless.map(|i| i.ino));
            return Ok(found.into_iter().collect());
        }
        let known: HashSet<u64> = here.iter().map(|i| i.ino).collect();
        for inode in here {
            let st = inode.state.lock();
            let seal = st.content.as_ref().and_then(|c| c.seal.as_ref());
            let concerned = match seal {
                Some(s) => what.is(s.resolved.method, &s.resolved.key),
                None => false,
            };
            if concerned || matches!(what, What::Unlocked(_)) && st.customer.is_some() {
                found.insert(inode.ino);
            }
        }
        for ino in self.table.remembered().into_iter().filter(|ino| !known.contains(ino)) {
            let row = self.catalog().lock().seal_key(ino)?;
            if let Some((method, key)) = row
                && super::put::method_of(method).is_some_and(|m| what.is(m, &KeyId(key)))
            {
                found.insert(ino);
            }
        }
        Ok(found.into_iter().collect())
    }

    /// Let go of keys and map of one file, once nothing in memory is missing on disk.
    fn drop_content(self: &Arc<Self>, inode: &Arc<Inode>, what: &What) -> Result<(), BucketError> {
        for _ in 0..TRIES_MAX {
            if matches!(what, What::Unlocked(_)) && !self.is_locked(inode)? {
                // Somebody else has unlocked it, or did so again.
                return Ok(());
            }
            {
                let _io = inode.io.write();
                // No commit is between its freeze and its rows.
                let _permit = self.gate.names_quietly();
                let mut st = inode.state.lock();
                let concerned = match st.content.as_ref().and_then(|c| c.seal.as_ref()) {
                    Some(s) => what.is(s.resolved.method, &s.resolved.key),
                    None => st.customer.is_some() && matches!(what, What::Unlocked(_)),
                };
                if !concerned {
                    return Ok(());
                }
                if is_saved(&st) {
                    st.content = None;
                    st.customer = None;
                    return Ok(());
                }
            }
            if let Err(e) = self.commit() {
                // Nothing will be written any more: what is in memory is lost either way.
                let _io = inode.io.write();
                let mut st = inode.state.lock();
                let gone = st.drop_dirty(0, u64::MAX, self.cell_bytes());
                st.content = None;
                st.customer = None;
                drop(st);
                self.dirty_changed(0, gone);
                return Err(e);
            }
        }
        Err(BucketError::Failed(format!("object {} is changed without end", inode.ino)))
    }

    /// After the last commit: nothing of a key stays in memory.
    pub(super) fn wipe_keys(&self) {
        self.unlocked.clear();
        self.unwrapped.lock().clear();
        for inode in self.table.all() {
            let mut st = inode.state.lock();
            st.content = None;
            st.customer = None;
        }
    }
}

/// Whether content in memory is in the catalog as well, so that it can be had from there again.
fn is_saved(st: &State) -> bool {
    let waits = !st.dirty.is_empty() || !st.quiet();
    let content = st.content.as_ref().is_none_or(|c| {
        let pending = c.stale || c.untold || c.map.is_dirty();
        !pending && c.writes.is_empty() && c.delta.is_empty() && c.freed.is_empty()
    });
    // A PUT that was begun and then failed is on no list, and nothing of it is to be kept.
    !waits && (content || !st.listed)
}

/// Whether a master key may be used. What the keyring does not say for certain is no reason to cut anything off.
fn is_usable(keys: &Keyring, key: &KeyId) -> bool {
    match keys.describe(key) {
        Ok(info) => info.state == KeyState::Enabled,
        Err(KeyError::NotFound(_) | KeyError::NoVersion { .. }) => false,
        Err(e) => {
            log::warn!("key {key}: {e}");
            true
        }
    }
}
