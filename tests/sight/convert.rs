//! Row 73: conversions of many objects on a live mount.

use crate::mount::{BUCKET, Mount, eventually, set_xattr};
use crate::{RULE, content, coverage, json, objects, put, show, sync};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

fn all() -> String {
    format!("{BUCKET}:")
}

#[test]
fn r73_a_whole_bucket_is_converted_to_its_rules_on_a_live_mount() {
    let Some(mut m) = Mount::real("") else { return };
    fs::create_dir_all(m.at("d/e")).unwrap();
    let names: Vec<String> = (0..60).map(|i| format!("{}f{i}", ["", "d/", "d/e/"][i % 3])).collect();
    for (i, n) in names.iter().enumerate() {
        put(&m, n, content(i, 3000 + i * 997));
    }
    put(&m, "large", content(99, 5 << 20));
    fs::hard_link(m.at("large"), m.at("d/again")).unwrap();
    let sparse = File::create(m.at("sparse")).unwrap();
    sparse.set_len(1 << 30).unwrap();
    drop(sparse);
    set_xattr(m.path(), RULE, "AES256").unwrap();
    set_xattr(m.at("d/e"), RULE, "KMS").unwrap();
    let mtime =
        |m: &Mount, n: &str| (fs::metadata(m.at(n)).unwrap().mtime(), fs::metadata(m.at(n)).unwrap().mtime_nsec());
    let before: Vec<_> = names.iter().map(|n| mtime(&m, n)).collect();
    let report = json(&m, 0, &["object", "convert", &all()]);
    assert_eq!(
        (&report["objects"], &report["finished"], &report["left_objects"]),
        (&62.into(), &true.into(), &0.into()),
        "{report}"
    );
    let c = coverage(&m, 0);
    assert_eq!((objects(&c, "AES256"), objects(&c, "KMS"), objects(&c, "none")), (42, 20, 0), "{c}");
    for (i, n) in names.iter().enumerate() {
        assert_eq!(mtime(&m, n), before[i], "{n}: its content is the same");
        assert!(fs::read(m.at(n)).unwrap() == content(i, 3000 + i * 997), "{n}");
    }
    assert!(fs::metadata(m.at("sparse")).unwrap().blocks() < 100, "a hole stays one");
    let again = json(&m, 0, &["object", "convert", &all()]);
    assert_eq!((&again["objects"], &again["already"]), (&0.into(), &62.into()), "{again}");
    m.remount();
    assert!(fs::read(m.at("d/again")).unwrap() == content(99, 5 << 20));
    assert!(fs::read(m.at("d/e/f2")).unwrap() == content(2, 3000 + 2 * 997));
}

#[test]
fn r73_a_directory_and_a_file_are_converted_by_path_and_new_keys_are_new() {
    let Some(mut m) = Mount::real("AES256") else { return };
    fs::create_dir(m.at("d")).unwrap();
    for n in ["out", "d/a", "d/b"] {
        put(&m, n, content(n.len(), 9000));
    }
    sync(&m);
    let seal = |m: &Mount, n: &str| show(m, n)["seal_id"].as_str().unwrap().to_owned();
    let before: Vec<String> = ["out", "d/a", "d/b"].iter().map(|n| seal(&m, n)).collect();
    let dir = m.at("d");
    let same = json(&m, 0, &["object", "convert", dir.to_str().unwrap()]);
    assert_eq!((&same["objects"], &same["already"]), (&0.into(), &2.into()), "it is under its rule: {same}");
    let new = json(&m, 0, &["object", "convert", dir.to_str().unwrap(), "--new-keys"]);
    assert_eq!(new["objects"], 2, "{new}");
    assert_eq!(seal(&m, "out"), before[0]);
    assert!(seal(&m, "d/a") != before[1] && seal(&m, "d/b") != before[2], "each PUT has a key and an id of its own");
    // By a rule that is not in force, with and without a mount.
    let file = m.at("d/a");
    json(&m, 0, &["object", "convert", file.to_str().unwrap(), "--rule", "KMS::SM4"]);
    assert_eq!(show(&m, "d/a")["cipher"], "SM4-GCM");
    m.umount();
    json(&m, 0, &["object", "convert", "b:d/b", "--rule", "KMS"]);
    assert_eq!(show(&m, "d/b")["method"], "KMS");
    m.ssefs(&["object", "convert", "b:nothing"]).fails_saying(&["no such file"]);
    m.mount();
    for n in ["out", "d/a", "d/b"] {
        assert!(fs::read(m.at(n)).unwrap() == content(n.len(), 9000), "{n}");
    }
    // What is in force counts at the next write.
    let f = File::options().append(true).open(m.at("d/a")).unwrap();
    std::io::Write::write_all(&mut &f, b"more").unwrap();
    assert_eq!(show(&m, "d/a")["method"], "AES256");
}

/// Stopped by the end of whoever asks, and by kill -9 of the mount: what is done stays done, and it goes on.
#[test]
fn r73_a_conversion_that_is_stopped_or_killed_goes_on_where_it_stopped() {
    const FILES: u64 = 24;
    let Some(mut m) = Mount::real("AES256") else { return };
    for i in 0..FILES as usize {
        put(&m, &format!("f{i}"), content(i, 8 << 20));
    }
    sync(&m);
    let status = |m: &Mount| json(m, 0, &["object", "convert", &all(), "--status"]);
    let (mut stopped, mut killed) = (false, false);
    // A fast machine may be done before it is stopped: then the other way round.
    for round in 0..10 {
        let to = ["KMS", "AES256"][round % 2];
        m.ssefs(&["encryption", "put", BUCKET, to]).ok();
        let begun = |m: &Mount| {
            let ran = m.ssefs(&["coverage", BUCKET, "--json"]);
            objects(&serde_json::from_str(&ran.stdout).unwrap(), to)
        };
        let mut c: Command = m.command(&["object", "convert", &all()]);
        let mut child = c.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        assert!(eventually(|| begun(&m) > 0), "it begins");
        child.kill().unwrap();
        child.wait().unwrap();
        // What the mount does when nobody waits any more: it notes how far it is, or it is done.
        let noted = || status(&m)["job"]["done_objects"].as_u64() != Some(0);
        assert!(eventually(noted), "{}", status(&m));
        if status(&m).is_null() {
            continue;
        }
        stopped = true;
        m.ssefs(&["object", "convert", &all()]).fails_saying(&["is not done", "--resume"]);
        let before = begun(&m);
        assert!(before < FILES, "it was stopped");
        let mut c: Command = m.command(&["object", "convert", &all(), "--resume"]);
        let mut child = c.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        assert!(eventually(|| begun(&m) > before), "it goes on");
        m.kill9();
        let _ = child.wait().unwrap();
        m.mount();
        if status(&m).is_null() {
            continue;
        }
        killed = true;
        let before = begun(&m);
        let rest = json(&m, 0, &["object", "convert", &all(), "--resume"]);
        assert_eq!(rest["objects"].as_u64().unwrap() + before, FILES, "only what was left: {rest}");
        assert!(status(&m).is_null());
        coverage(&m, 0);
        break;
    }
    assert!(stopped && killed, "it was over each time before it could be stopped");
    for i in 0..FILES as usize {
        assert!(fs::read(m.at(format!("f{i}"))).unwrap() == content(i, 8 << 20), "f{i}");
    }
}

#[test]
fn r73_files_are_written_meanwhile_and_what_cannot_be_converted_is_named() {
    let Some(mut m) = Mount::real("AES256") else { return };
    for i in 0..8 {
        put(&m, &format!("f{i}"), content(i, 4 << 20));
    }
    sync(&m);
    m.umount();
    // One whose row is altered: it is left, the others are converted.
    let db = rusqlite::Connection::open(m.folder().join("catalog.db")).unwrap();
    db.execute("UPDATE seal SET origin = 'nobody' WHERE ino = (SELECT ino FROM dirent WHERE name = x'6633')", [])
        .unwrap();
    drop(db);
    m.mount();
    let writer = {
        let path = m.at("f0");
        std::thread::spawn(move || {
            let f = File::options().write(true).open(path).unwrap();
            for i in 0..200u64 {
                std::os::unix::fs::FileExt::write_all_at(&f, &[i as u8; 1000], i * 5000).unwrap();
            }
        })
    };
    let report = json(&m, 13, &["object", "convert", &all(), "--new-keys"]);
    writer.join().unwrap();
    assert_eq!(
        (&report["objects"], &report["left_objects"], &report["finished"]),
        (&7.into(), &1.into(), &true.into()),
        "{report}"
    );
    assert_eq!(report["left"][0]["path"], "f3", "{report}");
    assert!(report["left"][0]["why"].as_str().unwrap().contains("altered"), "{report}");
    let mut want = content(0, 4 << 20);
    for i in 0..200usize {
        want[i * 5000..][..1000].fill(i as u8);
    }
    assert!(fs::read(m.at("f0")).unwrap() == want);
    assert!(fs::read(m.at("f7")).unwrap() == content(7, 4 << 20));
    m.no_check_at_end();
}
