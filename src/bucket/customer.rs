//! Customer keys (SSE-C) in memory: who has unlocked what on this mount, and whether a caller may have an object's content.
//! Keys are held here and in the inodes they opened, for as long as they are unlocked; they are never stored or given back.
//! `cutoff.rs` takes away what a key that is locked had opened.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use super::inode::{Content, Inode, State};
use super::put::Seal;
use super::{Bucket, BucketError, Done, ROOT, now_ns};
use crate::catalog::{FLAG_REQUEST, SealRow};
use crate::crypto::customer::{Salted, same};
use crate::crypto::mac;
use crate::crypto::secret::CustomerKey;
use crate::rule::{Customer, Method, Request};
use crate::types::SealId;

/// See [`Bucket::access_generation`].
pub(super) const FIRST_ACCESS: u64 = 1;
/// Files and directories that one user may have unlocked at a time.
const UNLOCKED_MAX: usize = 1024;
/// The same of all users.
const UNLOCKED_BY_ALL_MAX: usize = 32_768;
/// Directories for whose new files somebody has asked for SSE-C: they are all in memory, and one tag covers them.
const DIRECTORIES_MAX: usize = 16_384;
/// Keys of one directory: those of new files and of older ones below it.
const KEYS_OF_ONE_MAX: usize = 16;

/// What is wrong with the customer key of an object, or of a directory whose new files need one.
#[derive(Debug, thiserror::Error)]
pub enum CustomerError {
    #[error(
        "InvalidRequest: {what} needs its customer key (SSE-C), which is not unlocked for this user: ssefs object unlock {path} --key-file FILE"
    )]
    Missing { what: &'static str, path: String },
    #[error("AccessDenied: the customer key given is not the one of {what} {path}")]
    Wrong { what: &'static str, path: String },
    #[error(
        "InvalidRequest: the encryption parameters are not applicable to this object: {path} is not encrypted with a customer key"
    )]
    NotCustomer { path: String },
    #[error("InvalidRequest: {path} is not unlocked by itself for this user; {hint}")]
    NotUnlocked { path: String, hint: &'static str },
    #[error("InvalidArgument: {0}")]
    TooMany(&'static str),
}

/// Whose keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Holder {
    User(u32),
    /// By root, for the whole mount.
    Everybody,
}

/// Keys by who has unlocked what with them: a file, or a directory and all below it.
#[derive(Default)]
pub struct Unlocked(Mutex<HashMap<Holder, HashMap<u64, Vec<Arc<CustomerKey>>>>>);

impl Unlocked {
    fn add(&self, holder: Holder, ino: u64, key: Arc<CustomerKey>, instead: bool) -> Result<(), CustomerError> {
        let mut all = self.0.lock();
        let full = all.values().map(HashMap::len).sum::<usize>() >= UNLOCKED_BY_ALL_MAX;
        let of = all.entry(holder).or_default();
        if full && !of.contains_key(&ino) {
            return Err(CustomerError::TooMany("too many files are unlocked on this mount: unlock their directory"));
        }
        // Most have one key for many files.
        let key = of.values().flatten().find(|k| same(k.expose(), key.expose())).cloned().unwrap_or(key);
        if of.len() >= UNLOCKED_MAX && !of.contains_key(&ino) {
            return Err(CustomerError::TooMany("too many files are unlocked: unlock their directory, or lock some"));
        }
        let keys = of.entry(ino).or_default();
        if instead {
            keys.clear();
        }
        if keys.iter().any(|k| same(k.expose(), key.expose())) {
            return Ok(());
        }
        if keys.len() >= KEYS_OF_ONE_MAX {
            return Err(CustomerError::TooMany("too many keys for one directory: lock it first"));
        }
        keys.push(key);
        Ok(())
    }

    /// False if there was nothing to take away.
    fn remove(&self, holder: Holder, ino: u64) -> bool {
        self.0.lock().get_mut(&holder).and_then(|of| of.remove(&ino)).is_some()
    }

    fn any(&self) -> bool {
        self.0.lock().values().any(|of| !of.is_empty())
    }

    /// Keys that may open an object, given it and the directories above it; without a user, everybody's.
    fn candidates(&self, uid: Option<u32>, scopes: &[u64]) -> Vec<Arc<CustomerKey>> {
        let all = self.0.lock();
        let mut found: Vec<Arc<CustomerKey>> = Vec::new();
        for (holder, of) in all.iter() {
            if uid.is_none_or(|uid| *holder == Holder::User(uid) || *holder == Holder::Everybody) {
                found.extend(scopes.iter().filter_map(|ino| of.get(ino)).flatten().cloned());
            }
        }
        found
    }

    pub fn clear(&self) {
        self.0.lock().clear();
    }

    /// An inode that is gone takes its keys along.
    pub fn forget(&self, ino: u64) {
        for of in self.0.lock().values_mut() {
            of.remove(&ino);
        }
    }
}

/// By which value a key is told to be right.
#[derive(Debug, Clone, Copy)]
pub(super) enum Binding {
    Seal(SealId, Customer),
    /// Of a file or directory.
    Request(u64, Customer),
}

impl Binding {
    fn fits(&self, key: &CustomerKey) -> bool {
        let (Binding::Seal(_, c) | Binding::Request(_, c)) = self;
        let salted = Salted::new(key, &c.salt);
        let found = match self {
            Binding::Seal(id, _) => salted.verifier(id),
            Binding::Request(ino, _) => salted.request_verifier(*ino),
        };
        same(&found, &c.verifier)
    }
}

impl Bucket {
    /// Whether anything was ever taken away, so that who was let in has to ask again now and then.
    pub fn is_guarded(&self) -> bool {
        self.access_generation() > FIRST_ACCESS
    }

    /// Grows whenever something that was open to somebody may not be any more: who has been let in asks again then.
    pub fn access_generation(&self) -> u64 {
        self.access.load(Ordering::Acquire)
    }

    pub(super) fn access_changed(&self) {
        self.access.fetch_add(1, Ordering::AcqRel);
    }

    /// An inode and all directories above it, nearest first.
    fn scopes(&self, ino: u64) -> Result<Vec<u64>, BucketError> {
        let mut out = vec![ino];
        let mut at = ino;
        // As deep as paths can be; a cycle made from outside ends here too.
        while at != ROOT && out.len() < 4096 {
            at = match self.inode(at) {
                Ok(inode) => inode.state.lock().row.parent,
                Err(BucketError::NotFound(_)) => break,
                Err(e) => return Err(e),
            };
            if at == 0 {
                break;
            }
            out.push(at);
        }
        Ok(out)
    }

    fn shown_path(&self, ino: u64) -> String {
        let path = self.path_of(ino).unwrap_or_else(|_| PathBuf::new());
        if path.as_os_str().is_empty() { format!("(inode {ino})") } else { path.display().to_string() }
    }

    /// The customer key of a content, or of the request where there is none; None for other methods.
    fn binding(&self, st: &mut State) -> Result<Option<Binding>, BucketError> {
        let of_seal = match &st.content {
            Some(c) => c.seal.as_ref().map(|s| (s.id, s.customer)),
            None if st.fresh || self.keys.is_none() => None,
            None => self.catalog().lock().seal(st.row.ino)?.map(|row: SealRow| (row.seal_id, row.customer)),
        };
        if let Some((id, customer)) = of_seal {
            return Ok(customer.map(|c| Binding::Seal(id, c)));
        }
        self.request_binding(st)
    }

    /// The customer key that the next PUT needs.
    fn request_binding(&self, st: &mut State) -> Result<Option<Binding>, BucketError> {
        Ok(match self.request_in(st)? {
            Some(Request::SseC(c)) => Some(Binding::Request(st.row.ino, c)),
            _ => None,
        })
    }

    /// The key of an object among those that a user, or anybody at all, has unlocked. No inode's state is locked.
    fn find_key(&self, uid: Option<u32>, ino: u64, binding: &Binding) -> Result<Arc<CustomerKey>, BucketError> {
        let candidates =
            if self.unlocked.any() { self.unlocked.candidates(uid, &self.scopes(ino)?) } else { Vec::new() };
        let none = candidates.is_empty();
        candidates.into_iter().find(|k| binding.fits(k)).ok_or_else(|| {
            let (what, path) = ("the object", self.shown_path(ino));
            if none { CustomerError::Missing { what, path } } else { CustomerError::Wrong { what, path } }.into()
        })
    }

    /// Give an object the key that somebody has unlocked for it, so that background work can have its content. True if it
    /// needs none or has one.
    pub(super) fn lend_key(&self, inode: &Arc<Inode>) -> Result<bool, BucketError> {
        match self.let_in(None, inode) {
            Ok(_) => Ok(true),
            Err(BucketError::Customer(_)) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// A key that somebody has unlocked and that opens this row, for a check.
    pub(super) fn lent_key(&self, row: &SealRow) -> Option<Arc<CustomerKey>> {
        self.find_key(None, row.ino, &Binding::Seal(row.seal_id, row.customer?)).ok()
    }

    /// Whether a user may have the content of a file now; the answer is good as long as [`Bucket::access_generation`] is what
    /// is returned. The kernel has judged permissions; here it is about keys (SEMANTICS 30).
    ///
    /// # Errors
    /// A customer key that is missing or wrong, a master key that may not be used. Damage is left to who reads.
    pub fn access(&self, uid: u32, ino: u64) -> Result<u64, BucketError> {
        if self.keys.is_none() {
            return Ok(self.access_generation());
        }
        self.let_in(Some(uid), &self.inode(ino)?)
    }

    fn let_in(&self, uid: Option<u32>, inode: &Arc<Inode>) -> Result<u64, BucketError> {
        loop {
            let generation = self.access_generation();
            self.warm(inode)?;
            let (binding, needed) = {
                let mut st = inode.state.lock();
                if !st.is_file() || st.content.is_none() && st.row.size == 0 && st.row.flags & FLAG_REQUEST == 0 {
                    return Ok(generation);
                }
                match self.content(&mut st) {
                    Ok(_) | Err(BucketError::Customer(_)) => {}
                    Err(e @ BucketError::Key(_)) => return Err(e),
                    Err(_) => return Ok(generation),
                }
                let found = match self.binding(&mut st) {
                    Ok(Some(b)) => Ok(Some((b, true))),
                    // Asked for and not come to pass: only who writes needs the key.
                    Ok(None) if st.customer.is_none() => self.request_binding(&mut st).map(|b| Some((b?, false))),
                    r => r.map(|_| None),
                };
                match found {
                    Ok(Some(b)) => b,
                    Ok(None) => return self.only_keys(&mut st).map(|()| generation),
                    Err(BucketError::Damaged { .. } | BucketError::Catalog(_)) => return Ok(generation),
                    Err(e) => return Err(e),
                }
            };
            let key = match self.find_key(uid, inode.ino, &binding) {
                Err(BucketError::Customer(_)) if !needed => {
                    return self.only_keys(&mut inode.state.lock()).map(|()| generation);
                }
                key => key?,
            };
            let mut st = inode.state.lock();
            // Locked meanwhile: what takes the key out of inodes may have been here already.
            if self.access_generation() == generation {
                st.customer = Some(key);
                return self.only_keys(&mut st).map(|()| generation);
            }
        }
    }

    /// Have the content in memory, and pass over all errors but those of keys.
    fn only_keys(&self, st: &mut State) -> Result<(), BucketError> {
        let master = match self.content(st) {
            Err(e @ (BucketError::Key(_) | BucketError::Customer(_))) => return Err(e),
            Ok(Content { seal: Some(seal), .. }) if self.is_guarded() => seal.resolved.key.clone(),
            _ => return Ok(()),
        };
        if master.0.is_empty() { Ok(()) } else { self.key_stands(&master) }
    }

    /// Unlock a file, or all below a directory, for a user. Nothing is converted.
    ///
    /// # Errors
    /// Of a file: the key is not its own, or it is not encrypted with a customer key.
    pub fn unlock(&self, uid: u32, ino: u64, key: CustomerKey) -> Result<(), BucketError> {
        let (key, inode) = (Arc::new(key), self.inode(ino)?);
        self.keys()?;
        let binding = {
            let mut st = inode.state.lock();
            match st.is_dir() {
                true => None,
                false => Some(match self.binding(&mut st)? {
                    None => self.request_binding(&mut st)?,
                    b => b,
                }),
            }
        };
        match binding {
            // Whatever lies below: the files tell, each for itself.
            None => {}
            Some(Some(b)) if b.fits(&key) => {}
            Some(Some(_)) => {
                return Err(CustomerError::Wrong { what: "the object", path: self.shown_path(ino) }.into());
            }
            Some(None) => return Err(CustomerError::NotCustomer { path: self.shown_path(ino) }.into()),
        }
        let instead = binding.is_some();
        Ok(self.unlocked.add(Holder::User(uid), ino, key, instead)?)
    }

    /// Unlock everything that a key opens: for everybody when root mounts, else for the user who mounts.
    pub fn unlock_mount(&self, uid: u32, key: CustomerKey) -> Result<(), BucketError> {
        let holder = if uid == 0 { Holder::Everybody } else { Holder::User(uid) };
        Ok(self.unlocked.add(holder, ROOT, Arc::new(key), false)?)
    }

    /// Take a user's keys of a file or directory away; on the root, root's take those of the mount along. `done` is called when
    /// what only they opened is cut off: content acknowledged before is durable then, keys are wiped, pages are gone.
    pub fn lock_object(self: &Arc<Self>, uid: u32, ino: u64, done: Done) {
        let mut gone = self.unlocked.remove(Holder::User(uid), ino);
        if uid == 0 && ino == ROOT {
            gone |= self.unlocked.remove(Holder::Everybody, ROOT);
        }
        if !gone {
            let hint = "lock what it is unlocked through: a directory above it, or the mount";
            return done(Err(CustomerError::NotUnlocked { path: self.shown_path(ino), hint }.into()));
        }
        self.access_changed();
        self.cut_off(super::cutoff::What::Unlocked(ino), done);
    }

    /// Ask for SSE-C with this key: for a file, whose content is converted, or whose data key is wrapped anew; or for new files
    /// below a directory. It is unlocked for the caller by that.
    ///
    /// # Errors
    /// As for any request; an SSE-C object whose present key is not unlocked for this user.
    pub fn set_customer_key(self: &Arc<Self>, uid: u32, ino: u64, key: CustomerKey) -> Result<(), BucketError> {
        self.health()?;
        self.dialect().check_customer()?;
        let (key, inode) = (Arc::new(key), self.inode(ino)?);
        let (salted, salt) = Salted::fresh(&key)?;
        let customer = Customer { salt, verifier: salted.request_verifier(ino) };
        drop(salted);
        if inode.state.lock().is_dir() {
            self.set_dir_request(uid, &inode, Some(customer))?;
            return Ok(self.unlocked.add(Holder::User(uid), ino, key, false)?);
        }
        self.access(uid, ino)?;
        self.set_request_with(ino, Some(Request::SseC(customer)), Some(&key))?;
        self.unlocked.add(Holder::User(uid), ino, key, true)?;
        // Whoever had unlocked it with another key is let in no more.
        self.access_changed();
        Ok(())
    }

    /// End a user's request for new files below a directory.
    ///
    /// # Errors
    /// There is none that this user may end.
    pub fn end_dir_request(&self, uid: u32, ino: u64) -> Result<(), BucketError> {
        self.health()?;
        self.set_dir_request(uid, &self.inode(ino)?, None)
    }

    fn set_dir_request(&self, uid: u32, dir: &Arc<Inode>, customer: Option<Customer>) -> Result<(), BucketError> {
        let ino = dir.ino;
        {
            let _permit = self.gate.names();
            let settings = self.settings();
            let mut requests = settings.dir_customers.get(&ino).cloned().unwrap_or_default();
            if customer.is_some() && requests.is_empty() && settings.dir_customers.len() >= DIRECTORIES_MAX {
                return Err(CustomerError::TooMany("too many directories have customer keys").into());
            }
            // Who may set rules here speaks for all, the others for their own files.
            let all = self.may_rule(uid).is_ok();
            let mut set = requests.set(if all { None } else { Some(uid) }, customer);
            if !set && all && customer.is_none() {
                set = requests.set(Some(uid), None);
            }
            if !set {
                return Err(match customer {
                    None => BucketError::NoAttribute,
                    Some(_) => CustomerError::TooMany("too many users have customer keys in this directory").into(),
                });
            }
            let left = Some(requests).filter(|r| !r.is_empty());
            let text = left.as_ref().map(|r| r.stored());
            self.catalog().lock().set_dir_customer(ino, text.as_deref())?;
            self.change_settings(|s| match left {
                Some(r) => drop(s.dir_customers.insert(ino, r)),
                None => drop(s.dir_customers.remove(&ino)),
            });
            let mut st = dir.state.lock();
            st.row.ctime = now_ns();
            self.note_change(dir, &mut st);
        }
        self.commit()
    }

    /// The directory whose request holds for a user's new file in `parent`, and that request.
    pub(super) fn dir_request(&self, uid: u32, parent: u64) -> Result<Option<(u64, Customer)>, BucketError> {
        let settings = self.settings();
        if settings.dir_customers.is_empty() {
            return Ok(None);
        }
        let of = |dir: &u64| Some((*dir, *settings.dir_customers.get(dir)?.of(uid)?));
        Ok(self.scopes(parent)?.iter().find_map(of))
    }

    /// The request that a user's new file in `parent` gets: the directory's, under a salt of the file's own.
    ///
    /// # Errors
    /// The directory's key is missing or wrong: then no file is made.
    pub(super) fn inherited_request(&self, uid: u32, parent: u64, ino: u64) -> Result<Option<Request>, BucketError> {
        let Some((dir, asked)) = self.dir_request(uid, parent)? else { return Ok(None) };
        let candidates = self.unlocked.candidates(Some(uid), &self.scopes(dir)?);
        let none = candidates.is_empty();
        let key = candidates.into_iter().find(|k| Binding::Request(dir, asked).fits(k)).ok_or_else(|| {
            let (what, path) = ("a new file in the directory", self.shown_path(dir));
            if none { CustomerError::Missing { what, path } } else { CustomerError::Wrong { what, path } }
        })?;
        let (salted, salt) = Salted::fresh(&key)?;
        Ok(Some(Request::SseC(Customer { salt, verifier: salted.request_verifier(ino) })))
    }

    pub(super) fn no_customer_key(&self, ino: u64) -> BucketError {
        CustomerError::Missing { what: "the object", path: format!("(inode {ino})") }.into()
    }

    pub(super) fn wrong_customer_key(&self, ino: u64) -> BucketError {
        CustomerError::Wrong { what: "the object", path: format!("(inode {ino})") }.into()
    }

    /// The text of a request and its tag.
    pub(super) fn request_row(&self, ino: u64, request: &Request) -> (String, [u8; 32]) {
        let text = request.stored();
        let tag = mac::tag(&self.settings_key, &[b"request", &ino.to_le_bytes(), text.as_bytes()]);
        (text, tag)
    }

    /// Whether nobody who has unlocked anything can open an SSE-C content any more.
    pub(super) fn is_locked(&self, inode: &Inode) -> Result<bool, BucketError> {
        let binding = {
            let st = inode.state.lock();
            match (&st.content, &st.customer) {
                (Some(c), _) if c.seal.is_some() => {
                    c.seal.as_ref().and_then(|s| Some(Binding::Seal(s.id, s.customer?)))
                }
                (_, Some(_)) => match &st.request {
                    Some(Request::SseC(c)) => Some(Binding::Request(inode.ino, *c)),
                    // A key without anything it is for.
                    _ => return Ok(true),
                },
                _ => None,
            }
        };
        match binding.map(|b| self.find_key(None, inode.ino, &b)) {
            None | Some(Ok(_)) => Ok(false),
            Some(Err(BucketError::Customer(_))) => Ok(true),
            Some(Err(e)) => Err(e),
        }
    }
}

impl Seal {
    pub fn is_customer(&self) -> bool {
        self.resolved.method == Method::SseC
    }
}
