//! Seals and opens one chunk (FORMAT.md, "Chunk"). Sealed and plain objects have the same frame, so the log and the
//! map need not know which they hold. The seal id, the offset and the sequence are bound as associated data.

use super::CryptoError;
use super::gcm::{Aes256GcmBackend, Gcm, GcmBackend, NONCE_BYTES, TAG_BYTES};
use super::secret::ChunkKey;
use super::sm4::Sm4Gcm;
use crate::types::{FRAME_OVERHEAD, OpenId, SealId};
use std::cell::RefCell;

const AAD_BYTES: usize = 60;
const CHUNK_FORMAT: &[u8; 8] = b"ssefs1c\0";

/// The associated data of a chunk, 60 bytes: where and when it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkAad([u8; AAD_BYTES]);

impl ChunkAad {
    /// `offset` is the chunk's first byte in the file, `n` its length in bytes.
    pub fn new(seal: &SealId, offset: u64, n: u32, open: &OpenId, counter: u64) -> Self {
        let mut aad = [0u8; AAD_BYTES];
        aad[0..16].copy_from_slice(&seal.0);
        aad[16..24].copy_from_slice(&offset.to_le_bytes());
        aad[24..28].copy_from_slice(&n.to_le_bytes());
        aad[28..44].copy_from_slice(&open.0);
        aad[44..52].copy_from_slice(&counter.to_le_bytes());
        aad[52..60].copy_from_slice(CHUNK_FORMAT);
        ChunkAad(aad)
    }

    pub fn as_bytes(&self) -> &[u8; AAD_BYTES] {
        &self.0
    }
}

/// Seals and opens chunks under one chunk key, with the libraries of this build.
pub enum ChunkCipher {
    Aes256(Box<CipherOf<Gcm>>),
    Sm4(Box<CipherOf<Sm4Gcm>>),
}

impl ChunkCipher {
    /// For the chunks of a sealed object: AES-256-GCM.
    pub fn sealed(key: &ChunkKey) -> Self {
        ChunkCipher::Aes256(Box::new(CipherOf::sealed(key)))
    }

    /// For the chunks of a sealed object: SM4-GCM, with the first 16 bytes of the key.
    pub fn sm4(key: &ChunkKey) -> Self {
        ChunkCipher::Sm4(Box::new(CipherOf::sm4(Sm4Gcm::new(key))))
    }

    /// For the chunks of a plain object: the content as it is, and a GMAC.
    pub fn plain(key: &ChunkKey) -> Self {
        ChunkCipher::Aes256(Box::new(CipherOf::plain(key)))
    }

    /// See [`CipherOf::seal`].
    pub fn seal(&self, aad: &ChunkAad, nonce: [u8; NONCE_BYTES], content: &[u8], frame: &mut [u8]) {
        match self {
            ChunkCipher::Aes256(c) => c.seal(aad, nonce, content, frame),
            ChunkCipher::Sm4(c) => c.seal(aad, nonce, content, frame),
        }
    }

    /// See [`CipherOf::open`].
    pub fn open(&self, aad: &ChunkAad, frame: &[u8], out: &mut [u8]) -> Result<(), CryptoError> {
        match self {
            ChunkCipher::Aes256(c) => c.open(aad, frame, out),
            ChunkCipher::Sm4(c) => c.open(aad, frame, out),
        }
    }
}

/// A chunk cipher on one library; everything but tests and benchmarks says `ChunkCipher`.
pub struct CipherOf<B> {
    gcm: B,
    plain: bool,
}

thread_local! {
    /// Associated data and content of a plain chunk, one behind the other: both libraries want it in one piece.
    static JOINED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl<B: Aes256GcmBackend> CipherOf<B> {
    /// For the chunks of a sealed object: AES-256-GCM.
    pub fn sealed(key: &ChunkKey) -> Self {
        CipherOf { gcm: B::new(key.expose()), plain: false }
    }

    /// For the chunks of a plain object: the content as it is, and a GMAC.
    pub fn plain(key: &ChunkKey) -> Self {
        CipherOf { gcm: B::new(key.expose()), plain: true }
    }
}

impl<B: GcmBackend> CipherOf<B> {
    /// For the chunks of a sealed object, on one of the libraries for SM4-GCM.
    pub fn sm4(gcm: B) -> Self {
        CipherOf { gcm, plain: false }
    }

    /// Writes the frame of `content`: nonce, ciphertext, tag. `nonce` is fresh from `fill_random`.
    ///
    /// # Panics
    /// When `frame` is not exactly 28 bytes longer than `content`: a bug of the caller.
    pub fn seal(&self, aad: &ChunkAad, nonce: [u8; NONCE_BYTES], content: &[u8], frame: &mut [u8]) {
        assert_eq!(frame.len(), content.len() + FRAME_OVERHEAD, "frame and content lengths");
        let (head, rest) = frame.split_at_mut(NONCE_BYTES);
        let (ciphertext, tail) = rest.split_at_mut(content.len());
        head.copy_from_slice(&nonce);
        let tag = if self.plain {
            ciphertext.copy_from_slice(content);
            joined(aad, content, |all| self.gcm.seal(&nonce, all, &[], &mut []))
        } else {
            self.gcm.seal(&nonce, &aad.0, content, ciphertext)
        };
        tail.copy_from_slice(&tag);
    }

    /// Verifies `frame` and writes its content to `out`, which is all zeroes after an error.
    ///
    /// # Errors
    /// `Malformed` when the lengths do not belong together, `Damaged` when the tag differs.
    pub fn open(&self, aad: &ChunkAad, frame: &[u8], out: &mut [u8]) -> Result<(), CryptoError> {
        let malformed = CryptoError::Malformed { what: "chunk frame", bytes: frame.len() };
        if frame.len() != out.len() + FRAME_OVERHEAD {
            out.fill(0);
            return Err(malformed);
        }
        let (nonce, rest) = frame.split_first_chunk::<NONCE_BYTES>().ok_or(malformed.clone())?;
        let (ciphertext, tag) = rest.split_last_chunk::<TAG_BYTES>().ok_or(malformed)?;
        if !self.plain {
            return self.gcm.open(nonce, &aad.0, ciphertext, tag, out);
        }
        // Verify the copy that is handed out, not the source: the source may be a mapped file that changes.
        out.copy_from_slice(ciphertext);
        let verdict = joined(aad, out, |all| self.gcm.open(nonce, all, &[], tag, &mut []));
        if verdict.is_err() {
            out.fill(0);
        }
        verdict
    }
}

/// Calls `f` with `aad` and `content` in one piece, in a buffer each thread keeps.
fn joined<T>(aad: &ChunkAad, content: &[u8], f: impl FnOnce(&[u8]) -> T) -> T {
    JOINED.with_borrow_mut(|buffer| {
        buffer.clear();
        buffer.extend_from_slice(&aad.0);
        buffer.extend_from_slice(content);
        f(buffer)
    })
}

#[cfg(test)]
#[path = "aead_tests.rs"]
mod tests;
