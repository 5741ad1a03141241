//! Mounting, unmounting and everything that can go wrong around it, with the real program and a real mount.

mod cli_support;

use std::fs;
use std::process::{Command, Stdio};

use cli_support::{SSEFS, Sandbox, is_mounted, require_fuse, until};

#[test]
fn one_command_mounts_a_new_bucket_and_umount_leaves_everything_on_disk() {
    let s = Sandbox::new();
    let dir = s.mounted("photos", "mnt");
    fs::write(dir.join("hello.txt"), "hello").unwrap();
    s.ssefs(&["umount", dir.to_str().unwrap()]).ok();
    assert!(!is_mounted(&dir));
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    // The bucket is free at once: umount waited for it.
    let shown = s.ssefs(&["object", "show", "photos:hello.txt", "--json"]).ok();
    assert!(shown.contains("AES256"), "{shown}");
    s.ssefs(&["check", "photos", "--read-data"]).ok();
    s.ssefs(&["mount", "photos", dir.to_str().unwrap()]).ok();
    assert_eq!(fs::read_to_string(dir.join("hello.txt")).unwrap(), "hello");
}

#[test]
fn a_mounted_bucket_is_asked_through_its_mount() {
    let s = Sandbox::new();
    let dir = s.mounted("photos", "mnt");
    let at = dir.to_str().unwrap();
    assert_eq!(s.ssefs(&["bucket", "list"]).ok().lines().nth(1).unwrap(), format!("photos  {at}"));
    fs::write(dir.join("a"), "a").unwrap();
    s.ssefs(&["encryption", "put", "photos", "KMS"]).ok();
    fs::write(dir.join("b"), "b").unwrap();
    fs::create_dir(dir.join("raw")).unwrap();
    s.ssefs(&["encryption", "put", "photos", "--dir", "raw", "AES256"]).ok();
    assert_eq!(s.ssefs(&["encryption", "get", "photos", "--dir", "raw"]).ok(), "AES256\n");
    let algorithm = |name: &str| {
        let path = dir.join(name);
        s.ssefs(&["object", "show", path.to_str().unwrap()]).ok()
    };
    assert!(algorithm("a").contains("AES256"), "{}", algorithm("a"));
    assert!(algorithm("b").contains("KMS"), "{}", algorithm("b"));
    assert_eq!(algorithm("a"), s.ssefs(&["object", "show", "photos:a"]).ok());
    s.ssefs(&["check", "photos", "--read-data"]).ok();
    s.ssefs(&["bucket", "delete", "photos"]).fails(4, &["is mounted at", "ssefs umount"]);
    s.ssefs(&["encryption", "put", "photos", "DES"]).fails(8, &["InvalidEncryptionAlgorithmError"]);
}

#[test]
fn r65_a_second_mount_is_told_who_has_the_bucket() {
    let s = Sandbox::new();
    let dir = s.mounted("photos", "mnt");
    let at = dir.to_str().unwrap();
    let other = s.mkdir("other");
    s.ssefs(&["mount", "photos", &other]).fails(4, &["bucket photos is mounted at", at, "process"]);
    s.ssefs(&["mount", "photos", at]).fails(4, &["bucket photos is mounted at", "already"]);
    assert!(!is_mounted(other.as_ref()));
}

#[test]
fn a_busy_mount_is_not_torn_away_unless_asked() {
    let s = Sandbox::new();
    let dir = s.mounted("photos", "mnt");
    let at = dir.to_str().unwrap();
    let open = fs::File::create(dir.join("open")).unwrap();
    s.ssefs(&["umount", at]).fails(4, &["fuser -vm", "umount -l"]);
    assert!(is_mounted(&dir));
    drop(open);
    s.ssefs(&["umount", at]).ok();
}

#[test]
fn a_stale_mount_after_kill_9_is_cleaned_up_by_the_next_mount_and_by_umount() {
    let s = Sandbox::new();
    let dir = s.mounted("photos", "mnt");
    let at = dir.to_str().unwrap().to_owned();
    let kill = |s: &Sandbox| {
        let list = s.ssefs(&["bucket", "list", "--json"]).ok();
        let pid = serde_json::from_str::<serde_json::Value>(&list).unwrap()[0]["pid"].to_string();
        assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
        // Attributes may still be in the kernel's cache: reading the directory asks the process.
        until("the kill", || fs::read_dir(&dir).is_err_and(|e| matches!(e.raw_os_error(), Some(103 | 107))));
    };
    kill(&s);
    let o = s.ssefs(&["mount", "photos", &at]);
    assert_eq!(o.code, 0, "{o:?}");
    assert!(o.err.contains("a mount of a process that died was still at"), "{o:?}");
    fs::write(dir.join("alive"), "").unwrap();
    kill(&s);
    let o = s.ssefs(&["umount", &at]);
    assert_eq!(o.code, 0, "{o:?}");
    assert!(o.err.contains("had died"), "{o:?}");
    assert!(!is_mounted(&dir));
}

#[test]
fn signals_and_umount_8_commit_unmount_and_exit_with_0() {
    require_fuse();
    for end in ["TERM", "INT", "HUP", "umount"] {
        let s = Sandbox::new();
        let dir = s.mkdir("mnt");
        let mut child = s
            .command(SSEFS)
            .args(["mount", "photos", &dir, "-f", "--create", "--rule", "AES256"])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        until("the mount", || is_mounted(dir.as_ref()) && fs::write(format!("{dir}/probe"), "x").is_ok());
        fs::write(format!("{dir}/file"), end).unwrap();
        let pid = child.id().to_string();
        let status = match end {
            "umount" => Command::new("umount").arg(&dir).status(),
            signal => Command::new("kill").args(["-s", signal, &pid]).status(),
        };
        assert!(status.unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(0), "{end}");
        assert!(!is_mounted(dir.as_ref()), "{end}");
        s.ssefs(&["mount", "photos", &dir]).ok();
        assert_eq!(fs::read_to_string(format!("{dir}/file")).unwrap(), end);
    }
}

#[test]
fn a_mount_in_the_background_lets_go_of_the_terminal_and_logs_to_its_file() {
    require_fuse();
    let s = Sandbox::new();
    let dir = s.mkdir("mnt");
    // A pipe that the background process kept open would keep this command from ending.
    let o = s.ssefs(&["mount", "photos", &dir, "--create", "--log", "log.txt"]);
    assert_eq!(o.code, 0, "{o:?}");
    assert!(o.err.contains("without a rule: what is written there is not encrypted"), "{o:?}");
    s.ssefs(&["umount", &dir]).ok();
    let log = fs::read_to_string(s.path("log.txt")).unwrap();
    assert!(log.contains("bucket photos is mounted at") && log.contains("is unmounted and closed"), "{log}");
}

#[test]
fn a_read_only_mount_shows_everything_and_changes_nothing() {
    let s = Sandbox::new();
    let dir = s.mounted("photos", "mnt");
    let at = dir.to_str().unwrap();
    fs::write(dir.join("a"), "a").unwrap();
    s.ssefs(&["umount", at]).ok();
    s.ssefs(&["mount", "photos", at, "-o", "ro"]).ok();
    assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "a");
    let e = fs::write(dir.join("b"), "b").unwrap_err();
    assert_eq!(e.raw_os_error(), Some(30), "EROFS: {e}");
}

#[test]
fn an_existing_bucket_keeps_its_rule_when_mounted_with_create() {
    let s = Sandbox::new();
    let dir = s.mkdir("mnt");
    s.ssefs(&["bucket", "create", "photos", "--rule", "KMS"]).ok();
    let o = s.ssefs(&["mount", "photos", &dir, "--create", "--rule", "AES256"]);
    assert_eq!(o.code, 0, "{o:?}");
    assert!(o.err.contains("its rule, dialect and chunk size stay as they are"), "{o:?}");
    assert_eq!(s.ssefs(&["encryption", "get", "photos"]).ok(), "KMS\n");
}
