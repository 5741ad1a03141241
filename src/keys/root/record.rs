//! Where the root key is to be found, as the configuration directory keeps it (FORMAT.md, "Root source"): `root.source`,
//! and while the root key is being changed `root.next`. Without either it is the file `root.key`.

use super::super::KeyError;
use super::super::files::{open_regular, read_up_to};
use super::command::CommandLine;
use super::{RootSource, SealedRoot};
use crate::crypto::passphrase::Kdf;
use crate::types::{from_hex, to_hex};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

const FIRST_LINE: &str = "ssefs-root-source-1";
const FAMILY: &str = "ssefs-root-source-";
const BYTES_MAX: usize = 64 * 1024;

/// What `root.source` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootRecord {
    /// The id of the key that is found there.
    pub id: [u8; 8],
    pub source: RootSource,
    /// A file of the root key before, still to be wiped.
    pub retire: Option<PathBuf>,
}

pub fn source_path(config_dir: &Path) -> PathBuf {
    config_dir.join("root.source")
}

pub fn next_path(config_dir: &Path) -> PathBuf {
    config_dir.join("root.next")
}

impl RootRecord {
    /// The record as text. Paths below the configuration directory are kept relative to it, so that it can be moved.
    pub fn pack(&self, config_dir: &Path) -> Result<String, KeyError> {
        let path = |path: &Path| {
            let path = path.strip_prefix(config_dir).unwrap_or(path);
            let text = path.to_str().filter(|t| !t.contains('\n') && !t.is_empty());
            text.map(str::to_owned).ok_or_else(|| KeyError::RootPlace {
                what: format!("{path:?}"),
                why: "its name is not one line of UTF-8".into(),
            })
        };
        let mut text = format!("{FIRST_LINE}\nid {}\n", to_hex(&self.id));
        text += &match &self.source {
            RootSource::File(at) => format!("source file\npath {}\n", path(at)?),
            RootSource::Passphrase(sealed) => {
                format!("source passphrase\nkdf {}\nwrapped {}\n", sealed.kdf, to_hex(&sealed.wrapped))
            }
            RootSource::Command(command) => format!("source command\ncommand {command}\n"),
            RootSource::Credential(name) => format!("source credential\nname {name}\n"),
        };
        if let Some(retire) = &self.retire {
            text += &format!("retire {}\n", path(retire)?);
        }
        Ok(text)
    }

    /// # Errors
    /// Why the text is no record.
    pub fn parse(text: &str, config_dir: &Path) -> Result<RootRecord, String> {
        let mut lines = text.strip_suffix('\n').ok_or("its last line has no end")?.split('\n');
        match lines.next() {
            Some(FIRST_LINE) => {}
            Some(l) if l.starts_with(FAMILY) => return Err("its version is newer than this ssefs knows (1)".into()),
            _ => return Err(format!("it does not begin with {FIRST_LINE:?}")),
        }
        let mut field = |name: &str| {
            let line = lines.next().ok_or_else(|| format!("its line {name:?} is missing"))?;
            let value = line.strip_prefix(name).and_then(|l| l.strip_prefix(' ')).filter(|v| !v.is_empty());
            value.ok_or_else(|| format!("its line {name:?} is missing"))
        };
        let id = from_hex(field("id")?).ok_or("its id has not 16 hexadecimal digits")?;
        let source = match field("source")? {
            "file" => RootSource::File(config_dir.join(field("path")?)),
            "passphrase" => {
                let kdf = Kdf::parse(field("kdf")?).ok_or("its Argon2id parameters are none that ssefs allows")?;
                let wrapped = bytes_of_hex(field("wrapped")?).ok_or("its wrapped key is not hexadecimal")?;
                RootSource::Passphrase(SealedRoot { id, kdf, wrapped })
            }
            "command" => RootSource::Command(CommandLine::parse(field("command")?)?),
            "credential" => RootSource::credential(field("name")?)?,
            other => return Err(format!("it names a source that this ssefs does not know: {other:?}")),
        };
        let retire = match lines.next() {
            None => None,
            Some(line) => Some(config_dir.join(line.strip_prefix("retire ").ok_or("it has a line too many")?)),
        };
        if lines.next().is_some() {
            return Err("it has a line too many".into());
        }
        Ok(RootRecord { id, source, retire })
    }

    /// Reads the record at `path`; None when there is none. One that others can write is refused, because it may name a
    /// program; one that they can read, because it may hold a key that only a passphrase guards.
    pub fn read(path: &Path, config_dir: &Path) -> Result<Option<RootRecord>, KeyError> {
        let unreadable = |source| KeyError::RootUnreadable { path: path.to_owned(), source };
        let (file, meta) = match open_regular(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(unreadable)?,
        };
        let mode = meta.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::RootTooOpen { path: path.to_owned(), mode });
        }
        // SAFETY: geteuid has no preconditions and cannot fail.
        let me = unsafe { libc::geteuid() };
        let malformed = |why: String| KeyError::RootSourceMalformed { path: path.to_owned(), why };
        if meta.uid() != me && meta.uid() != 0 {
            return Err(malformed(format!("it belongs to user {}", meta.uid())));
        }
        let mut text = vec![0u8; BYTES_MAX];
        let n = read_up_to(&file, &mut text).map_err(unreadable)?;
        if n == BYTES_MAX {
            return Err(malformed("it is too long".into()));
        }
        let text = std::str::from_utf8(&text[..n]).map_err(|_| malformed("it is not text".into()))?;
        RootRecord::parse(text, config_dir).map(Some).map_err(malformed)
    }
}

fn bytes_of_hex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return None;
    }
    pairs.map(|p| from_hex::<1>(std::str::from_utf8(p).ok()?).map(|b| b[0])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Vec<RootRecord> {
        let id = [0xab; 8];
        let sealed = SealedRoot { id, kdf: Kdf::new(1024).unwrap(), wrapped: vec![1, 2, 255] };
        let command = CommandLine::parse("/usr/bin/pass show 'my key'").unwrap();
        [
            (RootSource::File("/c/root.key".into()), None),
            (RootSource::File("/media/stick/a key".into()), Some(PathBuf::from("/c/root.key"))),
            (RootSource::Passphrase(sealed), Some(PathBuf::from("/elsewhere/root.key"))),
            (RootSource::Command(command), None),
            (RootSource::Credential("ssefs-root".into()), None),
        ]
        .map(|(source, retire)| RootRecord { id, source, retire })
        .to_vec()
    }

    #[test]
    fn a_record_survives_its_text_and_moves_with_its_directory() {
        for record in records() {
            let text = record.pack(Path::new("/c")).unwrap();
            assert_eq!(RootRecord::parse(&text, Path::new("/c")).unwrap(), record, "{text}");
            assert!(!text.contains("/c/"), "{text}");
        }
    }

    #[test]
    fn a_record_that_is_cut_extended_or_newer_is_refused() {
        for record in records() {
            let text = record.pack(Path::new("/c")).unwrap();
            let lines: Vec<&str> = text.lines().collect();
            let kept = if record.retire.is_some() { lines.len() - 1 } else { lines.len() };
            for n in 0..kept {
                let cut: String = lines[..n].iter().map(|l| format!("{l}\n")).collect();
                assert!(RootRecord::parse(&cut, Path::new("/c")).is_err(), "{cut}");
            }
            assert!(RootRecord::parse(&text[..text.len() - 1], Path::new("/c")).is_err());
            assert!(RootRecord::parse(&format!("{text}more\n"), Path::new("/c")).is_err());
            let newer = RootRecord::parse(&text.replace("source-1", "source-2"), Path::new("/c"));
            assert!(newer.unwrap_err().contains("newer"));
        }
        let huge = "ssefs-root-source-1\nid abababababababab\nsource passphrase\nkdf argon2id 19 4294967295 3 4 \
                    000102030405060708090a0b0c0d0e0f\nwrapped 01\n";
        assert!(RootRecord::parse(huge, Path::new("/c")).unwrap_err().contains("Argon2id"));
    }
}
