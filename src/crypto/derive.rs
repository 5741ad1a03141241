//! Every derivation of FORMAT.md, "Derived keys", and nothing else: all labels on one screen. Two derivations
//! from one key must never share a label.

use super::mac::Mac;
use super::secret::{BucketKey, ChunkKey, DataKey, MacKey, MapKey, MasterKey, RootKey};
use crate::types::{OpenId, SealId};
use zeroize::Zeroizing;

/// Chunks that share a chunk key: counter >> 24 is the window.
pub const WINDOW_BITS: u32 = 24;

/// The window a chunk's counter falls into.
pub fn window(counter: u64) -> u64 {
    counter >> WINDOW_BITS
}

pub fn root_id(k: &RootKey) -> [u8; 8] {
    let id = expand(k.expose(), "root-id", &[]);
    id[..8].try_into().expect("8 of 32 bytes")
}
pub fn keyring_key(k: &RootKey) -> MacKey {
    MacKey::take(&mut expand(k.expose(), "keyring", &[]))
}
pub fn kit_key(k: &RootKey, kit_id: &[u8; 16]) -> Zeroizing<[u8; 32]> {
    expand(k.expose(), "kit", &[kit_id])
}
pub fn settings_key(k: &BucketKey) -> MacKey {
    MacKey::take(&mut expand(k.expose(), "settings", &[]))
}
pub fn log_key(k: &BucketKey) -> MacKey {
    MacKey::take(&mut expand(k.expose(), "log", &[]))
}
pub fn place_key(k: &BucketKey) -> MacKey {
    MacKey::take(&mut expand(k.expose(), "place", &[]))
}
pub fn chunk_key(k: &DataKey, open: &OpenId, window: u64) -> ChunkKey {
    ChunkKey::take(&mut expand(k.expose(), "chunk", &[&open.0, &window.to_le_bytes()]))
}
pub fn plain_chunk_key(k: &BucketKey, open: &OpenId, window: u64) -> ChunkKey {
    ChunkKey::take(&mut expand(k.expose(), "plain-chunk", &[&open.0, &window.to_le_bytes()]))
}
/// The chunk key of SM4, which takes the first 16 bytes.
pub fn sm4_chunk_key(k: &DataKey, open: &OpenId, window: u64) -> ChunkKey {
    ChunkKey::take(&mut expand(&sm4_prk(k)[..], "chunk-sm4", &[&open.0, &window.to_le_bytes()]))
}
pub fn sm4_map_key(k: &DataKey, seal: &SealId) -> MapKey {
    MapKey::take(&mut expand(&sm4_prk(k)[..], "map-sm4", &[&seal.0]))
}
pub fn map_key(k: &DataKey, seal: &SealId) -> MapKey {
    MapKey::take(&mut expand(k.expose(), "map", &[&seal.0]))
}
pub fn plain_map_key(k: &BucketKey, seal: &SealId) -> MapKey {
    MapKey::take(&mut expand(k.expose(), "plain-map", &[&seal.0]))
}
/// Tags a key's recovery file; `k` is what seals it.
pub fn export_key(k: &MasterKey) -> MacKey {
    MacKey::take(&mut expand(k.expose(), "export-tag", &[]))
}
// Reserved, so not to be used for anything else: "tree" of K_bucket. Those of a customer key are in customer.rs:
// "customer-kek", "customer-verifier", "customer-request".

/// HKDF-Extract(salt = "ssefs/1/sm4", 16-byte data key): RFC 5869, section 2.2.
fn sm4_prk(k: &DataKey) -> Zeroizing<[u8; 32]> {
    let mut mac = Mac::keyed(b"ssefs/1/sm4");
    mac.update(k.expose());
    Zeroizing::new(mac.finish())
}

/// FORMAT.md's Expand(k, label, ctx).
pub(super) fn expand(k: &[u8], label: &str, ctx: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let mut info = vec![&b"ssefs/1/"[..], label.as_bytes(), &[0]];
    info.extend_from_slice(ctx);
    hkdf_expand_32(k, &info)
}

/// The first block of HKDF-Expand, T(1) = HMAC(PRK, info | 0x01): RFC 5869, section 2.3. One
/// HMAC without the copies of the key that the hkdf crate's types would leave; below it is checked against both.
fn hkdf_expand_32(prk: &[u8], info: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let mut mac = Mac::keyed(prk);
    for part in info {
        mac.update(part);
    }
    mac.update(&[1]);
    Zeroizing::new(mac.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{from_hex, to_hex};
    use hkdf::Hkdf;
    use sha2::Sha256;
    use std::collections::HashSet;

    #[test]
    fn rfc_5869_vectors_hold() {
        // Test cases 1 and 3 of appendix A; the first 32 of 42 bytes.
        let cases = [
            (
                "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5",
                (0xf0..=0xf9).collect::<Vec<u8>>(),
                "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf",
            ),
            (
                "19ef24a32c717b167f33a91d6f648bdf96596776afdb6377ac434c1c293ccb04",
                vec![],
                "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d",
            ),
        ];
        for (prk, info, okm) in cases {
            let prk: [u8; 32] = from_hex(prk).unwrap();
            assert_eq!(to_hex(&hkdf_expand_32(&prk, &[&info])[..]), okm);
        }
    }

    #[test]
    fn expand_is_what_the_hkdf_crate_computes() {
        let k = [0x42u8; 32];
        let mut want = [0u8; 32];
        Hkdf::<Sha256>::from_prk(&k).unwrap().expand(b"ssefs/1/chunk\0context", &mut want).unwrap();
        assert_eq!(*expand(&k, "chunk", &[b"con", b"text"]), want);
    }

    #[test]
    fn derived_keys_have_the_pinned_bytes() {
        // Computed with Python's hmac module from the equations in FORMAT.md.
        let root = RootKey::take(&mut [1; 32]);
        let bucket = BucketKey::take(&mut [2; 32]);
        let data = DataKey::try_from(&[3u8; 32][..]).unwrap();
        let sm4 = DataKey::try_from(&[4u8; 16][..]).unwrap();
        let (open, seal) = (OpenId([5; 16]), SealId([6; 16]));
        let pins = [
            ("root-id", to_hex(&root_id(&root)), "a14621b690d1e561"),
            (
                "keyring",
                to_hex(keyring_key(&root).expose()),
                "bedbd47bcac77395224eb47ac5cbdab5558cbf04e81cca3e8c6c0b2a7a23cae0",
            ),
            (
                "kit",
                to_hex(&kit_key(&root, &[7; 16])[..]),
                "b2b369c3484b7bfbb9dfedf94a32d52725a9283ece145508a34847e8de954e20",
            ),
            (
                "settings",
                to_hex(settings_key(&bucket).expose()),
                "ef650b589665f9c586a88a790c0e27830b2645a7bcdf1407c230c26e9c9044c2",
            ),
            (
                "log",
                to_hex(log_key(&bucket).expose()),
                "d97ae9f576df7e6ff3dced3708abc44591c52b658c82c6245271548670c7ad4e",
            ),
            (
                "chunk",
                to_hex(chunk_key(&data, &open, 0x0102030405).expose()),
                "5bc4a59104d4c130296d4d10f460fbfdc6f5af535f38db45a9ee7fb7f61c72fc",
            ),
            (
                "chunk-sm4",
                to_hex(sm4_chunk_key(&sm4, &open, 7).expose()),
                "a8d38d1fb0dec3d26b80db8de2a3bc3f926411eeb567abbf0f6829671b18c9d9",
            ),
            (
                "map-sm4",
                to_hex(sm4_map_key(&sm4, &seal).expose()),
                "3839dafc352fe41588c6ad79319b488a3d91396793bdf93b447029cbd1994a7b",
            ),
            (
                "plain-chunk",
                to_hex(plain_chunk_key(&bucket, &open, 7).expose()),
                "bc6beb9420fff9bf3a579b8243d8895ec7c5772df3b418cf31d72adab29f8108",
            ),
            (
                "map",
                to_hex(map_key(&data, &seal).expose()),
                "f7ee0bd45eb4de654c79a01928ae5d647f7f9ab5d578b20a7ca434c2606f0c32",
            ),
            (
                "plain-map",
                to_hex(plain_map_key(&bucket, &seal).expose()),
                "b8f9d046629b0ff8bf63a53dc715966af7a70f0211891590248163247533c49c",
            ),
        ];
        for (what, got, want) in &pins {
            assert_eq!(got, want, "{what}");
        }
        let all: HashSet<_> = pins.iter().map(|p| &p.1).collect();
        assert_eq!(all.len(), pins.len(), "no two derivations agree");
    }

    #[test]
    fn the_window_changes_after_two_to_the_24_chunks() {
        assert_eq!(window((1 << 24) - 1), 0);
        assert_eq!(window(1 << 24), 1);
        assert_eq!(window(u64::MAX), (1 << 40) - 1);
    }
}
