//! The recovery file of one customer master key (FORMAT.md, "Recovery file of a key"): its versions, each wrapped under a
//! key of the owner's, and a tag over all of it. It brings the key back under its id, also after it was destroyed.

use super::KeyError;
use super::files::{create_if_absent, open_regular, read_up_to};
use super::keyring::Keyring;
use super::masters::{KeyKind, KeyOrigin, KeyState, changeable, name_of, put_master, put_version};
use super::material::Material;
use super::rows::MasterRow;
use crate::crypto::secret::MasterKey;
use crate::crypto::{derive, mac, wrap};
use crate::types::{KeyId, from_hex, to_hex};
use std::fmt::Write;
use std::path::Path;

const FAMILY: &str = "ssefs-key-export-";
const FIRST_LINE: &str = "ssefs-key-export-1";
/// A file of 1,000 versions with the longest description is shorter.
const FILE_BYTES_MAX: usize = 1 << 20;

/// What a recovery file says.
struct Recovered {
    row: MasterRow,
    versions: Vec<(u32, i64, MasterKey)>,
}

impl Keyring {
    /// Writes the recovery file of a key, sealed under `seal`. A file that is there is left alone.
    pub fn export_key(&self, key: &KeyId, seal: &Material, to: &Path) -> Result<(), KeyError> {
        let text = self.read(|inner| {
            let s = &inner.snapshot;
            let row = changeable(s, key)?;
            if row.provider.is_some() {
                let why = "another key service keeps it: see to a backup there";
                return Err(KeyError::NotNow { key: name_of(&row), why });
            }
            let mut text = format!("{FIRST_LINE}\nkey {key}\n");
            let json = |t: &str| serde_json::Value::from(t).to_string();
            if let Some(alias) = &row.alias {
                let _ = writeln!(text, "alias {}", json(alias));
            }
            let _ = writeln!(text, "description {}", json(&row.description));
            let _ = writeln!(text, "origin {}", row.origin.as_str());
            let _ = writeln!(text, "created {}", row.created);
            if let Some(days) = row.rotate_days {
                let _ = writeln!(text, "rotate-days {days}");
            }
            for ((_, version), v) in s.versions.iter().filter(|((k, _), _)| k == key) {
                let material = self.unwrap_version(s, key, *version)?;
                let wrapped = wrap::wrap_exported(seal.key(), key, *version, &material)?;
                let _ = writeln!(text, "version {version} {} {}", v.created, to_hex(&wrapped));
            }
            let tag = mac::tag(&derive::export_key(seal.key()), &[text.as_bytes()]);
            let _ = writeln!(text, "tag {}", to_hex(&tag));
            Ok(text)
        })?;
        match create_if_absent(to, text.as_bytes()).map_err(KeyError::io(to))? {
            true => Ok(()),
            false => Err(KeyError::FileExists(to.to_owned())),
        }
    }

    /// Brings a key back from its recovery file, enabled. Its alias comes back if it is free.
    ///
    /// # Errors
    /// `KeyThere` unless the key is gone; `Recovery` for a file that is none, or altered, or sealed under another key.
    pub fn restore_key(&self, from: &Path, seal: &Material) -> Result<KeyId, KeyError> {
        let (file, _) = open_regular(from).map_err(KeyError::io(from))?;
        let mut bytes = vec![0u8; FILE_BYTES_MAX];
        let n = read_up_to(&file, &mut bytes).map_err(KeyError::io(from))?;
        let Recovered { row, versions } =
            parse(&bytes[..n], seal).map_err(|why| KeyError::Recovery { path: from.to_owned(), why })?;
        self.change(|c| {
            if let Some(there) = c.snapshot.masters.get(&row.id)
                && there.state != KeyState::Destroyed
            {
                return Err(KeyError::KeyThere(name_of(there)));
            }
            let taken = c.snapshot.masters.values().any(|k| k.alias.is_some() && k.alias == row.alias);
            put_master(c, &MasterRow { alias: row.alias.clone().filter(|_| !taken), ..row.clone() })?;
            for (version, created, material) in &versions {
                put_version(
                    c,
                    &row.id,
                    *version,
                    wrap::wrap_master(&self.root(), &row.id, *version, material)?,
                    *created,
                )?;
            }
            Ok(row.id.clone())
        })
    }
}

fn parse(bytes: &[u8], seal: &Material) -> Result<Recovered, &'static str> {
    const ALTERED: &str = "it is damaged or was altered";
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not text")?;
    if !text.starts_with(FIRST_LINE) || text.as_bytes().get(FIRST_LINE.len()) != Some(&b'\n') {
        return Err(match text.starts_with(FAMILY) {
            true => "its version is newer than this ssefs knows (1)",
            false => "it does not begin with \"ssefs-key-export-1\"",
        });
    }
    let (body, tag) = text.rsplit_once("tag ").ok_or("it is cut short")?;
    let tag: [u8; 32] = tag.strip_suffix('\n').and_then(from_hex).ok_or("it is cut short")?;
    let line = |name: &str| body.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
    let id = KeyId(line("key").ok_or(ALTERED)?.to_owned());
    let mut versions = Vec::new();
    for line in body.lines().filter_map(|l| l.strip_prefix("version ")) {
        let mut words = line.split(' ');
        let version: u32 = words.next().and_then(|w| w.parse().ok()).ok_or(ALTERED)?;
        let created: i64 = words.next().and_then(|w| w.parse().ok()).ok_or(ALTERED)?;
        let wrapped: [u8; wrap::WRAP_OVERHEAD + 32] = words.next().and_then(from_hex).ok_or(ALTERED)?;
        let material = wrap::unwrap_exported(seal.key(), &id, version, &wrapped).map_err(|e| match e {
            crate::crypto::CryptoError::WrongKey => "it is sealed under another key, or was altered",
            _ => ALTERED,
        })?;
        versions.push((version, created, material));
    }
    if versions.is_empty() || !mac::verify(&derive::export_key(seal.key()), &[body.as_bytes()], &tag) {
        return Err(ALTERED);
    }
    let word = |name| line(name).and_then(|t| serde_json::from_str::<String>(t).ok());
    let row = MasterRow {
        id,
        alias: word("alias"),
        kind: KeyKind::Cmk,
        bucket: None,
        description: word("description").ok_or(ALTERED)?,
        state: KeyState::Enabled,
        created: line("created").and_then(|t| t.parse().ok()).ok_or(ALTERED)?,
        provider: None,
        provider_ref: None,
        origin: line("origin").and_then(KeyOrigin::parse).ok_or(ALTERED)?,
        rotate_days: line("rotate-days").map(|t| t.parse().map_err(|_| ALTERED)).transpose()?,
        delete_after: None,
        destroyed: None,
        due_seen: None,
    };
    Ok(Recovered { row, versions })
}
