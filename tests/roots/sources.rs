//! Where the root key comes from, through the command line: each source in its good form, and each way it goes wrong.

use crate::cli_support::{SSEFS, Sandbox, is_mounted, require_fuse};
use crate::{chmod, secret_file, with_env};
use std::fs;
use std::process::Stdio;

const PHRASE: &str = "correct horse battery";
const KEY: usize = 6;

/// A mounted, then unmounted bucket whose root key was changed to a passphrase; the file with that.
fn sealed(s: &Sandbox) -> (String, String) {
    let dir = s.mounted("photos", "mnt").to_str().unwrap().to_owned();
    fs::write(format!("{dir}/f"), "content").unwrap();
    s.ssefs(&["umount", &dir]).ok();
    let file = secret_file(&s.path("phrase"), &format!("{PHRASE}\n"));
    let change = ["key", "root", "change", "--to", "passphrase", "--kdf-memory", "1M", "--new-passphrase-file", &file];
    let o = s.ssefs(&change);
    assert_eq!(o.code, 0, "{o:?}");
    assert!(o.out.contains("root.key") && o.err.contains("open this keyring no more"), "{o:?}");
    (dir, file)
}

fn mounts_and_reads(s: &Sandbox, dir: &str, more: &[&str]) {
    let o = s.ssefs(&[&["mount", "photos", dir], more].concat());
    assert_eq!(o.code, 0, "{more:?}: {o:?}");
    assert_eq!(fs::read_to_string(format!("{dir}/f")).unwrap(), "content");
    s.ssefs(&["umount", dir]).ok();
}

#[test]
fn a_passphrase_comes_from_a_file_a_descriptor_or_a_program_and_a_line_end_is_no_part_of_it() {
    let s = Sandbox::new();
    let (dir, file) = sealed(&s);
    for content in [PHRASE.to_owned(), format!("{PHRASE}\n"), format!("{PHRASE}\r\n")] {
        secret_file(s.path("phrase").as_path(), &content);
        mounts_and_reads(&s, &dir, &["--passphrase-file", &file]);
    }
    mounts_and_reads(&s, &dir, &["--passphrase-command", &format!("/bin/cat {file}")]);
    mounts_and_reads(&s, &dir, &["-o", &format!("passphrase_file={file}")]);
    let shell = format!("exec '{SSEFS}' mount photos '{dir}' --passphrase-fd 3 3<'{file}'");
    let o: crate::cli_support::Outcome =
        s.command("sh").args(["-c", &shell]).stdin(Stdio::null()).output().unwrap().into();
    assert_eq!(o.code, 0, "{o:?}");
    s.ssefs(&["umount", &dir]).ok();
    // mount(8) and fstab: the helper under its own name.
    let helper = s.path("mount.ssefs");
    std::os::unix::fs::symlink(SSEFS, &helper).unwrap();
    let options = format!("passphrase_file={file}");
    let o = s.command(&helper).args(["photos", &dir, "-o", &options]).stdin(Stdio::null()).output().unwrap();
    assert!(o.status.success(), "{o:?}");
    s.ssefs(&["umount", &dir]).ok();
    let shown = s.ssefs(&["key", "root", "show", "--test", "--passphrase-file", &file]).ok();
    assert!(
        shown.contains("passphrase") && shown.contains("1.0 MiB") && shown.contains("opens the keyring"),
        "{shown}"
    );
}

#[test]
fn without_anybody_to_ask_a_mount_fails_at_once_and_says_what_to_do() {
    let s = Sandbox::new();
    let (dir, _) = sealed(&s);
    let helper = s.path("mount.ssefs");
    std::os::unix::fs::symlink(SSEFS, &helper).unwrap();
    for program in [SSEFS, helper.to_str().unwrap()] {
        let mut command = s.command("timeout");
        command.args(["-k", "1", "60", program]);
        if program == SSEFS {
            command.arg("mount");
        }
        let o: crate::cli_support::Outcome =
            command.args(["photos", &dir]).stdin(Stdio::null()).output().unwrap().into();
        o.fails(KEY as i32, &["no terminal to ask at", "passphrase_file=FILE"]);
        assert!(!is_mounted(dir.as_ref()));
    }
    // What needs no key works without one.
    s.ssefs(&["key", "root", "show"]).ok();
}

#[test]
fn wrong_empty_short_and_exposed_passphrases_are_refused_and_never_shown() {
    let s = Sandbox::new();
    let (dir, file) = sealed(&s);
    for (content, words) in [
        ("correct horse batterY\n", &["wrong passphrase"][..]),
        ("correct horse battery \n", &["wrong passphrase"]),
        ("", &["it is empty"]),
        ("\n", &["it is empty"]),
        ("correct horse battery\nand more\n", &["not one line"]),
        (&"x".repeat(1025), &["longer than 1024"]),
        (&"x".repeat(5000), &["cannot read"]),
    ] {
        secret_file(s.path("phrase").as_path(), content);
        let o = with_env(&s, &[], &["mount", "photos", &dir, "--passphrase-file", &file]);
        assert!(!content.contains("horse") || !o.err.contains("horse"), "{o:?}");
        o.fails(KEY as i32, words);
    }
    secret_file(s.path("phrase").as_path(), PHRASE);
    chmod(&s.path("phrase"), 0o640);
    with_env(&s, &[], &["mount", "photos", &dir, "--passphrase-file", &file]).fails(KEY as i32, &["chmod 600"]);
    chmod(&s.path("phrase"), 0o600);
    with_env(&s, &[], &["mount", "photos", &dir, "--passphrase-fd", "77"]).fails(KEY as i32, &["descriptor 77"]);
    with_env(&s, &[], &["mount", "photos", &dir, "--passphrase-fd", "3", "--passphrase-file", &file])
        .fails(2, &["one place"]);
    let short = secret_file(&s.path("short"), "seven 7\n");
    let change =
        ["key", "root", "change", "--to", "passphrase", "--passphrase-file", &file, "--new-passphrase-file", &short];
    with_env(&s, &[], &change).fails(2, &["too short"]);
    mounts_and_reads(&s, &dir, &["--passphrase-file", &file]);
}

#[test]
fn a_program_that_fails_prints_garbage_or_hangs_is_named_and_its_output_is_not() {
    let s = Sandbox::new();
    require_fuse();
    let dir = s.mounted("photos", "mnt").to_str().unwrap().to_owned();
    fs::write(format!("{dir}/f"), "content").unwrap();
    s.ssefs(&["umount", &dir]).ok();
    let digits = "0123456789abcdef".repeat(4);
    let key = secret_file(&s.path("key"), &digits);
    s.ssefs(&["key", "root", "change", "--to", &format!("command:/bin/cat {key}")]).ok();
    let shown = s.ssefs(&["key", "root", "show"]).ok();
    assert!(shown.contains("command") && shown.contains("/bin/cat"), "{shown}");
    mounts_and_reads(&s, &dir, &[]);
    mounts_and_reads(&s, &dir, &["--root-key-command", &format!("/bin/cat {key}")]);
    for (content, words) in [
        (&digits[..63], &["/bin/cat", "64 hexadecimal digits"][..]),
        (&format!("{digits}0"), &["64 hexadecimal digits"]),
        (&digits.replace('a', "x"), &["64 hexadecimal digits"]),
        ("", &["it is empty"]),
        ("Password:", &["64 hexadecimal digits"]),
        (&"y".repeat(10_000), &["more than a key"]),
        (&digits.replace('0', "1"), &["needs the one with id"]),
    ] {
        secret_file(&s.path("key"), content);
        let o = with_env(&s, &[], &["mount", "photos", &dir]);
        assert!(!o.err.contains("0123456789abcdef") && !o.err.contains("yyyy"), "{o:?}");
        o.fails(KEY as i32, words);
    }
    fs::remove_file(s.path("key")).unwrap();
    with_env(&s, &[], &["mount", "photos", &dir]).fails(KEY as i32, &["/bin/cat", "exit status: 1"]);
    secret_file(&s.path("key"), &digits);
    // What it starts ends with it: the group is killed.
    let hang = "/bin/sh -c 'sleep 1000 & echo $! > started; wait'";
    let o = with_env(&s, &[("SSEFS_COMMAND_SECONDS", "1")], &["mount", "photos", &dir, "--root-key-command", hang]);
    o.fails(KEY as i32, &["/bin/sh", "longer than 1 s"]);
    let sleeper = fs::read_to_string(s.path("started")).unwrap();
    let gone = |pid: &str| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    };
    crate::cli_support::until("the end of what it started", || gone(sleeper.trim()));
    for bad in ["cat key", "/bin/cat key | sh", "/bin/cat $HOME/key"] {
        with_env(&s, &[], &["key", "list", "--root-key-command", bad]).fails(2, &["makes no sense"]);
        with_env(&s, &[], &["key", "root", "change", "--to", &format!("command:{bad}")]).fails(2, &["makes no sense"]);
    }
    mounts_and_reads(&s, &dir, &[]);
}

#[test]
fn a_credential_of_systemd_is_read_where_systemd_puts_it() {
    let s = Sandbox::new();
    let dir = s.mounted("photos", "mnt").to_str().unwrap().to_owned();
    fs::write(format!("{dir}/f"), "content").unwrap();
    s.ssefs(&["umount", &dir]).ok();
    let digits = "0123456789abcdef".repeat(4);
    let key = secret_file(&s.path("new.key"), &digits);
    let change = ["key", "root", "change", "--to", "credential:ssefs-root", "--key-file", &key];
    s.ssefs(&change).ok();
    let credentials = s.mkdir("credentials");
    let env = [("CREDENTIALS_DIRECTORY", credentials.as_str())];
    let mount = ["mount", "photos", &dir];
    with_env(&s, &[], &mount).fails(KEY as i32, &["ssefs-root", "CREDENTIALS_DIRECTORY", "LoadCredential="]);
    with_env(&s, &env, &mount).fails(KEY as i32, &["ssefs-root", "No such file"]);
    let place = s.path("credentials/ssefs-root");
    for bad in ["", "nonsense", &digits[1..], &"x".repeat(5000)] {
        fs::write(&place, bad).unwrap();
        with_env(&s, &env, &mount).fails(KEY as i32, &["ssefs-root"]);
    }
    fs::write(&place, &digits).unwrap();
    // As systemd leaves it for a service with a user of its own.
    chmod(&place, 0o440);
    let o = with_env(&s, &env, &mount);
    assert_eq!(o.code, 0, "{o:?}");
    assert_eq!(fs::read_to_string(format!("{dir}/f")).unwrap(), "content");
    s.ssefs(&["umount", &dir]).ok();
    // The key file that is handed over may be wrong as well.
    for (content, words) in [("12", "64 hexadecimal"), (&digits[..], "present root key")] {
        secret_file(&s.path("new.key"), content);
        let o = with_env(&s, &env, &change);
        assert!(o.code != 0 && o.err.contains(words), "{o:?}");
    }
}

#[test]
fn a_first_key_is_made_where_it_is_wanted_and_never_lies_in_a_plain_file() {
    let s = Sandbox::new();
    require_fuse();
    let file = secret_file(&s.path("phrase"), PHRASE);
    let create = ["key", "root", "create", "--to", "passphrase", "--kdf-memory", "1M", "--new-passphrase-file", &file];
    s.ssefs(&create).ok();
    assert!(!s.path("config/root.key").exists());
    s.ssefs(&create).fails(2, &["there is a keyring already"]);
    let dir = s.mkdir("mnt");
    let mount = ["mount", "photos", &dir, "--create", "--rule", "KMS", "--passphrase-file", &file];
    let o = s.ssefs(&mount);
    assert_eq!(o.code, 0, "{o:?}");
    fs::write(format!("{dir}/f"), "content").unwrap();
    s.ssefs(&["umount", &dir]).ok();
    assert!(!s.path("config/root.key").exists());
    mounts_and_reads(&s, &dir, &["--passphrase-file", &file]);

    // By a program, on first use.
    let s = Sandbox::new();
    let key = secret_file(&s.path("key"), &"0123456789abcdef".repeat(4));
    let dir = s.mkdir("mnt");
    let command = format!("/bin/cat {key}");
    let o = s.ssefs(&["mount", "photos", &dir, "--create", "--rule", "AES256", "--root-key-command", &command]);
    assert_eq!(o.code, 0, "{o:?}");
    fs::write(format!("{dir}/f"), "content").unwrap();
    s.ssefs(&["umount", &dir]).ok();
    assert!(!s.path("config/root.key").exists());
    mounts_and_reads(&s, &dir, &[]);
}

#[test]
fn a_record_that_is_exposed_damaged_newer_or_of_another_keyring_is_refused_by_name() {
    let (s, other) = (Sandbox::new(), Sandbox::new());
    let (dir, file) = sealed(&s);
    let (_, other_file) = sealed(&other);
    let record = s.path("config/root.source");
    let good = fs::read_to_string(&record).unwrap();
    let try_it = || with_env(&s, &[], &["mount", "photos", &dir, "--passphrase-file", &file]);
    for (bad, words) in [
        (String::new(), "last line has no end"),
        ("hello\n".into(), "does not begin with"),
        (good.replace("source-1", "source-2"), "newer"),
        (good.replace("source passphrase", "source tea-leaves"), "does not know"),
        (good.replace("argon2id 19 1024", "argon2id 19 99999999"), "Argon2id"),
        (good[..good.len() - 40].to_owned(), "last line has no end"),
        (good.replacen("wrapped 01", "wrapped 0x", 1), "not hexadecimal"),
    ] {
        secret_file(&record, &bad);
        try_it().fails(KEY as i32, &["root.source", words]);
    }
    // Altered where it counts: the key does not open, and nothing is made in its place.
    let at = good.find("wrapped 01").unwrap() + 200;
    let flipped = if &good[at..=at] == "0" { "1" } else { "0" };
    secret_file(&record, &format!("{}{flipped}{}", &good[..at], &good[at + 1..]));
    let o = try_it();
    assert!(o.code == 6 || o.code == 7, "{o:?}");
    // That of another keyring: told by its id, before anybody is asked for a passphrase.
    secret_file(&record, &fs::read_to_string(other.path("config/root.source")).unwrap());
    with_env(&s, &[], &["mount", "photos", &dir]).fails(KEY as i32, &["root.source", "needs the one with id"]);
    secret_file(&record, &good);
    chmod(&record, 0o644);
    try_it().fails(KEY as i32, &["root.source", "chmod 600"]);
    chmod(&record, 0o600);
    mounts_and_reads(&s, &dir, &["--passphrase-file", &file]);

    // The keyring of another store beside our root key.
    let (ring, good_ring) = (s.path("config/keyring.db"), fs::read(s.path("config/keyring.db")).unwrap());
    fs::copy(other.path("config/keyring.db"), &ring).unwrap();
    try_it().fails(KEY as i32, &["needs the one with id"]);
    // With its root key as well, it does not know this store's bucket.
    secret_file(&record, &fs::read_to_string(other.path("config/root.source")).unwrap());
    let o = with_env(&s, &[], &["mount", "photos", &dir, "--passphrase-file", &other_file]);
    assert!(o.code != 0 && o.err.contains("keyring"), "{o:?}");
    secret_file(&record, &good);
    fs::write(&ring, &good_ring).unwrap();
    mounts_and_reads(&s, &dir, &["--passphrase-file", &file]);
}

#[test]
fn a_root_key_of_another_user_is_refused() {
    // SAFETY: geteuid cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("skipped: giving a file away needs root");
        return;
    }
    let s = Sandbox::new();
    s.ssefs(&["key", "create"]).ok();
    let key = s.path("config/root.key");
    std::os::unix::fs::chown(&key, Some(1234), None).unwrap();
    s.ssefs(&["key", "list"]).fails(KEY as i32, &["belongs to user 1234"]);
    // Where the whole directory is that user's, root may use it.
    std::os::unix::fs::chown(s.path("config"), Some(1234), None).unwrap();
    s.ssefs(&["key", "list"]).ok();
}
