//! A key service that speaks the API of AWS KMS as far as ssefs does, and that does on request what moto does not: key
//! states, silence, slowness, garbage, answers cut short, another key's answers. Counts what it is asked.
#![allow(dead_code)] // each test program uses a part of it

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use base64ct::{Base64, Encoding};
use serde_json::{Value, json};

pub const REGION: &str = "eu-test-1";
pub const ARN: &str = "arn:aws:kms:eu-test-1:123456789012:key/11111111-2222-3333-4444-555555555555";
/// Credentials that it takes from the environment of the programs under test.
pub const ACCESS: &str = "AKIATESTTESTTESTTEST";
pub const SECRET: &str = "hush/hush+secretaccesskey0123456789abcdef";

/// How it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mood {
    Well,
    /// Takes the request and gives no answer until `release`.
    Held,
    /// Closes each connection without a word.
    Silent,
    /// An answer that is no HTTP.
    NoHttp,
    /// Status 200 and no JSON.
    NoJson,
    /// Promises more bytes than it sends.
    CutShort,
    /// An answer without an end.
    Endless,
    /// A secret that is not the one it gave.
    OtherSecret,
    /// A secret of a wrong length.
    ShortSecret,
    /// The right secret in the name of another key.
    OtherKey,
    /// This error, with this status.
    Error(u16, &'static str),
}

#[derive(Default)]
struct Inside {
    mood: Option<Mood>,
    /// `KeyState` as DescribeKey tells it.
    state: String,
    /// Blobs it gave, with secret and context.
    blobs: HashMap<Vec<u8>, (Vec<u8>, Value)>,
    calls: HashMap<String, u64>,
    /// Access keys that signed, in order.
    signers: Vec<String>,
    released: u64,
    /// Bodies by path, for GET and PUT: the metadata services.
    files: HashMap<String, String>,
    asked: Vec<String>,
    last: Option<Signed>,
}

/// Headers and body of a request.
#[derive(Debug, Clone)]
pub struct Signed {
    pub headers: HashMap<String, String>,
    pub body: String,
}

struct Shared {
    inside: Mutex<Inside>,
    changed: Condvar,
    /// Requests held now.
    held: AtomicU64,
    stop: AtomicBool,
}

/// The running service; gone when dropped.
pub struct Kms {
    shared: Arc<Shared>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

impl Kms {
    pub fn start() -> Kms {
        let inside = Inside { state: "Enabled".into(), ..Inside::default() };
        let shared = Arc::new(Shared {
            inside: Mutex::new(inside),
            changed: Condvar::new(),
            held: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        });
        let mut kms = Kms { shared, address: SocketAddr::from(([127, 0, 0, 1], 0)), thread: None };
        kms.up();
        kms
    }

    /// Listens, at the same port as before.
    pub fn up(&mut self) {
        assert!(self.thread.is_none());
        let listener = TcpListener::bind(self.address).expect("a port of this machine");
        self.address = listener.local_addr().unwrap();
        self.shared.stop.store(false, Ordering::SeqCst);
        let shared = Arc::clone(&self.shared);
        self.thread = Some(std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.stop.load(Ordering::SeqCst) {
                    return;
                }
                let shared = Arc::clone(&shared);
                let Ok(stream) = stream else { continue };
                std::thread::spawn(move || {
                    // A client that goes away is its own business.
                    let _ = serve(stream, &shared);
                });
            }
        }));
    }

    /// Stops listening: connections are refused.
    pub fn down(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(t) = self.thread.take() {
            t.join().unwrap();
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What `ssefs key create --provider` takes; `timeout` in seconds.
    pub fn uri(&self, timeout: u64) -> String {
        format!("aws-kms:alias/photos?region={REGION}&endpoint={}&timeout={timeout}", self.url())
    }

    pub fn mood(&self, mood: Mood) {
        self.shared.inside.lock().unwrap().mood = Some(mood);
        self.shared.changed.notify_all();
    }

    /// Enabled, Disabled, PendingDeletion, or Gone.
    pub fn state(&self, state: &str) {
        self.shared.inside.lock().unwrap().state = state.into();
    }

    /// Calls of one operation so far.
    pub fn calls(&self, operation: &str) -> u64 {
        self.shared.inside.lock().unwrap().calls.get(operation).copied().unwrap_or(0)
    }

    pub fn all_calls(&self) -> u64 {
        self.shared.inside.lock().unwrap().calls.values().sum()
    }

    /// Requests that wait for an answer.
    pub fn held(&self) -> u64 {
        self.shared.held.load(Ordering::SeqCst)
    }

    /// Answers what is held, and is well again.
    pub fn release(&self) {
        let mut inside = self.shared.inside.lock().unwrap();
        inside.mood = None;
        inside.released += 1;
        self.shared.changed.notify_all();
    }

    /// Secrets it gave, as their answers had them.
    pub fn secrets(&self) -> Vec<String> {
        self.shared.inside.lock().unwrap().blobs.values().map(|(s, _)| Base64::encode_string(s)).collect()
    }

    /// Forgets every blob that it gave: they do not open any more.
    pub fn forget_blobs(&self) {
        self.shared.inside.lock().unwrap().blobs.clear();
    }

    pub fn blobs(&self) -> usize {
        self.shared.inside.lock().unwrap().blobs.len()
    }

    pub fn signers(&self) -> Vec<String> {
        self.shared.inside.lock().unwrap().signers.clone()
    }

    /// The last request of the API as it came in.
    pub fn last_signed(&self) -> Signed {
        self.shared.inside.lock().unwrap().last.clone().expect("it was asked")
    }

    /// A body for GET and PUT of this path.
    pub fn file(&self, path: &str, body: &str) {
        self.shared.inside.lock().unwrap().files.insert(path.into(), body.into());
    }

    /// Requests other than of the API, with their headers.
    pub fn asked(&self) -> Vec<String> {
        self.shared.inside.lock().unwrap().asked.clone()
    }
}

impl Drop for Kms {
    fn drop(&mut self) {
        self.release();
        if self.thread.is_some() {
            self.down();
        }
    }
}

struct Heard {
    line: String,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

fn hear(stream: &mut TcpStream) -> std::io::Result<Option<Heard>> {
    let mut bytes = Vec::new();
    let mut part = [0u8; 4096];
    let head = loop {
        if let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break at;
        }
        match stream.read(&mut part)? {
            0 => return Ok(None),
            n => bytes.extend_from_slice(&part[..n]),
        }
    };
    let text = String::from_utf8_lossy(&bytes[..head]).into_owned();
    let mut lines = text.lines();
    let line = lines.next().unwrap_or_default().to_owned();
    let headers: HashMap<String, String> =
        lines.filter_map(|l| l.split_once(':')).map(|(n, v)| (n.to_ascii_lowercase(), v.trim().to_owned())).collect();
    let length: usize = headers.get("content-length").map_or(0, |l| l.parse().unwrap());
    let mut body = bytes[head + 4..].to_vec();
    while body.len() < length {
        match stream.read(&mut part)? {
            0 => return Ok(None),
            n => body.extend_from_slice(&part[..n]),
        }
    }
    Ok(Some(Heard { line, headers, body }))
}

fn answer(stream: &mut TcpStream, status: u16, body: &str) -> std::io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/x-amz-json-1.1\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())
}

fn serve(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(120)))?;
    while let Some(heard) = hear(&mut stream)? {
        if shared.stop.load(Ordering::SeqCst) {
            return Ok(());
        }
        let Some(operation) = heard.headers.get("x-amz-target").and_then(|t| t.strip_prefix("TrentService.")) else {
            let path = heard.line.split(' ').nth(1).unwrap_or_default().to_owned();
            let mut inside = shared.inside.lock().unwrap();
            inside.asked.push(format!("{} {:?}", heard.line, heard.headers));
            let found = inside.files.get(&path).cloned();
            drop(inside);
            match found {
                Some(body) => answer(&mut stream, 200, &body)?,
                None => answer(&mut stream, 404, "")?,
            }
            continue;
        };
        let mood = {
            let mut inside = shared.inside.lock().unwrap();
            *inside.calls.entry(operation.to_owned()).or_default() += 1;
            let signed = heard.headers.get("authorization").cloned().unwrap_or_default();
            let signer = signed.split("Credential=").nth(1).and_then(|c| c.split('/').next()).unwrap_or_default();
            inside.signers.push(signer.to_owned());
            let body = String::from_utf8_lossy(&heard.body).into_owned();
            inside.last = Some(Signed { headers: heard.headers.clone(), body });
            if inside.mood == Some(Mood::Held) {
                let before = inside.released;
                shared.held.fetch_add(1, Ordering::SeqCst);
                while inside.released == before {
                    inside = shared.changed.wait(inside).unwrap();
                }
                shared.held.fetch_sub(1, Ordering::SeqCst);
            }
            inside.mood.clone().unwrap_or(Mood::Well)
        };
        match mood {
            Mood::Well | Mood::Held | Mood::OtherSecret | Mood::ShortSecret | Mood::OtherKey => {
                let request: Value = serde_json::from_slice(&heard.body).unwrap_or(Value::Null);
                let (status, body) = act(shared, operation, &request, &mood);
                answer(&mut stream, status, &body.to_string())?;
            }
            Mood::Silent => return Ok(()),
            Mood::NoHttp => return stream.write_all(&[0xff; 400]),
            Mood::NoJson => answer(&mut stream, 200, "<html>It works!</html>")?,
            Mood::CutShort => {
                return stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{\"Plaintext\":\"AAAA");
            }
            Mood::Endless => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 900000000\r\n\r\n{\"KeyId\":\"")?;
                loop {
                    stream.write_all(&[b'x'; 65536])?;
                }
            }
            Mood::Error(status, kind) => {
                let body = json!({"__type": format!("com.amazonaws.kms#{kind}"), "message": "as the test wants it"});
                answer(&mut stream, status, &body.to_string())?;
            }
        }
    }
    Ok(())
}

fn act(shared: &Shared, operation: &str, request: &Value, mood: &Mood) -> (u16, Value) {
    let mut inside = shared.inside.lock().unwrap();
    let refuse = |kind: &str, message: &str| (400, json!({"__type": kind, "message": message}));
    let key = request["KeyId"].as_str().unwrap_or_default();
    if inside.state == "Gone" || !(key == ARN || key == "alias/photos") {
        return refuse("NotFoundException", "Key does not exist");
    }
    if operation == "DescribeKey" {
        let data = json!({"Arn": ARN, "KeyState": inside.state, "KeyUsage": "ENCRYPT_DECRYPT",
            "KeySpec": "SYMMETRIC_DEFAULT", "Origin": "AWS_KMS", "KeyManager": "CUSTOMER"});
        return (200, json!({"KeyMetadata": data}));
    }
    match inside.state.as_str() {
        "Enabled" => {}
        "PendingDeletion" => return refuse("KMSInvalidStateException", "arn is pending deletion."),
        _ => return refuse("DisabledException", "arn is disabled."),
    }
    let named = if *mood == Mood::OtherKey { ARN.replace("1111", "9999") } else { ARN.to_owned() };
    match operation {
        "GenerateDataKey" => {
            let (mut secret, mut blob) = (vec![0u8; 32], vec![0u8; 180]);
            getrandom::fill(&mut secret).unwrap();
            getrandom::fill(&mut blob).unwrap();
            inside.blobs.insert(blob.clone(), (secret.clone(), request["EncryptionContext"].clone()));
            if *mood == Mood::ShortSecret {
                secret.truncate(16);
            }
            let body = json!({"KeyId": named, "Plaintext": Base64::encode_string(&secret), "CiphertextBlob": Base64::encode_string(&blob)});
            (200, body)
        }
        "Decrypt" => {
            let blob = Base64::decode_vec(request["CiphertextBlob"].as_str().unwrap_or_default()).unwrap_or_default();
            match inside.blobs.get(&blob) {
                Some((secret, context)) if *context == request["EncryptionContext"] => {
                    let mut secret = secret.clone();
                    match mood {
                        Mood::OtherSecret => secret[0] ^= 1,
                        Mood::ShortSecret => secret.truncate(31),
                        _ => {}
                    }
                    (200, json!({"KeyId": named, "Plaintext": Base64::encode_string(&secret)}))
                }
                _ => refuse("InvalidCiphertextException", ""),
            }
        }
        _ => refuse("UnknownOperationException", ""),
    }
}
