//! Where the PIN of a token comes from: a file that only its owner can read, an inherited file descriptor, or a variable
//! of the environment. Never the command line, nor the keyring.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::OnceLock;

use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::ProviderError;

/// Longest PIN, in bytes.
const PIN_BYTES_MAX: usize = 255;

/// The descriptors that this process was given, with device and inode of each.
static GIVEN: OnceLock<HashMap<RawFd, (u64, u64)>> = OnceLock::new();

/// Notes which descriptors the process was started with. By then nothing of its own may be open: a number that it was not
/// given would else be one of its own files by the time a PIN is read from it.
pub fn note_given_descriptors() {
    GIVEN.get_or_init(|| {
        let numbers = std::fs::read_dir("/proc/self/fd").into_iter().flatten();
        let numbers: Vec<RawFd> = numbers.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).collect();
        numbers.into_iter().filter_map(|fd| Some((fd, identity(fd)?))).collect()
    });
}

/// Device and inode of an open descriptor.
fn identity(fd: RawFd) -> Option<(u64, u64)> {
    let mut st = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: fstat writes one stat, which st is, and is read only when it succeeded.
    (unsafe { libc::fstat(fd, st.as_mut_ptr()) } == 0).then(|| {
        // SAFETY: fstat has filled it.
        let st = unsafe { st.assume_init() };
        (st.st_dev as u64, st.st_ino as u64)
    })
}

/// A PIN; wiped, and never printed.
pub type Pin = Zeroizing<String>;

/// `pin-source` of a URI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PinSource {
    File(PathBuf),
    Fd(RawFd),
    Environment(String),
}

impl PinSource {
    /// `file:/path` or `/path` (RFC 7512), `fd:N`, `env:NAME`.
    pub fn parse(text: &str) -> Result<PinSource, ProviderError> {
        let bad = || ProviderError::Setup("pin-source is file:/PATH, fd:NUMBER or env:NAME".into());
        let file = |path: &str| Some(PathBuf::from(path)).filter(|p| p.is_absolute()).ok_or_else(bad);
        if let Some(path) = text.strip_prefix("file:") {
            return Ok(PinSource::File(file(path.strip_prefix("//").unwrap_or(path))?));
        }
        if let Some(fd) = text.strip_prefix("fd:") {
            return fd.parse().ok().filter(|fd| *fd >= 0).map(PinSource::Fd).ok_or_else(bad);
        }
        if let Some(name) = text.strip_prefix("env:") {
            let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
            return match name.bytes().all(legal) && !name.is_empty() {
                true => Ok(PinSource::Environment(name.to_owned())),
                false => Err(bad()),
            };
        }
        Ok(PinSource::File(file(text)?))
    }

    /// Reads the PIN. A descriptor can be read once: what it gave is kept for the life of the process.
    pub fn read(&self) -> Result<Pin, ProviderError> {
        let failed =
            |e: &dyn std::fmt::Display| ProviderError::Setup(format!("the PIN cannot be read from {self}: {e}"));
        let pin = match self {
            PinSource::File(path) => {
                // Not blocking: a pipe without a writer must not hold us up.
                let file =
                    File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(|e| failed(&e))?;
                let meta = file.metadata().map_err(|e| failed(&e))?;
                if !meta.is_file() {
                    return Err(failed(&"not a regular file"));
                }
                let mode = meta.permissions().mode() & 0o7777;
                // SAFETY: geteuid has no preconditions and cannot fail.
                let uid = unsafe { libc::geteuid() };
                if mode & 0o077 != 0 || (meta.uid() != uid && meta.uid() != 0) {
                    return Err(failed(&format_args!(
                        "others can read or write it (mode {mode:04o}, owner {}): chmod 600",
                        meta.uid()
                    )));
                }
                from(file).map_err(|e| failed(&e))?
            }
            PinSource::Fd(fd) => {
                static READ: OnceLock<Mutex<HashMap<RawFd, Pin>>> = OnceLock::new();
                let mut read = READ.get_or_init(Mutex::default).lock();
                if let Some(pin) = read.get(fd) {
                    return Ok(pin.clone());
                }
                if GIVEN.get().is_some_and(|given| given.get(fd).is_none_or(|id| identity(*fd) != Some(*id))) {
                    return Err(failed(&"this process was not given such a descriptor"));
                }
                // SAFETY: the number is checked to be open by dup, and the borrow ends with this statement.
                let owned = unsafe { BorrowedFd::borrow_raw(*fd) }.try_clone_to_owned().map_err(|e| failed(&e))?;
                let pin = from(File::from(owned)).map_err(|e| failed(&e))?;
                read.insert(*fd, pin.clone());
                pin
            }
            PinSource::Environment(name) => {
                Zeroizing::new(std::env::var(name).map_err(|e| failed(&e))?.trim_end_matches(['\r', '\n']).to_owned())
            }
        };
        if pin.is_empty() || pin.len() > PIN_BYTES_MAX {
            return Err(failed(&"it is empty or longer than 255 bytes"));
        }
        Ok(pin)
    }
}

impl std::fmt::Display for PinSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PinSource::File(path) => write!(f, "file:{}", path.display()),
            PinSource::Fd(fd) => write!(f, "fd:{fd}"),
            PinSource::Environment(name) => write!(f, "env:{name}"),
        }
    }
}

/// The first line of a file. Not more is read: of a pipe the end may never come.
fn from(mut file: File) -> io::Result<Pin> {
    // Room for all from the start: a buffer that grows would leave parts of the PIN behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(PIN_BYTES_MAX + 2));
    let mut byte = Zeroizing::new([0u8]);
    while bytes.len() < PIN_BYTES_MAX + 2 && file.read(&mut byte[..])? == 1 && byte[0] != b'\n' {
        bytes.push(byte[0]);
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| io::Error::other("it is not UTF-8"))?;
    Ok(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn sources_have_one_form_each_and_a_pin_itself_is_none() {
        assert_eq!(PinSource::parse("/a/b").unwrap(), PinSource::File("/a/b".into()));
        assert_eq!(PinSource::parse("file:/a").unwrap(), PinSource::File("/a".into()));
        assert_eq!(PinSource::parse("file:///a").unwrap(), PinSource::File("/a".into()));
        assert_eq!(PinSource::parse("fd:3").unwrap().to_string(), "fd:3");
        assert_eq!(PinSource::parse("env:P").unwrap().to_string(), "env:P");
        for bad in ["", "1234", "file:a", "fd:", "fd:-1", "fd:x", "env:", "env:A B", "|cmd"] {
            assert!(PinSource::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_pin_that_others_can_read_is_refused_and_no_error_tells_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pin");
        let source = PinSource::File(path.clone());
        assert!(source.read().is_err(), "there is none");
        for (text, mode, good) in
            [("hush-4711\n", 0o600, true), ("hush-4711\n", 0o640, false), ("", 0o600, false), ("\n", 0o600, false)]
        {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            match source.read() {
                Ok(pin) => assert!(good && *pin == "hush-4711"),
                Err(e) => assert!(!good && !e.to_string().contains("hush"), "{e}"),
            }
        }
        std::fs::write(&path, vec![b'7'; 256]).unwrap();
        assert!(source.read().is_err(), "too long");
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(source.read().is_err(), "not text");
        assert!(PinSource::File(dir.path().into()).read().is_err());
    }

    #[test]
    fn a_descriptor_is_read_once_and_remembered() {
        let (read, mut write) = io::pipe().unwrap();
        write.write_all(b"hush\n").unwrap();
        let source = PinSource::Fd(std::os::fd::AsRawFd::as_raw_fd(&read));
        assert_eq!(*source.read().unwrap(), "hush");
        drop((read, write));
        assert_eq!(*source.read().unwrap(), "hush");
        assert!(PinSource::Fd(987_654).read().is_err());
    }
}
