//! Tests of wrap.rs: pinned bytes, and every way a wrapped key can be the wrong one.

use super::*;
use crate::types::to_hex;

fn kek(n: u8) -> Kek {
    Kek::take(&mut [n; 32])
}

#[test]
fn a_wrapped_key_has_the_pinned_bytes() {
    // Computed with Python's hmac and cryptography modules from the equation in FORMAT.md.
    let blob = wrap_with_salt(&[1; 32], WrapLabel::Kek, b"context", &[2; 32], &[3; 32]);
    assert_eq!(blob.len(), 113);
    assert_eq!(
        to_hex(&blob),
        concat!(
            "0103030303030303030303030303030303030303030303030303030303030303",
            "03b6d1f3b1d9ee2b68a96c10c9d82e70f60d0015764f2f55b60fe460b664c29d",
            "a5959cc66225888f8b859db0046d560b9c76a8886fc98478b46f28dfe499dfd1",
            "362b0931ffbddb78ea49954807e8514d91"
        )
    );
    assert_eq!(unwrap(&kek(1), WrapLabel::Kek, b"context", &blob).unwrap()[..], [2; 32]);
}

#[test]
fn wrapping_twice_gives_different_bytes() {
    let once = wrap(&kek(1), WrapLabel::Data, b"c", &[2; 32]).unwrap();
    let twice = wrap(&kek(1), WrapLabel::Data, b"c", &[2; 32]).unwrap();
    for part in [1..33, 33..65, 65..97, 97..113] {
        assert_ne!(once[part.clone()], twice[part]);
    }
}

#[test]
fn another_key_label_or_context_is_the_wrong_key() {
    let blob = wrap(&kek(1), WrapLabel::Data, b"context", &[2; 16]).unwrap();
    let wrong = Err(CryptoError::WrongKey);
    let of = |k: &Kek, l, c: &[u8]| unwrap(k, l, c, &blob).map(|s| s.to_vec());
    assert_eq!(of(&kek(2), WrapLabel::Data, b"context"), wrong);
    assert_eq!(of(&kek(1), WrapLabel::Kek, b"context"), wrong);
    assert_eq!(of(&kek(1), WrapLabel::Data, b"contexT"), wrong);
    assert_eq!(of(&kek(1), WrapLabel::Data, b""), wrong);
    assert_eq!(of(&kek(1), WrapLabel::Data, b"context"), Ok(vec![2; 16]));
}

#[test]
fn every_flipped_byte_is_noticed_and_called_what_it_is() {
    let blob = wrap(&kek(1), WrapLabel::Data, b"context", &[2; 32]).unwrap();
    for i in 0..blob.len() {
        for bit in 0..8 {
            let mut bad = blob.clone();
            bad[i] ^= 1 << bit;
            let got = unwrap(&kek(1), WrapLabel::Data, b"context", &bad).map(|s| s.to_vec());
            match i {
                0 => assert!(matches!(got, Err(CryptoError::NewerVersion(_) | CryptoError::Malformed { .. }))),
                1..65 => assert_eq!(got, Err(CryptoError::WrongKey), "byte {i}"),
                _ => assert_eq!(got, Err(CryptoError::Damaged), "byte {i}"),
            }
        }
    }
}

#[test]
fn truncated_and_extended_blobs_are_refused() {
    let blob = wrap(&kek(1), WrapLabel::Data, b"context", &[2; 32]).unwrap();
    for n in 0..blob.len() {
        let got = unwrap(&kek(1), WrapLabel::Data, b"context", &blob[..n]).map(|s| s.to_vec());
        match n {
            0..82 => assert!(matches!(got, Err(CryptoError::Malformed { .. })), "{n}: {got:?}"),
            _ => assert_eq!(got, Err(CryptoError::Damaged), "{n}"),
        }
    }
    let mut long = blob.clone();
    long.push(0);
    assert!(unwrap(&kek(1), WrapLabel::Data, b"context", &long).is_err());
    long.resize(100_000, 0);
    assert!(matches!(unwrap(&kek(1), WrapLabel::Data, b"context", &long), Err(CryptoError::Malformed { .. })));
}

#[test]
fn each_typed_wrap_binds_each_field_of_its_context() {
    let (k1, k2) = (KeyId("mk-1".into()), KeyId("mk-2".into()));
    let data = DataKey::random_sm4().unwrap();
    let ctx = DataCtx { seal_id: SealId([1; 16]), method: 1, cipher: 2, key_id: &k1 };
    let blob = wrap_data_key(&kek(1), &ctx, &data).unwrap();
    assert_eq!(unwrap_data_key(&kek(1), &ctx, &blob).unwrap().expose(), data.expose());
    for other in [
        DataCtx { seal_id: SealId([2; 16]), ..ctx },
        DataCtx { method: 2, ..ctx },
        DataCtx { cipher: 1, ..ctx },
        DataCtx { key_id: &k2, ..ctx },
    ] {
        assert_eq!(unwrap_data_key(&kek(1), &other, &blob).unwrap_err(), CryptoError::WrongKey);
    }

    let master = MasterKey::random().unwrap();
    let ctx = KekCtx { bucket: BucketId([1; 16]), kek: KekId(7), key_id: &k1 };
    let blob = wrap_kek(&master, &ctx, &kek(5)).unwrap();
    assert_eq!(unwrap_kek(&master, &ctx, &blob).unwrap().expose(), &[5; 32]);
    for other in
        [KekCtx { bucket: BucketId([2; 16]), ..ctx }, KekCtx { kek: KekId(8), ..ctx }, KekCtx { key_id: &k2, ..ctx }]
    {
        assert_eq!(unwrap_kek(&master, &other, &blob).unwrap_err(), CryptoError::WrongKey);
    }

    let root = RootKey::random().unwrap();
    let ctx = BucketCtx { bucket: BucketId([1; 16]), store: StoreId([2; 16]), name: "a" };
    let blob = wrap_bucket_key(&root, &ctx, &BucketKey::take(&mut [6; 32])).unwrap();
    assert_eq!(unwrap_bucket_key(&root, &ctx, &blob).unwrap().expose(), &[6; 32]);
    for other in [
        BucketCtx { bucket: BucketId([2; 16]), ..ctx },
        BucketCtx { store: StoreId([3; 16]), ..ctx },
        BucketCtx { name: "b", ..ctx },
    ] {
        assert_eq!(unwrap_bucket_key(&root, &other, &blob).unwrap_err(), CryptoError::WrongKey);
    }

    let blob = wrap_master(&root, &k1, 1, &master).unwrap();
    assert_eq!(unwrap_master(&root, &k1, 1, &blob).unwrap().expose(), master.expose());
    assert_eq!(unwrap_master(&root, &k1, 2, &blob).unwrap_err(), CryptoError::WrongKey);
    assert_eq!(unwrap_master(&root, &k2, 1, &blob).unwrap_err(), CryptoError::WrongKey);
}
