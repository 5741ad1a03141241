//! What a bucket is: rule, dialect, owner, grants, directory rules. Read whole and verified when it opens; one tag
//! authenticates all of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::str::FromStr;

use super::BucketError;
use crate::catalog::{KekRow, Tx};
use crate::crypto::mac::Mac;
use crate::crypto::secret::MacKey;
use crate::rule::{Dialect, DirRequests, Rule};
use crate::types::{BucketId, BucketName, CHUNK_BYTES_MAX, OpenId};

const ALTERED: &str = "restore the catalog from a copy of the store; nothing was written";

/// The bucket's own settings.
#[derive(Debug, Clone)]
pub struct Settings {
    pub name: BucketName,
    pub id: BucketId,
    pub dialect: Dialect,
    pub owner: u32,
    pub chunk_bytes: u32,
    /// Seconds since 1970.
    pub created: i64,
    pub rule: Option<Rule>,
    pub grants: BTreeSet<u32>,
    pub dir_rules: HashMap<u64, Rule>,
    /// Customer keys asked for new files below directories.
    pub dir_customers: HashMap<u64, DirRequests>,
}

/// Numbers that every commit carries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    pub commit: u64,
    pub next_ino: u64,
    pub next_node: u64,
    pub next_segment: u32,
    pub next_kek: u64,
}

/// All of it, as one row each.
pub struct Stored {
    pub settings: Settings,
    pub counters: Counters,
    pub openings: Vec<OpenId>,
    pub keks: Vec<KekRow>,
}

fn rows(s: &Settings, c: &Counters) -> BTreeMap<&'static str, Vec<u8>> {
    let mut m: BTreeMap<&'static str, Vec<u8>> = BTreeMap::new();
    m.insert("format", b"1".to_vec());
    m.insert("features", b"0".to_vec());
    m.insert("name", s.name.as_str().into());
    m.insert("id", s.id.to_string().into());
    m.insert("dialect", s.dialect.to_string().into());
    m.insert("owner", s.owner.to_string().into());
    m.insert("chunk_bytes", s.chunk_bytes.to_string().into());
    m.insert("created", s.created.to_string().into());
    if let Some(r) = &s.rule {
        m.insert("rule", r.to_string().into());
    }
    m.insert("commit", c.commit.to_string().into());
    m.insert("next_ino", c.next_ino.to_string().into());
    m.insert("next_node", c.next_node.to_string().into());
    m.insert("next_segment", c.next_segment.to_string().into());
    m.insert("next_kek", c.next_kek.to_string().into());
    m
}

/// Digest of the lists: changes only when one of them does, so that a commit need not walk them.
pub fn lists_tag(key: &MacKey, s: &Settings, openings: &[OpenId], keks: &[KekRow]) -> [u8; 32] {
    let mut m = Mac::new(key);
    m.field(b"grants").update(&(s.grants.len() as u64).to_le_bytes());
    for uid in &s.grants {
        m.update(&uid.to_le_bytes());
    }
    let dirs: BTreeMap<&u64, &Rule> = s.dir_rules.iter().collect();
    m.field(b"dir_rules").update(&(dirs.len() as u64).to_le_bytes());
    for (ino, rule) in dirs {
        m.update(&ino.to_le_bytes()).field(rule.to_string().as_bytes());
    }
    let customers: BTreeMap<&u64, &DirRequests> = s.dir_customers.iter().collect();
    m.field(b"dir_customers").update(&(customers.len() as u64).to_le_bytes());
    for (ino, requests) in customers {
        m.update(&ino.to_le_bytes()).field(requests.stored().as_bytes());
    }
    m.field(b"openings").update(&(openings.len() as u64).to_le_bytes());
    for o in openings {
        m.update(&o.0);
    }
    m.field(b"keks").update(&(keks.len() as u64).to_le_bytes());
    for k in keks {
        m.update(&k.id.to_le_bytes()).field(k.key_id.as_bytes()).update(&k.key_version.to_le_bytes()).field(&k.wrapped);
        m.update(&k.created.to_le_bytes());
    }
    m.finish()
}

fn tag_of<'a>(key: &MacKey, rows: impl ExactSizeIterator<Item = (&'a str, &'a [u8])>, lists: &[u8; 32]) -> [u8; 32] {
    let mut m = Mac::new(key);
    m.field(b"settings").update(&(rows.len() as u64).to_le_bytes());
    for (name, value) in rows {
        m.field(name.as_bytes()).field(value);
    }
    m.update(lists);
    m.finish()
}

/// Write what differs from `before` and the new tag.
pub fn store(
    tx: &Tx,
    key: &MacKey,
    lists: &[u8; 32],
    now: (&Settings, &Counters),
    before: Option<(&Settings, &Counters)>,
) -> Result<(), BucketError> {
    let new = rows(now.0, now.1);
    let old = before.map(|(s, c)| rows(s, c)).unwrap_or_default();
    for (name, value) in &new {
        if old.get(name) != Some(value) {
            tx.put_setting(name, value)?;
        }
    }
    if old.contains_key("rule") && !new.contains_key("rule") {
        tx.delete_setting("rule")?;
    }
    let tag = tag_of(key, new.iter().map(|(k, v)| (*k, &v[..])), lists);
    tx.put_setting("tag", &tag)?;
    Ok(())
}

/// Read everything, and verify it with a key.
pub fn load(tx: &Tx, key: Option<&MacKey>, name: &BucketName) -> Result<Stored, BucketError> {
    let altered = |what| BucketError::Altered { bucket: name.to_string(), what, hint: ALTERED };
    let mut found: BTreeMap<String, Vec<u8>> = tx.settings()?.into_iter().collect();
    let tag = found.remove("tag").ok_or_else(|| altered("the settings"))?;
    fn text<'a>(found: &'a BTreeMap<String, Vec<u8>>, n: &str) -> Option<&'a str> {
        std::str::from_utf8(found.get(n)?).ok()
    }
    fn get<T: FromStr>(found: &BTreeMap<String, Vec<u8>>, n: &str) -> Option<T> {
        text(found, n)?.parse().ok()
    }
    let mut settings = (|| {
        Some(Settings {
            name: get(&found, "name")?,
            id: get(&found, "id")?,
            dialect: get(&found, "dialect")?,
            owner: get(&found, "owner")?,
            chunk_bytes: get(&found, "chunk_bytes")?,
            created: get(&found, "created")?,
            rule: match text(&found, "rule") {
                Some(r) => Some(r.parse().ok()?),
                None => None,
            },
            grants: BTreeSet::new(),
            dir_rules: HashMap::new(),
            dir_customers: HashMap::new(),
        })
    })()
    .ok_or_else(|| altered("the settings"))?;
    let counters = (|| {
        Some(Counters {
            commit: get(&found, "commit")?,
            next_ino: get(&found, "next_ino")?,
            next_node: get(&found, "next_node")?,
            next_segment: get(&found, "next_segment")?,
            next_kek: get(&found, "next_kek")?,
        })
    })()
    .ok_or_else(|| altered("the settings"))?;
    settings.grants = tx.grants()?.into_iter().collect();
    for (ino, rule) in tx.dir_rules()? {
        settings.dir_rules.insert(ino, rule.parse().map_err(|_| altered("the directory rules"))?);
    }
    for (ino, requests) in tx.dir_customers()? {
        let requests = requests.parse().map_err(|_| altered("the customer keys of directories"))?;
        settings.dir_customers.insert(ino, requests);
    }
    let openings = tx.openings()?;
    let keks = tx.keks()?;
    if let Some(key) = key {
        let lists = lists_tag(key, &settings, &openings, &keks);
        let expect = tag_of(key, found.iter().map(|(k, v)| (k.as_str(), &v[..])), &lists);
        if !crate::crypto::mac::verify(key, &[&expect], &crate::crypto::mac::tag(key, &[&tag])) {
            return Err(altered("the settings, rules, grants or keys"));
        }
    }
    if get::<u32>(&found, "features") != Some(0) {
        return Err(BucketError::Unsupported(
            "this bucket needs features that this ssefs does not know; use a newer one",
        ));
    }
    let sizes = settings.chunk_bytes;
    if !sizes.is_power_of_two() || !(4096..=CHUNK_BYTES_MAX).contains(&sizes) {
        return Err(altered("the chunk size"));
    }
    Ok(Stored { settings, counters, openings, keks })
}
