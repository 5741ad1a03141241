//! Changes of rows as they happen, so that a sync can put them into the log instead of committing the catalog (FORMAT.md,
//! intents). The numbers of the statements are on disk: they never change their meaning.

use rusqlite::types::{ToSqlOutput, Value, ValueRef};
use rusqlite::{ToSql, params_from_iter};

use super::patch::Patch;
use super::{CatalogError, Reader, Tx};

/// Changes are recorded up to this many bytes; with more, only a commit will do.
pub const REDO_BYTES_MAX: usize = 256 << 10;

/// A statement that changes one row, or the rows of one inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Change {
    PutInode = 1,
    DeleteInode = 2,
    ReplaceDirent = 3,
    DeleteDirent = 4,
    PutSymlink = 5,
    DeleteSymlink = 6,
    PutXattr = 7,
    DeleteXattr = 8,
    DeleteXattrs = 9,
    PutRequest = 10,
    DeleteRequest = 11,
    PutOrphan = 12,
    DeleteOrphan = 13,
    PutSeal = 14,
    DeleteSeal = 15,
    PutNode = 16,
    DeleteNode = 17,
    PutKek = 18,
    PutSegment = 19,
    DeleteSegment = 20,
    PutWipe = 21,
    DeleteWipe = 22,
    InsertDirent = 23,
}

/// Number, statement, values it takes.
const CHANGES: [(Change, &str, usize); 23] = [
    (Change::PutInode, "INSERT OR REPLACE INTO inode VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14)", 14),
    (Change::DeleteInode, "DELETE FROM inode WHERE ino = ?1", 1),
    (Change::ReplaceDirent, "INSERT OR REPLACE INTO dirent VALUES (?1,?2,?3,?4)", 4),
    (Change::DeleteDirent, "DELETE FROM dirent WHERE parent = ?1 AND name = ?2", 2),
    (Change::PutSymlink, "INSERT INTO symlink VALUES (?1,?2)", 2),
    (Change::DeleteSymlink, "DELETE FROM symlink WHERE ino = ?1", 1),
    (Change::PutXattr, "INSERT OR REPLACE INTO xattr VALUES (?1,?2,?3)", 3),
    (Change::DeleteXattr, "DELETE FROM xattr WHERE ino = ?1 AND name = ?2", 2),
    (Change::DeleteXattrs, "DELETE FROM xattr WHERE ino = ?1", 1),
    (Change::PutRequest, "INSERT OR REPLACE INTO request VALUES (?1,?2,?3)", 3),
    (Change::DeleteRequest, "DELETE FROM request WHERE ino = ?1", 1),
    (Change::PutOrphan, "INSERT OR IGNORE INTO orphan VALUES (?1)", 1),
    (Change::DeleteOrphan, "DELETE FROM orphan WHERE ino = ?1", 1),
    (
        Change::PutSeal,
        "INSERT OR REPLACE INTO seal (ino, seal_id, method, cipher, kek, key_id, wrapped, origin, chunk_bytes, height, map, tag, place_tag, customer_salt, customer_verifier)
         VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15)",
        15,
    ),
    (Change::DeleteSeal, "DELETE FROM seal WHERE ino = ?1", 1),
    (Change::PutNode, "INSERT OR REPLACE INTO node VALUES (?1,?2)", 2),
    (Change::DeleteNode, "DELETE FROM node WHERE id = ?1", 1),
    (Change::PutKek, "INSERT OR REPLACE INTO kek VALUES (?1,?2,?3,?4,?5,?6)", 6),
    (Change::PutSegment, "INSERT OR REPLACE INTO segment VALUES (?1,?2,?3)", 3),
    (Change::DeleteSegment, "DELETE FROM segment WHERE id = ?1", 1),
    (Change::PutWipe, "INSERT OR REPLACE INTO wipe VALUES (?1,?2,?3)", 3),
    (Change::DeleteWipe, "DELETE FROM wipe WHERE segment = ?1 AND position = ?2", 2),
    (Change::InsertDirent, "INSERT INTO dirent VALUES (?1,?2,?3,?4)", 4),
];

impl Change {
    fn sql(self) -> &'static str {
        CHANGES[self as usize - 1].1
    }

    fn from_code(code: u8) -> Option<(Change, usize)> {
        CHANGES.get((code as usize).checked_sub(1)?).map(|(change, _, values)| (*change, *values))
    }
}

/// What has changed since it was last taken.
#[derive(Debug, Default)]
pub struct Redo {
    /// Packed changes, as an INTENT record has them.
    pub packed: Vec<u8>,
    pub changes: u32,
    /// There were changes that no intent can carry, or too many.
    pub unfit: bool,
}

impl Redo {
    pub fn is_empty(&self) -> bool {
        self.changes == 0 && !self.unfit
    }

    /// `patched`: this one of the values is told by what it changes.
    fn record(&mut self, change: Change, values: &[&dyn ToSql], patched: Option<(usize, Patch)>) {
        if self.unfit {
            return;
        }
        self.packed.extend_from_slice(&[change as u8, values.len() as u8]);
        for (i, v) in values.iter().enumerate() {
            if let Some((at, patch)) = &patched
                && *at == i
            {
                self.packed.push(PATCH);
                patch.pack(&mut self.packed);
                continue;
            }
            match v.to_sql() {
                Ok(ToSqlOutput::Borrowed(v)) => pack_value(&mut self.packed, v),
                Ok(ToSqlOutput::Owned(v)) => pack_value(&mut self.packed, ValueRef::from(&v)),
                _ => self.unfit = true,
            }
        }
        self.changes += 1;
        if self.packed.len() > REDO_BYTES_MAX {
            self.unfit();
        }
    }

    pub(super) fn unfit(&mut self) {
        *self = Redo { unfit: true, ..Redo::default() };
    }

    /// How much is recorded, for [`Redo::back_to`].
    pub(super) fn mark(&self) -> (usize, u32) {
        (self.packed.len(), self.changes)
    }

    /// What was recorded since was undone. Once unfit it stays so, which costs a commit and nothing else.
    pub(super) fn back_to(&mut self, (bytes, changes): (usize, u32)) {
        if !self.unfit {
            self.packed.truncate(bytes);
            self.changes = changes;
        }
    }
}

/// The kind of a value that is told as a patch.
const PATCH: u8 = 4;

/// A value as an intent tells it.
#[derive(Debug, Clone, PartialEq)]
enum Told {
    Whole(Value),
    Patch(Patch),
}

fn pack_value(out: &mut Vec<u8>, v: ValueRef) {
    let mut field = |kind: u8, bytes: &[u8]| {
        out.push(kind);
        out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        out.extend_from_slice(bytes);
    };
    match v {
        ValueRef::Integer(i) => {
            out.push(1);
            out.extend_from_slice(&i.to_le_bytes());
        }
        ValueRef::Text(t) => field(2, t),
        ValueRef::Blob(b) => field(3, b),
        // The catalog's tables hold no floating-point numbers.
        ValueRef::Null | ValueRef::Real(_) => out.push(0),
    }
}

pub(super) fn take<'a>(rest: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (a, b) = rest.split_at_checked(n)?;
    *rest = b;
    Some(a)
}

fn parse_value(rest: &mut &[u8]) -> Option<Told> {
    let kind = take(rest, 1)?[0];
    let field = |rest: &mut &[u8]| {
        let n = u32::from_le_bytes(take(rest, 4)?.try_into().ok()?);
        take(rest, n as usize).map(<[u8]>::to_vec)
    };
    Some(Told::Whole(match kind {
        PATCH => return Patch::parse(rest).map(Told::Patch),
        0 => Value::Null,
        1 => Value::Integer(i64::from_le_bytes(take(rest, 8)?.try_into().ok()?)),
        2 => Value::Text(String::from_utf8(field(rest)?).ok()?),
        3 => Value::Blob(field(rest)?),
        _ => return None,
    }))
}

/// Packed changes taken apart; None unless they are exactly `count` known ones.
fn parse(mut packed: &[u8], count: u32) -> Option<Vec<(Change, Vec<Told>)>> {
    let mut out = Vec::new();
    for _ in 0..count {
        let head = take(&mut packed, 2)?;
        let (change, values) = Change::from_code(head[0])?;
        if head[1] as usize != values {
            return None;
        }
        out.push((change, (0..values).map(|_| parse_value(&mut packed)).collect::<Option<_>>()?));
    }
    packed.is_empty().then_some(out)
}

impl Reader {
    /// The blob that a change may patch, as it is in the row with this key.
    fn blob_of(&self, change: Change, key: i64) -> Result<Option<Vec<u8>>, CatalogError> {
        match change {
            Change::PutNode => self.node(key as u64),
            Change::PutSeal => self.seal_map(key as u64),
            _ => Ok(None),
        }
    }
}

impl Tx<'_> {
    /// Run one recorded change inside the epoch's transaction; returns the rows it changed.
    pub(super) fn change(&self, change: Change, values: &[&dyn ToSql]) -> Result<usize, CatalogError> {
        let n = self.write(change.sql(), values)?;
        self.catalog.redo.lock().record(change, values, None);
        Ok(n)
    }

    /// The same, for a change whose value number `at`, a blob, is best told by what it changes in the row as it is.
    pub(super) fn change_blob(
        &self,
        change: Change,
        values: &[&dyn ToSql],
        at: usize,
        (key, new): (i64, &[u8]),
    ) -> Result<usize, CatalogError> {
        let recorded = new.len() > super::patch::WHOLE_BYTES_MAX && !self.catalog.redo.lock().unfit;
        let old = if recorded { self.blob_of(change, key)? } else { None };
        let patch = old.and_then(|old| Patch::between(&old, new));
        let n = self.write(change.sql(), values)?;
        self.catalog.redo.lock().record(change, values, patch.map(|p| (at, p)));
        Ok(n)
    }

    /// Take what has been recorded since the last time.
    pub fn take_redo(&self) -> Redo {
        std::mem::take(&mut self.catalog.redo.lock())
    }

    /// Make the changes of an intent again. None if they are not what [`Redo`] packs.
    ///
    /// # Errors
    /// A statement that fails; what was done before it stays in the open transaction.
    pub fn make_again(&self, packed: &[u8], count: u32) -> Result<Option<()>, CatalogError> {
        let Some(changes) = parse(packed, count) else { return Ok(None) };
        for (change, told) in changes {
            let mut values = Vec::with_capacity(told.len());
            for t in told {
                values.push(match (t, values.first()) {
                    (Told::Whole(v), _) => v,
                    (Told::Patch(p), Some(Value::Integer(key))) => {
                        match self.blob_of(change, *key)?.and_then(|old| p.apply(&old)) {
                            Some(new) => Value::Blob(new),
                            None => return Ok(None),
                        }
                    }
                    (Told::Patch(_), _) => return Ok(None),
                });
            }
            self.write(change.sql(), params_from_iter(values))?;
        }
        Ok(Some(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_statement_has_its_number_and_takes_the_values_it_says() {
        for (i, (change, sql, values)) in CHANGES.iter().enumerate() {
            assert_eq!(*change as usize, i + 1, "{sql}");
            assert_eq!(Change::from_code(*change as u8), Some((*change, *values)));
            assert!(sql.contains(&format!("?{values}")) && !sql.contains(&format!("?{}", values + 1)), "{sql}");
        }
        assert_eq!(Change::from_code(0), None);
        assert_eq!(Change::from_code(24), None);
    }

    #[test]
    fn changes_come_back_as_they_were_recorded_and_no_cut_of_them_parses() {
        let mut redo = Redo::default();
        redo.record(Change::PutXattr, &[&5i64, &&b"user.a"[..], &&b""[..]], None);
        redo.record(Change::PutRequest, &[&5i64, &"AES256", &Option::<Vec<u8>>::None], None);
        let got = parse(&redo.packed, 2).unwrap();
        let blob = |b: &[u8]| Told::Whole(Value::Blob(b.to_vec()));
        let (five, rule) = (Told::Whole(Value::Integer(5)), Told::Whole(Value::Text("AES256".into())));
        assert_eq!(got[0], (Change::PutXattr, vec![five.clone(), blob(b"user.a"), blob(b"")]));
        assert_eq!(got[1], (Change::PutRequest, vec![five, rule, Told::Whole(Value::Null)]));
        for n in 0..redo.packed.len() {
            assert!(parse(&redo.packed[..n], 2).is_none(), "cut at {n}");
        }
        assert!(parse(&redo.packed, 1).is_none() && parse(&redo.packed, 3).is_none());
    }

    #[test]
    fn statements_together_leave_nothing_when_one_fails_and_record_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog.db");
        crate::catalog::Catalog::create(&path, |_| Ok(())).unwrap();
        let catalog = crate::catalog::Catalog::open(&path).unwrap();
        let tx = catalog.lock();
        tx.insert_dirent(1, b"before", 5, 8).unwrap();
        let recorded = || {
            let redo = catalog.redo.lock();
            (redo.packed.clone(), redo.changes)
        };
        let before = recorded();
        // The name is there already.
        let failed = tx.together(|| {
            tx.delete_dirent(1, b"before")?;
            tx.insert_dirent(1, b"new", 6, 8)?;
            tx.insert_dirent(1, b"new", 7, 8)
        });
        assert!(failed.is_err());
        assert_eq!((tx.lookup(1, b"before").unwrap(), tx.lookup(1, b"new").unwrap()), (Some((5, 8)), None));
        assert_eq!(recorded(), before);
        tx.together(|| tx.insert_dirent(1, b"new", 7, 8)).unwrap();
        assert_eq!(recorded().1, before.1 + 1);
        tx.commit().unwrap();
        assert!(!catalog.is_failed() && tx.lookup(1, b"new").unwrap() == Some((7, 8)));
        // As the first of an epoch.
        assert!(tx.together(|| tx.insert_dirent(1, b"new", 8, 8)).is_err());
        tx.commit().unwrap();
        assert!(!catalog.is_failed());
    }

    #[test]
    fn a_node_that_changes_a_little_is_made_again_from_what_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog.db");
        crate::catalog::Catalog::create(&path, |_| Ok(())).unwrap();
        let catalog = crate::catalog::Catalog::open(&path).unwrap();
        let mut body: Vec<u8> = (0..11_000).map(|i| (i % 249) as u8).collect();
        let tx = catalog.lock();
        tx.put_node(7, &body).unwrap();
        let first = tx.take_redo();
        body[5000] ^= 1;
        tx.put_node(7, &body).unwrap();
        let second = tx.take_redo();
        assert!(first.packed.len() > 11_000 && second.packed.len() < 100, "{}", second.packed.len());
        tx.delete_node(7).unwrap();
        assert_eq!(tx.make_again(&second.packed, 1).unwrap(), None, "there is nothing to patch");
        tx.make_again(&first.packed, 1).unwrap().unwrap();
        tx.make_again(&second.packed, 1).unwrap().unwrap();
        assert_eq!(tx.node(7).unwrap().unwrap(), body);
    }

    #[test]
    fn too_many_changes_are_forgotten_and_said_to_be() {
        let mut redo = Redo::default();
        let body = vec![7u8; 10_000];
        for i in 0..40i64 {
            redo.record(Change::PutNode, &[&i, &body], None);
        }
        assert!(redo.unfit && redo.packed.is_empty() && !redo.is_empty());
    }
}
