//! What is refused: keys that are none, keys where they do not belong, rules and dialects without SSE-C.

use crate::mount::{Mount, errno, get_xattr, set_xattr};
use crate::{KEY, UNLOCK, key, key_file, method, put, refused};
use std::fs::{self, File};

#[test]
fn a_customer_key_of_a_wrong_length_is_refused_and_changes_nothing() {
    let Some(m) = Mount::real("AES256") else { return };
    let f = m.at("f");
    fs::write(&f, b"content").unwrap();
    let bad: [&[u8]; 7] = [b"", &[1; 31], &[1; 33], &[1; 64], &[b'A'; 43], &[b'A'; 44], &[b'='; 44]];
    for bad in bad {
        for name in [KEY, UNLOCK] {
            for at in [&f, &m.path()] {
                let said = format!("{} bytes", bad.len());
                refused(&m, set_xattr(at, name, bad), libc::EINVAL, &["InvalidArgument", "customer key", &said]);
            }
        }
    }
    assert_eq!((method(&m, "f"), fs::read(&f).unwrap()), ("AES256".into(), b"content".to_vec()));
}

#[test]
fn a_customer_key_for_an_object_of_another_method_is_refused_and_converts_nothing() {
    let Some(m) = Mount::real("AES256") else { return };
    fs::write(m.at("f"), b"content").unwrap();
    File::create(m.at("empty")).unwrap();
    for name in ["f", "empty"] {
        let because = ["InvalidRequest", "not applicable", name];
        refused(&m, set_xattr(m.at(name), UNLOCK, key(1)), libc::EINVAL, &because);
    }
    assert_eq!(method(&m, "f"), "AES256");
    std::os::unix::fs::symlink("f", m.at("link")).unwrap();
    crate::sys::mknod(m.at("fifo"), libc::S_IFIFO | 0o600, 0).unwrap();
    assert_ne!(errno(set_xattr(m.at("fifo"), KEY, key(1))), 0, "a fifo has no content");
    assert_eq!(errno(crate::mount::remove_xattr(m.at("f"), UNLOCK)), libc::ENODATA, "it is not unlocked");
}

#[test]
fn r29_sse_c_is_refused_as_a_rule_in_every_form() {
    let Some(m) = Mount::real("AES256") else { return };
    let hex = "ab".repeat(32);
    for rule in ["SSE-C", "SSE-C:AES256", &format!("SSE-C:{hex}:{hex}"), "sse-c", "C"] {
        refused(&m, set_xattr(m.path(), "user.sse.default", rule), libc::EINVAL, &["InvalidEncryptionAlgorithmError"]);
        refused(
            &m,
            set_xattr(m.path(), "user.sse.default.algorithm", rule),
            libc::EINVAL,
            &["InvalidEncryptionAlgorithmError"],
        );
        assert_eq!(m.ssefs(&["encryption", "put", "b", rule]).code, Some(8), "{rule}");
        // Nor can the kept form of a request be set by name.
        File::create(m.at("f")).unwrap();
        assert_eq!(errno(set_xattr(m.at("f"), "user.sse.algorithm", rule)), libc::EINVAL, "{rule}");
    }
    for rule in [
        "<ServerSideEncryptionRule><ApplyServerSideEncryptionByDefault><SSEAlgorithm>SSE-C</SSEAlgorithm>\
         </ApplyServerSideEncryptionByDefault></ServerSideEncryptionRule>",
        r#"{"Rules":[{"ApplyServerSideEncryptionByDefault":{"SSEAlgorithm":"SSE-C"}}]}"#,
    ] {
        refused(&m, set_xattr(m.path(), "user.sse.default", rule), libc::EINVAL, &["InvalidEncryptionAlgorithmError"]);
    }
    assert_eq!(get_xattr(m.path(), "user.sse.default").unwrap(), b"AES256");
}

#[test]
fn r38_dialect_jd_refuses_a_customer_key_and_the_others_take_it() {
    for (dialect, takes) in [("jd", false), ("native", true), ("cos", true), ("oss", true), ("aws", true)] {
        if crate::mount::skip_without_ssefs() {
            return;
        }
        let mut m = Mount::builder().unmounted();
        m.ssefs(&["bucket", "create", "b", "--dialect", dialect, "--rule", "KMS"]).ok();
        m.set_created();
        m.mount();
        File::create(m.at("f")).unwrap();
        fs::create_dir(m.at("d")).unwrap();
        if takes {
            set_xattr(m.at("f"), KEY, key(1)).unwrap();
            set_xattr(m.at("d"), KEY, key(1)).unwrap();
            fs::write(m.at("f"), b"x").unwrap();
            fs::write(m.at("d/f"), b"x").unwrap();
            assert_eq!((method(&m, "f"), method(&m, "d/f")), ("SSE-C".into(), "SSE-C".into()), "{dialect}");
            continue;
        }
        for at in ["f", "d", ""] {
            refused(&m, set_xattr(m.at(at), KEY, key(1)), libc::EINVAL, &["customer key", "jd"]);
        }
        fs::write(m.at("f"), b"x").unwrap();
        assert_eq!(method(&m, "f"), "KMS", "the rule applies");
    }
}

#[test]
fn key_files_that_others_can_read_or_that_hold_no_key_are_refused() {
    let Some(m) = Mount::real("") else { return };
    let f = put(&m, "f", &key(1), b"content");
    crate::lock(&m, "f");
    let unlock = |file: &std::path::Path| {
        m.ssefs(&["object", "unlock", f.to_str().unwrap(), "--key-file", file.to_str().unwrap()])
    };
    for mode in [0o640, 0o604, 0o620, 0o666] {
        let open = unlock(&key_file(&m, "open", &key(1), mode));
        assert_eq!(open.code, Some(6), "{open:?}");
        open.fails_saying(&["can be read by others", &format!("{mode:04o}")]);
    }
    for (name, content) in [("short", vec![1; 31]), ("long", vec![1; 46]), ("empty", vec![]), ("hex", vec![b'a'; 64])] {
        let ran = unlock(&key_file(&m, name, &content, 0o600));
        assert_eq!(ran.code, Some(6), "{name}");
        ran.fails_saying(&["no customer key", "44 characters of base64"]);
    }
    assert_eq!(unlock(&m.beside("none")).code, Some(3));
    assert_eq!(unlock(&m.path()).code, Some(6), "a directory");
    assert_eq!(errno(fs::read(&f)), libc::ENOKEY);
    unlock(&key_file(&m, "good", &key(1), 0o400)).ok();
    assert_eq!(fs::read(&f).unwrap(), b"content");
    // Of another object, and of a place that is no mount.
    unlock(&key_file(&m, "wrong", &key(2), 0o600)).fails_saying(&["AccessDenied", "customer key"]);
    let beside = m.beside("good");
    let ran = m.ssefs(&["object", "unlock", beside.to_str().unwrap(), "--key-file", beside.to_str().unwrap()]);
    assert_eq!(ran.code, Some(3));
}
