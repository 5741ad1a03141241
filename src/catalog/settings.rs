//! Settings, grants, directory rules, openings, KEKs and segments: the small tables, read whole when a bucket opens.

use rusqlite::params;

use super::redo::Change;
use super::{CatalogError, Reader, Tx};
use crate::types::OpenId;

/// A row of `kek`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KekRow {
    pub id: u64,
    pub key_id: String,
    pub key_version: u32,
    pub wrapped: Vec<u8>,
    /// Seconds since 1970.
    pub created: i64,
    pub uses: u64,
}

/// A row of `segment`, bytes as of the last commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentRow {
    pub id: u32,
    pub bytes: u64,
    pub live: u64,
}

impl Reader {
    pub fn settings(&self) -> Result<Vec<(String, Vec<u8>)>, CatalogError> {
        let mut s = self.0.prepare("SELECT name, value FROM setting ORDER BY name")?;
        let rows = s.query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    pub fn grants(&self) -> Result<Vec<u32>, CatalogError> {
        let mut s = self.0.prepare("SELECT uid FROM grant_rule ORDER BY uid")?;
        let rows = s.query_map([], |r| r.get::<_, i64>(0))?;
        Ok(rows.map(|r| r.map(|u| u as u32)).collect::<Result<_, _>>()?)
    }

    pub fn dir_rules(&self) -> Result<Vec<(u64, String)>, CatalogError> {
        let mut s = self.0.prepare("SELECT ino, rule FROM dir_rule ORDER BY ino")?;
        let rows = s.query_map([], |r| Ok((r.get::<_, i64>(0)? as u64, r.get(1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    pub fn dir_customers(&self) -> Result<Vec<(u64, String)>, CatalogError> {
        let mut s = self.0.prepare("SELECT ino, requests FROM dir_customer ORDER BY ino")?;
        let rows = s.query_map([], |r| Ok((r.get::<_, i64>(0)? as u64, r.get(1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Openings in order of their number; numbers are 0, 1, 2 ... without gaps.
    pub fn openings(&self) -> Result<Vec<OpenId>, CatalogError> {
        let mut s = self.0.prepare("SELECT no, open_id FROM opening ORDER BY no")?;
        let rows = s.query_map([], |r| Ok((r.get::<_, i64>(0)?, r.get::<_, Vec<u8>>(1)?)))?;
        let mut out = Vec::new();
        for r in rows {
            let (no, id) = r?;
            let bad = |why| CatalogError::BadRow { table: "opening", key: no, why };
            if no != out.len() as i64 {
                return Err(bad("numbers are not without gaps"));
            }
            out.push(OpenId::try_from(&id[..]).map_err(|_| bad("its open id is not 16 bytes"))?);
        }
        Ok(out)
    }

    pub fn keks(&self) -> Result<Vec<KekRow>, CatalogError> {
        let mut s = self.0.prepare("SELECT id, key_id, key_version, wrapped, created, uses FROM kek ORDER BY id")?;
        let rows = s.query_map([], |r| {
            Ok(KekRow {
                id: r.get::<_, i64>(0)? as u64,
                key_id: r.get(1)?,
                key_version: r.get::<_, i64>(2)? as u32,
                wrapped: r.get(3)?,
                created: r.get(4)?,
                uses: r.get::<_, i64>(5)? as u64,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// How many objects have content under a master key.
    pub fn seals_under(&self, key_id: &str) -> Result<u64, CatalogError> {
        Ok(self.0.query_row("SELECT count(*) FROM seal WHERE key_id = ?1", [key_id], |r| r.get::<_, i64>(0))? as u64)
    }

    /// What is requested, and for how many files each.
    pub fn request_rules(&self) -> Result<Vec<(String, u64)>, CatalogError> {
        let mut s = self.0.prepare("SELECT rule, count(*) FROM request GROUP BY rule")?;
        let rows = s.query_map([], |r| Ok((r.get(0)?, r.get::<_, i64>(1)? as u64)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    pub fn segments(&self) -> Result<Vec<SegmentRow>, CatalogError> {
        let mut s = self.0.prepare("SELECT id, bytes, live FROM segment ORDER BY id")?;
        let rows = s.query_map([], |r| {
            Ok(SegmentRow {
                id: r.get::<_, i64>(0)? as u32,
                bytes: r.get::<_, i64>(1)? as u64,
                live: r.get::<_, i64>(2)? as u64,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Plain runs still to be overwritten: (segment, position, bytes).
    pub fn wipes(&self) -> Result<Vec<(u32, u32, u32)>, CatalogError> {
        let mut s = self.0.prepare("SELECT segment, position, bytes FROM wipe")?;
        let rows = s.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

impl Tx<'_> {
    pub fn put_setting(&self, name: &str, value: &[u8]) -> Result<(), CatalogError> {
        self.write_unrecorded("INSERT OR REPLACE INTO setting VALUES (?1, ?2)", params![name, value])?;
        Ok(())
    }

    pub fn delete_setting(&self, name: &str) -> Result<(), CatalogError> {
        self.write_unrecorded("DELETE FROM setting WHERE name = ?1", [name])?;
        Ok(())
    }

    pub fn set_grant(&self, uid: u32, allow: bool) -> Result<(), CatalogError> {
        let sql = if allow {
            "INSERT OR IGNORE INTO grant_rule VALUES (?1)"
        } else {
            "DELETE FROM grant_rule WHERE uid = ?1"
        };
        self.write_unrecorded(sql, [uid])?;
        Ok(())
    }

    pub fn set_dir_rule(&self, ino: u64, rule: Option<&str>) -> Result<(), CatalogError> {
        match rule {
            Some(rule) => {
                self.write_unrecorded("INSERT OR REPLACE INTO dir_rule VALUES (?1, ?2)", params![ino as i64, rule])?
            }
            None => self.write_unrecorded("DELETE FROM dir_rule WHERE ino = ?1", [ino as i64])?,
        };
        Ok(())
    }

    pub fn set_dir_customer(&self, ino: u64, requests: Option<&str>) -> Result<(), CatalogError> {
        match requests {
            Some(r) => {
                self.write_unrecorded("INSERT OR REPLACE INTO dir_customer VALUES (?1, ?2)", params![ino as i64, r])?
            }
            None => self.write_unrecorded("DELETE FROM dir_customer WHERE ino = ?1", [ino as i64])?,
        };
        Ok(())
    }

    pub fn put_opening(&self, no: u32, id: &OpenId) -> Result<(), CatalogError> {
        self.write_unrecorded("INSERT INTO opening VALUES (?1, ?2)", params![no, &id.0[..]])?;
        Ok(())
    }

    /// Insert or replace.
    pub fn put_kek(&self, k: &KekRow) -> Result<(), CatalogError> {
        self.change(
            Change::PutKek,
            &[&(k.id as i64), &k.key_id, &k.key_version, &k.wrapped, &k.created, &(k.uses as i64)],
        )?;
        Ok(())
    }

    pub fn delete_kek(&self, id: u64) -> Result<(), CatalogError> {
        self.write_unrecorded("DELETE FROM kek WHERE id = ?1", [id as i64])?;
        Ok(())
    }

    /// Insert or replace.
    pub fn put_segment(&self, s: &SegmentRow) -> Result<(), CatalogError> {
        self.change(Change::PutSegment, &[&s.id, &(s.bytes as i64), &(s.live as i64)])?;
        Ok(())
    }

    pub fn delete_segment(&self, id: u32) -> Result<(), CatalogError> {
        self.change(Change::DeleteSegment, &[&id])?;
        Ok(())
    }

    pub fn put_wipe(&self, segment: u32, position: u32, bytes: u32) -> Result<(), CatalogError> {
        self.change(Change::PutWipe, &[&segment, &position, &bytes])?;
        Ok(())
    }

    pub fn delete_wipe(&self, segment: u32, position: u32) -> Result<(), CatalogError> {
        self.change(Change::DeleteWipe, &[&segment, &position])?;
        Ok(())
    }
}
