//! Closing a bucket: changes end, everything is committed, and its lock is given back.

use std::sync::atomic::Ordering;

use super::{Bucket, BucketError};

impl Bucket {
    /// Commit everything, free what nobody uses any more, and let go of the lock. Closing twice is no error, also at the same
    /// time: a mount that ends while its grace ends is closed from both sides, and whoever comes second waits.
    pub fn close(&self) -> Result<(), BucketError> {
        let mut lock = self.lock.lock();
        if lock.is_none() {
            return self.sound();
        }
        let first = self.commit();
        // From here on changes are refused; those under way end before the last commit.
        self.closing.store(true, Ordering::Release);
        self.tidy.stop();
        self.services.stop();
        self.cutoff.stop();
        self.table.forget_all();
        drop(self.gate.close_names());
        {
            let _all = self.gate.freeze();
        }
        {
            let mut ctl = self.ctl.lock();
            ctl.stop = true;
            self.ctl_changed.notify_all();
        }
        let threads = std::mem::take(&mut *self.threads.lock());
        let mut threads = threads.into_iter();
        if let Some(committer) = threads.next() {
            let _ = committer.join();
        }
        self.reclaim.stop();
        for t in threads {
            let _ = t.join();
        }
        let last = first.and_then(|()| self.sound()).and_then(|()| self.finish());
        self.wipe_keys();
        if self.keys.is_some() {
            self.space.give_back();
        }
        if let Err(e) = &last {
            self.fail(&e.to_string());
        }
        *lock = None;
        last
    }

    /// The reclaim thread may have written rows after the last commit.
    fn finish(&self) -> Result<(), BucketError> {
        if !self.chain.lock().is_empty() {
            // The next opening makes these changes again; a commit without a number of its own would be in the way.
            return Err(BucketError::Invalid("the last commit left intents behind"));
        }
        self.log.trim();
        let tx = self.catalog().lock();
        tx.commit()?;
        drop(tx);
        self.catalog().sync()?;
        Ok(self.catalog().checkpoint_all()?)
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        if self.lock.lock().is_some() && self.is_failed.load(Ordering::Acquire) {
            log::warn!("bucket {} was dropped after a failure", self.name);
        }
    }
}
