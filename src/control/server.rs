//! The serving side: a thread that accepts, a thread for each client, all of them bounded in number, time and bytes.
//! A client that stalls or lies costs the mount one of `CLIENTS_MAX` slots for `REQUEST_TIMEOUT` and nothing else.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{Answer, CLIENTS_MAX, MountIdentity, REQUEST_BYTES_MAX, Request};
use crate::ops::{Command, ErrorCode, OpError, Progress};

/// A client must have asked within this time, and must take each line of the answer within it.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Progress lines go out no more often than this.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Runs one command for the calling user: in a mount, `ops::run` on its bucket.
pub type Handler = dyn Fn(u32, &Command, &dyn Progress) -> Result<Value, OpError> + Send + Sync;

/// A bound socket that does not serve yet. Dropping it removes the socket file.
pub struct Bound {
    listener: UnixListener,
    path: PathBuf,
}

/// Binds this process's socket in `dir`. A file left there under the same name belongs to a dead process whose id we
/// got, and is replaced.
pub fn bind(dir: &Path) -> io::Result<Bound> {
    let path = dir.join(format!("{}.sock", std::process::id()));
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(Bound { listener, path })
}

impl Bound {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

struct Shared {
    identity: MountIdentity,
    owner_uid: u32,
    handler: Box<Handler>,
    clients: AtomicUsize,
    stopping: AtomicBool,
    parked: Mutex<Vec<UnixStream>>,
}

/// A serving control socket.
pub struct Server {
    bound: Bound,
    shared: Arc<Shared>,
    acceptor: thread::JoinHandle<()>,
}

impl Server {
    /// Begins to serve. Only `owner_uid` and root are answered.
    pub fn start(bound: Bound, identity: MountIdentity, owner_uid: u32, handler: Box<Handler>) -> io::Result<Server> {
        let shared = Arc::new(Shared {
            identity: MountIdentity { socket: bound.path.clone(), ..identity },
            owner_uid,
            handler,
            clients: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            parked: Mutex::new(Vec::new()),
        });
        let listener = bound.listener.try_clone()?;
        let acceptor = thread::Builder::new().name("control".into()).spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        })?;
        Ok(Server { bound, shared, acceptor })
    }

    /// No new requests from here on; waits a bounded time for those that run, so that none of them meets a closed
    /// bucket. Clients that await the end stay.
    pub fn quiesce(&self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        let until = Instant::now() + Duration::from_secs(30);
        while self.shared.clients.load(Ordering::SeqCst) > 0 && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends: tells everybody who waits for it how closing the bucket went, and removes the socket.
    pub fn finish(self, closed: &Result<(), OpError>) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        let answer = match closed {
            Ok(()) => Answer::Done(Value::Null),
            Err(e) => Answer::Failed(e.clone()),
        };
        for mut client in std::mem::take(&mut *self.shared.parked.lock()) {
            let _ = send(&mut client, &answer);
        }
        // shutdown(2) on a listening socket wakes accept(2), which a connection to ourselves could not always do.
        // SAFETY: the descriptor is open, the listener owns it.
        unsafe { libc::shutdown(self.bound.listener.as_raw_fd(), libc::SHUT_RDWR) };
        let _ = self.acceptor.join();
    }
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>) {
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EBADF)) => return,
            Err(_) => {
                // Out of descriptors or memory: those who are connected may finish and free some.
                thread::sleep(Duration::from_millis(50));
                continue;
            }
        };
        let refuse = |mut stream: UnixStream, why: &str| {
            let _ = stream.set_write_timeout(Some(Duration::from_millis(100)));
            let _ = send(&mut stream, &Answer::Failed(OpError::new(ErrorCode::Busy, why)));
        };
        if shared.stopping.load(Ordering::SeqCst) {
            refuse(stream, "the mount is ending");
            continue;
        }
        if shared.clients.fetch_add(1, Ordering::SeqCst) >= CLIENTS_MAX {
            shared.clients.fetch_sub(1, Ordering::SeqCst);
            refuse(stream, "the mount is answering too many requests: try again");
            continue;
        }
        let slot = Slot(Arc::clone(shared));
        // When no thread can be made the closure is dropped, and with it the slot and the connection.
        let _ = thread::Builder::new().name("control client".into()).spawn(move || {
            let slot = slot;
            serve(stream, &slot.0);
        });
    }
}

/// One of the `CLIENTS_MAX` places; free again when dropped, also when the handler panics.
struct Slot(Arc<Shared>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.clients.fetch_sub(1, Ordering::SeqCst);
    }
}

fn serve(mut stream: UnixStream, shared: &Shared) {
    let answer = match read_request(&stream, shared) {
        Ok((_, Request::Who)) => Answer::Done(json!(shared.identity)),
        Ok((_, Request::AwaitClosed)) => {
            let mut parked = shared.parked.lock();
            if shared.stopping.load(Ordering::SeqCst) {
                Answer::Failed(OpError::new(ErrorCode::Busy, "the mount is ending"))
            } else if parked.len() < CLIENTS_MAX {
                // Said only once it is certain that the last word will reach this client.
                let waiting = Answer::Stage { what: "waiting for the mount to end".into(), total: None };
                if send(&mut stream, &waiting).is_ok() {
                    parked.push(stream);
                }
                return;
            } else {
                Answer::Failed(OpError::new(ErrorCode::Busy, "too many wait for the end of this mount"))
            }
        }
        Ok((uid, Request::Run(command))) => {
            let lines = Lines::new(&stream, &shared.stopping);
            match (shared.handler)(uid, &command, &lines) {
                Ok(value) => Answer::Done(value),
                Err(e) => Answer::Failed(e),
            }
        }
        Err(e) => Answer::Failed(e),
    };
    let _ = send(&mut stream, &answer);
}

/// Reads the one line of a request and who sends it.
fn read_request(stream: &UnixStream, shared: &Shared) -> Result<(u32, Request), OpError> {
    let lost = |e: io::Error| OpError::io("read the request", &e);
    stream.set_write_timeout(Some(REQUEST_TIMEOUT)).map_err(lost)?;
    let uid = super::client::peer(stream).map_err(lost)?.uid;
    if uid != 0 && uid != shared.owner_uid {
        return Err(OpError::new(
            ErrorCode::Permission,
            format!("only root and user {}, who mounted the bucket, may ask this mount", shared.owner_uid),
        ));
    }
    let mut line = Vec::new();
    let deadline = Instant::now() + REQUEST_TIMEOUT;
    let mut reader = BufReader::new(Deadline { stream, deadline }.take(REQUEST_BYTES_MAX));
    reader.read_until(b'\n', &mut line).map_err(lost)?;
    if line.last() != Some(&b'\n') {
        let why = if line.len() as u64 >= REQUEST_BYTES_MAX { "too long" } else { "cut short" };
        return Err(OpError::usage(format!("the request is {why}")));
    }
    let request = serde_json::from_slice(&line).map_err(|e| {
        OpError::usage(format!("this mount does not understand the request: {e}"))
            .hint("the mount runs another version of ssefs: unmount and mount again")
    })?;
    Ok((uid, request))
}

/// Reading with one deadline for the whole line, so that a byte a second does not hold a slot for ever.
struct Deadline<'a> {
    stream: &'a UnixStream,
    deadline: Instant,
}

impl Read for Deadline<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        (&mut &*self.stream).read(buf)
    }
}

fn send(mut to: impl Write, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    to.write_all(&line)
}

/// Progress as lines to the client; a client that went away cancels the operation, and so does the end of the mount.
struct Lines<'a> {
    stream: &'a UnixStream,
    /// The mount is ending.
    stopping: &'a AtomicBool,
    gone: AtomicBool,
    unsent: AtomicU64,
    last: Mutex<Instant>,
}

impl<'a> Lines<'a> {
    fn new(stream: &'a UnixStream, stopping: &'a AtomicBool) -> Lines<'a> {
        Lines { stream, stopping, gone: false.into(), unsent: 0.into(), last: Mutex::new(Instant::now()) }
    }

    fn line(&self, answer: &Answer) {
        if send(self.stream, answer).is_err() {
            self.gone.store(true, Ordering::Relaxed);
        }
    }
}

impl Progress for Lines<'_> {
    fn stage(&self, what: &str, total: Option<u64>) {
        let mut last = self.last.lock();
        self.unsent.store(0, Ordering::Relaxed);
        self.line(&Answer::Stage { what: what.into(), total });
        *last = Instant::now();
    }

    fn advance(&self, units: u64) {
        self.unsent.fetch_add(units, Ordering::Relaxed);
        let Some(mut last) = self.last.try_lock() else { return };
        if last.elapsed() >= PROGRESS_INTERVAL {
            self.line(&Answer::Advance(self.unsent.swap(0, Ordering::Relaxed)));
            *last = Instant::now();
        }
    }

    fn cancelled(&self) -> bool {
        self.gone.load(Ordering::Relaxed) || self.stopping.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests;
