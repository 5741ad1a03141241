//! The root key changed for another, or kept and moved to another place, without touching a bucket. Whatever moment the
//! process is killed at, either the old key opens the keyring from its old place, or the new one from its new place: the
//! keyring's transaction decides, and `root.next` is there before it.

use super::super::KeyError;
use super::super::files::{rename_over, sync_dir, wipe, write_over};
use super::super::keyring::Keyring;
use super::record::{RootRecord, next_path, source_path};
use super::{CommandLine, Nobody, RootSource, SealedRoot, load_file, text};
use crate::crypto::passphrase::Passphrase;
use crate::crypto::secret::RootKey;
use crate::crypto::{derive, wrap};
use crate::types::to_hex;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// Where the root key is to be kept from now on.
pub enum NewRoot {
    /// A file; without a path `root.key` in the configuration directory.
    File(Option<PathBuf>),
    /// The configuration directory, sealed by a passphrase.
    Passphrase { passphrase: Passphrase, memory_kib: u32 },
    /// What the program prints: it has the key already.
    Command(CommandLine),
    /// The credential of this name. `key` is what it will hold; without it, what it holds in this very process.
    Credential { name: String, key: Option<RootKey> },
}

/// The steps of a change, in order. Each is durable when it is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The new key lies in its place, or beside it.
    Written,
    /// It was read back from there.
    Verified,
    /// `root.next` says where it lies.
    Recorded,
    /// Live mounts were told.
    Told,
    /// The keyring's rows are wrapped anew, in a transaction that is not committed.
    Rewrapped,
    /// The keyring needs the new key.
    Committed,
    /// A key that takes the place of another one is there.
    Placed,
    /// `root.source` is what `root.next` was.
    Renamed,
    /// The old key's file is wiped and gone.
    Retired,
}

/// Who is told how far a change has come.
pub trait Steps {
    /// An error here ends the change, as a failure there would.
    fn reached(&mut self, _step: Step) -> Result<(), KeyError> {
        Ok(())
    }

    /// `sealed` is the next root key, which has the id `id`, under the present one, for those who hold that
    /// (`Keyring::accept_root`).
    fn tell(&mut self, _id: &[u8; 8], _sealed: &[u8]) {}
}

/// Nobody is told.
pub struct NoSteps;

impl Steps for NoSteps {}

/// What a change did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// Ids before and after, 16 hexadecimal digits; equal when the key was kept.
    pub before: String,
    pub after: String,
    pub source: RootSource,
    /// The file of the old key, wiped and removed.
    pub retired: Option<PathBuf>,
}

/// Where a key waits that is to take the place of the one at `path`.
pub fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".next");
    path.with_file_name(name)
}

impl Keyring {
    /// Makes a new root key, or with `keep` takes the present one, puts it where `to` says, and wraps the keyring's keys
    /// under it.
    pub fn change_root(&self, to: NewRoot, keep: bool, steps: &mut dyn Steps) -> Result<Changed, KeyError> {
        let dir = self.config_dir().to_owned();
        let _lock = lock(&dir, libc::LOCK_EX)?;
        self.generation()?;
        let held = self.root();
        let before = derive::root_id(&held);
        finish_locked(&dir, &before, &mut NoSteps)?;
        // What an earlier change left that did not come to its transaction.
        remove(&next_path(&dir))?;
        remove(&beside(&dir.join("root.key")))?;

        let old = super::find(&dir, Some(&before))?.source;
        let (new, source) = prepare(&dir, &held, to, keep, &old)?;
        let after = derive::root_id(&new);
        steps.reached(Step::Written)?;
        verify(&source, &new)?;
        steps.reached(Step::Verified)?;
        let retire = match (&old, &source.source) {
            (RootSource::File(old), RootSource::File(new)) if old == new => None,
            (RootSource::File(old), _) => Some(old.clone()),
            _ => None,
        };
        let record = RootRecord { id: after, source: source.source.clone(), retire: retire.clone() };
        write_over(&next_path(&dir), record.pack(&dir)?.as_bytes()).map_err(KeyError::io(&next_path(&dir)))?;
        steps.reached(Step::Recorded)?;
        if after != before {
            steps.tell(&after, &wrap::wrap_next_root(&held, &after, &new)?);
            steps.reached(Step::Told)?;
            drop(held);
            if let Err(e) = self.rewrap_under(new, &mut || steps.reached(Step::Rewrapped)) {
                // Only when it is certain that the keyring still needs the old key: else both places are left as they are.
                if super::super::keyring::needed_root(&dir).is_ok_and(|id| id == Some(before)) {
                    remove(&next_path(&dir))?;
                    if let RootSource::File(path) = &source.source {
                        remove(&beside(path))?;
                    }
                }
                return Err(e);
            }
            steps.reached(Step::Committed)?;
        }
        finish_locked(&dir, &after, steps)?;
        Ok(Changed { before: to_hex(&before), after: to_hex(&after), source: source.source, retired: retire })
    }
}

/// Keeps the first root key, before there is a keyring, where `to` says.
///
/// # Errors
/// `RootPlace` when there is a root key or a record of one already.
pub fn create(dir: &Path, to: NewRoot) -> Result<RootKey, KeyError> {
    let _lock = lock(dir, libc::LOCK_EX)?;
    let default = dir.join("root.key");
    for taken in [source_path(dir), default] {
        if taken.symlink_metadata().is_ok() {
            return Err(KeyError::RootPlace {
                what: taken.display().to_string(),
                why: "there is a root key already; it is used when the keyring is made".into(),
            });
        }
    }
    let none = RootSource::Credential(String::new());
    let (new, source) = prepare(dir, &RootKey::random()?, to, false, &none)?;
    verify(&source, &new)?;
    let id = derive::root_id(&new);
    let record = RootRecord { id, source: source.source.clone(), retire: None };
    // No keyring needs another key, so the record alone decides, and the key is moved behind it.
    write_over(&next_path(dir), record.pack(dir)?.as_bytes()).map_err(KeyError::io(&next_path(dir)))?;
    finish_locked(dir, &id, &mut NoSteps)?;
    Ok(new)
}

/// A source with its key, not in force yet.
struct Prepared {
    source: RootSource,
    /// For reading it back.
    passphrase: Option<Passphrase>,
    /// A key that was handed over and cannot be read back from here.
    given: bool,
}

/// Decides on the key and puts it where it is to be kept.
fn prepare(
    dir: &Path,
    held: &RootKey,
    to: NewRoot,
    keep: bool,
    old: &RootSource,
) -> Result<(RootKey, Prepared), KeyError> {
    let made = || if keep { copy_of(held) } else { Ok(RootKey::random()?) };
    // Who keeps the key elsewhere has decided on it: it must be the one that was asked for.
    let given = |key: RootKey, name: String| match (derive::root_id(&key) == derive::root_id(held), keep) {
        (true, false) => Err(KeyError::RootPlace {
            what: name,
            why: "it is the present root key: put a new one there, or add --keep".into(),
        }),
        (false, true) => Err(KeyError::RootPlace { what: name, why: "it is not the present root key".into() }),
        _ => Ok(key),
    };
    match to {
        NewRoot::File(path) => {
            let path = path.unwrap_or_else(|| dir.join("root.key"));
            let taken = path.symlink_metadata().is_ok();
            let refuse = |why: &str| Err(KeyError::RootPlace { what: path.display().to_string(), why: why.into() });
            match old {
                RootSource::File(old) if *old == path && keep => return refuse("the root key is there already"),
                RootSource::File(old) if *old == path => {}
                _ if taken => return refuse("there is a file already"),
                _ => {}
            }
            let next = beside(&path);
            if next.symlink_metadata().is_ok() && load_file(&next, None).is_err() {
                let what = next.display().to_string();
                return Err(KeyError::RootPlace {
                    what,
                    why: "there is a file that is no root key: move it away".into(),
                });
            }
            let key = made()?;
            write_over(&next, text::pack(&key).expose()).map_err(KeyError::io(&next))?;
            Ok((key, Prepared { source: RootSource::File(path), passphrase: None, given: false }))
        }
        NewRoot::Passphrase { passphrase, memory_kib } => {
            let key = made()?;
            let source = RootSource::Passphrase(SealedRoot::seal(&key, &passphrase, memory_kib)?);
            Ok((key, Prepared { source, passphrase: Some(passphrase), given: false }))
        }
        NewRoot::Command(command) => {
            let source = RootSource::Command(command);
            let key = given(source.load_asking(None, &Nobody)?, source.name())?;
            Ok((key, Prepared { source, passphrase: None, given: false }))
        }
        NewRoot::Credential { name, key } => {
            let handed = key.is_some();
            let source = RootSource::credential(&name)
                .map_err(|why| KeyError::RootPlace { what: format!("the credential {name:?}"), why })?;
            let key = match key {
                Some(key) => key,
                None => source.load_asking(None, &Nobody)?,
            };
            let key = given(key, source.name())?;
            Ok((key, Prepared { source, passphrase: None, given: handed }))
        }
    }
}

/// Reads the new key back from where it is to be found.
fn verify(new: &Prepared, key: &RootKey) -> Result<(), KeyError> {
    let found = match (&new.source, &new.passphrase) {
        (RootSource::File(path), _) => load_file(&beside(path), None)?,
        (RootSource::Passphrase(sealed), Some(passphrase)) => sealed.open(passphrase)?,
        _ if new.given => return Ok(()),
        (source, _) => source.load_asking(None, &Nobody)?,
    };
    if derive::root_id(&found) == derive::root_id(key) {
        return Ok(());
    }
    Err(KeyError::RootPlace { what: new.source.name(), why: "it gives another key each time it is asked".into() })
}

fn copy_of(key: &RootKey) -> Result<RootKey, KeyError> {
    Ok(RootKey::try_from(&key.expose()[..])?)
}

/// Tidies up after a change that was made and then interrupted. Does nothing where none was, where another process is at
/// it, and where this one may not write.
pub fn finish(dir: &Path, needed: &[u8; 8]) {
    if let Ok(_lock) = lock(dir, libc::LOCK_EX | libc::LOCK_NB)
        && let Err(e) = finish_locked(dir, needed, &mut NoSteps)
    {
        log::debug!("a change of the root key is not tidied up after yet: {e}");
    }
}

fn finish_locked(dir: &Path, needed: &[u8; 8], steps: &mut dyn Steps) -> Result<(), KeyError> {
    let (next, source) = (next_path(dir), source_path(dir));
    if let Some(record) = RootRecord::read(&next, dir)?
        && record.id == *needed
    {
        if let RootSource::File(path) = &record.source {
            let waiting = beside(path);
            // The key itself is looked at, not the name: nothing takes the place of a key but the one that is needed.
            if load_file(&waiting, None).is_ok_and(|key| derive::root_id(&key) == *needed) {
                wipe(path).map_err(KeyError::io(path))?;
                rename_over(&waiting, path).map_err(KeyError::io(path))?;
            }
        }
        steps.reached(Step::Placed)?;
        wipe(&source).map_err(KeyError::io(&source))?;
        rename_over(&next, &source).map_err(KeyError::io(&source))?;
        steps.reached(Step::Renamed)?;
    }
    if let Ok(Some(record)) = RootRecord::read(&source, dir)
        && record.id == *needed
        && let Some(retire) = &record.retire
    {
        wipe(retire).and_then(|()| remove_file(retire)).map_err(KeyError::io(retire))?;
        steps.reached(Step::Retired)?;
        let record = RootRecord { retire: None, ..record };
        write_over(&source, record.pack(dir)?.as_bytes()).map_err(KeyError::io(&source))?;
    }
    Ok(())
}

/// Held while root key and record are changed; the kernel lets go of it with the process.
fn lock(dir: &Path, how: i32) -> Result<File, KeyError> {
    let file = File::open(dir).map_err(KeyError::io(dir))?;
    // SAFETY: a plain system call on a descriptor we own.
    if unsafe { libc::flock(file.as_raw_fd(), how) } != 0 {
        return Err(KeyError::io(dir)(io::Error::last_os_error()));
    }
    Ok(file)
}

fn remove(path: &Path) -> Result<(), KeyError> {
    if path.symlink_metadata().is_err() {
        return Ok(());
    }
    wipe(path).and_then(|()| remove_file(path)).map_err(KeyError::io(path))
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
        Ok(()) => sync_dir(path.parent().unwrap_or(Path::new("/"))),
    }
}
