//! Small private files that must never be half there: written beside their place, synced, then linked into it.

use crate::crypto::secret::random_id;
use crate::types::to_hex;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Makes `dir` and what is missing above it; the directories made are 0700.
pub fn make_private_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    dir.parent().filter(|p| !p.as_os_str().is_empty()).map_or(Ok(()), sync_dir)
}

/// Makes the entries of `dir` durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// A new, empty 0600 file beside `path`, to be filled and given to `link_into_place`.
pub fn create_beside(path: &Path) -> io::Result<(PathBuf, File)> {
    let id = random_id().map_err(io::Error::other)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".new-{}", to_hex(&id[..8])));
    let beside = path.with_file_name(name);
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&beside)?;
    Ok((beside, file))
}

/// Moves the synced file `beside` to `path` unless something is there: false then. `beside` is gone in either case.
pub fn link_into_place(beside: &Path, path: &Path) -> io::Result<bool> {
    let linked = fs::hard_link(beside, path);
    fs::remove_file(beside)?;
    match linked {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        Err(e) => return Err(e),
    }
    sync_dir(path.parent().unwrap_or(Path::new("/")))?;
    Ok(true)
}

/// Writes a 0600 file that is durable and whole, or not there. False when there was one already; it is left alone.
pub fn create_if_absent(path: &Path, content: &[u8]) -> io::Result<bool> {
    if path.symlink_metadata().is_ok() {
        return Ok(false);
    }
    let (beside, mut file) = create_beside(path)?;
    let written = file.write_all(content).and_then(|()| file.sync_all());
    if let Err(e) = written {
        let _ = fs::remove_file(&beside);
        return Err(e);
    }
    link_into_place(&beside, path)
}

/// Writes a 0600 file in the place of whatever is there: durable and whole when it returns, the old one until then.
pub fn write_over(path: &Path, content: &[u8]) -> io::Result<()> {
    let (beside, mut file) = create_beside(path)?;
    let written = file.write_all(content).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&beside, path));
    if let Err(e) = written {
        let _ = fs::remove_file(&beside);
        return Err(e);
    }
    sync_dir(path.parent().unwrap_or(Path::new("/")))
}

/// Moves `from` to the place of `to`, durable when it returns.
pub fn rename_over(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_dir(to.parent().unwrap_or(Path::new("/")))
}

/// Overwrites a file's content with zeroes, as far as a file system writes in place. One that is not there, or that has
/// another name as well (somebody's copy), is left alone.
pub fn wipe(path: &Path) -> io::Result<()> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let mut file = match OpenOptions::new().write(true).custom_flags(flags).open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        // A symbolic link: what it leads to is not ours to wipe.
        Err(e) if e.raw_os_error() == Some(libc::ELOOP) => return Ok(()),
        opened => opened?,
    };
    let meta = file.metadata()?;
    if !meta.is_file() || meta.nlink() != 1 {
        return Ok(());
    }
    let zeroes = vec![0u8; usize::try_from(meta.len()).unwrap_or(0).min(1 << 20)];
    file.write_all(&zeroes)?;
    file.sync_all()
}

/// Opens a regular file for reading without waiting for a writer, should it be a fifo.
pub fn open_regular(path: &Path) -> io::Result<(File, fs::Metadata)> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok((file, meta))
}

/// Reads at most `out.len()` bytes; the count is `out.len()` for a file that may be longer.
pub fn read_up_to(mut file: &File, out: &mut [u8]) -> io::Result<usize> {
    let mut n = 0;
    while n < out.len() {
        match file.read(&mut out[n..])? {
            0 => break,
            k => n += k,
        }
    }
    Ok(n)
}
