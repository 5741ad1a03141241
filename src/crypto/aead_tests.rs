//! Tests of aead.rs: frames there and back, every field bound, the two libraries against each other.

use super::*;
use crate::crypto::gcm::PureRust;
use crate::types::to_hex;
use proptest::prelude::*;

fn key(n: u8) -> ChunkKey {
    ChunkKey::take(&mut [n; 32])
}

fn aad() -> ChunkAad {
    ChunkAad::new(&SealId([1; 16]), 0x1000, 5, &OpenId([2; 16]), 9)
}

#[test]
fn associated_data_has_the_layout_of_the_format() {
    let want = concat!(
        "01010101010101010101010101010101",
        "0010000000000000",
        "05000000",
        "02020202020202020202020202020202",
        "0900000000000000",
        "7373656673316300"
    );
    assert_eq!(to_hex(aad().as_bytes()), want);
}

#[test]
fn every_flipped_byte_of_a_frame_is_noticed_and_no_content_is_left() {
    for cipher in [ChunkCipher::sealed(&key(1)), ChunkCipher::sm4(&key(1)), ChunkCipher::plain(&key(1))] {
        let content = [0x5a; 40];
        let mut frame = [0u8; 68];
        cipher.seal(&aad(), [3; 12], &content, &mut frame);
        for i in 0..frame.len() {
            let mut bad = frame;
            bad[i] ^= 0x80;
            let mut out = [0xee; 40];
            assert_eq!(cipher.open(&aad(), &bad, &mut out), Err(CryptoError::Damaged), "byte {i}");
            assert_eq!(out, [0; 40]);
        }
    }
}

#[test]
fn a_chunk_opens_only_in_its_own_place_and_time() {
    let others = [
        ChunkAad::new(&SealId([9; 16]), 0x1000, 5, &OpenId([2; 16]), 9),
        ChunkAad::new(&SealId([1; 16]), 0x2000, 5, &OpenId([2; 16]), 9),
        ChunkAad::new(&SealId([1; 16]), 0x1000, 6, &OpenId([2; 16]), 9),
        ChunkAad::new(&SealId([1; 16]), 0x1000, 5, &OpenId([3; 16]), 9),
        ChunkAad::new(&SealId([1; 16]), 0x1000, 5, &OpenId([2; 16]), 10),
    ];
    for cipher in [ChunkCipher::sealed(&key(1)), ChunkCipher::sm4(&key(1)), ChunkCipher::plain(&key(1))] {
        let mut frame = [0u8; 33];
        cipher.seal(&aad(), [3; 12], b"hello", &mut frame);
        let mut out = [0u8; 5];
        for other in &others {
            assert_eq!(cipher.open(other, &frame, &mut out), Err(CryptoError::Damaged));
        }
        cipher.open(&aad(), &frame, &mut out).unwrap();
        assert_eq!(&out, b"hello");
    }
}

#[test]
fn a_plain_chunk_never_opens_as_a_sealed_one_nor_under_another_key() {
    let mut frame = [0u8; 33];
    let mut out = [0u8; 5];
    ChunkCipher::plain(&key(1)).seal(&aad(), [3; 12], b"hello", &mut frame);
    assert_eq!(&frame[12..17], b"hello");
    assert!(ChunkCipher::sealed(&key(1)).open(&aad(), &frame, &mut out).is_err());
    assert!(ChunkCipher::plain(&key(2)).open(&aad(), &frame, &mut out).is_err());
    ChunkCipher::sealed(&key(1)).seal(&aad(), [3; 12], b"hello", &mut frame);
    assert_ne!(&frame[12..17], b"hello");
    assert!(ChunkCipher::plain(&key(1)).open(&aad(), &frame, &mut out).is_err());
}

#[test]
fn frames_of_a_wrong_length_are_malformed() {
    let cipher = ChunkCipher::sealed(&key(1));
    for n in [0usize, 1, 27, 28, 32, 34] {
        let mut out = [0xee; 5];
        assert!(matches!(cipher.open(&aad(), &vec![0; n], &mut out), Err(CryptoError::Malformed { .. })), "{n}");
        assert_eq!(out, [0; 5]);
    }
}

proptest! {
    #[test]
    fn what_is_sealed_opens_and_both_libraries_agree(
        k in any::<[u8; 32]>(), nonce in any::<[u8; 12]>(), seal in any::<[u8; 16]>(), open in any::<[u8; 16]>(),
        offset in any::<u64>(), counter in any::<u64>(), plain in any::<bool>(),
        content in proptest::collection::vec(any::<u8>(), 0..9000),
    ) {
        let chunk_key = ChunkKey::take(&mut k.clone());
        let aad = ChunkAad::new(&SealId(seal), offset, content.len() as u32, &OpenId(open), counter);
        let mut frame = vec![0u8; content.len() + 28];
        let mut oracle_frame = frame.clone();
        let mut out = vec![0u8; content.len()];
        let (cipher, oracle) = if plain {
            (ChunkCipher::plain(&chunk_key), CipherOf::<PureRust>::plain(&chunk_key))
        } else {
            (ChunkCipher::sealed(&chunk_key), CipherOf::<PureRust>::sealed(&chunk_key))
        };
        cipher.seal(&aad, nonce, &content, &mut frame);
        oracle.seal(&aad, nonce, &content, &mut oracle_frame);
        prop_assert_eq!(&frame, &oracle_frame);
        cipher.open(&aad, &oracle_frame, &mut out).unwrap();
        prop_assert_eq!(&out, &content);
        out.fill(0);
        oracle.open(&aad, &frame, &mut out).unwrap();
        prop_assert_eq!(&out, &content);
    }
}
