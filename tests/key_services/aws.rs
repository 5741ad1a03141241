//! The AWS KMS API against our own fake: calls, states, and answers that are not what they should be.

use crate::kms::{ARN, Kms, Mood};
use crate::mount::{eventually, get_xattr_text, skip_without_ssefs};
use crate::{holds, mounted, refused, unmounted};
use std::fs::{self, File};

#[test]
fn r54_ten_thousand_small_files_cost_a_constant_number_of_calls() {
    if skip_without_ssefs() {
        return;
    }
    let kms = Kms::start();
    let mut m = mounted(&kms, &[]);
    // Making the key tried it once.
    assert_eq!((kms.calls("GenerateDataKey"), kms.calls("Decrypt")), (1, 1));
    let content = |i: usize| format!("content of small file {i}");
    for d in 0..10 {
        fs::create_dir(m.at(format!("d{d}"))).unwrap();
        for i in 0..1000 {
            fs::write(m.at(format!("d{d}/f{i}")), content(d * 1000 + i)).unwrap();
        }
    }
    assert_eq!((kms.calls("GenerateDataKey"), kms.calls("Decrypt")), (2, 1));
    let told = m.ssefs(&["bucket", "show", "b", "--json"]).json()["external_calls"][format!("aws-kms:{ARN}")].clone();
    assert_eq!(
        (told["generate"].as_u64(), told["unwrap"].as_u64(), told["failed"].as_u64()),
        (Some(1), Some(0), Some(0))
    );
    m.remount();
    for d in 0..10 {
        for i in 0..1000 {
            assert_eq!(fs::read_to_string(m.at(format!("d{d}/f{i}"))).unwrap(), content(d * 1000 + i));
        }
    }
    assert_eq!((kms.calls("GenerateDataKey"), kms.calls("Decrypt")), (2, 2));
    let shown = m.ssefs(&["key", "show", "ext", "--json"]).json();
    assert_eq!(shown["service"], "the key can be used");
    assert_eq!(shown["service_key"], ARN);
    let calls = shown["service_calls"][0].as_str().unwrap();
    assert!(calls.starts_with("bucket b: 0 generate, 1 unwrap, "), "{calls}");
    // Whatever asks for the key's state does so by the clock and not by the file.
    assert!(kms.calls("DescribeKey") < 100, "{}", kms.calls("DescribeKey"));
}

#[test]
fn r52_an_alias_of_the_service_is_kept_as_what_it_meant() {
    let kms = Kms::start();
    let m = unmounted(&kms, &[]);
    let made = m.ssefs(&["key", "create", "--alias", "ext", "--provider", &kms.uri(5), "--json"]).json();
    let uri = made["provider"].as_str().unwrap();
    assert!(uri.starts_with(&format!("aws-kms:{ARN}?region=")) && uri.contains("timeout=5"), "{uri}");
    assert_eq!(made["version"], 1);
}

#[test]
fn r30_each_state_of_the_key_and_each_bad_answer_has_its_errno_and_its_words() {
    if skip_without_ssefs() {
        return;
    }
    let kms = Kms::start();
    let mut m = mounted(&kms, &[]);
    fs::write(m.at("f"), "content").unwrap();
    let name = "ext (mk-";
    // Each with a mount of its own, so that no earlier answer counts.
    let mut attempt = |prepare: &dyn Fn(), errno: i32, because: &[&str]| {
        m.umount();
        prepare();
        m.mount();
        refused(&m, File::open(m.at("f")), errno, because);
        refused(&m, File::options().append(true).open(m.at("f")), errno, &[]);
        assert_eq!(fs::metadata(m.at("f")).unwrap().len(), 7, "stat needs no key");
        assert_eq!(fs::read_dir(m.path()).unwrap().count(), 1);
    };
    for (state, code) in [
        ("Disabled", "KMS.DisabledException"),
        ("PendingDeletion", "KMS.KMSInvalidStateException"),
        ("Gone", "KMS.NotFoundException"),
    ] {
        attempt(&|| kms.state(state), libc::EKEYREVOKED, &[code, name, ARN]);
    }
    kms.state("Enabled");
    let moods = [
        (Mood::NoHttp, libc::ENOKEY, "cannot be reached"),
        (Mood::NoJson, libc::ENOKEY, "no JSON"),
        (Mood::CutShort, libc::ENOKEY, "cannot be reached"),
        (Mood::Endless, libc::ENOKEY, "cannot be reached"),
        (Mood::Silent, libc::ENOKEY, "cannot be reached"),
        (Mood::ShortSecret, libc::ENOKEY, "32 bytes"),
        (Mood::Error(500, "KMSInternalException"), libc::ENOKEY, "KMSInternalException"),
        (Mood::Error(503, ""), libc::ENOKEY, "503"),
        (Mood::Error(400, "ThrottlingException"), libc::ENOKEY, "ThrottlingException"),
        (Mood::Error(400, "AccessDeniedException"), libc::ENOKEY, "KMS.AccessDeniedException"),
        (Mood::Error(403, "SomethingNew"), libc::ENOKEY, "SomethingNew"),
        (Mood::OtherSecret, libc::EKEYREJECTED, "wrapped by another key"),
        (Mood::OtherKey, libc::EKEYREJECTED, "answered for"),
        (Mood::Error(400, "IncorrectKeyException"), libc::EKEYREJECTED, "KMS.IncorrectKeyException"),
        (Mood::Error(400, "InvalidCiphertextException"), libc::EBADMSG, "KMS.InvalidCiphertextException"),
    ];
    for (mood, errno, because) in moods {
        attempt(&|| kms.mood(mood.clone()), errno, &[because]);
    }
    m.umount();
    kms.release();
    m.mount();
    assert_eq!(fs::read_to_string(m.at("f")).unwrap(), "content", "nothing was lost");
}

#[test]
fn r12_what_a_service_refuses_to_wrap_for_is_not_written_plain() {
    if skip_without_ssefs() {
        return;
    }
    let kms = Kms::start();
    let mut m = mounted(&kms, &[]);
    let secret = b"a line that must not be found anywhere";
    for (mood, errno) in [
        (Mood::Silent, libc::ENOKEY),
        (Mood::Error(400, "DisabledException"), libc::EKEYREVOKED),
        (Mood::ShortSecret, libc::ENOKEY),
    ] {
        m.umount();
        kms.mood(mood);
        m.mount();
        refused(&m, fs::write(m.at("new"), secret), errno, &["ext (mk-"]);
        assert!(!m.at("new").exists(), "it was made in part");
    }
    m.umount();
    assert!(!holds(m.store(), secret));
    kms.release();
    m.mount();
    fs::write(m.at("new"), secret).unwrap();
    m.umount();
    assert!(!holds(m.store(), secret));
}

#[test]
fn r20_a_rewrap_takes_a_new_one_time_secret_and_rotating_is_the_services_business() {
    if skip_without_ssefs() {
        return;
    }
    let kms = Kms::start();
    let m = mounted(&kms, &[]);
    fs::write(m.at("f"), "content").unwrap();
    m.ssefs(&["key", "rotate", "ext"]).fails_saying(&["AWS KMS rotates the key itself"]);
    kms.forget_blobs();
    // The KEK itself is unwrapped still, but its blob would not open any more: the rewrap says so and changes nothing.
    m.ssefs(&["key", "rewrap", "b"]).fails_saying(&["KMS.InvalidCiphertextException", "ext (mk-"]);
    assert_eq!(fs::read_to_string(m.at("f")).unwrap(), "content");
    let kms2 = Kms::start();
    let mut m = mounted(&kms2, &[]);
    fs::write(m.at("f"), "content").unwrap();
    m.umount();
    let before = (kms2.calls("GenerateDataKey"), kms2.calls("Decrypt"));
    m.mount();
    m.ssefs(&["key", "rewrap", "b"]).ok();
    assert_eq!((kms2.calls("GenerateDataKey"), kms2.calls("Decrypt")), (before.0 + 1, before.1 + 1));
    m.remount();
    assert_eq!(fs::read_to_string(m.at("f")).unwrap(), "content");
    assert_eq!(get_xattr_text(m.at("f"), "user.sse.key-version").unwrap(), "1");
}

#[test]
fn what_cannot_be_a_key_of_a_service_is_refused_and_leaves_nothing() {
    let mut kms = Kms::start();
    let m = unmounted(&kms, &[]);
    let create = |uri: &str| m.ssefs(&["key", "create", "--alias", "ext", "--provider", uri]);
    create(&kms.uri(1).replace("photos", "other")).fails_saying(&["KMS.NotFoundException", "alias/other"]);
    create(&kms.uri(1).replace(crate::kms::REGION, "eu-test-2")).fails_saying(&["not in region eu-test-2"]);
    create("aws-kms:alias/photos?region=x&endpoint=http://example.com").fails_saying(&["must be https"]);
    create("aws-kms:alias/photos?region=x&colour=red").fails_saying(&["colour"]);
    create("vault:photos").fails_saying(&["pkcs11", "aws-kms"]);
    for (mood, because) in
        [(Mood::OtherSecret, "another secret"), (Mood::OtherKey, "answered for"), (Mood::ShortSecret, "32 bytes")]
    {
        kms.mood(mood);
        create(&kms.uri(1)).fails_saying(&[because]);
    }
    kms.release();
    kms.state("Disabled");
    create(&kms.uri(1)).fails_saying(&["KMS.DisabledException"]);
    kms.state("Enabled");
    kms.down();
    create(&kms.uri(1)).fails_saying(&["cannot be reached", "127.0.0.1"]);
    kms.up();
    create(&kms.uri(1)).ok();
    let calls = kms.all_calls();
    create(&kms.uri(1)).fails_saying(&["alias \"ext\" already"]);
    assert_eq!(kms.all_calls(), calls, "the service was not asked for nothing");
    assert_eq!(m.ssefs(&["key", "list", "--json"]).json().as_array().unwrap().len(), 1);
}

#[test]
fn r30_a_key_disabled_in_the_keyring_is_revoked_whatever_its_service_says() {
    if skip_without_ssefs() {
        return;
    }
    let kms = Kms::start();
    let m = mounted(&kms, &["key_check=0.2"]);
    fs::write(m.at("f"), "content").unwrap();
    m.ssefs(&["key", "disable", "ext"]).ok();
    assert!(eventually(|| File::open(m.at("f")).is_err()));
    let calls = kms.all_calls();
    refused(&m, File::open(m.at("f")), libc::EKEYREVOKED, &["KMS.DisabledException", "ext"]);
    assert_eq!(kms.all_calls(), calls, "nobody was asked");
    m.ssefs(&["key", "enable", "ext"]).ok();
    assert!(eventually(|| File::open(m.at("f")).is_ok()));
    assert_eq!(fs::read_to_string(m.at("f")).unwrap(), "content");
    let to = m.beside("out");
    let seal = m.beside("seal");
    fs::write(&seal, (1..=32).collect::<Vec<u8>>()).unwrap();
    fs::set_permissions(&seal, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    m.ssefs(&["key", "export", "ext", "--to", to.to_str().unwrap(), "--seal-key-file", seal.to_str().unwrap()])
        .fails_saying(&["another key service keeps it"]);
    m.ssefs(&["key", "delete", "ext"]).fails_saying(&["in use by"]);
}

#[test]
fn speed_measures_a_key_of_a_service_by_a_few_calls() {
    if skip_without_ssefs() {
        return;
    }
    let kms = Kms::start();
    let m = mounted(&kms, &[]);
    let before = (kms.calls("GenerateDataKey"), kms.calls("Decrypt"));
    let s = m.ssefs(&["speed", "--json", "--key", "ext"]).json();
    let providers = s["providers"].as_array().unwrap();
    assert_eq!(providers.len(), 2, "{s}");
    assert!(providers[1]["provider"].as_str().unwrap().starts_with("ext (aws-kms"), "{s}");
    assert!(providers.iter().all(|p| p["wrap_us"].as_f64().unwrap() > 0.0 && p["unwrap_us"].as_f64().unwrap() > 0.0));
    assert_eq!((kms.calls("GenerateDataKey"), kms.calls("Decrypt")), (before.0 + 5, before.1 + 5));
    m.ssefs(&["speed", "--key", "nobody"]).fails_saying(&["KMS.NotFoundException"]);
}
