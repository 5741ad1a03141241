//! Where the root key comes from (FORMAT.md, "Root key"): a file, a passphrase, a program, or a credential of systemd. A
//! key that is missing is never made anew beside a keyring that needs one, and a file that others may read is refused.

mod change;
mod command;
mod record;
mod text;

use super::KeyError;
use super::files::{create_if_absent, open_regular, read_up_to};
use crate::crypto::passphrase::{Kdf, Passphrase, SecretText};
use crate::crypto::secret::RootKey;
use crate::crypto::{CryptoError, derive, wrap};
use crate::types::to_hex;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

pub use change::{Changed, NewRoot, NoSteps, Step, Steps, create, finish};
pub use command::{CommandLine, time_limit, wait_readable};
pub use record::{RootRecord, next_path, source_path};
pub(super) use text::pack;

/// Wrong passphrases that a terminal takes.
const ATTEMPTS: u32 = 3;

/// Whoever can be asked for a passphrase. The command line is; a mount in the background is not.
pub trait Ask {
    /// The passphrase of `what`.
    fn passphrase(&self, what: &str) -> Result<Passphrase, KeyError>;

    /// Whether asking again makes sense when it was wrong.
    fn again(&self) -> bool {
        false
    }
}

/// Nobody to ask.
pub struct Nobody;

impl Ask for Nobody {
    fn passphrase(&self, what: &str) -> Result<Passphrase, KeyError> {
        Err(KeyError::NoPassphrase { what: what.to_owned(), why: "nobody can be asked".into() })
    }
}

/// A root key that a passphrase opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedRoot {
    pub id: [u8; 8],
    pub kdf: Kdf,
    pub wrapped: Vec<u8>,
}

impl SealedRoot {
    pub fn seal(root: &RootKey, passphrase: &Passphrase, memory_kib: u32) -> Result<SealedRoot, CryptoError> {
        let (id, kdf) = (derive::root_id(root), Kdf::new(memory_kib)?);
        let wrapped = wrap::wrap_root(&kdf.derive(passphrase.expose())?, &id, root)?;
        Ok(SealedRoot { id, kdf, wrapped })
    }

    pub fn open(&self, passphrase: &Passphrase) -> Result<RootKey, KeyError> {
        match wrap::unwrap_root(&self.kdf.derive(passphrase.expose())?, &self.id, &self.wrapped) {
            Err(CryptoError::WrongKey) => Err(KeyError::RootPassphraseWrong(to_hex(&self.id))),
            opened => opened.map_err(|source| KeyError::Unwrap { what: "the sealed root key".into(), source }),
        }
    }
}

/// Where the root key is to be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootSource {
    /// A text file of its own, mode 0600 or tighter.
    File(PathBuf),
    /// The configuration directory itself, sealed.
    Passphrase(SealedRoot),
    /// What a program prints.
    Command(CommandLine),
    /// A file of this name in `$CREDENTIALS_DIRECTORY` (systemd.exec(5), CREDENTIALS).
    Credential(String),
}

impl RootSource {
    /// The default: `root.key` in the configuration directory.
    pub fn in_config(config_dir: &Path) -> Self {
        RootSource::File(config_dir.join("root.key"))
    }

    /// A credential by its name.
    pub fn credential(name: &str) -> Result<Self, String> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if name.is_empty() || name.len() > 255 || !name.bytes().all(legal) || name.starts_with('.') {
            return Err(format!("{name:?} is no name of a credential: use A-Z a-z 0-9 . _ -"));
        }
        Ok(RootSource::Credential(name.to_owned()))
    }

    /// One word for it.
    pub fn kind(&self) -> &'static str {
        match self {
            RootSource::File(_) => "file",
            RootSource::Passphrase(_) => "passphrase",
            RootSource::Command(_) => "command",
            RootSource::Credential(_) => "credential",
        }
    }

    /// What messages call it.
    pub fn name(&self) -> String {
        match self {
            RootSource::File(path) => path.display().to_string(),
            RootSource::Passphrase(_) => "what the passphrase opens".into(),
            RootSource::Command(command) => format!("the output of {}", command.program()),
            RootSource::Credential(name) => format!("the credential {name}"),
        }
    }

    /// Loads the key without asking anybody. `needed` is the id the keyring asks for, told when no file is there.
    pub fn load(&self, needed: Option<&str>) -> Result<RootKey, KeyError> {
        self.load_asking(needed, &Nobody)
    }

    /// Loads the key; asks for what it takes.
    pub fn load_asking(&self, needed: Option<&str>, ask: &dyn Ask) -> Result<RootKey, KeyError> {
        match self {
            RootSource::File(path) => load_file(path, needed),
            RootSource::Passphrase(sealed) => {
                let what = format!("the root key {}", to_hex(&sealed.id));
                let mut attempt = 1;
                loop {
                    match sealed.open(&ask.passphrase(&what)?) {
                        Err(KeyError::RootPassphraseWrong(_)) if ask.again() && attempt < ATTEMPTS => attempt += 1,
                        opened => return opened,
                    }
                }
            }
            RootSource::Command(command) => text::parse_given(command.run()?.expose(), &self.name()),
            RootSource::Credential(name) => {
                let text = read_credential(name)?;
                text::parse_given(text.expose(), &self.name())
            }
        }
    }

    /// Makes a new key in its file unless one is there: false then. Durable when it returns.
    ///
    /// # Errors
    /// `RootPlace` where the key is not in a file: those who keep it make it.
    pub fn create_if_absent(&self) -> Result<bool, KeyError> {
        let RootSource::File(path) = self else {
            return Err(KeyError::RootPlace { what: self.name(), why: "ssefs does not make a key there".into() });
        };
        let key = RootKey::random()?;
        create_if_absent(path, text::pack(&key).expose()).map_err(KeyError::io(path))
    }
}

/// The id of a root key, 16 hex digits: what the keyring keeps and messages print.
pub fn root_id_text(key: &RootKey) -> String {
    to_hex(&derive::root_id(key))
}

/// The root key in a file that only its owner can read.
pub fn load_file(path: &Path, needed: Option<&str>) -> Result<RootKey, KeyError> {
    let (file, meta) = open_regular(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => KeyError::RootMissing { path: path.to_owned(), needed: needed.map(str::to_owned) },
        _ => KeyError::RootUnreadable { path: path.to_owned(), source },
    })?;
    check_private(path, &meta)?;
    let mut text = SecretText::new();
    let n = read_up_to(&file, &mut text.room()[..text::TEXT_BYTES + 1])
        .map_err(|source| KeyError::RootUnreadable { path: path.to_owned(), source })?;
    text.add(n);
    text::parse(text.expose()).map_err(|why| KeyError::RootMalformed { path: path.to_owned(), why })
}

/// A root key that somebody hands over in a file: the text of `root.key`, or 64 digits.
pub fn load_given(path: &Path) -> Result<RootKey, KeyError> {
    text::parse_given(read_secret_file(path)?.expose(), &path.display().to_string())
}

/// The text of a file with a secret in it, which only its owner can read.
pub fn read_secret_file(path: &Path) -> Result<SecretText, KeyError> {
    let unreadable = |source| KeyError::RootUnreadable { path: path.to_owned(), source };
    let (file, meta) = open_regular(path).map_err(unreadable)?;
    check_private(path, &meta)?;
    read_page(&file).map_err(unreadable)
}

/// Nobody else can read the file: by its mode, and because it belongs to this user, to root, or to whom its directory
/// belongs (root uses the keys of a user, all of which are that user's).
fn check_private(path: &Path, meta: &std::fs::Metadata) -> Result<(), KeyError> {
    let mode = meta.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyError::RootTooOpen { path: path.to_owned(), mode });
    }
    // SAFETY: geteuid has no preconditions and cannot fail.
    let me = unsafe { libc::geteuid() };
    let whose_dir = || path.parent().and_then(|dir| dir.metadata().ok()).map(|m| m.uid());
    if meta.uid() == me || meta.uid() == 0 || (me == 0 && whose_dir() == Some(meta.uid())) {
        return Ok(());
    }
    Err(KeyError::RootForeign { path: path.to_owned(), uid: meta.uid() })
}

fn read_page(file: &std::fs::File) -> io::Result<SecretText> {
    let mut text = SecretText::new();
    let n = read_up_to(file, text.room())?;
    text.add(n);
    if text.room().is_empty() {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(text)
}

/// systemd's own modes and owners hold for a credential; others cannot enter its directory.
fn read_credential(name: &str) -> Result<SecretText, KeyError> {
    let failed = |why: String| KeyError::NoCredential { name: name.to_owned(), why };
    let Some(dir) = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from).filter(|d| d.is_absolute()) else {
        return Err(failed("$CREDENTIALS_DIRECTORY is not set; the unit needs LoadCredential= or its like".into()));
    };
    let (file, _) = open_regular(&dir.join(name)).map_err(|e| failed(e.to_string()))?;
    read_page(&file).map_err(|e| failed(e.to_string()))
}

/// A source as it was found, and the record it stands in, if any.
#[derive(Debug)]
pub struct Found {
    pub source: RootSource,
    /// From `root.next`: a change of the root key was made and not tidied up after.
    pub unfinished: bool,
}

/// Where the root key with the id `needed` (that of the keyring, when there is one) is to be found.
pub fn find(config_dir: &Path, needed: Option<&[u8; 8]>) -> Result<Found, KeyError> {
    if let Some(needed) = needed
        && let Ok(Some(next)) = RootRecord::read(&next_path(config_dir), config_dir)
        && next.id == *needed
    {
        return Ok(Found { source: next.source, unfinished: true });
    }
    let at = source_path(config_dir);
    let Some(record) = RootRecord::read(&at, config_dir)? else {
        return Ok(Found { source: RootSource::in_config(config_dir), unfinished: false });
    };
    match needed {
        // A file tells by itself which key it holds. Nobody is asked for a passphrase that cannot help.
        Some(needed) if record.id != *needed && !matches!(record.source, RootSource::File(_)) => {
            Err(KeyError::RootWrong {
                path: at,
                found: to_hex(&record.id),
                needed: to_hex(needed),
                keyring: super::keyring_path(config_dir),
            })
        }
        _ => Ok(Found { source: record.source, unfinished: record.retire.is_some() }),
    }
}

/// Loads the root key that the keyring in `config_dir` needs, from wherever it is kept.
pub fn load(config_dir: &Path, needed: Option<&[u8; 8]>, ask: &dyn Ask) -> Result<RootKey, KeyError> {
    let found = find(config_dir, needed)?;
    let hex = needed.map(|id| to_hex(id));
    if found.unfinished
        && let (RootSource::File(path), Some(needed)) = (&found.source, needed)
        && let Ok(key) = load_file(&change::beside(path), None)
        && derive::root_id(&key) == *needed
    {
        return Ok(key);
    }
    found.source.load_asking(hex.as_deref(), ask)
}
