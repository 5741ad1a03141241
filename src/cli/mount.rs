//! `ssefs mount`: checks the mountpoint, goes into the background, opens the bucket, mounts it, serves its control
//! socket, and closes everything in the right order when the mount ends, whichever way it ends.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::args::{self, MountArgs, NewBucket, RootArgs};
use super::bucket::in_use;
use super::daemon::{self, Side};
use super::options::{self, Options};
use super::place::{OpenStore, Place, absolute, bucket_exists, effective_uid, no_such_bucket};
use super::{logging, mountpoint, print};
use crate::bucket::{Bucket, CreateOptions, OpenOptions};
use crate::control::{self, MountIdentity, Server};
use crate::crypto::arena;
use crate::fuse::{self, mount_table};
use crate::keys::Timer;
use crate::ops::{self, ErrorCode, OpError};
use crate::rule::Dialect;

/// How long a mount told to end waits for open files before it ends all the same.
const END_GRACE: Duration = Duration::from_secs(10);

/// Everything decided before the fork.
struct Plan {
    place: Place,
    bucket: crate::types::BucketName,
    mountpoint: PathBuf,
    create: bool,
    new: NewBucket,
    options: Options,
}

impl Plan {
    /// False for a look at a bucket whose keyring is away.
    fn needs_root(&self) -> bool {
        !self.options.read_only || self.create || self.place.has_keyring()
    }
}

/// Mounts; returns when the mount is live, or in the foreground when it has ended.
pub fn run(place: &args::Place, args: MountArgs, sloppy: bool) -> Result<(), OpError> {
    let options = options::parse(&args.options, sloppy)?;
    let foreground = args.foreground || options.foreground;
    let place = args::Place {
        store: place.store.clone().or_else(|| options.store.clone()),
        config: place.config.clone().or_else(|| options.config.clone()),
        root: if place.root == RootArgs::default() { options.root.clone() } else { place.root.clone() },
    };
    let dialect = match (args.new.dialect, &options.dialect) {
        (None, Some(name)) => Some(name.parse::<Dialect>().map_err(|e| OpError::usage(e.to_string()))?),
        (asked, _) => asked,
    };
    let new = NewBucket {
        require_encryption: args.new.require_encryption,
        rule: args.new.rule.or_else(|| options.rule.clone()),
        dialect,
        chunk_size: args.new.chunk_size.or(options.chunk_size),
    };
    let create = args.create || options.create;
    if !create && (new.rule.is_some() || new.dialect.is_some() || new.chunk_size.is_some()) {
        return Err(OpError::usage("--rule, --dialect and --chunk-size are for a bucket that is made: add --create")
            .hint(format!("to change the rule of a bucket: ssefs encryption put {} RULE", args.bucket)));
    }
    if options.kernel_flags & !(libc::MS_NOSUID | libc::MS_NODEV) != 0 && effective_uid() != 0 {
        return Err(OpError::new(ErrorCode::Permission, "noexec, noatime and nodiratime need root")
            .hint("nosuid and nodev are always on for other users"));
    }
    let mut options = options;
    if let Some(file) = &mut options.customer_key_file {
        *file = absolute(file)?;
    }
    let log = args.log.or_else(|| options.log.clone()).map(|file| absolute(&file)).transpose()?;
    let log = log.as_deref().map(logging::open).transpose()?;
    let plan = Plan {
        place: Place::resolve(&place)?,
        mountpoint: mountpoint::prepare(&args.mountpoint, options.nonempty)?,
        bucket: args.bucket,
        create,
        new,
        options,
    };

    // Before the fork: whoever is to be asked is still there, and a program that is run meets no thread of ours.
    harden();
    if plan.needs_root() {
        plan.place.load_root()?;
    }
    if foreground {
        if let Some(log) = log {
            logging::switch(log);
        }
        return serve(&plan, || Ok(()));
    }
    match daemon::fork_off(|| plan.place.forget_root())? {
        Side::Parent(begun) => begun,
        Side::Child(report) => {
            arena::lock_after_fork();
            let mut report = Some(report);
            let ended = serve(&plan, || {
                let Some(report) = report.take() else { return Ok(()) };
                logging::switch(log.unwrap_or(logging::Target::Syslog));
                report.live()
            });
            if let (Err(e), Some(report)) = (&ended, report) {
                report.failed(e);
                // The parent prints it; here it would be printed twice.
                std::process::exit(e.code.exit_status().into());
            }
            ended
        }
    }
}

/// Holds the mount from beginning to end; `live` is called once it answers.
fn serve(plan: &Plan, live: impl FnOnce() -> Result<(), OpError>) -> Result<(), OpError> {
    if !plan.needs_root() {
        return serve_unverified(plan, live);
    }
    let store = if plan.create { plan.place.open_or_create()? } else { plan.place.open()? };
    // The keyring has it now, and follows when it is changed.
    plan.place.forget_root();
    if let Some(holder) = Bucket::who_has(&store.path, &plan.bucket) {
        return Err(in_use(&plan.bucket, &holder));
    }
    if !bucket_exists(&store.path, &plan.bucket) {
        if !plan.create {
            let hint = format!("add --create to make it (ssefs mount {} DIR --create --rule AES256)", plan.bucket);
            return Err(no_such_bucket(&store.path, &plan.bucket).hint(hint));
        }
        create_bucket(&store, plan)?;
    } else if plan.new.rule.is_some() || plan.new.dialect.is_some() || plan.new.chunk_size.is_some() {
        print::note(&format!("bucket {} exists: its rule, dialect and chunk size stay as they are", plan.bucket));
    }

    let socket = control::socket_dir().and_then(|dir| control::bind(&dir));
    let socket = socket.map_err(|e| OpError::io("make the control socket", &e))?;
    let defaults = OpenOptions::default();
    let open = OpenOptions {
        read_only: plan.options.read_only,
        commit_interval: plan.options.commit_interval.unwrap_or(defaults.commit_interval),
        key_check: plan.options.key_check.unwrap_or(defaults.key_check),
        key_grace: plan.options.key_grace.unwrap_or(defaults.key_grace),
        service_check: plan.options.service_check.unwrap_or(defaults.service_check),
        mountpoint: Some(plan.mountpoint.clone()),
        socket: Some(socket.path().to_owned()),
    };
    // Before the mount: a signal from here on ends it properly instead of killing us.
    let signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(|e| OpError::io("watch for signals", &e))?;
    // Keys are destroyed and rotated in time as long as anything is mounted.
    let _timer = Timer::start(Arc::clone(&store.keys)).map_err(|e| OpError::io("start a thread", &e))?;
    let bucket = Bucket::open(&store.path, store.id, &plan.bucket, &store.keys, &open)?;
    let unlocked = match &plan.options.customer_key_file {
        Some(file) => super::customer::read_file(file).and_then(|key| Ok(bucket.unlock_mount(effective_uid(), key)?)),
        None => Ok(()),
    };
    let ended = unlocked.and_then(|()| mounted(plan, &store.path, &bucket, socket, signals, live));
    // Closed by `mounted` when it got that far; closing twice is no error.
    let closed = bucket.close().map_err(OpError::from);
    ended.and(closed)
}

/// Read-only without the keyring: names and attributes, unverified (SEMANTICS 15).
fn serve_unverified(plan: &Plan, live: impl FnOnce() -> Result<(), OpError>) -> Result<(), OpError> {
    let store = plan.place.store_dir()?;
    if plan.options.customer_key_file.is_some() {
        return Err(OpError::usage("mount option \"customer_key_file\" opens nothing without the keyring"));
    }
    if let Some(holder) = Bucket::who_has(store, &plan.bucket) {
        return Err(in_use(&plan.bucket, &holder));
    }
    print::note("the keyring is not there: names and attributes can be read, unverified; content cannot");
    let socket = control::socket_dir().and_then(|dir| control::bind(&dir));
    let socket = socket.map_err(|e| OpError::io("make the control socket", &e))?;
    let open = OpenOptions {
        read_only: true,
        mountpoint: Some(plan.mountpoint.clone()),
        socket: Some(socket.path().to_owned()),
        ..OpenOptions::default()
    };
    let signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(|e| OpError::io("watch for signals", &e))?;
    let bucket = Bucket::open_unverified(store, &plan.bucket, &open)?;
    let ended = mounted(plan, store, &bucket, socket, signals, live);
    let closed = bucket.close().map_err(OpError::from);
    ended.and(closed)
}

fn mounted(
    plan: &Plan,
    store: &Path,
    bucket: &Arc<Bucket>,
    socket: control::Bound,
    signals: Signals,
    live: impl FnOnce() -> Result<(), OpError>,
) -> Result<(), OpError> {
    let options = fuse::MountOptions {
        read_only: plan.options.read_only,
        allow_other: plan.options.allow_other,
        list_sse: plan.options.list_sse,
        direct_rdwr: plan.options.direct_rdwr,
        fs_name: plan.bucket.to_string(),
        threads: plan.options.threads.unwrap_or_else(|| fuse::MountOptions::default().threads),
    };
    // `mount -o remount,ro` tells the kernel and nobody else.
    if let Ok(at) = plan.mountpoint.canonicalize() {
        bucket.tidy_only_while(
            move || !matches!(mount_table::mount_at(&at), Ok(Some(m)) if m.is_fuse() && m.is_read_only()),
        );
    }
    let mount = fuse::mount(Arc::clone(bucket), &plan.mountpoint, &options)
        .map_err(|e| mount_failed(&plan.mountpoint, plan.options.allow_other, &e))?;
    let unmounter = mount.unmounter();
    let begun = kernel_flags(&plan.mountpoint, plan.options.kernel_flags)
        .and_then(|()| start_server(plan, store, bucket, socket))
        .and_then(|server| live().map(|()| server));
    let server = match begun {
        Ok(server) => server,
        Err(e) => {
            let _ = unmounter.unmount();
            return Err(e);
        }
    };
    log::info!("bucket {} is mounted at {}", plan.bucket, plan.mountpoint.display());
    let keys = arena::report();
    if keys.unlocked_bytes > 0 {
        log::warn!(
            "{} of {} bytes with keys could not be locked in memory and may be swapped out: raise the limit (ulimit -l)",
            keys.unlocked_bytes,
            keys.bytes
        );
    }

    let handle = signals.handle();
    let watcher = std::thread::Builder::new()
        .name("signals".into())
        .spawn({
            let (bucket, name, mountpoint) = (Arc::clone(bucket), plan.bucket.clone(), plan.mountpoint.clone());
            move || end_on_signal(signals, &bucket, name.as_str(), &unmounter, &mountpoint)
        })
        .map_err(|e| OpError::io("start a thread", &e))?;
    let waited = mount.wait().map_err(|e| OpError::io("serve the mount", &e));
    handle.close();
    drop(watcher);
    server.quiesce();
    let closed = bucket.close().map_err(OpError::from);
    match &closed {
        Ok(()) => log::info!("bucket {} is unmounted and closed", plan.bucket),
        Err(e) => log::error!("bucket {} could not be closed properly: {e}", plan.bucket),
    }
    server.finish(&closed);
    waited.and(closed)
}

fn start_server(plan: &Plan, store: &Path, bucket: &Arc<Bucket>, socket: control::Bound) -> Result<Server, OpError> {
    let identity = MountIdentity {
        pid: std::process::id(),
        bucket: plan.bucket.to_string(),
        store: store.to_owned(),
        mountpoint: plan.mountpoint.clone(),
        socket: PathBuf::new(),
    };
    let bucket = Arc::clone(bucket);
    let handler: Box<control::Handler> =
        Box::new(move |uid, command, progress| ops::run(&bucket, uid, command, progress));
    Server::start(socket, identity, effective_uid(), handler).map_err(|e| OpError::io("serve the control socket", &e))
}

/// Makes the bucket of this plan, owned by this user.
fn create_bucket(store: &OpenStore, plan: &Plan) -> Result<(), OpError> {
    Bucket::create(&store.path, store.id, &plan.bucket, &store.keys, &create_options(&plan.new)?)?;
    print::note(&match &plan.new.rule {
        Some(rule) => format!("made bucket {} with rule {rule}", plan.bucket),
        None => format!("made bucket {} without a rule: what is written there is not encrypted", plan.bucket),
    });
    Ok(())
}

/// What a new bucket of this user gets; a bad rule is refused before anything is made.
pub fn create_options(new: &NewBucket) -> Result<CreateOptions, OpError> {
    let dialect = new.dialect.unwrap_or_default();
    let rule = new.rule.as_deref().map(|text| ops::parse_rule(text, dialect, false)).transpose()?;
    Ok(CreateOptions {
        dialect,
        rule,
        owner_uid: effective_uid(),
        chunk_bytes: new.chunk_bytes(),
        require_encryption: new.require_encryption,
    })
}

/// Ends the mount on the first signal, and the process if open files keep the mount alive too long.
fn end_on_signal(
    mut signals: Signals,
    bucket: &Bucket,
    bucket_name: &str,
    unmounter: &fuse::Unmounter,
    mountpoint: &Path,
) {
    let Some(signal) = signals.forever().next() else { return };
    log::info!("signal {signal}: committing and unmounting {}", mountpoint.display());
    if let Err(e) = bucket.commit() {
        log::error!("the commit before unmounting failed: {e}");
    }
    if let Err(e) = unmounter.unmount() {
        log::warn!("unmounting {}: {e}", mountpoint.display());
    }
    // Whatever the unmounter answered: what is in use is still there, and is detached so that nobody else comes in.
    let still = mount_table::mount_at(mountpoint).ok().flatten();
    if still.is_some_and(|m| m.is_fuse() && m.source == bucket_name) {
        log::warn!("{} is in use: detaching it", mountpoint.display());
        if let Err(e) = mountpoint::unmount(mountpoint, true) {
            log::error!("{e}");
        }
    }
    std::thread::sleep(END_GRACE);
    // Still here: somebody holds files open. What was acknowledged is made durable, then the kernel takes the rest.
    log::warn!("files are still open; ending all the same");
    let status = match bucket.close() {
        Ok(()) => 0,
        Err(e) => {
            log::error!("the bucket could not be closed properly: {e}");
            OpError::from(e).code.exit_status()
        }
    };
    std::process::exit(status.into());
}

/// No core dumps and no debugger for a process that holds keys; as many descriptors as the system gives.
fn harden() {
    let mut files = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: files is a writable rlimit; prctl takes no memory.
    unsafe {
        libc::prctl(libc::PR_SET_DUMPABLE, 0);
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut files) == 0 {
            files.rlim_cur = files.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const files);
        }
    }
}

/// Sets `nosuid` and its like on the live mount: a bind remount changes just this mount's own flags (mount(2)).
fn kernel_flags(mountpoint: &Path, flags: libc::c_ulong) -> Result<(), OpError> {
    if flags == 0 || effective_uid() != 0 {
        return Ok(());
    }
    use std::os::unix::ffi::OsStrExt;
    let dir = std::ffi::CString::new(mountpoint.as_os_str().as_bytes())
        .map_err(|_| OpError::usage("a path cannot hold a NUL byte"))?;
    let failed = || OpError::io("set the mount's flags", &io::Error::last_os_error());
    let now = mount_table::mount_at(mountpoint)
        .and_then(|m| m.ok_or_else(|| io::ErrorKind::NotFound.into()))
        .map_err(|e| OpError::io("find the mount in the mount table", &e))?;
    // A remount sets all flags anew: those that stand must be named again.
    let names = [
        ("ro", libc::MS_RDONLY),
        ("nosuid", libc::MS_NOSUID),
        ("nodev", libc::MS_NODEV),
        ("noexec", libc::MS_NOEXEC),
        ("noatime", libc::MS_NOATIME),
        ("nodiratime", libc::MS_NODIRATIME),
    ];
    let standing = names.iter().filter(|(name, _)| now.has_option(name)).fold(0, |all, (_, flag)| all | flag);
    let flags = flags | standing | libc::MS_REMOUNT | libc::MS_BIND;
    // SAFETY: dir is NUL-terminated and outlives the call; a bind remount reads neither source, type nor data.
    if unsafe { libc::mount(std::ptr::null(), dir.as_ptr(), std::ptr::null(), flags, std::ptr::null()) } != 0 {
        return Err(failed());
    }
    Ok(())
}

fn mount_failed(mountpoint: &Path, allow_other: bool, e: &io::Error) -> OpError {
    let error = OpError::new(ErrorCode::Mount, format!("cannot mount at {}: {e}", mountpoint.display()));
    if !Path::new("/dev/fuse").exists() {
        return error
            .hint("this system has no /dev/fuse: load the module (modprobe fuse), or give the container the device");
    }
    if allow_other && effective_uid() != 0 {
        return error.hint("allow_other needs the line user_allow_other in /etc/fuse.conf");
    }
    error.hint("without root this needs the program fusermount3: install the package fuse3")
}
