//! Key material of one's own: read from a file in three forms, imported as a new key or a new version, deleted and
//! imported again. What is deleted leaves a value that tells the same material again, and nothing else.

use super::KeyError;
use super::files::read_up_to;
use super::keyring::Keyring;
use super::masters::{KeyOrigin, KeyState, NewKey, changeable, check_names, name_of, newest, put_master, put_version};
use super::rows::{MasterRow, Snapshot};
use crate::crypto::mac::Mac;
use crate::crypto::secret::{MacKey, MasterKey};
use crate::crypto::wrap;
use crate::types::KeyId;
use base64ct::{Base64, Base64Unpadded, Encoding};
use std::fs::File;
use std::path::Path;
use zeroize::Zeroizing;

/// First byte of a version's `wrapped` when its material was deleted; a wrapped verifier follows.
const DELETED: u8 = 3;
/// More than any of the forms has, with room for an end of line.
const FILE_BYTES_MAX: usize = 128;

/// 32 bytes of key material that somebody brought.
#[derive(Debug)]
pub struct Material(MasterKey);

impl Material {
    /// Reads it from an open file, pipe or descriptor; `named` is what messages call it.
    pub fn read(file: &File, named: &Path) -> Result<Material, KeyError> {
        let mut bytes = Zeroizing::new([0u8; FILE_BYTES_MAX]);
        let n = read_up_to(file, &mut bytes[..]).map_err(KeyError::io(named))?;
        Material::parse(&bytes[..n]).map_err(|why| KeyError::Material { from: named.to_owned(), why })
    }

    /// 32 raw bytes, 64 hexadecimal digits, or 44 characters of base64 (43 without padding); text may end its line.
    pub fn parse(bytes: &[u8]) -> Result<Material, String> {
        const FORMS: &str = "a key is 32 raw bytes, 64 hexadecimal digits or 44 characters of base64";
        let mut key = Zeroizing::new([0u8; 32]);
        if bytes.len() == 32 {
            key.copy_from_slice(bytes);
            return Material::taken(&mut key);
        }
        let text = bytes.trim_ascii();
        let hex = !text.is_empty() && text.iter().all(u8::is_ascii_hexdigit);
        match text.len() {
            0 => return Err(format!("it is empty; {FORMS}")),
            64 if hex => {
                for (byte, pair) in key.iter_mut().zip(text.chunks_exact(2)) {
                    let digit = |c: u8| (c as char).to_digit(16).unwrap_or(0) as u8;
                    *byte = digit(pair[0]) * 16 + digit(pair[1]);
                }
            }
            64 => return Err("it has 64 characters, and not all are hexadecimal digits".into()),
            43 | 44 if !hex => {
                let bad = || "it is not base64 of 32 bytes".to_string();
                let text = std::str::from_utf8(text).map_err(|_| bad())?;
                let decoded = if text.len() == 44 {
                    Base64::decode(text, &mut key[..]).map(<[u8]>::len)
                } else {
                    Base64Unpadded::decode(text, &mut key[..]).map(<[u8]>::len)
                };
                if decoded != Ok(32) {
                    return Err(bad());
                }
            }
            n if hex && n < 64 => return Err(format!("it is too short: {n} hexadecimal digits; {FORMS}")),
            n if n < 32 => return Err(format!("it is too short: {n} bytes; {FORMS}")),
            n if bytes.len() >= FILE_BYTES_MAX => return Err(format!("it is too long: {n} bytes or more; {FORMS}")),
            n => return Err(format!("it is too long, or in none of the forms: {n} bytes; {FORMS}")),
        }
        Material::taken(&mut key)
    }

    fn taken(key: &mut [u8; 32]) -> Result<Material, String> {
        match key.iter().all(|b| *b == key[0]) {
            true => Err("it is one byte, again and again: that is no key".into()),
            false => Ok(Material(MasterKey::take(key))),
        }
    }

    pub(super) fn key(&self) -> &MasterKey {
        &self.0
    }
}

pub(super) fn is_deleted(wrapped: &[u8]) -> bool {
    wrapped.first() == Some(&DELETED)
}

pub(super) fn any_deleted(s: &Snapshot, key: &KeyId) -> bool {
    s.versions.iter().any(|((k, _), row)| k == key && is_deleted(&row.wrapped))
}

impl Keyring {
    /// Makes a customer master key of this material.
    pub fn import_key(&self, alias: Option<&str>, description: &str, m: &Material) -> Result<KeyId, KeyError> {
        check_names(alias, Some(description))?;
        let new = NewKey { origin: KeyOrigin::Imported, ..NewKey::cmk(alias, description) };
        self.change(|c| self.insert_key(c, &new, m.key()))
    }

    /// Imports material into an imported key: what was deleted from it comes back as the version it was; new material is a
    /// new version. Returns the version.
    ///
    /// # Errors
    /// `NotNow` for a generated key, for material that is there already, and for other material than was deleted.
    pub fn import_into(&self, key: &KeyId, m: &Material) -> Result<u32, KeyError> {
        self.change(|c| {
            let row = changeable(c.snapshot, key)?;
            let refuse = |why| Err(KeyError::NotNow { key: name_of(&row), why });
            if row.origin != KeyOrigin::Imported {
                return refuse("its material was generated here: material is imported into imported keys only");
            }
            match row.state {
                KeyState::PendingDeletion => return Err(KeyError::PendingDeletion(name_of(&row))),
                KeyState::Disabled => return Err(KeyError::Disabled(name_of(&row))),
                _ => {}
            }
            let mine = c.snapshot.versions.iter().filter(|((k, _), _)| k == key);
            let mut missing = Vec::new();
            for ((_, version), v) in mine {
                if is_deleted(&v.wrapped) {
                    missing.push((*version, v));
                } else if self.unwrap_version(c.snapshot, key, *version)?.expose() == m.key().expose() {
                    return refuse("this material is in it already");
                }
            }
            let Some((version, v)) =
                missing.iter().find(|(version, v)| self.is_what_was_deleted(key, *version, m.key(), &v.wrapped))
            else {
                if !missing.is_empty() {
                    return refuse("this is not the material that was deleted from it");
                }
                let version = newest(c.snapshot, key)? + 1;
                self.insert_version(c, key, version, m.key())?;
                return Ok(version);
            };
            put_version(c, key, *version, wrap::wrap_master(&self.root(), key, *version, m.key())?, v.created)?;
            if missing.len() == 1 {
                put_master(c, &MasterRow { state: KeyState::Enabled, ..row.clone() })?;
            }
            Ok(*version)
        })
    }

    /// Deletes the material of an imported key. Nothing under it opens until the same material is imported again.
    pub fn delete_material(&self, key: &KeyId) -> Result<(), KeyError> {
        self.change(|c| {
            let row = changeable(c.snapshot, key)?;
            if row.origin != KeyOrigin::Imported {
                let why = "its material was generated here, and nobody could bring it back: delete the key instead";
                return Err(KeyError::NotNow { key: name_of(&row), why });
            }
            if row.state == KeyState::PendingDeletion {
                return Err(KeyError::PendingDeletion(name_of(&row)));
            }
            c.wipes.set(true);
            for ((_, version), v) in c.snapshot.versions.iter().filter(|((k, _), _)| k == key) {
                if is_deleted(&v.wrapped) {
                    continue;
                }
                let material = self.unwrap_version(c.snapshot, key, *version)?;
                let mut left = vec![DELETED];
                let verifier = material_mac(key, *version, &material)?.finish();
                left.extend_from_slice(&wrap::wrap_verifier(&self.root(), key, *version, &verifier)?);
                put_version(c, key, *version, left, v.created)?;
            }
            put_master(c, &MasterRow { state: KeyState::PendingImport, ..row })
        })
    }

    /// Whether `material` is what the verifier in `left` tells.
    fn is_what_was_deleted(&self, key: &KeyId, version: u32, material: &MasterKey, left: &[u8]) -> bool {
        let verifier = wrap::unwrap_verifier(&self.root(), key, version, left.get(1..).unwrap_or_default());
        let mac = material_mac(key, version, material);
        verifier.is_ok_and(|verifier| mac.is_ok_and(|mac| mac.verify(&verifier)))
    }
}

/// What tells the same material again. It is kept wrapped, so that nobody can try material on it without the root key.
fn material_mac(key: &KeyId, version: u32, material: &MasterKey) -> Result<Mac, KeyError> {
    let mut mac = Mac::new(&MacKey::try_from(&material.expose()[..])?);
    mac.field(b"material").field(key.0.as_bytes()).update(&version.to_le_bytes());
    Ok(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_gives_the_same_key_and_whatever_is_no_key_is_refused_with_a_reason() {
        let raw: Vec<u8> = (0..32).collect();
        let hex = crate::types::to_hex(&raw);
        let mut room = [0u8; 44];
        let base64 = Base64::encode(&raw, &mut room).unwrap().to_owned();
        for text in [hex.clone(), format!("{hex}\n"), hex.to_uppercase(), base64.clone(), format!(" {base64}\r\n")] {
            assert_eq!(&Material::parse(text.as_bytes()).unwrap().key().expose()[..], raw, "{text:?}");
        }
        assert_eq!(&Material::parse(&raw).unwrap().key().expose()[..], raw);
        let unpadded = base64.trim_end_matches('=');
        assert_eq!(&Material::parse(unpadded.as_bytes()).unwrap().key().expose()[..], raw);
        let cases: [(Vec<u8>, &str); 11] = [
            (vec![0; 32], "again and again"),
            (vec![b'a'; 64], "again and again"),
            (vec![], "empty"),
            (vec![7; 31], "too short: 31 bytes"),
            (vec![7; 33], "too long"),
            (hex.as_bytes()[..62].into(), "too short: 62 hexadecimal digits"),
            (format!("{hex}00").into(), "too long"),
            (format!("{}g", &hex[1..]).into(), "not all are hexadecimal"),
            (format!("{}*=", &base64[..42]).into(), "not base64"),
            (format!("{}==", &base64[..42]).into(), "not base64"),
            (vec![b'x'; FILE_BYTES_MAX], "too long"),
        ];
        for (bytes, why) in cases {
            let told = Material::parse(&bytes).unwrap_err();
            assert!(told.contains(why), "{told:?} should say {why:?}");
        }
    }
}
