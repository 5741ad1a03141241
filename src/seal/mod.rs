//! Sealing and opening of chunks as jobs: plain structs with `run(self)`, run in place or by a pool of one thread a
//! core. Jobs know ciphers and the log; what their results mean is the bucket's business.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender, bounded, never, select_biased};

use crate::crypto::aead::{ChunkAad, ChunkCipher};
use crate::crypto::secret::fill_random;
use crate::log::{IndexEntry, Log, LogError};
use crate::types::{FRAME_OVERHEAD, Location, OpenId, SealId, Sequence};

/// Jobs waiting at most, of each kind.
const QUEUE_MAX: usize = 512;

/// One chunk to seal. The content is shared with readers, who see it until it is in the map.
pub struct SealPiece {
    pub cipher: Arc<ChunkCipher>,
    pub seal: SealId,
    pub object: u64,
    /// Offset of the chunk in the file, bytes.
    pub offset: u64,
    pub content: Arc<Vec<u8>>,
    /// Which bytes of `content` are the chunk.
    pub from: usize,
    pub n: usize,
    pub open_id: OpenId,
    pub seq: Sequence,
}

/// Seals pieces one behind the other into one slot of the log (together at most its SLOT_BYTES_MAX).
pub struct SealJob {
    pub log: Arc<Log>,
    pub pieces: Vec<SealPiece>,
    /// Told where each piece went.
    pub done: Box<dyn FnOnce(Result<Vec<Location>, LogError>) + Send>,
}

/// A nonce: 96 random bits, with the clock mixed in so that a resumed copy of a machine whose random numbers repeat
/// still does not repeat its nonces. Mixing keeps them uniform.
fn nonce() -> Result<[u8; 12], LogError> {
    let mut n = [0u8; 12];
    fill_random(&mut n).map_err(|e| LogError::Random(e.to_string()))?;
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
    for (a, b) in n.iter_mut().zip(clock.to_le_bytes()) {
        *a ^= b;
    }
    Ok(n)
}

impl SealJob {
    pub fn run(self) {
        let SealJob { log, pieces, done } = self;
        done(Self::seal(&log, &pieces));
    }

    fn seal(log: &Log, pieces: &[SealPiece]) -> Result<Vec<Location>, LogError> {
        let total = pieces.iter().map(|p| p.n + FRAME_OVERHEAD).sum();
        let mut nonces = Vec::with_capacity(pieces.len());
        for _ in pieces {
            nonces.push(nonce()?);
        }
        let mut slot = log.reserve(total, pieces.len())?;
        let base = slot.location();
        let mut rest = slot.bytes_mut();
        let mut at = base;
        let (mut places, mut entries) = (Vec::with_capacity(pieces.len()), Vec::with_capacity(pieces.len()));
        for (p, nonce) in pieces.iter().zip(nonces) {
            let (frame, tail) = rest.split_at_mut(p.n + FRAME_OVERHEAD);
            rest = tail;
            let aad = ChunkAad::new(&p.seal, p.offset, p.n as u32, &p.open_id, p.seq.counter);
            p.cipher.seal(&aad, nonce, &p.content[p.from..p.from + p.n], frame);
            entries.push(IndexEntry {
                seal: p.seal,
                object: p.object,
                offset: p.offset,
                n: p.n as u32,
                open: 0,
                counter: p.seq.counter,
                position: at.position,
            });
            places.push(at);
            at.position += (p.n + FRAME_OVERHEAD) as u32;
        }
        log.finish(slot, &entries);
        Ok(places)
    }
}

/// One chunk to read and open; its bytes [skip, skip + len) are wanted at `to` of the job's output.
pub struct OpenPiece {
    pub cipher: Arc<ChunkCipher>,
    pub aad: ChunkAad,
    pub at: Location,
    pub n: usize,
    pub skip: usize,
    pub len: usize,
    pub to: usize,
    pub offset: u64,
}

/// Why a piece could not be had: which file bytes.
#[derive(Debug)]
pub struct OpenError {
    pub offset: u64,
    pub n: usize,
    pub why: &'static str,
    pub log: Option<LogError>,
}

/// Most bytes read from a segment at once.
const READ_BYTES_MAX: usize = 1 << 20;

/// Read and open `pieces` into `out`, neighbours in the log with one read.
pub fn open_into(log: &Log, pieces: &[OpenPiece], out: &mut [u8], scratch: &mut Vec<u8>) -> Result<(), OpenError> {
    let mut content = Vec::new();
    let mut i = 0;
    while i < pieces.len() {
        let first = pieces[i].at;
        let (mut end, mut bytes) = (i, 0usize);
        while end < pieces.len()
            && pieces[end].at.segment == first.segment
            && pieces[end].at.position as u64 == first.position as u64 + bytes as u64
            && bytes + pieces[end].n + FRAME_OVERHEAD <= READ_BYTES_MAX
        {
            bytes += pieces[end].n + FRAME_OVERHEAD;
            end += 1;
        }
        let failed = |p: &OpenPiece, why, log| OpenError { offset: p.offset, n: p.n, why, log };
        scratch.resize(bytes, 0);
        // A run may straddle flushes still in memory: then read its chunks one by one.
        if end - i == 1 {
            log.read(first, scratch).map_err(|e| unreadable(&pieces[i], e))?;
        } else if log.read(first, scratch).is_err() {
            let mut at = 0;
            for p in &pieces[i..end] {
                log.read(p.at, &mut scratch[at..at + p.n + FRAME_OVERHEAD]).map_err(|e| unreadable(p, e))?;
                at += p.n + FRAME_OVERHEAD;
            }
        }
        let mut at = 0;
        for p in &pieces[i..end] {
            let frame = &scratch[at..at + p.n + FRAME_OVERHEAD];
            at += frame.len();
            if p.skip == 0 && p.len == p.n {
                p.cipher
                    .open(&p.aad, frame, &mut out[p.to..p.to + p.n])
                    .map_err(|_| failed(p, "its tag does not verify", None))?;
            } else {
                content.resize(p.n, 0);
                p.cipher.open(&p.aad, frame, &mut content).map_err(|_| failed(p, "its tag does not verify", None))?;
                out[p.to..p.to + p.len].copy_from_slice(&content[p.skip..p.skip + p.len]);
            }
        }
        i = end;
    }
    Ok(())
}

fn unreadable(p: &OpenPiece, e: LogError) -> OpenError {
    let gone = match &e {
        LogError::Missing(_) => Some("its segment is missing"),
        LogError::Io { source, .. } if source.kind() == std::io::ErrorKind::UnexpectedEof => {
            Some("its segment is cut short")
        }
        _ => None,
    };
    OpenError { offset: p.offset, n: p.n, why: gone.unwrap_or("it cannot be read"), log: gone.is_none().then_some(e) }
}

/// Opens pieces on the pool into a buffer of its own.
pub struct OpenJob {
    pub log: Arc<Log>,
    pub pieces: Vec<OpenPiece>,
    /// Bytes of output; pieces' `to` count from its start.
    pub bytes: usize,
    pub done: Sender<Result<Vec<u8>, OpenError>>,
}

impl OpenJob {
    pub fn run(self) {
        let mut out = vec![0u8; self.bytes];
        let r = open_into(&self.log, &self.pieces, &mut out, &mut Vec::new());
        let _ = self.done.send(r.map(|()| out));
    }
}

/// One thread a core. Opens go before seals: somebody waits for them.
pub struct Pool {
    seals: Option<Sender<SealJob>>,
    opens: Option<Sender<OpenJob>>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    pub fn start(threads: usize) -> std::io::Result<Pool> {
        let (seals, seals_rx) = bounded::<SealJob>(QUEUE_MAX);
        let (opens, opens_rx) = bounded::<OpenJob>(QUEUE_MAX);
        let mut pool = Pool { seals: Some(seals), opens: Some(opens), threads: Vec::new() };
        for i in 0..threads.max(1) {
            let (s, o) = (seals_rx.clone(), opens_rx.clone());
            pool.threads.push(std::thread::Builder::new().name(format!("ssefs-seal-{i}")).spawn(move || work(&s, &o))?);
        }
        Ok(pool)
    }

    /// Waits while the queue is full: hold no lock that a job's `done` takes.
    pub fn seal(&self, job: SealJob) {
        match &self.seals {
            Some(tx) => {
                if let Err(e) = tx.send(job) {
                    e.into_inner().run();
                }
            }
            None => job.run(),
        }
    }

    /// Runs the job here when the queue is full.
    pub fn open(&self, job: OpenJob) {
        match &self.opens {
            Some(tx) => {
                if let Err(e) = tx.try_send(job) {
                    e.into_inner().run();
                }
            }
            None => job.run(),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.seals = None;
        self.opens = None;
        for t in self.threads.drain(..) {
            let _ = t.join();
        }
    }
}

fn work(seals: &Receiver<SealJob>, opens: &Receiver<OpenJob>) {
    let (mut seals, mut opens) = (seals.clone(), opens.clone());
    let (mut more_seals, mut more_opens) = (true, true);
    while more_seals || more_opens {
        select_biased! {
            recv(opens) -> job => match job {
                Ok(job) => job.run(),
                Err(_) => { more_opens = false; opens = never(); }
            },
            recv(seals) -> job => match job {
                Ok(job) => job.run(),
                Err(_) => { more_seals = false; seals = never(); }
            },
        }
    }
}
