//! Work over many objects: jobs that go on after a stop, erasures under way, and what of the log is being overwritten. And the
//! pages in which such work, and the report on coverage, walk over objects.

use rusqlite::params;

use super::{CatalogError, InodeRow, Reader, SealRow, Tx};
use crate::rule::Customer;
use crate::types::SealId;

/// A row of `job`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct JobRow {
    pub id: u64,
    /// `convert` or `renew`.
    pub kind: String,
    /// The directory below which it works.
    pub dir: u64,
    /// The rule to convert to, short form; empty: the one in force.
    pub rule: String,
    pub new_keys: bool,
    /// Convert: PUTs made in a later commit are done. Renew: KEKs from this number on are new.
    pub start: u64,
    /// Seconds since 1970.
    pub created: i64,
    pub done_objects: u64,
    pub done_bytes: u64,
}

/// A row of `erase`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EraseRow {
    pub ino: u64,
    pub seal: SealId,
    /// The last segment that may hold its keys; 0 where that was not written down yet.
    pub segment: u32,
}

/// An object with its seal, but for the map.
#[derive(Debug)]
pub struct ObjectRow {
    pub inode: InodeRow,
    pub seal: Option<SealRow>,
}

/// Seals whose PUT was made up to a commit, and whose files have a name.
const OLD_SEALS: &str =
    "FROM seal s JOIN inode i ON i.ino = s.ino WHERE s.made <= ?1 AND i.nlink > 0 AND s.method <> 4";

impl Reader {
    pub fn jobs(&self) -> Result<Vec<JobRow>, CatalogError> {
        let mut s = self.0.prepare("SELECT * FROM job ORDER BY id")?;
        let rows = s.query_map([], |r| {
            Ok(JobRow {
                id: r.get::<_, i64>(0)? as u64,
                kind: r.get(1)?,
                dir: r.get::<_, i64>(2)? as u64,
                rule: r.get(3)?,
                new_keys: r.get::<_, i64>(4)? != 0,
                start: r.get::<_, i64>(5)? as u64,
                created: r.get(6)?,
                done_objects: r.get::<_, i64>(7)? as u64,
                done_bytes: r.get::<_, i64>(8)? as u64,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Number and bytes of the files whose PUT was made up to a commit.
    pub fn old_seals(&self, made: u64) -> Result<(u64, u64), CatalogError> {
        let sql = format!("SELECT count(*), coalesce(sum(i.size), 0) {OLD_SEALS}");
        let two = |r: &rusqlite::Row| Ok((r.get::<_, i64>(0)? as u64, r.get::<_, i64>(1)? as u64));
        Ok(self.0.query_row(&sql, [made as i64], two)?)
    }

    /// Up to `most` of these files above `after`, in order.
    pub fn old_seals_after(&self, made: u64, after: u64, most: usize) -> Result<Vec<u64>, CatalogError> {
        let sql = format!("SELECT s.ino {OLD_SEALS} AND s.ino > ?2 ORDER BY s.ino LIMIT ?3");
        let mut s = self.0.prepare_cached(&sql)?;
        let rows = s.query_map(params![made as i64, after as i64, most as i64], |r| r.get::<_, i64>(0))?;
        Ok(rows.map(|r| r.map(|i| i as u64)).collect::<Result<_, _>>()?)
    }

    /// Number of the objects whose data key a KEK below `kek` wraps.
    pub fn seals_of_old_keks(&self, kek: u64) -> Result<u64, CatalogError> {
        let sql = "SELECT count(*) FROM seal WHERE kek > 0 AND kek < ?1";
        Ok(self.0.query_row(sql, [kek as i64], |r| r.get::<_, i64>(0))? as u64)
    }

    /// Up to `most` of these objects above `after`, in order.
    pub fn seals_of_old_keks_after(&self, kek: u64, after: u64, most: usize) -> Result<Vec<u64>, CatalogError> {
        let sql = "SELECT ino FROM seal WHERE ino > ?2 AND kek > 0 AND kek < ?1 ORDER BY ino LIMIT ?3";
        let mut s = self.0.prepare_cached(sql)?;
        let rows = s.query_map(params![kek as i64, after as i64, most as i64], |r| r.get::<_, i64>(0))?;
        Ok(rows.map(|r| r.map(|i| i as u64)).collect::<Result<_, _>>()?)
    }

    /// Number of plain objects that have a name.
    pub fn plain_objects(&self) -> Result<u64, CatalogError> {
        let sql = "SELECT count(*) FROM seal s JOIN inode i ON i.ino = s.ino WHERE s.method = 0 AND i.nlink > 0 AND i.size > 0";
        Ok(self.0.query_row(sql, [], |r| r.get::<_, i64>(0))? as u64)
    }

    /// Up to `most` regular files above `after`, in order, each with its seal; maps are not read.
    pub fn objects_after(&self, after: u64, most: usize) -> Result<Vec<ObjectRow>, CatalogError> {
        let mut s = self.0.prepare_cached(
            "SELECT i.ino, i.nlink, i.size, i.sealed, i.parent, i.flags, s.seal_id, s.method, s.cipher, s.kek, s.key_id, s.wrapped,
               s.origin, s.chunk_bytes, s.made, s.tag, s.place_tag, s.customer_salt, s.customer_verifier
             FROM inode i LEFT JOIN seal s ON s.ino = i.ino WHERE i.ino > ?1 AND i.mode & 61440 = 32768 ORDER BY i.ino LIMIT ?2",
        )?;
        let mut rows = s.query(params![after as i64, most as i64])?;
        let mut out = Vec::with_capacity(most);
        while let Some(r) = rows.next()? {
            let n = |i: usize| r.get::<_, i64>(i).map(|v| v as u64);
            let ino = n(0)?;
            let inode = InodeRow {
                ino,
                mode: libc::S_IFREG,
                nlink: n(1)? as u32,
                size: n(2)?,
                sealed: n(3)?,
                parent: n(4)?,
                flags: n(5)? as u32,
                ..InodeRow::default()
            };
            let bad = |why| CatalogError::BadRow { table: "seal", key: ino as i64, why };
            let blob = |i: usize| r.get::<_, Vec<u8>>(i);
            let seal = match r.get::<_, Option<Vec<u8>>>(6)? {
                None => None,
                Some(id) => Some(SealRow {
                    ino,
                    seal_id: SealId::try_from(&id[..]).map_err(|_| bad("its seal id is not 16 bytes"))?,
                    method: r.get(7)?,
                    cipher: r.get(8)?,
                    kek: n(9)?,
                    key_id: r.get(10)?,
                    wrapped: blob(11)?,
                    customer: match (r.get::<_, Option<Vec<u8>>>(17)?, r.get::<_, Option<Vec<u8>>>(18)?) {
                        (Some(salt), Some(verifier)) => Some(Customer {
                            salt: salt.try_into().map_err(|_| bad("its customer salt is not 32 bytes"))?,
                            verifier: verifier.try_into().map_err(|_| bad("its customer verifier is not 32 bytes"))?,
                        }),
                        _ => None,
                    },
                    origin: r.get(12)?,
                    chunk_bytes: r.get(13)?,
                    made: n(14)?,
                    height: 0,
                    map: Vec::new(),
                    tag: blob(15)?.try_into().map_err(|_| bad("its tag is not 32 bytes"))?,
                    place_tag: blob(16)?.try_into().map_err(|_| bad("its place tag is not 32 bytes"))?,
                }),
            };
            out.push(ObjectRow { inode, seal });
        }
        Ok(out)
    }

    pub fn erases(&self) -> Result<Vec<EraseRow>, CatalogError> {
        let mut s = self.0.prepare("SELECT ino, seal_id, segment FROM erase ORDER BY ino")?;
        let mut rows = s.query([])?;
        let mut out = Vec::new();
        while let Some(r) = rows.next()? {
            let ino: i64 = r.get(0)?;
            let id: Vec<u8> = r.get(1)?;
            let seal = SealId::try_from(&id[..]).map_err(|_| CatalogError::BadRow {
                table: "erase",
                key: ino,
                why: "its seal id is not 16 bytes",
            })?;
            out.push(EraseRow { ino: ino as u64, seal, segment: r.get(2)? });
        }
        Ok(out)
    }

    /// Whether other rows than that of `ino` have the keys of this seal: content that was let go of and waits for being freed.
    pub fn seal_elsewhere(&self, seal: &SealId, ino: u64) -> Result<bool, CatalogError> {
        let mut s = self.0.prepare_cached(
            "SELECT 1 FROM orphan o JOIN seal s ON s.ino = o.ino WHERE s.seal_id = ?1 AND s.ino <> ?2",
        )?;
        Ok(s.exists(params![&seal.0[..], ino as i64])?)
    }

    /// Bytes of the log that are being overwritten: (segment, position, with what).
    pub fn redactions(&self) -> Result<Vec<(u32, u32, Vec<u8>)>, CatalogError> {
        let mut s = self.0.prepare("SELECT segment, position, bytes FROM redact ORDER BY segment, position")?;
        let rows = s.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

impl Tx<'_> {
    /// Insert or replace.
    pub fn put_job(&self, j: &JobRow) -> Result<(), CatalogError> {
        self.write_unrecorded(
            "INSERT OR REPLACE INTO job VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            params![
                j.id as i64,
                j.kind,
                j.dir as i64,
                j.rule,
                j.new_keys,
                j.start as i64,
                j.created,
                j.done_objects as i64,
                j.done_bytes as i64
            ],
        )?;
        Ok(())
    }

    pub fn delete_job(&self, id: u64) -> Result<(), CatalogError> {
        self.write_unrecorded("DELETE FROM job WHERE id = ?1", [id as i64])?;
        Ok(())
    }

    /// The row of an object whose keys are destroyed takes the place of its seal: no intent carries that.
    pub fn put_erased(&self, s: &SealRow) -> Result<(), CatalogError> {
        self.write_unrecorded(
            "INSERT OR REPLACE INTO seal (ino, seal_id, method, cipher, kek, key_id, wrapped, origin, chunk_bytes, height, map, tag, place_tag, made)
             VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14)",
            params![
                s.ino as i64,
                &s.seal_id.0[..],
                s.method,
                s.cipher,
                s.kek as i64,
                s.key_id,
                s.wrapped,
                s.origin,
                s.chunk_bytes,
                s.height,
                s.map,
                &s.tag[..],
                &s.place_tag[..],
                s.made as i64
            ],
        )?;
        Ok(())
    }

    pub fn put_erase(&self, e: &EraseRow) -> Result<(), CatalogError> {
        self.write_unrecorded(
            "INSERT OR REPLACE INTO erase VALUES (?1, ?2, ?3)",
            params![e.ino as i64, &e.seal.0[..], e.segment],
        )?;
        Ok(())
    }

    /// The log was searched for the keys of everything that was erased.
    pub fn delete_erases(&self, inos: &[u64]) -> Result<(), CatalogError> {
        for ino in inos {
            self.write_unrecorded("DELETE FROM erase WHERE ino = ?1", [*ino as i64])?;
        }
        Ok(())
    }

    /// Up to where the keys of what has no such place yet are looked for.
    pub fn bound_erases(&self, segment: u32) -> Result<(), CatalogError> {
        self.write_unrecorded("UPDATE erase SET segment = ?1 WHERE segment = 0", [segment])?;
        Ok(())
    }

    pub fn put_redaction(&self, segment: u32, position: u32, bytes: &[u8]) -> Result<(), CatalogError> {
        self.write_unrecorded("INSERT OR REPLACE INTO redact VALUES (?1, ?2, ?3)", params![segment, position, bytes])?;
        Ok(())
    }

    pub fn delete_redactions(&self, segment: u32) -> Result<(), CatalogError> {
        self.write_unrecorded("DELETE FROM redact WHERE segment = ?1", [segment])?;
        Ok(())
    }
}
