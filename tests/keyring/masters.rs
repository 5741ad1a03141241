//! Master keys: names, versions, states, and the KEKs they wrap.

use crate::Config;
use ssefs::crypto::CryptoError;
use ssefs::keys::{DEFAULT_CMK_ALIAS, KeyError, KeyKind, KeyService, KeyState, Keyring};
use ssefs::types::{BucketId, KekId, KeyId};

const BUCKET: BucketId = BucketId([1; 16]);
const KEK: KekId = KekId(7);

fn mine(k: &Keyring) -> KeyId {
    k.create_key(Some("mine"), "a key of mine").unwrap()
}

#[test]
fn r20_rotation_wraps_by_a_new_version_and_old_versions_still_open() {
    let c = Config::temp();
    let k = c.make();
    let key = mine(&k);
    let first = k.new_kek(&key, &BUCKET, KEK).unwrap();
    assert_eq!(first.version, 1);
    assert_eq!(k.rotate(&key).unwrap(), 2);
    assert_eq!(k.newest_version(&key).unwrap(), 2);
    let second = k.new_kek(&key, &BUCKET, KekId(8)).unwrap();
    assert_eq!(second.version, 2);

    // After a restart as well.
    drop(k);
    let k = c.open().unwrap();
    let opened = k.unwrap_kek(&key, 1, &BUCKET, KEK, &first.wrapped).unwrap();
    assert_eq!(opened.expose(), first.kek.expose());

    let moved = k.rewrap_kek(&key, 1, &BUCKET, KEK, &first.wrapped).unwrap();
    assert_eq!(moved.version, 2);
    assert_ne!(moved.wrapped, first.wrapped);
    assert_eq!(k.unwrap_kek(&key, 2, &BUCKET, KEK, &moved.wrapped).unwrap().expose(), first.kek.expose());
    // The versions are different keys.
    let crossed = k.unwrap_kek(&key, 1, &BUCKET, KEK, &moved.wrapped).unwrap_err();
    assert!(matches!(crossed, KeyError::Unwrap { source: CryptoError::WrongKey, .. }));
    // A rewrap can be repeated, as after an interruption.
    assert_eq!(k.rewrap_kek(&key, 2, &BUCKET, KEK, &moved.wrapped).unwrap().version, 2);
}

#[test]
fn a_wrapped_kek_opens_only_for_its_bucket_its_number_and_its_key() {
    let c = Config::temp();
    let k = c.make();
    let (key, other) = (mine(&k), k.create_key(None, "").unwrap());
    let made = k.new_kek(&key, &BUCKET, KEK).unwrap();
    let wrong = |r: Result<_, KeyError>| matches!(r, Err(KeyError::Unwrap { source: CryptoError::WrongKey, .. }));
    assert!(wrong(k.unwrap_kek(&key, 1, &BucketId([2; 16]), KEK, &made.wrapped)));
    assert!(wrong(k.unwrap_kek(&key, 1, &BUCKET, KekId(8), &made.wrapped)));
    assert!(wrong(k.unwrap_kek(&other, 1, &BUCKET, KEK, &made.wrapped)));
    let mut bad = made.wrapped.clone();
    *bad.last_mut().unwrap() ^= 1;
    let damaged = k.unwrap_kek(&key, 1, &BUCKET, KEK, &bad).unwrap_err();
    assert!(matches!(damaged, KeyError::Unwrap { source: CryptoError::Damaged, .. }));
    assert!(damaged.to_string().contains(&key.0));
    assert!(matches!(k.unwrap_kek(&key, 2, &BUCKET, KEK, &made.wrapped), Err(KeyError::NoVersion { version: 2, .. })));
}

#[test]
fn r36_service_keys_are_made_when_first_needed_and_once() {
    let c = Config::temp();
    let k = c.make();
    assert_eq!(k.list_keys().unwrap(), []);
    let cmk = k.default_cmk().unwrap();
    assert_eq!(k.default_cmk().unwrap(), cmk);
    assert_eq!(k.resolve(DEFAULT_CMK_ALIAS).unwrap(), cmk);
    let managed = k.managed_key(&BUCKET).unwrap();
    assert_eq!(k.managed_key(&BUCKET).unwrap(), managed);
    assert_ne!(k.managed_key(&BucketId([2; 16])).unwrap(), managed);
    let info = k.describe(&managed).unwrap();
    assert_eq!((info.kind, info.bucket, info.newest_version), (KeyKind::Managed, Some(BUCKET), 1));
    assert_eq!(k.list_keys().unwrap().len(), 3);
}

#[test]
fn r52_a_cmk_is_named_by_id_or_alias() {
    let c = Config::temp();
    let k = c.make();
    let key = mine(&k);
    assert!(key.0.starts_with("mk-") && key.0.len() == 19);
    assert_eq!(k.resolve("mine").unwrap(), key);
    assert_eq!(k.resolve(&key.0).unwrap(), key);
    assert!(matches!(k.create_key(Some("mine"), ""), Err(KeyError::AliasTaken(a)) if a == "mine"));
    for bad in ["", "mk-1", "ssefs/default", "ssefs/x", "a b", "a\n", &"a".repeat(256)] {
        assert!(matches!(k.create_key(Some(bad), ""), Err(KeyError::BadAlias(_))), "{bad:?}");
    }
    let managed = k.managed_key(&BUCKET).unwrap();
    assert!(matches!(k.resolve(&managed.0), Err(KeyError::NotFound(_))), "a managed key is no CMK");
    assert!(matches!(k.set_state(&managed, KeyState::Disabled), Err(KeyError::Managed(_))));
}

#[test]
fn r59_missing_disabled_and_dying_keys_have_the_vendors_codes_and_the_keys_name() {
    let c = Config::temp();
    let k = c.make();
    let key = mine(&k);
    let made = k.new_kek(&key, &BUCKET, KEK).unwrap();
    let told = |error: KeyError, code: &str, name: &str| {
        assert_eq!(error.code(), Some(code));
        let message = error.to_string();
        assert!(message.starts_with(code) && message.contains(name), "{message}");
    };
    told(k.resolve("nobody").unwrap_err(), "KMS.NotFoundException", "nobody");
    let ghost = KeyId("mk-0000000000000000".into());
    told(k.new_kek(&ghost, &BUCKET, KEK).unwrap_err(), "KMS.NotFoundException", &ghost.0);
    told(k.describe(&ghost).unwrap_err(), "KMS.NotFoundException", &ghost.0);
    told(k.rotate(&ghost).unwrap_err(), "KMS.NotFoundException", &ghost.0);

    k.release(&BUCKET, &key).unwrap();
    for (state, code) in
        [(KeyState::Disabled, "KMS.DisabledException"), (KeyState::PendingDeletion, "KMS.KMSInvalidStateException")]
    {
        match state {
            KeyState::Disabled => k.disable(&key).unwrap(),
            _ => drop(k.schedule_deletion(&key, 30).unwrap()),
        }
        for name in ["mine", &key.0] {
            told(k.new_kek(&key, &BUCKET, KEK).unwrap_err(), code, name);
            told(k.unwrap_kek(&key, 1, &BUCKET, KEK, &made.wrapped).unwrap_err(), code, name);
            told(k.rewrap_kek(&key, 1, &BUCKET, KEK, &made.wrapped).unwrap_err(), code, name);
            told(k.rotate(&key).unwrap_err(), code, name);
        }
        assert_eq!(k.describe(&key).unwrap().state, state);
        assert_eq!(k.resolve("mine").unwrap(), key);
    }
    k.cancel_deletion(&key).unwrap();
    k.enable(&key).unwrap();
    assert_eq!(k.unwrap_kek(&key, 1, &BUCKET, KEK, &made.wrapped).unwrap().expose(), made.kek.expose());
}

#[test]
fn r54_calls_that_an_external_service_would_bill_are_counted() {
    let c = Config::temp();
    let k = c.make();
    let key = mine(&k);
    assert_eq!(k.calls(), 0);
    let made = k.new_kek(&key, &BUCKET, KEK).unwrap();
    k.unwrap_kek(&key, 1, &BUCKET, KEK, &made.wrapped).unwrap();
    k.rewrap_kek(&key, 1, &BUCKET, KEK, &made.wrapped).unwrap();
    k.describe(&key).unwrap();
    k.resolve("mine").unwrap();
    assert_eq!(k.calls(), 3);
}

#[test]
fn threads_share_a_keyring() {
    let c = Config::temp();
    let k = c.make();
    let key = mine(&k);
    std::thread::scope(|s| {
        for t in 0..4u64 {
            let (k, key) = (&k, &key);
            s.spawn(move || {
                for i in 0..10 {
                    let number = KekId(t * 100 + i);
                    let made = k.new_kek(key, &BUCKET, number).unwrap();
                    if i == 5 {
                        k.rotate(key).unwrap();
                    }
                    let opened = k.unwrap_kek(key, made.version, &BUCKET, number, &made.wrapped).unwrap();
                    assert_eq!(opened.expose(), made.kek.expose());
                }
            });
        }
    });
    assert_eq!(k.newest_version(&key).unwrap(), 5);
}
