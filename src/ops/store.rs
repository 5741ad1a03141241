//! The store: the directory that holds the buckets, with its identity in `store.id` (FORMAT.md, Files). Made on first
//! use with mode 0700; a directory that already holds something else is never taken for a store.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::{ErrorCode, OpError};
use crate::types::StoreId;

const ID_FILE: &str = "store.id";
const ID_WORD: &str = "ssefs-store-1 ";

/// An existing store.
#[derive(Debug, Clone)]
pub struct Store {
    pub path: PathBuf,
    pub id: StoreId,
}

impl Store {
    /// The store at `path`, or None where there is none yet.
    pub fn open(path: &Path) -> Result<Option<Store>, OpError> {
        let file = path.join(ID_FILE);
        let mut text = String::new();
        match File::open(&file).and_then(|f| f.take(256).read_to_string(&mut text)) {
            Ok(_) => {}
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => return Err(damaged(&file)),
            Err(e) => return Err(OpError::io(format_args!("read {}", file.display()), &e)),
        }
        let Some(rest) = text.strip_suffix('\n').and_then(|t| t.strip_prefix("ssefs-store-")) else {
            return Err(damaged(&file));
        };
        match rest.split_once(' ') {
            Some(("1", id)) => {
                let id = id.parse().map_err(|_| damaged(&file))?;
                Ok(Some(Store { path: path.to_owned(), id }))
            }
            Some((version, _)) if version.parse::<u32>().is_ok_and(|v| v > 1) => Err(OpError::new(
                ErrorCode::Newer,
                format!("store {} has format {version}; this ssefs knows format 1", path.display()),
            )
            .hint("use the version of ssefs that wrote it, or a newer one")),
            _ => Err(damaged(&file)),
        }
    }

    /// The store at `path`, made if there is none; true when it was made now. Durable when it returns.
    pub fn open_or_create(path: &Path) -> Result<(Store, bool), OpError> {
        if let Some(store) = Store::open(path)? {
            return Ok((store, false));
        }
        let made = |e: &io::Error| OpError::io(format_args!("make the store {}", path.display()), e);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| made(&e))?;
        let mut foreign = fs::read_dir(path).map_err(|e| made(&e))?.filter_map(Result::ok).filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name != "lost+found" && name != "buckets" && !name.starts_with(ID_FILE)
        });
        if let Some(entry) = foreign.next() {
            return Err(OpError::new(
                ErrorCode::Refused,
                format!("{} is not a store and not empty: it holds {:?}", path.display(), entry.file_name()),
            )
            .hint("name an empty or a new directory with --store"));
        }
        fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(|e| made(&e))?;

        let mut id = [0u8; 16];
        getrandom::fill(&mut id).map_err(|e| OpError::new(ErrorCode::General, format!("no random numbers: {e}")))?;
        // Written aside and linked: two first uses at once agree on one id, and a crash leaves none or a whole one.
        let aside = path.join(format!("{ID_FILE}.{}", std::process::id()));
        let write = || -> io::Result<()> {
            let mut f = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
            f.write_all(format!("{ID_WORD}{}\n", StoreId(id)).as_bytes())?;
            f.sync_all()?;
            match fs::hard_link(&aside, path.join(ID_FILE)) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
            File::open(path)?.sync_all()
        };
        let done = write();
        let _ = fs::remove_file(&aside);
        done.map_err(|e| made(&e))?;
        let store = Store::open(path)?.ok_or_else(|| damaged(&path.join(ID_FILE)))?;
        let mine = store.id == StoreId(id);
        Ok((store, mine))
    }
}

fn damaged(file: &Path) -> OpError {
    OpError::new(ErrorCode::Damage, format!("{} is not the id of a store", file.display()))
        .hint("restore this file from a backup of the store; the keyring knows the id of each of its stores")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_made_on_first_use_is_private_and_keeps_its_id() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/store");
        assert!(Store::open(&path).unwrap().is_none());
        let (made, new) = Store::open_or_create(&path).unwrap();
        assert!(new);
        let (again, new) = Store::open_or_create(&path).unwrap();
        assert!(!new);
        assert_eq!(made.id, again.id);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(path.join(ID_FILE)).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1, "nothing is left beside the id");
    }

    #[test]
    fn a_directory_that_holds_something_else_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.tex"), "x").unwrap();
        let e = Store::open_or_create(dir.path()).unwrap_err();
        assert_eq!(e.code, ErrorCode::Refused);
        assert!(e.message.contains("thesis.tex"), "{e}");
        assert!(!dir.path().join(ID_FILE).exists());
    }

    #[test]
    fn a_damaged_id_and_a_newer_format_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let id = dir.path().join(ID_FILE);
        for garbage in [&b""[..], b"ssefs-store-1 zz\n", b"\xff\xfe", b"ssefs-store-1 "] {
            fs::write(&id, garbage).unwrap();
            assert_eq!(Store::open(dir.path()).unwrap_err().code, ErrorCode::Damage, "{garbage:?}");
        }
        fs::write(&id, "ssefs-store-2 0123\n").unwrap();
        assert_eq!(Store::open(dir.path()).unwrap_err().code, ErrorCode::Newer);
    }
}
