//! Where control sockets lie: `/run/ssefs` for root, else `$XDG_RUNTIME_DIR/ssefs`, else `/tmp/ssefs-UID`. The
//! directory must belong to us and let nobody else in; anything else there is refused, never repaired.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// `sun_path` has 108 bytes with its NUL; the longest name we add is `/4294967295.sock`.
const DIR_BYTES_MAX: usize = 108 - 1 - 16;

fn effective_uid() -> u32 {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() }
}

fn own_dir(uid: u32, xdg: Option<PathBuf>) -> PathBuf {
    if uid == 0 {
        return PathBuf::from("/run/ssefs");
    }
    match xdg.filter(|d| d.is_absolute() && d.is_dir()).map(|d| d.join("ssefs")) {
        Some(dir) if dir.as_os_str().len() <= DIR_BYTES_MAX => dir,
        _ => PathBuf::from(format!("/tmp/ssefs-{uid}")),
    }
}

/// Our own directory for control sockets, made with mode 0700 if it is not there. Sockets of processes that are gone
/// are removed from it.
pub fn socket_dir() -> io::Result<PathBuf> {
    let uid = effective_uid();
    let dir = own_dir(uid, std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from));
    prepare(&dir, uid)?;
    sweep(&dir);
    Ok(dir)
}

/// Makes `dir` or verifies it: a real directory of `uid` that nobody else can enter.
fn prepare(dir: &Path, uid: u32) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(io::Error::new(e.kind(), format!("cannot make {}: {e}", dir.display()))),
    }
    if is_private(dir, uid) {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!("{} is not a private directory (mode 0700) of user {uid}: remove it", dir.display()),
    ))
}

fn is_private(dir: &Path, uid: u32) -> bool {
    fs::symlink_metadata(dir).is_ok_and(|m| m.is_dir() && m.uid() == uid && m.mode() & 0o077 == 0)
}

/// The process whose socket this file name is.
pub(super) fn pid_of(name: &Path) -> Option<u32> {
    name.file_name()?.to_str()?.strip_suffix(".sock")?.parse().ok()
}

fn sweep(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for path in entries.filter_map(Result::ok).map(|e| e.path()) {
        if pid_of(&path).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = fs::remove_file(path);
        }
    }
}

/// Directories in which a mount's socket may lie that this user can reach: the own one, and for root everybody's.
pub fn runtime_dirs_to_search() -> Vec<PathBuf> {
    let uid = effective_uid();
    let mut dirs = vec![own_dir(uid, std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from))];
    if uid == 0 {
        for user in fs::read_dir("/run/user").into_iter().flatten().filter_map(Result::ok) {
            dirs.push(user.path().join("ssefs"));
        }
        for entry in fs::read_dir("/tmp").into_iter().flatten().filter_map(Result::ok) {
            let owner = entry.file_name().to_str().and_then(|n| n.strip_prefix("ssefs-")?.parse::<u32>().ok());
            // Anybody may make a name in /tmp: it counts only where it is what its name says.
            if owner.is_some_and(|uid| is_private(&entry.path(), uid)) {
                dirs.push(entry.path());
            }
        }
    } else {
        // A mount made without XDG_RUNTIME_DIR, seen from a session that has one.
        let tmp = PathBuf::from(format!("/tmp/ssefs-{uid}"));
        if is_private(&tmp, uid) && !dirs.contains(&tmp) {
            dirs.push(tmp);
        }
    }
    dirs
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_directory_others_can_enter_or_a_link_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let uid = effective_uid();
        let dir = tmp.path().join("ssefs");
        prepare(&dir, uid).unwrap();
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
        prepare(&dir, uid).unwrap();
        assert!(prepare(&dir, uid + 1).is_err(), "another user's");
        let link = tmp.path().join("link");
        symlink(&dir, &link).unwrap();
        assert!(prepare(&link, uid).is_err(), "a link");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        let e = prepare(&dir, uid).unwrap_err();
        assert!(e.to_string().contains("0700"), "{e}");
    }

    #[test]
    fn a_runtime_directory_too_deep_for_a_socket_is_not_used() {
        let tmp = tempfile::tempdir().unwrap();
        assert_eq!(own_dir(7, Some(tmp.path().to_owned())), tmp.path().join("ssefs"));
        let deep = tmp.path().join("x".repeat(100));
        fs::create_dir(&deep).unwrap();
        assert_eq!(own_dir(7, Some(deep)), Path::new("/tmp/ssefs-7"));
        assert_eq!(own_dir(7, None), Path::new("/tmp/ssefs-7"));
        assert_eq!(own_dir(0, Some(tmp.path().to_owned())), Path::new("/run/ssefs"));
    }

    #[test]
    fn sockets_of_dead_processes_are_swept_and_nothing_else() {
        let tmp = tempfile::tempdir().unwrap();
        let alive = format!("{}.sock", std::process::id());
        for name in ["4294967295.sock", &alive, "notes.sock", "1.txt"] {
            fs::write(tmp.path().join(name), "").unwrap();
        }
        sweep(tmp.path());
        let mut left: Vec<_> = fs::read_dir(tmp.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        let mut want = [std::ffi::OsString::from("1.txt"), alive.into(), "notes.sock".into()];
        want.sort();
        assert_eq!(left, want);
    }
}
