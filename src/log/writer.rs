//! Appending: slots in the open buffer, buffers to disk by one writer thread, and the sync that a commit needs.
//! A thread holds at most one slot at a time, so that a full queue can always drain.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::{Condvar, Mutex, RwLock};

use super::buffer::{Aligned, LogBuffer};
use super::record::{self, INDEX_ENTRY_BYTES, INDEX_FIXED_BYTES, IndexEntry, OPENS_MAX};
use super::segment::{FOOTER_BYTES, Footer, HEADER_BYTES, SegmentHeader, flush_end, frames_check};
use super::{LogError, SEGMENT_BYTES, SegmentFiles};
use crate::crypto::secret::MacKey;
use crate::types::{BucketId, Location, OpenId};

/// A buffer is written once it holds this many bytes of frames.
const BUFFER_BYTES: usize = 1 << 20;
/// The largest slot that can be asked for, bytes.
pub const SLOT_BYTES_MAX: usize = 320 * 1024;
/// Bytes of records a buffer takes before it is written.
const RECORD_BYTES_MAX: usize = 384 * 1024;
/// Bytes of a buffer's memory: frames, records, footer and padding.
const CAPACITY: usize = BUFFER_BYTES + SLOT_BYTES_MAX + RECORD_BYTES_MAX + INDEX_FIXED_BYTES + 2 * 4096;
/// An open id in an INDEX record.
const OPEN_BYTES: usize = 16;
/// Memory of this many buffers is kept for new ones.
const SPARE_MAX: usize = 4;
/// Zeroes written ahead of a run of small flushes, bytes. A sync after writing where blocks already lie needs no commit of
/// the disk's own journal, which makes it half as long.
const AHEAD_BYTES: usize = 512 * 1024;
/// Closed buffers on their way to disk at most; beyond it, slots wait.
const QUEUE_MAX: usize = 24;

/// Whose log it is.
pub struct LogIdentity {
    pub bucket: BucketId,
    pub open_id: OpenId,
    /// The catalog's commit number at opening.
    pub commit: u64,
    pub key: MacKey,
}

struct Active {
    file: Arc<File>,
    buffer: Arc<LogBuffer>,
    /// Bytes of frames handed out in the buffer, and bytes of records it will have.
    frames: usize,
    entries: usize,
    records: usize,
    /// Openings that its INDEX record names beside the log's own.
    opens: usize,
}

impl Active {
    /// Bytes that the INDEX record will have.
    fn index_bytes(&self) -> usize {
        if self.entries == 0 {
            return 0;
        }
        INDEX_FIXED_BYTES + self.opens * OPEN_BYTES + self.entries * INDEX_ENTRY_BYTES
    }
}

#[derive(Default)]
struct Flight {
    /// Buffers closed and not yet on disk.
    buffers: usize,
    /// Files written to since they were last synced.
    unsynced: BTreeMap<u32, Arc<File>>,
    new_names: bool,
    error: Option<String>,
}

struct Inner {
    files: SegmentFiles,
    identity: LogIdentity,
    active: Mutex<Option<Active>>,
    next_id: AtomicU32,
    /// Buffers that readers may find frames in: the open one and those not yet on disk.
    readable: RwLock<Vec<Arc<LogBuffer>>>,
    flight: Mutex<Flight>,
    landed: Condvar,
    /// Memory of buffers that are on disk, for new ones.
    spare: Mutex<Vec<Aligned>>,
    /// Bytes of each segment of this opening, as closed so far.
    lengths: Mutex<BTreeMap<u32, u64>>,
    /// The segment that has zeroes ahead, and how far.
    ahead: Mutex<(u32, u64)>,
}

struct Closed {
    buffer: Arc<LogBuffer>,
    file: Arc<File>,
    frames: usize,
}

/// The log of an open bucket.
pub struct Log {
    inner: Arc<Inner>,
    to_disk: Option<Sender<Closed>>,
    writer: Option<JoinHandle<()>>,
    closing: Mutex<BTreeMap<usize, Closed>>,
}

/// What is to follow a sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    Anything,
    /// More syncs of little, soon.
    Small,
    /// Another segment. Only after a commit: what intents hang on is looked for in one segment after the other, each of which
    /// ends at its full length.
    NewSegment,
}

/// Room for frames in the log, to seal into. Finish it, or the bucket cannot commit.
pub struct Slot {
    buffer: Arc<LogBuffer>,
    at: usize,
    bytes: usize,
}

impl Slot {
    pub fn location(&self) -> Location {
        Location { segment: self.buffer.segment, position: self.buffer.start + self.at as u32 }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: this range was handed out to this slot alone, and &mut self makes the borrow exclusive.
        unsafe { self.buffer.slot(self.at, self.bytes) }
    }
}

impl Log {
    /// Begin appending with segment ids from `first_id` on. Nothing is written until something is appended.
    pub fn start(files: SegmentFiles, identity: LogIdentity, first_id: u32) -> Log {
        let (to_disk, from_log) = bounded::<Closed>(QUEUE_MAX + 2);
        let inner = Arc::new(Inner {
            files,
            identity,
            active: Mutex::new(None),
            next_id: AtomicU32::new(first_id),
            readable: RwLock::new(Vec::new()),
            flight: Mutex::new(Flight::default()),
            landed: Condvar::new(),
            spare: Mutex::default(),
            lengths: Mutex::new(BTreeMap::new()),
            ahead: Mutex::default(),
        });
        let for_writer = inner.clone();
        let writer =
            std::thread::Builder::new().name("ssefs-log".into()).spawn(move || write_out(&for_writer, &from_log)).ok();
        Log { inner, to_disk: Some(to_disk), writer, closing: Mutex::new(BTreeMap::new()) }
    }

    pub fn files(&self) -> &SegmentFiles {
        &self.inner.files
    }

    /// The id after the highest ever used.
    pub fn next_id(&self) -> u32 {
        self.inner.next_id.load(Ordering::Acquire)
    }

    /// The segment being appended to, or the one that will be: those below it are closed. Read as one: a segment that was
    /// opened between two questions would be taken for closed, and being empty, be removed.
    pub fn open_segment(&self) -> u32 {
        self.end().segment
    }

    /// Lengths of the segments of this opening, as far as buffers have been closed.
    pub fn lengths(&self) -> BTreeMap<u32, u64> {
        self.inner.lengths.lock().clone()
    }

    /// Bytes at most that are handed out and not on disk yet.
    pub fn unwritten_bytes(&self) -> u64 {
        self.inner.readable.read().len() as u64 * (BUFFER_BYTES + SLOT_BYTES_MAX) as u64
    }

    /// Segments below `id` are closed and their lengths known to the catalog.
    pub fn forget_lengths(&self, id: u32) {
        self.inner.lengths.lock().retain(|k, _| *k >= id);
    }

    fn failed(&self) -> Result<(), LogError> {
        match &self.inner.flight.lock().error {
            Some(e) => Err(LogError::Failed(e.clone())),
            None => Ok(()),
        }
    }

    /// Room for `bytes` of frames (at most [`SLOT_BYTES_MAX`]) holding `chunks` chunks. Waits while too much is on its way to disk.
    pub fn reserve(&self, bytes: usize, chunks: usize) -> Result<Slot, LogError> {
        Ok(self.reserve_for(bytes, chunks, &[])?.0)
    }

    /// The same for frames of other openings, each chunk's given; returns what each chunk's [`IndexEntry::open`] is to be.
    pub fn reserve_moved(&self, bytes: usize, opens: &[OpenId]) -> Result<(Slot, Vec<u32>), LogError> {
        self.reserve_for(bytes, opens.len(), opens)
    }

    fn reserve_for(&self, bytes: usize, chunks: usize, opens: &[OpenId]) -> Result<(Slot, Vec<u32>), LogError> {
        assert!(bytes <= SLOT_BYTES_MAX);
        {
            let mut flight = self.inner.flight.lock();
            while flight.buffers > QUEUE_MAX && flight.error.is_none() {
                self.inner.landed.wait(&mut flight);
            }
        }
        self.failed()?;
        let mut active = self.inner.active.lock();
        let full = |a: &Active| {
            a.frames >= BUFFER_BYTES
                || a.records + (a.entries + chunks) * INDEX_ENTRY_BYTES + (a.opens + opens.len()) * OPEN_BYTES
                    > RECORD_BYTES_MAX
                || (!opens.is_empty() && 1 + a.opens + opens.len() > OPENS_MAX)
        };
        if active.as_ref().is_some_and(full) {
            self.send(self.close_buffer(&mut active));
        }
        let a = self.open_buffer(&mut active)?;
        let at = a.buffer.add_slot(bytes);
        a.frames += bytes;
        a.entries += chunks;
        let mut named = Vec::with_capacity(opens.len());
        if !opens.is_empty() {
            let mut g = a.buffer.gathered.lock();
            for o in opens {
                let known = g.opens.iter().position(|x| x == o);
                named.push(known.unwrap_or(g.opens.len()) as u32);
                if known.is_none() {
                    g.opens.push(*o);
                }
            }
            a.opens = g.opens.len() - 1;
        }
        Ok((Slot { buffer: a.buffer.clone(), at, bytes }, named))
    }

    /// The frames are sealed: `entries` describe them. Readers may be told of the location from now on.
    pub fn finish(&self, slot: Slot, entries: &[IndexEntry]) {
        slot.buffer.gathered.lock().entries.extend_from_slice(entries);
        self.send(self.release(&slot.buffer));
    }

    /// Append a packed record to the open flush.
    pub fn append_record(&self, packed: &[u8]) -> Result<(), LogError> {
        self.failed()?;
        let mut active = self.inner.active.lock();
        if active.as_ref().is_some_and(|a| a.records + packed.len() + a.index_bytes() > RECORD_BYTES_MAX) {
            self.send(self.close_buffer(&mut active));
        }
        let a = self.open_buffer(&mut active)?;
        a.records += packed.len();
        let mut g = a.buffer.gathered.lock();
        g.records.extend_from_slice(packed);
        g.record_count += 1;
        Ok(())
    }

    fn open_buffer<'a>(&self, active: &'a mut Option<Active>) -> Result<&'a mut Active, LogError> {
        if active.is_none() {
            let inner = &self.inner;
            // The id counts as used only when the segment is there: what follows a commit is looked for without gaps.
            let id = inner.next_id.load(Ordering::Acquire);
            let file = Arc::new(inner.files.create(id)?);
            let mut header = aligned_block();
            let SegmentHeaderParts { bytes } = &mut *header;
            SegmentHeader {
                segment: id,
                bucket: inner.identity.bucket,
                open_id: inner.identity.open_id,
                commit: inner.identity.commit,
            }
            .pack(&inner.identity.key, &mut bytes[..]);
            if let Err(e) = file.write_all_at(&bytes[..], 0) {
                if let Err(left) = inner.files.remove(id) {
                    inner.flight.lock().error.get_or_insert(left.to_string());
                }
                return Err(inner.files.io(id, e));
            }
            inner.next_id.store(id + 1, Ordering::Release);
            {
                let mut flight = inner.flight.lock();
                flight.new_names = true;
                flight.unsynced.insert(id, file.clone());
            }
            inner.lengths.lock().insert(id, HEADER_BYTES as u64);
            *active = Some(self.fresh(file, id, HEADER_BYTES as u32));
        }
        match active {
            Some(a) => Ok(a),
            None => Err(LogError::Failed("no active segment".into())),
        }
    }

    fn fresh(&self, file: Arc<File>, segment: u32, start: u32) -> Active {
        let memory = self.inner.spare.lock().pop().unwrap_or_else(|| Aligned::new(CAPACITY));
        let buffer = Arc::new(LogBuffer::new(segment, start, memory, self.inner.identity.open_id));
        self.inner.readable.write().push(buffer.clone());
        Active { file, buffer, frames: 0, entries: 0, records: 0, opens: 0 }
    }

    /// Close the open buffer: its end is now known, so the next one can begin while slots are still being filled. Returns it
    /// when nothing is missing in it, for the caller to have it written.
    #[must_use]
    fn close_buffer(&self, active: &mut Option<Active>) -> Option<Closed> {
        let a = active.take()?;
        let (id, start) = (a.buffer.segment, a.buffer.start);
        if a.frames == 0 && a.records == 0 {
            *active = Some(a);
            return None;
        }
        let end = flush_end(start as u64 + (a.frames + a.index_bytes() + a.records) as u64);
        self.inner.lengths.lock().insert(id, end);
        self.inner.flight.lock().buffers += 1;
        let next = (end < SEGMENT_BYTES).then(|| self.fresh(a.file.clone(), id, end as u32));
        let buffer = a.buffer.clone();
        self.closing
            .lock()
            .insert(Arc::as_ptr(&buffer) as usize, Closed { buffer: a.buffer, file: a.file, frames: a.frames });
        *active = next;
        self.release(&buffer)
    }

    /// The buffer, for the one who finishes last.
    fn release(&self, buffer: &Arc<LogBuffer>) -> Option<Closed> {
        let last = buffer.release();
        if last { self.closing.lock().remove(&(Arc::as_ptr(buffer) as usize)) } else { None }
    }

    fn send(&self, closed: Option<Closed>) {
        if let (Some(c), Some(tx)) = (closed, &self.to_disk) {
            // The queue is as long as buffers in flight can be, so this does not wait for long.
            let _ = tx.send(c);
        }
    }

    /// Whether nothing is on its way to the disk.
    pub fn is_settled(&self) -> bool {
        self.inner.flight.lock().buffers == 0
    }

    /// Write zeroes where the next flushes will be. The caller holds `active`, so nobody closes one of them meanwhile. A disk
    /// that has no room, or fails, is left for the flush itself to find.
    fn write_ahead(&self, active: &Active) {
        let (segment, end) = (active.buffer.segment, u64::from(active.buffer.start));
        let mut ahead = self.inner.ahead.lock();
        if ahead.0 != segment {
            *ahead = (segment, 0);
        }
        let bytes = (AHEAD_BYTES as u64).min(SEGMENT_BYTES.saturating_sub(end));
        if ahead.1 > end || bytes == 0 {
            return;
        }
        let mut zeroes = Aligned::zeroed(bytes as usize);
        // SAFETY: made zeroed.
        let written = active.file.write_all_at(unsafe { zeroes.bytes_mut() }, end);
        if let Err(e) = written {
            log::debug!("segment {segment:08x}: no room written ahead: {e}");
        }
        // If it failed, it is not tried again for as long as it would have lasted.
        ahead.1 = end + bytes;
    }

    /// Cut off zeroes that were written ahead and not needed.
    pub fn trim(&self) {
        if let Some(a) = &*self.inner.active.lock() {
            self.trim_behind(a);
        }
    }

    /// The caller holds `active`. Buffers on their way to the disk end where the open one begins, so none is cut.
    fn trim_behind(&self, active: &Active) {
        let mut ahead = self.inner.ahead.lock();
        let (segment, end) = (active.buffer.segment, u64::from(active.buffer.start));
        if ahead.0 != segment || ahead.1 <= end {
            return;
        }
        if let Err(e) = active.file.set_len(end) {
            log::debug!("segment {segment:08x}: what was written ahead stays: {e}");
        }
        ahead.1 = 0;
    }

    /// Make everything appended so far durable. Returns a position up to which the log is durable now.
    pub fn sync(&self, next: Next) -> Result<Location, LogError> {
        self.sync_and(next, || ())
    }

    /// The same; `then` is called once it is settled what becomes durable, before anything is waited for.
    pub fn sync_and(&self, next: Next, then: impl FnOnce()) -> Result<Location, LogError> {
        let (closed, end) = {
            let mut active = self.inner.active.lock();
            let closed = self.close_buffer(&mut active);
            match (next, &*active) {
                (Next::Small, Some(a)) => self.write_ahead(a),
                (Next::NewSegment, Some(a)) => {
                    self.trim_behind(a);
                    // Nothing was handed out of it: closing leaves an empty buffer behind.
                    self.inner.readable.write().retain(|b| !Arc::ptr_eq(b, &a.buffer));
                    *active = None;
                }
                _ => {}
            }
            (closed, self.end_of(&active))
        };
        then();
        match closed {
            // Nothing else is on its way: written here, it saves two wake-ups.
            Some(c) if self.inner.flight.lock().buffers == 1 => land(&self.inner, c),
            closed => self.send(closed),
        }
        let (files, new_names) = {
            let mut flight = self.inner.flight.lock();
            while flight.buffers > 0 && flight.error.is_none() {
                self.inner.landed.wait(&mut flight);
            }
            if let Some(e) = &flight.error {
                return Err(LogError::Failed(e.clone()));
            }
            (std::mem::take(&mut flight.unsynced), std::mem::take(&mut flight.new_names))
        };
        for (id, file) in files {
            // SAFETY: plain fdatasync of a descriptor we own.
            if unsafe { libc::fdatasync(file.as_raw_fd()) } != 0 {
                let e = std::io::Error::last_os_error();
                self.inner.flight.lock().error = Some(format!("sync of segment {id:08x}: {e}"));
                return Err(self.inner.files.io(id, e));
            }
        }
        if new_names {
            self.inner.files.sync_dir().inspect_err(|e| {
                self.inner.flight.lock().error = Some(e.to_string());
            })?;
        }
        Ok(end)
    }

    /// Where the next flush will begin.
    pub fn end(&self) -> Location {
        self.end_of(&self.inner.active.lock())
    }

    fn end_of(&self, active: &Option<Active>) -> Location {
        match active {
            Some(a) => Location { segment: a.buffer.segment, position: a.buffer.start },
            None => Location { segment: self.next_id(), position: HEADER_BYTES as u32 },
        }
    }

    /// The bytes at a location: from a buffer still in memory, or from the disk.
    pub fn read(&self, at: Location, out: &mut [u8]) -> Result<(), LogError> {
        {
            let readable = self.inner.readable.read();
            for b in readable.iter() {
                if b.segment == at.segment && at.position >= b.start {
                    let from = (at.position - b.start) as usize;
                    if from + out.len() <= b.frames() {
                        // SAFETY: locations are told only after their slot was finished.
                        out.copy_from_slice(unsafe { b.finished(from, out.len()) });
                        return Ok(());
                    }
                }
            }
        }
        self.inner.files.read_exact(at.segment, at.position as u64, out)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.to_disk = None;
        if let Some(w) = self.writer.take() {
            let _ = w.join();
        }
    }
}

#[repr(C, align(4096))]
struct SegmentHeaderParts {
    bytes: [u8; HEADER_BYTES],
}

fn aligned_block() -> Box<SegmentHeaderParts> {
    Box::new(SegmentHeaderParts { bytes: [0; HEADER_BYTES] })
}

/// The writer thread: records and footer, one aligned write, tell who waits.
fn write_out(inner: &Inner, from_log: &Receiver<Closed>) {
    for c in from_log {
        land(inner, c);
    }
}

/// Write a buffer, and tell who waits for it.
fn land(inner: &Inner, c: Closed) {
    let r = write_one(inner, &c);
    inner.readable.write().retain(|b| !Arc::ptr_eq(b, &c.buffer));
    let Closed { buffer, file, .. } = c;
    {
        let mut flight = inner.flight.lock();
        flight.buffers -= 1;
        flight.unsynced.insert(buffer.segment, file);
        if let Err(e) = r {
            log::error!("log: {e}");
            flight.error.get_or_insert(e.to_string());
        }
        inner.landed.notify_all();
    }
    if let Some(buffer) = Arc::into_inner(buffer) {
        let mut spare = inner.spare.lock();
        if spare.len() < SPARE_MAX {
            spare.push(buffer.into_memory());
        }
    }
}

fn write_one(inner: &Inner, c: &Closed) -> Result<(), LogError> {
    let b = &c.buffer;
    let mut g = b.gathered.lock();
    let index = INDEX_FIXED_BYTES + g.opens.len() * OPEN_BYTES + g.entries.len() * INDEX_ENTRY_BYTES;
    let mut records = Vec::with_capacity(index + g.records.len());
    let mut count = g.record_count;
    if !g.entries.is_empty() {
        g.entries.sort_unstable_by_key(|e| e.position);
        record::pack_index(&mut records, &g.opens, &g.entries);
        count += 1;
    }
    records.extend_from_slice(&g.records);
    drop(g);
    let records_at = c.frames;
    let end = flush_end(b.start as u64 + (records_at + records.len()) as u64);
    let bytes = (end - b.start as u64) as usize;
    // SAFETY: every slot is finished, so this thread alone touches the tail; readers look only at frames.
    let tail = unsafe { b.slot(records_at, bytes - records_at) };
    tail[..records.len()].copy_from_slice(&records);
    let foot = tail.len() - FOOTER_BYTES;
    tail[records.len()..foot].fill(0);
    Footer {
        start: b.start,
        records_at: b.start + records_at as u32,
        records_bytes: records.len() as u32,
        records: count,
        // SAFETY: every slot is finished.
        check: frames_check(unsafe { b.finished(0, records_at) }),
    }
    .pack(&inner.identity.key, &inner.identity.open_id, b.segment, &records, &mut tail[foot..]);
    // SAFETY: no writer is left.
    let all = unsafe { b.finished(0, bytes) };
    c.file.write_all_at(all, b.start as u64).map_err(|e| inner.files.io(b.segment, e))
}
