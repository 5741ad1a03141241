//! The socket with a handler that echoes: what a client may do to it, and what it never can.

use super::*;
use crate::control::{ask, client};
use crate::ops::{Quiet, RuleForm};

struct Recorder(Mutex<Vec<String>>);

impl Progress for Recorder {
    fn stage(&self, what: &str, total: Option<u64>) {
        self.0.lock().push(format!("{what} {total:?}"));
    }
    fn advance(&self, units: u64) {
        self.0.lock().push(units.to_string());
    }
}

fn start(dir: &Path, handler: Box<Handler>) -> (Server, PathBuf) {
    let bound = bind(dir).unwrap();
    let path = bound.path().to_owned();
    // SAFETY: geteuid has no preconditions and cannot fail.
    let uid = unsafe { libc::geteuid() };
    let identity = MountIdentity {
        pid: 0,
        bucket: "b".into(),
        store: "/s".into(),
        mountpoint: "/m".into(),
        socket: PathBuf::new(),
    };
    (Server::start(bound, identity, uid, handler).unwrap(), path)
}

fn echo() -> Box<Handler> {
    Box::new(|uid, command, progress| {
        progress.stage("counting", Some(3));
        match command {
            Command::Info => Ok(json!({ "uid": uid })),
            Command::Rewrap => {
                let until = Instant::now() + Duration::from_secs(20);
                while !progress.cancelled() && Instant::now() < until {
                    progress.advance(1);
                    thread::sleep(Duration::from_millis(10));
                }
                Ok(Value::Null)
            }
            Command::Commit => panic!("a handler that panics"),
            _ => Err(OpError::new(ErrorCode::Refused, "MalformedXML: line 1").hint("h")),
        }
    })
}

#[test]
fn a_command_is_answered_with_the_callers_uid_and_progress() {
    let dir = tempfile::tempdir().unwrap();
    let (server, socket) = start(dir.path(), echo());
    let seen = Recorder(Mutex::default());
    let value = ask(&socket, &Request::Run(Command::Info), &seen).unwrap();
    // SAFETY: geteuid has no preconditions and cannot fail.
    assert_eq!(value["uid"], unsafe { libc::geteuid() });
    assert_eq!(*seen.0.lock(), ["counting Some(3)"]);

    let refused = ask(&socket, &Request::Run(Command::RuleGet { dir: None, form: RuleForm::Xml }), &Quiet);
    assert_eq!(refused, Err(OpError::new(ErrorCode::Refused, "MalformedXML: line 1").hint("h")));

    let who: MountIdentity = serde_json::from_value(ask(&socket, &Request::Who, &Quiet).unwrap()).unwrap();
    assert_eq!((who.bucket.as_str(), who.socket), ("b", socket.clone()));
    server.finish(&Ok(()));
    assert!(!socket.exists(), "the socket goes with the server");
    assert_eq!(ask(&socket, &Request::Who, &Quiet).unwrap_err().code, ErrorCode::NotFound);
}

#[test]
fn garbage_endless_lines_and_half_requests_are_answered_and_end() {
    let dir = tempfile::tempdir().unwrap();
    let (server, socket) = start(dir.path(), echo());
    let endless = vec![b'x'; REQUEST_BYTES_MAX as usize + 10];
    for bad in [&b"hello\n"[..], b"\n", b"{\"run\":{\"do\":\"format\"}}\n", b"\xff\xfe\n", b"{\"run\":", &endless] {
        let mut stream = UnixStream::connect(&socket).unwrap();
        let _ = stream.write_all(bad);
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        assert!(line.contains(r#""code":"usage""#), "{line}");
    }
    assert!(ask(&socket, &Request::Run(Command::Info), &Quiet).is_ok(), "still serving");
    server.finish(&Ok(()));
}

#[test]
fn a_client_that_goes_away_cancels_its_operation_and_a_panic_costs_one_answer() {
    let dir = tempfile::tempdir().unwrap();
    let (server, socket) = start(dir.path(), echo());
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream.write_all(b"{\"run\":{\"do\":\"rewrap\"}}\n").unwrap();
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).unwrap();
    assert_eq!(line, "{\"stage\":{\"what\":\"counting\",\"total\":3}}\n");
    drop(stream);
    let before = Instant::now();
    server.quiesce();
    assert!(before.elapsed() < Duration::from_secs(10), "the operation noticed");
    server.shared.stopping.store(false, Ordering::SeqCst);

    let e = ask(&socket, &Request::Run(Command::Commit), &Quiet).unwrap_err();
    assert!(e.message.contains("ended before it answered"), "{e}");
    assert!(ask(&socket, &Request::Run(Command::Info), &Quiet).is_ok());
    server.finish(&Ok(()));
}

#[test]
fn whoever_awaits_the_end_learns_how_closing_went() {
    let dir = tempfile::tempdir().unwrap();
    let (server, socket) = start(dir.path(), echo());
    let waiter = thread::spawn(move || ask(&socket, &Request::AwaitClosed, &Quiet));
    while server.shared.parked.lock().is_empty() {
        thread::sleep(Duration::from_millis(1));
    }
    let failure = OpError::new(ErrorCode::Full, "the disk is full");
    server.finish(&Err(failure.clone()));
    assert_eq!(waiter.join().unwrap(), Err(failure));
}

#[test]
fn more_clients_than_slots_are_told_to_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let (server, socket) = start(dir.path(), echo());
    let idle: Vec<_> = (0..CLIENTS_MAX).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    while server.shared.clients.load(Ordering::SeqCst) < CLIENTS_MAX {
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(ask(&socket, &Request::Who, &Quiet).unwrap_err().code, ErrorCode::Busy);
    drop(idle);
    server.quiesce();
    server.shared.stopping.store(false, Ordering::SeqCst);
    assert!(ask(&socket, &Request::Who, &Quiet).is_ok());
    server.finish(&Ok(()));
}

#[test]
fn a_stale_socket_of_the_same_name_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(format!("{}.sock", std::process::id()));
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let bound = bind(dir.path()).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(client::peer(&UnixStream::connect(bound.path()).unwrap()).unwrap().pid as u32, std::process::id());
}
