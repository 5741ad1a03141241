//! What a bucket asks of whoever keeps its master keys. The embedded keyring answers here; an external key service
//! would be another implementation.

use super::KeyError;
use super::keyring::Keyring;
use super::masters::{self, KeyInfo};
use crate::crypto::secret::Kek;
use crate::crypto::wrap::KekCtx;
use crate::types::{BucketId, KekId, KeyId};
use std::sync::atomic::Ordering;

/// A KEK just made, and how to keep it.
#[derive(Debug)]
pub struct NewKek {
    pub kek: Kek,
    /// The master key version that wraps it.
    pub version: u32,
    pub wrapped: Vec<u8>,
}

/// A KEK wrapped anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewrapped {
    pub version: u32,
    pub wrapped: Vec<u8>,
}

/// A key service. Calls may take a network round trip: never hold a lock over one.
pub trait KeyService: Send + Sync {
    /// Makes a KEK and wraps it under the newest version of `key`, bound to bucket and number. Registers first that the
    /// bucket hangs on the key.
    fn new_kek(&self, key: &KeyId, bucket: &BucketId, kek: KekId) -> Result<NewKek, KeyError>;

    /// Unwraps a KEK that `version` of `key` wraps.
    fn unwrap_kek(
        &self,
        key: &KeyId,
        version: u32,
        bucket: &BucketId,
        kek: KekId,
        wrapped: &[u8],
    ) -> Result<Kek, KeyError>;

    /// Wraps a KEK anew under the newest version of its key.
    fn rewrap_kek(
        &self,
        key: &KeyId,
        version: u32,
        bucket: &BucketId,
        kek: KekId,
        wrapped: &[u8],
    ) -> Result<Rewrapped, KeyError>;

    /// The CMK that has this id or alias.
    fn resolve(&self, name: &str) -> Result<KeyId, KeyError>;

    /// The service-managed key of a bucket, made on first use.
    fn managed_key(&self, bucket: &BucketId) -> Result<KeyId, KeyError>;

    /// The default service CMK, made on first use.
    fn default_cmk(&self) -> Result<KeyId, KeyError>;

    /// The number of the version that wraps now.
    fn newest_version(&self, key: &KeyId) -> Result<u32, KeyError>;

    /// What there is to tell about a key, whatever its state.
    fn describe(&self, key: &KeyId) -> Result<KeyInfo, KeyError>;

    /// Calls so far that made, unwrapped or rewrapped a key: what an external service bills.
    fn calls(&self) -> u64;
}

impl KeyService for Keyring {
    fn new_kek(&self, key: &KeyId, bucket: &BucketId, kek: KekId) -> Result<NewKek, KeyError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        // Durable before the KEK exists: no key is deleted under a bucket that is away (SEMANTICS 75).
        self.depend(bucket, key)?;
        let (version, wrapper) = self.read(|inner| {
            let version = masters::newest(&inner.snapshot, key)?;
            Ok((version, self.wrapper(inner, key, version)?))
        })?;
        let secret = Kek::random()?;
        let wrapped = wrapper.wrap(&KekCtx { bucket: *bucket, kek, key_id: key }, &secret)?;
        Ok(NewKek { kek: secret, version, wrapped })
    }

    fn unwrap_kek(
        &self,
        key: &KeyId,
        version: u32,
        bucket: &BucketId,
        kek: KekId,
        wrapped: &[u8],
    ) -> Result<Kek, KeyError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let wrapper = self.read(|inner| self.wrapper(inner, key, version))?;
        wrapper.unwrap(version, &KekCtx { bucket: *bucket, kek, key_id: key }, wrapped)
    }

    fn rewrap_kek(
        &self,
        key: &KeyId,
        version: u32,
        bucket: &BucketId,
        kek: KekId,
        wrapped: &[u8],
    ) -> Result<Rewrapped, KeyError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let (old, newest, new) = self.read(|inner| {
            let newest = masters::newest(&inner.snapshot, key)?;
            Ok((self.wrapper(inner, key, version)?, newest, self.wrapper(inner, key, newest)?))
        })?;
        let ctx = KekCtx { bucket: *bucket, kek, key_id: key };
        let secret = old.unwrap(version, &ctx, wrapped)?;
        Ok(Rewrapped { version: newest, wrapped: new.wrap(&ctx, &secret)? })
    }

    fn resolve(&self, name: &str) -> Result<KeyId, KeyError> {
        self.find_cmk(name)
    }

    fn managed_key(&self, bucket: &BucketId) -> Result<KeyId, KeyError> {
        self.service_key(Some(bucket))
    }

    fn default_cmk(&self) -> Result<KeyId, KeyError> {
        self.service_key(None)
    }

    fn newest_version(&self, key: &KeyId) -> Result<u32, KeyError> {
        self.read(|inner| masters::newest(&inner.snapshot, key))
    }

    fn describe(&self, key: &KeyId) -> Result<KeyInfo, KeyError> {
        self.read(|inner| masters::describe(&inner.snapshot, key))
    }

    fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }
}
