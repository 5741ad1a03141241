//! The keyring's rows: how they are tagged, verified and read. A `Snapshot` is the whole keyring, verified at once;
//! it is small, and nothing is ever used from the file that did not come through here.

use super::KeyError;
use super::masters::{KeyKind, KeyOrigin, KeyState};
use crate::crypto::mac::Mac;
use crate::crypto::secret::MacKey;
use crate::types::{BucketId, KeyId, StoreId, to_hex};
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, params_from_iter};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// A table of the keyring: its columns but the tag, and how many of them, from the first, are its primary key.
pub struct Table {
    pub name: &'static str,
    pub columns: &'static [&'static str],
    pub key_columns: usize,
}

pub const STORE: Table = Table { name: "store", columns: &["id", "path"], key_columns: 1 };
pub const BUCKET: Table = Table {
    name: "bucket",
    columns: &["id", "store_id", "name", "wrapped_key", "created", "tree_root", "commit_no"],
    key_columns: 1,
};
pub const MASTER: Table = Table {
    name: "master_key",
    columns: &[
        "id",
        "alias",
        "kind",
        "bucket_id",
        "description",
        "state",
        "created",
        "provider",
        "provider_ref",
        "origin",
        "rotate_days",
        "delete_after",
        "destroyed",
        "due_seen",
    ],
    key_columns: 1,
};
pub const VERSION: Table = Table {
    name: "master_key_version",
    columns: &["key_id", "version", "wrapped", "created", "provider_ref"],
    key_columns: 2,
};
pub const DEPENDANT: Table = Table { name: "dependant", columns: &["bucket_id", "key_id", "since"], key_columns: 2 };
pub const GRANT: Table = Table { name: "key_grant", columns: &["key_id", "uid"], key_columns: 2 };
pub const KIT: Table = Table { name: "kit", columns: &["number", "created", "id"], key_columns: 1 };
pub const KIT_KEY: Table = Table { name: "kit_key", columns: &["number", "key_id", "version"], key_columns: 2 };
pub const KIT_BUCKET: Table = Table { name: "kit_bucket", columns: &["number", "bucket_id"], key_columns: 2 };

/// Every table with tagged rows, in the order in which meta's tag covers them (FORMAT.md, "Root key and keyring").
pub const TABLES: [&Table; 9] = [&STORE, &BUCKET, &MASTER, &VERSION, &DEPENDANT, &GRANT, &KIT, &KIT_KEY, &KIT_BUCKET];

pub struct BucketRow {
    pub id: BucketId,
    pub store: StoreId,
    pub name: String,
    pub wrapped: Vec<u8>,
    pub created: i64,
}

#[derive(Clone)]
pub struct MasterRow {
    pub id: KeyId,
    pub alias: Option<String>,
    pub kind: KeyKind,
    pub bucket: Option<BucketId>,
    pub description: String,
    pub state: KeyState,
    pub created: i64,
    pub provider: Option<String>,
    pub provider_ref: Option<String>,
    pub origin: KeyOrigin,
    /// None: the default; 0: never.
    pub rotate_days: Option<u32>,
    /// Unix seconds, as all times.
    pub delete_after: Option<i64>,
    pub destroyed: Option<i64>,
    /// A `Sight` of the end of its waiting period.
    pub due_seen: Option<String>,
}

/// One version of a master key.
pub struct VersionRow {
    pub wrapped: Vec<u8>,
    pub created: i64,
    /// Its name in an external service.
    pub provider_ref: Option<String>,
}

/// A recovery kit that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KitRow {
    pub number: u32,
    /// Unix seconds.
    pub created: i64,
    pub id: [u8; 16],
}

/// Everything in the keyring as of one generation, verified.
#[derive(Default)]
pub struct Snapshot {
    pub generation: u64,
    /// The latest time the keyring has seen.
    pub clock: i64,
    pub stores: BTreeMap<StoreId, PathBuf>,
    pub buckets: Vec<BucketRow>,
    pub masters: BTreeMap<KeyId, MasterRow>,
    pub versions: BTreeMap<(KeyId, u32), VersionRow>,
    /// Since when a bucket hangs on a key.
    pub dependants: BTreeMap<(BucketId, KeyId), i64>,
    pub grants: BTreeSet<(KeyId, u32)>,
    /// Recovery kits by number; the newest version of each master key in them; the buckets in them.
    pub kits: Vec<KitRow>,
    pub kit_keys: BTreeMap<(u32, KeyId), u32>,
    pub kit_buckets: BTreeSet<(u32, BucketId)>,
    /// Tags of all rows in order, what meta's tag covers.
    tags: Vec<u8>,
}

/// The rows' key and the file they are in.
pub struct Rows<'a> {
    pub key: &'a MacKey,
    pub path: &'a Path,
}

impl Rows<'_> {
    /// Inserts a row, or replaces the one with its primary key. Any other conflict is an error.
    pub fn put(&self, db: &Connection, table: &Table, values: &[Value]) -> Result<(), KeyError> {
        let marks = vec!["?"; values.len() + 1].join(",");
        let set: Vec<_> = table.columns.iter().chain(&["tag"]).map(|c| format!("{c}=excluded.{c}")).collect();
        let sql = format!(
            "INSERT INTO {} ({}, tag) VALUES ({marks}) ON CONFLICT ({}) DO UPDATE SET {}",
            table.name,
            table.columns.join(","),
            table.columns[..table.key_columns].join(","),
            set.join(","),
        );
        let tag = Value::Blob(self.row_tag(table, values).to_vec());
        db.execute(&sql, params_from_iter(values.iter().chain([&tag]))).map_err(KeyError::sql(self.path))?;
        Ok(())
    }

    /// Reads and verifies all rows; meta's tag is `verify_meta`'s.
    pub fn load(&self, db: &Connection) -> Result<Snapshot, KeyError> {
        let mut s = Snapshot::default();
        let mut tags = Vec::new();
        for row in self.all(db, &STORE, &mut tags)? {
            let mut c = Columns { rows: self, table: &STORE, values: row.into_iter() };
            s.stores.insert(StoreId(c.array()?), PathBuf::from(OsString::from_vec(c.blob()?)));
        }
        for row in self.all(db, &BUCKET, &mut tags)? {
            let mut c = Columns { rows: self, table: &BUCKET, values: row.into_iter() };
            s.buckets.push(BucketRow {
                id: BucketId(c.array()?),
                store: StoreId(c.array()?),
                name: c.text()?,
                wrapped: c.blob()?,
                created: c.integer()?,
            });
        }
        for row in self.all(db, &MASTER, &mut tags)? {
            let mut c = Columns { rows: self, table: &MASTER, values: row.into_iter() };
            let row = MasterRow {
                id: KeyId(c.text()?),
                alias: c.optional(Columns::text)?,
                kind: c.text().and_then(|t| KeyKind::parse(&t).ok_or_else(|| c.bad("kind")))?,
                bucket: c.optional(Columns::array)?.map(BucketId),
                description: c.text()?,
                state: c.text().and_then(|t| KeyState::parse(&t).ok_or_else(|| c.bad("state")))?,
                created: c.integer()?,
                provider: c.optional(Columns::text)?,
                provider_ref: c.optional(Columns::text)?,
                origin: c.text().and_then(|t| KeyOrigin::parse(&t).ok_or_else(|| c.bad("origin")))?,
                rotate_days: c.optional(Columns::small)?,
                delete_after: c.optional(Columns::integer)?,
                destroyed: c.optional(Columns::integer)?,
                due_seen: c.optional(Columns::text)?,
            };
            s.masters.insert(row.id.clone(), row);
        }
        for row in self.all(db, &VERSION, &mut tags)? {
            let mut c = Columns { rows: self, table: &VERSION, values: row.into_iter() };
            let id = KeyId(c.text()?);
            let version = c.small()?;
            let (wrapped, created, provider_ref) = (c.blob()?, c.integer()?, c.optional(Columns::text)?);
            s.versions.insert((id, version), VersionRow { wrapped, created, provider_ref });
        }
        for row in self.all(db, &DEPENDANT, &mut tags)? {
            let mut c = Columns { rows: self, table: &DEPENDANT, values: row.into_iter() };
            s.dependants.insert((BucketId(c.array()?), KeyId(c.text()?)), c.integer()?);
        }
        for row in self.all(db, &GRANT, &mut tags)? {
            let mut c = Columns { rows: self, table: &GRANT, values: row.into_iter() };
            s.grants.insert((KeyId(c.text()?), c.small()?));
        }
        for row in self.all(db, &KIT, &mut tags)? {
            let mut c = Columns { rows: self, table: &KIT, values: row.into_iter() };
            s.kits.push(KitRow { number: c.small()?, created: c.integer()?, id: c.array()? });
        }
        for row in self.all(db, &KIT_KEY, &mut tags)? {
            let mut c = Columns { rows: self, table: &KIT_KEY, values: row.into_iter() };
            s.kit_keys.insert((c.small()?, KeyId(c.text()?)), c.small()?);
        }
        for row in self.all(db, &KIT_BUCKET, &mut tags)? {
            let mut c = Columns { rows: self, table: &KIT_BUCKET, values: row.into_iter() };
            s.kit_buckets.insert((c.small()?, BucketId(c.array()?)));
        }
        s.tags = tags;
        Ok(s)
    }

    /// Checks meta's tag over `snapshot` and gives it its generation.
    pub fn verify_meta(&self, db: &Connection, snapshot: &mut Snapshot) -> Result<(), KeyError> {
        let (root_id, generation, clock, tag): (Vec<u8>, i64, i64, Vec<u8>) = db
            .query_row("SELECT root_id, generation, clock, tag FROM meta", [], |r| {
                Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?))
            })
            .map_err(KeyError::sql(self.path))?;
        if !self.meta_mac(&root_id, generation, clock, snapshot).verify(&tag) {
            return Err(KeyError::RowsAltered { path: self.path.to_owned() });
        }
        snapshot.generation = generation as u64;
        snapshot.clock = clock;
        Ok(())
    }

    /// Writes meta for `snapshot` with this generation and clock.
    pub fn put_meta(
        &self,
        db: &Connection,
        root_id: &[u8; 8],
        (generation, clock): (u64, i64),
        snapshot: &mut Snapshot,
    ) -> Result<(), KeyError> {
        let tag = self.meta_mac(root_id, generation as i64, clock, snapshot).finish();
        db.execute(
            "INSERT INTO meta (one, root_id, generation, clock, tag) VALUES (1, ?, ?, ?, ?)
             ON CONFLICT (one) DO UPDATE SET root_id=excluded.root_id, generation=excluded.generation,
             clock=excluded.clock, tag=excluded.tag",
            (&root_id[..], generation as i64, clock, &tag[..]),
        )
        .map_err(KeyError::sql(self.path))?;
        snapshot.generation = generation;
        snapshot.clock = clock;
        Ok(())
    }

    /// The root key id the keyring asks for; read before there is a key to verify it with.
    pub fn root_id(db: &Connection, path: &Path) -> Result<[u8; 8], KeyError> {
        let id: Option<Vec<u8>> =
            db.query_row("SELECT root_id FROM meta", [], |r| r.get(0)).optional().map_err(KeyError::sql(path))?;
        id.and_then(|id| id.try_into().ok())
            .ok_or_else(|| KeyError::KeyringDamaged { path: path.to_owned(), why: "no root key id".into() })
    }

    /// The rows of one table by primary key, verified, without their tags; those go behind `tags`.
    pub fn all(&self, db: &Connection, table: &Table, tags: &mut Vec<u8>) -> Result<Vec<Vec<Value>>, KeyError> {
        let n = table.columns.len();
        let key = table.columns[..table.key_columns].join(",");
        let sql = format!("SELECT {}, tag FROM {} ORDER BY {key}", table.columns.join(","), table.name);
        let mut statement = db.prepare(&sql).map_err(KeyError::sql(self.path))?;
        let rows = statement
            .query_map([], |r| (0..=n).map(|i| r.get::<_, Value>(i)).collect::<Result<Vec<_>, _>>())
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(KeyError::sql(self.path))?;
        let mut out = Vec::with_capacity(rows.len());
        tags.extend_from_slice(table.name.as_bytes());
        tags.extend_from_slice(&(rows.len() as u64).to_le_bytes());
        for mut row in rows {
            let tag = row.pop();
            let good = matches!(&tag, Some(Value::Blob(t)) if self.row_mac(table, &row).verify(t));
            let Some(Value::Blob(tag)) = tag.filter(|_| good) else {
                let row = row[..table.key_columns].iter().map(printed).collect::<Vec<_>>().join(" ");
                return Err(KeyError::RowAltered { path: self.path.to_owned(), table: table.name, row });
            };
            tags.extend_from_slice(&tag);
            out.push(row);
        }
        Ok(out)
    }

    fn row_tag(&self, table: &Table, values: &[Value]) -> [u8; 32] {
        self.row_mac(table, values).finish()
    }

    /// HMAC over the table's name and each column: a type byte, then 8 bytes or a length-prefixed value.
    fn row_mac(&self, table: &Table, values: &[Value]) -> Mac {
        let mut mac = Mac::new(self.key);
        mac.field(table.name.as_bytes());
        for value in values {
            match value {
                Value::Null => mac.update(&[0]),
                Value::Integer(i) => mac.update(&[1]).update(&i.to_le_bytes()),
                Value::Text(t) => mac.update(&[2]).field(t.as_bytes()),
                Value::Blob(b) => mac.update(&[3]).field(b),
                Value::Real(r) => mac.update(&[4]).update(&r.to_bits().to_le_bytes()),
            };
        }
        mac
    }

    fn meta_mac(&self, root_id: &[u8], generation: i64, clock: i64, snapshot: &Snapshot) -> Mac {
        let mut mac = Mac::new(self.key);
        mac.field(b"meta").field(root_id).update(&generation.to_le_bytes()).update(&clock.to_le_bytes());
        mac.update(&snapshot.tags);
        mac
    }
}

/// A verified row's columns in order. A wrong type here was written by ssefs itself: the keyring counts as damaged.
struct Columns<'a> {
    rows: &'a Rows<'a>,
    table: &'static Table,
    values: std::vec::IntoIter<Value>,
}

impl Columns<'_> {
    fn bad(&self, what: &str) -> KeyError {
        KeyError::KeyringDamaged {
            path: self.rows.path.to_owned(),
            why: format!("table {}: a {what} has a wrong type or value", self.table.name),
        }
    }
    fn integer(&mut self) -> Result<i64, KeyError> {
        match self.values.next() {
            Some(Value::Integer(i)) => Ok(i),
            _ => Err(self.bad("number")),
        }
    }
    fn small(&mut self) -> Result<u32, KeyError> {
        self.integer()?.try_into().map_err(|_| self.bad("number"))
    }
    fn text(&mut self) -> Result<String, KeyError> {
        match self.values.next() {
            Some(Value::Text(t)) => Ok(t),
            _ => Err(self.bad("text")),
        }
    }
    fn blob(&mut self) -> Result<Vec<u8>, KeyError> {
        match self.values.next() {
            Some(Value::Blob(b)) => Ok(b),
            _ => Err(self.bad("blob")),
        }
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], KeyError> {
        self.blob()?.try_into().map_err(|_| self.bad("id"))
    }
    fn optional<T>(&mut self, get: impl FnOnce(&mut Self) -> Result<T, KeyError>) -> Result<Option<T>, KeyError> {
        match self.values.as_slice().first() {
            Some(Value::Null) => {
                self.values.next();
                Ok(None)
            }
            _ => get(self).map(Some),
        }
    }
}

fn printed(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Integer(i) => i.to_string(),
        Value::Real(r) => r.to_string(),
        Value::Text(t) => t.chars().take(80).collect(),
        Value::Blob(b) => to_hex(&b[..b.len().min(32)]),
    }
}

/// A path as the keyring keeps it.
pub fn path_value(path: &Path) -> Value {
    Value::Blob(path.as_os_str().as_bytes().to_vec())
}
