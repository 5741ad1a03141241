//! Who hangs on a key, and who may name it.

use crate::Config;
use ssefs::crypto::secret::BucketKey;
use ssefs::keys::{KeyError, KeyService, Keyring};
use ssefs::types::{BucketId, KekId, KeyId};

const A: BucketId = BucketId([1; 16]);
const B: BucketId = BucketId([2; 16]);

fn users(k: &Keyring, key: &KeyId) -> Vec<BucketId> {
    k.describe(key).unwrap().used_by.iter().map(|d| d.bucket).collect()
}

#[test]
fn r75_a_bucket_is_registered_before_its_first_kek_and_keeps_the_key_from_deletion() {
    let c = Config::temp();
    let k = c.make();
    let key = k.create_key(Some("mine"), "").unwrap();
    let generation = k.generation().unwrap();
    k.new_kek(&key, &A, KekId(1)).unwrap();
    assert_eq!(k.generation().unwrap(), generation + 1);
    k.new_kek(&key, &A, KekId(2)).unwrap();
    assert_eq!(k.generation().unwrap(), generation + 1, "once");
    k.new_kek(&key, &B, KekId(1)).unwrap();
    // Durable: also for whoever opens the keyring later.
    let k = c.open().unwrap();
    assert_eq!(users(&k, &key), [A, B]);
    let refused = k.schedule_deletion(&key, 30).unwrap_err();
    assert!(matches!(refused, KeyError::InUse { buckets: 2, .. }), "{refused}");
    assert!(refused.to_string().contains("mine"));
    k.release(&A, &key).unwrap();
    assert!(matches!(k.schedule_deletion(&key, 30), Err(KeyError::InUse { buckets: 1, .. })));
    k.release(&B, &key).unwrap();
    k.schedule_deletion(&key, 30).unwrap();
    // From here on nobody comes to hang on it.
    for refused in [k.depend(&A, &key), k.new_kek(&key, &A, KekId(3)).map(drop)] {
        assert!(matches!(refused, Err(KeyError::PendingDeletion(_))));
    }
    assert_eq!(users(&k, &key), []);
}

#[test]
fn a_bucket_that_is_deleted_lets_its_keys_go_and_one_that_is_made_holds_the_key_of_its_rule() {
    let c = Config::temp();
    let k = c.make();
    let store = k.open_store(&c.beside("store"), true).unwrap();
    let key = k.create_key(None, "").unwrap();
    let secret = BucketKey::random().unwrap();
    k.register_bucket(&store, &"photos".parse().unwrap(), &A, &secret, Some(&key)).unwrap();
    let user = &k.describe(&key).unwrap().used_by[0];
    assert_eq!(user.place, Some(("photos".into(), c.beside("store").canonicalize().unwrap())));
    assert_eq!(k.keys_of(&A).unwrap(), std::slice::from_ref(&key));
    k.forget_bucket(&A).unwrap();
    assert_eq!(users(&k, &key), []);
    // A key that cannot be used makes no bucket, and nothing is left of the try.
    k.disable(&key).unwrap();
    let made = k.register_bucket(&store, &"photos".parse().unwrap(), &B, &secret, Some(&key));
    assert!(matches!(made, Err(KeyError::Disabled(_))));
    assert!(k.bucket_key(&store, &"photos".parse().unwrap()).unwrap().is_none());
    assert_eq!(users(&k, &key), []);
    // A managed key belongs to its bucket and is nobody else's.
    let managed = k.managed_key(&B).unwrap();
    k.new_kek(&managed, &B, KekId(1)).unwrap();
    assert_eq!(users(&k, &managed), []);
}

#[test]
fn a_key_is_named_by_root_by_the_keyrings_owner_and_by_whom_it_is_granted() {
    let c = Config::temp();
    let k = c.make();
    let key = k.create_key(Some("mine"), "").unwrap();
    // SAFETY: no preconditions.
    let owner = unsafe { libc::geteuid() };
    let (user, other) = (owner + 4711, owner + 4712);
    for uid in [0, owner] {
        assert_eq!(k.name_key(uid, "mine").unwrap(), key);
    }
    let denied = |uid, name: &str| {
        let e = k.name_key(uid, name).unwrap_err();
        assert!(matches!(e, KeyError::Denied { .. }), "{e}");
        assert_eq!(e.code(), Some("AccessDenied"));
        e.to_string().replace(name, "KEY")
    };
    assert!(denied(user, "mine").contains("ssefs key grant KEY"), "it says how to get it");
    assert_eq!(denied(user, "mine"), denied(user, "nobody"), "it does not tell which keys there are");
    k.grant(&key, user, true).unwrap();
    k.grant(&key, user, true).unwrap();
    assert_eq!(k.name_key(user, &key.0).unwrap(), key);
    assert_eq!(k.describe(&key).unwrap().grants, [user]);
    denied(other, "mine");
    let e = k.name_key(0, "nobody").unwrap_err();
    assert_eq!(e.code(), Some("KMS.NotFoundException"));
    k.disable(&key).unwrap();
    assert!(matches!(k.name_key(user, "mine"), Err(KeyError::Disabled(_))));
    k.grant(&key, user, false).unwrap();
    denied(user, "mine");
    // The default key is everybody's.
    let default = k.default_cmk().unwrap();
    assert_eq!(k.name_key(other, ssefs::keys::DEFAULT_CMK_ALIAS).unwrap(), default);
}
