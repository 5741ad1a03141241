//! Opening every chunk of a bucket, for `ssefs check --read-data`: on all cores, under one snapshot and pin after the
//! other, so that neither the catalog's -wal file nor the log has to keep old content for as long as it takes.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::inspect::Inspection;
use super::leaf::LEAF_BYTES;
use super::map::MapError;
use super::{Bucket, BucketError};
use crate::catalog::{InodeRow, Reader};
use crate::crypto::aead::ChunkAad;
use crate::seal::{OpenError, OpenPiece, open_into};

/// How long one snapshot is read from.
const RENEW: Duration = Duration::from_secs(20);
/// Content handed to a worker at once, about, in bytes.
const WORK_BYTES: usize = 1 << 20;
const INODES_AT_ONCE: usize = 256;

/// A chunk that does not open.
pub(crate) struct BadChunk {
    pub ino: u64,
    pub from: u64,
    pub to: u64,
    pub segment: u32,
    pub why: String,
}

/// Who wants to know; called from all threads.
pub(crate) struct Watch<'a> {
    pub bad: &'a (dyn Fn(BadChunk) + Sync),
    /// So many bytes of content more are done.
    pub advance: &'a (dyn Fn(u64) + Sync),
    pub stop: &'a (dyn Fn() -> bool + Sync),
}

/// What has been handed out: inodes up to `after`, and `leaf` leaves of the next.
#[derive(Default)]
struct Cursor {
    after: u64,
    leaf: u64,
}

#[derive(Default)]
struct Work {
    of: Vec<u64>,
    pieces: Vec<OpenPiece>,
    bytes: usize,
}

struct SnapshotNodes<'a>(&'a Reader);

impl super::map::NodeSource for SnapshotNodes<'_> {
    fn node(&self, id: u64) -> Result<Option<Vec<u8>>, BucketError> {
        Ok(self.0.node(id)?)
    }
}

impl Work {
    fn run(self, bucket: &Bucket, watch: &Watch, out: &mut Vec<u8>, scratch: &mut Vec<u8>) {
        out.resize(self.bytes, 0);
        if open_into(&bucket.log, &self.pieces, out, scratch).is_err() {
            for (ino, piece) in self.of.iter().zip(&self.pieces) {
                if let Err(e) = open_into(&bucket.log, std::slice::from_ref(piece), out, scratch) {
                    (watch.bad)(bad_chunk(*ino, piece, &e));
                }
            }
        }
        (watch.advance)(self.bytes as u64);
    }
}

fn bad_chunk(ino: u64, piece: &OpenPiece, e: &OpenError) -> BadChunk {
    let why = e.log.as_ref().map_or_else(|| e.why.to_owned(), |l| format!("{}: {l}", e.why));
    BadChunk { ino, from: e.offset, to: e.offset + e.n as u64, segment: piece.at.segment, why }
}

impl Bucket {
    /// Open every chunk whose map verifies; the others are the structure check's to tell.
    pub(crate) fn read_everything(&self, watch: &Watch) -> Result<(), BucketError> {
        let threads = std::thread::available_parallelism().map_or(2, Into::into);
        let mut cursor = Cursor::default();
        loop {
            let view = self.inspect()?;
            let (tx, rx) = bounded::<Work>(2 * threads);
            // The scope ends before the view does: nothing is read that is not pinned.
            let whole = std::thread::scope(|s| {
                for _ in 0..threads {
                    let rx: Receiver<Work> = rx.clone();
                    s.spawn(move || {
                        let (mut out, mut scratch) = (Vec::new(), Vec::new());
                        for work in rx {
                            if !(watch.stop)() {
                                work.run(self, watch, &mut out, &mut scratch);
                            }
                        }
                    });
                }
                drop(rx);
                self.hand_out(&view, &mut cursor, watch, &tx, Instant::now() + RENEW).inspect(|_| drop(tx))
            })?;
            if whole {
                return Ok(());
            }
        }
    }

    /// Hand out work until `until`; true when there is no more.
    fn hand_out(
        &self,
        view: &Inspection,
        cursor: &mut Cursor,
        watch: &Watch,
        to: &Sender<Work>,
        until: Instant,
    ) -> Result<bool, BucketError> {
        let mut work = Work::default();
        let send = |work: &mut Work| {
            if !work.pieces.is_empty() {
                let _ = to.send(std::mem::take(work));
            }
        };
        loop {
            let page = view.rows().inodes_after(cursor.after, INODES_AT_ONCE)?;
            if page.is_empty() {
                send(&mut work);
                return Ok(true);
            }
            for row in page {
                if row.mode & libc::S_IFMT == libc::S_IFREG && row.size > 0 {
                    let whole = self.object_work(view, &row, cursor, watch, until, &mut work, &send)?;
                    if (watch.stop)() {
                        return Ok(true);
                    }
                    if !whole {
                        send(&mut work);
                        return Ok(false);
                    }
                }
                *cursor = Cursor { after: row.ino, leaf: 0 };
            }
            if Instant::now() > until {
                send(&mut work);
                return Ok(false);
            }
        }
    }

    /// The chunks of one object from the cursor's leaf on. False when time ran out.
    #[allow(clippy::too_many_arguments)]
    fn object_work(
        &self,
        view: &Inspection,
        row: &InodeRow,
        cursor: &mut Cursor,
        watch: &Watch,
        until: Instant,
        work: &mut Work,
        send: &dyn Fn(&mut Work),
    ) -> Result<bool, BucketError> {
        let Some(seal_row) = view.rows().seal(row.ino)? else { return Ok(true) };
        let Ok(request) = view.request(row.ino)? else { return Ok(true) };
        let (seal, mut map) =
            match self.open_seal(&seal_row, row.size, request.as_ref(), self.lent_key(&seal_row).as_deref()) {
                Ok(opened) => opened,
                Err(e @ (BucketError::Catalog(_) | BucketError::Failed(_))) => return Err(e),
                Err(_) => return Ok(true),
            };
        let opens = self.opens();
        let (secrets, nodes) = (seal.secrets(&opens), SnapshotNodes(view.rows()));
        loop {
            let next = match map.next_leaf(&secrets, &nodes, cursor.leaf) {
                Ok(Some(next)) => next,
                Ok(None) => return Ok(true),
                Err(MapError::Damaged { to, .. }) => {
                    cursor.leaf = (to / LEAF_BYTES).max(cursor.leaf + 1);
                    continue;
                }
                Err(MapError::Source(e)) => return Err(e),
            };
            cursor.leaf = next + 1;
            match map.load_leaf(&secrets, &nodes, next) {
                Ok(()) => {}
                Err(MapError::Damaged { .. }) => continue,
                Err(MapError::Source(e)) => return Err(e),
            }
            let mut last = None;
            for e in map.leaf(next).map_or(&[][..], |l| l.entries()) {
                // Parts of one chunk: the chunk is opened once.
                if last == Some(e.at) {
                    continue;
                }
                last = Some(e.at);
                let Some(open_id) = opens.get(e.seq.open_no as usize) else { continue };
                let offset = next * LEAF_BYTES + e.chunk_start as u64;
                work.of.push(row.ino);
                work.pieces.push(OpenPiece {
                    cipher: seal.cipher(&self.key, open_id, e.seq.counter),
                    aad: ChunkAad::new(&seal.id, offset, e.chunk_len, open_id, e.seq.counter),
                    at: e.at,
                    n: e.chunk_len as usize,
                    skip: 0,
                    len: e.chunk_len as usize,
                    to: work.bytes,
                    offset,
                });
                work.bytes += e.chunk_len as usize;
            }
            if work.bytes >= WORK_BYTES {
                send(work);
                if (watch.stop)() {
                    return Ok(true);
                }
                if Instant::now() > until {
                    return Ok(false);
                }
            }
        }
    }
}
