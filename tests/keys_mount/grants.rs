//! Naming a customer master key needs a grant on it.

use crate::mount::{Mount, USER, as_user, errno, get_xattr_text, set_xattr, skip_without_root, skip_without_ssefs};
use crate::{ALGORITHM, KEY_ID, RULE, last_error, make_key, refused};
use std::fs;

#[test]
fn a_user_without_a_grant_names_no_key_and_is_told_how_to_get_it() {
    if skip_without_root() || skip_without_ssefs() {
        return;
    }
    let m = Mount::builder().rule("KMS").shared().mount();
    crate::sys::chmod(m.path(), 0o777).unwrap();
    let id = make_key(&m, "mine");
    m.ssefs(&["bucket", "grant", "b", &USER.to_string()]).ok();
    let words = |name: &str| {
        format!(
            "AccessDenied: user {USER} may not use the key {name}; root or the keyring's owner can allow it: \
             ssefs key grant {name} {USER}"
        )
    };
    as_user(USER, || {
        fs::write(m.at("f"), "").unwrap();
        set_xattr(m.at("f"), ALGORITHM, "KMS").expect("the default key is everybody's");
        fs::create_dir(m.at("d")).unwrap();
        for name in ["mine", id.as_str(), "no-such-key"] {
            refused(&m, set_xattr(m.at("f"), KEY_ID, name), libc::EACCES, &words(name));
            refused(&m, set_xattr(m.path(), RULE, format!("KMS:{name}")), libc::EACCES, &words(name));
            refused(&m, set_xattr(m.at("d"), RULE, format!("KMS:{name}")), libc::EACCES, &words(name));
        }
        assert_eq!(get_xattr_text(m.path(), RULE).unwrap(), "KMS");
        assert!(m.ssefs(&["key", "grant", "mine", &USER.to_string()]).code != Some(0), "nobody grants to oneself");
    });
    m.ssefs(&["key", "grant", "mine", &USER.to_string()]).ok();
    as_user(USER, || {
        set_xattr(m.at("f"), KEY_ID, "mine").expect("granted");
        fs::write(m.at("f"), "x").unwrap();
        assert_eq!(get_xattr_text(m.at("f"), KEY_ID).unwrap(), id);
        set_xattr(m.at("d"), RULE, "KMS:mine").unwrap();
    });
    m.ssefs(&["key", "grant", "mine", &USER.to_string(), "--revoke"]).ok();
    as_user(USER, || {
        assert_eq!(errno(set_xattr(m.at("d"), RULE, "KMS:mine")), libc::EACCES);
        assert_eq!(last_error(&m), words("mine"));
        // Objects that take a rule need no grant: whoever set it had one.
        fs::write(m.at("d/g"), "x").unwrap();
        assert_eq!(get_xattr_text(m.at("d/g"), KEY_ID).unwrap(), id);
        fs::write(m.at("f"), "again").unwrap();
        assert_eq!(get_xattr_text(m.at("f"), KEY_ID).unwrap(), id);
    });
    for args in
        [["key", "grant", "nobody", "1"], ["key", "grant", "mine", "no-such-user"], ["key", "grant", "bucket:b", "1"]]
    {
        assert!(m.ssefs(&args).code.is_some_and(|c| c != 0), "{args:?}");
    }
}
