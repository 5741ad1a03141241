//! Backup tools, unchanged, on a mount: what they write they find again, by their own checks and by
//! comparing what they bring back with where it came from. The sources lie on a plain disk.

#[path = "common/mount.rs"]
mod mount;
#[path = "common/run.rs"]
mod run;
#[path = "common/sys.rs"]
mod sys;
#[path = "common/tree.rs"]
mod tree;

use mount::{Mount, is_root, run, sh, skip_without_root};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use tree::{Compare, Contents, Dice, EVERYTHING, assert_same, generate, walk};

const SMALL: Contents = Contents { files: 600, xattrs: true, sparse: true, nodes: false, bytes_in_names: true };

/// Changes a tree as a day's work does: some files edited, some new, some gone, one moved.
fn work_a_day(root: &Path) {
    let mut dice = Dice::new(77);
    let files: Vec<_> = walk(root).into_iter().filter(|(_, m)| m.is_file()).map(|(p, _)| root.join(p)).collect();
    for (i, f) in files.iter().enumerate().filter(|(i, _)| i % 20 < 3) {
        match i % 20 {
            0 => fs::write(f, dice.bytes(7000)).unwrap(),
            1 => fs::remove_file(f).unwrap(),
            _ => fs::rename(f, f.with_file_name(format!("moved {i}"))).unwrap(),
        }
    }
    fs::create_dir(root.join("tomorrow")).unwrap();
    fs::write(root.join("tomorrow/new"), dice.bytes(3_000_000)).unwrap();
    // rsync takes times within one second for equal, so what was just made must not be that young.
    for (p, _) in walk(root).iter().rev().filter(|(_, m)| m.mtime() > 1_700_000_000) {
        sys::utimens(root.join(p), (1_700_000_000, 0), (1_700_000_000, 123_456_789)).unwrap();
    }
}

#[test]
fn restic_backs_up_checks_and_restores_on_the_mount() {
    let mut m = Mount::new("AES256");
    let source = m.beside("source");
    generate(&source, 1, Contents { files: 3000, nodes: is_root(), ..SMALL });
    let restic = |m: &Mount, args: &[&str]| {
        let mut c = Command::new("restic");
        c.args(["-r", m.at("repo").to_str().unwrap(), "--cache-dir", m.beside("cache").to_str().unwrap(), "-q"]);
        run(c.args(args).env("RESTIC_PASSWORD", "test").env("TMPDIR", m.beside("")).current_dir(m.beside("source")))
            .ok()
    };
    restic(&m, &["init"]);
    restic(&m, &["backup", "."]);
    let first = m.beside("first");
    assert!(sh(&m.beside(""), "cp -a source first").is_empty());
    work_a_day(&source);
    restic(&m, &["backup", "."]);
    restic(&m, &["check", "--read-data"]);
    m.remount();
    restic(&m, &["check", "--read-data"]);
    assert_eq!(restic(&m, &["snapshots", "--json"]).matches("\"short_id\"").count(), 2);
    // Restored onto the mount itself. restic 0.14 makes no holes and does not keep the root's own times.
    let by = Compare { holes: false, dir_times: false, ..EVERYTHING };
    restic(&m, &["restore", "latest", "--target", m.at("restored").to_str().unwrap()]);
    sh(&m.beside(""), "diff -r --no-dereference source/tomorrow mnt/restored/tomorrow");
    sys::chmod(m.at("restored"), 0o755).unwrap();
    assert_same(&source, &m.at("restored"), by);
    let ids = restic(&m, &["snapshots", "--json"]);
    let ids: serde_json::Value = serde_json::from_str(&ids).unwrap();
    restic(&m, &["restore", ids[0]["short_id"].as_str().unwrap(), "--target", m.at("older").to_str().unwrap()]);
    sys::chmod(m.at("older"), 0o755).unwrap();
    assert_same(&first, &m.at("older"), by);
    restic(&m, &["forget", "--keep-last", "1", "--prune"]);
    restic(&m, &["check", "--read-data"]);
}

#[test]
fn borg_creates_verifies_and_extracts_on_the_mount() {
    let mut m = Mount::new("AES256");
    let source = m.at("source");
    // Here the source is on the mount as well.
    generate(&source, 2, Contents { files: 1500, nodes: is_root(), ..SMALL });
    let borg = |m: &Mount, dir: &Path, args: &[&str]| {
        let mut c = Command::new("borg");
        c.args(args).current_dir(dir).env("BORG_REPO", m.at("repo")).env("BORG_BASE_DIR", m.beside("borg"));
        c.env("BORG_PASSPHRASE", "test").env("BORG_DISPLAY_PASSPHRASE", "no").env("TMPDIR", m.beside(""));
        // 1 is a warning, which a file that changes while it is read would be.
        run(&mut c).ok()
    };
    borg(&m, &m.path(), &["init", "-e", "repokey-blake2"]);
    borg(&m, &m.path(), &["create", "--sparse", "::one", "source"]);
    work_a_day(&source);
    borg(&m, &m.path(), &["create", "--sparse", "::two", "source"]);
    // What has not changed in size, ctime and inode must not be read again.
    let unchanged = borg(&m, &m.path(), &["create", "--list", "--filter", "AM", "--sparse", "::three", "source"]);
    assert_eq!(unchanged.trim(), "", "borg takes unchanged files for changed ones");
    m.remount();
    borg(&m, &m.path(), &["check", "--verify-data"]);
    fs::create_dir(m.at("out")).unwrap();
    borg(&m, &m.at("out"), &["extract", "--sparse", "::two"]);
    sh(&m.path(), "diff -r --no-dereference source/tomorrow out/source/tomorrow");
    assert_same(&source, &m.at("out/source"), EVERYTHING);
    borg(&m, &m.path(), &["delete", "::one"]);
    borg(&m, &m.path(), &["compact"]);
    borg(&m, &m.path(), &["check", "--verify-data"]);
}

#[test]
fn rsync_there_and_back_finds_nothing_left_to_do() {
    let mut m = Mount::new("AES256");
    let source = m.beside("source");
    generate(&source, 3, Contents { nodes: is_root(), ..SMALL });
    sh(
        &source,
        "setfacl -m u:4711:r,m::rwx 'sparse.img'; mkdir d; setfacl -d -m u:4711:rx d; touch -d '2020-01-01 00:00:00.123456789Z' d .",
    );
    let rsync = |args: &str| sh(&m.beside(""), &format!("rsync -aHAX --sparse --itemize-changes {args}"));
    assert_ne!(rsync("source/ mnt/copy/"), "");
    assert_eq!(rsync("source/ mnt/copy/"), "", "the second run, by size and time");
    assert_eq!(rsync("--checksum source/ mnt/copy/"), "", "the second run, by content");
    m.remount();
    let rsync = |args: &str| sh(&m.beside(""), &format!("rsync -aHAX --sparse --itemize-changes {args}"));
    assert_eq!(rsync("--checksum source/ mnt/copy/"), "", "after a remount");
    assert_ne!(rsync("mnt/copy/ back/"), "");
    assert_eq!(rsync("--checksum --delete source/ back/"), "");
    assert_same(&source, &m.at("copy"), EVERYTHING);
    assert_same(&source, &m.beside("back"), EVERYTHING);
    work_a_day(&source);
    rsync("--delete --inplace --no-whole-file source/ mnt/copy/");
    assert_eq!(rsync("--delete --checksum source/ mnt/copy/"), "");
    assert_same(&source, &m.at("copy"), EVERYTHING);
}

#[test]
fn tar_there_and_back_keeps_attributes_and_holes() {
    let mut m = Mount::new("AES256");
    let source = m.beside("source");
    generate(&source, 4, Contents { nodes: is_root(), ..SMALL });
    sh(
        &m.beside(""),
        "tar --xattrs --sparse -cf mnt/source.tar source && tar -C mnt --xattrs --xattrs-include='*' -xpf mnt/source.tar",
    );
    m.remount();
    assert_same(&source, &m.at("source"), EVERYTHING);
    sh(&m.beside(""), "tar --xattrs --sparse --compare -f mnt/source.tar && tar -C mnt --compare -f mnt/source.tar");
    sh(
        &m.beside(""),
        "mkdir back && tar -C mnt --xattrs --sparse -cf - source | tar -C back --xattrs --xattrs-include='*' -xpf -",
    );
    assert_same(&source, &m.beside("back/source"), EVERYTHING);
}

#[test]
fn cp_a_keeps_everything() {
    let mut m = Mount::new("AES256");
    let source = m.beside("source");
    generate(&source, 5, Contents { files: 1500, nodes: is_root(), ..SMALL });
    sh(&m.beside(""), "cp -a source mnt/a && cp -a mnt/a mnt/b && cp -a mnt/b back");
    for copy in [m.at("a"), m.at("b"), m.beside("back")] {
        assert_same(&source, &copy, EVERYTHING);
    }
    m.remount();
    assert_same(&source, &m.at("a"), EVERYTHING);
    sh(
        &m.path(),
        "rm -r a && diff -r --no-dereference --exclude fifo --exclude null --exclude disk ../source b && rm -r b",
    );
    assert_eq!(fs::read_dir(m.path()).unwrap().count(), 0);
}

#[test]
fn acls_are_given_back_as_they_were_set() {
    if skip_without_root() {
        return;
    }
    let mut m = Mount::new("AES256");
    sh(&m.path(), "mkdir d; touch d/f; setfacl -m u:4711:rw,g:12:r d/f; setfacl -d -m u:4711:rx d");
    let before = sh(&m.path(), "getfacl -R --omit-header d");
    assert!(before.contains("user:4711:rw-") && before.contains("default:user:4711:r-x"), "{before}");
    m.remount();
    assert_eq!(sh(&m.path(), "getfacl -R --omit-header d"), before);
}
