//! Seals (one PUT each) and the nodes of maps.

use rusqlite::OptionalExtension;

use super::redo::Change;
use super::{CatalogError, Reader, Tx};
use crate::rule::Customer;
use crate::types::SealId;

/// A row of `seal`: everything about one PUT but its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealRow {
    pub ino: u64,
    pub seal_id: SealId,
    pub method: u8,
    pub cipher: u8,
    pub kek: u64,
    pub key_id: String,
    pub wrapped: Vec<u8>,
    /// Of an SSE-C object: salt and verifier of its customer key.
    pub customer: Option<Customer>,
    /// Where the method came from: `request`, `directory PATH`, `bucket` or `none`. For people; nothing is decided by it.
    pub origin: String,
    pub chunk_bytes: u32,
    pub height: u8,
    pub map: Vec<u8>,
    /// Under the object's own K_map: what content it has.
    pub tag: [u8; 32],
    /// Under the bucket's K_place: which object has it.
    pub place_tag: [u8; 32],
}

impl Reader {
    pub fn seal(&self, ino: u64) -> Result<Option<SealRow>, CatalogError> {
        let mut s = self.0.prepare_cached(
            "SELECT seal_id, method, cipher, kek, key_id, wrapped, origin, chunk_bytes, height, map, tag, place_tag,
                    customer_salt, customer_verifier FROM seal WHERE ino = ?1",
        )?;
        let found = s
            .query_row([ino as i64], |r| {
                let id: Vec<u8> = r.get(0)?;
                let tag: Vec<u8> = r.get(10)?;
                let place: Vec<u8> = r.get(11)?;
                let customer: (Option<Vec<u8>>, Option<Vec<u8>>) = (r.get(12)?, r.get(13)?);
                Ok((
                    id,
                    tag,
                    place,
                    customer,
                    SealRow {
                        ino,
                        seal_id: SealId::default(),
                        method: r.get(1)?,
                        cipher: r.get(2)?,
                        kek: r.get::<_, i64>(3)? as u64,
                        key_id: r.get(4)?,
                        wrapped: r.get(5)?,
                        customer: None,
                        origin: r.get(6)?,
                        chunk_bytes: r.get(7)?,
                        height: r.get(8)?,
                        map: r.get(9)?,
                        tag: [0; 32],
                        place_tag: [0; 32],
                    },
                ))
            })
            .optional()?;
        let Some((id, tag, place, customer, mut row)) = found else { return Ok(None) };
        let bad = |why| CatalogError::BadRow { table: "seal", key: ino as i64, why };
        row.seal_id = SealId::try_from(&id[..]).map_err(|_| bad("its seal id is not 16 bytes"))?;
        row.place_tag = place.try_into().map_err(|_| bad("its place tag is not 32 bytes"))?;
        row.customer = match customer {
            (None, None) => None,
            (Some(salt), Some(verifier)) => match (salt.try_into(), verifier.try_into()) {
                (Ok(salt), Ok(verifier)) => Some(Customer { salt, verifier }),
                _ => return Err(bad("its customer salt or verifier is not 32 bytes")),
            },
            _ => return Err(bad("it has a customer salt or a verifier alone")),
        };
        row.tag = tag.try_into().map_err(|_| bad("its tag is not 32 bytes"))?;
        Ok(Some(row))
    }

    /// Method and key id of an object's seal alone.
    pub fn seal_key(&self, ino: u64) -> Result<Option<(u8, String)>, CatalogError> {
        let mut s = self.0.prepare_cached("SELECT method, key_id FROM seal WHERE ino = ?1")?;
        Ok(s.query_row([ino as i64], |r| Ok((r.get(0)?, r.get(1)?))).optional()?)
    }

    pub fn node(&self, id: u64) -> Result<Option<Vec<u8>>, CatalogError> {
        let mut s = self.0.prepare_cached("SELECT body FROM node WHERE id = ?1")?;
        Ok(s.query_row([id as i64], |r| r.get(0)).optional()?)
    }

    /// The body of the top node of an object's map alone.
    pub fn seal_map(&self, ino: u64) -> Result<Option<Vec<u8>>, CatalogError> {
        let mut s = self.0.prepare_cached("SELECT map FROM seal WHERE ino = ?1")?;
        Ok(s.query_row([ino as i64], |r| r.get(0)).optional()?)
    }

    pub fn max_node(&self) -> Result<u64, CatalogError> {
        Ok(self.0.query_row("SELECT coalesce(max(id), 0) FROM node", [], |r| r.get::<_, i64>(0))? as u64)
    }

    /// Number of rows in `node`, for leak checks.
    pub fn node_count(&self) -> Result<u64, CatalogError> {
        Ok(self.0.query_row("SELECT count(*) FROM node", [], |r| r.get::<_, i64>(0))? as u64)
    }

    /// Number of objects whose data key is wrapped by a KEK of each master key: (key id, version, objects).
    pub fn objects_by_key(&self) -> Result<Vec<(String, i64, u64)>, CatalogError> {
        let mut s = self.0.prepare(
            "SELECT kek.key_id, kek.key_version, count(*) FROM seal JOIN kek ON kek.id = seal.kek GROUP BY 1, 2 ORDER BY 1, 2",
        )?;
        let rows = s.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get::<_, i64>(2)? as u64)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

impl Tx<'_> {
    /// Insert or replace.
    pub fn put_seal(&self, s: &SealRow) -> Result<(), CatalogError> {
        self.change_blob(
            Change::PutSeal,
            &[
                &(s.ino as i64),
                &&s.seal_id.0[..],
                &s.method,
                &s.cipher,
                &(s.kek as i64),
                &s.key_id,
                &s.wrapped,
                &s.origin,
                &s.chunk_bytes,
                &s.height,
                &s.map,
                &&s.tag[..],
                &&s.place_tag[..],
                &s.customer.as_ref().map(|c| &c.salt[..]),
                &s.customer.as_ref().map(|c| &c.verifier[..]),
            ],
            10,
            (s.ino as i64, &s.map),
        )?;
        Ok(())
    }

    pub fn delete_seal(&self, ino: u64) -> Result<(), CatalogError> {
        self.change(Change::DeleteSeal, &[&(ino as i64)])?;
        Ok(())
    }

    pub fn put_node(&self, id: u64, body: &[u8]) -> Result<(), CatalogError> {
        self.change_blob(Change::PutNode, &[&(id as i64), &body], 1, (id as i64, body))?;
        Ok(())
    }

    pub fn delete_node(&self, id: u64) -> Result<(), CatalogError> {
        self.change(Change::DeleteNode, &[&(id as i64)])?;
        Ok(())
    }
}
