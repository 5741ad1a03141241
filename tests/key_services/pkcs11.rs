//! PKCS#11 tokens, with SoftHSM2: keys that never leave the token, tokens that go away and come back, PINs.

use crate::mount::{Mount, eventually, get_xattr_text, skip_without_ssefs};
use crate::refused;
use crate::run::{Ran, run};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const MODULES: [&str; 3] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
];
const PIN: &str = "hush-5678";

/// A token `T`, in a directory of its own.
struct Token {
    dir: tempfile::TempDir,
    module: &'static str,
}

impl Token {
    fn new() -> Token {
        let module =
            MODULES.into_iter().find(|m| Path::new(m).exists()).expect("softhsm2 is installed (make test does it)");
        let dir = tempfile::tempdir().unwrap();
        let t = Token { dir, module };
        fs::create_dir(t.tokens()).unwrap();
        fs::write(t.conf(), format!("directories.tokendir = {}\nlog.level = ERROR\n", t.tokens().display())).unwrap();
        t.util(&["--init-token", "--free", "--label", "T", "--so-pin", "so-1234", "--pin", PIN]);
        t.pin(PIN);
        t
    }

    fn conf(&self) -> PathBuf {
        self.dir.path().join("softhsm2.conf")
    }

    fn tokens(&self) -> PathBuf {
        self.dir.path().join("tokens")
    }

    fn pin_file(&self) -> PathBuf {
        self.dir.path().join("pin")
    }

    fn pin(&self, pin: &str) {
        fs::write(self.pin_file(), format!("{pin}\n")).unwrap();
        fs::set_permissions(self.pin_file(), fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn util(&self, args: &[&str]) -> String {
        run(Command::new("softhsm2-util").args(args).env("SOFTHSM2_CONF", self.conf())).ok()
    }

    fn uri(&self, object: &str) -> String {
        let object = if object.is_empty() { String::new() } else { format!(";{object}") };
        format!("pkcs11:token=T{object}?module-path={}&pin-source=file:{}", self.module, self.pin_file().display())
    }

    /// A keyring and a bucket to be, with rule KMS:ext.
    fn unmounted(&self) -> Mount {
        Mount::builder().rule("KMS:ext").env("SOFTHSM2_CONF", self.conf()).unmounted()
    }

    fn create(&self, m: &Mount, object: &str) -> Ran {
        m.ssefs(&["key", "create", "--alias", "ext", "--provider", &self.uri(object), "--json"])
    }

    fn mounted(&self) -> Mount {
        let mut m = self.unmounted();
        self.create(&m, "object=master").ok();
        m.mount();
        m
    }

    /// Takes the token out, or plugs it in again.
    fn plug(&self, there: bool) {
        let away = self.dir.path().join("away");
        if there {
            fs::remove_dir(self.tokens()).unwrap();
            fs::rename(away, self.tokens()).unwrap();
        } else {
            fs::rename(self.tokens(), away).unwrap();
            fs::create_dir(self.tokens()).unwrap();
        }
    }

    /// The files of the token's objects.
    fn objects(&self) -> Vec<PathBuf> {
        let token = fs::read_dir(self.tokens()).unwrap().next().unwrap().unwrap().path();
        let mut objects: Vec<PathBuf> = fs::read_dir(token)
            .unwrap()
            .map(|e| e.unwrap().path())
            .filter(|p| p.extension().is_some_and(|e| e == "object") && !p.ends_with("token.object"))
            .collect();
        objects.sort();
        objects
    }
}

#[test]
fn a_bucket_under_a_key_of_a_token_is_written_and_read_again_by_another_process() {
    if skip_without_ssefs() {
        return;
    }
    let token = Token::new();
    let mut m = token.unmounted();
    let made = token.create(&m, "object=master");
    assert!(made.stderr.contains("made token=T;secret key \"master\""), "{made:?}");
    let made = made.json();
    let uri = made["provider"].as_str().unwrap().to_owned();
    assert!(uri.starts_with("pkcs11:token=T;object=master;id=%"), "{uri}");
    assert_eq!(token.objects().len(), 1, "one key on the token");
    m.mount();
    let content = vec![0xa7; 300_000];
    fs::write(m.at("f"), &content).unwrap();
    m.remount();
    assert!(fs::read(m.at("f")).unwrap() == content);
    assert_eq!(get_xattr_text(m.at("f"), "user.sse.kms-key-id").unwrap(), made["key"].as_str().unwrap());
    let shown = m.ssefs(&["key", "show", "ext", "--json"]).json();
    assert_eq!(shown["service"], "the key can be used");
    let calls = shown["service_calls"][0].as_str().unwrap();
    assert!(calls.starts_with("bucket b: 0 generate, 1 unwrap, "), "{calls}");
    assert!(!crate::holds(&m.config(), PIN.as_bytes()), "the PIN is in the keyring");
    // A second key of ssefs on the same key of the token makes none there.
    let again = m.ssefs(&["key", "create", "--provider", &token.uri("object=master")]);
    assert!(!again.stderr.contains("made"), "{again:?}");
    again.ok();
    assert_eq!(token.objects().len(), 1);
}

#[test]
fn r20_rotating_makes_a_new_key_on_the_token_and_a_rewrap_moves_to_it() {
    if skip_without_ssefs() {
        return;
    }
    let token = Token::new();
    let mut m = token.mounted();
    fs::write(m.at("old"), "old content").unwrap();
    let first = token.objects();
    let rotated = m.ssefs(&["key", "rotate", "ext", "--json"]).json();
    assert_eq!(rotated["version"], 2);
    assert_eq!(token.objects().len(), 2);
    let version = |m: &Mount, name: &str| get_xattr_text(m.at(name), "user.sse.key-version").unwrap();
    assert_eq!(version(&m, "old"), "1");
    m.remount();
    assert_eq!(fs::read_to_string(m.at("old")).unwrap(), "old content");
    m.ssefs(&["key", "rewrap", "b"]).ok();
    assert_eq!(version(&m, "old"), "2");
    // The first key is needed by nothing any more.
    fs::remove_file(&first[0]).unwrap();
    m.remount();
    assert_eq!(fs::read_to_string(m.at("old")).unwrap(), "old content");
    fs::write(m.at("new"), "x").unwrap();
}

#[test]
fn r30_a_token_that_is_taken_out_is_a_key_that_is_not_there_until_it_is_back() {
    if skip_without_ssefs() {
        return;
    }
    let token = Token::new();
    let mut m = token.mounted();
    fs::write(m.at("f"), "content").unwrap();
    token.plug(false);
    assert_eq!(fs::read_to_string(m.at("f")).unwrap(), "content", "what is unwrapped goes on");
    fs::write(m.at("g"), "content").unwrap();
    let shown = m.ssefs(&["key", "show", "ext", "--json"]).json();
    assert!(shown["service"].as_str().unwrap().contains("there is no token token=T"), "{shown}");
    m.remount();
    refused(&m, File::open(m.at("f")), libc::ENOKEY, &["KMS.DependencyTimeoutException", "ext (mk-", "pkcs11:token=T"]);
    refused(&m, fs::write(m.at("new"), "plain words"), libc::ENOKEY, &["ext (mk-"]);
    token.plug(true);
    assert!(eventually(|| File::open(m.at("f")).is_ok()), "it did not come back");
    assert_eq!(fs::read_to_string(m.at("g")).unwrap(), "content");
    // Out and in again within one mount: its sessions are lost, and nobody notices.
    token.plug(false);
    token.plug(true);
    m.ssefs(&["key", "rewrap", "b"]).ok();
    assert_eq!(fs::read_to_string(m.at("f")).unwrap(), "content");
}

#[test]
fn r30_a_key_destroyed_on_its_token_is_revoked() {
    if skip_without_ssefs() {
        return;
    }
    let token = Token::new();
    let mut m = token.mounted();
    fs::write(m.at("f"), "content").unwrap();
    m.umount();
    let object = token.objects().remove(0);
    let kept = fs::read(&object).unwrap();
    fs::remove_file(&object).unwrap();
    m.mount();
    refused(&m, File::open(m.at("f")), libc::EKEYREVOKED, &["KMS.NotFoundException", "ext (mk-", "master"]);
    m.umount();
    fs::write(&object, kept).unwrap();
    m.mount();
    assert_eq!(fs::read_to_string(m.at("f")).unwrap(), "content");
}

#[test]
fn r30_what_a_token_wrapped_opens_in_its_place_only() {
    let token = Token::new();
    let m = token.unmounted();
    let key = token.create(&m, "object=master").json()["key"].as_str().unwrap().to_owned();
    // In a process of its own, because SoftHSM finds its tokens through the environment.
    let mut inner = Command::new(std::env::current_exe().unwrap());
    inner.args(["--exact", "pkcs11::in_a_process_of_its_own", "--ignored"]);
    inner.env("SOFTHSM2_CONF", token.conf()).env("SSEFS_TEST_CONFIG", m.config()).env("SSEFS_TEST_KEY", key);
    let said = run(&mut inner).ok();
    assert!(said.contains("1 passed"), "{said}");
}

#[test]
#[ignore = "run by r30_what_a_token_wrapped_opens_in_its_place_only"]
fn in_a_process_of_its_own() {
    use ssefs::keys::provider::ProviderError;
    use ssefs::keys::{KeyError, KeyService, Keyring, RootSource};
    use ssefs::types::{BucketId, KekId, KeyId};
    let (Some(config), Ok(key)) = (std::env::var_os("SSEFS_TEST_CONFIG"), std::env::var("SSEFS_TEST_KEY")) else {
        return;
    };
    let config = PathBuf::from(config);
    let keys = Keyring::open(&config, RootSource::in_config(&config)).unwrap();
    let (key, bucket) = (KeyId(key), BucketId([7; 16]));
    let new = keys.new_kek(&key, &bucket, KekId(1)).unwrap();
    let open = |bucket: &BucketId, kek: u64, wrapped: &[u8]| keys.unwrap_kek(&key, 1, bucket, KekId(kek), wrapped);
    assert_eq!(open(&bucket, 1, &new.wrapped).unwrap().expose(), new.kek.expose());
    let altered = |opened: Result<_, KeyError>| match opened.map(|_: ssefs::crypto::secret::Kek| ()) {
        Err(KeyError::Service { source: ProviderError::Altered(_), .. }) => {}
        other => panic!("{other:?}"),
    };
    altered(open(&BucketId([8; 16]), 1, &new.wrapped));
    altered(open(&bucket, 2, &new.wrapped));
    // Each byte of blob and wrap: version, length, nonce, ciphertext, tag, and our own wrap behind them.
    for at in 0..new.wrapped.len() {
        let mut bytes = new.wrapped.clone();
        bytes[at] ^= 1;
        assert!(open(&bucket, 1, &bytes).is_err(), "byte {at}");
    }
    for length in 0..new.wrapped.len() {
        assert!(open(&bucket, 1, &new.wrapped[..length]).is_err(), "{length} bytes");
    }
    let longer = [&new.wrapped[..], &[0]].concat();
    assert!(open(&bucket, 1, &longer).is_err());
    let local = keys.create_key(None, "").unwrap();
    assert!(keys.unwrap_kek(&local, 1, &bucket, KekId(1), &new.wrapped).is_err(), "under a key that lies here");
}

#[test]
fn r30_a_wrong_pin_is_tried_once() {
    if skip_without_ssefs() {
        return;
    }
    let token = Token::new();
    let mut m = token.mounted();
    fs::write(m.at("f"), "content").unwrap();
    m.umount();
    token.pin("wrong");
    m.mount();
    refused(&m, File::open(m.at("f")), libc::ENOKEY, &["KMS.AccessDeniedException", "is wrong"]);
    for _ in 0..20 {
        refused(&m, File::open(m.at("f")), libc::ENOKEY, &["not tried again"]);
    }
    // Another PIN is another try.
    token.pin(PIN);
    assert_eq!(fs::read_to_string(m.at("f")).unwrap(), "content");
    m.umount();
    fs::set_permissions(token.pin_file(), fs::Permissions::from_mode(0o644)).unwrap();
    m.mount();
    refused(&m, File::open(m.at("f")), libc::ENOKEY, &["chmod 600"]);
    fs::remove_file(token.pin_file()).unwrap();
    refused(&m, File::open(m.at("f")), libc::ENOKEY, &["the PIN cannot be read"]);
    token.pin(PIN);
}

#[test]
fn a_pin_comes_from_a_descriptor_or_a_variable_as_well_and_never_from_the_command_line() {
    let token = Token::new();
    let mut m = token.unmounted();
    let of = |source: &str| format!("pkcs11:token=T?module-path={}&pin-source={source}", token.module);
    m.set_env("MY_PIN", PIN);
    m.ssefs(&["key", "create", "--provider", &of("env:MY_PIN")]).ok();
    m.ssefs(&["key", "create", "--provider", &of("env:NO_SUCH")]).fails_saying(&["env:NO_SUCH"]);
    // With these descriptors and no others.
    let through_sh = |redirections: &str, source: &str| {
        let c = m.command(&[]);
        let mut sh = Command::new("sh");
        sh.args(["-c", &format!("exec \"$@\" {redirections}")]).arg("sh").arg(c.get_program());
        sh.args(["key", "create", "--provider", &of(source)]).current_dir(c.get_current_dir().unwrap());
        run(sh.envs(c.get_envs().filter_map(|(n, v)| Some((n, v?)))))
    };
    let pin = token.pin_file();
    through_sh(&format!("7<'{}'", pin.display()), "fd:7").ok();
    // A number that is one of ssefs's own files by now, or nothing at all, is not read.
    for fd in 3..10 {
        let ran = through_sh("3<&- 4<&- 5<&- 6<&- 7<&- 8<&- 9<&-", &format!("fd:{fd}"));
        ran.fails_saying(&["not given such a descriptor"]);
    }
    let value = format!("pkcs11:token=T?module-path={}&pin-value={PIN}", token.module);
    let ran = m.ssefs(&["key", "create", "--provider", &value]);
    ran.fails_saying(&["seen by others"]);
    assert!(!ran.stderr.contains(PIN), "{ran:?}");
}

#[test]
fn a_key_is_named_exactly_and_one_that_could_leave_its_token_is_refused() {
    let token = Token::new();
    let m = token.unmounted();
    token.create(&m, "id=%01%02").fails_saying(&["KMS.NotFoundException", "0102"]);
    let wrong = token.uri("object=a").replace("token=T", "token=U");
    m.ssefs(&["key", "create", "--provider", &wrong]).fails_saying(&["there is no token token=U", "plugged in"]);
    let module = token.uri("object=a").replace(token.module, "/usr/lib/libc-no-such.so");
    m.ssefs(&["key", "create", "--provider", &module]).fails_saying(&["/usr/lib/libc-no-such.so"]);
    let no_module = token.uri("object=a").replace(token.module, "/etc/hostname");
    m.ssefs(&["key", "create", "--provider", &no_module]).fails_saying(&["/etc/hostname"]);
    assert!(token.objects().is_empty(), "nothing was made");
    m.ssefs(&["key", "create", "--provider", &token.uri("object=twice")]).ok();
    m.ssefs(&["key", "create", "--provider", &token.uri("object=one")]).ok();
    // Two keys of one name: the name alone does not do.
    let one = fs::read(&token.objects()[0]).unwrap();
    fs::write(token.objects()[0].with_file_name("00000000-0000-0000-0000-000000000001.object"), one).unwrap();
    let both: Vec<Ran> =
        ["twice", "one"].map(|o| m.ssefs(&["key", "create", "--provider", &token.uri(&format!("object={o}"))])).into();
    let ambiguous = both.iter().filter(|r| r.stderr.contains("more than one")).count();
    assert_eq!(ambiguous, 1, "{both:?}");
}

#[test]
fn many_threads_use_one_token_at_once() {
    if skip_without_ssefs() {
        return;
    }
    let token = Token::new();
    let mut m = token.mounted();
    std::thread::scope(|s| {
        for i in 0..32 {
            let path = m.at(format!("f{i}"));
            s.spawn(move || fs::write(path, format!("content {i}")).unwrap());
        }
    });
    m.remount();
    std::thread::scope(|s| {
        for i in 0..32 {
            let path = m.at(format!("f{i}"));
            s.spawn(move || assert_eq!(fs::read_to_string(path).unwrap(), format!("content {i}")));
        }
    });
    let calls = m.ssefs(&["key", "show", "ext", "--json"]).json()["service_calls"][0].as_str().unwrap().to_owned();
    assert!(calls.contains(" 1 unwrap, "), "one asked for all: {calls}");
}

#[test]
fn r30_a_module_that_hangs_holds_nobody_up() {
    let token = Token::new();
    let m = token.unmounted();
    let (source, module) = (m.beside("hang.c"), m.beside("hang.so"));
    fs::write(&source, "#include <unistd.h>\nunsigned long C_GetFunctionList(void *l) { for (;;) pause(); }\n")
        .unwrap();
    run(Command::new("gcc").args(["-shared", "-fPIC", "-o"]).arg(&module).arg(&source)).ok();
    let uri = format!("pkcs11:token=T?module-path={}&timeout=1", module.display());
    // It ends by itself: the harness would call it stuck otherwise.
    m.ssefs(&["key", "create", "--provider", &uri]).fails_saying(&["gave no answer within 1 s"]);
}
