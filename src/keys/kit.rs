//! Recovery kits (FORMAT.md, "Recovery kit"): one text file that holds the root key and the whole keyring, sealed by a
//! passphrase or a code. It opens everything but objects under customer keys and keys that another service holds.

mod compare;
mod text;

use super::KeyError;
use super::files::{create_if_absent, make_private_dir, open_regular, read_up_to, rename_over};
use super::keyring::{Change, Keyring, needed_root};
use super::material::is_deleted;
use super::root;
use super::rows::{KIT, KIT_BUCKET, KIT_KEY, Snapshot, TABLES, VERSION, VersionRow};
use crate::crypto::gcm::{Aes256GcmBackend, Gcm, GcmBackend, TAG_BYTES};
use crate::crypto::passphrase::{Kdf, Passphrase, SecretText};
use crate::crypto::secret::{PassKey, RootKey, random_id};
use crate::crypto::{CryptoError, code, derive, wrap};
use crate::types::{KeyId, to_hex};
use rusqlite::types::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use compare::{KitHas, KitLine};

/// Longest kit that is read: ten thousand keys take some 5 MB.
const BYTES_MAX: usize = 64 << 20;

/// What seals a kit.
pub enum KitSeal {
    Passphrase(Passphrase),
    /// A code that is made, and shown once.
    Code,
}

/// What the keyring knows of a kit that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KitInfo {
    pub number: u32,
    /// Unix seconds.
    pub created: i64,
    /// How many master keys are in it.
    pub keys: usize,
    /// What of today's keyring is not: `mk-...`, `mk-... version 3`, `bucket NAME`.
    pub missing: Vec<String>,
}

/// A kit's file, read but not opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kit {
    path: PathBuf,
    pub number: u32,
    pub id: [u8; 16],
    /// Unix seconds.
    pub created: i64,
    /// The id of the root key in it.
    pub root_id: [u8; 8],
    pub by_code: bool,
    kdf: Kdf,
    wrapped: Vec<u8>,
    /// What the payload's tag covers beside it.
    head: String,
    payload: Vec<u8>,
}

/// What a restore found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// Then it was left as it is.
    pub keyring_was_there: bool,
    /// Where the record of the root key's source went, that was in the way.
    pub set_aside: Option<PathBuf>,
}

/// What an opened kit holds.
pub struct KitContents {
    root: RootKey,
    generation: u64,
    tables: Vec<(String, Vec<Vec<Value>>)>,
}

impl Keyring {
    /// Makes a kit at `path`, where nothing may be; its number, and the code when it was asked for. It is numbered and
    /// recorded in the keyring first, so that no kit is unknown.
    pub fn create_kit(
        &self,
        path: &Path,
        seal: KitSeal,
        memory_kib: u32,
    ) -> Result<(u32, Option<SecretText>), KeyError> {
        if path.symlink_metadata().is_ok() {
            return Err(KeyError::KitExists(path.to_owned()));
        }
        let (code, passphrase) = match seal {
            KitSeal::Passphrase(passphrase) => (None, passphrase),
            KitSeal::Code => {
                let code = code::new()?;
                let copy = SecretText::copy_of(code.expose()).and_then(|t| Passphrase::from_line(t).ok());
                let typed = copy.ok_or(CryptoError::Malformed { what: "code", bytes: code.expose().len() })?;
                let passphrase = code::parse(&typed)
                    .map_err(|why| KeyError::BadPassphrase { from: "the code".into(), why: why.into() })?;
                (Some(code), passphrase)
            }
        };
        let (kdf, id, created) = (Kdf::new(memory_kib)?, random_id()?, self.now());
        let pass_key = kdf.derive(passphrase.expose())?;
        let number = self.change(|c| record(c, &id, created))?;
        let made = self.dump().and_then(|(generation, root, tables)| {
            let wrapped = wrap::wrap_kit(&pass_key, &context(&id, number), &root)?;
            let mut kit = Kit {
                path: path.to_owned(),
                number,
                id,
                created,
                root_id: derive::root_id(&root),
                by_code: code.is_some(),
                kdf,
                wrapped,
                head: String::new(),
                payload: Vec::new(),
            };
            kit.head = text::head(&kit);
            let plain = text::pack(generation, &tables);
            kit.payload = vec![0u8; plain.len()];
            let gcm = Gcm::new(&derive::kit_key(&root, &id));
            let tag = gcm.seal(&[0; 12], kit.head.as_bytes(), &plain, &mut kit.payload);
            kit.payload.extend_from_slice(&tag);
            match create_if_absent(path, text::print(&kit).as_bytes()) {
                // What cannot be opened again from the disk is no kit.
                Ok(true) => Kit::read(path).and_then(|kit| kit.open_with(&pass_key)).map(drop).inspect_err(|_| {
                    let _ = std::fs::remove_file(path);
                }),
                Ok(false) => Err(KeyError::KitExists(path.to_owned())),
                Err(e) => Err(KeyError::io(path)(e)),
            }
        });
        if let Err(e) = made {
            // There is no such kit: its number may be used again.
            return Err(self.forget_kit(number).err().unwrap_or(e));
        }
        Ok((number, code))
    }

    /// Takes back the record of a kit that does not exist.
    pub fn forget_kit(&self, number: u32) -> Result<(), KeyError> {
        self.change(|c| {
            let tables = [&KIT_BUCKET, &KIT_KEY, &KIT];
            tables.iter().try_for_each(|table| c.delete(table, "number", Value::Integer(number.into())))
        })
    }

    /// The kits that were made, by number.
    pub fn list_kits(&self) -> Result<Vec<KitInfo>, KeyError> {
        self.read(|inner| {
            let s = &inner.snapshot;
            let here = keys_with_bytes(s);
            let kits = s.kits.iter().map(|kit| {
                let version = |key: &KeyId| s.kit_keys.get(&(kit.number, key.clone())).copied();
                let keys = here.iter().filter_map(|(key, newest)| match version(key) {
                    Some(held) if held >= *newest => None,
                    Some(_) => Some(format!("{key} version {newest}")),
                    None => Some(key.to_string()),
                });
                let buckets = s.buckets.iter().filter(|b| !s.kit_buckets.contains(&(kit.number, b.id)));
                let missing = keys.chain(buckets.map(|b| format!("bucket {}", b.name))).collect();
                let keys = s.kit_keys.keys().filter(|(n, _)| *n == kit.number).count();
                KitInfo { number: kit.number, created: kit.created, keys, missing }
            });
            Ok(kits.collect())
        })
    }

    /// The numbers of the kits that hold `key`: where it still is after it was deleted here.
    pub fn kits_with(&self, key: &KeyId) -> Result<Vec<u32>, KeyError> {
        self.read(|inner| Ok(inner.snapshot.kit_keys.keys().filter(|(_, k)| k == key).map(|(n, _)| *n).collect()))
    }
}

/// Gives the next number to a kit of all the keys that are here.
fn record(c: &Change<'_>, id: &[u8; 16], created: i64) -> Result<u32, KeyError> {
    let number = c.snapshot.kits.iter().map(|k| k.number).max().unwrap_or(0) + 1;
    c.put(&KIT, &[Value::Integer(number.into()), Value::Integer(created), Value::Blob(id.to_vec())])?;
    for (key, version) in keys_with_bytes(c.snapshot) {
        c.put(&KIT_KEY, &[Value::Integer(number.into()), Value::Text(key.0), Value::Integer(version.into())])?;
    }
    for bucket in &c.snapshot.buckets {
        c.put(&KIT_BUCKET, &[Value::Integer(number.into()), Value::Blob(bucket.id.0.to_vec())])?;
    }
    Ok(number)
}

/// The master keys whose bytes the keyring has, each with its newest version; others are held by another service, or
/// destroyed.
fn keys_with_bytes(snapshot: &Snapshot) -> BTreeMap<KeyId, u32> {
    let versions = snapshot.versions.iter().filter(|(_, row)| has_bytes(row));
    // By key and version: the newest is the last.
    versions.map(|((id, version), _)| (id.clone(), *version)).collect()
}

/// Whether the keyring has the bytes of a version: not of one that another service holds, nor of deleted material.
fn has_bytes(row: &VersionRow) -> bool {
    !row.wrapped.is_empty() && !is_deleted(&row.wrapped)
}

fn context(id: &[u8; 16], number: u32) -> Vec<u8> {
    [&id[..], &number.to_le_bytes()].concat()
}

impl Kit {
    /// Reads the file at `path`, which anybody may hold: it is sealed.
    pub fn read(path: &Path) -> Result<Kit, KeyError> {
        let (file, meta) = open_regular(path).map_err(KeyError::io(path))?;
        let malformed = |why: String| KeyError::KitMalformed { path: path.to_owned(), why };
        let bytes = usize::try_from(meta.len()).unwrap_or(usize::MAX);
        if bytes > BYTES_MAX {
            return Err(malformed("it is too long".into()));
        }
        let mut content = vec![0u8; bytes + 1];
        let n = read_up_to(&file, &mut content).map_err(KeyError::io(path))?;
        let content = std::str::from_utf8(&content[..n]).map_err(|_| malformed("it is not text".into()))?;
        text::parse(content, path).map_err(malformed)
    }

    /// Opens it with its passphrase, or its code as somebody typed it.
    ///
    /// # Errors
    /// `BadPassphrase` for a code with a typing error, `KitWrong`, `KitDamaged`.
    pub fn open(&self, typed: Passphrase) -> Result<KitContents, KeyError> {
        let secret = if self.by_code {
            let from = format!("the code of recovery kit {}", self.number);
            code::parse(&typed).map_err(|why| KeyError::BadPassphrase { from, why: why.into() })?
        } else {
            typed
        };
        self.open_with(&self.kdf.derive(secret.expose())?)
    }

    fn open_with(&self, key: &PassKey) -> Result<KitContents, KeyError> {
        let damaged = || KeyError::KitDamaged { path: self.path.clone(), number: self.number };
        let root = match wrap::unwrap_kit(key, &context(&self.id, self.number), &self.wrapped) {
            Ok(root) => root,
            Err(CryptoError::WrongKey) => return Err(KeyError::KitWrong { number: self.number }),
            Err(_) => return Err(damaged()),
        };
        let (sealed, tag) = self.payload.split_last_chunk::<TAG_BYTES>().ok_or_else(damaged)?;
        let mut plain = vec![0u8; sealed.len()];
        let gcm = Gcm::new(&derive::kit_key(&root, &self.id));
        gcm.open(&[0; 12], self.head.as_bytes(), sealed, tag, &mut plain).map_err(|_| damaged())?;
        let (generation, tables) = text::unpack(&plain).ok_or_else(damaged)?;
        Ok(KitContents { root, generation, tables })
    }
}

impl KitContents {
    /// The id of the root key, 16 hexadecimal digits.
    pub fn root_id(&self) -> String {
        to_hex(&derive::root_id(&self.root))
    }

    /// Makes root key and keyring in `config_dir` as they were when the kit was made. A keyring that is there and needs
    /// this root key stays as it is: it is newer. Nothing else is written over; after a crash it can be run again.
    pub fn restore(&self, config_dir: &Path) -> Result<Restored, KeyError> {
        let in_the_way = || KeyError::KitInTheWay(config_dir.to_owned());
        let keyring = needed_root(config_dir)?;
        if keyring.is_some_and(|needed| needed != derive::root_id(&self.root)) {
            return Err(in_the_way());
        }
        let key = config_dir.join("root.key");
        let file = root::RootSource::in_config(config_dir);
        if key.symlink_metadata().is_ok() && !file.load(None).is_ok_and(|found| found.is_same(&self.root)) {
            return Err(in_the_way());
        }
        // Everything is looked at before anything is made.
        for (name, rows) in &self.tables {
            let table = TABLES.iter().find(|t| t.name == name);
            let table = table.ok_or_else(|| self.newer(config_dir, name))?;
            if rows.iter().any(|row| row.len() != table.columns.len()) {
                return Err(self.newer(config_dir, name));
            }
        }
        make_private_dir(config_dir).map_err(KeyError::io(config_dir))?;
        create_if_absent(&key, root::pack(&self.root).expose()).map_err(KeyError::io(&key))?;
        // A passphrase that nobody knows any more, or a program that is gone: out of the way, and kept.
        let mut set_aside = None;
        let record = root::source_path(config_dir);
        if record.symlink_metadata().is_ok() {
            let aside = record.with_extension(format!("source.before-{}", to_hex(&random_id()?[..4])));
            rename_over(&record, &aside).map_err(KeyError::io(&record))?;
            set_aside = Some(aside);
        }
        if keyring.is_none() {
            let made = Keyring::create_filled(config_dir, &self.root, self.generation + 1, |put| {
                for (name, rows) in &self.tables {
                    for table in TABLES.iter().filter(|t| t.name == name) {
                        rows.iter().try_for_each(|row| put(table, row))?;
                    }
                }
                Ok(())
            })?;
            if !made {
                return Err(in_the_way());
            }
        }
        Keyring::open(config_dir, file)?;
        Ok(Restored { keyring_was_there: keyring.is_some(), set_aside })
    }

    fn newer(&self, config_dir: &Path, table: &str) -> KeyError {
        let why =
            format!("its table {table:?} is not one that this ssefs knows: use the ssefs that made it, or a newer one");
        KeyError::KitMalformed { path: config_dir.to_owned(), why }
    }

    /// Master keys and versions in it.
    pub fn counts(&self) -> (usize, usize) {
        let versions = self.rows(VERSION.name);
        let mut keys: Vec<_> =
            versions.iter().filter_map(|r| if let Value::Text(id) = &r[0] { Some(id) } else { None }).collect();
        keys.dedup();
        (keys.len(), versions.len())
    }

    fn rows(&self, table: &str) -> &[Vec<Value>] {
        self.tables.iter().find(|(name, _)| name == table).map_or(&[], |(_, rows)| rows)
    }
}
