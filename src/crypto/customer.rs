//! What is derived from a customer key (FORMAT.md, "Customer keys"), and the forms in which such a key is given. It is never
//! stored: with a random salt it makes a pseudorandom key, and from that come the key that wraps a data key and the values
//! that tell a right customer key from a wrong one. None of them can be computed from another.

use super::CryptoError;
use super::derive::expand;
use super::mac::Mac;
use super::secret::{CustomerKey, Kek, MacKey, fill_random};
use crate::types::SealId;
use base64ct::{Base64, Encoding};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Bytes of a customer key, of a salt and of a verifier.
pub const CUSTOMER_BYTES: usize = 32;
/// Characters of a customer key in base64 (RFC 4648, section 4).
const BASE64_BYTES: usize = 44;
/// The longest form of a key: base64 with a newline.
pub const CUSTOMER_TEXT_BYTES_MAX: usize = BASE64_BYTES + 1;

impl CustomerKey {
    /// A key as it is given: 32 raw bytes, or 44 characters of base64, of which a file may end with a newline.
    ///
    /// # Errors
    /// `Malformed` with the length for anything else.
    pub fn parse(given: &[u8]) -> Result<CustomerKey, CryptoError> {
        let malformed = CryptoError::Malformed { what: "customer key", bytes: given.len() };
        let mut key = Zeroizing::new([0u8; CUSTOMER_BYTES]);
        match given.strip_suffix(b"\n").filter(|t| t.len() == BASE64_BYTES).unwrap_or(given) {
            raw if raw.len() == CUSTOMER_BYTES => key.copy_from_slice(raw),
            text if text.len() == BASE64_BYTES => {
                let mut decoded = Zeroizing::new([0u8; CUSTOMER_BYTES + 1]);
                let bytes = Base64::decode(text, &mut decoded[..]).map_err(|_| malformed.clone())?;
                key.copy_from_slice(bytes.get(..CUSTOMER_BYTES).filter(|b| b.len() == bytes.len()).ok_or(malformed)?);
            }
            _ => return Err(malformed),
        }
        Ok(CustomerKey::take(&mut key))
    }
}

/// A customer key under one salt.
pub struct Salted(MacKey);

impl Salted {
    /// HKDF-Extract (RFC 5869, section 2.2).
    pub fn new(key: &CustomerKey, salt: &[u8; CUSTOMER_BYTES]) -> Salted {
        let mut mac = Mac::keyed(salt);
        mac.update(key.expose());
        Salted(MacKey::take(&mut Zeroizing::new(mac.finish())))
    }

    /// With a salt of its own.
    ///
    /// # Errors
    /// The kernel has no random numbers.
    pub fn fresh(key: &CustomerKey) -> Result<(Salted, [u8; CUSTOMER_BYTES]), CryptoError> {
        let mut salt = [0u8; CUSTOMER_BYTES];
        fill_random(&mut salt)?;
        Ok((Salted::new(key, &salt), salt))
    }

    /// The key that wraps the data key of one PUT.
    pub fn kek(&self, seal: &SealId) -> Kek {
        Kek::take(&mut expand(self.0.expose(), "customer-kek", &[&seal.0]))
    }

    /// What shows that this is the customer key of a PUT.
    pub fn verifier(&self, seal: &SealId) -> [u8; CUSTOMER_BYTES] {
        *expand(self.0.expose(), "customer-verifier", &[&seal.0])
    }

    /// What shows that this is the customer key that was asked for: for one file, or for new ones in one directory.
    pub fn request_verifier(&self, ino: u64) -> [u8; CUSTOMER_BYTES] {
        *expand(self.0.expose(), "customer-request", &[&ino.to_le_bytes()])
    }
}

/// Whether two verifiers are the same, in constant time.
#[must_use]
pub fn same(a: &[u8; CUSTOMER_BYTES], b: &[u8; CUSTOMER_BYTES]) -> bool {
    a.ct_eq(b).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::to_hex;

    #[test]
    fn r26_derivations_have_the_pinned_bytes() {
        // Computed with Python's hmac module from the equations in FORMAT.md.
        let salted = Salted::new(&CustomerKey::take(&mut [7; 32]), &[8; 32]);
        let seal = SealId([6; 16]);
        assert_eq!(to_hex(salted.0.expose()), "90d19389147b3c0974559add8334ac66bb4e3a389586101182249877d01ea362");
        assert_eq!(
            to_hex(salted.kek(&seal).expose()),
            "184081819e98ac1b9e66a3973015ba4e0cac8a9d5cd29ec97b8602fe3f49e100"
        );
        assert_eq!(to_hex(&salted.verifier(&seal)), "9d6c41cad0a7343247e05b4d0c08d3a8062cffdf1ef6def14f5fe08c41e7b14d");
        assert_eq!(
            to_hex(&salted.request_verifier(0x0102030405)),
            "cb96e30e0a269a0cf56a85b5d83e82b428e7eef9d00d843b8ddb33133af86cbd"
        );
    }

    #[test]
    fn r26_the_same_key_has_other_verifiers_under_another_salt_and_for_another_put() {
        let key = CustomerKey::take(&mut [7; 32]);
        let ((a, salt_a), (b, salt_b)) = (Salted::fresh(&key).unwrap(), Salted::fresh(&key).unwrap());
        assert_ne!(salt_a, salt_b);
        let (one, two) = (SealId([1; 16]), SealId([2; 16]));
        assert!(!same(&a.verifier(&one), &b.verifier(&one)) && !same(&a.verifier(&one), &a.verifier(&two)));
        assert!(same(&a.verifier(&one), &Salted::new(&key, &salt_a).verifier(&one)));
        assert!(!same(&a.request_verifier(1), &a.request_verifier(2)));
    }

    #[test]
    fn a_key_is_32_raw_bytes_or_44_characters_of_base64_and_nothing_else() {
        let raw = [0xfbu8; 32];
        let text = b"+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/s=";
        for good in [&raw[..], text, &[&text[..], b"\n"].concat()] {
            assert_eq!(CustomerKey::parse(good).unwrap().expose(), &raw);
        }
        // 32 bytes that end with a newline are 32 bytes.
        let mut ends = raw;
        ends[31] = b'\n';
        assert_eq!(CustomerKey::parse(&ends).unwrap().expose(), &ends);
        let hex = [b'a'; 64];
        let unpadded = [b'A'; 44];
        let url = [&b"-_"[..], &text[2..]].concat();
        for bad in [&[][..], &raw[1..], &[0; 33], &text[..43], &[&text[..], b"\r\n"].concat(), &hex, &unpadded, &url] {
            let e = CustomerKey::parse(bad).unwrap_err();
            assert_eq!(e, CryptoError::Malformed { what: "customer key", bytes: bad.len() });
        }
    }
}
