//! Where the root key comes from (FORMAT.md, "Root key"). A key that is missing is never made anew beside a keyring
//! that needs one, and a file that others may read is refused.

use super::KeyError;
use super::files::{create_if_absent, open_regular, read_up_to};
use crate::crypto::derive;
use crate::crypto::secret::RootKey;
use crate::types::to_hex;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

const FAMILY: &[u8] = b"ssefs-root-key-";
const PREFIX: &[u8] = b"ssefs-root-key-1 ";
const FILE_BYTES: usize = PREFIX.len() + 64 + 1;

/// Where the root key is to be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootSource {
    /// A text file of its own, mode 0600 or tighter.
    File(PathBuf),
}

impl RootSource {
    /// The default: `root.key` in the configuration directory.
    pub fn in_config(config_dir: &Path) -> Self {
        RootSource::File(config_dir.join("root.key"))
    }

    /// The file that holds it.
    pub fn path(&self) -> &Path {
        match self {
            RootSource::File(path) => path,
        }
    }

    /// Loads the key. `needed` is the id the keyring asks for, told when no file is there.
    pub fn load(&self, needed: Option<&str>) -> Result<RootKey, KeyError> {
        let path = self.path();
        let (file, meta) = open_regular(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => {
                KeyError::RootMissing { path: path.to_owned(), needed: needed.map(str::to_owned) }
            }
            _ => KeyError::RootUnreadable { path: path.to_owned(), source },
        })?;
        let mode = meta.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::RootTooOpen { path: path.to_owned(), mode });
        }
        let mut text = Zeroizing::new([0u8; FILE_BYTES + 1]);
        let n = read_up_to(&file, &mut text[..])
            .map_err(|source| KeyError::RootUnreadable { path: path.to_owned(), source })?;
        parse(&text[..n]).map_err(|why| KeyError::RootMalformed { path: path.to_owned(), why })
    }

    /// Makes a new key unless a file is there: false then. Durable when it returns.
    pub fn create_if_absent(&self) -> Result<bool, KeyError> {
        let key = RootKey::random()?;
        create_if_absent(self.path(), &pack(&key)).map_err(KeyError::io(self.path()))
    }
}

/// The id of a root key, 16 hex digits: what the keyring keeps and messages print.
pub fn root_id_text(key: &RootKey) -> String {
    to_hex(&derive::root_id(key))
}

fn pack(key: &RootKey) -> Zeroizing<Vec<u8>> {
    // Enough room from the start: a buffer that grows would leave parts of the key behind.
    let mut text = Zeroizing::new(Vec::with_capacity(FILE_BYTES));
    text.extend_from_slice(PREFIX);
    for byte in key.expose() {
        text.extend([byte >> 4, byte & 15].map(|nibble| b"0123456789abcdef"[nibble as usize]));
    }
    text.push(b'\n');
    text
}

fn parse(text: &[u8]) -> Result<RootKey, &'static str> {
    let Some(rest) = text.strip_prefix(PREFIX) else {
        return Err(match text {
            [] => "the file is empty",
            t if t.starts_with(FAMILY) => "its version is newer than this ssefs knows (1)",
            _ => "it does not begin with \"ssefs-root-key-1 \"",
        });
    };
    let digits = rest.strip_suffix(b"\n").ok_or("it is not one line")?;
    if digits.len() != 64 {
        return Err("it has not 64 hexadecimal digits");
    }
    let mut key = Zeroizing::new([0u8; 32]);
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |c: u8| (c as char).to_digit(16).ok_or("it has not 64 hexadecimal digits");
        *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
    }
    Ok(RootKey::take(&mut key))
}
