//! Where credentials for AWS are found, and that nothing secret comes out in words.

use crate::kms::{ACCESS, Kms, SECRET};
use crate::mount::{Mount, skip_without_ssefs};
use crate::unmounted;
use std::fs;

/// A keyring whose environment names no credentials.
fn bare(kms: &Kms) -> Mount {
    let mut m = unmounted(kms, &[]);
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
        m.set_env(name, "");
    }
    m
}

fn create(m: &Mount, uri: &str) -> crate::run::Ran {
    m.ssefs(&["key", "create", "--provider", uri])
}

#[test]
fn credentials_are_found_where_the_aws_tools_find_them() {
    let kms = Kms::start();
    let mut m = bare(&kms);
    create(&m, &kms.uri(1)).fails_saying(&["no credentials for AWS", "~/.aws/credentials"]);
    assert_eq!(kms.all_calls(), 0);

    let files = m.beside("aws");
    let text = format!(
        "[default]\naws_access_key_id=OFFILE\naws_secret_access_key={SECRET}\n[p]\naws_access_key_id=OFPROFILE\naws_secret_access_key=x\n"
    );
    fs::write(&files, text).unwrap();
    m.set_env("AWS_SHARED_CREDENTIALS_FILE", &files);
    create(&m, &kms.uri(1)).ok();
    assert_eq!(kms.signers().last().unwrap(), "OFFILE");
    create(&m, &format!("{}&profile=p", kms.uri(1))).ok();
    assert_eq!(kms.signers().last().unwrap(), "OFPROFILE");
    create(&m, &format!("{}&profile=q", kms.uri(1))).fails_saying(&["profile \"q\""]);
    // The region of the profile, where the URI has none.
    let config = m.beside("config-of-aws");
    fs::write(&config, format!("[default]\nregion = {}\n", crate::kms::REGION)).unwrap();
    m.set_env("AWS_CONFIG_FILE", &config);
    create(&m, &format!("aws-kms:alias/photos?endpoint={}", kms.url())).ok();

    m.set_env("AWS_ACCESS_KEY_ID", "OFENVIRONMENT");
    m.set_env("AWS_SECRET_ACCESS_KEY", SECRET);
    create(&m, &kms.uri(1)).ok();
    assert_eq!(kms.signers().last().unwrap(), "OFENVIRONMENT");
}

#[test]
fn credentials_of_containers_and_instances_are_taken_with_their_tokens() {
    let kms = Kms::start();
    let lent = |access: &str| {
        format!(
            r#"{{"AccessKeyId":"{access}","SecretAccessKey":"{SECRET}","Token":"tok","Expiration":"2099-01-01T00:00:00Z"}}"#
        )
    };
    kms.file("/creds", &lent("OFCONTAINER"));
    let mut m = bare(&kms);
    m.set_env("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("{}/creds", kms.url()));
    m.set_env("AWS_CONTAINER_AUTHORIZATION_TOKEN", "let-me-in");
    create(&m, &kms.uri(2)).ok();
    assert_eq!(kms.signers().last().unwrap(), "OFCONTAINER");
    assert!(kms.asked()[0].contains("let-me-in"), "{:?}", kms.asked());
    m.set_env("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://example.com/creds");
    create(&m, &kms.uri(2)).fails_saying(&["must be https"]);

    let mut m = bare(&kms);
    m.set_env("AWS_EC2_METADATA_DISABLED", "false");
    m.set_env("AWS_EC2_METADATA_SERVICE_ENDPOINT", kms.url());
    kms.file("/latest/api/token", "imds-token");
    kms.file("/latest/meta-data/iam/security-credentials/", "my-role\n");
    kms.file("/latest/meta-data/iam/security-credentials/my-role", &lent("OFINSTANCE"));
    create(&m, &kms.uri(2)).ok();
    assert_eq!(kms.signers().last().unwrap(), "OFINSTANCE");
    let last = kms.asked().pop().unwrap();
    assert!(last.contains("imds-token") && last.starts_with("GET "), "{last}");
}

#[test]
fn credentials_that_were_refused_are_fetched_once_more_and_no_oftener() {
    let kms = Kms::start();
    let m = unmounted(&kms, &[]);
    kms.mood(crate::kms::Mood::Error(400, "UnrecognizedClientException"));
    create(&m, &kms.uri(5)).fails_saying(&["KMS.AccessDeniedException", "UnrecognizedClientException"]);
    assert!(kms.all_calls() <= 3, "{}", kms.all_calls());
    assert_eq!(kms.signers()[0], ACCESS);
}

#[test]
fn no_secret_of_a_service_is_logged_or_printed_or_kept_in_the_keyring() {
    if skip_without_ssefs() {
        return;
    }
    let kms = Kms::start();
    let mut m = crate::mount::Mount::builder().rule("KMS:ext").foreground();
    for (name, value) in [
        ("AWS_ACCESS_KEY_ID", ACCESS),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_SESSION_TOKEN", "hush-session-token"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("SSEFS_LOG", "trace"),
    ] {
        m = m.env(name, value);
    }
    let mut m = m.unmounted();
    let made = m.ssefs(&["key", "create", "--alias", "ext", "--provider", &kms.uri(1)]);
    let mut said = made.stdout + &made.stderr;
    m.mount();
    fs::write(m.at("f"), "content").unwrap();
    m.remount();
    fs::read(m.at("f")).unwrap();
    kms.mood(crate::kms::Mood::Error(400, "AccessDeniedException"));
    let shown = m.ssefs(&["key", "show", "ext"]);
    said += &(shown.stdout + &shown.stderr);
    m.umount();
    said += &m.log();
    let secrets = kms.secrets();
    assert_eq!(secrets.len(), 2, "the key's trial, and the KEK's");
    assert!(said.contains("debug: aws-kms:arn"), "trace is on, or this test could not fail: {said}");
    for secret in [SECRET, "hush-session-token", &secrets[0], &secrets[1]] {
        assert!(!said.contains(secret), "a secret was printed");
        assert!(!crate::holds(&m.config(), secret.as_bytes()), "a secret is in the keyring");
        assert!(!crate::holds(m.store(), secret.as_bytes()), "a secret is in the store");
    }
}
