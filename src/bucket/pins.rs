//! Epoch pins: a reader that holds locations of chunks keeps the log from giving them away.

use std::collections::BTreeMap;

use parking_lot::Mutex;

#[derive(Default)]
pub struct Pins {
    held: Mutex<BTreeMap<u64, u32>>,
}

/// Dropped when the reader is done.
pub struct Pin<'a> {
    pins: &'a Pins,
    epoch: u64,
}

impl Pins {
    /// Pin `epoch`: the one now open for changes, read before the map is looked at.
    pub fn pin(&self, epoch: u64) -> Pin<'_> {
        *self.held.lock().entry(epoch).or_insert(0) += 1;
        Pin { pins: self, epoch }
    }

    /// What a commit of `epoch` dropped may go when no pin at or below it is left.
    pub fn oldest(&self) -> u64 {
        self.held.lock().keys().next().copied().unwrap_or(u64::MAX)
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        let mut held = self.pins.held.lock();
        if let Some(n) = held.get_mut(&self.epoch) {
            *n -= 1;
            if *n == 0 {
                held.remove(&self.epoch);
            }
        }
    }
}
