//! No secret in what is printed: by `{:?}`, at the highest level of logging, in messages.

use crate::cli_support::{SSEFS, Sandbox, is_mounted, until};
use crate::{PASSPHRASE, passphrase, secret_file};
use ssefs::crypto::passphrase::SecretText;
use ssefs::crypto::secret::*;
use ssefs::crypto::wrap;
use ssefs::types::{BucketId, KeyId, StoreId, to_hex};
use std::fs;
use std::path::Path;
use std::process::Stdio;

/// The value of `$t: Debug` or not, told without asking for the bound: an inherent constant goes before a trait's.
macro_rules! has_debug {
    ($t:ty) => {{
        #[allow(dead_code)]
        trait No {
            const HAS: bool = false;
        }
        impl<T: ?Sized> No for T {}
        struct Asked<T: ?Sized>(std::marker::PhantomData<T>);
        #[allow(dead_code)]
        impl<T: ?Sized + std::fmt::Debug> Asked<T> {
            const HAS: bool = true;
        }
        <Asked<$t>>::HAS
    }};
}

/// What holds secrets and can be printed all the same, because it prints its name alone; each is made and printed below.
const PRINTED: [&str; 4] = ["SecretText", "Passphrase", "NewKek", "Material"];

/// Types that hold a secret and have no `Debug` at all.
macro_rules! unprintable {
    ($($t:ty),* $(,)?) => {{
        $(assert!(!has_debug!($t), concat!(stringify!($t), " can be printed"));)*
        [$(stringify!($t).rsplit(':').next().unwrap().trim()),*]
    }};
}

#[test]
fn types_that_hold_secrets_print_their_name_alone_or_cannot_be_printed() {
    assert!(has_debug!(String) && !has_debug!(ssefs::keys::Keyring), "the question tells them apart");
    let unprintable = unprintable![
        ssefs::crypto::arena::Slot,
        ssefs::crypto::arena::Page,
        ssefs::crypto::aead::ChunkCipher,
        ssefs::crypto::gcm::AwsLc,
        ssefs::crypto::gcm::PureRust,
        ssefs::crypto::mac::Mac,
        ssefs::keys::Keyring,
        ssefs::keys::KitContents,
        ssefs::keys::KitSeal,
        ssefs::keys::root::NewRoot,
        ssefs::bucket::Bucket,
    ];
    // Those that can be printed are made with a known secret, and what they print is looked at.
    let secret = "0f1e2d3c4b5a69788796a5b4c3d2e1f0";
    let bytes = || -> [u8; 32] { secret.as_bytes().try_into().unwrap() };
    let mut printed: Vec<(&str, String)> = Vec::new();
    macro_rules! keys {
        ($($t:ident),*) => {$(
            printed.push((stringify!($t), format!("{0:?} {0:#?} {1:?}", $t::take(&mut bytes()), $t::take(&mut bytes()))));
        )*};
    }
    keys!(RootKey, MasterKey, BucketKey, Kek, ChunkKey, MapKey, MacKey, PassKey);
    printed.push(("DataKey", format!("{:#?}", DataKey::try_from(&bytes()[..]).unwrap())));
    printed.push(("SecretText", format!("{:#?}", SecretText::copy_of(secret.as_bytes()).unwrap())));
    printed.push(("Passphrase", format!("{:#?}", passphrase(secret))));
    let kek = ssefs::keys::NewKek { kek: Kek::take(&mut bytes()), version: 1, wrapped: vec![] };
    printed.push(("NewKek", format!("{kek:#?}")));
    printed.push(("Material", format!("{:#?}", ssefs::keys::Material::parse(&bytes()).unwrap())));
    let decimal = bytes().map(|b| b.to_string());
    for (name, text) in &printed {
        assert!(!text.contains("0f1e2d") && !text.contains(&to_hex(&bytes())[..12]), "{name}: {text}");
        assert!(
            !text.contains(&decimal[..4].join(", ")) && !text.contains(&decimal[..4].join(",\n")),
            "{name}: {text}"
        );
    }
    // And none was left out: every public struct or enum in whose fields a secret stands is one of those above.
    let secrets: Vec<&str> =
        ["Slot", "Page", "SecretText", "Passphrase"].into_iter().chain(printed.iter().map(|(name, _)| *name)).collect();
    for (name, holds, has_debug) in public_types_with(&secrets) {
        let known = !has_debug
            || unprintable.contains(&name.as_str())
            || PRINTED.contains(&name.as_str())
            || secrets.contains(&&name[..]);
        assert!(known, "the public type {name} holds {holds} and has Debug: show here what it prints");
    }
}

/// Public types whose definition names one of `secrets` as the type of a field, that name, and whether the source gives
/// them `Debug`.
fn public_types_with(secrets: &[&str]) -> Vec<(String, String, bool)> {
    let mut found = Vec::new();
    let mut dirs = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    let mut seen = 0;
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let source = fs::read_to_string(&path).unwrap();
            let source = source.split("#[cfg(test)]").next().unwrap();
            for word in ["pub struct ", "pub enum "] {
                let parts: Vec<&str> = source.split(&format!("\n{word}")).collect();
                for (before, part) in parts.iter().zip(&parts[1..]) {
                    seen += 1;
                    let name: String = part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                    // To the end of the item: a closing brace in the first column, or a line's end after a tuple.
                    let end = if part.lines().next().unwrap_or("").ends_with('{') { "\n}" } else { ";\n" };
                    let body = part.split(end).next().unwrap();
                    // A word with something behind it is a variant's name, or a constructor: not a type.
                    let is_type = |w: &str| {
                        body.match_indices(w).any(|(at, _)| {
                            let edge = |c: Option<char>| c.is_none_or(|c| !(c.is_alphanumeric() || c == '_'));
                            let rest = &body[at + w.len()..];
                            let whole = edge(body[..at].chars().next_back()) && edge(rest.chars().next());
                            // Nor is what stands first on a line: a variant without anything.
                            let first = body[..at].trim_end_matches(' ').ends_with(['\n', '{']);
                            whole && !first && !rest.starts_with('(') && !rest.trim_start().starts_with('{')
                        })
                    };
                    if let Some(holds) = secrets.iter().find(|w| is_type(w)) {
                        let above = before.lines().rev().take_while(|l| l.starts_with("#[") || l.starts_with("///"));
                        let derives = above.filter(|l| l.starts_with("#[")).any(|l| l.contains("Debug"));
                        let by_hand = source.contains(&format!("Debug for {name}"));
                        found.push((name, (*holds).to_owned(), derives || by_hand));
                    }
                }
            }
        }
    }
    assert!(seen > 50 && found.len() >= 6, "the sources were read: {seen} {found:?}");
    found
}

/// The secrets of a sandbox's keyring: root key, bucket keys, master keys, KEKs; each as bytes with its name.
fn secrets_of(config: &Path, root: &RootKey) -> Vec<(String, Vec<u8>)> {
    let mut all = vec![("root key".to_owned(), root.expose().to_vec())];
    let db = rusqlite::Connection::open(config.join("keyring.db")).unwrap();
    let mut rows = db.prepare("SELECT id, store_id, name, wrapped_key FROM bucket").unwrap();
    let buckets = rows.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get::<_, String>(2)?, r.get::<_, Vec<u8>>(3)?)));
    for (id, store, name, wrapped) in buckets.unwrap().map(Result::unwrap) {
        let ctx = wrap::BucketCtx { bucket: BucketId(id), store: StoreId(store), name: &name };
        let key = wrap::unwrap_bucket_key(root, &ctx, &wrapped).unwrap();
        all.push((format!("key of bucket {name}"), key.expose().to_vec()));
    }
    let mut rows = db.prepare("SELECT key_id, version, wrapped FROM master_key_version").unwrap();
    let versions = rows.query_map([], |r| Ok((r.get::<_, String>(0)?, r.get::<_, u32>(1)?, r.get::<_, Vec<u8>>(2)?)));
    for (id, version, wrapped) in versions.unwrap().map(Result::unwrap) {
        let key = wrap::unwrap_master(root, &KeyId(id.clone()), version, &wrapped).unwrap();
        all.push((format!("{id} version {version}"), key.expose().to_vec()));
    }
    all
}

fn root_of(config: &Path) -> RootKey {
    ssefs::keys::RootSource::in_config(config).load(None).unwrap()
}

/// Half of a secret in any form is too much.
#[track_caller]
fn holds_none(text: &[u8], secrets: &[(String, Vec<u8>)], what: &str) {
    let holds = |needle: &[u8]| text.windows(needle.len()).any(|w| w == needle);
    let decimal = |b: &[u8]| b.iter().map(u8::to_string).collect::<Vec<_>>();
    for (name, secret) in secrets {
        let part = &secret[..secret.len() / 2];
        let hex = to_hex(part);
        let list = decimal(part);
        for form in [
            part.to_vec(),
            hex.clone().into_bytes(),
            hex.to_uppercase().into_bytes(),
            list.join(", ").into_bytes(),
            list.join(",").into_bytes(),
        ] {
            assert!(!holds(&form), "{name} in {what}: {}", String::from_utf8_lossy(text));
        }
    }
}

#[test]
fn at_the_highest_level_of_logging_no_key_and_no_passphrase_is_printed() {
    let s = Sandbox::new();
    let trace = |args: &[&str]| -> Vec<u8> {
        let mut command = s.command(SSEFS);
        command.args(args).env("SSEFS_LOG", "trace").env("RUST_BACKTRACE", "1").stdin(Stdio::null());
        let o = command.output().unwrap();
        [o.stdout, o.stderr].concat()
    };
    let dir = s.mkdir("mnt");
    let mut said = trace(&["bucket", "create", "photos", "--rule", "KMS"]);
    said.extend(trace(&["key", "create", "--alias", "mine"]));
    let log = s.path("log.txt");
    let mut mount = s.command(SSEFS);
    mount.args(["mount", "photos", &dir, "-f"]).env("SSEFS_LOG", "trace").stdin(Stdio::null());
    let file = fs::File::create(&log).unwrap();
    let mut mount = mount.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
    until("the mount", || is_mounted(dir.as_ref()) && fs::write(format!("{dir}/f"), "x").is_ok());
    fs::write(format!("{dir}/f"), "content").unwrap();
    said.extend(trace(&["encryption", "put", "photos", "KMS:mine"]));
    fs::write(format!("{dir}/g"), "content").unwrap();
    said.extend(trace(&["key", "rotate", "mine"]));
    said.extend(trace(&["key", "rewrap", "photos"]));
    let first = root_of(&s.path("config"));
    let mut secrets = secrets_of(&s.path("config"), &first);
    assert!(secrets.len() >= 5, "{}", secrets.len());
    let phrase = secret_file(&s.path("phrase"), &format!("{PASSPHRASE}\n"));
    said.extend(trace(&["key", "root", "change", "--to", "file"]));
    let second = root_of(&s.path("config"));
    assert_ne!(first.expose(), second.expose());
    secrets.push(("the second root key".into(), second.expose().to_vec()));
    let kit = s.path("kit").to_str().unwrap().to_owned();
    let with = ["--kit-passphrase-file", &phrase, "--kdf-memory", "1M"];
    said.extend(trace(&[&["key", "kit", "create", &kit], &with[..]].concat()));
    said.extend(trace(&["key", "kit", "test", &kit, "--kit-passphrase-file", &phrase]));
    let sealed = [
        "key",
        "root",
        "change",
        "--keep",
        "--to",
        "passphrase",
        "--new-passphrase-file",
        &phrase,
        "--kdf-memory",
        "1M",
    ];
    said.extend(trace(&sealed));
    fs::write(format!("{dir}/h"), "content").unwrap();
    for form in [&[][..], &["--json"]] {
        for args in [
            &["key", "list"][..],
            &["key", "show", "mine"],
            &["key", "root", "show", "--test"],
            &["key", "kit", "list"],
        ] {
            said.extend(trace(&[args, form, &["--passphrase-file", &phrase]].concat()));
        }
    }
    // Failures have words of their own.
    let wrong = secret_file(&s.path("wrong"), "wrong horse battery\n");
    said.extend(trace(&["key", "list", "--passphrase-file", &wrong]));
    let half = secret_file(&s.path("half"), &format!("{}\n", to_hex(&second.expose()[..31])));
    said.extend(trace(&["key", "list", "--root-key-command", &format!("/bin/cat {half}")]));
    said.extend(trace(&["umount", &dir]));
    mount.wait().unwrap();
    said.extend(fs::read(&log).unwrap());
    let text = String::from_utf8_lossy(&said);
    assert!(text.contains("is mounted at") && text.contains("mine") && text.contains("wrong passphrase"), "{text}");
    secrets.push(("the passphrase".into(), PASSPHRASE.as_bytes().to_vec()));
    secrets.push(("the wrong passphrase".into(), b"wrong horse battery".to_vec()));
    holds_none(&said, &secrets, "what was printed");
}
