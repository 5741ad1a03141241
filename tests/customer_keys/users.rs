//! Who has unlocked what: users on one mount, directories, the mount option, and the command line.

use crate::mount::{Mount, USER, as_user, errno, get_xattr_text, is_root, remove_xattr, set_xattr, skip_without_root};
use crate::{KEY, UNLOCK, key, key_file, lock, method, put, refused};
use std::fs::{self, File};
use std::io::Write;
use std::process::Stdio;

const OTHER: u32 = USER + 1;

/// A mount that other users may come into, with a directory that all may write to.
fn shared() -> Option<Mount> {
    if crate::mount::skip_without_ssefs() || skip_without_root() {
        return None;
    }
    let m = Mount::builder().shared().mount();
    crate::sys::chmod(m.path(), 0o755).unwrap();
    fs::create_dir(m.at("d")).unwrap();
    crate::sys::chmod(m.at("d"), 0o777).unwrap();
    Some(m)
}

#[test]
fn each_user_unlocks_for_itself_and_what_one_has_unlocked_lets_nobody_else_in() {
    let Some(m) = shared() else { return };
    let f = put(&m, "d/f", &key(1), b"content");
    crate::sys::chmod(&f, 0o666).unwrap();
    assert_eq!(fs::read(&f).unwrap(), b"content", "root has given the key");
    let file = key_file(&m, "key", &key(1), 0o600);
    crate::sys::chown(&file, USER, USER).unwrap();
    as_user(USER, || {
        assert_eq!(errno(fs::read(&f)), libc::ENOKEY);
        assert_eq!(errno(fs::write(&f, b"x")), libc::ENOKEY);
        assert_eq!(errno(crate::sys::truncate(&f, 0)), libc::ENOKEY);
        set_xattr(&f, UNLOCK, key(1)).unwrap();
        assert_eq!(fs::read(&f).unwrap(), b"content");
    });
    assert_eq!(as_user(OTHER, || errno(fs::read(&f))), libc::ENOKEY);
    // Locking is for oneself, too.
    lock(&m, "d/f");
    assert_eq!(errno(fs::read(&f)), libc::ENOKEY, "root");
    as_user(USER, || assert_eq!(fs::read(&f).unwrap(), b"content"));
    assert_eq!(as_user(OTHER, || errno(remove_xattr(&f, UNLOCK))), libc::ENODATA);
    as_user(USER, || remove_xattr(&f, UNLOCK).unwrap());
    assert_eq!(as_user(USER, || errno(fs::read(&f))), libc::ENOKEY);
}

#[test]
fn who_may_only_read_a_file_unlocks_it_on_the_command_line() {
    let Some(m) = shared() else { return };
    let f = put(&m, "d/f", &key(1), b"content");
    crate::sys::chmod(&f, 0o644).unwrap();
    let file = key_file(&m, "key", &key(1), 0o600);
    crate::sys::chown(&file, USER, USER).unwrap();
    let (f, file) = (f.to_str().unwrap().to_owned(), file.to_str().unwrap().to_owned());
    let as_them = |args: &[&str]| {
        use std::os::unix::process::CommandExt;
        let mut c = m.command(args);
        c.uid(USER).gid(USER).env("HOME", m.beside("")).env_remove("XDG_RUNTIME_DIR");
        crate::run::run(&mut c)
    };
    as_user(USER, || {
        assert_eq!(errno(set_xattr(&f, UNLOCK, key(1))), libc::EACCES, "the kernel asks for the right to write");
        assert_eq!(errno(fs::read(&f)), libc::ENOKEY);
    });
    let wrong = key_file(&m, "wrong", &key(2), 0o600);
    crate::sys::chown(&wrong, USER, USER).unwrap();
    let ran = as_them(&["object", "unlock", &f, "--key-file", wrong.to_str().unwrap()]);
    assert_eq!(ran.code, Some(6), "{ran:?}");
    ran.fails_saying(&["AccessDenied", "d/f"]);
    as_them(&["object", "unlock", &f, "--key-file", &file]).ok();
    as_user(USER, || assert_eq!(fs::read(&f).unwrap(), b"content"));
    assert_eq!(as_user(OTHER, || errno(fs::read(&f))), libc::ENOKEY);
    as_them(&["object", "lock", &f]).ok();
    assert_eq!(as_user(USER, || errno(fs::read(&f))), libc::ENOKEY);
    let again = as_them(&["object", "lock", &f]);
    assert_eq!(again.code, Some(3), "{again:?}");
    assert_eq!(fs::read(&f).unwrap(), b"content", "root has it still");
}

#[test]
fn a_key_comes_by_a_descriptor_as_well_and_never_by_an_argument() {
    let Some(m) = Mount::real("") else { return };
    let f = put(&m, "f", &key(1), b"content");
    lock(&m, "f");
    let mut c = m.command(&["object", "unlock", f.to_str().unwrap(), "--key-fd", "0"]);
    let mut child = c.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&key(1)).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(fs::read(&f).unwrap(), b"content");
    for bad in [&["--key-fd", "99"][..], &["--key-file", "k", "--key-fd", "0"], &[]] {
        let args = [&["object", "unlock", f.to_str().unwrap()], bad].concat();
        assert_eq!(m.ssefs(&args).code, Some(2), "{bad:?}");
    }
}

#[test]
fn a_directorys_key_is_for_new_files_below_it_and_is_needed_again_after_a_remount() {
    let Some(mut m) = Mount::real("AES256") else { return };
    fs::create_dir_all(m.at("d/e")).unwrap();
    fs::write(m.at("d/before"), b"by the rule").unwrap();
    set_xattr(m.at("d"), KEY, key(1)).unwrap();
    assert_eq!(get_xattr_text(m.at("d"), "user.sse.effective").unwrap(), "SSE-C directory d");
    assert_eq!(get_xattr_text(m.at("d/e"), "user.sse.effective").unwrap(), "SSE-C directory d");
    for name in ["d/f", "d/e/g"] {
        fs::write(m.at(name), name).unwrap();
        assert_eq!(method(&m, name), "SSE-C");
    }
    assert_eq!(method(&m, "d/before"), "AES256", "what is there stays as it is");
    m.remount();
    assert_eq!(fs::read(m.at("d/before")).unwrap(), b"by the rule");
    refused(&m, File::create(m.at("d/new")), libc::ENOKEY, &["customer key", "directory", "d"]);
    assert_eq!(errno(crate::sys::mknod(m.at("d/new"), libc::S_IFREG | 0o600, 0)), libc::ENOKEY);
    assert!(!m.at("d/new").exists());
    // With another key.
    set_xattr(m.at("d"), UNLOCK, key(2)).unwrap();
    refused(&m, File::create(m.at("d/e/new")), libc::EKEYREJECTED, &["AccessDenied", "d"]);
    assert!(!m.at("d/e/new").exists());
    fs::create_dir(m.at("d/more")).unwrap();
    // Both at once: what lies there may have been made with either.
    set_xattr(m.at("d"), UNLOCK, key(1)).unwrap();
    fs::write(m.at("d/more/new"), b"new").unwrap();
    assert_eq!((method(&m, "d/more/new"), fs::read(m.at("d/f")).unwrap()), ("SSE-C".into(), b"d/f".to_vec()));
    // A file keeps its request wherever it goes, and takes its own if it has one.
    fs::rename(m.at("d/f"), m.at("f")).unwrap();
    assert_eq!(errno(fs::read(m.at("f"))), libc::ENOKEY, "it is below the directory no more");
    set_xattr(m.at("f"), UNLOCK, key(1)).unwrap();
    fs::write(m.at("f"), b"again").unwrap();
    assert_eq!(method(&m, "f"), "SSE-C");
    // Another key from now on; and none.
    set_xattr(m.at("d"), KEY, key(3)).unwrap();
    fs::write(m.at("d/third"), b"third").unwrap();
    remove_xattr(m.at("d"), KEY).unwrap();
    assert_eq!(errno(remove_xattr(m.at("d"), KEY)), libc::ENODATA);
    fs::write(m.at("d/plain"), b"by the rule").unwrap();
    assert_eq!((method(&m, "d/third"), method(&m, "d/plain")), ("SSE-C".into(), "AES256".into()));
    m.remount();
    fs::write(m.at("d/h"), b"by the rule").unwrap();
    set_xattr(m.at("d"), UNLOCK, key(3)).unwrap();
    assert_eq!(fs::read(m.at("d/third")).unwrap(), b"third");
    assert_eq!(errno(fs::read(m.at("d/e/g"))), libc::EKEYREJECTED);
}

#[test]
fn a_directorys_key_of_a_user_who_may_set_no_rules_is_for_that_users_files() {
    let Some(m) = shared() else { return };
    crate::sys::chmod(m.at("d"), 0o777).unwrap();
    as_user(USER, || {
        set_xattr(m.at("d"), KEY, key(1)).unwrap();
        fs::write(m.at("d/theirs"), b"theirs").unwrap();
    });
    as_user(OTHER, || fs::write(m.at("d/others"), b"others").unwrap());
    as_user(OTHER, || set_xattr(m.at("d"), KEY, key(2)).unwrap());
    as_user(OTHER, || fs::write(m.at("d/second"), b"second").unwrap());
    as_user(USER, || fs::write(m.at("d/again"), b"again").unwrap());
    let methods = ["theirs", "others", "second", "again"].map(|n| method(&m, &format!("d/{n}")));
    assert_eq!(methods, ["SSE-C", "none", "SSE-C", "SSE-C"]);
    assert_eq!(as_user(USER, || get_xattr_text(m.at("d"), "user.sse.effective").unwrap()), "SSE-C directory d");
    assert_eq!(as_user(USER + 2, || get_xattr_text(m.at("d"), "user.sse.effective").unwrap()), "none none");
    // Root speaks for all.
    set_xattr(m.at("d"), KEY, key(3)).unwrap();
    assert_eq!(as_user(USER + 2, || errno(File::create(m.at("d/third")))), libc::ENOKEY);
    as_user(USER, || fs::write(m.at("d/own"), b"own").unwrap());
    as_user(USER, || remove_xattr(m.at("d"), KEY).unwrap());
    assert_eq!(as_user(USER, || errno(remove_xattr(m.at("d"), KEY))), libc::ENODATA, "that of all not");
}

#[test]
fn the_mount_option_unlocks_what_its_key_opens_for_everybody_on_roots_mount() {
    let Some(m) = shared() else { return };
    let f = put(&m, "d/f", &key(1), b"content");
    put(&m, "d/g", &key(2), b"other");
    set_xattr(m.path(), KEY, key(1)).unwrap();
    let file = key_file(&m, "key", &key(1), 0o600);
    let option = format!("customer_key_file={}", file.display());
    let mut m = m.with_option(&option);
    assert!(is_root());
    for uid in [0, USER, OTHER] {
        as_user(uid, || {
            assert_eq!(fs::read(&f).unwrap(), b"content", "user {uid}");
            assert_eq!(errno(fs::read(m.at("d/g"))), libc::EKEYREJECTED, "user {uid}");
            fs::write(m.at(format!("d/of{uid}")), b"new").unwrap();
        });
        assert_eq!(method(&m, &format!("d/of{uid}")), "SSE-C");
    }
    // Root takes it back, for all.
    assert_eq!(as_user(USER, || errno(remove_xattr(m.at("d"), UNLOCK))), libc::ENODATA);
    lock(&m, "");
    for uid in [0, USER] {
        assert_eq!(as_user(uid, || errno(fs::read(&f))), libc::ENOKEY, "user {uid}");
    }
    crate::sys::chmod(&file, 0o640).unwrap();
    m.umount();
    let refused = m.try_mount();
    assert_eq!(refused.code, Some(6), "{refused:?}");
    refused.fails_saying(&["can be read by others"]);
    fs::write(&file, [1; 31]).unwrap();
    crate::sys::chmod(&file, 0o600).unwrap();
    assert_eq!(m.try_mount().code, Some(6));
    fs::write(&file, key(1)).unwrap();
    m.mount();
    assert_eq!(as_user(USER, || fs::read(&f).unwrap()), b"content");
}

#[test]
fn r25_a_key_is_set_on_the_command_line_without_being_an_argument() {
    if crate::mount::skip_without_ssefs() {
        return;
    }
    let m = Mount::builder().rule("AES256").mount();
    let file = key_file(&m, "key", &key(1), 0o600);
    let set = |name: &str| {
        m.ssefs(&["object", "set-key", m.at(name).to_str().unwrap(), "--key-file", file.to_str().unwrap()])
    };
    fs::write(m.at("f"), b"content").unwrap();
    fs::create_dir(m.at("d")).unwrap();
    set("f").ok();
    set("d").ok();
    fs::write(m.at("d/new"), b"new").unwrap();
    for (name, content) in [("f", &b"content"[..]), ("d/new", b"new")] {
        assert_eq!((method(&m, name), fs::read(m.at(name)).unwrap()), ("SSE-C".into(), content.into()), "{name}");
    }
    set("nothing-here").fails_saying(&["nothing-here"]);
}
