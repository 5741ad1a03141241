//! What a kit would open of today's keyring, and what it would miss: key by key, by the keys' own bytes.

use super::super::KeyError;
use super::super::keyring::Keyring;
use super::super::rows::{BUCKET, VERSION};
use super::{KitContents, has_bytes};
use crate::crypto::wrap::{self, BucketCtx};
use crate::types::{BucketId, KeyId};
use rusqlite::types::Value;

/// Whether a kit has a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KitHas {
    /// All of it.
    Opens,
    /// Not, or not all versions.
    Misses,
    /// No kit can: another service holds it, or it was destroyed.
    Nobody,
}

/// One key or bucket of the keyring, and whether the kit has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KitLine {
    /// `key mk-...` with its alias, or `bucket NAME`.
    pub what: String,
    pub has: KitHas,
    /// Why not.
    pub note: String,
}

impl KitContents {
    /// Holds every bucket and master key of `keys` against the kit.
    pub fn compare(&self, keys: &Keyring) -> Result<Vec<KitLine>, KeyError> {
        keys.read(|inner| {
            let root = keys.root();
            let mut lines = Vec::new();
            for bucket in &inner.snapshot.buckets {
                let ctx = BucketCtx { bucket: bucket.id, store: bucket.store, name: &bucket.name };
                let here = wrap::unwrap_bucket_key(&root, &ctx, &bucket.wrapped);
                let held = self.bucket_row(&bucket.id).map(|w| wrap::unwrap_bucket_key(&self.root, &ctx, w));
                let note = match (here, held) {
                    (_, None) => "made after the kit",
                    (Ok(here), Some(Ok(held))) if here.is_same(&held) => "",
                    (_, Some(_)) => "the kit holds another key for it",
                };
                let what = format!("bucket {}", bucket.name);
                let has = if note.is_empty() { KitHas::Opens } else { KitHas::Misses };
                lines.push(KitLine { what, has, note: note.into() });
            }
            for master in inner.snapshot.masters.values() {
                let name = master.alias.as_ref().map_or(String::new(), |alias| format!(" ({alias})"));
                let mut line =
                    KitLine { what: format!("key {}{name}", master.id), has: KitHas::Opens, note: String::new() };
                let range = (master.id.clone(), 0)..=(master.id.clone(), u32::MAX);
                let mut with_bytes = 0;
                for ((_, version), row) in inner.snapshot.versions.range(range).filter(|(_, row)| has_bytes(row)) {
                    with_bytes += 1;
                    let here = wrap::unwrap_master(&root, &master.id, *version, &row.wrapped);
                    let held = self.version_row(&master.id, *version);
                    let held = held.map(|w| wrap::unwrap_master(&self.root, &master.id, *version, w));
                    match (here, held) {
                        (Ok(here), Some(Ok(held))) if here.is_same(&held) => continue,
                        (_, None) if self.has_key(&master.id) => {
                            line.note = format!("version {version} was made after the kit");
                        }
                        (_, None) => line.note = "made after the kit".into(),
                        _ => line.note = format!("the kit holds another version {version}"),
                    }
                    line.has = KitHas::Misses;
                    break;
                }
                if with_bytes == 0 {
                    line.has = KitHas::Nobody;
                    line.note = match &master.provider {
                        Some(provider) => format!("held by {provider}: no kit has it"),
                        None => "it has no bytes any more".into(),
                    };
                }
                lines.push(line);
            }
            Ok(lines)
        })
    }

    fn bucket_row(&self, id: &BucketId) -> Option<&[u8]> {
        self.rows(BUCKET.name).iter().find_map(|row| match &row[..] {
            [Value::Blob(row_id), _, _, Value::Blob(wrapped), ..] if row_id[..] == id.0 => Some(&wrapped[..]),
            _ => None,
        })
    }

    fn version_row(&self, id: &KeyId, version: u32) -> Option<&[u8]> {
        self.rows(VERSION.name).iter().find_map(|row| match &row[..] {
            [Value::Text(row_id), Value::Integer(v), Value::Blob(wrapped), ..]
                if *row_id == id.0 && *v == i64::from(version) =>
            {
                Some(&wrapped[..])
            }
            _ => None,
        })
    }

    fn has_key(&self, id: &KeyId) -> bool {
        self.rows(VERSION.name).iter().any(|row| matches!(row.first(), Some(Value::Text(t)) if *t == id.0))
    }
}
