//! The encryption configuration as users see it: rules of the bucket and of directories, requests, who may change them,
//! and what became of an object.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::inode::Inode;
use super::settings::Settings;
use super::{Bucket, BucketError, now_ns};
use crate::catalog::FLAG_REQUEST;
use crate::crypto::secret::CustomerKey;
use crate::keys::provider::Calls;
use crate::rule::{Asked, Cipher, Dialect, Effective, Method, Origin, Place, Request, Rule};
use crate::types::SealId;

/// How an object's content is encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectState {
    pub method: Method,
    pub cipher: Cipher,
    /// Empty for plain content.
    pub key_id: String,
    /// The master key version now wrapping; 0 for plain content.
    pub key_version: u32,
    pub origin: String,
}

/// What `ssefs bucket show` prints.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct BucketInfo {
    pub name: String,
    pub id: String,
    pub dialect: Dialect,
    pub rule: Option<String>,
    pub directory_rules: BTreeMap<String, String>,
    /// Directories for whose new files a customer key is asked for.
    pub customer_key_directories: Vec<String>,
    pub owner_uid: u32,
    pub grants: Vec<u32>,
    pub chunk_bytes: u32,
    pub created: i64,
    pub objects: u64,
    pub bytes: u64,
    pub log_bytes: u64,
    pub segments: u64,
    pub commit_number: u64,
    pub key_service_calls: u64,
    /// Calls to external key services, by key there.
    pub external_calls: BTreeMap<String, Calls>,
}

/// What `ssefs object show` prints.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ObjectInfo {
    pub path: String,
    pub object: u64,
    pub bytes: u64,
    pub sealed_bytes: u64,
    pub method: Option<String>,
    pub cipher: Option<String>,
    pub key: Option<String>,
    pub key_version: Option<u32>,
    pub origin: Option<String>,
    pub seal_id: Option<String>,
    pub request: Option<String>,
    /// What the next PUT of it would get, and from where.
    pub effective: String,
}

impl Bucket {
    pub fn dialect(&self) -> Dialect {
        self.settings().dialect
    }

    pub fn rule(&self) -> Option<Rule> {
        self.settings().rule.clone()
    }

    pub fn dir_rule(&self, dir: u64) -> Option<Rule> {
        self.settings().dir_rules.get(&dir).cloned()
    }

    /// Who may change rules: the owner, root, and whom they granted it (SEMANTICS 46).
    pub(super) fn may_rule(&self, uid: u32) -> Result<(), BucketError> {
        let s = self.settings();
        if uid == 0 || uid == s.owner || s.grants.contains(&uid) {
            return Ok(());
        }
        Err(BucketError::Denied(format!(
            "user {uid} may not change the rules of bucket {}; its owner is user {}, who can grant it: ssefs bucket grant {} {uid}",
            s.name, s.owner, s.name
        )))
    }

    /// Rules, or directories that have one, have changed: every object asks anew whether its method is still right.
    pub(super) fn rules_changed(&self) {
        self.rule_generation.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn directories_moved(&self, any: bool) {
        if any && !self.settings().dir_rules.is_empty() {
            self.rules_changed();
        }
    }

    pub(super) fn change_settings(&self, change: impl FnOnce(&mut Settings)) {
        let mut s = (*self.settings()).clone();
        change(&mut s);
        *self.settings.write() = Arc::new(s);
        self.lists_changed();
        self.rules_changed();
    }

    /// The rule as it is stored, its key by id. A key that does not exist is found out now, not at the first write.
    fn check_rule(&self, uid: u32, rule: Rule, place: Place) -> Result<Rule, BucketError> {
        self.dialect().check_rule(&rule, place)?;
        self.may_name_key(uid, &rule)?;
        self.rule_by_id(rule)
    }

    /// Set or delete the bucket's rule; durable when it returns.
    pub fn set_rule(&self, uid: u32, rule: Option<Rule>) -> Result<(), BucketError> {
        self.health()?;
        self.may_rule(uid)?;
        // Until the rule is in force: who lets go of a key looks at the rules.
        let _sealing = self.sealing.read();
        let rule = rule.map(|r| self.check_rule(uid, r, Place::Bucket)).transpose()?;
        {
            let _permit = self.gate.names();
            self.change_settings(|s| s.rule = rule);
        }
        self.commit()
    }

    /// Set or delete the rule of a directory; durable when it returns.
    pub fn set_dir_rule(&self, uid: u32, dir: u64, rule: Option<Rule>) -> Result<(), BucketError> {
        if dir == super::ROOT {
            return self.set_rule(uid, rule);
        }
        self.health()?;
        self.may_rule(uid)?;
        if !self.inode(dir)?.state.lock().is_dir() {
            return Err(BucketError::NotDirectory);
        }
        let _sealing = self.sealing.read();
        let rule = rule.map(|r| self.check_rule(uid, r, Place::Directory)).transpose()?;
        {
            let _permit = self.gate.names();
            let text = rule.as_ref().map(|r| r.to_string());
            self.catalog().lock().set_dir_rule(dir, text.as_deref())?;
            self.change_settings(|s| match rule {
                Some(r) => drop(s.dir_rules.insert(dir, r)),
                None => drop(s.dir_rules.remove(&dir)),
            });
        }
        self.commit()
    }

    /// A removed directory takes its rule along. The caller holds the names' permit.
    pub(super) fn forget_dir_rule(&self, dir: u64) {
        if let Err(e) = self.catalog().lock().set_dir_rule(dir, None) {
            self.fail(&e.to_string());
        }
        self.change_settings(|s| drop(s.dir_rules.remove(&dir)));
    }

    /// The same for what was asked for new files below it.
    pub(super) fn forget_dir_requests(&self, dir: u64) {
        if let Err(e) = self.catalog().lock().set_dir_customer(dir, None) {
            self.fail(&e.to_string());
        }
        self.change_settings(|s| drop(s.dir_customers.remove(&dir)));
    }

    pub fn set_directory_rule(&self, uid: u32, path: &Path, rule: Option<Rule>) -> Result<(), BucketError> {
        let ino = self.walk(path)?;
        self.set_dir_rule(uid, ino, rule)
    }

    pub fn directory_rule(&self, path: &Path) -> Result<Option<Rule>, BucketError> {
        let ino = self.walk(path)?;
        Ok(if ino == super::ROOT { self.rule() } else { self.dir_rule(ino) })
    }

    /// Let a user change rules, or not any more. Only the owner and root may.
    pub fn grant(&self, caller: u32, uid: u32, allow: bool) -> Result<(), BucketError> {
        self.health()?;
        let owner = self.settings().owner;
        if caller != 0 && caller != owner {
            return Err(BucketError::Denied(format!("only user {owner}, the owner, and root may grant")));
        }
        {
            let _permit = self.gate.names();
            self.catalog().lock().set_grant(uid, allow)?;
            self.change_settings(|s| {
                if allow {
                    s.grants.insert(uid);
                } else {
                    s.grants.remove(&uid);
                }
            });
        }
        self.commit()
    }

    pub fn request(&self, ino: u64) -> Result<Option<Request>, BucketError> {
        let inode = self.inode(ino)?;
        let mut st = inode.state.lock();
        self.request_in(&mut st)
    }

    /// Set or end the request of a file. One set on a file with content converts it (SEMANTICS, Extended attributes).
    pub fn set_request(self: &Arc<Self>, ino: u64, request: Option<Request>) -> Result<(), BucketError> {
        self.set_request_with(ino, request, None)
    }

    /// The same; with the customer key when the request is for SSE-C. Where one takes another's place, the data key is wrapped
    /// anew and content stays as it is.
    pub(super) fn set_request_with(
        self: &Arc<Self>,
        ino: u64,
        request: Option<Request>,
        customer: Option<&Arc<CustomerKey>>,
    ) -> Result<(), BucketError> {
        self.health()?;
        if let Some(r) = &request {
            self.dialect().check_request(r)?;
            self.resolve_asked(&r.into())?;
        }
        let sealing = self.sealing.read();
        let request = request.map(|r| self.request_by_id(r)).transpose()?;
        let inode = self.inode(ino)?;
        let _io = inode.io.write();
        if !inode.state.lock().is_file() {
            return Err(BucketError::Invalid("requests are for regular files"));
        }
        {
            // The content is verified under the old request before the new one takes its place.
            self.warm(&inode)?;
            let seal = self.content(&mut inode.state.lock())?.seal.clone();
            let rewrapped = match (seal, customer) {
                (Some(seal), Some(key)) if seal.is_customer() => Some(Arc::new(seal.rewrapped(key)?)),
                _ => None,
            };
            let _permit = self.gate.names();
            let tx = self.catalog().lock();
            match &request {
                Some(r) => {
                    let (rule, tag) = self.request_row(ino, r);
                    tx.put_request(ino, &rule, &tag)?;
                }
                None => tx.delete_request(ino)?,
            }
            drop(tx);
            let mut st = inode.state.lock();
            st.row.flags = st.row.flags & !FLAG_REQUEST | if request.is_some() { FLAG_REQUEST } else { 0 };
            st.request = request.clone();
            st.row.ctime = now_ns();
            if let Some(key) = customer {
                st.customer = Some(key.clone());
            }
            if let Some(c) = &mut st.content {
                if let Some(seal) = rewrapped {
                    (c.seal, c.untold) = (Some(seal), true);
                }
                c.stale |= c.seal.is_some();
                // Ending a request leaves the method as it is until the next PUT: a later write asks anew.
                c.rule_generation = 0;
            }
            self.note_change(&inode, &mut st);
        }
        drop(sealing);
        let has_content = inode.state.lock().row.size > 0;
        if request.is_some() && has_content && self.dialect().requests_win() {
            self.ensure_put(&inode)?;
        }
        let mut st = inode.state.lock();
        let sealed = st.content.as_ref().and_then(|c| c.seal.as_ref()).is_some_and(|s| s.is_customer());
        if !sealed && !matches!(request, Some(Request::SseC(_))) && st.customer.take().is_some() {
            self.unlocked.forget(ino);
        }
        Ok(())
    }

    /// What a PUT of this file, or of a new file of this user in this directory, would get.
    pub fn effective(&self, uid: u32, ino: u64) -> Result<Effective, BucketError> {
        let inode = self.inode(ino)?;
        if inode.state.lock().is_dir()
            && let Some((dir, customer)) = self.dir_request(uid, ino)?
        {
            let origin = if dir == super::ROOT { Origin::Bucket } else { Origin::Directory(self.path_of(dir)?) };
            return Ok(Effective { asked: Asked::Customer(customer), origin });
        }
        self.effective_of(&inode)
    }

    /// The id of the key that a rule names; None for rules without one.
    pub fn rule_key_id(&self, rule: &Rule) -> Result<Option<String>, BucketError> {
        match rule {
            Rule::Kms { .. } => {
                Ok(Some(self.resolve_rule(&Rule::Kms { key: rule.key().map(Into::into), sm4: false })?.key.0))
            }
            _ => Ok(None),
        }
    }

    /// None for an object without content.
    pub fn object_state(&self, ino: u64) -> Result<Option<ObjectState>, BucketError> {
        Ok(self.sealed_how(&*self.inode(ino)?)?.map(|(state, _)| state))
    }

    /// How a content is sealed, and its seal id. A locked object, or one whose key may not be used, is verified as far as that
    /// goes without its key.
    fn sealed_how(&self, inode: &Inode) -> Result<Option<(ObjectState, SealId)>, BucketError> {
        let warmed = self.warm(inode);
        let (resolved, kek, origin, id) = {
            let mut st = inode.state.lock();
            if !st.is_file() || st.row.size == 0 {
                return Ok(None);
            }
            match warmed.and_then(|()| self.content(&mut st).map(|c| c.seal.clone())) {
                Ok(Some(s)) => (s.resolved.clone(), s.kek.0, s.origin.clone(), s.id),
                Ok(None) => return Ok(None),
                Err(e @ (BucketError::Key(_) | BucketError::Customer(_))) => {
                    self.keys()?;
                    let request = self.request_in(&mut st)?;
                    let Some(row) = self.catalog().lock().seal(inode.ino)? else { return Err(e) };
                    let resolved = self.verify_place(&row, st.row.size, request.as_ref())?;
                    (resolved, row.kek, row.origin, row.seal_id)
                }
                Err(e) => return Err(e),
            }
        };
        let has_kek = !resolved.key.0.is_empty();
        let key_version = self.keks.lock().iter().find(|k| k.id == kek && has_kek).map_or(0, |k| k.key_version);
        let (method, cipher, key_id) = (resolved.method, resolved.cipher, resolved.key.0);
        Ok(Some((ObjectState { method, cipher, key_id, key_version, origin }, id)))
    }

    pub fn info(&self) -> BucketInfo {
        let s = self.settings();
        let (objects, bytes, _) = self.catalog().lock().totals().unwrap_or_default();
        let segments = self.segments.lock();
        let directory_rules = s
            .dir_rules
            .iter()
            .map(|(ino, r)| (self.path_of(*ino).map(|p| p.display().to_string()).unwrap_or_default(), r.to_string()))
            .collect();
        let shown = |ino: &u64| self.path_of(*ino).map(|p| p.display().to_string()).unwrap_or_default();
        let mut customer_key_directories: Vec<String> = s.dir_customers.keys().map(shown).collect();
        customer_key_directories.sort();
        BucketInfo {
            name: s.name.to_string(),
            id: s.id.to_string(),
            dialect: s.dialect,
            rule: s.rule.as_ref().map(|r| r.to_string()),
            directory_rules,
            customer_key_directories,
            owner_uid: s.owner,
            grants: s.grants.iter().copied().collect(),
            chunk_bytes: s.chunk_bytes,
            created: s.created,
            objects,
            bytes,
            log_bytes: segments.values().map(|s| s.live).sum(),
            segments: segments.len() as u64,
            commit_number: self.counters.lock().commit,
            key_service_calls: self.keys().map_or(0, crate::keys::KeyService::calls),
            external_calls: self.keys().map(|k| k.external_calls().into_iter().collect()).unwrap_or_default(),
        }
    }

    pub fn object_show(&self, uid: u32, path: &Path) -> Result<ObjectInfo, BucketError> {
        let ino = self.walk(path)?;
        let row = self.attr(ino)?;
        let (state, seal_id) = self.sealed_how(&*self.inode(ino)?)?.unzip();
        Ok(ObjectInfo {
            path: path.display().to_string(),
            object: ino,
            bytes: row.size,
            sealed_bytes: row.sealed,
            method: state.as_ref().map(|s| s.method.to_string()),
            cipher: state.as_ref().map(|s| s.cipher.to_string()),
            key: state.as_ref().filter(|s| !s.key_id.is_empty()).map(|s| s.key_id.clone()),
            key_version: state.as_ref().filter(|s| !s.key_id.is_empty()).map(|s| s.key_version),
            origin: state.map(|s| s.origin),
            seal_id: seal_id.map(|id| id.to_string()),
            request: self.request(ino)?.map(|r| r.to_string()),
            effective: self.effective(uid, ino)?.to_string(),
        })
    }
}
