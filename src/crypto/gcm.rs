//! AES-256-GCM (NIST SP 800-38D) with 96-bit nonces and 128-bit tags, from two independent libraries behind one
//! trait: aws-lc is the fast one, the pure Rust crate stands in where it is not built, and each is the other's oracle.

use super::CryptoError;
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{AeadInOut, Aes256Gcm, KeyInit};

/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 12;
/// Bytes of an authentication tag.
pub const TAG_BYTES: usize = 16;

/// One key of a block cipher in GCM, ready to seal and open. `ciphertext` and `content` always have one length; callers
/// keep that, and no content passes 2^36 - 32 bytes.
pub trait GcmBackend: Send + Sync + Sized {
    /// Seals `content` into `ciphertext` and returns the tag.
    fn seal(&self, nonce: &[u8; 12], aad: &[u8], content: &[u8], ciphertext: &mut [u8]) -> [u8; TAG_BYTES];

    /// Opens `ciphertext` into `content`, which holds nothing but zeroes after `Damaged`.
    fn open(
        &self,
        nonce: &[u8; 12],
        aad: &[u8],
        ciphertext: &[u8],
        tag: &[u8; TAG_BYTES],
        content: &mut [u8],
    ) -> Result<(), CryptoError>;
}

/// AES-256 of one library.
pub trait Aes256GcmBackend: GcmBackend {
    /// The library's name, for the log and for benchmarks.
    const NAME: &'static str;

    fn new(key: &[u8; 32]) -> Self;
}

/// The backend of this build.
#[cfg(feature = "aws-lc")]
pub type Gcm = AwsLc;
#[cfg(not(feature = "aws-lc"))]
pub type Gcm = PureRust;

/// AES-256-GCM of aws-lc.
#[cfg(feature = "aws-lc")]
pub struct AwsLc(aws_lc_rs::aead::LessSafeKey);

#[cfg(feature = "aws-lc")]
impl Aes256GcmBackend for AwsLc {
    const NAME: &'static str = "aws-lc";

    fn new(key: &[u8; 32]) -> Self {
        use aws_lc_rs::aead::{AES_256_GCM, LessSafeKey, UnboundKey};
        AwsLc(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("32 bytes are an AES-256 key")))
    }
}

#[cfg(feature = "aws-lc")]
impl GcmBackend for AwsLc {
    fn seal(&self, nonce: &[u8; 12], aad: &[u8], content: &[u8], ciphertext: &mut [u8]) -> [u8; TAG_BYTES] {
        use aws_lc_rs::aead::{Aad, Nonce};
        let mut tag = [0u8; TAG_BYTES];
        self.0
            .seal_out_of_place_scatter(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(aad),
                content,
                ciphertext,
                &[],
                &mut tag,
            )
            .expect("lengths are equal and below GCM's limit");
        tag
    }

    fn open(
        &self,
        nonce: &[u8; 12],
        aad: &[u8],
        ciphertext: &[u8],
        tag: &[u8; TAG_BYTES],
        content: &mut [u8],
    ) -> Result<(), CryptoError> {
        use aws_lc_rs::aead::{Aad, Nonce};
        let nonce = Nonce::assume_unique_for_key(*nonce);
        self.0.open_separate_gather(nonce, Aad::from(aad), ciphertext, tag, content).map_err(|_| {
            content.fill(0);
            CryptoError::Damaged
        })
    }
}

/// AES-256-GCM of the aes-gcm crate.
pub struct PureRust(Aes256Gcm);

impl Aes256GcmBackend for PureRust {
    const NAME: &'static str = "aes-gcm";

    fn new(key: &[u8; 32]) -> Self {
        PureRust(Aes256Gcm::new(key.into()))
    }
}

impl GcmBackend for PureRust {
    fn seal(&self, nonce: &[u8; 12], aad: &[u8], content: &[u8], ciphertext: &mut [u8]) -> [u8; TAG_BYTES] {
        let buffer = InOutBuf::new(content, ciphertext).expect("lengths are equal");
        self.0.encrypt_inout_detached(nonce.into(), aad, buffer).expect("below GCM's limit").into()
    }

    fn open(
        &self,
        nonce: &[u8; 12],
        aad: &[u8],
        ciphertext: &[u8],
        tag: &[u8; TAG_BYTES],
        content: &mut [u8],
    ) -> Result<(), CryptoError> {
        let buffer = InOutBuf::new(ciphertext, &mut *content).expect("lengths are equal");
        self.0.decrypt_inout_detached(nonce.into(), aad, buffer, tag.into()).map_err(|_| {
            content.fill(0);
            CryptoError::Damaged
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{from_hex, to_hex};

    struct Vector {
        key: [u8; 32],
        nonce: [u8; 12],
        aad: Vec<u8>,
        content: Vec<u8>,
        ciphertext: String,
        tag: &'static str,
    }

    /// Test cases 13 to 16 of the GCM specification submitted to NIST (McGrew, Viega), appendix B.
    fn vectors() -> Vec<Vector> {
        let zero = |n, ciphertext: &str, tag| Vector {
            key: [0; 32],
            nonce: [0; 12],
            aad: vec![],
            content: vec![0; n],
            ciphertext: ciphertext.into(),
            tag,
        };
        let content: [u8; 64] = from_hex(concat!(
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72",
            "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255"
        ))
        .unwrap();
        let ciphertext = concat!(
            "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa",
            "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad"
        );
        let aad: [u8; 20] = from_hex("feedfacedeadbeeffeedfacedeadbeefabaddad2").unwrap();
        let long = |n: usize, aad: &[u8], tag| Vector {
            key: from_hex("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308").unwrap(),
            nonce: from_hex("cafebabefacedbaddecaf888").unwrap(),
            aad: aad.to_vec(),
            content: content[..n].to_vec(),
            ciphertext: ciphertext[..2 * n].into(),
            tag,
        };
        vec![
            zero(0, "", "530f8afbc74536b9a963b4f1c4cb738b"),
            zero(16, "cea7403d4d606b6e074ec5d3baf39d18", "d0d1c8a799996bf0265b98b5d48ab919"),
            long(64, &[], "b094dac5d93471bdec1a502270e3cc6c"),
            long(60, &aad, "76fc6ece0f4e1768cddf8853bb2d551b"),
        ]
    }

    fn holds<B: Aes256GcmBackend>() {
        for (i, v) in vectors().iter().enumerate() {
            let gcm = B::new(&v.key);
            let mut ciphertext = vec![0u8; v.content.len()];
            let tag = gcm.seal(&v.nonce, &v.aad, &v.content, &mut ciphertext);
            assert_eq!(to_hex(&ciphertext), v.ciphertext, "{} ciphertext of vector {i}", B::NAME);
            assert_eq!(to_hex(&tag), v.tag, "{} tag of vector {i}", B::NAME);
            let mut content = vec![0xee; v.content.len()];
            gcm.open(&v.nonce, &v.aad, &ciphertext, &tag, &mut content).unwrap();
            assert_eq!(content, v.content);
            for bit in 0..128 {
                let mut bad = tag;
                bad[bit / 8] ^= 1 << (bit % 8);
                content.fill(0xee);
                let r = gcm.open(&v.nonce, &v.aad, &ciphertext, &bad, &mut content);
                assert_eq!(r, Err(CryptoError::Damaged));
                assert!(content.iter().all(|&b| b == 0), "nothing of a refused chunk is left");
            }
        }
    }

    #[test]
    fn nist_vectors_hold_in_the_pure_rust_crate() {
        holds::<PureRust>();
    }

    #[cfg(feature = "aws-lc")]
    #[test]
    fn nist_vectors_hold_in_aws_lc() {
        holds::<AwsLc>();
    }
}
