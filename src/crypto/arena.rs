//! Memory for keys alone: locked, so that it is not swapped out, where the system allows it (mlock(2)), left out of core
//! dumps (MADV_DONTDUMP), and wiped when given back. A slot that could not be locked is still used; `report` says so.

use parking_lot::Mutex;
use std::ptr::NonNull;
use zeroize::Zeroize;

/// Bytes of one slot.
pub const SLOT_BYTES: usize = 32;
/// Bytes of a page, which holds a text with a secret in it.
pub const PAGE_BYTES: usize = 4096;
/// Mapped at once for slots: small, because ordinary users may lock little (RLIMIT_MEMLOCK).
const REGION_BYTES: usize = 4 * PAGE_BYTES;

static ARENA: Mutex<Arena> =
    Mutex::new(Arena { free: Vec::new(), regions: Vec::new(), pages: Vec::new(), unlocked_bytes: 0 });

struct Arena {
    free: Vec<Place>,
    regions: Vec<Region>,
    pages: Vec<Region>,
    unlocked_bytes: usize,
}

/// Where a slot is.
struct Place(NonNull<[u8; SLOT_BYTES]>);
// SAFETY: it points into a region, which belongs to no thread and is never unmapped; one slot has one owner.
unsafe impl Send for Place {}

struct Region {
    at: NonNull<u8>,
    bytes: usize,
    locked: bool,
}
// SAFETY: as for Place.
unsafe impl Send for Region {}

/// How much of the arena is kept from the swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArenaReport {
    pub bytes: usize,
    /// Of these: not locked, because the system refused.
    pub unlocked_bytes: usize,
}

/// Maps, marks and locks `bytes`.
fn map(bytes: usize) -> Region {
    // SAFETY: a new anonymous mapping touches no memory that exists.
    let at = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
    };
    let at = match NonNull::new(at.cast::<u8>()) {
        Some(at) if at.as_ptr().cast() != libc::MAP_FAILED => at,
        _ => std::alloc::handle_alloc_error(std::alloc::Layout::new::<[u8; REGION_BYTES]>()),
    };
    // SAFETY: both calls are about the mapping just made.
    let locked = unsafe {
        libc::madvise(at.as_ptr().cast(), bytes, libc::MADV_DONTDUMP);
        libc::mlock(at.as_ptr().cast(), bytes) == 0
    };
    Region { at, bytes, locked }
}

impl Arena {
    fn add(&mut self, region: &Region) {
        if !region.locked {
            self.unlocked_bytes += region.bytes;
        }
    }

    fn take(&mut self) -> Place {
        if let Some(place) = self.free.pop() {
            return place;
        }
        let region = map(REGION_BYTES);
        self.add(&region);
        for i in (0..REGION_BYTES / SLOT_BYTES).rev() {
            // SAFETY: i * SLOT_BYTES is inside the region.
            self.free.push(Place(unsafe { region.at.add(i * SLOT_BYTES) }.cast()));
        }
        self.regions.push(region);
        self.free.pop().expect("a region has slots")
    }
}

/// What there is, and how much of it is locked.
pub fn report() -> ArenaReport {
    let arena = ARENA.lock();
    let bytes = arena.regions.iter().chain(&arena.pages).map(|r| r.bytes).sum();
    ArenaReport { bytes, unlocked_bytes: arena.unlocked_bytes }
}

/// Locks it all again: a child of fork(2) has a copy of the memory and none of the locks.
pub fn lock_after_fork() {
    let mut guard = ARENA.lock();
    let Arena { regions, pages, unlocked_bytes, .. } = &mut *guard;
    *unlocked_bytes = 0;
    for region in regions.iter_mut().chain(pages) {
        // SAFETY: the mapping is ours and stays.
        region.locked = unsafe { libc::mlock(region.at.as_ptr().cast(), region.bytes) == 0 };
        if !region.locked {
            *unlocked_bytes += region.bytes;
        }
    }
}

/// 32 bytes of the arena, zero at first, wiped when dropped.
pub struct Slot(NonNull<[u8; SLOT_BYTES]>);

// SAFETY: a slot is the only owner of its bytes, as a Box is.
unsafe impl Send for Slot {}
// SAFETY: `&Slot` gives reading alone.
unsafe impl Sync for Slot {}

impl Slot {
    pub fn new() -> Slot {
        Slot(ARENA.lock().take().0)
    }

    pub fn get(&self) -> &[u8; SLOT_BYTES] {
        // SAFETY: the slot is ours until it is dropped, and its region is never unmapped.
        unsafe { self.0.as_ref() }
    }

    pub fn get_mut(&mut self) -> &mut [u8; SLOT_BYTES] {
        // SAFETY: as above, and `&mut self` is the only borrow.
        unsafe { self.0.as_mut() }
    }
}

impl Default for Slot {
    fn default() -> Slot {
        Slot::new()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.get_mut().zeroize();
        ARENA.lock().free.push(Place(self.0));
    }
}

/// A page of its own for a text with a secret in it: what a file, a terminal or a command gave. Wiped and unmapped when
/// dropped.
pub struct Page {
    at: NonNull<[u8; PAGE_BYTES]>,
}

// SAFETY: a page is the only owner of its bytes, as a Box is.
unsafe impl Send for Page {}
// SAFETY: `&Page` gives reading alone.
unsafe impl Sync for Page {}

impl Page {
    pub fn new() -> Page {
        let region = map(PAGE_BYTES);
        let at = region.at.cast();
        let mut arena = ARENA.lock();
        arena.add(&region);
        arena.pages.push(region);
        Page { at }
    }

    pub fn get(&self) -> &[u8; PAGE_BYTES] {
        // SAFETY: mapped until it is dropped.
        unsafe { self.at.as_ref() }
    }

    pub fn get_mut(&mut self) -> &mut [u8; PAGE_BYTES] {
        // SAFETY: as above, and `&mut self` is the only borrow.
        unsafe { self.at.as_mut() }
    }
}

impl Default for Page {
    fn default() -> Page {
        Page::new()
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.get_mut().zeroize();
        let mut arena = ARENA.lock();
        if let Some(i) = arena.pages.iter().position(|r| r.at == self.at.cast()) {
            let region = arena.pages.swap_remove(i);
            if !region.locked {
                arena.unlocked_bytes -= region.bytes;
            }
        }
        // SAFETY: the mapping is ours, and nothing borrows it any more; unmapping unlocks it.
        unsafe { libc::munmap(self.at.as_ptr().cast(), PAGE_BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of /proc/self/smaps about the mapping that holds `at`.
    fn smaps(at: usize) -> String {
        let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut found = String::new();
        let mut inside = false;
        for line in text.lines() {
            if let Some((from, to)) = line.split(' ').next().and_then(|w| w.split_once('-'))
                && let (Ok(from), Ok(to)) = (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16))
            {
                inside = (from..to).contains(&at);
            }
            if inside {
                found.push_str(line);
                found.push('\n');
            }
        }
        found
    }

    #[test]
    fn slots_are_locked_and_left_out_of_core_dumps() {
        let slot = Slot::new();
        let map = smaps(slot.get().as_ptr() as usize);
        let flags = map.lines().find(|l| l.starts_with("VmFlags:")).unwrap();
        assert!(flags.split(' ').any(|f| f == "dd"), "{map}");
        let locked = flags.split(' ').any(|f| f == "lo");
        assert_eq!(locked, report().unlocked_bytes == 0, "what is not locked is reported: {map}");
    }

    #[test]
    fn a_slot_is_wiped_when_dropped_and_used_again() {
        let mut slots: Vec<Slot> = (0..2000).map(|_| Slot::new()).collect();
        for (i, slot) in slots.iter_mut().enumerate() {
            assert_eq!(slot.get(), &[0; 32], "slot {i}");
            slot.get_mut().fill(0xa5);
        }
        let mut places: Vec<usize> = slots.iter().map(|s| s.get().as_ptr() as usize).collect();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), 2000, "no slot is given twice");
        drop(slots);
        let again: Vec<Slot> = (0..2000).map(|_| Slot::new()).collect();
        assert!(again.iter().all(|s| s.get() == &[0; 32]));
    }

    #[test]
    fn a_page_goes_with_its_mapping() {
        let mut page = Page::new();
        page.get_mut()[..5].copy_from_slice(b"hello");
        assert_eq!(&page.get()[..6], b"hello\0");
        let at = page.get().as_ptr() as usize;
        assert!(ARENA.lock().pages.iter().any(|r| r.at.as_ptr() as usize == at));
        drop(page);
    }

    #[test]
    fn where_nothing_may_be_locked_keys_are_held_all_the_same() {
        // In a child, so that no other test meets the limit.
        // SAFETY: the child calls only what is safe with one thread and a mutex that the parent may hold is tried, not
        // waited for.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: plain system calls; an ordinary user has no CAP_IPC_LOCK.
            let status = unsafe {
                libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const none);
                if libc::geteuid() == 0 && libc::setuid(65534) != 0 {
                    libc::_exit(3);
                }
                let region = map(REGION_BYTES);
                region.at.write(1);
                if region.locked { 1 } else { 0 }
            };
            // SAFETY: ends the child without running the test harness's own exit.
            unsafe { libc::_exit(status) };
        }
        let mut status = 0;
        // SAFETY: status is a writable int; pid is our child.
        unsafe { libc::waitpid(pid, &raw mut status, 0) };
        assert!(libc::WIFEXITED(status));
        assert_eq!(libc::WEXITSTATUS(status), 0, "mapped, usable and reported as not locked");
    }
}
