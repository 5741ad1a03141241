//! Stores and buckets: nothing is made in the place of a disk that is not mounted.

use crate::Config;
use ssefs::crypto::secret::BucketKey;
use ssefs::keys::{KeyError, KeyService};
use ssefs::types::{BucketId, BucketName, StoreId};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

#[test]
fn a_store_is_made_only_when_asked_and_keeps_its_id() {
    let c = Config::temp();
    let k = c.make();
    let path = c.beside("deep/store");
    let error = k.open_store(&path, false).unwrap_err();
    assert!(matches!(error, KeyError::StoreMissing(_)) && error.to_string().contains("deep/store"), "{error}");
    assert!(!path.exists());
    let id = k.open_store(&path, true).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o700);
    assert_eq!(fs::metadata(path.join("store.id")).unwrap().permissions().mode() & 0o7777, 0o600);
    assert_eq!(fs::read_to_string(path.join("store.id")).unwrap(), format!("ssefs-store-1 {id}\n"));
    assert_eq!(k.open_store(&path, true).unwrap(), id);
    assert_eq!(c.open().unwrap().open_store(&path, false).unwrap(), id);
    assert_eq!(fs::read_dir(&path).unwrap().count(), 1);
}

#[test]
fn a_store_has_one_name_whatever_way_leads_to_it() {
    let c = Config::temp();
    let k = c.make();
    let path = c.beside("store");
    let id = k.open_store(&path, true).unwrap();
    symlink(&path, c.beside("link")).unwrap();
    for other in [c.beside("link"), c.beside("store/."), c.beside("store/../store")] {
        assert_eq!(k.open_store(&other, false).unwrap(), id);
    }
    assert_eq!(k.list_stores().unwrap(), [(id, path.canonicalize().unwrap())]);
}

#[test]
fn a_known_path_without_its_id_file_asks_whether_the_disk_is_mounted() {
    let c = Config::temp();
    let k = c.make();
    let path = c.beside("store");
    let id = k.open_store(&path, true).unwrap();
    fs::remove_file(path.join("store.id")).unwrap();
    for create in [false, true] {
        let error = k.open_store(&path, create).unwrap_err();
        assert!(matches!(error, KeyError::StoreGone { known, .. } if known == id));
        assert!(error.to_string().contains("is the disk mounted?"), "{error}");
    }
    fs::remove_dir_all(&path).unwrap();
    assert!(matches!(k.open_store(&path, true), Err(KeyError::StoreGone { .. })));
    assert!(!path.exists(), "nothing is made there");
}

#[test]
fn swapped_stores_are_refused() {
    let c = Config::temp();
    let k = c.make();
    let (a, b) = (c.beside("a"), c.beside("b"));
    let (id_a, id_b) = (k.open_store(&a, true).unwrap(), k.open_store(&b, true).unwrap());
    fs::rename(&a, c.beside("t")).unwrap();
    fs::rename(&b, &a).unwrap();
    fs::rename(c.beside("t"), &b).unwrap();
    assert!(
        matches!(k.open_store(&a, true), Err(KeyError::StoreSwapped { known, found, .. }) if known == id_a && found == id_b)
    );
    assert!(matches!(k.open_store(&b, false), Err(KeyError::StoreSwapped { .. })));
}

#[test]
fn a_moved_store_is_known_at_its_new_place() {
    let c = Config::temp();
    let k = c.make();
    let id = k.open_store(&c.beside("a"), true).unwrap();
    fs::rename(c.beside("a"), c.beside("b")).unwrap();
    assert_eq!(k.open_store(&c.beside("b"), false).unwrap(), id);
    assert_eq!(k.list_stores().unwrap(), [(id, c.beside("b").canonicalize().unwrap())]);
    // The old place is free again.
    assert_ne!(k.open_store(&c.beside("a"), true).unwrap(), id);
}

#[test]
fn a_malformed_id_and_buckets_without_one_are_refused() {
    let c = Config::temp();
    let k = c.make();
    let path = c.beside("store");
    fs::create_dir_all(path.join("buckets/old")).unwrap();
    assert!(matches!(k.open_store(&path, true), Err(KeyError::StoreIdLost(_))));
    for bad in ["", "x", "ssefs-store-1 12\n", "ssefs-store-1 000102030405060708090a0b0c0d0e0f", "ssefs-store-2 0\n"] {
        fs::write(path.join("store.id"), bad).unwrap();
        assert!(matches!(k.open_store(&path, true), Err(KeyError::StoreIdMalformed { .. })), "{bad:?}");
    }
}

#[test]
fn a_bucket_is_known_by_store_and_name_until_it_is_forgotten() {
    let c = Config::temp();
    let k = c.make();
    let store = k.open_store(&c.beside("a"), true).unwrap();
    let other = k.open_store(&c.beside("b"), true).unwrap();
    let name: BucketName = "photos".parse().unwrap();
    let (id, key) = (BucketId([4; 16]), BucketKey::random().unwrap());
    assert!(k.bucket_key(&store, &name).unwrap().is_none());
    k.register_bucket(&store, &name, &id, &key, None).unwrap();

    drop(k);
    let k = c.open().unwrap();
    let (found, found_key) = k.bucket_key(&store, &name).unwrap().unwrap();
    assert_eq!((found, found_key.expose()), (id, key.expose()));
    assert!(k.bucket_key(&other, &name).unwrap().is_none());
    assert!(k.bucket_key(&store, &"other".parse().unwrap()).unwrap().is_none());

    // Neither the name nor the id may become another bucket's.
    let taken = k.register_bucket(&store, &name, &BucketId([5; 16]), &key, None);
    assert!(matches!(taken, Err(KeyError::BucketKnown(n)) if n == "photos"));
    let taken = k.register_bucket(&other, &"x".parse().unwrap(), &id, &key, None);
    assert!(matches!(taken, Err(KeyError::BucketKnown(_))));
    let nowhere = k.register_bucket(&StoreId([9; 16]), &name, &BucketId([5; 16]), &key, None);
    assert!(matches!(nowhere, Err(KeyError::StoreUnknown(_))));

    k.register_bucket(&store, &"beach".parse().unwrap(), &BucketId([5; 16]), &key, None).unwrap();
    let names: Vec<_> = k.list_buckets(&store).unwrap().into_iter().map(|b| b.name).collect();
    assert_eq!(names, ["beach", "photos"]);

    let managed = k.managed_key(&id).unwrap();
    k.forget_bucket(&id).unwrap();
    assert!(k.bucket_key(&store, &name).unwrap().is_none());
    assert!(matches!(k.describe(&managed), Err(KeyError::NotFound(_))));
    assert!(matches!(k.forget_bucket(&id), Err(KeyError::BucketUnknown(_))));
    k.register_bucket(&store, &name, &BucketId([6; 16]), &key, None).unwrap();
}
