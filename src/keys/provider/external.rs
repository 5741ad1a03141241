//! One key of a service as ssefs uses it: calls are counted, a service that does not answer is left alone for a moment
//! so that nobody waits for it twice, and what it last said of the key's state is kept.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;

use super::{BLOB_BYTES_MAX, Context, Description, KeyRef, OneTime, Provider, ProviderError};

/// After a call that nobody answered, further ones fail at once for as long.
const REST_AFTER_SILENCE: Duration = Duration::from_secs(5);

/// Calls made to a service for one key by this process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Calls {
    pub generate: u64,
    pub unwrap: u64,
    pub describe: u64,
    /// How many of them failed.
    pub failed: u64,
}

/// What is known of a key's state.
#[derive(Default)]
struct Known {
    /// When it was last asked, and what came of it if that was not good.
    asked_at: Option<Instant>,
    trouble: Option<ProviderError>,
    /// The first time since the last good word that nothing good was heard.
    silent_since: Option<Instant>,
}

/// A key of a service, with its counters.
pub struct External {
    pub name: String,
    provider: Result<Box<dyn Provider>, ProviderError>,
    known: Mutex<Known>,
    /// Held by the one who asks for the key's state: others do with what is known.
    asking: Mutex<()>,
    generate: AtomicU64,
    unwrap: AtomicU64,
    describe: AtomicU64,
    failed: AtomicU64,
}

/// The state of a key as far as this process can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    Usable,
    /// Disabled, pending deletion or destroyed, by the word of the service.
    Revoked(ProviderError),
    /// The service cannot be heard, or refuses; since then.
    Unknown(Instant, ProviderError),
}

impl External {
    /// A reference that makes no sense fails with each call, and by name.
    pub fn new(key: &KeyRef) -> External {
        External::with(key.to_string(), key.open())
    }

    fn with(name: String, provider: Result<Box<dyn Provider>, ProviderError>) -> External {
        External {
            name,
            provider,
            known: Mutex::default(),
            asking: Mutex::new(()),
            generate: AtomicU64::new(0),
            unwrap: AtomicU64::new(0),
            describe: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }

    pub fn generate(&self, context: &Context<'_>) -> Result<(OneTime, Vec<u8>), ProviderError> {
        let (secret, blob) = self.call(&self.generate, |p| p.generate(context))?;
        if blob.is_empty() || blob.len() > BLOB_BYTES_MAX {
            return Err(ProviderError::Unreachable(format!("it gave a blob of {} bytes", blob.len())));
        }
        Ok((secret, blob))
    }

    pub fn unwrap(&self, context: &Context<'_>, blob: &[u8]) -> Result<OneTime, ProviderError> {
        self.call(&self.unwrap, |p| p.unwrap(context, blob))
    }

    pub fn describe(&self) -> Result<Description, ProviderError> {
        self.call(&self.describe, |p| p.describe())
    }

    pub fn calls(&self) -> Calls {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Calls {
            generate: of(&self.generate),
            unwrap: of(&self.unwrap),
            describe: of(&self.describe),
            failed: of(&self.failed),
        }
    }

    /// The key's state, asked anew when what is known is older than `age_max`. While one asks, the others take what is known.
    pub fn standing(&self, age_max: Duration) -> Standing {
        let fresh = |k: &Known| k.asked_at.is_some_and(|at| at.elapsed() < age_max);
        if !fresh(&self.known.lock())
            && let Some(_asking) = self.asking.try_lock()
            && !fresh(&self.known.lock())
        {
            let _ = self.describe();
        }
        let known = self.known.lock();
        match &known.trouble {
            Some(e) if e.revokes() => Standing::Revoked(e.clone()),
            Some(e) => Standing::Unknown(known.silent_since.unwrap_or_else(Instant::now), e.clone()),
            None => Standing::Usable,
        }
    }

    /// No lock is held while the service is asked.
    fn call<T>(
        &self,
        count: &AtomicU64,
        ask: impl FnOnce(&dyn Provider) -> Result<T, ProviderError>,
    ) -> Result<T, ProviderError> {
        let provider = self.provider.as_deref().map_err(Clone::clone)?;
        if let Some(silence) = self.resting() {
            return Err(silence);
        }
        count.fetch_add(1, Ordering::Relaxed);
        let begun = Instant::now();
        let answer = ask(provider);
        let now = Instant::now();
        let came = answer.as_ref().err().map_or_else(|| "done".into(), ProviderError::to_string);
        log::debug!("{}: {came} after {} ms", self.name, (now - begun).as_millis());
        let mut known = self.known.lock();
        match &answer {
            Ok(_) => *known = Known { asked_at: Some(now), ..Known::default() },
            Err(e) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                // A blob that does not open says nothing about the key.
                if !matches!(e, ProviderError::Altered(_) | ProviderError::WrongKey(_)) {
                    known.silent_since = known.silent_since.or(Some(begun));
                    known.asked_at = Some(now);
                    known.trouble = Some(e.clone());
                }
            }
        }
        answer
    }

    /// The error of a call a moment ago that nobody answered.
    fn resting(&self) -> Option<ProviderError> {
        let known = self.known.lock();
        let recent = known.asked_at.is_some_and(|at| at.elapsed() < REST_AFTER_SILENCE);
        known.trouble.clone().filter(|e| recent && matches!(e, ProviderError::Unreachable(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{BucketId, KekId, KeyId};
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    /// A service whose answers the test decides.
    #[derive(Default)]
    struct Fake {
        error: Mutex<Option<ProviderError>>,
        asked: AtomicU64,
        slow: AtomicBool,
    }

    impl Fake {
        fn answer(&self) -> Result<(), ProviderError> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            while self.slow.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            self.error.lock().clone().map_or(Ok(()), Err)
        }
    }

    impl Provider for Arc<Fake> {
        fn generate(&self, _: &Context<'_>) -> Result<(OneTime, Vec<u8>), ProviderError> {
            self.answer().map(|()| (OneTime::random().unwrap(), vec![1]))
        }
        fn unwrap(&self, _: &Context<'_>, _: &[u8]) -> Result<OneTime, ProviderError> {
            self.answer().map(|()| OneTime::random().unwrap())
        }
        fn describe(&self) -> Result<Description, ProviderError> {
            self.answer().map(|()| Description { key: "k".into(), detail: String::new() })
        }
    }

    fn fake() -> (Arc<Fake>, External) {
        let fake = Arc::new(Fake::default());
        let external = External::with("fake:k".into(), Ok(Box::new(Arc::clone(&fake))));
        (fake, external)
    }

    fn with<T>(f: impl FnOnce(&Context<'_>) -> T) -> T {
        f(&Context { bucket: &BucketId([0; 16]), kek: KekId(1), key: &KeyId("mk-1".into()) })
    }

    #[test]
    fn r54_calls_are_counted_by_kind_and_failures_beside_them() {
        let (fake, external) = fake();
        with(|c| external.generate(c)).unwrap();
        with(|c| external.unwrap(c, &[1])).unwrap();
        *fake.error.lock() = Some(ProviderError::Disabled("d".into()));
        with(|c| external.unwrap(c, &[1])).unwrap_err();
        external.describe().unwrap_err();
        assert_eq!(external.calls(), Calls { generate: 1, unwrap: 2, describe: 1, failed: 2 });
        assert_eq!(fake.asked.load(Ordering::Relaxed), 4);
    }

    #[test]
    fn r30_a_service_that_was_silent_is_left_alone_for_a_moment() {
        let (fake, external) = fake();
        *fake.error.lock() = Some(ProviderError::Unreachable("down".into()));
        for _ in 0..100 {
            assert!(matches!(external.describe(), Err(ProviderError::Unreachable(_))));
        }
        assert_eq!(fake.asked.load(Ordering::Relaxed), 1, "the others did not wait for it");
        // A word from the service is no silence: it is asked each time.
        *fake.error.lock() = Some(ProviderError::Disabled("d".into()));
        external.known.lock().asked_at = None;
        external.describe().unwrap_err();
        external.describe().unwrap_err();
        assert_eq!(fake.asked.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn r30_the_state_of_a_key_is_asked_once_an_interval() {
        let (fake, external) = fake();
        for _ in 0..10 {
            assert_eq!(external.standing(Duration::from_secs(3600)), Standing::Usable);
        }
        assert_eq!(fake.asked.load(Ordering::Relaxed), 1);
        *fake.error.lock() = Some(ProviderError::Gone("g".into()));
        assert_eq!(external.standing(Duration::ZERO), Standing::Revoked(ProviderError::Gone("g".into())));
        *fake.error.lock() = None;
        assert_eq!(external.standing(Duration::ZERO), Standing::Usable, "enabled again");
    }

    #[test]
    fn r30_silence_counts_from_its_first_moment_and_a_bad_blob_is_not_silence() {
        let (fake, external) = fake();
        external.describe().unwrap();
        *fake.error.lock() = Some(ProviderError::Altered("a".into()));
        with(|c| external.unwrap(c, &[1])).unwrap_err();
        assert_eq!(external.standing(Duration::from_secs(3600)), Standing::Usable);
        *fake.error.lock() = Some(ProviderError::Unreachable("down".into()));
        let Standing::Unknown(first, _) = external.standing(Duration::ZERO) else { panic!("it is down") };
        *fake.error.lock() = Some(ProviderError::Refused("no".into()));
        external.known.lock().asked_at = None;
        let Standing::Unknown(since, _) = external.standing(Duration::ZERO) else { panic!("it lets nobody in") };
        assert_eq!(since, first);
    }

    #[test]
    fn r30_whoever_looks_at_a_state_while_it_is_asked_for_does_not_wait() {
        let (fake, external) = fake();
        fake.slow.store(true, Ordering::Relaxed);
        std::thread::scope(|s| {
            s.spawn(|| external.standing(Duration::ZERO));
            while fake.asked.load(Ordering::Relaxed) == 0 {
                std::thread::yield_now();
            }
            assert_eq!(external.standing(Duration::ZERO), Standing::Usable);
            fake.slow.store(false, Ordering::Relaxed);
        });
        assert_eq!(fake.asked.load(Ordering::Relaxed), 1);
    }
}
