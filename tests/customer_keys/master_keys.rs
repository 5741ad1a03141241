//! Master keys that are disabled while objects under them are open: cut off within `key_check`, let in again when enabled.

use crate::mount::{Mount, errno, set_xattr, skip_without_ssefs};
use crate::run::eventually;
use crate::sys::{Map, signal_of_child};
use crate::{method, refused};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// As another process does it: the mount is told nothing.
fn set_state(m: &Mount, key: &str, enabled: bool) {
    use ssefs::keys::{KeyService, KeyState, Keyring, RootSource};
    let keys = Keyring::open(&m.config(), RootSource::in_config(&m.config())).unwrap();
    let id = keys.resolve(key).unwrap();
    keys.set_state(&id, if enabled { KeyState::Enabled } else { KeyState::Disabled }).unwrap();
}

fn with_key(name: &str) -> Option<Mount> {
    if skip_without_ssefs() {
        return None;
    }
    let m = Mount::builder().option("key_check=0.2").option("key_grace=0.5").mount();
    m.ssefs(&["key", "create", "--alias", name]).ok();
    set_xattr(m.path(), "user.sse.default", format!("KMS:{name}")).unwrap();
    Some(m)
}

#[test]
fn r30_a_disabled_key_is_cut_off_also_for_open_files_and_mappings_and_comes_back_when_enabled() {
    let Some(mut m) = with_key("mine") else { return };
    let (f, g) = (m.at("f"), m.at("g"));
    fs::write(&f, vec![3; 100_000]).unwrap();
    fs::write(&g, b"by another key").unwrap();
    set_xattr(&g, "user.sse.algorithm", "AES256").unwrap();
    let read = File::open(&f).unwrap();
    let both = OpenOptions::new().read(true).write(true).open(&f).unwrap();
    let map = Map::new(&both, 100_000, libc::MAP_SHARED).unwrap();
    assert_eq!((map.byte(5), method(&m, "f")), (3, "KMS".into()));
    both.write_all_at(b"acknowledged", 50_000).unwrap();
    let mut one = [0];
    let begun = Instant::now();
    set_state(&m, "mine", false);
    assert!(eventually(|| read.read_at(&mut [0], 0).is_err()));
    assert!(begun.elapsed() < Duration::from_secs(4), "key_check is 0.2 s: {:?}", begun.elapsed());
    assert!(eventually(|| read.read_at(&mut [0], 50_000).is_err()));
    refused(&m, both.read_at(&mut one, 0), libc::EKEYREVOKED, &["KMS.DisabledException", "mine"]);
    assert_eq!(errno(both.write_at(b"x", 0)), libc::EKEYREVOKED);
    for flags in [libc::O_RDONLY, libc::O_RDWR, libc::O_WRONLY | libc::O_TRUNC] {
        refused(&m, crate::sys::open(&f, flags, 0), libc::EKEYREVOKED, &["KMS.DisabledException", "mine"]);
    }
    let new = fs::write(m.at("new"), b"never plain");
    assert_eq!((errno(new), fs::metadata(m.at("new")).unwrap().len()), (libc::EKEYREVOKED, 0));
    assert_eq!(signal_of_child(|| _ = std::hint::black_box(map.byte(5))), Some(libc::SIGBUS));
    // Others go on, and what needs no key does.
    assert_eq!(fs::read(&g).unwrap(), b"by another key");
    assert_eq!((fs::metadata(&f).unwrap().len(), method(&m, "f")), (100_000, "KMS".into()));
    fs::rename(&f, m.at("h")).unwrap();
    let f = m.at("h");
    set_state(&m, "mine", true);
    assert_eq!(fs::read(&f).unwrap()[49_998..50_014], *b"\x03\x03acknowledged\x03\x03");
    fs::write(m.at("new"), b"new").unwrap();
    drop((map, read, both));
    m.remount();
    assert_eq!(fs::read(&f).unwrap()[50_000..50_012], *b"acknowledged");
    // Disabled again, an object can still be deleted and its space comes back: the check at the end counts it.
    set_state(&m, "mine", false);
    assert!(eventually(|| File::open(&f).is_err()));
    fs::remove_file(&f).unwrap();
    m.remount();
    assert_eq!(errno(fs::read(m.at("new"))), libc::EKEYREVOKED);
}

#[test]
fn a_disabled_key_stops_who_writes_without_a_pause_and_loses_nothing_acknowledged() {
    let Some(mut m) = with_key("mine") else { return };
    let f = m.at("f");
    fs::write(&f, vec![3; 300_000]).unwrap();
    let writers: Vec<_> = (0..3u64)
        .map(|n| {
            let file = OpenOptions::new().read(true).write(true).open(&f).unwrap();
            std::thread::spawn(move || {
                let mut count = 0u64;
                loop {
                    match file.write_at(&(count + 1).to_le_bytes(), n * 100_000) {
                        Ok(_) => count += 1,
                        Err(e) => return (count, e.raw_os_error()),
                    }
                    let _ = file.read_at(&mut [0; 5000], n * 90_000);
                }
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(300));
    set_state(&m, "mine", false);
    let ended: Vec<(u64, Option<i32>)> = writers.into_iter().map(|w| w.join().unwrap()).collect();
    assert!(ended.iter().all(|(n, e)| *n > 0 && *e == Some(libc::EKEYREVOKED)), "{ended:?}");
    assert!(eventually(|| File::open(&f).is_err()));
    set_state(&m, "mine", true);
    m.remount();
    let got = fs::read(&f).unwrap();
    for (n, (count, _)) in ended.into_iter().enumerate() {
        assert_eq!(got[n * 100_000..][..8], count.to_le_bytes(), "writer {n}");
    }
}

#[test]
fn a_keyring_put_in_place_by_a_rename_is_followed_but_not_an_older_one() {
    let Some(m) = with_key("mine") else { return };
    let (f, at) = (m.at("f"), m.config().join("keyring.db"));
    fs::write(&f, vec![3; 10_000]).unwrap();
    let older = m.beside("older");
    fs::copy(&at, &older).unwrap();
    // A copy is changed, and takes the keyring's place: what the mount has open never changes again.
    fs::copy(&at, m.config().join("kept")).unwrap();
    set_state(&m, "mine", false);
    let disabled = m.beside("disabled");
    fs::rename(&at, &disabled).unwrap();
    fs::rename(m.config().join("kept"), &at).unwrap();
    set_state(&m, "mine", false);
    assert!(eventually(|| File::open(&f).is_err()));
    assert_eq!(errno(File::open(&f)), libc::EKEYREVOKED);
    set_state(&m, "mine", true);
    assert!(eventually(|| fs::read(&f).is_ok()));
    fs::rename(&older, &at).unwrap();
    assert!(eventually(|| File::open(&f).is_err()), "an older one is none: after the grace");
    assert_eq!(errno(File::open(&f)), libc::ENOKEY);
}

#[test]
fn a_keyring_that_is_gone_is_borne_for_the_grace_and_then_cuts_off_until_it_is_back() {
    let Some(m) = with_key("mine") else { return };
    let f = m.at("f");
    fs::write(&f, vec![3; 10_000]).unwrap();
    let open = File::open(&f).unwrap();
    let (at, away) = (m.config().join("keyring.db"), m.config().join("away"));
    fs::rename(&at, &away).unwrap();
    assert!(eventually(|| open.read_at(&mut [0], 0).is_err()));
    assert_eq!(errno(open.read_at(&mut [0], 0)), libc::ENOKEY);
    assert_eq!(errno(File::open(&f)), libc::ENOKEY);
    fs::rename(&away, &at).unwrap();
    assert!(eventually(|| fs::read(&f).is_ok()));
    open.read_at(&mut [0], 0).unwrap();
}
