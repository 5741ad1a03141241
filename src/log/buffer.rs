//! One flush in the making: a block-aligned buffer that many threads seal into at once, each into its own slot.
//! Every `unsafe` of the log is here, and rests on one fact: slots never overlap, and nobody writes a slot after it is finished.

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

use super::record::IndexEntry;
use crate::types::{BLOCK, OpenId};

/// Memory aligned to a block, for O_DIRECT. Not zeroed: clearing a buffer's whole capacity would cost more than a small
/// flush does, and every byte of a flush is written before it is read.
pub struct Aligned {
    ptr: NonNull<u8>,
    bytes: usize,
}

// SAFETY: plain memory, owned; access is disciplined by LogBuffer.
unsafe impl Send for Aligned {}
unsafe impl Sync for Aligned {}

impl Aligned {
    pub fn new(bytes: usize) -> Aligned {
        Self::allocate(bytes, |layout| {
            // SAFETY: the layout is not of size zero.
            unsafe { alloc(layout) }
        })
    }

    pub fn zeroed(bytes: usize) -> Aligned {
        Self::allocate(bytes, |layout| {
            // SAFETY: the layout is not of size zero.
            unsafe { alloc_zeroed(layout) }
        })
    }

    fn allocate(bytes: usize, how: impl Fn(Layout) -> *mut u8) -> Aligned {
        let size = bytes.max(1).next_multiple_of(BLOCK);
        let layout = Layout::from_size_align(size, BLOCK).unwrap_or(Layout::new::<[u8; BLOCK]>());
        match NonNull::new(how(layout)) {
            Some(ptr) => Aligned { ptr, bytes: layout.size() },
            None => handle_alloc_error(layout),
        }
    }

    pub fn len(&self) -> usize {
        self.bytes
    }

    /// All bytes of memory that was made zeroed.
    ///
    /// # Safety
    /// Made by [`Aligned::zeroed`].
    pub unsafe fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: in bounds and initialised by the caller's promise; &mut self makes the borrow exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.bytes) }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        if let Ok(layout) = Layout::from_size_align(self.bytes, BLOCK) {
            // SAFETY: allocated with the same layout.
            unsafe { dealloc(self.ptr.as_ptr(), layout) }
        }
    }
}

/// What a buffer gathers beside the frames.
#[derive(Default)]
pub struct Gathered {
    pub entries: Vec<IndexEntry>,
    /// Openings that the entries name, the log's own first. Decided when slots are handed out: the flush's length hangs on it.
    pub opens: Vec<OpenId>,
    /// Packed records other than the INDEX.
    pub records: Vec<u8>,
    pub record_count: u32,
}

/// A flush being filled. `start` is its position in the segment.
pub struct LogBuffer {
    pub segment: u32,
    pub start: u32,
    memory: Aligned,
    pub gathered: Mutex<Gathered>,
    /// Slots handed out and not finished, plus one while the buffer is open for more.
    outstanding: AtomicU32,
    /// Bytes of frames handed out.
    frames: AtomicU32,
}

impl LogBuffer {
    pub fn new(segment: u32, start: u32, memory: Aligned, own: OpenId) -> LogBuffer {
        LogBuffer {
            segment,
            start,
            memory,
            gathered: Mutex::new(Gathered { opens: vec![own], ..Gathered::default() }),
            outstanding: AtomicU32::new(1),
            frames: AtomicU32::new(0),
        }
    }

    /// The memory, for the next buffer.
    pub fn into_memory(self) -> Aligned {
        self.memory
    }

    /// Where in the buffer frames lie: [0, frames).
    pub fn frames(&self) -> usize {
        self.frames.load(Ordering::Acquire) as usize
    }

    /// Hand out the next `bytes`; returns where they begin.
    pub fn add_slot(&self, bytes: usize) -> usize {
        self.outstanding.fetch_add(1, Ordering::Relaxed);
        self.frames.fetch_add(bytes as u32, Ordering::AcqRel) as usize
    }

    /// True for the one who finishes last: the buffer is whole and may be written.
    pub fn release(&self) -> bool {
        self.outstanding.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// A slot's bytes.
    ///
    /// # Safety
    /// The range must have been handed out to the caller alone and not been finished.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slot(&self, at: usize, bytes: usize) -> &mut [u8] {
        assert!(at + bytes <= self.memory.bytes);
        // SAFETY: in bounds; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.memory.ptr.as_ptr().add(at), bytes) }
    }

    /// Bytes of finished slots, or of the whole buffer once it is closed.
    ///
    /// # Safety
    /// Nobody may be writing the range any more.
    pub unsafe fn finished(&self, at: usize, bytes: usize) -> &[u8] {
        assert!(at + bytes <= self.memory.bytes);
        // SAFETY: in bounds; no writer by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.memory.ptr.as_ptr().add(at), bytes) }
    }
}
