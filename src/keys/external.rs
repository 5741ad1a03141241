//! Master keys that lie with an external service: made, rotated, asked for their state, and used. What wraps a KEK is
//! then a one-time secret that only the service can give back: `2 | blob length u16 | blob | wrap(secret, "kek")`.
//! The keyring is never locked while a service is asked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::KeyError;
use super::keyring::{Inner, Keyring};
use super::masters::{self, KeyKind, KeyOrigin, KeyState};
use super::provider::{self, BLOB_BYTES_MAX, Calls, Context, Description, External, KeyRef, ProviderError, Service};
use super::rows::{MasterRow, Snapshot};
use crate::crypto::CryptoError;
use crate::crypto::secret::{Kek, MasterKey};
use crate::crypto::wrap::{self, KekCtx};
use crate::types::{BucketId, KekId, KeyId};

/// First byte of a KEK that an external service's secret wraps.
const EXTERNAL: u8 = 2;

/// What was made, or found, for a new key.
#[derive(Debug)]
pub struct Settled {
    pub id: KeyId,
    pub description: Description,
    /// Whether the service's key was made for it.
    pub made: bool,
}

/// Whether a master key may be used now, wherever it lies.
#[derive(Debug)]
pub enum Standing {
    Usable,
    /// Disabled, pending deletion or destroyed: what hangs on it is to be cut off.
    Revoked(KeyError),
    /// The keyring or the service says nothing, or lets nobody in, since then: cut off after a time of grace.
    Unknown(Instant, KeyError),
}

/// What a keyring remembers of external services.
#[derive(Default)]
pub(super) struct Externals {
    /// Keys that were asked for, by URI.
    keys: Mutex<BTreeMap<String, Arc<External>>>,
    /// Since when the keyring itself cannot be read.
    lost: Mutex<Option<Instant>>,
}

/// What wraps and unwraps KEKs: one version of a master key.
pub(super) enum Wrapper {
    Local(Arc<MasterKey>),
    External { key: Arc<External>, name: String },
}

impl Wrapper {
    pub fn wrap(&self, ctx: &KekCtx<'_>, kek: &Kek) -> Result<Vec<u8>, KeyError> {
        let (external, name) = match self {
            Wrapper::Local(master) => return Ok(wrap::wrap_kek(master, ctx, kek)?),
            Wrapper::External { key, name } => (key, name),
        };
        let (secret, blob) = external.generate(&context(ctx)).map_err(|e| failed(name, external, e))?;
        let wrapped = wrap::wrap_kek(&secret, ctx, kek)?;
        // The blob's length is bounded by whoever gave it.
        Ok([&[EXTERNAL][..], &(blob.len() as u16).to_le_bytes(), &blob, &wrapped].concat())
    }

    pub fn unwrap(&self, version: u32, ctx: &KekCtx<'_>, wrapped: &[u8]) -> Result<Kek, KeyError> {
        let of_kek = |source| {
            let (bucket, kek, key) = (ctx.bucket, ctx.kek.0, ctx.key_id);
            KeyError::Unwrap {
                what: format!("KEK {kek} of bucket {bucket}, under version {version} of key {key}"),
                source,
            }
        };
        match self {
            // What a service's secret wraps does not belong to a key that lies here.
            Wrapper::Local(_) if wrapped.first() == Some(&EXTERNAL) => {
                Err(of_kek(CryptoError::Malformed { what: "wrapped KEK", bytes: wrapped.len() }))
            }
            Wrapper::Local(master) => wrap::unwrap_kek(master, ctx, wrapped).map_err(of_kek),
            Wrapper::External { key, name } => {
                let (blob, rest) = split(wrapped).map_err(of_kek)?;
                let secret = key.unwrap(&context(ctx), blob).map_err(|e| failed(name, key, e))?;
                wrap::unwrap_kek(&secret, ctx, rest).map_err(of_kek)
            }
        }
    }
}

/// Blob and wrap of an external key's KEK.
fn split(wrapped: &[u8]) -> Result<(&[u8], &[u8]), CryptoError> {
    let malformed = CryptoError::Malformed { what: "wrapped KEK of an external key", bytes: wrapped.len() };
    match wrapped {
        [EXTERNAL, low, high, rest @ ..] => {
            let length = usize::from(u16::from_le_bytes([*low, *high]));
            if !(1..=BLOB_BYTES_MAX).contains(&length) {
                return Err(malformed);
            }
            rest.split_at_checked(length).ok_or(malformed)
        }
        [version, ..] if *version > EXTERNAL => Err(CryptoError::NewerVersion(*version)),
        _ => Err(malformed),
    }
}

fn context<'a>(ctx: &'a KekCtx<'_>) -> Context<'a> {
    Context { bucket: &ctx.bucket, kek: ctx.kek, key: ctx.key_id }
}

fn failed(name: &str, key: &External, source: ProviderError) -> KeyError {
    KeyError::Service { key: name.to_owned(), service: brief(&key.name).to_owned(), source }
}

/// Before anything hangs on a key: it wraps and unwraps.
fn proven(there: &KeyRef, name: &str) -> Result<(), KeyError> {
    there.prove().map_err(|source| refused(name, &there.to_string(), source))
}

/// An error of a service on the way to a key that is not kept yet.
fn refused(name: &str, uri: &str, source: ProviderError) -> KeyError {
    match source {
        ProviderError::Setup(_) => KeyError::BadProvider(source),
        source => KeyError::Service { key: name.to_owned(), service: brief(uri).to_owned(), source },
    }
}

/// A URI without what is after the question mark: where its PIN and module lie concerns nobody else.
fn brief(uri: &str) -> &str {
    uri.split('?').next().unwrap_or(uri)
}

/// The reference of one version of a key; None for a key that lies here.
fn reference(s: &Snapshot, row: &MasterRow, version: u32) -> Result<Option<KeyRef>, KeyError> {
    let Some(provider) = &row.provider else { return Ok(None) };
    let unknown = || KeyError::UnknownProvider { key: masters::name_of(row), provider: provider.clone() };
    let service = Service::parse(provider).ok_or_else(unknown)?;
    let of_version = s.versions.get(&(row.id.clone(), version));
    let rest = of_version
        .and_then(|v| v.provider_ref.clone())
        .ok_or_else(|| KeyError::NoVersion { key: row.id.0.clone(), version })?;
    Ok(Some(KeyRef { service, rest }))
}

impl Keyring {
    /// Makes a customer master key that lies with a service: `pkcs11:...` or `aws-kms:...`. The service is asked first.
    pub fn create_external_key(&self, alias: Option<&str>, description: &str, uri: &str) -> Result<Settled, KeyError> {
        let free = |s: &Snapshot| alias.map_or(Ok(()), |a| masters::alias_is_free(s, a, None));
        masters::check_names(alias, Some(description))?;
        // Before a key is made in a token for nothing.
        self.read(|inner| free(&inner.snapshot))?;
        let asked = KeyRef::parse(uri).map_err(KeyError::BadProvider)?;
        let name = alias.unwrap_or("to be made");
        let (there, told, made) = asked.settle(true).map_err(|source| refused(name, uri, source))?;
        let id = proven(&there, name).and_then(|()| {
            self.change(|c| {
                free(c.snapshot)?;
                let id = masters::new_id()?;
                masters::put_master(
                    c,
                    &MasterRow {
                        id: id.clone(),
                        alias: alias.map(str::to_owned),
                        kind: KeyKind::Cmk,
                        bucket: None,
                        description: description.to_owned(),
                        state: KeyState::Enabled,
                        created: self.now(),
                        provider: Some(there.service.as_str().into()),
                        provider_ref: Some(there.rest.clone()),
                        origin: KeyOrigin::Generated,
                        rotate_days: Some(0),
                        delete_after: None,
                        destroyed: None,
                        due_seen: None,
                    },
                )?;
                masters::put_external_version(c, &id, 1, &there.rest, self.now())?;
                Ok(id)
            })
        });
        let id = id.inspect_err(|_| {
            if made {
                there.unmake();
            }
        })?;
        Ok(Settled { id, description: told, made })
    }

    /// Whether a key lies with an external service.
    pub fn is_external(&self, key: &KeyId) -> Result<bool, KeyError> {
        self.read(|inner| Ok(inner.snapshot.masters.get(key).is_some_and(|row| row.provider.is_some())))
    }

    /// A new version of an external key, where rotating it is not the service's own business.
    pub(super) fn rotate_external(&self, key: &KeyId) -> Result<u32, KeyError> {
        let (newest, there, name) = self.read(|inner| {
            let row = masters::usable(&inner.snapshot, key)?;
            let newest = masters::newest(&inner.snapshot, key)?;
            Ok((newest, reference(&inner.snapshot, row, newest)?, masters::name_of(row)))
        })?;
        let there = there.ok_or_else(|| KeyError::NoVersion { key: key.0.clone(), version: newest })?;
        let next = there.rotate().map_err(|source| refused(&name, &there.to_string(), source))?;
        let made = proven(&next, &name).and_then(|()| {
            self.change(|c| {
                let row = masters::usable(c.snapshot, key)?.clone();
                // Another process may have been faster: its version stays, ours comes after it.
                let version = masters::newest(c.snapshot, key)? + 1;
                masters::put_external_version(c, key, version, &next.rest, self.now())?;
                masters::put_master(c, &MasterRow { provider_ref: Some(next.rest.clone()), ..row })?;
                Ok(version)
            })
        });
        made.inspect_err(|_| next.unmake())
    }

    /// Mean time of wrapping and of unwrapping a KEK under a key, over this many calls of each; an external service counts
    /// and bills them. Nothing is kept.
    pub fn time_calls(&self, key: &KeyId, calls: u32) -> Result<(Duration, Duration), KeyError> {
        let (version, wrapper) = self.read(|inner| {
            let version = masters::newest(&inner.snapshot, key)?;
            Ok((version, self.wrapper(inner, key, version)?))
        })?;
        let bucket = BucketId(crate::crypto::secret::random_id()?);
        let (ctx, kek) = (KekCtx { bucket, kek: KekId(0), key_id: key }, Kek::random()?);
        let (mut wrapping, mut unwrapping) = (Duration::ZERO, Duration::ZERO);
        for _ in 0..calls.max(1) {
            let begun = Instant::now();
            let wrapped = wrapper.wrap(&ctx, &kek)?;
            wrapping += begun.elapsed();
            let begun = Instant::now();
            wrapper.unwrap(version, &ctx, &wrapped)?;
            unwrapping += begun.elapsed();
        }
        Ok((wrapping / calls.max(1), unwrapping / calls.max(1)))
    }

    /// What wraps under this version of a usable key.
    pub(super) fn wrapper(&self, inner: &mut Inner, key: &KeyId, version: u32) -> Result<Wrapper, KeyError> {
        let row = masters::usable(&inner.snapshot, key)?;
        match reference(&inner.snapshot, row, version)? {
            Some(there) => {
                let name = masters::name_of(row);
                Ok(Wrapper::External { key: self.external(&there), name })
            }
            None => Ok(Wrapper::Local(self.master(inner, key, version)?)),
        }
    }

    fn external(&self, there: &KeyRef) -> Arc<External> {
        let mut known = self.externals.keys.lock();
        Arc::clone(known.entry(there.to_string()).or_insert_with(|| Arc::new(External::new(there))))
    }

    /// The newest version of an external key, with the name people know it by.
    fn newest_external(&self, key: &KeyId) -> Result<Option<(Arc<External>, String)>, KeyError> {
        let found = self.read(|inner| {
            let row = masters::find(&inner.snapshot, key)?;
            let newest = masters::newest(&inner.snapshot, key)?;
            Ok(reference(&inner.snapshot, row, newest)?.map(|there| (there, masters::name_of(row))))
        })?;
        Ok(found.map(|(there, name)| (self.external(&there), name)))
    }

    /// Asks the service of an external key about it, now; None for a key that lies here.
    pub fn ask_service(&self, key: &KeyId) -> Result<Option<Result<Description, KeyError>>, KeyError> {
        let Some((external, name)) = self.newest_external(key)? else { return Ok(None) };
        Ok(Some(external.describe().map_err(|e| failed(&name, &external, e))))
    }

    /// Whether what hangs on a key may go on being used. An external service is asked when its last word is older than
    /// `age_max`; that may take as long as its time limit, so ask from a thread that nobody waits for. A service that
    /// is silent is `Unknown` since its last good word.
    pub fn check(&self, key: &KeyId, age_max: Duration) -> Standing {
        let usable = self.read(|inner| masters::usable(&inner.snapshot, key).map(drop));
        match usable.and_then(|()| self.newest_external(key)) {
            Ok(there) => {
                *self.externals.lost.lock() = None;
                let Some((external, name)) = there else { return Standing::Usable };
                match external.standing(age_max) {
                    provider::Standing::Usable => Standing::Usable,
                    provider::Standing::Revoked(e) => Standing::Revoked(failed(&name, &external, e)),
                    provider::Standing::Unknown(since, e) => Standing::Unknown(since, failed(&name, &external, e)),
                }
            }
            Err(e) if e.code().is_some() => {
                *self.externals.lost.lock() = None;
                Standing::Revoked(e)
            }
            // The keyring itself is gone, damaged or busy.
            Err(e) => Standing::Unknown(*self.externals.lost.lock().get_or_insert_with(Instant::now), e),
        }
    }

    /// Calls to external services that this process has made, by key there (without module and PIN).
    pub fn external_calls(&self) -> Vec<(String, Calls)> {
        self.externals.keys.lock().values().map(|e| (brief(&e.name).to_owned(), e.calls())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wrapped_form_of_an_external_kek_is_parsed_without_trust() {
        assert_eq!(split(&[2, 3, 0, 7, 8, 9, 1, 1]), Ok((&[7, 8, 9][..], &[1, 1][..])));
        for bad in [&[][..], &[1], &[2], &[2, 0], &[2, 0, 0, 1], &[2, 4, 0, 1, 2, 3], &[2, 255, 255, 0], &[0, 1, 0, 1]]
        {
            assert!(matches!(split(bad), Err(CryptoError::Malformed { .. })), "{bad:?}");
        }
        assert_eq!(split(&[3, 1, 0, 1]), Err(CryptoError::NewerVersion(3)));
    }
}
