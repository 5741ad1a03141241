//! How fast this machine seals and opens with each cipher and size of chunk, on one core, and wraps and unwraps with each
//! provider of keys.

use std::hint::black_box;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{OpError, Progress};
use crate::crypto::aead::{ChunkAad, ChunkCipher};
use crate::crypto::derive;
use crate::crypto::secret::{BucketKey, DataKey, Kek, MasterKey, fill_random};
use crate::crypto::sm4::Sm4Gcm;
use crate::crypto::wrap::{self, KekCtx};
use crate::keys::{KeyService, Keyring};
use crate::types::{BucketId, FRAME_OVERHEAD, KekId, KeyId, OpenId, SealId};

/// Sizes of a chunk that are measured, bytes.
const SIZES: [usize; 4] = [4 << 10, 16 << 10, 64 << 10, 256 << 10];
/// How long each figure is measured.
const EACH: Duration = Duration::from_millis(120);

/// One cipher at one size.
#[derive(Debug, Clone, Serialize)]
pub struct CipherSpeed {
    pub cipher: String,
    /// Who computes it.
    pub library: String,
    pub chunk_bytes: usize,
    pub seal_mb_s: f64,
    pub open_mb_s: f64,
}

/// One provider of keys.
#[derive(Debug, Clone, Serialize)]
pub struct ProviderSpeed {
    pub provider: String,
    pub wrap_us: f64,
    pub unwrap_us: f64,
    pub wraps_per_s: f64,
}

#[derive(Debug, Clone, Serialize)]
pub struct Speed {
    pub cores: usize,
    pub ciphers: Vec<CipherSpeed>,
    pub providers: Vec<ProviderSpeed>,
}

/// Calls of each kind to an external service, which may bill them.
const SERVICE_CALLS: u32 = 5;

/// A provider to measure by many calls.
struct Provider {
    name: String,
    /// Wraps a new key; the wrapped form.
    wrap: Box<dyn Fn() -> Result<Vec<u8>, OpError>>,
    unwrap: Box<dyn Fn(&[u8]) -> Result<(), OpError>>,
}

fn failed(e: impl std::fmt::Display) -> OpError {
    OpError::new(super::ErrorCode::General, format!("cannot measure: {e}"))
}

/// Mean seconds of a call, over about [`EACH`].
fn timed(mut f: impl FnMut() -> Result<(), OpError>) -> Result<f64, OpError> {
    f()?;
    let (begun, mut calls) = (Instant::now(), 0u32);
    while begun.elapsed() < EACH {
        for _ in 0..4 {
            f()?;
        }
        calls += 4;
    }
    Ok(begun.elapsed().as_secs_f64() / f64::from(calls))
}

fn rounded(x: f64) -> f64 {
    (x * 10.0).round() / 10.0
}

/// All ciphers, the embedded keyring, and of a keyring the keys that are named, wherever they lie.
///
/// # Errors
/// Random numbers that are not to be had, and a provider that fails.
pub fn measure(keys: Option<(&Keyring, &[KeyId])>, progress: &dyn Progress) -> Result<Speed, OpError> {
    let (seal, open) = (SealId([1; 16]), OpenId([2; 16]));
    let data = DataKey::random().map_err(failed)?;
    let short = DataKey::random_sm4().map_err(failed)?;
    let bucket = BucketKey::random().map_err(failed)?;
    let ciphers = [
        ("AES-256-GCM", "aws-lc".to_owned(), ChunkCipher::sealed(&derive::chunk_key(&data, &open, 0))),
        ("SM4-GCM", Sm4Gcm::library(), ChunkCipher::sm4(&derive::sm4_chunk_key(&short, &open, 0))),
        ("plain (GMAC)", "aws-lc".to_owned(), ChunkCipher::plain(&derive::plain_chunk_key(&bucket, &open, 0))),
    ];
    progress.stage("measuring", Some((ciphers.len() * SIZES.len() * 2 + 2) as u64));
    let mut out = Speed {
        cores: std::thread::available_parallelism().map_or(1, Into::into),
        ciphers: Vec::new(),
        providers: Vec::new(),
    };
    for (name, library, cipher) in &ciphers {
        for n in SIZES {
            let mut content = vec![0u8; n];
            fill_random(&mut content).map_err(failed)?;
            let mut frame = vec![0u8; n + FRAME_OVERHEAD];
            let aad = ChunkAad::new(&seal, 0, n as u32, &open, 0);
            let mut nonce = [0u8; 12];
            let sealing = timed(|| {
                // A nonce is never used twice under a key, not even here.
                for b in nonce.iter_mut() {
                    *b = b.wrapping_add(1);
                    if *b != 0 {
                        break;
                    }
                }
                cipher.seal(&aad, nonce, black_box(&content), &mut frame);
                Ok(())
            })?;
            progress.advance(1);
            let opening = timed(|| cipher.open(&aad, black_box(&frame), &mut content).map_err(failed))?;
            progress.advance(1);
            let mb_s = |s: f64| rounded(n as f64 / s / 1e6);
            out.ciphers.push(CipherSpeed {
                cipher: (*name).to_owned(),
                library: library.clone(),
                chunk_bytes: n,
                seal_mb_s: mb_s(sealing),
                open_mb_s: mb_s(opening),
            });
        }
    }
    let p = embedded()?;
    {
        let wrapped = (p.wrap)()?;
        let wrapping = timed(|| (p.wrap)().map(drop))?;
        progress.advance(1);
        let unwrapping = timed(|| (p.unwrap)(&wrapped))?;
        progress.advance(1);
        out.providers.push(ProviderSpeed {
            provider: p.name,
            wrap_us: rounded(wrapping * 1e6),
            unwrap_us: rounded(unwrapping * 1e6),
            wraps_per_s: (1.0 / wrapping).round(),
        });
    }
    for (keyring, key) in keys.iter().flat_map(|(ring, keys)| keys.iter().map(move |k| (ring, k))) {
        let (wrapping, unwrapping) = keyring.time_calls(key, SERVICE_CALLS)?;
        let info = keyring.describe(key)?;
        out.providers.push(ProviderSpeed {
            provider: format!(
                "{} ({})",
                info.alias.unwrap_or(info.id.0),
                info.provider.as_deref().unwrap_or("keyring")
            ),
            wrap_us: rounded(wrapping.as_secs_f64() * 1e6),
            unwrap_us: rounded(unwrapping.as_secs_f64() * 1e6),
            wraps_per_s: (1.0 / wrapping.as_secs_f64()).round(),
        });
    }
    Ok(out)
}

/// The keyring of ssefs itself: a KEK under a master key in memory.
fn embedded() -> Result<Provider, OpError> {
    let master = std::rc::Rc::new(MasterKey::random().map_err(failed)?);
    let (kek, key_id) = (Kek::random().map_err(failed)?, KeyId("mk-speed".into()));
    let of = |key_id: &KeyId, f: &mut dyn FnMut(&KekCtx)| {
        f(&KekCtx { bucket: BucketId([3; 16]), kek: KekId(1), key_id });
    };
    let (m, k) = (master.clone(), key_id.clone());
    Ok(Provider {
        name: "embedded keyring".into(),
        wrap: Box::new(move || {
            let mut wrapped = Ok(Vec::new());
            of(&k, &mut |ctx| wrapped = wrap::wrap_kek(&m, ctx, &kek));
            wrapped.map_err(failed)
        }),
        unwrap: Box::new(move |wrapped| {
            let mut done = Ok(());
            of(&key_id, &mut |ctx| done = wrap::unwrap_kek(&master, ctx, wrapped).map(drop));
            done.map_err(failed)
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cipher_and_provider_has_a_figure() {
        let s = measure(None, &super::super::Quiet).unwrap();
        assert_eq!((s.ciphers.len(), s.providers.len()), (3 * SIZES.len(), 1));
        assert!(s.ciphers.iter().all(|c| c.seal_mb_s > 0.0 && c.open_mb_s > 0.0), "{s:?}");
        assert!(s.providers.iter().all(|p| p.wrap_us > 0.0 && p.unwrap_us > 0.0), "{s:?}");
    }
}
