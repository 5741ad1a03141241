//! Mounting and unmounting. The session runs on a thread of its own; unmounting is safe from any thread, at any time, and
//! as often as anybody likes, and never touches a mount that is not ours.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use fuser::{Config, INodeNo, MountOption, Session, SessionACL};
use parking_lot::Mutex;

use super::mount_table::{MountEntry, mount_at};
use super::{Adapter, READAHEAD_BYTES};
use crate::bucket::Bucket;
use crate::fs::Fs;

/// How a bucket is mounted.
#[derive(Debug, Clone)]
pub struct MountOptions {
    pub read_only: bool,
    /// Let other users in; file permissions hold for them as everywhere. Root always does.
    pub allow_other: bool,
    /// Let listxattr(2) name the attributes of ssefs.
    pub list_sse: bool,
    /// Keep no pages for handles that read and write.
    pub direct_rdwr: bool,
    /// What the mount table shows as the source.
    pub fs_name: String,
    /// Event threads, at least 1.
    pub threads: usize,
}

impl Default for MountOptions {
    fn default() -> Self {
        // Some wait for the disk while others answer.
        let threads = std::thread::available_parallelism().map_or(4, |n| n.get().clamp(4, 16));
        MountOptions {
            read_only: false,
            allow_other: false,
            list_sse: false,
            direct_rdwr: false,
            fs_name: "ssefs".into(),
            threads,
        }
    }
}

/// A live mount. Dropping it leaves the mount in place.
#[derive(Debug)]
pub struct Mounted {
    session: JoinHandle<io::Result<()>>,
    unmounter: Unmounter,
}

/// Ends a mount.
#[derive(Debug, Clone)]
pub struct Unmounter {
    mountpoint: PathBuf,
    /// Whether our mount is still at the mount point.
    there: Arc<Mutex<bool>>,
}

/// Mount; requests are answered from when this returns.
///
/// # Errors
/// Those of opening /dev/fuse and of mount(2) or fusermount3.
pub fn mount(bucket: Arc<Bucket>, mountpoint: &Path, o: &MountOptions) -> io::Result<Mounted> {
    let mountpoint = mountpoint.canonicalize()?;
    // SAFETY: geteuid(2) takes nothing and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::DefaultPermissions,
        MountOption::FSName(o.fs_name.clone()),
        MountOption::Subtype("ssefs".into()),
        if o.read_only { MountOption::RO } else { MountOption::RW },
    ];
    if root {
        config.mount_options.extend([MountOption::Dev, MountOption::Suid]);
    }
    config.acl = if root || o.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(o.threads.max(1));
    config.clone_fd = true;

    let notifier = Arc::new(OnceLock::new());
    let cut_off = Arc::clone(&bucket);
    let adapter = Adapter {
        fs: Arc::new(Fs::new(bucket, o.list_sse)),
        notifier: Arc::clone(&notifier),
        slow: Arc::default(),
        direct_rdwr: o.direct_rdwr,
    };
    let unmounter = Unmounter { mountpoint, there: Arc::new(Mutex::new(true)) };
    let session = match if root { by_mount_2(&unmounter.mountpoint, o)? } else { None } {
        Some(device) => {
            Session::from_fd(adapter, device, config.acl, config).inspect_err(|_| drop(unmounter.unmount()))?
        }
        None => Session::new(adapter, &unmounter.mountpoint, &config)?,
    };
    let _ = notifier.set(session.notifier());
    // Called by the bucket's own thread, with no lock held: the kernel may wait for us to write pages back.
    let pages = session.notifier();
    cut_off.on_cut_off(move |ino| {
        if let Err(e) = pages.inval_inode(INodeNo(ino), 0, 0) {
            log::debug!("inode {ino}: the kernel did not forget its pages: {e}");
        }
    });
    drop(cut_off);
    let after = unmounter.clone();
    let session = std::thread::Builder::new().name("ssefs-session".into()).spawn(move || {
        let ended = session.run();
        if ended.is_err() {
            let _ = after.unmount();
        }
        *after.there.lock() = false;
        ended
    })?;
    if root {
        raise_readahead(&unmounter.mountpoint);
    }
    Ok(Mounted { session, unmounter })
}

/// What fuser does for root, with the type `fuse.ssefs` in the mount table as fusermount3 writes it: with bare `fuse`,
/// mount(8) finds neither the helper for a remount nor the buckets that `-t fuse.ssefs` means. None where root may not
/// mount: fusermount3 may.
fn by_mount_2(mountpoint: &Path, o: &MountOptions) -> io::Result<Option<OwnedFd>> {
    let device = File::options().read(true).write(true).open("/dev/fuse")?;
    let mode = std::fs::metadata(mountpoint)?.mode();
    // SAFETY: these take nothing and cannot fail.
    let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
    let data = format!(
        "fd={},rootmode={mode:o},user_id={uid},group_id={gid},default_permissions,allow_other",
        device.as_raw_fd()
    );
    let (source, target) = (CString::new(o.fs_name.as_str())?, CString::new(mountpoint.as_os_str().as_bytes())?);
    let data = CString::new(data)?;
    let flags = if o.read_only { libc::MS_RDONLY } else { 0 };
    // SAFETY: all strings are NUL-terminated and outlive the call; the kernel reads the data as one.
    let done =
        unsafe { libc::mount(source.as_ptr(), target.as_ptr(), c"fuse.ssefs".as_ptr(), flags, data.as_ptr().cast()) };
    if done == 0 {
        return Ok(Some(device.into()));
    }
    match io::Error::last_os_error() {
        e if e.raw_os_error() == Some(libc::EPERM) => Ok(None),
        e => Err(e),
    }
}

/// The kernel's default of 128 KiB keeps too few requests under way. Without it reading is slower, nothing else.
fn raise_readahead(mountpoint: &Path) {
    let Ok(Some(MountEntry { device: (major, minor), .. })) = mount_at(mountpoint) else { return };
    let setting = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(e) = std::fs::write(&setting, (READAHEAD_BYTES / 1024).to_string()) {
        log::debug!("{setting}: {e}");
    }
}

impl Mounted {
    /// Wait until it is unmounted, by whomever, and the last request has been answered.
    ///
    /// # Errors
    /// What ended the session early.
    pub fn wait(self) -> io::Result<()> {
        self.session.join().map_err(|_| io::Error::other("the FUSE session panicked"))?
    }

    pub fn unmounter(&self) -> Unmounter {
        self.unmounter.clone()
    }
}

impl Unmounter {
    /// Unmount. A mount in use goes from the name space at once and ends with its last user.
    ///
    /// # Errors
    /// Those of umount2(2) or fusermount3; the mount is in place then.
    pub fn unmount(&self) -> io::Result<()> {
        let mut there = self.there.lock();
        if !*there {
            return Ok(());
        }
        match self.now(0).or_else(|e| if in_use(&e) { self.now(libc::MNT_DETACH) } else { Err(e) }) {
            Ok(()) => {}
            // Unmounted by somebody else, only just.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => self.by_fusermount()?,
            Err(e) => return Err(e),
        }
        *there = false;
        Ok(())
    }

    fn now(&self, flags: i32) -> io::Result<()> {
        let path = CString::new(self.mountpoint.as_os_str().as_bytes())?;
        // SAFETY: path is a NUL-terminated string that lives through the call.
        match unsafe { libc::umount2(path.as_ptr(), flags | libc::UMOUNT_NOFOLLOW) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Who is not root unmounts through the set-user-ID helper that also mounted.
    fn by_fusermount(&self) -> io::Result<()> {
        let run = |lazy: bool| {
            let mut c = Command::new("fusermount3");
            c.arg("-u").args(lazy.then_some("-z")).arg("--").arg(&self.mountpoint).output()
        };
        let mut out = run(false)?;
        if !out.status.success() {
            out = run(true)?;
        }
        if out.status.success() {
            return Ok(());
        }
        Err(io::Error::other(format!("fusermount3: {}", String::from_utf8_lossy(&out.stderr).trim())))
    }
}

fn in_use(e: &io::Error) -> bool {
    e.raw_os_error() == Some(libc::EBUSY)
}
