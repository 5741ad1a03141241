//! Secret bytes, a type for each purpose so that one key cannot be passed where another belongs. They live in the
//! arena (locked memory; a move copies a pointer, not the key), are wiped on drop, borrowed only, and never printed.

use super::CryptoError;
use super::arena::Slot;
use std::fmt;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Fills `out` from getrandom(2). Never from a pool in user space: a resumed virtual machine would repeat it.
pub fn fill_random(out: &mut [u8]) -> Result<(), CryptoError> {
    getrandom::fill(out).map_err(|e| CryptoError::Random(e.to_string()))
}

/// 16 random bytes, for ids.
pub fn random_id() -> Result<[u8; 16], CryptoError> {
    let mut id = [0u8; 16];
    fill_random(&mut id)?;
    Ok(id)
}

macro_rules! secret {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        pub struct $name(Slot);

        impl $name {
            /// Takes `bytes` and wipes them where they came from.
            pub fn take(bytes: &mut [u8; 32]) -> Self {
                let mut key = Slot::new();
                key.get_mut().copy_from_slice(bytes);
                bytes.zeroize();
                $name(key)
            }

            /// The key itself. Only for the call that uses it: do not keep a copy.
            pub fn expose(&self) -> &[u8; 32] {
                self.0.get()
            }

            /// Whether it is the same key, in constant time.
            pub fn is_same(&self, other: &Self) -> bool {
                self.expose().ct_eq(other.expose()).into()
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = CryptoError;
            fn try_from(bytes: &[u8]) -> Result<Self, CryptoError> {
                if bytes.len() != 32 {
                    return Err(CryptoError::Malformed { what: stringify!($name), bytes: bytes.len() });
                }
                let mut key = Slot::new();
                key.get_mut().copy_from_slice(bytes);
                Ok($name(key))
            }
        }

        // The slot wipes itself.
        impl ZeroizeOnDrop for $name {}

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(..)"))
            }
        }
    };
}

/// The keys that are made at random; all others are derived from these.
macro_rules! random {
    ($($name:ident),*) => {$(
        impl $name {
            /// A new one from getrandom(2).
            pub fn random() -> Result<Self, CryptoError> {
                let mut key = Slot::new();
                fill_random(key.get_mut())?;
                Ok($name(key))
            }
        }
    )*};
}

secret!(
    /// The root key: wraps master key versions and bucket keys.
    RootKey
);
secret!(
    /// One version of a master key: wraps KEKs.
    MasterKey
);
secret!(
    /// K_bucket: settings, log and plain chunks of one bucket.
    BucketKey
);
secret!(
    /// A key that wraps the data keys of one bucket.
    Kek
);
secret!(
    /// Seals (or, of plain objects, authenticates) chunks of one opening and window.
    ChunkKey
);
secret!(
    /// Authenticates the map of one object.
    MapKey
);
secret!(
    /// Authenticates rows or records.
    MacKey
);
secret!(
    /// What Argon2id makes of a passphrase: wraps the root key.
    PassKey
);
secret!(
    /// A customer's own key (SSE-C): 256 bits, given and never stored.
    CustomerKey
);
random!(RootKey, MasterKey, BucketKey, Kek);

/// The key of one PUT: 32 bytes, or 16 for SM4.
pub struct DataKey {
    slot: Slot,
    bytes: u8,
}

impl DataKey {
    /// A new key of 32 bytes (AES-256).
    pub fn random() -> Result<Self, CryptoError> {
        Self::random_of(32)
    }

    /// A new key of 16 bytes (SM4).
    pub fn random_sm4() -> Result<Self, CryptoError> {
        Self::random_of(16)
    }

    fn random_of(bytes: u8) -> Result<Self, CryptoError> {
        let mut slot = Slot::new();
        fill_random(&mut slot.get_mut()[..bytes.into()])?;
        Ok(DataKey { slot, bytes })
    }

    /// The key itself. Only for the call that uses it: do not keep a copy.
    pub fn expose(&self) -> &[u8] {
        &self.slot.get()[..self.bytes.into()]
    }
}

impl TryFrom<&[u8]> for DataKey {
    type Error = CryptoError;
    fn try_from(bytes: &[u8]) -> Result<Self, CryptoError> {
        match bytes.len() {
            n @ (16 | 32) => {
                let mut slot = Slot::new();
                slot.get_mut()[..n].copy_from_slice(bytes);
                Ok(DataKey { slot, bytes: n as u8 })
            }
            n => Err(CryptoError::Malformed { what: "DataKey", bytes: n }),
        }
    }
}

// The slot wipes itself.
impl ZeroizeOnDrop for DataKey {}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_of_every_secret_prints_its_name_and_nothing_else() {
        macro_rules! check {
            ($($t:ident),*) => {$(
                let mut bytes = [0xabu8; 32];
                assert_eq!(format!("{:?}", $t::take(&mut bytes)), concat!(stringify!($t), "(..)"));
                assert_eq!(bytes, [0; 32], "the source is wiped");
            )*};
        }
        check!(RootKey, MasterKey, BucketKey, Kek, ChunkKey, MapKey, MacKey, CustomerKey, PassKey);
        assert_eq!(format!("{:#?}", DataKey::random_sm4().unwrap()), "DataKey(..)");
    }

    #[test]
    fn random_keys_differ_and_have_their_size() {
        let (a, b) = (Kek::random().unwrap(), Kek::random().unwrap());
        assert_ne!(a.expose(), b.expose());
        assert_ne!(a.expose(), &[0; 32]);
        assert_eq!(DataKey::random().unwrap().expose().len(), 32);
        assert_eq!(DataKey::random_sm4().unwrap().expose().len(), 16);
    }

    #[test]
    fn keys_of_a_wrong_size_are_refused() {
        for n in [0usize, 15, 17, 24, 31, 33] {
            assert!(DataKey::try_from(&vec![1u8; n][..]).is_err());
            assert!(Kek::try_from(&vec![1u8; n][..]).is_err());
        }
    }
}
