//! What a core seals, opens, wraps and authenticates: `cargo bench --bench crypto`.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ssefs::crypto::aead::{ChunkAad, CipherOf};
use ssefs::crypto::gcm::{Aes256GcmBackend, GcmBackend, PureRust};
use ssefs::crypto::secret::{ChunkKey, DataKey, Kek, MacKey};
use ssefs::crypto::sm4::{self, Sm4Gcm};
use ssefs::crypto::wrap::{DataCtx, unwrap_data_key, wrap_data_key};
use ssefs::crypto::{derive, mac};
use ssefs::types::{KeyId, OpenId, SealId};
use std::hint::black_box;

fn chunks<B: GcmBackend>(c: &mut Criterion, name: &str, cipher: &CipherOf<B>) {
    for kib in [4usize, 16, 64] {
        let content = vec![0x5au8; kib * 1024];
        let mut frame = vec![0u8; content.len() + 28];
        let mut out = vec![0u8; content.len()];
        let aad = ChunkAad::new(&SealId([1; 16]), 0, content.len() as u32, &OpenId([2; 16]), 3);
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Bytes(content.len() as u64));
        group.bench_function(BenchmarkId::new("seal", format!("{kib} KiB")), |b| {
            b.iter(|| cipher.seal(&aad, [7; 12], black_box(&content), &mut frame));
        });
        group.bench_function(BenchmarkId::new("open", format!("{kib} KiB")), |b| {
            b.iter(|| cipher.open(&aad, black_box(&frame), &mut out).unwrap());
        });
        group.finish();
    }
}

fn aes<B: Aes256GcmBackend>(c: &mut Criterion) {
    let key = ChunkKey::take(&mut [1; 32]);
    chunks(c, &format!("{}/sealed", B::NAME), &CipherOf::<B>::sealed(&key));
    chunks(c, &format!("{}/plain", B::NAME), &CipherOf::<B>::plain(&key));
}

fn sm4_gcm(c: &mut Criterion) {
    let key = ChunkKey::take(&mut [1; 32]);
    chunks(c, &format!("SM4, {}", Sm4Gcm::library()), &CipherOf::sm4(Sm4Gcm::new(&key)));
    chunks(c, "SM4, sm4 crate", &CipherOf::sm4(sm4::PureRust::new(&key)));
}

fn keys(c: &mut Criterion) {
    let (kek, data) = (Kek::random().unwrap(), DataKey::random().unwrap());
    let key_id = KeyId("mk-0123456789abcdef".into());
    let ctx = DataCtx { seal_id: SealId([1; 16]), method: 1, cipher: 1, key_id: &key_id };
    let blob = wrap_data_key(&kek, &ctx, &data).unwrap();
    let map_key = MacKey::take(&mut [1; 32]);
    let node = [0u8; 2816];
    c.bench_function("wrap data key", |b| b.iter(|| wrap_data_key(&kek, &ctx, &data).unwrap()));
    c.bench_function("unwrap data key", |b| b.iter(|| unwrap_data_key(&kek, &ctx, &blob).unwrap()));
    c.bench_function("derive chunk key", |b| b.iter(|| derive::chunk_key(&data, &OpenId([2; 16]), 0)));
    c.bench_function("tag of a leaf of 64 chunks", |b| b.iter(|| mac::tag(&map_key, &[black_box(&node)])));
}

#[cfg(feature = "aws-lc")]
fn aws_lc(c: &mut Criterion) {
    aes::<ssefs::crypto::gcm::AwsLc>(c);
}
#[cfg(not(feature = "aws-lc"))]
fn aws_lc(_: &mut Criterion) {}

criterion_group!(benches, aws_lc, aes::<PureRust>, sm4_gcm, keys);
criterion_main!(benches);
