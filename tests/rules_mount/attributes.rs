//! The attributes of ssefs beside those of the user: hidden, read and set by name, refused when unknown.

use crate::mount::{Mount, errno, get_xattr, get_xattr_text, list_xattr, remove_xattr, set_xattr};
use crate::{REQUEST, RULE, put, refused, state};
use std::fs;

const READABLE: [&str; 4] = [REQUEST, "user.sse.key-version", "user.sse.state", "user.sse.effective"];

#[test]
fn none_is_listed_unless_the_mount_option_says_so() {
    let Some(m) = Mount::real("AES256") else { return };
    put(&m, "f");
    set_xattr(m.at("f"), "user.mine", "1").unwrap();
    fs::create_dir(m.at("d")).unwrap();
    set_xattr(m.at("d"), RULE, "KMS").unwrap();
    assert_eq!(list_xattr(m.at("f")).unwrap(), [b"user.mine".to_vec()]);
    assert!(list_xattr(m.at("d")).unwrap().is_empty() && list_xattr(m.path()).unwrap().is_empty());
    READABLE.iter().for_each(|n| drop(get_xattr(m.at("f"), n).unwrap_or_else(|e| panic!("{n}: {e}"))));
    assert!(!crate::mount::sh(&m.path(), "getfattr -d f").contains("sse"));
    assert!(crate::mount::sh(&m.path(), "getfattr -n user.sse.state f").contains("method"));
    drop(m);
    let m = Mount::builder().rule("AES256").option("list_sse").mount();
    put(&m, "f");
    let listed = crate::mount::sh(&m.path(), "getfattr -d f && getfattr -d .");
    assert!(listed.contains("user.sse.state=") && listed.contains("user.sse.default=\"AES256\""), "{listed}");
}

#[test]
fn an_unknown_one_is_refused() {
    let Some(m) = Mount::real("AES256") else { return };
    put(&m, "f");
    for name in ["user.sse.x", "user.sse.", "user.sse.algorithms", "user.sse.Algorithm", "user.sse.default.x"] {
        for p in [m.at("f"), m.path()] {
            assert_eq!(errno(set_xattr(&p, name, "1")), libc::EINVAL, "{name}");
            let read = errno(get_xattr(&p, name));
            assert!(read == libc::EINVAL || read == libc::ENODATA, "{name}: {read}");
        }
    }
    // Those of directories are not for files, and the other way round.
    assert_eq!(errno(set_xattr(m.at("f"), RULE, "AES256")), libc::EINVAL);
    assert_eq!(errno(set_xattr(m.path(), REQUEST, "AES256")), libc::EINVAL);
}

#[test]
fn the_state_sums_it_up_and_can_be_written_back_without_effect() {
    let Some(mut m) = Mount::real("AES256") else { return };
    put(&m, "f");
    let before = state(&m, "f");
    let parsed: serde_json::Value = serde_json::from_str(&before).unwrap();
    assert!(!before.trim().contains('\n'), "one line");
    for field in ["method", "cipher", "key", "origin"] {
        assert!(parsed.get(field).is_some_and(|v| v.is_string()), "{field} in {before}");
    }
    assert!(before.contains("AES-256-GCM") && before.contains("bucket"), "{before}");
    assert_eq!(get_xattr_text(m.at("f"), "user.sse.key-version").unwrap(), "1");
    set_xattr(m.at("f"), "user.sse.state", &before).unwrap();
    set_xattr(m.at("f"), "user.sse.state", before.replace("AES256", "none")).unwrap();
    remove_xattr(m.at("f"), "user.sse.state").unwrap();
    m.remount();
    assert_eq!(state(&m, "f"), before);
}

#[test]
fn the_last_error_is_the_callers_own() {
    if crate::mount::skip_without_root() || crate::mount::skip_without_ssefs() {
        return;
    }
    let m = Mount::builder().rule("AES256").shared().mount();
    crate::sys::chmod(m.path(), 0o777).unwrap();
    assert_eq!(errno(get_xattr(m.path(), "user.sse.last-error")), libc::ENODATA, "before the first");
    refused(&m, set_xattr(m.path(), RULE, "DES"), libc::EINVAL, &["InvalidEncryptionAlgorithmError"]);
    crate::mount::as_user(crate::mount::USER, || {
        assert_eq!(errno(get_xattr(m.path(), "user.sse.last-error")), libc::ENODATA, "another's is not shown");
        refused(&m, set_xattr(m.path(), RULE, "KMS"), libc::EACCES, &["AccessDenied"]);
    });
    refused(
        &m,
        Err(std::io::Error::from_raw_os_error(libc::EINVAL)),
        libc::EINVAL,
        &["InvalidEncryptionAlgorithmError"],
    );
}

#[test]
fn a_plain_object_has_no_algorithm_and_an_empty_one_no_method_yet() {
    let Some(m) = Mount::real("") else { return };
    put(&m, "f");
    for name in [
        REQUEST,
        "user.sse.kms-key-id",
        "user.sse.data-encryption",
        "user.sse.key-version",
        "user.sse.customer-algorithm",
        "user.sse.customer-key",
    ] {
        assert_eq!(errno(get_xattr(m.at("f"), name)), libc::ENODATA, "{name}");
    }
    fs::write(m.at("empty"), "").unwrap();
    assert_eq!(errno(get_xattr(m.at("empty"), REQUEST)), libc::ENODATA);
    assert!(serde_json::from_str::<serde_json::Value>(&state(&m, "empty")).is_ok());
}

#[test]
fn r15_listing_and_attributes_work_while_the_keyring_is_away() {
    let Some(mut m) = Mount::real("AES256") else { return };
    fs::create_dir(m.at("d")).unwrap();
    put(&m, "d/f");
    set_xattr(m.at("d/f"), "user.mine", "kept").unwrap();
    m.umount();
    let keyring = m.config().join("keyring.db");
    fs::rename(&keyring, m.beside("keyring.away")).unwrap();
    let mount = m.command(&["mount", "b", m.path().to_str().unwrap(), "-o", "ro"]).output().unwrap();
    assert!(mount.status.success(), "read-only, without the keyring: {}", String::from_utf8_lossy(&mount.stderr));
    assert_eq!(crate::mount::sh(&m.path(), "find . | sort"), ".\n./d\n./d/f\n");
    assert_eq!(fs::metadata(m.at("d/f")).unwrap().len(), 14);
    assert_eq!(get_xattr(m.at("d/f"), "user.mine").unwrap(), b"kept");
    assert!(fs::read(m.at("d/f")).is_err());
    assert_eq!(errno(fs::write(m.at("new"), "x")), libc::EROFS);
    m.umount();
    let _ = fs::remove_file(&keyring);
    fs::rename(m.beside("keyring.away"), &keyring).unwrap();
    m.mount();
    assert_eq!(fs::read(m.at("d/f")).unwrap(), b"content of d/f");
}
