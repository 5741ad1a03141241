//! Truncating, punching, allocating, copying, and letting go of whole contents.

use std::sync::Arc;

use super::inode::{Content, Inode, State};
use super::leaf::LEAF_BYTES;
use super::map::OBJECT_BYTES_MAX;
use super::put::{CatalogNodes, map_error};
use super::{Bucket, BucketError, now_ns};
use crate::catalog::InodeRow;
use crate::types::BLOCK;

/// Leaves let go of in place; larger contents become an orphan that is reaped in pieces.
const LEAVES_AT_ONCE: usize = 64;

impl Bucket {
    /// Set the size of a file. Growing adds a hole, and is a PUT where there was no content.
    pub fn truncate(self: &Arc<Self>, ino: u64, size: u64) -> Result<InodeRow, BucketError> {
        let inode = self.inode(ino)?;
        if size > OBJECT_BYTES_MAX {
            return Err(BucketError::TooBig);
        }
        self.health()?;
        let _io = inode.io.write();
        let old = {
            let st = inode.state.lock();
            match st.kind() {
                libc::S_IFREG => st.row.size,
                libc::S_IFDIR => return Err(BucketError::IsDirectory),
                _ => return Err(BucketError::Invalid("only regular files have a size to set")),
            }
        };
        if size > 0 && size != old {
            self.ensure_put(&inode)?;
        }
        // What a service that is down keeps from being read is not thrown away: its key may come back, the content not.
        match self.warm(&inode) {
            Err(e) if size > 0 || !e.is_revoked() => return Err(e),
            _ => {}
        }
        let stamp = |st: &mut State| {
            let now = now_ns();
            st.row.size = size;
            st.row.mtime = now;
            st.row.ctime = now;
            if let Some(c) = &mut st.content {
                c.stale = true;
            }
            self.note_change(&inode, st);
            st.shown()
        };
        if size >= old && size > 0 {
            let _permit = self.gate.data();
            return Ok(stamp(&mut inode.state.lock()));
        }
        if size == 0 {
            self.discard(&inode)?;
            let _permit = self.gate.data();
            return Ok(stamp(&mut inode.state.lock()));
        }
        // Bytes of the last block behind the new end must read as zeroes if the file grows again: dirty ones are cleared,
        // sealed ones are no longer shown.
        let mut dropped_dirty = 0;
        let row = self.when_quiet(&inode, |st| {
            self.cut(st, size, u64::MAX)?;
            let cell_bytes = self.cell_bytes();
            dropped_dirty = st.drop_dirty(size.next_multiple_of(BLOCK as u64), u64::MAX, cell_bytes);
            st.dirty.clear_from(size / cell_bytes, (size % cell_bytes) as usize);
            Ok(stamp(st))
        })?;
        self.dirty_changed(0, dropped_dirty);
        Ok(row)
    }

    /// Take [from, to) out of the map. The inode is quiet.
    pub(super) fn cut(&self, st: &mut State, from: u64, to: u64) -> Result<(), BucketError> {
        let ino = st.row.ino;
        let opens = self.opens();
        let content = self.content(st)?;
        let Some(seal) = content.seal.clone() else { return Ok(()) };
        let (secrets, nodes) = (seal.secrets(&opens), CatalogNodes(self));
        let mut dropped = Vec::new();
        let mut i = from / LEAF_BYTES;
        while let Some(next) = content.map.next_leaf(&secrets, &nodes, i).map_err(|e| map_error(ino, e))? {
            if next * LEAF_BYTES >= to {
                break;
            }
            content.map.load_leaf(&secrets, &nodes, next).map_err(|e| map_error(ino, e))?;
            let start = next * LEAF_BYTES;
            let a = from.saturating_sub(start).min(LEAF_BYTES) as u32;
            let b = (to - start).min(LEAF_BYTES) as u32;
            content.map.cut(next, a, b, &mut dropped);
            i = next + 1;
        }
        let went: u64 = dropped.iter().map(|d| d.frame_bytes as u64).sum();
        content.went(&dropped);
        content.stale = true;
        st.row.sealed = st.row.sealed.saturating_sub(went);
        Ok(())
    }

    /// Let go of all content: the next write is a new PUT. The caller holds `io` exclusively.
    fn discard(self: &Arc<Self>, inode: &Arc<Inode>) -> Result<(), BucketError> {
        let mut dropped_dirty = 0;
        self.when_quiet(inode, |st| {
            dropped_dirty = st.drop_dirty(0, u64::MAX, self.cell_bytes());
            // Content that cannot be verified any more may still be thrown away; its space is left to `ssefs check`.
            let old = match self.content(st) {
                Ok(c) => std::mem::take(c),
                Err(e @ BucketError::Damaged { .. }) => {
                    log::warn!("object {}: emptied although {e}; its space in the log is not given back", st.row.ino);
                    st.content = Some(Box::default());
                    Content::default()
                }
                Err(e) => return Err(e),
            };
            let sealed = std::mem::take(&mut st.row.sealed);
            let size = std::mem::take(&mut st.row.size);
            let fresh = self.let_go(st.row.ino, size, sealed, old)?;
            if let Some(c) = &mut st.content {
                **c = fresh;
                c.stale = true;
            }
            self.note_change(inode, st);
            Ok(())
        })?;
        self.dirty_changed(0, dropped_dirty);
        Ok(())
    }

    /// Free a content that no name shows any more: at once when it is small, else through an orphan of its own. Returns what
    /// is left to commit under the old inode.
    pub(super) fn let_go(
        self: &Arc<Self>,
        ino: u64,
        size: u64,
        sealed: u64,
        mut old: Content,
    ) -> Result<Content, BucketError> {
        let mut rest = Content::default();
        let Some(seal) = old.seal.clone() else { return Ok(old) };
        let opens = self.opens();
        let small = size <= LEAVES_AT_ONCE as u64 * LEAF_BYTES;
        if small {
            let mut scratch = Inode::new(InodeRow { ino, size, ..InodeRow::default() }, true).state.into_inner();
            scratch.content = Some(Box::new(old));
            if let Err(e) = self.cut(&mut scratch, 0, u64::MAX) {
                log::warn!("object {ino}: {e}; the space of its old content is not given back");
            }
            old = match scratch.content {
                Some(c) => *c,
                None => Content::default(),
            };
            let mut new_id = || self.new_node();
            old.map.settle(&seal.secrets(&opens), 0, &mut new_id, &mut old.writes);
            rest.writes = old.writes;
            rest.delta = old.delta;
            rest.freed = old.freed;
            return Ok(rest);
        }
        let now = now_ns();
        let row = InodeRow {
            ino: self.new_ino(),
            mode: libc::S_IFREG,
            size,
            sealed,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            ..InodeRow::default()
        };
        let orphan = self.table.insert(Arc::new(Inode::new(row, true)));
        let mut st = orphan.state.lock();
        old.stale = true;
        st.content = Some(Box::new(old));
        self.note_change(&orphan, &mut st);
        drop(st);
        self.reap.lock().push(orphan);
        Ok(rest)
    }

    /// Make [offset, offset + len) a hole, within the file's size.
    pub fn punch(self: &Arc<Self>, ino: u64, offset: u64, len: u64) -> Result<(), BucketError> {
        let inode = self.inode(ino)?;
        self.health()?;
        let _io = inode.io.write();
        let (size, file) = {
            let st = inode.state.lock();
            (st.row.size, st.is_file())
        };
        if !file {
            return Err(BucketError::Unsupported("only regular files have holes"));
        }
        let end = offset.saturating_add(len).min(size);
        if offset >= end {
            self.modified(&inode);
            return Ok(());
        }
        self.ensure_put(&inode)?;
        let block = BLOCK as u64;
        let first = offset.next_multiple_of(block);
        // A last block that the file ends in counts as whole.
        let last = if end == size { end.next_multiple_of(block) } else { end / block * block };
        if offset < first.min(end) {
            self.write_locked(&inode, Some(offset), &vec![0; (first.min(end) - offset) as usize])?;
        }
        if last < end && last >= first {
            self.write_locked(&inode, Some(last), &vec![0; (end - last) as usize])?;
        }
        let mut dropped_dirty = 0;
        if first < last {
            self.when_quiet(&inode, |st| {
                dropped_dirty = st.drop_dirty(first, last, self.cell_bytes());
                self.cut(st, first, last)?;
                let now = now_ns();
                st.row.mtime = now;
                st.row.ctime = now;
                self.note_change(&inode, st);
                Ok(())
            })?;
        }
        self.dirty_changed(0, dropped_dirty);
        Ok(())
    }

    /// Make a range read as zeroes, growing the file unless `keep_size`.
    pub fn zero(self: &Arc<Self>, ino: u64, offset: u64, len: u64, keep_size: bool) -> Result<(), BucketError> {
        self.punch(ino, offset, len)?;
        self.allocate(ino, offset, len, keep_size)
    }

    /// Grow the file to hold a range. The log allocates when it writes; what can be promised is that there is room now.
    pub fn allocate(self: &Arc<Self>, ino: u64, offset: u64, len: u64, keep_size: bool) -> Result<(), BucketError> {
        let end = offset.checked_add(len).filter(|e| *e <= OBJECT_BYTES_MAX).ok_or(BucketError::TooBig)?;
        self.health()?;
        self.space.admit(len, 0)?;
        let size = self.attr(ino)?.size;
        if !keep_size && end > size {
            self.truncate(ino, end)?;
        } else {
            self.modified(&self.inode(ino)?);
        }
        Ok(())
    }

    /// fallocate(2) counts as a change of the content also where it changes nothing.
    fn modified(&self, inode: &Arc<Inode>) {
        let _permit = self.gate.data();
        let mut st = inode.state.lock();
        let now = now_ns();
        st.row.mtime = now;
        st.row.ctime = now;
        self.note_change(inode, &mut st);
    }

    /// Copy between files of the bucket; returns the bytes copied: fewer at the source's end, and where a part of it was
    /// copied before an error, which comes again with the next call.
    pub fn copy_range(
        self: &Arc<Self>,
        from: u64,
        from_at: u64,
        to: u64,
        to_at: u64,
        len: u64,
    ) -> Result<u64, BucketError> {
        let mut done = 0;
        while done < len {
            let n = (len - done).min(1 << 20) as usize;
            let copied = self.read(from, from_at + done, n).and_then(|data| {
                self.write(to, Some(to_at + done), &data)?;
                Ok(data.len() as u64)
            });
            match copied {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if done == 0 => return Err(e),
                Err(_) => break,
            }
        }
        Ok(done)
    }
}
