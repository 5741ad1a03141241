//! HMAC-SHA-256 (RFC 2104) over rows, records and maps. Callers give canonical bytes: wherever two fields of
//! variable length meet, they are length-prefixed by the caller (`Mac::field` does it).

use super::secret::{MacKey, MapKey};
use hmac::{Hmac, KeyInit, Mac as _};
use sha2::Sha256;
use subtle::ConstantTimeEq;

/// Bytes of a tag.
pub const TAG_BYTES: usize = 32;

/// A key that may authenticate.
pub trait MacSecret {
    fn mac_bytes(&self) -> &[u8; 32];
}
impl MacSecret for MacKey {
    fn mac_bytes(&self) -> &[u8; 32] {
        self.expose()
    }
}
impl MacSecret for MapKey {
    fn mac_bytes(&self) -> &[u8; 32] {
        self.expose()
    }
}

/// A tag in the making, so that large inputs need not be put together first.
pub struct Mac(Hmac<Sha256>);

impl Mac {
    pub fn new(key: &impl MacSecret) -> Self {
        Self::keyed(key.mac_bytes())
    }

    /// HMAC takes keys of any length; derive.rs has some of 16 bytes.
    pub(super) fn keyed(key: &[u8]) -> Self {
        Mac(Hmac::new_from_slice(key).expect("HMAC takes keys of any length"))
    }

    /// Appends `bytes` as they are.
    pub fn update(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update(bytes);
        self
    }

    /// Appends `bytes` behind their length as u32.
    pub fn field(&mut self, bytes: &[u8]) -> &mut Self {
        let length = u32::try_from(bytes.len()).expect("a field of 4 GiB is no field");
        self.update(&length.to_le_bytes()).update(bytes)
    }

    pub fn finish(self) -> [u8; TAG_BYTES] {
        self.0.finalize().into_bytes().into()
    }

    /// Whether `expected` is the tag, in constant time. A tag of another length never is.
    #[must_use]
    pub fn verify(self, expected: &[u8]) -> bool {
        self.finish().ct_eq(expected).into()
    }
}

/// The tag of `parts`, one behind the other.
pub fn tag(key: &impl MacSecret, parts: &[&[u8]]) -> [u8; TAG_BYTES] {
    over(key, parts).finish()
}

/// Whether `expected` is the tag of `parts`, in constant time.
#[must_use]
pub fn verify(key: &impl MacSecret, parts: &[&[u8]], expected: &[u8]) -> bool {
    over(key, parts).verify(expected)
}

fn over(key: &impl MacSecret, parts: &[&[u8]]) -> Mac {
    let mut mac = Mac::new(key);
    for part in parts {
        mac.update(part);
    }
    mac
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::to_hex;

    fn hmac(key: &[u8], data: &[u8]) -> String {
        let mut mac = Mac::keyed(key);
        mac.update(data);
        to_hex(&mac.finish())
    }

    #[test]
    fn rfc_4231_vectors_hold() {
        let cases: [(Vec<u8>, Vec<u8>, &str); 5] = [
            (vec![0x0b; 20], b"Hi There".to_vec(), "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
            (
                b"Jefe".to_vec(),
                b"what do ya want for nothing?".to_vec(),
                "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
            ),
            (vec![0xaa; 20], vec![0xdd; 50], "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"),
            ((1..=25).collect(), vec![0xcd; 50], "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b"),
            (
                vec![0xaa; 131],
                b"Test Using Larger Than Block-Size Key - Hash Key First".to_vec(),
                "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
            ),
        ];
        for (key, data, want) in cases {
            assert_eq!(hmac(&key, &data), want);
        }
    }

    #[test]
    fn a_tag_does_not_depend_on_how_its_input_is_cut() {
        let key = MacKey::take(&mut [7; 32]);
        let whole = tag(&key, &[b"abcdef"]);
        assert_eq!(whole, tag(&key, &[b"ab", b"", b"cdef"]));
        assert!(verify(&key, &[b"abc", b"def"], &whole));
    }

    #[test]
    fn no_other_tag_key_or_length_verifies() {
        let key = MacKey::take(&mut [7; 32]);
        let good = tag(&key, &[b"abcdef"]);
        for i in 0..32 {
            let mut bad = good;
            bad[i] ^= 1;
            assert!(!verify(&key, &[b"abcdef"], &bad));
        }
        assert!(!verify(&key, &[b"abcdef"], &good[..31]));
        assert!(!verify(&key, &[b"abcdef"], &[]));
        assert!(!verify(&MacKey::take(&mut [8; 32]), &[b"abcdef"], &good));
    }

    #[test]
    fn fields_cannot_slide_into_each_other() {
        let key = MapKey::take(&mut [7; 32]);
        let of = |a: &[u8], b: &[u8]| {
            let mut mac = Mac::new(&key);
            mac.field(a).field(b);
            mac.finish()
        };
        assert_ne!(of(b"ab", b"c"), of(b"a", b"bc"));
    }
}
