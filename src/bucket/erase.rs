//! Crypto-erasure (SEMANTICS 77): the wrapped data keys of objects are destroyed in catalog, -wal file and log, and a receipt says
//! so. It must never say "complete" before all of it is on disk, and never touch a key of anything else. ARCHITECTURE.md, Erasing,
//! has the order and the crash cases.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::inode::{Content, Inode};
use super::job::{Ask, LeftObject, busy, is_of_one_object};
use super::kek::now_s;
use super::leaf::LEAF_BYTES;
use super::map::NodeWrite;
use super::put::{METHOD_ERASED, method_name, place_tag};
use super::redact::Hunt;
use super::{Bucket, BucketError};
use crate::catalog::{EraseRow, InodeRow, SealRow, Tx};
use crate::types::{to_hex, utc};

/// Objects whose rows are changed between two commits.
const COMMIT_AFTER: usize = 4096;
/// Leaves of a large object let go of in one commit.
const LEAVES_AT_ONCE: u64 = 2048;
/// Objects named in a receipt at most; all are counted.
const NAMED_MAX: usize = 50_000;
/// How long readers of the catalog, and content that waits for being freed, are waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// Told which object was sealed anew or erased, and whether its pages must be forgotten too.
type Told = Box<dyn Fn(u64, bool) + Send + Sync>;

/// What others must know of an erasure.
#[derive(Default)]
pub(super) struct Erasing {
    /// From before the first key is destroyed until the log holds none: segments are overwritten before they are removed.
    on: AtomicBool,
    /// The next commit scrubs the catalog, and whether it could.
    wanted: AtomicBool,
    rebuild: AtomicBool,
    clean: AtomicBool,
    told: OnceLock<Told>,
}

impl Erasing {
    pub fn new(on: bool) -> Erasing {
        Erasing { on: on.into(), ..Erasing::default() }
    }

    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    /// By the committer, between COMMIT and the next BEGIN.
    pub fn scrub(&self, tx: &Tx) -> Result<(), BucketError> {
        if self.wanted.swap(false, Ordering::AcqRel) {
            let clean = tx.scrub(self.rebuild.swap(false, Ordering::AcqRel))?;
            self.clean.store(clean, Ordering::Release);
        }
        Ok(())
    }
}

/// An object of a receipt.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ErasedObject {
    pub path: String,
    pub object: u64,
    pub seal_id: String,
    pub method: String,
    pub key: Option<String>,
    pub kek: u64,
    pub bytes: u64,
}

/// What was destroyed, and what could not be reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Receipt {
    /// Its number, which also stands in the rows of the objects.
    pub receipt: String,
    /// When it was completed, by the clock of this machine, which nobody has verified.
    pub date: String,
    pub bucket: String,
    pub bucket_id: String,
    pub complete: bool,
    pub objects_erased: u64,
    pub bytes_erased: u64,
    pub objects: Vec<ErasedObject>,
    pub left: Vec<LeftObject>,
    pub destroyed: Vec<String>,
    pub verified: Vec<String>,
    pub not_reached: Vec<String>,
}

/// What no program on this machine can reach.
const NOT_REACHED: [&str; 5] = [
    "copies and replicas of the store or of single segments, backups, and snapshots of the disk below it",
    "flash cells, and blocks of copy-on-write file systems, that the disk has put others in the place of",
    "blocks of segments that were removed before this erasure began: they were given back and not overwritten",
    "content that programs have read: their memory, swap space, files they wrote",
    "whoever puts back an older copy of the catalog together with the segments it names",
];

/// Freed of a content that goes.
#[derive(Default)]
struct LetGo {
    content: Content,
    nodes: Vec<NodeWrite>,
}

impl Bucket {
    /// Call `f` with each object that a job has sealed anew, and (true) that was erased, so that the kernel can be told to forget
    /// its attributes, and its pages. Once.
    pub fn on_sealed_anew(&self, f: impl Fn(u64, bool) + Send + Sync + 'static) {
        let _ = self.erasing.told.set(Box::new(f));
    }

    pub(super) fn tell_sealed_anew(&self, ino: u64, erased: bool) {
        if let Some(told) = self.erasing.told.get() {
            told(ino, erased);
        }
    }

    /// Err for an object whose keys were destroyed, before it is opened.
    pub fn not_erased(&self, ino: u64) -> Result<(), BucketError> {
        if !self.settings().erased {
            return Ok(());
        }
        let inode = self.inode(ino)?;
        let mut st = inode.state.lock();
        if st.content.is_some() || !st.is_file() {
            return Ok(());
        }
        match self.catalog().lock().seal(ino)? {
            Some(row) if row.method == METHOD_ERASED => {
                let request = self.request_in(&mut st)?;
                self.verify_place(&row, st.row.size, request.as_ref()).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Destroy the keys of objects, with `recursive` of all below directories. Only root and the bucket's owner may. What is
    /// acknowledged is complete; one that was cut off goes on with [`Bucket::resume_erase`].
    pub fn erase(&self, uid: u32, paths: &[&Path], recursive: bool, ask: &Ask) -> Result<Receipt, BucketError> {
        self.health()?;
        self.may_erase(uid)?;
        let Some(_turn) = self.job.try_lock() else { return Err(busy()) };
        // First everything is looked at: a name that is wrong erases nothing.
        let mut starts = Vec::new();
        for path in paths {
            let ino = self.walk(path)?;
            let row = self.attr(ino)?;
            match row.mode & libc::S_IFMT {
                libc::S_IFREG => starts.push((ino, path.to_path_buf(), false)),
                libc::S_IFDIR if recursive => starts.push((ino, path.to_path_buf(), true)),
                libc::S_IFDIR => return Err(BucketError::IsDirectory),
                _ => return Err(BucketError::Invalid("only files have content to erase")),
            }
        }
        let mut receipt = self.new_receipt()?;
        let mut hunt = Hunt::default();
        self.erasing.on.store(true, Ordering::Release);
        if !self.settings().erased {
            let _permit = self.gate.names();
            self.change_settings(|s| s.erased = true);
        }
        self.commit()?;
        (ask.stage)("destroying keys", None);
        for (ino, path, is_dir) in starts {
            if is_dir {
                self.each_below(ino, &mut |path, ino| self.erase_next(ino, path, &mut receipt, &mut hunt, ask))?;
            } else {
                self.erase_next(ino, &path, &mut receipt, &mut hunt, ask)?;
            }
        }
        self.commit()?;
        self.finish_erase(receipt, hunt, ask)
    }

    /// Go on with what was cut off.
    pub fn resume_erase(&self, uid: u32, ask: &Ask) -> Result<Receipt, BucketError> {
        self.health()?;
        self.may_erase(uid)?;
        let Some(_turn) = self.job.try_lock() else { return Err(busy()) };
        self.commit()?;
        let rows = self.catalog().lock().erases()?;
        if rows.is_empty() {
            return Err(BucketError::NotFound("no erasure was cut off".into()));
        }
        let mut receipt = self.new_receipt()?;
        let mut hunt = Hunt::default();
        for row in rows {
            hunt.inos.insert(row.ino);
            hunt.seals.insert(row.seal);
            let path = self.path_of(row.ino)?.display().to_string();
            let bytes = self.attr(row.ino).map_or(0, |a| a.size);
            receipt.objects_erased += 1;
            receipt.bytes_erased += bytes;
            if receipt.objects.len() < NAMED_MAX {
                let seal_id = row.seal.to_string();
                let method = "erased earlier".into();
                receipt.objects.push(ErasedObject { path, object: row.ino, seal_id, method, key: None, kek: 0, bytes });
            }
        }
        self.finish_erase(receipt, hunt, ask)
    }

    /// Whether keys were destroyed of which the log may still hold copies.
    pub fn erase_is_unfinished(&self) -> Result<bool, BucketError> {
        Ok(!self.catalog().lock().erases()?.is_empty())
    }

    fn may_erase(&self, uid: u32) -> Result<(), BucketError> {
        let owner = self.settings().owner;
        if uid == 0 || uid == owner {
            return Ok(());
        }
        Err(BucketError::Denied(format!("only user {owner}, the owner, and root may erase objects of this bucket")))
    }

    fn new_receipt(&self) -> Result<Receipt, BucketError> {
        let id = crate::crypto::secret::random_id()?;
        Ok(Receipt {
            receipt: to_hex(&id[..8]),
            date: utc(now_s()),
            bucket: self.name.to_string(),
            bucket_id: self.id.to_string(),
            ..Receipt::default()
        })
    }

    fn erase_next(
        &self,
        ino: u64,
        path: &Path,
        receipt: &mut Receipt,
        hunt: &mut Hunt,
        ask: &Ask,
    ) -> Result<(), BucketError> {
        match self.erase_one(ino, receipt, hunt) {
            Ok(Some(erased)) => {
                receipt.objects_erased += 1;
                receipt.bytes_erased += erased.bytes;
                if receipt.objects.len() < NAMED_MAX {
                    receipt.objects.push(ErasedObject { path: path.display().to_string(), ..erased });
                }
                self.tell_sealed_anew(ino, true);
                if receipt.objects_erased.is_multiple_of(COMMIT_AFTER as u64) {
                    self.commit()?;
                }
            }
            Ok(None) | Err(BucketError::NotFound(_)) => {}
            Err(e) if is_of_one_object(&e) => {
                receipt.left.push(LeftObject { path: path.display().to_string(), why: e.to_string() });
            }
            Err(e) => return Err(e),
        }
        // Once a key is destroyed there is only one way: on. What has not been begun can still be left.
        if (ask.advance)(1) || receipt.objects_erased == 0 {
            return Ok(());
        }
        Err(BucketError::Stopped)
    }

    /// The row of an object becomes that of an erased one. None where there is nothing to erase.
    fn erase_one(&self, ino: u64, receipt: &Receipt, hunt: &mut Hunt) -> Result<Option<ErasedObject>, BucketError> {
        let inode = self.inode(ino)?;
        // Its key may not be to be had; then its space is not given back.
        let _ = self.warm(&inode);
        let _io = inode.io.write();
        {
            let st = inode.state.lock();
            if !st.is_file() || st.dead || st.row.nlink == 0 || hunt.inos.contains(&ino) {
                return Ok(None);
            }
        }
        self.let_large_go(&inode)?;
        loop {
            {
                let st = inode.state.lock();
                let clean = !st.fresh && !st.listed && st.quiet() && st.dirty.is_empty();
                drop(st);
                if !clean {
                    // Then the catalog has all of it; nobody can write while `io` is held.
                    self.commit()?;
                }
            }
            let _permit = self.gate.names();
            let mut st = inode.state.lock();
            if st.fresh || !st.quiet() || !st.dirty.is_empty() {
                continue;
            }
            let Some(row) = self.catalog().lock().seal(ino)? else { return Ok(None) };
            let request = self.request_in(&mut st)?;
            match self.verify_place(&row, st.row.size, request.as_ref()) {
                Ok(_) => {}
                Err(BucketError::Erased(_)) => return Ok(None),
                Err(e) => log::warn!("object {ino} is erased although {e}"),
            }
            let plain = row.method == 0;
            let freed = self.let_all_go(&mut st).unwrap_or_else(|e| {
                log::warn!("object {ino}: {e}; its keys are destroyed, its space in the log is not given back");
                LetGo::default()
            });
            let mut erased = SealRow {
                method: METHOD_ERASED,
                cipher: 0,
                kek: 0,
                key_id: String::new(),
                wrapped: Vec::new(),
                customer: None,
                origin: format!("erased {} receipt {}", receipt.date, receipt.receipt),
                height: 0,
                map: vec![0, 0],
                tag: [0; 32],
                ..row.clone()
            };
            erased.place_tag = place_tag(&self.place_key, &erased, st.row.size, request.as_ref());
            let written = (|| {
                let tx = self.catalog().lock();
                for n in &freed.nodes {
                    match n {
                        NodeWrite::Put(id, body) => tx.put_node(*id, body)?,
                        NodeWrite::Delete(id) => tx.delete_node(*id)?,
                    }
                }
                tx.put_erased(&erased)?;
                tx.put_erase(&EraseRow { ino, seal: row.seal_id, segment: 0 })
            })();
            // Half of it must not become durable.
            written.inspect_err(|e| self.fail(&e.to_string()))?;
            {
                let mut moved = self.tidy.moved.lock();
                moved.puts.remove(&ino);
                moved.delta.extend(freed.content.delta);
                moved.freed.extend(freed.content.freed);
            }
            st.content = None;
            st.row.sealed = 0;
            self.note_change(&inode, &mut st);
            hunt.inos.insert(ino);
            hunt.seals.insert(row.seal_id);
            if !plain {
                hunt.wrapped.insert(row.wrapped.clone());
            }
            return Ok(Some(ErasedObject {
                path: String::new(),
                object: ino,
                seal_id: row.seal_id.to_string(),
                method: method_name(row.method),
                key: (!row.key_id.is_empty()).then_some(row.key_id),
                kek: row.kek,
                bytes: st.row.size,
            }));
        }
    }

    /// Of an object whose map is large, all but the first leaves, a piece a commit. The caller holds `io` exclusively.
    fn let_large_go(&self, inode: &std::sync::Arc<Inode>) -> Result<(), BucketError> {
        let mut leaves = inode.state.lock().row.size.div_ceil(LEAF_BYTES);
        while leaves > LEAVES_AT_ONCE {
            leaves -= LEAVES_AT_ONCE;
            let cut = self.when_quiet(inode, |st| {
                self.cut(st, leaves * LEAF_BYTES, u64::MAX)?;
                self.note_change(inode, st);
                Ok(())
            });
            match cut {
                Ok(()) => self.commit()?,
                // Then its space stays; its keys go all the same.
                Err(e) if is_of_one_object(&e) => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Let go of the whole content: chunks and nodes. The caller holds the names' permit.
    fn let_all_go(&self, st: &mut super::inode::State) -> Result<LetGo, BucketError> {
        let (ino, size) = (st.row.ino, st.row.size);
        match self.content(st) {
            Ok(_) => {}
            Err(BucketError::Key(_) | BucketError::Customer(_)) => return self.let_unkeyed_go(st),
            Err(e) => return Err(e),
        }
        let Some(mut old) = st.content.take() else { return Ok(LetGo::default()) };
        let Some(seal) = old.seal.clone() else { return Ok(LetGo::default()) };
        let mut nodes = std::mem::take(&mut old.writes);
        let mut scratch = Inode::new(InodeRow { ino, size, ..InodeRow::default() }, true).state.into_inner();
        scratch.content = Some(old);
        self.cut(&mut scratch, 0, u64::MAX)?;
        let Some(mut content) = scratch.content else { return Ok(LetGo::default()) };
        let opens = self.opens();
        let mut new_id = || self.new_node();
        content.map.settle(&seal.secrets(&opens), 0, &mut new_id, &mut nodes);
        Ok(LetGo { content: *content, nodes })
    }

    /// The same of content whose key is not to be had: as its rows tell.
    fn let_unkeyed_go(&self, st: &mut super::inode::State) -> Result<LetGo, BucketError> {
        let mut all = LetGo::default();
        loop {
            let whole = self.free_unkeyed(st)?;
            let Some(mut some) = st.content.take() else { return Ok(all) };
            // At once: what is left to free is told by the nodes that are there.
            for write in some.writes.drain(..) {
                if let NodeWrite::Delete(id) = write {
                    self.catalog().lock().delete_node(id).inspect_err(|e| self.fail(&e.to_string()))?;
                }
            }
            all.content.delta.append(&mut some.delta);
            all.content.freed.append(&mut some.freed);
            if whole {
                return Ok(all);
            }
        }
    }

    /// The keys are gone from the open rows; now from everywhere else.
    fn finish_erase(&self, mut r: Receipt, mut hunt: Hunt, ask: &Ask) -> Result<Receipt, BucketError> {
        let mut missing = Vec::new();
        if hunt.inos.is_empty() {
            self.erasing.on.store(false, Ordering::Release);
            r.complete = r.left.is_empty();
            return Ok(r);
        }
        (ask.stage)("searching the log", None);
        self.erasing.on.store(true, Ordering::Release);
        // Nobody moves segments meanwhile.
        let _tidying = self.tidy.working.lock();
        self.wait_for_let_go(&hunt, &mut missing)?;
        self.end_segment()?;
        let last = self.log.open_segment().saturating_sub(1);
        let bound = self.bound_erases(last)?;
        let segments = self.redact(&mut hunt, bound)?;
        self.commit_for_sure()?;
        (ask.stage)("scrubbing the catalog", None);
        if !self.scrub_catalog(&hunt)? {
            missing.push(
                "the catalog's -wal file: somebody reads from it (a check, a report); try again when that is done"
                    .into(),
            );
        }
        if self.redact(&mut hunt, bound)? > 0 {
            missing.push("the log held keys that were written meanwhile".into());
        }
        missing.extend(hunt.unreadable.iter().map(|e| format!("records that cannot be read: {e}")));
        r.destroyed = vec![
            format!(
                "wrapped data keys of {} objects in the catalog, its free pages and its -wal file",
                r.objects_erased
            ),
            format!("{segments} copies of them in the records of {} segments of the log", hunt.segments),
        ];
        r.verified = vec![
            "every record of the log was read again: none names these objects with a key".into(),
            format!("catalog.db was searched for {} wrapped keys and their parts, byte by byte", hunt.wrapped.len()),
        ];
        r.not_reached = missing.iter().cloned().chain(NOT_REACHED.iter().map(|s| (*s).to_owned())).collect();
        if missing.is_empty() {
            {
                let _permit = self.gate.names();
                let inos: Vec<u64> = hunt.inos.iter().copied().collect();
                self.catalog().lock().delete_erases(&inos)?;
            }
            self.commit()?;
            // What the objects' chunks left empty is overwritten and gone before that is not done any more.
            self.reclaim.wait_idle_for(PATIENCE);
            self.erasing.on.store(false, Ordering::Release);
        }
        r.complete = missing.is_empty() && r.left.is_empty();
        r.date = utc(now_s());
        log::info!(
            "bucket {}: receipt {}: {} objects erased, complete: {}",
            self.name,
            r.receipt,
            r.objects_erased,
            r.complete
        );
        Ok(r)
    }

    /// Write down up to where keys are looked for; returns the last segment of all.
    fn bound_erases(&self, last: u32) -> Result<u32, BucketError> {
        let rows = self.catalog().lock().erases()?;
        let bound = rows.iter().map(|r| if r.segment == 0 { last } else { r.segment }).max().unwrap_or(last);
        {
            let _permit = self.gate.names();
            self.catalog().lock().bound_erases(last)?;
        }
        self.commit()?;
        Ok(bound)
    }

    /// Content that an object had earlier may wait for being freed under a number of its own, with its key.
    fn wait_for_let_go(&self, hunt: &Hunt, missing: &mut Vec<String>) -> Result<(), BucketError> {
        let begun = Instant::now();
        if self.catalog().lock().orphans()?.is_empty() {
            return Ok(());
        }
        loop {
            let waits = {
                let tx = self.catalog().lock();
                let mut waits = false;
                for ino in tx.orphans()? {
                    waits |= tx.seal(ino)?.is_some_and(|row| hunt.seals.contains(&row.seal_id));
                }
                waits
            };
            if !waits {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                missing.push("earlier content of these objects still waits for being freed; try again".into());
                return Ok(());
            }
            self.commit_for_sure()?;
        }
    }

    /// Everything into the main file, the -wal file zeroed and empty, and no key in a gap of the pages.
    fn scrub_catalog(&self, hunt: &Hunt) -> Result<bool, BucketError> {
        let needles: Vec<Vec<u8>> = hunt.wrapped.iter().cloned().collect();
        let begun = Instant::now();
        let mut rebuild = false;
        loop {
            self.erasing.rebuild.store(rebuild, Ordering::Release);
            self.erasing.clean.store(false, Ordering::Release);
            self.erasing.wanted.store(true, Ordering::Release);
            self.commit_for_sure()?;
            if self.erasing.clean.load(Ordering::Acquire) {
                if !self.catalog().holds_any(&needles)? {
                    return Ok(true);
                }
                if rebuild {
                    return Ok(false);
                }
                rebuild = true;
            } else if begun.elapsed() > PATIENCE {
                return Ok(false);
            }
        }
    }

    /// Erase a whole bucket that nobody has open, and delete it: its keys in the keyring, then every byte of its folder.
    pub fn erase_bucket(
        store: &Path,
        store_id: crate::types::StoreId,
        name: &crate::types::BucketName,
        keys: &std::sync::Arc<crate::keys::Keyring>,
    ) -> Result<Receipt, BucketError> {
        let dir = Self::folder(store, name);
        // Opened once, so that it is this bucket and nothing is left of a crash; then nobody else may have it.
        let bucket = Self::open(store, store_id, name, keys, &super::OpenOptions::default())?;
        let (objects, bytes, _) = bucket.catalog().lock().totals()?;
        let mut receipt = bucket.new_receipt()?;
        bucket.close()?;
        drop(bucket);
        let me = super::Holder { pid: std::process::id(), mountpoint: None, socket: None };
        let lock = super::lock::BucketLock::take(&dir, name, &me)?;
        let known = keys.bucket_key(&store_id, name)?;
        let Some((id, _)) = known else { return Err(BucketError::UnknownToKeyring(name.clone())) };
        keys.forget_bucket(&id)?;
        let mut files = Vec::new();
        files_below(&dir, &mut files).map_err(super::open::io(&dir))?;
        for file in &files {
            overwrite(file).map_err(super::open::io(file))?;
        }
        drop(lock);
        Self::delete(store, store_id, name, keys, true)?;
        receipt.date = utc(now_s());
        receipt.objects_erased = objects;
        receipt.bytes_erased = bytes;
        receipt.complete = true;
        receipt.destroyed = vec![
            "the bucket's key and its managed master key, in the keyring".into(),
            format!("{} files of the bucket, overwritten with zeroes and removed", files.len()),
        ];
        receipt.verified = vec!["the folder of the bucket is gone".into()];
        receipt.not_reached = NOT_REACHED.iter().map(|s| (*s).to_owned()).collect();
        Ok(receipt)
    }
}

fn files_below(dir: &Path, out: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files_below(&entry.path(), out)?;
        } else if entry.file_name() != "lock" {
            out.push(entry.path());
        }
    }
    Ok(())
}

/// Zeroes over what a file has, on disk when it returns.
fn overwrite(path: &Path) -> std::io::Result<()> {
    use std::io::Write;
    let mut f = std::fs::File::options().write(true).open(path)?;
    let (mut left, zeroes) = (f.metadata()?.len(), vec![0u8; 1 << 20]);
    while left > 0 {
        let n = left.min(zeroes.len() as u64);
        f.write_all(&zeroes[..n as usize])?;
        left -= n;
    }
    f.sync_all()
}
