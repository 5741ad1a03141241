//! A PUT: which method an object gets, its data key and seal, and whether a later write may go on under it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use super::inode::{Content, Inode, State};
use super::map::{Map, MapError, MapSecrets, NodeSource};
use super::{Bucket, BucketError};
use crate::catalog::{FLAG_REQUEST, SealRow};
use crate::crypto::aead::ChunkCipher;
use crate::crypto::customer::{Salted, same};
use crate::crypto::mac::{self, Mac};
use crate::crypto::secret::{BucketKey, CustomerKey, DataKey, MapKey, fill_random};
use crate::crypto::{derive, wrap};
use crate::keys::KeyService;
use crate::rule::{Asked, Cipher, Customer, Effective, Method, Origin, Request, Rule, resolve};
use crate::types::{KekId, KeyId, OpenId, SealId};

/// Chunk ciphers kept for one object.
const CIPHERS_KEPT: usize = 4;

/// Method, cipher and key that a PUT would get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    pub method: Method,
    pub cipher: Cipher,
    /// Empty for plain content, and for SSE-C.
    pub key: KeyId,
}

/// One PUT, with its keys.
pub struct Seal {
    pub id: SealId,
    pub resolved: Resolved,
    pub kek: KekId,
    pub wrapped: Vec<u8>,
    pub origin: String,
    pub chunk_bytes: u32,
    /// Of an SSE-C object: what tells its customer key.
    pub customer: Option<Customer>,
    pub map_key: MapKey,
    /// None for plain content.
    data_key: Option<DataKey>,
    ciphers: Mutex<Vec<((OpenId, u64), Arc<ChunkCipher>)>>,
}

pub fn method_code(m: Method) -> u8 {
    match m {
        Method::None => 0,
        Method::Aes256 => 1,
        Method::Kms => 2,
        Method::SseC => 3,
    }
}

pub fn cipher_code(c: Cipher) -> u8 {
    match c {
        Cipher::Plain => 0,
        Cipher::Aes256Gcm => 1,
        Cipher::Sm4Gcm => 2,
    }
}

pub(super) fn method_of(code: u8) -> Option<Method> {
    [Method::None, Method::Aes256, Method::Kms, Method::SseC].into_iter().find(|m| method_code(*m) == code)
}

fn cipher_of(code: u8) -> Option<Cipher> {
    [Cipher::Plain, Cipher::Aes256Gcm, Cipher::Sm4Gcm].into_iter().find(|c| cipher_code(*c) == code)
}

/// Bytes of the data key of what a method may be sealed with; None for what does not go together (SEMANTICS 51).
fn key_bytes(method: Method, cipher: Cipher) -> Option<usize> {
    match (method, cipher) {
        (Method::Aes256 | Method::Kms | Method::SseC, Cipher::Aes256Gcm) => Some(32),
        (Method::Kms, Cipher::Sm4Gcm) => Some(16),
        _ => None,
    }
}

fn map_key(cipher: Cipher, key: &DataKey, seal: &SealId) -> MapKey {
    if cipher == Cipher::Sm4Gcm { derive::sm4_map_key(key, seal) } else { derive::map_key(key, seal) }
}

impl Seal {
    pub fn is_plain(&self) -> bool {
        self.data_key.is_none()
    }

    pub fn secrets<'a>(&'a self, opens: &'a [OpenId]) -> MapSecrets<'a> {
        MapSecrets { key: &self.map_key, seal: self.id, opens }
    }

    /// The cipher of chunks sealed in an opening, at a counter.
    pub fn cipher(&self, bucket: &BucketKey, open_id: &OpenId, counter: u64) -> Arc<ChunkCipher> {
        let which = (*open_id, derive::window(counter));
        let mut kept = self.ciphers.lock();
        if let Some((_, c)) = kept.iter().find(|(w, _)| *w == which) {
            return c.clone();
        }
        let c = Arc::new(match &self.data_key {
            Some(k) if self.resolved.cipher == Cipher::Sm4Gcm => {
                ChunkCipher::sm4(&derive::sm4_chunk_key(k, open_id, which.1))
            }
            Some(k) => ChunkCipher::sealed(&derive::chunk_key(k, open_id, which.1)),
            None => ChunkCipher::plain(&derive::plain_chunk_key(bucket, open_id, which.1)),
        });
        if kept.len() >= CIPHERS_KEPT {
            kept.remove(0);
        }
        kept.push((which, c.clone()));
        c
    }

    /// The same PUT with its data key wrapped under another customer key: nothing that was sealed changes.
    pub fn rewrapped(&self, key: &CustomerKey) -> Result<Seal, BucketError> {
        let (Some(data_key), true) = (&self.data_key, self.is_customer()) else {
            return Err(BucketError::Invalid("only an SSE-C object has a customer key"));
        };
        let data_key = DataKey::try_from(data_key.expose())?;
        let (wrapped, customer) = wrap_for_customer(&self.id, &self.resolved, key, &data_key)?;
        Ok(Seal {
            id: self.id,
            resolved: self.resolved.clone(),
            kek: self.kek,
            wrapped,
            origin: self.origin.clone(),
            chunk_bytes: self.chunk_bytes,
            customer: Some(customer),
            map_key: map_key(self.resolved.cipher, &data_key, &self.id),
            data_key: Some(data_key),
            ciphers: Mutex::new(Vec::new()),
        })
    }

    /// seal.tag of FORMAT.md: what content there is.
    pub fn tag(&self, size: u64, height: u8, top: &[u8; 32]) -> [u8; 32] {
        let mut m = Mac::new(&self.map_key);
        m.update(b"seal").update(&self.id.0);
        m.update(&[method_code(self.resolved.method), cipher_code(self.resolved.cipher)]);
        m.update(&size.to_le_bytes()).update(&self.chunk_bytes.to_le_bytes()).update(&[height]).update(top);
        m.finish()
    }
}

/// place.tag of FORMAT.md: which object has that content, under which key, asked for by which request.
pub fn place_tag(key: &crate::crypto::secret::MacKey, row: &SealRow, size: u64, request: Option<&Request>) -> [u8; 32] {
    let mut m = Mac::new(key);
    m.update(b"place").update(&row.ino.to_le_bytes()).update(&row.seal_id.0).update(&[row.method, row.cipher]);
    m.update(&size.to_le_bytes()).update(&row.kek.to_le_bytes()).field(row.key_id.as_bytes()).field(&row.wrapped);
    m.field(row.origin.as_bytes()).update(&row.tag);
    m.field(request.map(Request::stored).unwrap_or_default().as_bytes());
    if let Some(c) = &row.customer {
        m.field(&c.salt).field(&c.verifier);
    }
    m.finish()
}

fn data_ctx<'a>(id: &SealId, resolved: &'a Resolved) -> wrap::DataCtx<'a> {
    wrap::DataCtx {
        seal_id: *id,
        method: method_code(resolved.method),
        cipher: cipher_code(resolved.cipher),
        key_id: &resolved.key,
    }
}

/// A data key wrapped under a customer key and a new salt.
fn wrap_for_customer(
    id: &SealId,
    resolved: &Resolved,
    key: &CustomerKey,
    data_key: &DataKey,
) -> Result<(Vec<u8>, Customer), BucketError> {
    let (salted, salt) = Salted::fresh(key)?;
    let wrapped = wrap::wrap_data_key(&salted.kek(id), &data_ctx(id, resolved), data_key)?;
    Ok((wrapped, Customer { salt, verifier: salted.verifier(id) }))
}

/// Reads nodes through the catalog.
pub struct CatalogNodes<'a>(pub &'a Bucket);

impl NodeSource for CatalogNodes<'_> {
    fn node(&self, id: u64) -> Result<Option<Vec<u8>>, BucketError> {
        Ok(self.0.catalog().lock().node(id)?)
    }
}

pub fn map_error(ino: u64, e: MapError) -> BucketError {
    match e {
        MapError::Source(e) => e,
        MapError::Damaged { from, to } => {
            log::error!("object {ino}: the map of bytes {from} to {to} does not verify");
            BucketError::Damaged { object: ino, from, to, why: "its map does not verify" }
        }
    }
}

impl Bucket {
    /// What a PUT of this inode would get, and from where. Only `state` of the inode and of its parents is looked at.
    pub(super) fn effective_of(&self, inode: &Inode) -> Result<Effective, BucketError> {
        let (request, parent, is_dir) = {
            let mut st = inode.state.lock();
            (self.request_in(&mut st)?, st.row.parent, st.is_dir())
        };
        let settings = self.settings();
        let mut dirs = Vec::new();
        if !settings.dir_rules.is_empty() {
            let mut at = if is_dir { inode.ino } else { parent };
            // As deep as paths can be; a cycle made from outside ends here too.
            for _ in 0..4096 {
                if let Some(rule) = settings.dir_rules.get(&at) {
                    dirs.push((self.path_of(at)?, rule));
                    break;
                }
                if at == super::ROOT || at == 0 {
                    break;
                }
                at = match self.inode(at) {
                    Ok(dir) => dir.state.lock().row.parent,
                    // A hard link outlived the directory it was made in: no directory's rule is above it.
                    Err(BucketError::NotFound(_)) => break,
                    Err(e) => return Err(e),
                };
            }
        }
        Ok(resolve(request.as_ref(), dirs, settings.rule.as_ref(), settings.dialect))
    }

    /// Method, cipher and key of what is asked for.
    pub(super) fn resolve_asked(&self, asked: &Asked) -> Result<Resolved, BucketError> {
        match asked {
            Asked::Rule(rule) => self.resolve_rule(rule),
            Asked::Customer(_) => {
                Ok(Resolved { method: asked.method(), cipher: asked.cipher(), key: KeyId(String::new()) })
            }
        }
    }

    /// Method, cipher and key of a rule; makes the default keys on first use.
    pub(super) fn resolve_rule(&self, rule: &Rule) -> Result<Resolved, BucketError> {
        if let Some(r) = self.resolved.lock().get(rule) {
            return Ok(r.clone());
        }
        let key = match rule {
            Rule::None => KeyId(String::new()),
            Rule::Aes256 => self.keys()?.managed_key(&self.id)?,
            Rule::Kms { key: None, .. } => self.keys()?.default_cmk()?,
            Rule::Kms { key: Some(name), .. } => self.keys()?.resolve(name)?,
        };
        self.note_key(&key)?;
        let r = Resolved { method: rule.method(), cipher: rule.cipher(), key };
        self.resolved.lock().insert(rule.clone(), r.clone());
        Ok(r)
    }

    /// A new PUT under a method; of SSE-C with the customer key that the inode has been given.
    pub(super) fn new_seal(&self, inode: &Inode, resolved: Resolved, origin: &Origin) -> Result<Seal, BucketError> {
        let mut id = [0u8; 16];
        fill_random(&mut id)?;
        let id = SealId(id);
        let mut customer = None;
        let (kek, wrapped, data_key, map_key) = match resolved.method {
            Method::None => (KekId(0), Vec::new(), None, derive::plain_map_key(&self.key, &id)),
            Method::SseC => {
                let given = inode.state.lock().customer.clone();
                let given = given.ok_or_else(|| self.no_customer_key(inode.ino))?;
                let key = DataKey::random()?;
                let (wrapped, c) = wrap_for_customer(&id, &resolved, &given, &key)?;
                customer = Some(c);
                let map_key = derive::map_key(&key, &id);
                (KekId(0), wrapped, Some(key), map_key)
            }
            Method::Aes256 | Method::Kms => {
                // The default key may have been destroyed and made anew: the next try asks again.
                let kek = self.current_kek(&resolved.key).inspect_err(|_| self.resolved.lock().clear());
                let (kek_id, kek) = kek?;
                let sm4 = resolved.cipher == Cipher::Sm4Gcm;
                let key = if sm4 { DataKey::random_sm4()? } else { DataKey::random()? };
                let wrapped = wrap::wrap_data_key(&kek, &data_ctx(&id, &resolved), &key)?;
                let map_key = map_key(resolved.cipher, &key, &id);
                (kek_id, wrapped, Some(key), map_key)
            }
        };
        Ok(Seal {
            id,
            resolved,
            kek,
            wrapped,
            origin: origin.to_string(),
            chunk_bytes: self.settings().chunk_bytes,
            customer,
            map_key,
            data_key,
            ciphers: Mutex::new(Vec::new()),
        })
    }

    /// Verify what of a seal row can be verified without the object's keys: whose content it is, and how it is sealed.
    pub(super) fn verify_place(
        &self,
        row: &SealRow,
        size: u64,
        request: Option<&Request>,
    ) -> Result<Resolved, BucketError> {
        let damaged = |why| {
            log::error!("object {}: {why}", row.ino);
            BucketError::Damaged { object: row.ino, from: 0, to: size, why }
        };
        let expect = place_tag(&self.place_key, row, size, request);
        if !mac::verify(&self.place_key, &[&expect], &mac::tag(&self.place_key, &[&row.place_tag])) {
            return Err(damaged("its size, method, key or place was altered"));
        }
        let (Some(method), Some(cipher)) = (method_of(row.method), cipher_of(row.cipher)) else {
            return Err(damaged("its method is unknown"));
        };
        if (method == Method::SseC) != row.customer.is_some() {
            return Err(damaged("its method and what is kept of a customer key do not go together"));
        }
        Ok(Resolved { method, cipher, key: KeyId(row.key_id.clone()) })
    }

    /// Verify a seal row and unwrap its keys. `size` is the inode's; `request` the one in force; `given` the customer key, if
    /// anybody has unlocked it.
    pub(super) fn open_seal(
        &self,
        row: &SealRow,
        size: u64,
        request: Option<&Request>,
        given: Option<&CustomerKey>,
    ) -> Result<(Seal, Map), BucketError> {
        let damaged = |why| {
            log::error!("object {}: {why}", row.ino);
            BucketError::Damaged { object: row.ino, from: 0, to: size, why }
        };
        let resolved = self.verify_place(row, size, request)?;
        let (method, cipher) = (resolved.method, resolved.cipher);
        let (data_key, map_key) = if method == Method::None {
            (None, derive::plain_map_key(&self.key, &row.seal_id))
        } else {
            let bytes = key_bytes(method, cipher)
                .ok_or(BucketError::Unsupported("the object's method is not known to this ssefs; use a newer one"))?;
            let kek = match (&row.customer, given) {
                (None, _) => self.kek(KekId(row.kek))?,
                (Some(_), None) => return Err(self.no_customer_key(row.ino)),
                (Some(c), Some(given)) => {
                    let salted = Salted::new(given, &c.salt);
                    if !same(&salted.verifier(&row.seal_id), &c.verifier) {
                        return Err(self.wrong_customer_key(row.ino));
                    }
                    Arc::new(salted.kek(&row.seal_id))
                }
            };
            let key = wrap::unwrap_data_key(&kek, &data_ctx(&row.seal_id, &resolved), &row.wrapped)
                .map_err(|_| damaged("its data key does not unwrap"))?;
            if bytes != key.expose().len() {
                return Err(damaged("its data key has another cipher's length"));
            }
            let map_key = map_key(cipher, &key, &row.seal_id);
            (Some(key), map_key)
        };
        let seal = Seal {
            id: row.seal_id,
            resolved,
            kek: KekId(row.kek),
            wrapped: row.wrapped.clone(),
            origin: row.origin.clone(),
            chunk_bytes: row.chunk_bytes,
            customer: row.customer,
            map_key,
            data_key,
            ciphers: Mutex::new(Vec::new()),
        };
        let map = Map::load(row.height, &row.map).ok_or_else(|| damaged("its map does not parse"))?;
        let opens = self.opens();
        let top =
            map.top_tag(&seal.secrets(&opens)).ok_or_else(|| damaged("its map names openings that are not there"))?;
        if !mac::verify(&seal.map_key, &[&seal.tag(size, row.height, &top)], &mac::tag(&seal.map_key, &[&row.tag])) {
            return Err(damaged("its map was altered"));
        }
        Ok((seal, map))
    }

    /// The request of an inode whose state is at hand.
    pub(super) fn request_in(&self, st: &mut State) -> Result<Option<Request>, BucketError> {
        if self.keys.is_none() || st.row.flags & FLAG_REQUEST == 0 || st.request.is_some() {
            return Ok(st.request.clone());
        }
        let ino = st.row.ino;
        let altered = || BucketError::Damaged { object: ino, from: 0, to: st.row.size, why: "its request was altered" };
        let (rule, tag) = self.catalog().lock().request(ino)?.ok_or_else(altered)?;
        if !mac::verify(&self.settings_key, &[b"request", &ino.to_le_bytes(), rule.as_bytes()], &tag) {
            return Err(altered());
        }
        st.request = Some(rule.parse().map_err(|_| altered())?);
        Ok(st.request.clone())
    }

    /// Seal and map of an object, read and verified if they are not in memory.
    pub(super) fn content<'a>(&self, st: &'a mut State) -> Result<&'a mut Content, BucketError> {
        if st.content.is_none() {
            self.keys()?;
            let request = self.request_in(st)?;
            let mut content = Content::default();
            let row = if st.fresh { None } else { self.catalog().lock().seal(st.row.ino)? };
            match row {
                Some(row) => {
                    let (seal, map) = self.open_seal(&row, st.row.size, request.as_ref(), st.customer.as_deref())?;
                    content.seal = Some(Arc::new(seal));
                    content.map = map;
                }
                None if st.row.size > 0 => {
                    log::error!("object {}: its seal row is missing", st.row.ino);
                    return Err(BucketError::Damaged {
                        object: st.row.ino,
                        from: 0,
                        to: st.row.size,
                        why: "its seal is missing",
                    });
                }
                None => {}
            }
            st.content = Some(Box::new(content));
        }
        match &mut st.content {
            Some(c) => Ok(c),
            None => Err(BucketError::Invalid("content vanished")),
        }
    }

    /// Before a write of any kind: the object has a seal, and it is the one that a write may go on under. The caller holds
    /// `io` exclusively and nothing else.
    pub(super) fn ensure_put(&self, inode: &Arc<Inode>) -> Result<Arc<Seal>, BucketError> {
        self.warm(inode)?;
        let generation = self.rule_generation.load(Ordering::Acquire);
        let have = {
            let mut st = inode.state.lock();
            let content = self.content(&mut st)?;
            match &content.seal {
                Some(s) if content.rule_generation == generation => return Ok(s.clone()),
                other => other.clone(),
            }
        };
        let effective = self.effective_of(inode)?;
        if let Some(seal) = have {
            let stays = effective.asked == Asked::Rule(Rule::None) && !seal.is_plain()
                // No rule says SSE-C, so it was asked for: only another request takes it away from under the user's key.
                || seal.is_customer() && effective.origin != Origin::Request
                || self.resolve_asked(&effective.asked)? == seal.resolved
                || effective.origin == Origin::None;
            if !stays {
                return self.convert_locked(inode, &effective);
            }
            let mut st = inode.state.lock();
            self.content(&mut st)?.rule_generation = generation;
            return Ok(seal);
        }
        let _sealing = self.sealing.read();
        let resolved = self.resolve_asked(&effective.asked)?;
        let seal = Arc::new(self.new_seal(inode, resolved, &effective.origin)?);
        let mut st = inode.state.lock();
        let content = self.content(&mut st)?;
        content.seal = Some(seal.clone());
        content.untold = true;
        content.stale = true;
        content.rule_generation = generation;
        Ok(seal)
    }
}
