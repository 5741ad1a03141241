//! Row 74.

use crate::mount::{BUCKET, Mount, set_xattr};
use crate::{RULE, content, coverage, json, objects, put, sync};
use std::fs;

#[test]
fn r74_coverage_counts_objects_and_bytes_by_method_key_and_version() {
    let Some(mut m) = Mount::real("") else { return };
    put(&m, "plain", content(1, 5000));
    fs::create_dir(m.at("kms")).unwrap();
    set_xattr(m.at("kms"), RULE, "KMS").unwrap();
    put(&m, "kms/a", content(2, 10_000));
    put(&m, "kms/b", content(3, 20_000));
    fs::create_dir(m.at("sm4")).unwrap();
    set_xattr(m.at("sm4"), RULE, "KMS::SM4").unwrap();
    put(&m, "sm4/a", content(4, 300));
    put(&m, "asked", "");
    set_xattr(m.at("asked"), "user.sse.algorithm", "AES256").unwrap();
    put(&m, "asked", content(5, 700));
    put(&m, "empty", "");
    let live = coverage(&m, 13);
    assert_eq!(live["plain_objects"], 1, "{live}");
    assert_eq!(live["plain_bytes"], 5000);
    assert_eq!(
        (&live["objects"], &live["empty_objects"], &live["bytes"]),
        (&6.into(), &1.into(), &36_000.into()),
        "{live}"
    );
    assert_eq!((objects(&live, "KMS"), objects(&live, "AES256"), objects(&live, "none")), (3, 1, 1), "{live}");
    let groups = live["groups"].as_array().unwrap();
    let aes = groups
        .iter()
        .find(|g| g["method"] == "KMS" && g["cipher"] == "AES-256-GCM")
        .unwrap_or_else(|| panic!("{live}"));
    assert_eq!((&aes["objects"], &aes["bytes"], &aes["key_version"]), (&2.into(), &30_000.into(), &1.into()));
    assert!(aes["key"].as_str().is_some_and(|k| !k.is_empty()), "{aes}");
    assert_eq!(live["listed"].as_array().unwrap().len(), 0, "names only when asked for");
    // A new version shows after the rewrap alone.
    let key = aes["key"].as_str().unwrap();
    m.ssefs(&["key", "rotate", key]).ok();
    m.ssefs(&["key", "rewrap", BUCKET]).ok();
    let version = |report: &serde_json::Value| {
        report["groups"].as_array().unwrap().iter().find(|g| g["key"] == key).unwrap()["key_version"].clone()
    };
    assert_eq!(version(&coverage(&m, 13)), 2);
    m.umount();
    let unmounted = coverage(&m, 13);
    assert_eq!(unmounted["groups"].as_array().unwrap().len(), 4);
    assert_eq!(unmounted["bytes"], live["bytes"]);
}

#[test]
fn r74_the_exit_code_says_whether_everything_is_under_the_rule_and_the_rest_is_named() {
    let Some(m) = Mount::real("") else { return };
    fs::create_dir(m.at("dir")).unwrap();
    put(&m, "dir/old", "written before there was a rule");
    put(&m, "new\nline", "x");
    set_xattr(m.path(), RULE, "AES256").unwrap();
    put(&m, "under", "x");
    let named = json(&m, 13, &["coverage", BUCKET, "--plain"]);
    let paths: Vec<&str> = named["listed"].as_array().unwrap().iter().map(|l| l["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["dir/old", "new\nline"]);
    let one = json(&m, 13, &["coverage", BUCKET, "--plain", "--limit", "1"]);
    assert_eq!((one["listed"].as_array().unwrap().len(), &one["not_listed"]), (1, &1.into()));
    let ran = m.ssefs(&["coverage", BUCKET, "--outside"]);
    assert!(ran.code == Some(13) && ran.stdout.contains("dir/old: none; in force: AES256 (bucket)"), "{ran:?}");
    assert!(ran.stdout.contains("new\\nline"), "control characters are escaped: {ran:?}");
    // A directory for which plain is the rule counts as under it, a write seals the other.
    set_xattr(m.at("dir"), RULE, "none").unwrap();
    fs::write(m.at("new\nline"), "again").unwrap();
    let all = coverage(&m, 0);
    assert_eq!((&all["all_under_rule"], &all["plain_objects"]), (&true.into(), &1.into()));
    // Another key in force is another rule.
    set_xattr(m.path(), RULE, "KMS").unwrap();
    assert_eq!(coverage(&m, 13)["outside_objects"], 2);
    m.ssefs(&["encryption", "put", BUCKET, "AES256"]).ok();
    sync(&m);
    coverage(&m, 0);
}

#[test]
fn r74_a_row_that_was_altered_is_not_believed() {
    let Some(mut m) = Mount::real("AES256") else { return };
    put(&m, "a", content(1, 100));
    put(&m, "b", content(2, 100));
    m.umount();
    let db = rusqlite::Connection::open(m.folder().join("catalog.db")).unwrap();
    let n = db.execute("UPDATE seal SET key_id = 'mk-other' WHERE ino = (SELECT min(ino) FROM seal)", []).unwrap();
    assert_eq!(n, 1);
    drop(db);
    let report = coverage(&m, 13);
    assert_eq!((&report["altered_objects"], objects(&report, "AES256")), (&1.into(), 1), "{report}");
    m.no_check_at_end();
}
