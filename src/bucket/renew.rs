//! KEK renewal: new KEKs, and every data key wrapped anew under them, on a live bucket, resumable. Content is not touched. What is
//! done is told by the number of an object's KEK.

use std::sync::Arc;

use super::job::{Ask, JobReport, Run, busy, is_of_one_object};
use super::kek::KEK_USES_MAX;
use super::{Bucket, BucketError, ROOT};
use crate::catalog::JobRow;

const AT_ONCE: usize = 256;
/// Objects between two commits: until then they stay in memory.
const COMMIT_AFTER: u64 = 8192;

impl Bucket {
    /// Renew the bucket's KEKs. Goes on where it was stopped the last time.
    pub fn renew_keks(&self, ask: &Ask) -> Result<JobReport, BucketError> {
        self.health()?;
        let Some(_turn) = self.job.try_lock() else { return Err(busy()) };
        let job = match self.job_of("renew") {
            Some(job) => job,
            None => self.begin_renewal()?,
        };
        let mut run = Run::new(ask);
        match self.renew_all(job.clone(), &mut run) {
            Ok(()) => {
                self.end_job(job.id)?;
                run.report.finished = true;
                Ok(run.report)
            }
            Err(BucketError::Stopped) => {
                self.note_job(&mut job.clone(), &mut run, true)?;
                self.commit()?;
                Ok(run.report)
            }
            Err(e) => Err(e),
        }
    }

    /// The KEKs there are take no new data keys from here on.
    fn begin_renewal(&self) -> Result<JobRow, BucketError> {
        // Nobody is between taking a KEK and showing what it wraps: what is under an old one is seen.
        let _alone = self.sealing.write();
        let mut job = self.begin_job("renew", ROOT, String::new(), false)?;
        {
            let _permit = self.gate.names();
            job.start = self.counters.lock().next_kek;
            self.write_job(&job)?;
            let mut keks = self.keks.lock();
            for k in keks.iter_mut() {
                k.uses = KEK_USES_MAX;
                self.catalog().lock().put_kek(k)?;
            }
        }
        self.commit()?;
        Ok(job)
    }

    fn renew_all(&self, mut job: JobRow, run: &mut Run) -> Result<(), BucketError> {
        let n = self.catalog().snapshot()?.seals_of_old_keks(job.start)?;
        (run.ask.stage)("wrapping data keys", Some(n));
        // Twice: a PUT under way may have taken an old KEK just before.
        for _ in 0..2 {
            let (mut after, mut since) = (0, 0);
            (run.report.left_objects, run.report.already) = (0, 0);
            run.report.left.clear();
            loop {
                let page = self.catalog().lock().seals_of_old_keks_after(job.start, after, AT_ONCE)?;
                let Some(last) = page.last() else { break };
                after = *last;
                let objects = page.len() as u64;
                for ino in page {
                    self.health()?;
                    match self.renew_one(ino, job.start) {
                        Ok(true) => run.report.objects += 1,
                        Ok(false) => run.report.already += 1,
                        Err(BucketError::NotFound(_)) => {}
                        Err(e) if is_of_one_object(&e) => {
                            log::warn!("object {ino}: its data key is not wrapped anew: {e}");
                            run.left(self.path_of(ino)?.display().to_string(), e.to_string());
                        }
                        Err(e) => return Err(e),
                    }
                }
                since += objects;
                if since >= COMMIT_AFTER {
                    self.commit()?;
                    since = 0;
                }
                self.note_job(&mut job, run, false)?;
                if !(run.ask.advance)(objects) {
                    return Err(BucketError::Stopped);
                }
            }
            self.commit()?;
        }
        Ok(())
    }

    /// Wrap the data key of one object under a new KEK; its row is verified first, and the PUT is told to the log again.
    fn renew_one(&self, ino: u64, start: u64) -> Result<bool, BucketError> {
        let inode = self.inode(ino)?;
        self.warm(&inode)?;
        let _io = inode.io.write();
        let _sealing = self.sealing.read();
        let old = {
            let mut st = inode.state.lock();
            if st.dead {
                return Ok(false);
            }
            self.content(&mut st)?.seal.clone()
        };
        let Some(old) = old.filter(|s| !s.is_plain() && s.kek.0 > 0 && s.kek.0 < start) else { return Ok(false) };
        let new = Arc::new(self.wrap_anew(&old)?);
        self.when_quiet(&inode, |st| {
            let content = self.content(st)?;
            content.seal = Some(new);
            content.stale = true;
            content.untold = true;
            self.note_change(&inode, st);
            Ok(true)
        })
    }
}
