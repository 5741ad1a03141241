//! Which store belongs at which path. A store.id that is missing or another one than before means that a disk is not
//! mounted, or the wrong one is: nothing is ever made in its place.

use super::KeyError;
use super::files::{create_if_absent, make_private_dir, open_regular, read_up_to};
use super::keyring::Keyring;
use super::rows::{STORE, path_value};
use crate::crypto::secret::random_id;
use crate::types::StoreId;
use rusqlite::types::Value;
use std::io;
use std::path::{Path, PathBuf};

const PREFIX: &str = "ssefs-store-1 ";

impl Keyring {
    /// The id of the store at `path`. With `create`, a store is made where there was none; a path the keyring knows is
    /// never made anew. A known store at a new path has been moved, and is known there from then on.
    pub fn open_store(&self, path: &Path, create: bool) -> Result<StoreId, KeyError> {
        let path = &resolved(path).map_err(KeyError::io(path))?;
        let known = self.known_store_at(path)?;
        let found = match read_store_id(path)? {
            Some(found) => found,
            None => match known {
                Some(known) => return Err(KeyError::StoreGone { path: path.clone(), known }),
                None if path.join("buckets").symlink_metadata().is_ok() => {
                    return Err(KeyError::StoreIdLost(path.clone()));
                }
                None if !create => return Err(KeyError::StoreMissing(path.clone())),
                None => make_store(path)?,
            },
        };
        match known {
            Some(known) if known == found => return Ok(found),
            Some(known) => return Err(KeyError::StoreSwapped { path: path.clone(), known, found }),
            None => {}
        }
        self.change(|c| {
            if let Some((&known, _)) = c.snapshot.stores.iter().find(|(id, p)| *p == path && **id != found) {
                return Err(KeyError::StoreSwapped { path: path.clone(), known, found });
            }
            c.put(&STORE, &[Value::Blob(found.0.to_vec()), path_value(path)])
        })?;
        Ok(found)
    }

    /// The stores the keyring knows, and where each was last seen.
    pub fn list_stores(&self) -> Result<Vec<(StoreId, PathBuf)>, KeyError> {
        self.read(|inner| Ok(inner.snapshot.stores.iter().map(|(id, path)| (*id, path.clone())).collect()))
    }

    fn known_store_at(&self, path: &Path) -> Result<Option<StoreId>, KeyError> {
        self.read(|inner| Ok(inner.snapshot.stores.iter().find(|(_, p)| *p == path).map(|(id, _)| *id)))
    }
}

/// The id in STORE/store.id; None when there is no such file.
fn read_store_id(store: &Path) -> Result<Option<StoreId>, KeyError> {
    let path = store.join("store.id");
    let (file, _) = match open_regular(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(KeyError::io(&path))?,
    };
    let mut text = [0u8; 64];
    let n = read_up_to(&file, &mut text).map_err(KeyError::io(&path))?;
    parse(&text[..n]).map(Some).map_err(|why| KeyError::StoreIdMalformed { path, why })
}

fn parse(text: &[u8]) -> Result<StoreId, &'static str> {
    let text = std::str::from_utf8(text).map_err(|_| "it is not text")?;
    let rest = match text.strip_prefix(PREFIX) {
        Some(rest) => rest,
        None if text.starts_with("ssefs-store-") => return Err("its version is newer than this ssefs knows (1)"),
        None => return Err("it does not begin with \"ssefs-store-1 \""),
    };
    let digits = rest.strip_suffix('\n').ok_or("it is not one line")?;
    digits.parse().map_err(|_| "it has not 32 hexadecimal digits")
}

/// Makes the store's directory and id. Another process may be faster: then its id counts.
fn make_store(store: &Path) -> Result<StoreId, KeyError> {
    make_private_dir(store).map_err(KeyError::io(store))?;
    let id = StoreId(random_id()?);
    let file = store.join("store.id");
    if create_if_absent(&file, format!("{PREFIX}{id}\n").as_bytes()).map_err(KeyError::io(&file))? {
        return Ok(id);
    }
    read_store_id(store)?.ok_or_else(|| KeyError::StoreMissing(store.to_owned()))
}

/// The path without symbolic links, as far as it exists: one store has one name.
fn resolved(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    for ancestor in path.ancestors() {
        match ancestor.canonicalize() {
            Ok(real) => {
                let rest = path.strip_prefix(ancestor).map_err(io::Error::other)?;
                return Ok(if rest.as_os_str().is_empty() { real } else { real.join(rest) });
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(path)
}
