//! Rules of buckets and directories, in all their forms.

use crate::mount::{Mount, errno, get_xattr_text, remove_xattr, set_xattr};
use crate::{RULE, effective, method, put, refused, state};
use std::fs;

#[test]
fn r01_r02_with_a_rule_every_object_put_is_sealed_by_it() {
    let Some(mut m) = Mount::real("") else { return };
    set_xattr(m.path(), RULE, "AES256").unwrap();
    fs::create_dir_all(m.at("a/b")).unwrap();
    for name in ["f", "a/f", "a/b/f"] {
        assert_eq!(put(&m, name), "AES256");
    }
    let shown = m.show("f");
    assert!(shown.to_string().contains("AES-256-GCM"), "the cipher is told: {shown}");
    crate::mount::sh(
        &m.path(),
        "echo x > sh; cp f copy; mv copy moved; ln f link; dd if=/dev/zero of=dd bs=1M count=2 2>/dev/null",
    );
    m.remount();
    for name in ["sh", "moved", "link", "dd", "a/b/f"] {
        assert_eq!(method(&m, name), "AES256", "{name}");
    }
}

#[test]
fn r03_the_rule_is_put_read_and_deleted_the_same_by_xattr_and_by_command() {
    let Some(m) = Mount::real("") else { return };
    let cli = |args: &[&str]| m.ssefs(&[&["encryption"], args].concat());
    set_xattr(m.path(), RULE, "AES256").unwrap();
    assert_eq!(cli(&["get", "b"]).ok().trim(), "AES256");
    cli(&["put", "b", "KMS"]).ok();
    assert_eq!(get_xattr_text(m.path(), RULE).unwrap(), "KMS");
    assert_eq!(get_xattr_text(m.path(), "user.sse.default.algorithm").unwrap(), "KMS");
    remove_xattr(m.path(), RULE).unwrap();
    let none = cli(&["get", "b"]);
    none.fails_saying(&["NoSuchServerSideEncryptionRule"]);
    assert_eq!(none.code, Some(3));
    let xml = "<ServerSideEncryptionRule><ApplyServerSideEncryptionByDefault><SSEAlgorithm>AES256</SSEAlgorithm></ApplyServerSideEncryptionByDefault></ServerSideEncryptionRule>";
    fs::write(m.beside("rule.xml"), xml).unwrap();
    cli(&["put", "b", "--xml", m.beside("rule.xml").to_str().unwrap()]).ok();
    assert_eq!(get_xattr_text(m.path(), RULE).unwrap(), "AES256");
    let printed = get_xattr_text(m.path(), "user.sse.default.xml").unwrap();
    assert!(
        printed.contains("<SSEAlgorithm>AES256</SSEAlgorithm>") && printed.contains("ServerSideEncryptionRule"),
        "{printed}"
    );
    assert_eq!(cli(&["get", "b", "--xml"]).ok().trim(), printed.trim());
    // What was printed is accepted again, by every way.
    cli(&["delete", "b"]).ok();
    assert_eq!(errno(get_xattr_text(m.path(), RULE)), libc::ENODATA);
    set_xattr(m.path(), "user.sse.default.xml", &printed).unwrap();
    assert_eq!(cli(&["get", "b"]).ok().trim(), "AES256");
    let json = r#"{"Rules":[{"ApplyServerSideEncryptionByDefault":{"SSEAlgorithm":"aws:kms"}}]}"#;
    set_xattr(m.path(), RULE, json).unwrap();
    assert_eq!(cli(&["get", "b"]).ok().trim(), "KMS");
    set_xattr(m.path(), RULE, xml).unwrap();
    assert_eq!(cli(&["get", "b"]).ok().trim(), "AES256");
}

#[test]
fn r03_a_rule_can_be_set_piece_by_piece() {
    let Some(m) = Mount::real("AES256") else { return };
    let key = "user.sse.default.kms-key-id";
    refused(
        &m,
        set_xattr(m.path(), key, "some-key"),
        libc::EINVAL,
        &["KMSMasterKeyID is not applicable if the default sse algorithm is not KMS"],
    );
    set_xattr(m.path(), "user.sse.default.algorithm", "KMS").unwrap();
    assert_eq!(get_xattr_text(m.path(), RULE).unwrap(), "KMS");
    assert_eq!(put(&m, "f"), "KMS");
    set_xattr(m.path(), "user.sse.default.algorithm", "AES256").unwrap();
    assert_eq!(get_xattr_text(m.path(), RULE).unwrap(), "AES256");
    assert_eq!(errno(get_xattr_text(m.path(), key)), libc::ENODATA);
    remove_xattr(m.path(), "user.sse.default.algorithm").unwrap();
    assert_eq!(errno(get_xattr_text(m.path(), RULE)), libc::ENODATA);
}

#[test]
fn r04_objects_that_exist_keep_their_bytes_and_their_encryption() {
    let Some(mut m) = Mount::real("AES256") else { return };
    let mut before = vec![];
    let mut want = vec![];
    for (step, rule) in [Some("AES256"), Some("KMS"), None, Some("AES256"), None].into_iter().enumerate() {
        match rule {
            Some(rule) => m.ssefs(&["encryption", "put", "b", rule]).ok(),
            None => m.ssefs(&["encryption", "delete", "b"]).ok(),
        };
        let name = format!("f{step}");
        fs::write(m.at(&name), crate::tree::Dice::new(step as u64).bytes(300_000)).unwrap();
        fs::File::open(m.at(&name)).unwrap().sync_all().unwrap();
        want.push((name.clone(), rule.unwrap_or("none"), state(&m, &name)));
        // The log as it was is a beginning of the log as it is; what lay behind its end may have been prepared room.
        for (path, old) in &before {
            let now: Vec<u8> = fs::read(path).unwrap();
            let old: &Vec<u8> = old;
            assert!(now.len() >= old.len() && now[..old.len()] == old[..], "step {step}: {path:?} has changed");
        }
        before = m
            .segments()
            .into_iter()
            .map(|p| {
                let mut b = fs::read(&p).unwrap();
                let end = b.iter().rposition(|&x| x != 0).map_or(0, |e| e + 1);
                b.truncate(end);
                (p, b)
            })
            .collect();
    }
    assert!(before.iter().map(|(_, b)| b.len()).sum::<usize>() > 5 * 300_000);
    for _ in 0..2 {
        for (step, (name, rule, was)) in want.iter().enumerate() {
            assert_eq!(method(&m, name), *rule, "{name}");
            assert_eq!(state(&m, name), *was, "{name}");
            assert!(fs::read(m.at(name)).unwrap() == crate::tree::Dice::new(step as u64).bytes(300_000), "{name}");
        }
        m.remount();
    }
}

#[test]
fn r05_r70_the_nearest_directory_rule_applies() {
    let Some(mut m) = Mount::real("AES256") else { return };
    fs::create_dir_all(m.at("photos/2024/raw")).unwrap();
    fs::create_dir_all(m.at("open/sealed")).unwrap();
    set_xattr(m.at("photos"), RULE, "KMS").unwrap();
    set_xattr(m.at("open"), RULE, "none").unwrap();
    m.ssefs(&["encryption", "put", "b", "--dir", "open/sealed", "AES256"]).ok();
    assert_eq!(get_xattr_text(m.at("open/sealed"), RULE).unwrap(), "AES256");
    assert_eq!(m.ssefs(&["encryption", "get", "b", "--dir", "photos"]).ok().trim(), "KMS");
    assert_eq!(errno(get_xattr_text(m.at("photos/2024"), RULE)), libc::ENODATA, "none is set here");
    m.remount();
    for (name, want) in [
        ("f", "AES256"),
        ("photos/f", "KMS"),
        ("photos/2024/raw/f", "KMS"),
        ("open/f", "none"),
        ("open/sealed/f", "AES256"),
    ] {
        assert_eq!(put(&m, name), want, "{name}");
    }
    remove_xattr(m.at("photos"), RULE).unwrap();
    remove_xattr(m.at("photos"), RULE).expect("deleting a rule that is not there");
    assert_eq!(put(&m, "photos/g"), "AES256");
    assert_eq!(method(&m, "photos/f"), "KMS");
    // The rule goes with its directory.
    fs::rename(m.at("open"), m.at("photos/open")).unwrap();
    assert_eq!(put(&m, "photos/open/g"), "none");
    assert_eq!(effective(&m, "photos/open/g"), "none directory photos/open");
}

#[test]
fn r05_a_hard_link_takes_the_rule_above_the_path_it_was_last_named_by() {
    let Some(m) = Mount::real("") else { return };
    for (d, rule) in [("kms", "KMS"), ("aes", "AES256")] {
        fs::create_dir(m.at(d)).unwrap();
        set_xattr(m.at(d), RULE, rule).unwrap();
    }
    fs::create_dir(m.at("plain")).unwrap();
    assert_eq!(put(&m, "kms/f"), "KMS");
    fs::hard_link(m.at("kms/f"), m.at("plain/f")).unwrap();
    assert_eq!(put(&m, "plain/f"), "KMS", "created below kms");
    fs::rename(m.at("plain/f"), m.at("aes/f")).unwrap();
    assert_eq!(put(&m, "kms/f"), "AES256", "last renamed into aes");
}

#[test]
fn r18_objects_of_different_methods_live_in_one_directory() {
    let Some(mut m) = Mount::real("") else { return };
    fs::write(m.at("empty"), "").unwrap();
    put(&m, "plain");
    set_xattr(m.path(), RULE, "AES256").unwrap();
    put(&m, "aes");
    set_xattr(m.path(), RULE, "KMS").unwrap();
    put(&m, "kms");
    m.remount();
    for (name, want) in [("plain", "none"), ("aes", "AES256"), ("kms", "KMS")] {
        assert_eq!(method(&m, name), want);
        assert_eq!(fs::read(m.at(name)).unwrap(), format!("content of {name}").as_bytes());
    }
    assert_eq!(crate::mount::sh(&m.path(), "cat aes kms plain | wc -c; ls | wc -l"), "44\n4\n");
}

#[test]
fn r14_sealed_and_plain_objects_are_used_alike() {
    let Some(m) = Mount::real("") else { return };
    fs::create_dir(m.at("plain")).unwrap();
    fs::create_dir(m.at("sealed")).unwrap();
    set_xattr(m.at("sealed"), RULE, "KMS").unwrap();
    let what = crate::tree::Contents { files: 150, xattrs: true, sparse: true, nodes: false, bytes_in_names: true };
    crate::tree::generate(&m.beside("source"), 8, what);
    for d in ["plain", "sealed"] {
        crate::mount::sh(
            &m.at(d),
            "cp -a ../../source . && cd source && find . -name 'file*' -size -8 -exec sh -c 'echo more >> \"$1\"; touch -d @1700000000 \"$1\"' x {} \\;",
        );
    }
    crate::tree::assert_same(
        &m.at("plain/source"),
        &m.at("sealed/source"),
        crate::tree::Compare { dir_times: false, ..crate::tree::EVERYTHING },
    );
    let sizes =
        |d: &str| crate::tree::walk(&m.at(d)).iter().filter(|(_, s)| s.is_file()).map(|(_, s)| s.len()).sum::<u64>();
    assert_eq!(sizes("plain"), sizes("sealed"));
}

#[test]
fn r32_only_what_is_put_while_the_rule_stands_is_sealed() {
    let Some(mut m) = Mount::real("") else { return };
    set_xattr(m.path(), RULE, "AES256").unwrap();
    put(&m, "one");
    remove_xattr(m.path(), RULE).unwrap();
    put(&m, "two");
    m.remount();
    assert_eq!((method(&m, "one"), method(&m, "two")), ("AES256".into(), "none".into()));
}

#[test]
fn r35_r37_any_bucket_can_have_a_rule_and_has_none_unless_set() {
    let Some(m) = Mount::real("") else { return };
    m.ssefs(&["bucket", "create", "other", "--rule", "KMS"]).ok();
    m.ssefs(&["bucket", "create", "third"]).ok();
    assert_eq!(errno(get_xattr_text(m.path(), RULE)), libc::ENODATA);
    assert_eq!(effective(&m, ""), "none none");
    assert_eq!(put(&m, "f"), "none");
    assert_eq!(m.ssefs(&["encryption", "get", "other"]).ok().trim(), "KMS");
    assert_eq!(m.ssefs(&["encryption", "get", "third"]).code, Some(3));
    m.ssefs(&["encryption", "put", "third", "AES256"]).ok();
    assert_eq!(m.ssefs(&["encryption", "get", "third"]).ok().trim(), "AES256");
    m.ssefs(&["encryption", "get", "b"]).fails_saying(&["NoSuchServerSideEncryptionRule"]);
}

#[test]
fn r48_r55_r56_r60_what_is_no_rule_is_refused_with_the_vendors_words_and_changes_nothing() {
    let Some(m) = Mount::real("AES256") else { return };
    let apply = |inner: &str| {
        format!(
            "<ServerSideEncryptionRule>\n<ApplyServerSideEncryptionByDefault>\n{inner}\n</ApplyServerSideEncryptionByDefault></ServerSideEncryptionRule>"
        )
    };
    let unknown = "The Encryption request you specified is not valid. Supported value: AES256/KMS";
    let cases: Vec<(String, Vec<&str>)> = vec![
        ("DES".into(), vec!["InvalidEncryptionAlgorithmError", unknown]),
        ("aes256 ".into(), vec!["InvalidEncryptionAlgorithmError"]),
        ("".into(), vec![]),
        ("none".into(), vec!["InvalidArgument"]),
        (apply("<SSEAlgorithm>3DES</SSEAlgorithm>"), vec!["InvalidEncryptionAlgorithmError", unknown]),
        (apply(""), vec!["MalformedXML"]),
        (
            apply("<SSEAlgorithm>AES256</SSEAlgorithm><KMSMasterKeyID>k</KMSMasterKeyID>"),
            vec!["InvalidArgument", "KMSMasterKeyID is not applicable if the default sse algorithm is not KMS"],
        ),
        (
            apply("<SSEAlgorithm>AES256</SSEAlgorithm><KMSDataEncryption>SM4</KMSDataEncryption>"),
            vec!["InvalidArgument"],
        ),
        (apply("<SSEAlgorithm>AES256</SSEAlgorithm>\n<Colour>red</Colour>"), vec!["MalformedXML", "line 4"]),
        (
            apply("<SSEAlgorithm>AES256</SSEAlgorithm>").replace("</ServerSideEncryptionRule>", ""),
            vec!["MalformedXML", "line"],
        ),
        ("{\"Rules\":[]}".into(), vec!["MalformedXML"]),
        ("{\"Rules\":[\n{\"Apply".into(), vec!["MalformedXML", "line 2"]),
        ("KMS:no-such-key".into(), vec!["KMS.NotFoundException", "no-such-key"]),
    ];
    for (text, because) in &cases {
        let set = set_xattr(m.path(), RULE, text);
        assert!(set.is_err(), "accepted: {text:?}");
        refused(&m, set, libc::EINVAL, because);
        assert_eq!(get_xattr_text(m.path(), RULE).unwrap(), "AES256", "after {text:?}");
        if !text.is_empty() {
            let by_command = m.ssefs(&["encryption", "put", "b", text]);
            by_command.fails_saying(because);
        }
    }
    m.ssefs(&["encryption", "put", "b", "--xml", "no/such/file"]).fails_saying(&["no/such/file"]);
    assert_eq!(m.ssefs(&["encryption", "get", "b"]).ok().trim(), "AES256");
}

#[test]
fn r58_deleting_a_rule_that_is_not_there_succeeds() {
    let Some(m) = Mount::real("") else { return };
    remove_xattr(m.path(), RULE).unwrap();
    m.ssefs(&["encryption", "delete", "b"]).ok();
    m.ssefs(&["encryption", "get", "b"]).fails_saying(&["NoSuchServerSideEncryptionRule"]);
    for (dialect, code) in [
        ("cos", "NoSuchEncryptionConfiguration"),
        ("oss", "NoSuchServerSideEncryptionRule"),
        ("aws", "ServerSideEncryptionConfigurationNotFoundError"),
    ] {
        m.ssefs(&["bucket", "create", dialect, "--dialect", dialect]).ok();
        let get = m.ssefs(&["encryption", "get", dialect]);
        get.fails_saying(&[code]);
        assert_eq!(get.code, Some(3));
        m.ssefs(&["encryption", "delete", dialect]).ok();
    }
}

#[test]
fn r71_effective_explains_what_a_put_here_would_get_and_from_where() {
    let Some(m) = Mount::real("") else { return };
    fs::create_dir_all(m.at("photos/2024/raw")).unwrap();
    fs::write(m.at("f"), "").unwrap();
    assert_eq!((effective(&m, "f"), effective(&m, "photos")), ("none none".into(), "none none".into()));
    set_xattr(m.path(), RULE, "AES256").unwrap();
    assert_eq!((effective(&m, "f"), effective(&m, "")), ("AES256 bucket".into(), "AES256 bucket".into()));
    set_xattr(m.at("photos/2024"), RULE, "KMS").unwrap();
    fs::write(m.at("photos/2024/raw/f"), "").unwrap();
    for p in ["photos/2024", "photos/2024/raw", "photos/2024/raw/f"] {
        assert_eq!(effective(&m, p), "KMS directory photos/2024", "{p}");
    }
    assert_eq!(effective(&m, "photos"), "AES256 bucket");
    set_xattr(m.at("f"), crate::REQUEST, "KMS").unwrap();
    assert_eq!(effective(&m, "f"), "KMS request");
    assert_eq!(errno(set_xattr(m.at("f"), "user.sse.effective", "x")), libc::EINVAL);
}
