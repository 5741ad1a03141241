//! Buckets, rules and grants by command line, without a mount: exact output and exit codes.

mod cli_support;

use std::os::unix::fs::PermissionsExt;

use cli_support::Sandbox;

fn with_bucket(args: &[&str]) -> Sandbox {
    let s = Sandbox::new();
    s.ssefs(&[&["bucket", "create", "photos"], args].concat()).ok();
    s
}

#[test]
fn the_first_bucket_makes_store_and_keys_and_says_where_the_root_key_lies() {
    let s = Sandbox::new();
    let o = s.ssefs(&["bucket", "create", "photos", "--rule", "AES256"]);
    assert_eq!(o.code, 0, "{o:?}");
    let root_key = s.path("config/root.key");
    assert!(o.err.contains(root_key.to_str().unwrap()), "{o:?}");
    assert!(o.err.contains("los"), "says that losing it loses the data: {o:?}");
    let mode = |p: &str| std::fs::metadata(s.path(p)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("store"), mode("config"), mode("config/root.key")), (0o700, 0o700, 0o600));
    let again = s.ssefs(&["bucket", "create", "other", "--rule", "AES256"]);
    assert_eq!((again.code, again.err.as_str()), (0, ""), "only the first use has something to say");
    s.ssefs(&["bucket", "create", "photos"]).fails(12, &["bucket photos exists already"]);
    assert_eq!(s.ssefs(&["bucket", "list"]).ok(), "BUCKET  MOUNTED AT\nother   -\nphotos  -\n");
}

#[test]
fn a_bucket_that_is_not_there_is_exit_status_3_and_names_those_that_are() {
    let s = with_bucket(&[]);
    for args in [&["bucket", "show", "fotos"][..], &["encryption", "get", "fotos"], &["check", "fotos"]] {
        s.ssefs(args).fails(3, &["there is no bucket fotos in", "buckets here: photos"]);
    }
    let dir = s.mkdir("mnt");
    s.ssefs(&["mount", "fotos", &dir]).fails(3, &["there is no bucket fotos in", "add --create"]);
}

#[test]
fn r03_a_rule_is_put_read_in_three_forms_and_deleted() {
    let s = with_bucket(&[]);
    s.ssefs(&["encryption", "get", "photos"]).fails(3, &["NoSuchServerSideEncryptionRule: "]);
    s.ssefs(&["encryption", "put", "photos", "AES256"]).ok();
    assert_eq!(s.ssefs(&["encryption", "get", "photos"]).ok(), "AES256\n");
    let xml = s.ssefs(&["encryption", "get", "photos", "--xml"]).ok();
    assert!(xml.contains("<SSEAlgorithm>AES256</SSEAlgorithm>"), "{xml}");
    let json = s.ssefs(&["encryption", "get", "photos", "--json"]).ok();
    assert_eq!(json, "{\"Rules\":[{\"ApplyServerSideEncryptionByDefault\":{\"SSEAlgorithm\":\"AES256\"}}]}\n");

    s.ssefs(&["encryption", "put", "photos", "KMS"]).ok();
    s.ssefs_with_input(&["encryption", "put", "photos", "--xml", "-"], &xml).ok();
    assert_eq!(s.ssefs(&["encryption", "get", "photos"]).ok(), "AES256\n");
    s.ssefs(&["encryption", "put", "photos", "KMS"]).ok();
    std::fs::write(s.path("rule.json"), &json).unwrap();
    s.ssefs(&["encryption", "put", "photos", "--json", "rule.json"]).ok();
    assert_eq!(s.ssefs(&["encryption", "get", "photos"]).ok(), "AES256\n");

    s.ssefs(&["encryption", "delete", "photos"]).ok();
    s.ssefs(&["encryption", "delete", "photos"]).ok();
    s.ssefs(&["encryption", "get", "photos"]).fails(3, &["NoSuchServerSideEncryptionRule: "]);
}

#[test]
fn r58_no_rule_is_said_in_the_words_of_the_dialect() {
    for (dialect, code) in [
        ("oss", "NoSuchServerSideEncryptionRule"),
        ("cos", "NoSuchEncryptionConfiguration"),
        ("aws", "ServerSideEncryptionConfigurationNotFoundError"),
    ] {
        let s = with_bucket(&["--dialect", dialect]);
        s.ssefs(&["encryption", "get", "photos"]).fails(3, &[&format!("ssefs: error: {code}: ")]);
    }
}

#[test]
fn r55_r56_r60_refused_rules_say_the_vendors_words_and_change_nothing() {
    let s = with_bucket(&["--rule", "KMS"]);
    let xml = |algorithm: &str, rest: &str| {
        format!(
            "<ServerSideEncryptionRule><ApplyServerSideEncryptionByDefault>{algorithm}{rest}\
                 </ApplyServerSideEncryptionByDefault></ServerSideEncryptionRule>"
        )
    };
    let put = |text: &str| s.ssefs_with_input(&["encryption", "put", "photos", "--xml", "-"], text);
    put(&xml("<SSEAlgorithm>DES</SSEAlgorithm>", "")).fails(
        8,
        &["ssefs: error: InvalidEncryptionAlgorithmError: The Encryption request you specified is not valid. \
         Supported value: AES256/KMS\n"],
    );
    put(&xml("<SSEAlgorithm>AES256</SSEAlgorithm>", "<KMSMasterKeyID>k</KMSMasterKeyID>")).fails(
        8,
        &["ssefs: error: InvalidArgument: KMSMasterKeyID is not applicable if the default sse algorithm is not KMS\n"],
    );
    put(&xml("", "")).fails(8, &["MalformedXML"]);
    put("<ServerSideEncryptionRule>").fails(8, &["MalformedXML", "line 1"]);
    put("AES256").fails(8, &["MalformedXML: line 1"]);
    s.ssefs(&["encryption", "put", "photos", "none"]).fails(8, &["InvalidArgument"]);
    s.ssefs(&["encryption", "put", "photos", "DES"]).fails(8, &["InvalidEncryptionAlgorithmError"]);
    assert_eq!(s.ssefs(&["encryption", "get", "photos"]).ok(), "KMS\n");
    s.ssefs(&["bucket", "create", "other", "--rule", "DES"]).fails(8, &["InvalidEncryptionAlgorithmError"]);
    assert!(!s.path("store/buckets/other").exists(), "a bad rule makes no bucket");
}

#[test]
fn a_bucket_is_shown_as_fields_and_as_json() {
    let s = with_bucket(&["--rule", "AES256", "--dialect", "oss", "--chunk-size", "64K"]);
    let text = s.ssefs(&["bucket", "show", "photos"]).ok();
    assert!(text.lines().any(|l| l.starts_with("dialect ") && l.ends_with(" oss")), "{text}");
    let json: serde_json::Value = serde_json::from_str(&s.ssefs(&["bucket", "show", "photos", "--json"]).ok()).unwrap();
    assert_eq!(json["name"], "photos");
    assert_eq!(json["dialect"], "oss");
    assert_eq!(json["chunk_bytes"], 65536);
    assert_eq!(json["objects"], 0);
}

#[test]
fn grants_name_users_and_unknown_ones_are_refused() {
    let s = with_bucket(&[]);
    s.ssefs(&["bucket", "grant", "photos", "no-such-user"]).fails(3, &["there is no user \"no-such-user\""]);
    s.ssefs(&["bucket", "grant", "photos", "1234"]).ok();
    let grants = || {
        let shown = s.ssefs(&["bucket", "show", "photos", "--json"]).ok();
        serde_json::from_str::<serde_json::Value>(&shown).unwrap()["grants"].clone()
    };
    assert_eq!(grants(), serde_json::json!([1234]));
    s.ssefs(&["bucket", "grant", "photos", "1234", "--revoke"]).ok();
    assert_eq!(grants(), serde_json::json!([]));
}

#[test]
fn an_empty_bucket_is_deleted_and_an_empty_bucket_is_sound() {
    let s = with_bucket(&["--rule", "AES256"]);
    s.ssefs(&["check", "photos", "--read-data"]).ok();
    s.ssefs(&["bucket", "delete", "photos"]).ok();
    assert_eq!(s.ssefs(&["bucket", "list"]).ok(), "BUCKET  MOUNTED AT\n");
}

#[test]
fn a_lost_or_foreign_root_key_is_exit_status_6_and_names_the_key() {
    let s = with_bucket(&["--rule", "AES256"]);
    let key = s.path("config/root.key");
    let text = std::fs::read_to_string(&key).unwrap();
    std::fs::remove_file(&key).unwrap();
    s.ssefs(&["bucket", "show", "photos"]).fails(6, &["root.key"]);
    s.ssefs(&["bucket", "create", "other"]).fails(6, &["root.key"]);
    assert!(!key.exists(), "a lost root key is never replaced by a new one");
    std::fs::write(&key, "garbage\n").unwrap();
    s.ssefs(&["bucket", "show", "photos"]).fails(6, &["root.key"]);
    let other: String = text.chars().map(|c| if c == '0' { '1' } else { c }).collect();
    std::fs::write(&key, other).unwrap();
    s.ssefs(&["bucket", "show", "photos"]).fails(6, &["root"]);
    std::fs::write(&key, text).unwrap();
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    s.ssefs(&["bucket", "show", "photos"]).ok();
}

#[test]
fn r20_keys_are_made_listed_rotated_and_rewrapped() {
    let s = with_bucket(&["--rule", "KMS"]);
    s.ssefs(&["key", "create", "--alias", "mine"]).ok();
    let shown = |s: &Sandbox| -> serde_json::Value {
        serde_json::from_str(&s.ssefs(&["key", "show", "mine", "--json"]).ok()).unwrap()
    };
    let before = shown(&s);
    s.ssefs(&["key", "rotate", "mine"]).ok();
    assert_ne!(shown(&s), before, "a new version");
    let list = s.ssefs(&["key", "list"]).ok();
    assert!(list.contains("mine"), "{list}");
    s.ssefs(&["key", "rewrap", "photos"]).ok();
    s.ssefs(&["key", "show", "nobodys"]).fails(6, &["nobodys"]);
}
