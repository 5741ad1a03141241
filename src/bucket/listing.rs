//! Attributes for a listing. Inodes whose names lie together mostly lie together as well, so after a few of a
//! neighbourhood were asked for, its rows are read with one statement. It must never show a row where the inode in memory
//! knows better.

use std::collections::BTreeMap;

use super::{Attr, Bucket, BucketError};

/// Inodes of a neighbourhood.
const NEAR: u64 = 32;
/// Rows asked for one by one before all of a neighbourhood is read.
const SINGLES: u32 = 2;

enum Near {
    Singles(u32),
    /// Rows in the order of their inode numbers.
    Rows(Vec<Attr>),
}

/// What one call has read. It lasts for no more than that call: rows may change behind it.
#[derive(Default)]
pub struct Listing(BTreeMap<u64, Near>);

impl Bucket {
    /// As [`Bucket::attr`], for one entry of many.
    pub fn attr_in(&self, listing: &mut Listing, ino: u64) -> Result<Attr, BucketError> {
        if let Some(inode) = self.table.get(ino) {
            return Ok(inode.state.lock().shown());
        }
        let near = listing.0.entry(ino / NEAR).or_insert(Near::Singles(0));
        if let Near::Singles(n) = near {
            *n += 1;
            if *n <= SINGLES {
                return self.attr(ino);
            }
            let first = ino / NEAR * NEAR;
            *near = Near::Rows(self.catalog().lock().inodes_between(first, first + NEAR - 1)?);
        }
        let Near::Rows(rows) = near else { return self.attr(ino) };
        match rows.binary_search_by_key(&ino, |r| r.ino) {
            // A change since then has brought it into memory.
            Ok(i) if self.table.get(ino).is_none() => Ok(rows[i]),
            _ => self.attr(ino),
        }
    }
}
