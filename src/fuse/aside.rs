//! Requests that may take long, or that may have to wait for an external key service, run on threads of their own, so that
//! event threads stay free for others.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Adapter;

/// Most slow requests on threads of their own; more of them take an event thread's time.
const SLOW_MAX: usize = 64;
/// The same for requests that may have to wait for an external key service: they only wait.
pub(super) const WAITING_MAX: usize = 1024;

/// Run a handler. If it panics, its reply is dropped on the way, which fuser answers with EIO; the session goes on.
pub(super) fn guard(what: &'static str, handler: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(handler)).is_err() {
        log::error!("{what}: panicked; the request was answered with EIO. Please report this");
    }
}

impl Adapter {
    /// Run a request that may take long on a thread of its own, so that event threads stay free for others.
    pub(super) fn slowly(&self, what: &'static str, job: impl FnOnce() + Send + 'static) {
        self.aside(what, SLOW_MAX, job);
    }

    pub(super) fn aside(&self, what: &'static str, most: usize, job: impl FnOnce() + Send + 'static) {
        if self.slow.fetch_add(1, Ordering::AcqRel) >= most {
            self.slow.fetch_sub(1, Ordering::AcqRel);
            return guard(what, job);
        }
        let count = Arc::clone(&self.slow);
        let spawned = std::thread::Builder::new().name("ssefs-slow".into()).spawn(move || {
            guard(what, job);
            count.fetch_sub(1, Ordering::AcqRel);
        });
        // The job and its reply are gone then, which fuser has answered with EIO.
        if let Err(e) = spawned {
            self.slow.fetch_sub(1, Ordering::AcqRel);
            log::error!("{what}: no thread to be had: {e}");
        }
    }

    /// Run a request on a file, on a thread of its own when it may have to wait for an external key service.
    pub(super) fn perhaps_waiting(
        &self,
        what: &'static str,
        may_wait: bool,
        job: impl FnOnce(&Adapter) + Send + 'static,
    ) {
        if !may_wait {
            return guard(what, || job(self));
        }
        let adapter = self.clone();
        self.aside(what, WAITING_MAX, move || job(&adapter));
    }
}
