//! Records at the end of a flush: which chunks lie in it, which PUTs they belong to, which commit it carries.
//! The footer's tag covers them; parsing still trusts no length.

use super::segment::{u32_at, u64_at};
use crate::types::{Location, OpenId, SealId};

const TYPE_INDEX: u8 = 1;
const TYPE_COMMIT: u8 = 2;
const TYPE_INTENT: u8 = 3;
const TYPE_PUTS: u8 = 4;
/// The method whose PUTs have a salt and a verifier (FORMAT.md, Wrapped keys).
const METHOD_CUSTOMER: u8 = 3;
/// Salt and verifier of its customer key.
const CUSTOMER_BYTES: usize = 64;
/// Bytes before a record's body: type and length.
const HEAD: usize = 5;
/// Bytes of one chunk in an INDEX record.
pub const INDEX_ENTRY_BYTES: usize = 52;
/// Open ids in one INDEX record at most.
pub const OPENS_MAX: usize = 1024;
/// Bytes of an INDEX record beside its entries, with one open id.
pub const INDEX_FIXED_BYTES: usize = HEAD + 2 + 16 + 4;

/// One chunk of a flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexEntry {
    pub seal: SealId,
    pub object: u64,
    pub offset: u64,
    pub n: u32,
    /// Index into the record's table of open ids.
    pub open: u32,
    pub counter: u64,
    pub position: u32,
}

/// A KEK as the catalog has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KekRecord {
    pub kek: u64,
    pub key_id: String,
    pub version: u32,
    pub wrapped: Vec<u8>,
}

/// A PUT: enough to unwrap the data key of its chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutRecord {
    pub seal: SealId,
    pub object: u64,
    pub method: u8,
    pub cipher: u8,
    pub kek: u64,
    pub wrapped: Vec<u8>,
    /// Of method 3 alone: salt and verifier of the customer key.
    pub customer: Option<[[u8; 32]; 2]>,
}

/// A commit: `number` is about to be committed by the catalog, `durable` is known to be on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitRecord {
    pub number: u64,
    pub durable: u64,
    pub puts: u32,
    /// Root of the bucket's tree; zero until there is one.
    pub root: [u8; 32],
}

/// Changes of rows on top of a commit and of the intents before this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IntentRecord {
    pub commit: u64,
    /// From 1, without gaps.
    pub n: u32,
    /// Every flush from here to this record's own is needed by it.
    pub from: Location,
    pub changes: u32,
    /// The changes, as the catalog packs them.
    pub packed: Vec<u8>,
}

/// Any record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    Index {
        opens: Vec<OpenId>,
        entries: Vec<IndexEntry>,
    },
    Commit(CommitRecord),
    Intent(IntentRecord),
    Puts {
        commit: u64,
        keks: Vec<KekRecord>,
        puts: Vec<PutRecord>,
    },
    /// A type this program may pass over (0x80 and above).
    Skipped(u8),
}

fn head(out: &mut Vec<u8>, kind: u8) -> usize {
    out.push(kind);
    out.extend_from_slice(&[0; 4]);
    out.len()
}

fn close(out: &mut [u8], body: usize) {
    let n = (out.len() - body) as u32;
    out[body - 4..body].copy_from_slice(&n.to_le_bytes());
}

/// Append an INDEX record; entries name their opening by its place in `opens` (at most [`OPENS_MAX`]).
pub fn pack_index(out: &mut Vec<u8>, opens: &[OpenId], entries: &[IndexEntry]) {
    let body = head(out, TYPE_INDEX);
    out.extend_from_slice(&(opens.len() as u16).to_le_bytes());
    for o in opens {
        out.extend_from_slice(&o.0);
    }
    out.extend_from_slice(&(entries.len() as u32).to_le_bytes());
    for e in entries {
        out.extend_from_slice(&e.seal.0);
        out.extend_from_slice(&e.object.to_le_bytes());
        out.extend_from_slice(&e.offset.to_le_bytes());
        out.extend_from_slice(&e.n.to_le_bytes());
        out.extend_from_slice(&e.open.to_le_bytes());
        out.extend_from_slice(&e.counter.to_le_bytes());
        out.extend_from_slice(&e.position.to_le_bytes());
    }
    close(out, body);
}

impl CommitRecord {
    pub fn pack(&self, out: &mut Vec<u8>) {
        let body = head(out, TYPE_COMMIT);
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.durable.to_le_bytes());
        out.extend_from_slice(&self.puts.to_le_bytes());
        out.extend_from_slice(&self.root);
        close(out, body);
    }
}

impl IntentRecord {
    pub fn pack(&self, out: &mut Vec<u8>) {
        let body = head(out, TYPE_INTENT);
        out.extend_from_slice(&self.commit.to_le_bytes());
        for x in [self.n, self.from.segment, self.from.position, self.changes] {
            out.extend_from_slice(&x.to_le_bytes());
        }
        out.extend_from_slice(&self.packed);
        close(out, body);
    }
}

/// Append a PUTS record.
pub fn pack_puts(out: &mut Vec<u8>, commit: u64, keks: &[KekRecord], puts: &[PutRecord]) {
    let body = head(out, TYPE_PUTS);
    out.extend_from_slice(&commit.to_le_bytes());
    out.extend_from_slice(&(keks.len() as u32).to_le_bytes());
    for k in keks {
        out.extend_from_slice(&k.kek.to_le_bytes());
        out.push(k.key_id.len() as u8);
        out.extend_from_slice(k.key_id.as_bytes());
        out.extend_from_slice(&k.version.to_le_bytes());
        out.extend_from_slice(&(k.wrapped.len() as u16).to_le_bytes());
        out.extend_from_slice(&k.wrapped);
    }
    out.extend_from_slice(&(puts.len() as u32).to_le_bytes());
    for p in puts {
        out.extend_from_slice(&p.seal.0);
        out.extend_from_slice(&p.object.to_le_bytes());
        out.push(p.method);
        out.push(p.cipher);
        out.extend_from_slice(&p.kek.to_le_bytes());
        out.extend_from_slice(&(p.wrapped.len() as u16).to_le_bytes());
        out.extend_from_slice(&p.wrapped);
        if p.method == METHOD_CUSTOMER {
            out.extend_from_slice(p.customer.unwrap_or_default().as_flattened());
        }
    }
    close(out, body);
}

/// Where records hold wrapped data keys.
pub enum KeyPlace {
    Put {
        seal: SealId,
        object: u64,
        at: std::ops::Range<usize>,
    },
    /// The changes of an intent, which may hold some.
    Intent {
        at: std::ops::Range<usize>,
        changes: u32,
    },
}

/// Every place in the records of a flush that may hold wrapped data keys; None if they do not parse.
pub fn key_places(bytes: &[u8], count: u32) -> Option<Vec<KeyPlace>> {
    let mut r = Reader(bytes);
    let mut out = Vec::new();
    for _ in 0..count {
        let kind = r.u8()?;
        let len = r.u32()? as usize;
        let mut b = Reader(r.take(len)?);
        // What is behind the record, and in it behind what was read.
        let (end, tail) = (bytes.len() - r.0.len(), |b: &Reader| b.0.len());
        match kind {
            TYPE_INTENT => {
                b.take(20)?;
                let changes = b.u32()?;
                out.push(KeyPlace::Intent { at: end - tail(&b)..end, changes });
            }
            TYPE_PUTS => {
                b.u64()?;
                for _ in 0..b.u32()? {
                    b.u64()?;
                    let n = b.u8()? as usize;
                    b.take(n + 4)?;
                    let n = b.u16()? as usize;
                    b.take(n)?;
                }
                for _ in 0..b.u32()? {
                    let (seal, object) = (SealId(b.id()?), b.u64()?);
                    let method = b.u8()?;
                    b.take(1 + 8)?;
                    let n = b.u16()? as usize;
                    let start = end - tail(&b);
                    b.take(n)?;
                    if method == METHOD_CUSTOMER {
                        b.take(CUSTOMER_BYTES)?;
                    }
                    out.push(KeyPlace::Put { seal, object, at: start..start + n });
                }
            }
            TYPE_INDEX | TYPE_COMMIT => continue,
            t if t >= 0x80 => continue,
            _ => return None,
        }
        // Two readers of one form must not drift apart unnoticed.
        if kind == TYPE_PUTS && !b.0.is_empty() {
            return None;
        }
    }
    Some(out)
}

/// Reads little-endian fields; None at the first that is not there.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (a, b) = self.0.split_at_checked(n)?;
        self.0 = b;
        Some(a)
    }
    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }
    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from_le_bytes([b[0], b[1]]))
    }
    fn u32(&mut self) -> Option<u32> {
        self.take(4).map(|b| u32_at(b, 0))
    }
    fn u64(&mut self) -> Option<u64> {
        self.take(8).map(|b| u64_at(b, 0))
    }
    fn id(&mut self) -> Option<[u8; 16]> {
        self.take(16).and_then(|b| b.try_into().ok())
    }
}

/// All records of a flush; None if they do not parse exactly or one is of an unknown, needed type.
pub fn parse_records(bytes: &[u8], count: u32) -> Option<Vec<Record>> {
    let mut r = Reader(bytes);
    let mut out = Vec::new();
    for _ in 0..count {
        let kind = r.u8()?;
        let len = r.u32()? as usize;
        let mut b = Reader(r.take(len)?);
        let record = match kind {
            TYPE_INDEX => parse_index(&mut b)?,
            TYPE_COMMIT => Record::Commit(CommitRecord {
                number: b.u64()?,
                durable: b.u64()?,
                puts: b.u32()?,
                root: b.take(32)?.try_into().ok()?,
            }),
            TYPE_INTENT => Record::Intent(IntentRecord {
                commit: b.u64()?,
                n: b.u32()?,
                from: Location { segment: b.u32()?, position: b.u32()? },
                changes: b.u32()?,
                packed: std::mem::take(&mut b.0).to_vec(),
            }),
            TYPE_PUTS => parse_puts(&mut b)?,
            t if t >= 0x80 => {
                b.0 = &[];
                Record::Skipped(t)
            }
            _ => return None,
        };
        if !b.0.is_empty() {
            return None;
        }
        out.push(record);
    }
    r.0.is_empty().then_some(out)
}

fn parse_index(b: &mut Reader) -> Option<Record> {
    let m = b.u16()? as usize;
    let mut opens = Vec::new();
    for _ in 0..m {
        opens.push(OpenId(b.id()?));
    }
    let count = b.u32()? as usize;
    if b.0.len() != count.checked_mul(INDEX_ENTRY_BYTES)? {
        return None;
    }
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        let e = IndexEntry {
            seal: SealId(b.id()?),
            object: b.u64()?,
            offset: b.u64()?,
            n: b.u32()?,
            open: b.u32()?,
            counter: b.u64()?,
            position: b.u32()?,
        };
        if e.open as usize >= opens.len() {
            return None;
        }
        entries.push(e);
    }
    Some(Record::Index { opens, entries })
}

fn parse_puts(b: &mut Reader) -> Option<Record> {
    let commit = b.u64()?;
    let mut keks = Vec::new();
    for _ in 0..b.u32()? {
        let kek = b.u64()?;
        let n = b.u8()? as usize;
        let key_id = std::str::from_utf8(b.take(n)?).ok()?.to_owned();
        let version = b.u32()?;
        let n = b.u16()? as usize;
        keks.push(KekRecord { kek, key_id, version, wrapped: b.take(n)?.to_vec() });
    }
    let mut puts = Vec::new();
    for _ in 0..b.u32()? {
        let (seal, object, method, cipher, kek) = (SealId(b.id()?), b.u64()?, b.u8()?, b.u8()?, b.u64()?);
        let n = b.u16()? as usize;
        let wrapped = b.take(n)?.to_vec();
        let customer = match method {
            METHOD_CUSTOMER => Some([b.take(32)?.try_into().ok()?, b.take(32)?.try_into().ok()?]),
            _ => None,
        };
        puts.push(PutRecord { seal, object, method, cipher, kek, wrapped, customer });
    }
    Some(Record::Puts { commit, keks, puts })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_as_they_were_packed_and_no_cut_of_them_parses() {
        let entry =
            IndexEntry { seal: SealId([7; 16]), object: 5, offset: 4096, n: 100, open: 0, counter: 9, position: 8192 };
        let put = PutRecord {
            seal: SealId([7; 16]),
            object: 5,
            method: 1,
            cipher: 1,
            kek: 2,
            wrapped: vec![3; 113],
            customer: None,
        };
        let own = PutRecord { method: 3, kek: 0, customer: Some([[8; 32], [9; 32]]), ..put.clone() };
        let kek = KekRecord { kek: 2, key_id: "mk-1".into(), version: 3, wrapped: vec![1; 113] };
        let commit = CommitRecord { number: 12, durable: 11, puts: 1, root: [0; 32] };
        let mut bytes = Vec::new();
        pack_index(&mut bytes, &[OpenId([1; 16])], &[entry]);
        assert_eq!(bytes.len(), INDEX_FIXED_BYTES + INDEX_ENTRY_BYTES);
        pack_puts(&mut bytes, 12, std::slice::from_ref(&kek), &[put.clone(), own.clone()]);
        commit.pack(&mut bytes);
        let from = Location { segment: 1, position: 4096 };
        let intent = IntentRecord { commit: 11, n: 2, from, changes: 1, packed: vec![7, 0] };
        intent.pack(&mut bytes);
        let got = parse_records(&bytes, 4).unwrap();
        assert_eq!(got[0], Record::Index { opens: vec![OpenId([1; 16])], entries: vec![entry] });
        assert_eq!(got[1], Record::Puts { commit: 12, keks: vec![kek], puts: vec![put, own] });
        assert_eq!(got[2], Record::Commit(commit));
        assert_eq!(got[3], Record::Intent(intent));
        let places = key_places(&bytes, 4).unwrap();
        let wrapped = |p: &KeyPlace| match p {
            KeyPlace::Put { seal: SealId([7, ..]), object: 5, at } => Some(bytes[at.clone()] == [3; 113]),
            _ => None,
        };
        assert_eq!(places.iter().filter_map(wrapped).collect::<Vec<_>>(), [true, true]);
        assert!(matches!(&places[2], KeyPlace::Intent { at, changes: 1 } if bytes[at.clone()] == [7, 0]));
        for n in 0..bytes.len() {
            assert!(parse_records(&bytes[..n], 4).is_none(), "cut at {n}");
            assert!(key_places(&bytes[..n], 4).is_none(), "cut at {n}");
        }
        assert!(parse_records(&[9, 0, 0, 0, 0], 1).is_none(), "an unknown needed record is refused");
        assert_eq!(parse_records(&[0x80, 1, 0, 0, 0, 5], 1).unwrap(), vec![Record::Skipped(0x80)]);
    }
}
