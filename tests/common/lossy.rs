//! A disk that forgets what was not synced: a FUSE mount over an in-memory model that holds back every change
//! until its file or directory is synced. Cut its power after the N-th changing call, reboot it with a choice of
//! what survives, and see what a program makes of it. Nothing here knows ssefs. The process that serves a disk must
//! not map files of it (a deadlock in munmap): programs that do, such as SQLite, run as processes of their own.
#![allow(dead_code, unused_imports)]

mod content;
mod disk;
mod faults;
mod fuse;
mod survive;

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

pub use self::disk::{Disk as Image, Names};
pub use self::faults::{Action, Call, Fault};
pub use self::survive::Survival;

/// Takes a mount away even while files are open on it, and whatever state it is in.
pub fn detach(mountpoint: &Path) {
    if let Ok(path) = CString::new(mountpoint.as_os_str().as_bytes()) {
        // SAFETY: the pointer is a valid C string for the call; a wrong path only gives an errno.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    }
}

/// A mounted lossy disk; dropping it unmounts it, also in a panic.
pub struct LossyDisk {
    disk: Arc<Mutex<disk::Disk>>,
    // Dropped in this order: the directory can only be removed when nothing is mounted in it.
    mounted: Option<Mounted>,
    dir: tempfile::TempDir,
}

struct Mounted {
    path: PathBuf,
    session: Option<fuser::BackgroundSession>,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        detach(&self.path);
        // Not joined: the session ends when the last file of a killed program is closed, which nobody waits for.
        drop(self.session.take());
        let _ = std::fs::remove_dir(&self.path);
    }
}

impl LossyDisk {
    /// An empty disk, mounted.
    pub fn new(names: Names) -> io::Result<LossyDisk> {
        LossyDisk::from_image(disk::Disk::new(names))
    }

    /// A disk that starts as a copy of `image`, mounted.
    pub fn from_image(image: Image) -> io::Result<LossyDisk> {
        let dir = tempfile::Builder::new().prefix("lossy-").tempdir()?;
        let mut disk = LossyDisk { disk: Arc::new(Mutex::new(image)), dir, mounted: None };
        disk.mount()?;
        Ok(disk)
    }

    fn mount(&mut self) -> io::Result<()> {
        self.mounted = None;
        // A fresh directory each time, so that no leftover of an earlier boot can be in the way.
        let path = self.dir.path().join(format!("boot{}", self.disk.lock().boot));
        std::fs::create_dir(&path)?;
        let mut config = fuser::Config::default();
        config.mount_options = vec![fuser::MountOption::FSName("lossy".into()), fuser::MountOption::DefaultPermissions];
        config.n_threads = Some(2);
        let session = fuser::spawn_mount(fuse::LossyFs::new(self.disk.clone()), &path, &config)?;
        self.mounted = Some(Mounted { path, session: Some(session) });
        Ok(())
    }

    /// Where it is mounted; changes with every reboot.
    pub fn path(&self) -> &Path {
        &self.mounted.as_ref().expect("a lossy disk is always mounted").path
    }

    /// Changing calls so far (write, truncate, fallocate, attributes, create, link, rename, unlink, fsync).
    pub fn steps(&self) -> u64 {
        self.disk.lock().steps
    }

    /// Cuts power inside the `n`-th changing call from now (1 is the next one): that call leaves its change
    /// behind as one nobody synced, or fully synced if it is a sync, and answers EIO like all after it.
    pub fn cut_in(&self, n: u64) {
        let mut disk = self.disk.lock();
        disk.cut_at = Some(disk.steps + n.max(1));
    }

    /// Cuts power now, between two calls.
    pub fn cut_now(&self) {
        self.disk.lock().dead = true;
    }

    /// Whether power is off.
    pub fn is_cut(&self) -> bool {
        self.disk.lock().dead
    }

    /// Arms a fault; faults stay until they have struck or the disk reboots.
    pub fn inject(&self, fault: Fault) {
        self.disk.lock().faults.push(fault);
    }

    /// Takes all faults away.
    pub fn heal(&self) {
        self.disk.lock().faults.clear();
    }

    /// A copy of the disk as it is, with its unsynced changes.
    pub fn image(&self) -> Image {
        self.disk.lock().clone()
    }

    /// Switches power off if it is still on, decides by `seed` what survives, and mounts the disk anew under
    /// another path. Files still open on the old mount answer EIO for ever.
    pub fn reboot(&mut self, survival: Survival, seed: u64) -> io::Result<()> {
        self.mounted = None;
        self.disk.lock().reboot(survival, seed);
        self.mount()
    }
}
