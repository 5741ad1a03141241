//! The commit: everything acknowledged so far becomes durable as one state, while writing goes on. ARCHITECTURE.md,
//! Commit, says why each step is where it is; gate.rs has the lock order.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::inode::{Batch, Inode};
use super::put::{Seal, cipher_code, method_code, place_tag};
use super::rows::{Gathered, Rows};
use super::settings;
use super::write::Jobs;
use super::{Bucket, BucketError, Done, Waiter};
use crate::catalog::{InodeRow, SealRow};
use crate::log::{Next, PutRecord};

/// Sealed bytes above which they are made durable before the epoch is frozen, so that the freeze has less to wait for.
const EARLY_SYNC_BYTES: usize = 8 << 20;
/// Free pages of the catalog given back in one commit at most.
const PAGES_AT_ONCE: u32 = 4096;
/// Up to this many dirty bytes are sealed by the committer itself.
const HERE_BYTES_MAX: usize = 256 << 10;

/// An inode as the epoch froze it.
struct Frozen {
    inode: Arc<Inode>,
    row: InodeRow,
    fresh: bool,
    dead: bool,
    was_orphan: bool,
    /// The seal row has to be written although the map may not have changed.
    stale: bool,
    batch: Option<(Arc<Batch>, Arc<Seal>)>,
    upto: u64,
}

/// A commit that panics has taken out of the lists what it was to write down: nothing may be called durable after that. An
/// event thread that makes one lives on.
struct Unwinding<'a>(&'a Bucket);

impl Drop for Unwinding<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail("a commit panicked");
            self.0.answer_waiters();
        }
    }
}

impl Bucket {
    /// The committer thread: a commit when somebody asks, when enough has gathered, and each interval when anything changed.
    pub(super) fn run_committer(self: &Arc<Self>) {
        loop {
            let (stop, short) = {
                let mut ctl = self.ctl.lock();
                let until = Instant::now() + self.commit_interval;
                while ctl.waiters.is_empty() && !ctl.wanted && !ctl.stop {
                    if self.ctl_changed.wait_until(&mut ctl, until).timed_out() {
                        break;
                    }
                }
                let somebody = !ctl.waiters.is_empty() && !ctl.waiters.iter().any(|w| w.committed);
                let short = somebody && !ctl.stop && !ctl.wanted;
                ctl.wanted = false;
                (ctl.stop, short)
            };
            {
                let _turn = self.committing.lock();
                if let Err(e) = self.commit_once(short) {
                    self.fail(&e.to_string());
                }
            }
            self.answer_waiters();
            if stop {
                return;
            }
        }
    }

    fn answer_waiters(&self) {
        let durable = self.durable.load(Ordering::Acquire);
        let committed = self.committed.load(Ordering::Acquire);
        let health = self.sound();
        let ready: Vec<Waiter> = {
            let mut ctl = self.ctl.lock();
            let (ready, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut ctl.waiters)
                .into_iter()
                .partition(|w| health.is_err() || w.epoch <= if w.committed { committed } else { durable });
            ctl.waiters = rest;
            ready
        };
        for waiter in ready {
            (waiter.done)(self.sound());
        }
    }

    /// Call `done` when everything that was acknowledged before is durable. When little has to be written and nobody else
    /// commits, that is done here, by whoever asks: waking the committer would take longer. Otherwise this does not wait.
    pub fn sync(self: &Arc<Self>, done: Done) {
        let turn = if self.is_little() { self.committing.try_lock() } else { None };
        // Asked again: now no commit is under way that could make it more.
        if turn.is_none() || !self.is_little() {
            return self.wait_for(false, done);
        }
        if let Err(e) = self.commit_once(true) {
            self.fail(&e.to_string());
        }
        drop(turn);
        self.answer_waiters();
        done(self.sound());
    }

    /// Whether a sync would be an intent of a few chunks.
    fn is_little(&self) -> bool {
        let ctl = self.ctl.lock();
        let alone = ctl.waiters.is_empty() && !ctl.wanted && !ctl.stop;
        drop(ctl);
        alone
            && self.dirty_bytes.load(Ordering::Relaxed) <= HERE_BYTES_MAX
            && self.log.is_settled()
            && self.space.is_ample()
            && self.chain.try_lock().is_some_and(|c| c.may_grow(self.commit_interval))
    }

    fn wait_for(&self, committed: bool, done: Done) {
        if let Err(e) = self.sound() {
            done(Err(e));
            return;
        }
        let mut ctl = self.ctl.lock();
        if ctl.stop {
            drop(ctl);
            done(Err(BucketError::Failed("the bucket is closed".into())));
            return;
        }
        ctl.waiters.push(Waiter { epoch: self.epoch.load(Ordering::Acquire), committed, done });
        self.ctl_changed.notify_one();
    }

    /// Make everything acknowledged durable in the catalog, and wait for it.
    pub fn commit(&self) -> Result<(), BucketError> {
        let (tx, rx) = crossbeam_channel::bounded(1);
        let done = move |r| {
            let _ = tx.send(r);
        };
        self.wait_for(true, Box::new(done));
        rx.recv().unwrap_or_else(|_| Err(BucketError::Failed("the bucket is closed".into())))
    }

    pub(super) fn wake_committer(&self) {
        self.ctl.lock().wanted = true;
        self.ctl_changed.notify_one();
    }

    fn has_changes(&self) -> bool {
        !self.changed.lock().is_empty()
            || self.catalog().changes() > 0
            || self.settings_changed.load(Ordering::Acquire)
            || self.tidy.commit_wanted.load(Ordering::Acquire)
    }

    /// `short`: somebody waits, and an intent will do if it can carry what has changed.
    fn commit_once(self: &Arc<Self>, short: bool) -> Result<(), BucketError> {
        self.sound()?;
        let _unwinding = Unwinding(self);
        let short = short && self.chain.lock().may_grow(self.commit_interval) && self.space.is_ample();
        if !short {
            self.reap_some()?;
        }
        let has_changes = || if short { self.has_news() } else { self.has_changes() };
        if !has_changes() {
            // Nothing since the last commit, which is durable: an epoch without changes ends here. Asked again with everybody
            // held out, or a change made meanwhile would be called durable.
            let _names = self.gate.close_names();
            let _all = self.gate.freeze();
            if !has_changes() {
                let epoch = self.epoch.fetch_add(1, Ordering::AcqRel);
                self.durable.store(epoch, Ordering::Release);
                if !short {
                    self.committed.store(epoch, Ordering::Release);
                }
                return Ok(());
            }
        }
        self.space.before_commit();
        let restart_wal = !short && self.catalog().checkpoint(self.space.is_ample())?;

        // 1. Ungated: what is dirty now is sealed while everybody goes on.
        let before = self.dirty_bytes.load(Ordering::Relaxed);
        let mut jobs = Jobs::new(self);
        if before > HERE_BYTES_MAX {
            let list: Vec<Arc<Inode>> = self.changed.lock().clone();
            for inode in &list {
                self.flush_inode(inode, &mut jobs);
            }
            jobs.send();
            for inode in &list {
                self.wait_batches(inode, u64::MAX)?;
            }
            if before > EARLY_SYNC_BYTES {
                self.log.sync(Next::Anything)?;
            }
        }

        // 2. The instant: no I/O, no sealing.
        let names = self.gate.close_names();
        let mut frozen = Vec::new();
        let (epoch, settings_changed, floor, moved) = {
            let _all = self.gate.freeze();
            let list = std::mem::take(&mut *self.changed.lock());
            for inode in list {
                let mut st = inode.state.lock();
                st.listed = false;
                let batch = if st.dirty.is_empty() { None } else { self.make_batch(&mut st, None) };
                let upto = st.next_batch - 1;
                st.frozen_upto = Some(upto);
                // Taken here: what makes it stale from now on (a file that grows) is for the next commit to write.
                let stale = st.content.as_mut().is_some_and(|c| std::mem::take(&mut c.stale));
                let f = Frozen {
                    inode: inode.clone(),
                    row: st.row,
                    fresh: st.fresh,
                    dead: st.dead,
                    was_orphan: st.orphan,
                    stale,
                    batch,
                    upto,
                };
                st.fresh = false;
                st.orphan = st.row.nlink == 0 && !st.dead;
                drop(st);
                frozen.push(f);
            }
            let settings_changed = self.settings_changed.swap(false, Ordering::AcqRel);
            let moved = std::mem::take(&mut *self.tidy.moved.lock());
            if !short {
                self.tidy.commit_wanted.store(false, Ordering::Release);
            }
            (self.epoch.fetch_add(1, Ordering::AcqRel), settings_changed, self.sealing_floor(), moved)
        };

        // 3. The frozen rest is sealed; each map holds still until it has been taken down.
        if frozen.iter().filter_map(|f| f.batch.as_ref()).map(|(b, _)| b.bytes).sum::<usize>() <= HERE_BYTES_MAX {
            // So little is sealed here and at once: waking the pool would take longer.
            jobs.run_here();
        }
        for f in &frozen {
            if let Some((batch, seal)) = &f.batch {
                if batch.complete() {
                    self.enter_map(&f.inode);
                }
                jobs.add(&f.inode, batch, seal);
            }
        }
        jobs.send();
        let mut gathered =
            Gathered { freed: moved.freed, puts: moved.puts.into_values().collect(), ..Gathered::default() };
        for (segment, n) in moved.delta {
            *gathered.delta.entry(segment).or_insert(0) += n;
        }
        for f in &frozen {
            self.wait_batches(&f.inode, f.upto)?;
            self.take_down(f, &mut gathered)?;
        }
        self.write_rows(&gathered)?;
        let mut touched = self.count_segments(&gathered.delta);
        if short && !settings_changed && self.intend(&mut gathered, &mut touched, floor)? {
            self.rows_written(&frozen);
            let next = if self.chain.lock().is_long() { Next::Small } else { Next::Anything };
            // Not before the flush is closed: what is moved or merged from here on belongs to the next epoch, and a crash
            // would leave a copy of it that no map shows in what this intent keeps.
            let end = self.log.sync_and(next, || drop(names))?;
            self.chain.lock().synced(end);
            self.durable.store(epoch, Ordering::Release);
            self.answer_waiters();
            return Ok(());
        }
        let mut chain = self.chain.lock();
        let carried = chain.take_carried();
        let number = {
            let mut c = self.counters.lock();
            c.commit += 1;
            c.next_segment = self.log.next_id();
            c.commit
        };
        self.tell_puts(number, &gathered.puts)?;
        self.tell_commit(number, carried.puts + gathered.puts.len() as u32)?;
        let ends = self.tidy.end_segment.swap(false, Ordering::AcqRel);
        let end = self.log.sync(if ends { Next::NewSegment } else { Next::Anything })?;
        // Exactly what is durable: the next intent's flushes are looked for behind it.
        self.put_segments(&mut touched, floor, Some(end))?;
        let empty = self.empty_segments(floor);
        {
            let tx = self.catalog().lock();
            let (settings, counters) = (self.settings(), *self.counters.lock());
            let lists = *self.lists.lock();
            let mut stored = self.stored.lock();
            settings::store(
                &tx,
                &self.settings_key,
                &lists,
                (&settings, &counters),
                stored.as_ref().map(|(s, c)| (&**s, c)),
            )?;
            *stored = Some((settings, counters));
            let shrink = self.tidy.shrink_catalog.swap(false, Ordering::AcqRel);
            if shrink {
                tx.give_back_pages(PAGES_AT_ONCE)?;
            }
            tx.commit()?;
            if shrink {
                tx.truncate_wal()?;
            }
            if restart_wal {
                tx.checkpoint_rest()?;
            }
        }
        self.rows_written(&frozen);
        drop(names);

        // 4. Durable; only then is anybody told, and only then may the log give away what this epoch dropped.
        self.catalog().sync()?;
        self.durable.store(epoch, Ordering::Release);
        self.committed.store(epoch, Ordering::Release);
        if !chain.is_long() {
            self.log.trim();
        }
        chain.begin(number, end, short);
        drop(chain);
        self.answer_waiters();
        gathered.freed.extend(carried.freed);
        self.reclaim.dropped(epoch, gathered.freed, empty);
        self.tidy.committed(floor);
        Ok(())
    }

    /// The rows of frozen inodes are written.
    fn rows_written(&self, frozen: &[Frozen]) {
        for f in frozen {
            if let Some(c) = &mut f.inode.state.lock().content {
                c.map.settled();
            }
            if f.dead {
                self.table.remove(f.inode.ino);
            }
        }
    }

    /// Wait until the batches of an inode up to a number are in its map.
    fn wait_batches(&self, inode: &Inode, upto: u64) -> Result<(), BucketError> {
        let mut st = inode.state.lock();
        // Those made later than this call need not be waited for.
        let upto = upto.min(st.next_batch - 1);
        while st.batches.front().is_some_and(|b| b.no <= upto) {
            self.sound()?;
            inode.settled.wait_for(&mut st, std::time::Duration::from_millis(100));
        }
        Ok(())
    }

    /// Encode what one frozen inode has to commit, and let its map go on.
    fn take_down(self: &Arc<Self>, f: &Frozen, out: &mut Gathered) -> Result<(), BucketError> {
        let opens = self.opens();
        let mut st = f.inode.state.lock();
        let request = self.request_in(&mut st).unwrap_or_default();
        let mut row = f.row;
        row.sealed = st.row.sealed;
        let mut rows =
            Rows { row, fresh: f.fresh, dead: f.dead, was_orphan: f.was_orphan, seal: None, nodes: Vec::new() };
        if let Some(c) = &mut st.content {
            rows.nodes = std::mem::take(&mut c.writes);
            if f.stale || c.map.is_dirty() || f.dead {
                rows.seal = Some(match &c.seal {
                    Some(seal) => {
                        let broken = || BucketError::Invalid("a map names openings that are not there");
                        let mut new_id = || self.new_node();
                        let size = if f.dead { 0 } else { row.size };
                        for (i, leaf) in c.map.dirty_leaves() {
                            self.tidy.note(row.ino, i, leaf.wasteful(self.cell_bytes() as u32).1);
                        }
                        let top = c
                            .map
                            .settle(&seal.secrets(&opens), size, &mut new_id, &mut rows.nodes)
                            .ok_or_else(broken)?;
                        let tag = seal.tag(row.size, top.height, &top.tag);
                        let mut s = SealRow {
                            ino: row.ino,
                            seal_id: seal.id,
                            method: method_code(seal.resolved.method),
                            cipher: cipher_code(seal.resolved.cipher),
                            kek: seal.kek.0,
                            key_id: seal.resolved.key.0.clone(),
                            wrapped: seal.wrapped.clone(),
                            customer: seal.customer,
                            origin: seal.origin.clone(),
                            chunk_bytes: seal.chunk_bytes,
                            height: top.height,
                            map: top.body,
                            tag,
                            place_tag: [0; 32],
                        };
                        s.place_tag = place_tag(&self.place_key, &s, row.size, request.as_ref());
                        if c.untold && !f.dead {
                            out.puts.push(PutRecord {
                                seal: seal.id,
                                object: row.ino,
                                method: s.method,
                                cipher: s.cipher,
                                kek: s.kek,
                                wrapped: s.wrapped.clone(),
                                customer: s.customer.map(|c| [c.salt, c.verifier]),
                            });
                        }
                        (!f.dead).then_some(s)
                    }
                    None => None,
                });
                c.untold = false;
            }
            for (segment, n) in c.delta.drain(..) {
                *out.delta.entry(segment).or_insert(0) += n;
            }
            out.freed.append(&mut c.freed);
        }
        st.frozen_upto = None;
        drop(st);
        out.rows.push(rows);
        // Batches that waited behind the freeze, and whoever waited for the map.
        self.enter_map(&f.inode);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use crate::bucket::{NewInode, ROOT, tidy};

    #[test]
    fn after_a_commit_that_panicked_nothing_is_called_durable() {
        let dir = tempfile::tempdir().unwrap();
        let bucket = tidy::tests::bucket(dir.path());
        let new = NewInode { mode: libc::S_IFREG | 0o644, uid: 0, gid: 0, rdev: 0, target: None };
        let ino = bucket.make(ROOT, b"f", &new).unwrap().ino;
        bucket.commit().unwrap();
        let turn = bucket.committing.lock();
        bucket.truncate(ino, 5).unwrap();
        // A number that cannot be: the freeze computes with it.
        bucket.inode(ino).unwrap().state.lock().next_batch = 0;
        assert!(catch_unwind(AssertUnwindSafe(|| bucket.commit_once(true))).is_err());
        drop(turn);
        let (tx, rx) = std::sync::mpsc::channel();
        bucket.sync(Box::new(move |r| tx.send(r.is_ok()).unwrap()));
        assert!(!rx.recv().unwrap(), "what was frozen and not written is called durable");
        assert!(bucket.close().is_err());
    }
}
