//! Bytes in, bytes out: keys, seals, wraps and tags exactly as FORMAT.md has them. The only things asked of the
//! operating system are getrandom(2) and locked memory for keys. Nothing here knows a file, a catalog or a bucket, and no secret is printed.

pub mod aead;
pub mod arena;
pub mod code;
pub mod customer;
pub mod derive;
pub mod gcm;
pub mod mac;
pub mod passphrase;
pub mod secret;
pub mod sm4;
pub mod wrap;

/// Why a cryptographic operation failed. No variant carries key material.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CryptoError {
    /// The commitment differs: this blob was wrapped by another key or for another context. Try the right key.
    #[error("wrapped by another key, or for another place")]
    WrongKey,
    /// The key is right and the tag is not: the bytes were altered.
    #[error("altered: the authentication tag does not match")]
    Damaged,
    /// Not something ssefs wrote: a length or a field that no version has.
    #[error("malformed {what}: {bytes} bytes")]
    Malformed { what: &'static str, bytes: usize },
    /// Written by a newer ssefs.
    #[error("format version {0} of a wrapped key is newer than this ssefs knows (1): upgrade ssefs")]
    NewerVersion(u8),
    /// getrandom(2) failed; no key and no nonce may be made.
    #[error("the kernel's random number generator failed: {0}")]
    Random(String),
    /// A passphrase's key needs more memory than there is.
    #[error("not enough memory to make a key of the passphrase: Argon2id needs {kib} KiB for it")]
    Memory { kib: u32 },
}
