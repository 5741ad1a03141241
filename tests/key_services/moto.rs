//! The AWS KMS API as moto, the mock of the AWS community, speaks it: over HTTP and, with a certificate of its own, TLS.
//! moto comes from PyPI (packaging/need-python); where it is not there these tests are skipped, and say so.

use crate::mount::{Mount, eventually, skip_without_ssefs};
use crate::run::{Ran, run};
use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// A running moto_server; ended when dropped.
struct Moto {
    child: Child,
    bin: PathBuf,
    url: String,
    dir: tempfile::TempDir,
}

impl Moto {
    /// None, with a loud line, where moto is not installed.
    fn start(tls: bool) -> Option<Moto> {
        let bin = PathBuf::from(
            std::env::var_os("SSEFS_MOTO")
                .unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/target/tools/moto/bin").into()),
        );
        if !bin.join("moto_server").exists() {
            eprintln!("SKIPPED, NOT TESTED: moto is not installed in {} (make tools)", bin.display());
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut c = Command::new(bin.join("moto_server"));
        c.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        if tls {
            certificate(&bin, &dir);
            c.arg("-c").arg(dir.path().join("cert.pem")).arg("-k").arg(dir.path().join("key.pem"));
        }
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let child = c.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let url = format!("{}://127.0.0.1:{port}", if tls { "https" } else { "http" });
        let mut moto = Moto { child, bin, url, dir };
        let up = eventually(|| {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() || moto.child.try_wait().unwrap().is_some()
        });
        let alive = moto.child.try_wait().unwrap().is_none();
        assert!(up && alive, "{}", fs::read_to_string(moto.dir.path().join("log")).unwrap());
        Some(moto)
    }

    /// Runs a line of Python with a client `kms` of boto3; gives what it prints.
    fn boto(&self, line: &str) -> String {
        let script = format!(
            "import boto3\nkms = boto3.client('kms', region_name='eu-west-1', endpoint_url='{}', verify=False)\n{line}\n",
            self.url
        );
        run(Command::new(self.bin.join("python")).args(["-W", "ignore", "-c", &script]).envs(ENV))
            .ok()
            .trim()
            .to_owned()
    }

    fn create(&self, m: &Mount, key: &str) -> Ran {
        let uri = format!("aws-kms:{key}?region=eu-west-1&endpoint={}", self.url);
        m.ssefs(&["key", "create", "--alias", "ext", "--provider", &uri])
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const ENV: [(&str, &str); 3] =
    [("AWS_ACCESS_KEY_ID", "testing"), ("AWS_SECRET_ACCESS_KEY", "testing"), ("AWS_EC2_METADATA_DISABLED", "true")];

/// A certificate for 127.0.0.1 of an authority that no machine trusts, by the library that moto brings with it.
fn certificate(bin: &std::path::Path, dir: &tempfile::TempDir) {
    let script = r#"
import datetime, ipaddress, sys
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
now = datetime.datetime.now(datetime.timezone.utc)
def certificate(name, of, key, by, extension, critical):
    name, of = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, n)]) for n in (name, of)]
    return (x509.CertificateBuilder().subject_name(name).issuer_name(of).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=9))
        .add_extension(extension, critical).sign(by, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
root, key = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
ca = certificate("authority", "authority", root, root, x509.BasicConstraints(True, None), True)
open(sys.argv[1] + "/ca.pem", "wb").write(ca)
open(sys.argv[1] + "/cert.pem", "wb").write(certificate("leaf", "authority", key, root, address, False))
open(sys.argv[1] + "/key.pem", "wb").write(key.private_bytes(serialization.Encoding.PEM,
    serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
"#;
    run(Command::new(bin.join("python")).args(["-c", script]).arg(dir.path())).ok();
}

fn unmounted() -> Mount {
    let mut b = Mount::builder().rule("KMS:ext");
    for (name, value) in ENV {
        b = b.env(name, value);
    }
    b.unmounted()
}

#[test]
fn a_bucket_under_a_key_of_moto_is_written_and_read_again() {
    if skip_without_ssefs() {
        return;
    }
    let Some(moto) = Moto::start(false) else { return };
    let key = moto.boto("print(kms.create_key()['KeyMetadata']['KeyId'])");
    moto.boto(&format!("kms.create_alias(AliasName='alias/photos', TargetKeyId='{key}')"));
    let mut m = unmounted();
    moto.create(&m, "alias/none").fails_saying(&["KMS.NotFoundException"]);
    moto.create(&m, "alias/photos").ok();
    m.mount();
    let content = vec![0x5a; 300_000];
    fs::write(m.at("f"), &content).unwrap();
    m.remount();
    assert!(fs::read(m.at("f")).unwrap() == content);
    // Another key under the same alias: what was wrapped stays with the first.
    let other = moto.boto("print(kms.create_key()['KeyMetadata']['KeyId'])");
    moto.boto(&format!("kms.update_alias(AliasName='alias/photos', TargetKeyId='{other}')"));
    m.remount();
    assert!(fs::read(m.at("f")).unwrap() == content);
    m.ssefs(&["key", "rewrap", "b"]).ok();
    // moto gives data keys of disabled keys away all the same, but tells of the state.
    moto.boto(&format!("kms.disable_key(KeyId='{key}')"));
    let shown = m.ssefs(&["key", "show", "ext", "--json"]).json();
    assert!(shown["service"].as_str().unwrap().starts_with("KMS.DisabledException"), "{shown}");
    moto.boto(&format!("kms.enable_key(KeyId='{key}'); kms.schedule_key_deletion(KeyId='{key}')"));
    let shown = m.ssefs(&["key", "show", "ext", "--json"]).json();
    assert!(shown["service"].as_str().unwrap().starts_with("KMS.KMSInvalidStateException"), "{shown}");
}

#[test]
fn tls_is_verified_against_the_machines_authorities_or_those_that_are_named() {
    let Some(moto) = Moto::start(true) else { return };
    let key = moto.boto("print(kms.create_key()['KeyMetadata']['Arn'])");
    let mut m = unmounted();
    moto.create(&m, &key).fails_saying(&["cannot be reached", "certificate"]);
    m.set_env("AWS_CA_BUNDLE", m.beside("nothing"));
    moto.create(&m, &key).fails_saying(&["AWS_CA_BUNDLE"]);
    m.set_env("AWS_CA_BUNDLE", moto.dir.path().join("ca.pem"));
    moto.create(&m, &key).ok();
    let shown = m.ssefs(&["key", "show", "ext", "--json"]).json();
    assert_eq!(shown["service"], "the key can be used");
}

#[test]
fn signatures_are_those_of_botocore() {
    let Some(moto) = Moto::start(false) else { return };
    // The fake and moto look at no signature; botocore makes the same from the same request.
    let script = r#"
import json, sys
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
heard = json.load(sys.stdin)
request = AWSRequest(method="POST", url=heard["url"], data=heard["body"], headers={
    "content-type": heard["content-type"], "x-amz-target": heard["x-amz-target"]})
request.context["timestamp"] = heard["x-amz-date"]
request.headers["X-Amz-Date"] = heard["x-amz-date"]
auth = SigV4Auth(Credentials(heard["access"], heard["secret"]), "kms", heard["region"])
canonical = auth.canonical_request(request)
to_sign = auth.string_to_sign(request, canonical)
print(auth.signature(to_sign, request))
"#;
    let kms = crate::kms::Kms::start();
    let m = crate::unmounted(&kms, &[]);
    m.ssefs(&["key", "create", "--provider", &kms.uri(1)]).ok();
    let heard = kms.last_signed();
    let input = serde_json::json!({
        "url": format!("{}/", kms.url()), "body": heard.body, "region": crate::kms::REGION,
        "content-type": heard.headers["content-type"], "x-amz-target": heard.headers["x-amz-target"],
        "x-amz-date": heard.headers["x-amz-date"], "access": crate::kms::ACCESS, "secret": crate::kms::SECRET,
    });
    let file = moto.dir.path().join("heard.json");
    fs::write(&file, input.to_string()).unwrap();
    let theirs = run(Command::new("sh")
        .args(["-c", "exec \"$0\" -c \"$1\" < \"$2\""])
        .arg(moto.bin.join("python"))
        .arg(script)
        .arg(&file))
    .ok();
    let ours = &heard.headers["authorization"];
    assert!(ours.ends_with(&format!("Signature={}", theirs.trim())), "{ours}\n{theirs}");
}
