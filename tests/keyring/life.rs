//! The life of a key: states, waiting period, destruction that no wrong clock hastens, rotation by period.

use crate::{Config, DAY, Time};
use ssefs::keys::{KeyError, KeyService, KeyState, Keyring};
use ssefs::types::{BucketId, KekId, KeyId};

const BUCKET: BucketId = BucketId([1; 16]);

/// A keyring with one key, opened by a clock of the test's.
fn with_key() -> (Config, Time, Keyring, KeyId) {
    let c = Config::temp();
    let key = c.make().create_key(Some("mine"), "a key of mine").unwrap();
    let time = Time::now();
    let k = c.open_by(&time);
    (c, time, k, key)
}

fn state(k: &Keyring, key: &KeyId) -> KeyState {
    k.describe(key).unwrap().state
}

#[test]
fn r75_a_deleted_key_waits_is_cancelled_or_destroyed_and_leaves_its_tombstone() {
    let (c, time, k, key) = with_key();
    for days in [0, 6, 31, u32::MAX] {
        assert!(matches!(k.schedule_deletion(&key, days), Err(KeyError::WaitDays(d)) if d == days));
    }
    let at = k.schedule_deletion(&key, 7).unwrap();
    assert_eq!(at, time.get() + 7 * DAY);
    assert_eq!(k.describe(&key).unwrap().delete_after, Some(at));
    assert!(matches!(k.schedule_deletion(&key, 7), Err(KeyError::PendingDeletion(_))), "nothing shortens it");
    assert!(matches!(k.enable(&key), Err(KeyError::PendingDeletion(_))));
    assert!(matches!(k.disable(&key), Err(KeyError::PendingDeletion(_))));
    k.cancel_deletion(&key).unwrap();
    assert_eq!(state(&k, &key), KeyState::Disabled);
    assert!(matches!(k.cancel_deletion(&key), Err(KeyError::NotNow { .. })));
    k.enable(&key).unwrap();
    k.new_kek(&key, &BUCKET, KekId(1)).unwrap();
    k.release(&BUCKET, &key).unwrap();

    k.schedule_deletion(&key, 30).unwrap();
    time.pass(30 * DAY - 1);
    assert_eq!(k.upkeep(true).unwrap().destroyed, []);
    time.pass(1);
    assert_eq!(k.upkeep(true).unwrap().destroyed, [], "its end is seen for the first time");
    assert_eq!(state(&k, &key), KeyState::PendingDeletion);
    time.pass(DAY);
    // Any opening will do, not only the one that scheduled it.
    let k = c.open_by(&time);
    let info = k.describe(&key).unwrap();
    assert_eq!((info.state, info.alias, info.destroyed), (KeyState::Destroyed, None, Some(time.get())));
    assert_eq!((info.newest_version, info.versions), (0, vec![]));
    // Its alias is free, its id tells what became of it, and it comes to no other state.
    let again = k.create_key(Some("mine"), "").unwrap();
    assert_ne!(again, key);
    let gone = |r: Result<(), KeyError>| {
        let e = r.unwrap_err();
        assert!(matches!(e, KeyError::Destroyed { .. }), "{e}");
        assert_eq!(e.code(), Some("KMS.NotFoundException"));
        assert!(e.to_string().contains(&key.0), "{e}");
    };
    gone(k.enable(&key));
    gone(k.disable(&key));
    gone(k.cancel_deletion(&key));
    gone(k.schedule_deletion(&key, 7).map(drop));
    gone(k.rotate(&key).map(drop));
    gone(k.set_alias(&key, Some("x")));
    gone(k.set_rotation(&key, Some(9)));
    gone(k.grant(&key, 1, true));
    gone(k.new_kek(&key, &BUCKET, KekId(1)).map(drop));
    gone(k.unwrap_kek(&key, 1, &BUCKET, KekId(1), &[]).map(drop));
    gone(k.name_key(0, &key.0).map(drop));
}

#[test]
fn a_clock_that_jumps_back_makes_a_key_wait_longer_and_never_less() {
    let (_c, time, k, key) = with_key();
    let seen = time.get();
    // Behind at scheduling, right again afterwards: counted from the latest time that the keyring knew.
    time.jump(-3650 * DAY);
    let at = k.schedule_deletion(&key, 7).unwrap();
    assert!(at >= seen + 7 * DAY - 5, "{at} is before {seen} and 7 days");
    time.jump(3650 * DAY);
    for _ in 0..8 {
        assert_eq!(k.upkeep(true).unwrap().destroyed, []);
        time.pass(DAY - 10);
    }
    // Behind while it waits, after its end was seen once: that look counts no more.
    k.upkeep(true).unwrap();
    time.jump(-30 * DAY);
    k.upkeep(true).unwrap();
    time.jump(31 * DAY);
    assert_eq!(k.upkeep(true).unwrap().destroyed, []);
    time.pass(2 * DAY);
    assert_eq!(k.upkeep(true).unwrap().destroyed, [key]);
}

#[test]
fn a_clock_that_is_ahead_destroys_nothing_unless_it_stays_so_for_a_day() {
    let (c, time, k, key) = with_key();
    k.schedule_deletion(&key, 30).unwrap();
    let none = |k: &Keyring| assert_eq!(k.upkeep(true).unwrap().destroyed, []);
    // A clock that is 12 years ahead when the machine starts, and leaps on.
    time.jump(12 * 365 * DAY);
    none(&k);
    time.jump(2 * DAY);
    none(&k);
    time.pass(600);
    none(&c.open_by(&time));
    // Set right: forgotten, so that the next time begins anew.
    time.jump(-(12 * 365 + 2) * DAY);
    none(&k);
    time.reboot();
    time.jump(12 * 365 * DAY);
    none(&k);
    time.jump(-12 * 365 * DAY);
    none(&k);
    assert_eq!(state(&k, &key), KeyState::PendingDeletion);
    k.cancel_deletion(&key).unwrap();

    // What was scheduled by the wrong clock waits for that clock's time, until somebody says which is right.
    let (clock, seen) = k.clocks().unwrap();
    assert!(seen - clock > 4000 * DAY);
    assert!(k.schedule_deletion(&key, 7).unwrap() > clock + 4000 * DAY);
    k.cancel_deletion(&key).unwrap();
    k.trust_clock().unwrap();
    assert_eq!(k.schedule_deletion(&key, 7).unwrap(), clock + 7 * DAY);
}

#[test]
fn a_keyring_that_cannot_be_written_to_opens_all_the_same() {
    let (c, time, k, key) = with_key();
    k.schedule_deletion_in(&key, 1).unwrap();
    drop(k);
    time.pass(5000);
    // Held by somebody who writes: root would not be kept off by a mode.
    let db = rusqlite::Connection::open(c.db()).unwrap();
    db.execute_batch("BEGIN IMMEDIATE").unwrap();
    let began = std::time::Instant::now();
    let k = c.open_by(&time);
    assert_eq!(state(&k, &key), KeyState::PendingDeletion, "later, then");
    assert!(began.elapsed().as_secs() < 60);
    db.execute_batch("ROLLBACK").unwrap();
    assert_eq!(k.upkeep(false).unwrap().destroyed, [key]);
}

#[test]
fn a_machine_that_was_off_destroys_a_key_a_day_after_it_is_on_again() {
    let (c, time, _, key) = with_key();
    c.open_by(&time).schedule_deletion(&key, 7).unwrap();
    time.pass(400 * DAY);
    time.reboot();
    assert_eq!(state(&c.open_by(&time), &key), KeyState::PendingDeletion);
    time.pass(DAY);
    time.reboot();
    assert_eq!(state(&c.open_by(&time), &key), KeyState::Destroyed);
}

#[test]
fn a_destroyed_key_leaves_none_of_its_bytes_beside_the_keyring() {
    let (c, time, k, key) = with_key();
    let wrapped = |k: &KeyId| -> Vec<u8> {
        let db = rusqlite::Connection::open(c.db()).unwrap();
        db.query_row("SELECT wrapped FROM master_key_version WHERE key_id = ?", [&k.0], |r| r.get(0)).unwrap()
    };
    let bytes = wrapped(&key);
    let found = || {
        let files: Vec<_> = std::fs::read_dir(c.dir()).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(files.len(), 2, "{files:?}");
        files.iter().any(|f| std::fs::read(f).unwrap().windows(32).any(|w| w == &bytes[1..33]))
    };
    assert!(found(), "or this test could not fail");
    k.schedule_deletion_in(&key, 0).unwrap();
    time.pass(1);
    assert_eq!(k.upkeep(false).unwrap().destroyed, [key]);
    assert!(!found());
}

#[test]
fn the_journal_of_a_destruction_is_overwritten_before_its_blocks_are_free() {
    let (c, time, k, _) = with_key();
    // A second name keeps its file when SQLite takes its own away: given while it is there, which may take some tries.
    let (journal, kept) = (c.dir().join("keyring.db-journal"), c.beside("journal"));
    let stop = std::sync::atomic::AtomicBool::new(false);
    for _ in 0..50 {
        let key = k.create_key(None, "").unwrap();
        k.schedule_deletion_in(&key, 0).unwrap();
        time.pass(1);
        stop.store(false, std::sync::atomic::Ordering::Relaxed);
        std::thread::scope(|s| {
            s.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) && std::fs::hard_link(&journal, &kept).is_err() {
                    std::hint::spin_loop();
                }
            });
            assert_eq!(k.upkeep(false).unwrap().destroyed, [key]);
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        if let Ok(left) = std::fs::read(&kept) {
            assert!(left.len() > 512 && left.iter().all(|b| *b == 0), "{} bytes, not all zero", left.len());
            return;
        }
    }
    panic!("the journal was never seen: this test shows nothing");
}

#[test]
fn r20_keys_rotate_by_themselves_when_older_than_their_period() {
    let (_c, time, k, key) = with_key();
    let managed = k.managed_key(&BUCKET).unwrap();
    let often = k.create_key(Some("often"), "").unwrap();
    let never = k.create_key(Some("never"), "").unwrap();
    k.set_rotation(&often, Some(90)).unwrap();
    k.set_rotation(&never, Some(0)).unwrap();
    assert!(matches!(k.set_rotation(&often, Some(36_501)), Err(KeyError::RotateDays)));
    let off = k.create_key(Some("off"), "").unwrap();
    k.disable(&off).unwrap();
    let info = k.describe(&often).unwrap();
    assert_eq!((info.rotate_days, info.next_rotation), (90, Some(info.created + 90 * DAY)));
    assert_eq!(k.describe(&key).unwrap().rotate_days, 365);

    let newest = || [&key, &managed, &often, &never, &off].map(|key| k.newest_version(key).unwrap());
    k.upkeep(true).unwrap();
    assert_eq!(newest(), [1, 1, 1, 1, 1]);
    time.pass(90 * DAY);
    assert_eq!(k.upkeep(false).unwrap().rotated, [], "the command line rotates nothing by the way");
    assert_eq!(k.upkeep(true).unwrap().rotated, [(often.clone(), 2)]);
    assert_eq!(k.upkeep(true).unwrap().rotated, [], "once");
    time.pass(275 * DAY);
    k.upkeep(true).unwrap();
    assert_eq!(newest(), [2, 2, 3, 1, 1], "managed keys too, disabled ones not");
    // A clock that has gone back rotates nothing, and nothing twice when it is right again.
    time.jump(-700 * DAY);
    assert_eq!(k.upkeep(true).unwrap().rotated, []);
    time.jump(700 * DAY);
    assert_eq!(k.upkeep(true).unwrap().rotated, []);
    // A version that a wrong clock dated far ahead does not keep its key from rotating.
    time.jump(7000 * DAY);
    k.upkeep(true).unwrap();
    time.jump(-7000 * DAY);
    k.trust_clock().unwrap();
    k.set_rotation(&never, Some(0)).unwrap();
    let rotated: Vec<_> = k.upkeep(true).unwrap().rotated.into_iter().map(|(key, _)| key).collect();
    assert!(rotated.contains(&key) && rotated.contains(&often) && !rotated.contains(&never), "{rotated:?}");
    assert_eq!(k.upkeep(true).unwrap().rotated, []);
}

#[test]
fn two_that_look_at_once_destroy_and_rotate_once() {
    let (c, time, k, key) = with_key();
    let doomed = k.create_key(None, "").unwrap();
    k.schedule_deletion_in(&doomed, 1).unwrap();
    let other = c.open_by(&time);
    time.pass(366 * DAY);
    let (a, b) = std::thread::scope(|s| {
        let (a, b) = (s.spawn(|| k.upkeep(true).unwrap()), s.spawn(|| other.upkeep(true).unwrap()));
        (a.join().unwrap(), b.join().unwrap())
    });
    assert_eq!(a.destroyed.len() + b.destroyed.len(), 1, "{a:?} {b:?}");
    assert_eq!(a.rotated.len() + b.rotated.len(), 1, "{a:?} {b:?}");
    assert_eq!(k.newest_version(&key).unwrap(), 2);
    assert_eq!(state(&k, &doomed), KeyState::Destroyed);
}

#[test]
fn r52_an_alias_can_be_changed_and_goes_with_nobody_else() {
    let (_c, _time, k, key) = with_key();
    let other = k.create_key(Some("other"), "").unwrap();
    assert!(matches!(k.set_alias(&key, Some("other")), Err(KeyError::AliasTaken(_))));
    assert!(matches!(k.set_alias(&key, Some("ssefs/default")), Err(KeyError::BadAlias(_))));
    k.set_alias(&key, Some("mine")).unwrap();
    k.set_alias(&key, Some("new")).unwrap();
    assert_eq!(k.resolve("new").unwrap(), key);
    assert!(matches!(k.resolve("mine"), Err(KeyError::NotFound(_))));
    k.set_alias(&other, Some("mine")).unwrap();
    assert_eq!(k.resolve("mine").unwrap(), other);
    k.set_alias(&other, None).unwrap();
    assert_eq!(k.describe(&other).unwrap().alias, None);
    let default = k.default_cmk().unwrap();
    assert!(matches!(k.set_alias(&default, Some("x")), Err(KeyError::BadAlias(_))), "it is found by its alias");
    k.set_description(&key, "for photos\n").unwrap();
    assert_eq!(k.describe(&key).unwrap().description, "for photos\n");
    assert!(matches!(k.set_description(&key, &"x".repeat(8193)), Err(KeyError::BadDescription)));
    let managed = k.managed_key(&BUCKET).unwrap();
    assert!(matches!(k.set_alias(&managed, Some("m")), Err(KeyError::Managed(_))));
    assert!(matches!(k.schedule_deletion(&managed, 7), Err(KeyError::Managed(_))));
}
