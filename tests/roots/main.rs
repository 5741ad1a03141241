//! The root key: where it comes from, how it is changed, recovery kits, and that no secret leaves where it belongs.

#[path = "../cli_support/mod.rs"]
mod cli_support;

mod change;
mod kits;
mod live;
mod memory;
mod secrets;
mod sources;
mod terminal;

use cli_support::{Outcome, SSEFS, Sandbox};
use ssefs::crypto::passphrase::{Passphrase, SecretText};
use ssefs::crypto::secret::BucketKey;
use ssefs::keys::root::{self, Ask};
use ssefs::keys::{KeyError, Keyring, RootSource};
use ssefs::types::BucketId;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Argon2id's memory in these tests, in KiB: the least that is allowed.
pub const LITTLE: u32 = 64;
pub const PASSPHRASE: &str = "correct horse battery";

pub fn passphrase(text: &str) -> Passphrase {
    Passphrase::from_line(SecretText::copy_of(text.as_bytes()).unwrap()).unwrap()
}

/// Gives the one passphrase of these tests to whoever asks.
pub struct Knows;

impl Ask for Knows {
    fn passphrase(&self, _what: &str) -> Result<Passphrase, KeyError> {
        Ok(passphrase(PASSPHRASE))
    }
}

/// A file with a secret in it, as it ought to be.
pub fn secret_file(path: &Path, content: &str) -> String {
    fs::write(path, content).unwrap();
    chmod(path, 0o600);
    path.to_str().unwrap().to_owned()
}

pub fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Runs the program with more in its environment; one that hangs is killed after a minute and fails.
pub fn with_env(s: &Sandbox, env: &[(&str, &str)], args: &[&str]) -> Outcome {
    let mut command = s.command("timeout");
    command.args(["-k", "1", "60", SSEFS]).args(args).envs(env.iter().copied());
    command.stdin(Stdio::null()).output().unwrap().into()
}

/// A keyring with something in every table that root key and kits have to do with.
pub struct Ring {
    pub dir: tempfile::TempDir,
    pub store: ssefs::types::StoreId,
}

pub const BUCKET: BucketId = BucketId([3; 16]);

impl Ring {
    pub fn made() -> Ring {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config");
        let keys = Keyring::open_or_create(&config, RootSource::in_config(&config)).unwrap().0;
        let store = keys.open_store(&dir.path().join("store"), true).unwrap();
        let key = BucketKey::take(&mut [0x5b; 32]);
        keys.register_bucket(&store, &"photos".parse().unwrap(), &BUCKET, &key, None).unwrap();
        let cmk = keys.create_key(Some("mine"), "").unwrap();
        keys.rotate(&cmk).unwrap();
        Ring { dir, store }
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("config")
    }

    pub fn beside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Opens it as the command line does, wherever its root key is now.
    pub fn open(&self) -> Result<Keyring, KeyError> {
        let needed = ssefs::keys::needed_root(&self.config())?;
        let root = root::load(&self.config(), needed.as_ref(), &Knows)?;
        Keyring::open_with(&self.config(), root, "the place it was found")
    }

    /// Everything in it opens.
    #[track_caller]
    pub fn is_whole(&self, keys: &Keyring) {
        use ssefs::keys::KeyService;
        let (id, key) = keys.bucket_key(&self.store, &"photos".parse().unwrap()).unwrap().unwrap();
        assert_eq!((id, key.expose()), (BUCKET, &[0x5b; 32]));
        let cmk = keys.resolve("mine").unwrap();
        let kek = keys.new_kek(&cmk, &BUCKET, ssefs::types::KekId(9)).unwrap();
        let again = keys.unwrap_kek(&cmk, kek.version, &BUCKET, ssefs::types::KekId(9), &kek.wrapped).unwrap();
        assert_eq!((kek.version, again.expose()), (2, kek.kek.expose()));
    }
}

/// Runs one test of this binary, which is not a test of its own, in a process of its own.
pub fn child(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture"]).stdin(Stdio::null());
    command
}

/// The passphrase of these tests as the place to change to.
pub fn change_to_passphrase() -> root::NewRoot {
    root::NewRoot::Passphrase { passphrase: passphrase(PASSPHRASE), memory_kib: LITTLE }
}
