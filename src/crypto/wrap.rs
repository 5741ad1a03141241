//! Wraps a key under another (FORMAT.md, "Wrapped keys"). The wrap commits to its key and context, so a wrong key is
//! told from altered bytes, and no blob opens under two keys.

use super::CryptoError;
use super::gcm::{Aes256GcmBackend, Gcm, GcmBackend, TAG_BYTES};
use super::secret::{BucketKey, DataKey, Kek, MasterKey, PassKey, RootKey, fill_random};
use crate::types::{BucketId, KekId, KeyId, SealId, StoreId};
use hkdf::Hkdf;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

const VERSION: u8 = 1;
const SALT_BYTES: usize = 32;
const COMMITMENT_BYTES: usize = 32;
/// Bytes a wrapped key has beyond the key itself.
pub const WRAP_OVERHEAD: usize = 1 + SALT_BYTES + COMMITMENT_BYTES + TAG_BYTES;
/// Longest secret that is wrapped; a longer blob is not one of ours.
const SECRET_BYTES_MAX: usize = 64;

/// What a wrapped key is, part of the derivation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WrapLabel {
    Master,
    Bucket,
    Kek,
    Data,
    Export,
    /// What tells deleted material again.
    Verifier,
    /// The root key under what a passphrase gives.
    Root,
    /// The next root key under the present one, on its way to a mount.
    NextRoot,
    /// The root key in a recovery kit.
    Kit,
}

impl WrapLabel {
    fn as_bytes(self) -> &'static [u8] {
        match self {
            WrapLabel::Master => b"master",
            WrapLabel::Bucket => b"bucket",
            WrapLabel::Kek => b"kek",
            WrapLabel::Data => b"data",
            WrapLabel::Export => b"export",
            WrapLabel::Verifier => b"verifier",
            WrapLabel::Root => b"root",
            WrapLabel::NextRoot => b"next-root",
            WrapLabel::Kit => b"kit",
        }
    }
}

/// A key that may wrap others.
pub trait WrappingSecret {
    fn wrapping_bytes(&self) -> &[u8; 32];
}
macro_rules! wrapping {
    ($($name:ident),*) => {$(
        impl WrappingSecret for $name {
            fn wrapping_bytes(&self) -> &[u8; 32] { self.expose() }
        }
    )*};
}
wrapping!(RootKey, MasterKey, Kek, PassKey);

/// Wraps `secret` (at most 64 bytes) under `wrapping`.
pub fn wrap(
    wrapping: &impl WrappingSecret,
    label: WrapLabel,
    context: &[u8],
    secret: &[u8],
) -> Result<Vec<u8>, CryptoError> {
    let mut salt = [0u8; SALT_BYTES];
    fill_random(&mut salt)?;
    Ok(wrap_with_salt(wrapping.wrapping_bytes(), label, context, secret, &salt))
}

/// Unwraps what `wrap` made under the same key, label and context.
///
/// # Errors
/// `WrongKey`: another key, label or context. `Damaged`: this key wrapped it, and the bytes were altered. `Malformed`, `NewerVersion`.
pub fn unwrap(
    wrapping: &impl WrappingSecret,
    label: WrapLabel,
    context: &[u8],
    wrapped: &[u8],
) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
    let malformed = CryptoError::Malformed { what: "wrapped key", bytes: wrapped.len() };
    match wrapped.first() {
        Some(&VERSION) => {}
        Some(&v) if v > VERSION => return Err(CryptoError::NewerVersion(v)),
        _ => return Err(malformed),
    }
    if !(WRAP_OVERHEAD + 1..=WRAP_OVERHEAD + SECRET_BYTES_MAX).contains(&wrapped.len()) {
        return Err(malformed);
    }
    let (salt, rest) = wrapped[1..].split_first_chunk::<SALT_BYTES>().ok_or(malformed.clone())?;
    let (commitment, rest) = rest.split_first_chunk::<COMMITMENT_BYTES>().ok_or(malformed.clone())?;
    let (ciphertext, tag) = rest.split_last_chunk::<TAG_BYTES>().ok_or(malformed)?;
    let (key, expected) = derive(wrapping.wrapping_bytes(), label, context, salt);
    if !bool::from(expected.ct_eq(commitment)) {
        return Err(CryptoError::WrongKey);
    }
    let mut secret = Zeroizing::new(vec![0u8; ciphertext.len()]);
    Gcm::new(&key).open(&[0; 12], &[], ciphertext, tag, &mut secret)?;
    Ok(secret)
}

/// The zero nonce is safe because `salt`, and so the key, is fresh for each call.
fn wrap_with_salt(
    wrapping: &[u8; 32],
    label: WrapLabel,
    context: &[u8],
    secret: &[u8],
    salt: &[u8; SALT_BYTES],
) -> Vec<u8> {
    assert!((1..=SECRET_BYTES_MAX).contains(&secret.len()), "only keys are wrapped");
    let (key, commitment) = derive(wrapping, label, context, salt);
    let mut out = Vec::with_capacity(WRAP_OVERHEAD + secret.len());
    out.push(VERSION);
    out.extend_from_slice(salt);
    out.extend_from_slice(&commitment);
    let at = out.len();
    out.resize(at + secret.len(), 0);
    let tag = Gcm::new(&key).seal(&[0; 12], &[], secret, &mut out[at..]);
    out.extend_from_slice(&tag);
    out
}

/// (k, c) of FORMAT.md: the key that seals, and what shows that the right key is at hand.
fn derive(
    wrapping: &[u8; 32],
    label: WrapLabel,
    context: &[u8],
    salt: &[u8; SALT_BYTES],
) -> (Zeroizing<[u8; 32]>, [u8; COMMITMENT_BYTES]) {
    let mut both = Zeroizing::new([0u8; 64]);
    Hkdf::<Sha256>::new(Some(salt), wrapping)
        .expand_multi_info(&[b"ssefs/1/wrap\0", label.as_bytes(), &[0], context], &mut both[..])
        .expect("64 bytes are below HKDF's limit of 8160");
    let mut key = Zeroizing::new([0u8; 32]);
    key.copy_from_slice(&both[..32]);
    (key, both[32..].try_into().expect("32 of 64 bytes"))
}

/// What a wrapped data key is bound to. Neither bucket nor object: a sealed object can be shipped.
#[derive(Debug, Clone, Copy)]
pub struct DataCtx<'a> {
    pub seal_id: SealId,
    /// Method and cipher as their numbers in the catalog.
    pub method: u8,
    pub cipher: u8,
    pub key_id: &'a KeyId,
}

impl DataCtx<'_> {
    fn pack(&self) -> Vec<u8> {
        [&self.seal_id.0[..], &[self.method, self.cipher], self.key_id.0.as_bytes()].concat()
    }
}

/// What a wrapped KEK is bound to. The key's version is left out: a rewrap changes nothing below the KEK.
#[derive(Debug, Clone, Copy)]
pub struct KekCtx<'a> {
    pub bucket: BucketId,
    pub kek: KekId,
    pub key_id: &'a KeyId,
}

impl KekCtx<'_> {
    fn pack(&self) -> Vec<u8> {
        [&self.bucket.0[..], &self.kek.0.to_le_bytes(), self.key_id.0.as_bytes()].concat()
    }
}

fn master_context(key_id: &KeyId, version: u32) -> Vec<u8> {
    [key_id.0.as_bytes(), &[0], &version.to_le_bytes()].concat()
}

/// What a wrapped bucket key is bound to.
#[derive(Debug, Clone, Copy)]
pub struct BucketCtx<'a> {
    pub bucket: BucketId,
    pub store: StoreId,
    pub name: &'a str,
}

impl BucketCtx<'_> {
    fn pack(&self) -> Vec<u8> {
        [&self.bucket.0[..], &self.store.0, self.name.as_bytes()].concat()
    }
}

pub fn wrap_data_key(kek: &Kek, ctx: &DataCtx<'_>, key: &DataKey) -> Result<Vec<u8>, CryptoError> {
    wrap(kek, WrapLabel::Data, &ctx.pack(), key.expose())
}
pub fn unwrap_data_key(kek: &Kek, ctx: &DataCtx<'_>, wrapped: &[u8]) -> Result<DataKey, CryptoError> {
    DataKey::try_from(&unwrap(kek, WrapLabel::Data, &ctx.pack(), wrapped)?[..])
}
pub fn wrap_kek(master: &MasterKey, ctx: &KekCtx<'_>, key: &Kek) -> Result<Vec<u8>, CryptoError> {
    wrap(master, WrapLabel::Kek, &ctx.pack(), key.expose())
}
pub fn unwrap_kek(master: &MasterKey, ctx: &KekCtx<'_>, wrapped: &[u8]) -> Result<Kek, CryptoError> {
    Kek::try_from(&unwrap(master, WrapLabel::Kek, &ctx.pack(), wrapped)?[..])
}
pub fn wrap_bucket_key(root: &RootKey, ctx: &BucketCtx<'_>, key: &BucketKey) -> Result<Vec<u8>, CryptoError> {
    wrap(root, WrapLabel::Bucket, &ctx.pack(), key.expose())
}
pub fn unwrap_bucket_key(root: &RootKey, ctx: &BucketCtx<'_>, wrapped: &[u8]) -> Result<BucketKey, CryptoError> {
    BucketKey::try_from(&unwrap(root, WrapLabel::Bucket, &ctx.pack(), wrapped)?[..])
}
pub fn wrap_master(root: &RootKey, key_id: &KeyId, version: u32, key: &MasterKey) -> Result<Vec<u8>, CryptoError> {
    wrap(root, WrapLabel::Master, &master_context(key_id, version), key.expose())
}
pub fn unwrap_master(root: &RootKey, key_id: &KeyId, version: u32, wrapped: &[u8]) -> Result<MasterKey, CryptoError> {
    MasterKey::try_from(&unwrap(root, WrapLabel::Master, &master_context(key_id, version), wrapped)?[..])
}
/// What tells the deleted material of a version again.
pub fn wrap_verifier(
    root: &RootKey,
    key_id: &KeyId,
    version: u32,
    verifier: &[u8; 32],
) -> Result<Vec<u8>, CryptoError> {
    wrap(root, WrapLabel::Verifier, &master_context(key_id, version), verifier)
}
pub fn unwrap_verifier(
    root: &RootKey,
    key_id: &KeyId,
    version: u32,
    wrapped: &[u8],
) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
    unwrap(root, WrapLabel::Verifier, &master_context(key_id, version), wrapped)
}
/// A master key version for its recovery file, under a key of the owner's.
pub fn wrap_exported(seal: &MasterKey, key_id: &KeyId, version: u32, key: &MasterKey) -> Result<Vec<u8>, CryptoError> {
    wrap(seal, WrapLabel::Export, &master_context(key_id, version), key.expose())
}
pub fn unwrap_exported(
    seal: &MasterKey,
    key_id: &KeyId,
    version: u32,
    wrapped: &[u8],
) -> Result<MasterKey, CryptoError> {
    MasterKey::try_from(&unwrap(seal, WrapLabel::Export, &master_context(key_id, version), wrapped)?[..])
}

/// The root key under a passphrase's key, bound to its own id.
pub fn wrap_root(key: &PassKey, id: &[u8; 8], root: &RootKey) -> Result<Vec<u8>, CryptoError> {
    wrap(key, WrapLabel::Root, id, root.expose())
}
pub fn unwrap_root(key: &PassKey, id: &[u8; 8], wrapped: &[u8]) -> Result<RootKey, CryptoError> {
    RootKey::try_from(&unwrap(key, WrapLabel::Root, id, wrapped)?[..])
}
/// The next root key under the present one, bound to the next one's id.
pub fn wrap_next_root(root: &RootKey, next_id: &[u8; 8], next: &RootKey) -> Result<Vec<u8>, CryptoError> {
    wrap(root, WrapLabel::NextRoot, next_id, next.expose())
}
pub fn unwrap_next_root(root: &RootKey, next_id: &[u8; 8], wrapped: &[u8]) -> Result<RootKey, CryptoError> {
    RootKey::try_from(&unwrap(root, WrapLabel::NextRoot, next_id, wrapped)?[..])
}
/// The root key in a recovery kit, bound to the kit's number and id.
pub fn wrap_kit(key: &PassKey, kit: &[u8], root: &RootKey) -> Result<Vec<u8>, CryptoError> {
    wrap(key, WrapLabel::Kit, kit, root.expose())
}
pub fn unwrap_kit(key: &PassKey, kit: &[u8], wrapped: &[u8]) -> Result<RootKey, CryptoError> {
    RootKey::try_from(&unwrap(key, WrapLabel::Kit, kit, wrapped)?[..])
}

#[cfg(test)]
#[path = "wrap_tests.rs"]
mod tests;
