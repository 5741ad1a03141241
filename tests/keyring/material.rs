//! Key material of one's own, and recovery files.

use crate::{Config, Time};
use ssefs::keys::{KeyError, KeyOrigin, KeyService, KeyState, Material};
use ssefs::types::{BucketId, KekId, to_hex};
use std::fs;

const BUCKET: BucketId = BucketId([1; 16]);

fn material(seed: u8) -> Material {
    Material::parse(&(seed..seed + 32).collect::<Vec<u8>>()).unwrap()
}

#[test]
fn imported_material_wraps_is_deleted_and_comes_back_as_the_same_key_only() {
    let c = Config::temp();
    let k = c.make();
    let key = k.import_key(Some("mine"), "", &material(1)).unwrap();
    let kek = k.new_kek(&key, &BUCKET, KekId(1)).unwrap();
    let info = k.describe(&key).unwrap();
    assert_eq!((info.origin, info.rotate_days, info.next_rotation), (KeyOrigin::Imported, 0, None));
    let not_now = |r: Result<u32, KeyError>, why: &str| {
        let e = r.unwrap_err();
        assert!(matches!(e, KeyError::NotNow { .. }) && e.to_string().contains(why), "{e}");
    };
    not_now(k.rotate(&key), "ssefs key import");
    not_now(k.set_rotation(&key, Some(90)).map(|()| 0), "does not come from here");
    not_now(k.import_into(&key, &material(1)), "in it already");
    assert_eq!(k.import_into(&key, &material(2)).unwrap(), 2, "new material is a new version");
    let newer = k.new_kek(&key, &BUCKET, KekId(2)).unwrap();
    assert_eq!(newer.version, 2);

    let wrapped: Vec<u8> = {
        let db = rusqlite::Connection::open(c.db()).unwrap();
        db.query_row("SELECT wrapped FROM master_key_version WHERE version = 1", [], |r| r.get(0)).unwrap()
    };
    k.delete_material(&key).unwrap();
    assert!(!fs::read(c.db()).unwrap().windows(32).any(|w| w == &wrapped[1..33]), "it is gone");
    for k in [&k, &c.open().unwrap()] {
        assert_eq!(k.describe(&key).unwrap().state, KeyState::PendingImport);
        let e = k.unwrap_kek(&key, 1, &BUCKET, KekId(1), &kek.wrapped).unwrap_err();
        assert_eq!(e.code(), Some("KMS.KMSInvalidStateException"));
        assert!(e.to_string().contains("mine"), "{e}");
        assert!(matches!(k.enable(&key), Err(KeyError::PendingImport(_))));
    }
    not_now(k.import_into(&key, &material(3)), "not the material that was deleted");
    // In any order; the key is whole only with all of it.
    assert_eq!(k.import_into(&key, &material(2)).unwrap(), 2);
    assert_eq!(k.describe(&key).unwrap().state, KeyState::PendingImport);
    assert_eq!(k.import_into(&key, &material(1)).unwrap(), 1);
    assert_eq!(k.describe(&key).unwrap().state, KeyState::Enabled);
    assert_eq!(k.unwrap_kek(&key, 1, &BUCKET, KekId(1), &kek.wrapped).unwrap().expose(), kek.kek.expose());
    assert_eq!(k.unwrap_kek(&key, 2, &BUCKET, KekId(2), &newer.wrapped).unwrap().expose(), newer.kek.expose());

    let generated = k.create_key(None, "").unwrap();
    not_now(k.import_into(&generated, &material(4)), "imported keys only");
    not_now(k.delete_material(&generated).map(|()| 0), "delete the key instead");
    k.disable(&key).unwrap();
    assert!(matches!(k.import_into(&key, &material(9)), Err(KeyError::Disabled(_))));
}

#[test]
fn a_deletion_that_is_cancelled_does_not_enable_a_key_without_material() {
    let c = Config::temp();
    let k = c.make();
    let key = k.import_key(None, "", &material(1)).unwrap();
    k.delete_material(&key).unwrap();
    k.schedule_deletion(&key, 7).unwrap();
    assert!(matches!(k.import_into(&key, &material(1)), Err(KeyError::PendingDeletion(_))));
    k.cancel_deletion(&key).unwrap();
    assert_eq!(k.describe(&key).unwrap().state, KeyState::PendingImport);
}

#[test]
fn a_recovery_file_brings_a_destroyed_key_back_under_its_id() {
    let c = Config::temp();
    c.make();
    let time = Time::now();
    let k = c.open_by(&time);
    let key = k.create_key(Some("mine"), "a \"key\"\nof mine").unwrap();
    k.set_rotation(&key, Some(30)).unwrap();
    k.rotate(&key).unwrap();
    let kek = k.new_kek(&key, &BUCKET, KekId(1)).unwrap();
    let (file, seal) = (c.beside("mine.key"), material(7));
    k.export_key(&key, &seal, &file).unwrap();
    assert!(matches!(k.export_key(&key, &seal, &file), Err(KeyError::FileExists(_))));
    assert!(matches!(k.restore_key(&file, &seal), Err(KeyError::KeyThere(_))), "only what is gone comes back");

    k.release(&BUCKET, &key).unwrap();
    k.schedule_deletion_in(&key, 1).unwrap();
    time.pass(2);
    assert_eq!(k.upkeep(false).unwrap().destroyed, std::slice::from_ref(&key));
    assert!(matches!(k.unwrap_kek(&key, 2, &BUCKET, KekId(1), &kek.wrapped), Err(KeyError::Destroyed { .. })));
    let taken = k.create_key(Some("mine"), "").unwrap();

    let wrong = k.restore_key(&file, &material(8)).unwrap_err();
    assert!(wrong.to_string().contains("sealed under another key"), "{wrong}");
    assert_eq!(k.restore_key(&file, &seal).unwrap(), key);
    assert_eq!(k.unwrap_kek(&key, 2, &BUCKET, KekId(1), &kek.wrapped).unwrap().expose(), kek.kek.expose());
    let info = k.describe(&key).unwrap();
    assert_eq!((info.alias, info.newest_version, info.rotate_days), (None, 2, 30), "its alias is another's now");
    assert_eq!(info.description, "a \"key\"\nof mine");
    assert_eq!(k.resolve("mine").unwrap(), taken);
    // Into a keyring that has never seen it.
    let other = Config::temp();
    let o = other.make();
    assert_eq!(o.restore_key(&file, &seal).unwrap(), key);
    assert_eq!(o.resolve("mine").unwrap(), key);
    assert_eq!(o.unwrap_kek(&key, 2, &BUCKET, KekId(1), &kek.wrapped).unwrap().expose(), kek.kek.expose());
}

#[test]
fn a_recovery_file_that_was_changed_anywhere_is_refused() {
    let c = Config::temp();
    let k = c.make();
    let key = k.create_key(Some("mine"), "d").unwrap();
    k.rotate(&key).unwrap();
    let (file, seal) = (c.beside("mine.key"), material(7));
    k.export_key(&key, &seal, &file).unwrap();
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let good = fs::read_to_string(&file).unwrap();
    assert!(!good.contains(&to_hex(&(7..39).collect::<Vec<u8>>())));
    let other = Config::temp();
    let o = other.make();
    let refused = |text: &[u8]| {
        let bad = c.beside("bad.key");
        fs::write(&bad, text).unwrap();
        match o.restore_key(&bad, &seal) {
            Err(e @ KeyError::Recovery { .. }) => e.to_string(),
            other => panic!("{other:?} for {}", String::from_utf8_lossy(text)),
        }
    };
    for i in 0..good.len() {
        let mut bytes = good.clone().into_bytes();
        bytes[i] ^= 1;
        refused(&bytes);
    }
    for n in [0, 1, 17, 18, good.len() / 2, good.len() - 1] {
        refused(&good.as_bytes()[..n]);
    }
    let second: Vec<&str> = good.lines().filter(|l| !l.starts_with("version 2")).collect();
    assert!(refused((second.join("\n") + "\n").as_bytes()).contains("altered"));
    assert!(refused(good.replace("alias \"mine\"", "alias \"root\"").as_bytes()).contains("altered"));
    assert!(refused(good.replace("ssefs-key-export-1", "ssefs-key-export-2").as_bytes()).contains("newer"));
    assert!(refused(b"\xff\xfe").contains("not text"));
    assert_eq!(o.list_keys().unwrap(), []);
    assert!(matches!(o.restore_key(&c.beside("none"), &seal), Err(KeyError::Io { .. })));
}
