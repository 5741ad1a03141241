//! Unlocking and locking by ioctl(2), on both ends: `ssefs object unlock` asks the directory that an object lies in, since
//! setting an attribute takes the right to write and opening the object takes the key. Who asks is what the kernel says with
//! each request, so each user unlocks for itself, on any mount it can look into.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use zeroize::Zeroizing;

use crate::crypto::customer::CUSTOMER_BYTES;
use crate::crypto::secret::CustomerKey;

/// A name of at most 255 bytes and a zero; empty for the directory itself.
const NAME_BYTES: usize = 256;
/// _IOW(0xE5, n, size) of the kernel's ioctl.h: the size tells the kernel how much to copy.
const fn command(n: u32, bytes: usize) -> u32 {
    (1 << 30) | ((bytes as u32) << 16) | (0xE5 << 8) | n
}
const UNLOCK: u32 = command(1, NAME_BYTES + CUSTOMER_BYTES);
const LOCK: u32 = command(2, NAME_BYTES);

/// What was asked.
pub enum Asked {
    Unlock { name: Vec<u8>, key: Zeroizing<Vec<u8>> },
    Lock { name: Vec<u8> },
}

/// A request taken apart; None for other ioctls.
pub fn parse(command: u32, data: &[u8]) -> Option<Asked> {
    let name = |bytes: &[u8]| Some(CStr::from_bytes_until_nul(bytes).ok()?.to_bytes().to_vec());
    match command {
        UNLOCK if data.len() == NAME_BYTES + CUSTOMER_BYTES => {
            let (n, key) = data.split_at(NAME_BYTES);
            Some(Asked::Unlock { name: name(n)?, key: Zeroizing::new(key.to_vec()) })
        }
        LOCK if data.len() == NAME_BYTES => Some(Asked::Lock { name: name(data)? }),
        _ => None,
    }
}

/// Unlock what a path names, a file or all below a directory, for the user who calls.
///
/// # Errors
/// The mount's own; those of opening the directory.
pub fn unlock(dir: &File, name: &[u8], key: &CustomerKey) -> io::Result<()> {
    let mut data = Zeroizing::new([0u8; NAME_BYTES + CUSTOMER_BYTES]);
    put_name(&mut data[..NAME_BYTES], name)?;
    data[NAME_BYTES..].copy_from_slice(key.expose());
    ask(dir, UNLOCK, &mut data[..])
}

/// Lock it again; returns when it is done.
///
/// # Errors
/// As for [`unlock`].
pub fn lock(dir: &File, name: &[u8]) -> io::Result<()> {
    let mut data = [0u8; NAME_BYTES];
    put_name(&mut data, name)?;
    ask(dir, LOCK, &mut data)
}

/// The directory to ask, and the name in it: of a directory itself no name.
///
/// # Errors
/// Those of open(2): the directory must be readable.
pub fn place_of(resolved: &Path) -> io::Result<(File, Vec<u8>)> {
    use std::os::unix::ffi::OsStrExt;
    if std::fs::metadata(resolved)?.is_dir() {
        return Ok((File::open(resolved)?, Vec::new()));
    }
    let (Some(parent), Some(name)) = (resolved.parent(), resolved.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    Ok((File::open(parent)?, name.as_bytes().to_vec()))
}

fn put_name(into: &mut [u8], name: &[u8]) -> io::Result<()> {
    if name.len() >= into.len() || name.contains(&0) {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    into[..name.len()].copy_from_slice(name);
    Ok(())
}

fn ask(dir: &File, command: u32, data: &mut [u8]) -> io::Result<()> {
    // SAFETY: the descriptor is open; the kernel copies as many bytes as the command says, which data has.
    match unsafe { libc::ioctl(dir.as_raw_fd(), command as _, data.as_mut_ptr()) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Wipe what a request brought, in the buffer that it was read into: the next one may be shorter and leave the rest there.
pub fn wipe(request: &[u8]) {
    // SAFETY: the bytes are those of the event thread's own buffer, which only this thread looks at, and which is filled anew
    // before it is looked at again; nobody reads through the reference after this.
    unsafe { libc::explicit_bzero(request.as_ptr().cast_mut().cast(), request.len()) };
}
