//! The attributes `user.sse.*` (SEMANTICS.md, Extended attributes): rules on the root and on directories, requests and
//! reports on files. They are read and set by name and never stored as attributes; who may set a rule is the bucket's to say.

use serde::Serialize;

use super::{Caller, Fs, FsError};
use crate::bucket::{Attr, BucketError, ROOT};
use crate::crypto::secret;
use crate::rule::{self, Cipher, Method, Place, Request, Rule, RuleError};

/// What all of them begin with.
pub const PREFIX: &[u8] = b"user.sse.";

/// One of the attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    Default,
    DefaultAlgorithm,
    DefaultKmsKeyId,
    DefaultDataEncryption,
    DefaultXml,
    Algorithm,
    KmsKeyId,
    DataEncryption,
    KeyVersion,
    CustomerAlgorithm,
    CustomerKey,
    Unlock,
    Effective,
    State,
    LastError,
}

use Name::*;

const NAMES: [(Name, &str); 15] = [
    (Default, "user.sse.default"),
    (DefaultAlgorithm, "user.sse.default.algorithm"),
    (DefaultKmsKeyId, "user.sse.default.kms-key-id"),
    (DefaultDataEncryption, "user.sse.default.data-encryption"),
    (DefaultXml, "user.sse.default.xml"),
    (Algorithm, "user.sse.algorithm"),
    (KmsKeyId, "user.sse.kms-key-id"),
    (DataEncryption, "user.sse.data-encryption"),
    (KeyVersion, "user.sse.key-version"),
    (CustomerAlgorithm, "user.sse.customer-algorithm"),
    (CustomerKey, "user.sse.customer-key"),
    (Unlock, "user.sse.unlock"),
    (Effective, "user.sse.effective"),
    (State, "user.sse.state"),
    (LastError, "user.sse.last-error"),
];

impl Name {
    pub fn parse(name: &[u8]) -> Option<Name> {
        NAMES.iter().find(|(_, text)| text.as_bytes() == name).map(|(n, _)| *n)
    }

    pub fn text(self) -> &'static str {
        NAMES.iter().find(|(n, _)| *n == self).map_or("", |(_, text)| text)
    }

    fn of_rules(self) -> bool {
        matches!(self, Default | DefaultAlgorithm | DefaultKmsKeyId | DefaultDataEncryption | DefaultXml)
    }

    fn on(self, kind: Kind) -> bool {
        match self {
            Effective | State | LastError => true,
            CustomerKey | Unlock => kind != Kind::Other,
            _ if self.of_rules() => matches!(kind, Kind::Root | Kind::Directory),
            _ => kind == Kind::File,
        }
    }
}

/// What an attribute hangs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Root,
    Directory,
    File,
    Other,
}

impl Kind {
    fn of(a: &Attr) -> Kind {
        match a.mode & libc::S_IFMT {
            libc::S_IFDIR if a.ino == ROOT => Kind::Root,
            libc::S_IFDIR => Kind::Directory,
            libc::S_IFREG => Kind::File,
            _ => Kind::Other,
        }
    }
}

/// `user.sse.state`, in this order.
#[derive(Serialize)]
struct StateLine<'a> {
    method: &'a str,
    cipher: &'a str,
    key: Option<String>,
    key_version: Option<u32>,
    origin: String,
}

fn none<T>() -> Result<T, FsError> {
    Err(BucketError::NoAttribute.into())
}

fn some<T>(value: Option<T>) -> Result<T, FsError> {
    value.ok_or(FsError::Bucket(BucketError::NoAttribute))
}

/// A value as text; what is no UTF-8 is no algorithm, key or data encryption, and the rule's own errors say so.
fn text(value: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(value)
}

impl Fs {
    /// The attribute of this name if it belongs to ssefs, as far as the inode can have it.
    pub(super) fn sse_name(&self, a: &Attr, name: &[u8]) -> Result<Name, FsError> {
        let unknown = |place| {
            let shown: String = text(name).chars().take(80).flat_map(char::escape_default).collect();
            Err(FsError::UnknownAttribute { name: shown, place })
        };
        match Name::parse(name) {
            None => unknown("among those of ssefs"),
            Some(n) if n.on(Kind::of(a)) => Ok(n),
            Some(n) if n.of_rules() => unknown("on a file: rules are for directories"),
            Some(_) => unknown("on what is no file"),
        }
    }

    /// Read one.
    ///
    /// # Errors
    /// ENODATA where there is nothing to say (row 58), EINVAL for a name that means nothing.
    pub(super) fn sse_get(&self, caller: Caller, a: &Attr, name: &[u8]) -> Result<Vec<u8>, FsError> {
        let n = match (self.sse_name(a, name), Name::parse(name)) {
            (Ok(n), _) => n,
            (Err(_), Some(_)) => return none(),
            (Err(e), None) => return Err(e),
        };
        let value = match n {
            Default => some(self.sse_rule(a))?.to_string(),
            DefaultAlgorithm => some(some(self.sse_rule(a))?.algorithm())?.to_owned(),
            DefaultKmsKeyId => {
                let rule = some(self.sse_rule(a))?;
                match self.bucket.rule_key_id(&rule)? {
                    Some(id) => id,
                    None => some(rule.key())?.to_owned(),
                }
            }
            DefaultDataEncryption => some(some(self.sse_rule(a))?.data_encryption())?.to_owned(),
            DefaultXml => rule::print_xml(&some(self.sse_rule(a))?, self.bucket.dialect())?,
            Algorithm | KmsKeyId | DataEncryption | KeyVersion | CustomerAlgorithm => some(self.object(a, n)?)?,
            CustomerKey | Unlock => return none(),
            Effective => self.bucket.effective(caller.uid, a.ino)?.to_string(),
            State => self.state(caller, a)?,
            LastError => some(self.last_errors.get(caller.uid))?,
        };
        Ok(value.into_bytes())
    }

    fn sse_rule(&self, a: &Attr) -> Option<Rule> {
        if a.ino == ROOT { self.bucket.rule() } else { self.bucket.dir_rule(a.ino) }
    }

    /// What a file says about its content, or without content about its request.
    fn object(&self, a: &Attr, n: Name) -> Result<Option<String>, FsError> {
        if let Some(o) = self.bucket.object_state(a.ino)? {
            return Ok(match (n, o.method) {
                (Algorithm, Method::Aes256 | Method::Kms) => Some(o.method.as_str().to_owned()),
                (KmsKeyId, Method::Kms) => Some(o.key_id),
                (DataEncryption, Method::Kms) => {
                    Some(if o.cipher == Cipher::Sm4Gcm { "SM4" } else { "AES256" }.to_owned())
                }
                (KeyVersion, Method::Aes256 | Method::Kms) => Some(o.key_version.to_string()),
                (CustomerAlgorithm, Method::SseC) => Some("AES256".to_owned()),
                _ => None,
            });
        }
        let Some(request) = self.bucket.request(a.ino)? else { return Ok(None) };
        let Some(rule) = request.as_rule() else {
            return Ok((n == CustomerAlgorithm).then(|| "AES256".to_owned()));
        };
        Ok(match n {
            Algorithm => rule.algorithm().map(str::to_owned),
            KmsKeyId => match self.bucket.rule_key_id(&rule)? {
                Some(id) => Some(id),
                None => rule.key().map(str::to_owned),
            },
            DataEncryption => rule.data_encryption().map(str::to_owned),
            _ => None,
        })
    }

    fn state(&self, caller: Caller, a: &Attr) -> Result<String, FsError> {
        let content = if Kind::of(a) == Kind::File { self.bucket.object_state(a.ino)? } else { None };
        let line = match &content {
            Some(o) => StateLine {
                method: o.method.as_str(),
                cipher: o.cipher.as_str(),
                key: Some(o.key_id.clone()).filter(|k| !k.is_empty()),
                key_version: Some(o.key_version).filter(|v| *v > 0),
                origin: o.origin.clone(),
            },
            // Nothing is sealed yet: what a PUT would get.
            None => {
                let e = self.bucket.effective(caller.uid, a.ino)?;
                StateLine {
                    method: e.asked.method().as_str(),
                    cipher: e.asked.cipher().as_str(),
                    key: match e.asked.rule() {
                        Some(rule) => self.bucket.rule_key_id(rule)?.or_else(|| rule.key().map(str::to_owned)),
                        None => None,
                    },
                    key_version: None,
                    origin: e.origin.to_string(),
                }
            }
        };
        serde_json::to_string(&line)
            .map_err(|e| BucketError::Io { what: "user.sse.state".into(), source: e.into() }.into())
    }

    /// Set one. `flags` are XATTR_CREATE and XATTR_REPLACE. May wait for a commit, or convert the content of a file.
    ///
    /// # Errors
    /// Those of rules (EINVAL), of permission (EACCES) and of the flags; nothing is changed then.
    pub(super) fn sse_set(
        &self,
        caller: Caller,
        a: &Attr,
        name: &[u8],
        value: &[u8],
        flags: i32,
    ) -> Result<(), FsError> {
        let n = self.sse_name(a, name)?;
        match n {
            State => return Ok(()),
            KeyVersion | CustomerAlgorithm | Effective | LastError => return Err(FsError::ReadOnlyAttribute(n.text())),
            _ => {}
        }
        // One edit at a time: each is made of what was there before.
        let _one = n.of_rules().then(|| self.rule_edits.lock());
        if flags != 0 {
            let there = match self.sse_get(caller, a, name) {
                Ok(_) => true,
                Err(FsError::Bucket(BucketError::NoAttribute)) => false,
                Err(e) => return Err(e),
            };
            match (flags, there) {
                (libc::XATTR_CREATE, true) => return Err(FsError::AttributeExists),
                (libc::XATTR_REPLACE, false) => return none(),
                (libc::XATTR_CREATE | libc::XATTR_REPLACE, _) => {}
                _ => return Err(FsError::Invalid("flags of setxattr")),
            }
        }
        let dialect = self.bucket.dialect();
        if matches!(n, CustomerKey | Unlock) {
            // Refused in any case where it would have no effect, so that nobody believes in it (row 38).
            dialect.check_customer()?;
            let key = secret::CustomerKey::parse(value).map_err(|_| FsError::BadCustomerKey { bytes: value.len() })?;
            match n {
                Unlock => self.bucket.unlock(caller.uid, a.ino, key)?,
                _ => self.bucket.set_customer_key(caller.uid, a.ino, key)?,
            }
            return Ok(());
        }
        if n.of_rules() {
            let place = if a.ino == ROOT { Place::Bucket } else { Place::Directory };
            let now = self.sse_rule(a);
            let rule = match n {
                Default => rule::parse_for(value, dialect, place)?,
                DefaultXml => {
                    if value.trim_ascii_start().first() != Some(&b'<') {
                        return Err(RuleError::MalformedXml {
                            at: rule::Position { line: 1, column: None },
                            what: "user.sse.default.xml takes XML; other forms go to user.sse.default".into(),
                        }
                        .into());
                    }
                    rule::parse_for(value, dialect, place)?
                }
                DefaultAlgorithm => rule::with_algorithm(now, &text(value))?,
                DefaultKmsKeyId => rule::with_kms_key(now, Some(&text(value)))?,
                _ => rule::with_data_encryption(now, Some(&text(value)))?,
            };
            dialect.check_rule(&rule, place)?;
            return self.set_rule(caller, a, Some(rule));
        }
        let now = self.bucket.request(a.ino)?;
        let request = match n {
            Algorithm => rule::request_with_algorithm(now, &text(value))?,
            KmsKeyId => rule::request_with_kms_key(now, Some(&text(value)))?,
            _ => rule::request_with_data_encryption(now, Some(&text(value)))?,
        };
        self.set_request(caller, a, Some(request))
    }

    /// Remove one.
    ///
    /// # Errors
    /// ENODATA where it is not there, but deleting a rule that is not there succeeds (row 58).
    pub(super) fn sse_remove(&self, caller: Caller, a: &Attr, name: &[u8]) -> Result<(), FsError> {
        let n = self.sse_name(a, name)?;
        let _one = n.of_rules().then(|| self.rule_edits.lock());
        match n {
            State => Ok(()),
            CustomerKey if Kind::of(a) != Kind::File => Ok(self.bucket.end_dir_request(caller.uid, a.ino)?),
            CustomerKey => match self.bucket.request(a.ino)? {
                Some(Request::SseC(_)) => self.set_request(caller, a, None),
                _ => none(),
            },
            Unlock => {
                let (tx, rx) = std::sync::mpsc::channel();
                self.lock(caller, a.ino, b"", Box::new(move |r| drop(tx.send(r))));
                rx.recv().unwrap_or_else(|_| Err(BucketError::Failed("the bucket is closing".into()).into()))
            }
            KeyVersion | CustomerAlgorithm | Effective | LastError => Err(FsError::ReadOnlyAttribute(n.text())),
            Default | DefaultAlgorithm | DefaultXml => self.set_rule(caller, a, None),
            DefaultKmsKeyId | DefaultDataEncryption => {
                let now = some(self.sse_rule(a))?;
                let rule = if n == DefaultKmsKeyId {
                    some(now.key())?;
                    rule::with_kms_key(Some(now), None)?
                } else {
                    some(now.data_encryption())?;
                    rule::with_data_encryption(Some(now), None)?
                };
                self.set_rule(caller, a, Some(rule))
            }
            Algorithm => {
                some(self.bucket.request(a.ino)?.and_then(|r| r.as_rule()))?;
                self.set_request(caller, a, None)
            }
            KmsKeyId | DataEncryption => {
                let now = some(self.bucket.request(a.ino)?)?;
                let rule = some(now.as_rule())?;
                let request = if n == KmsKeyId {
                    some(rule.key())?;
                    rule::request_with_kms_key(Some(now), None)?
                } else {
                    some(rule.data_encryption())?;
                    rule::request_with_data_encryption(Some(now), None)?
                };
                self.set_request(caller, a, Some(request))
            }
        }
    }

    fn set_rule(&self, caller: Caller, a: &Attr, rule: Option<Rule>) -> Result<(), FsError> {
        let set = if a.ino == ROOT {
            self.bucket.set_rule(caller.uid, rule)
        } else {
            self.bucket.set_dir_rule(caller.uid, a.ino, rule)
        };
        Ok(set?)
    }

    /// The kernel has let pass only who may write the file; whether the caller has its key is for us to say.
    fn set_request(&self, caller: Caller, a: &Attr, request: Option<Request>) -> Result<(), FsError> {
        if let Some(r) = &request {
            self.bucket.dialect().check_request(r)?;
            if let Some(rule) = r.as_rule() {
                self.bucket.may_name_key(caller.uid, &rule)?;
            }
        }
        self.bucket.access(caller.uid, a.ino)?;
        Ok(self.bucket.set_request(a.ino, request)?)
    }

    /// Those that have a value here, for the mount option `list_sse`.
    pub(super) fn sse_list(&self, caller: Caller, a: &Attr) -> Vec<Vec<u8>> {
        let listed = |n: &Name| n.on(Kind::of(a)) && self.sse_get(caller, a, n.text().as_bytes()).is_ok();
        NAMES.iter().map(|(n, _)| *n).filter(listed).map(|n| n.text().as_bytes().to_vec()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_of_the_contract_is_known_and_found_again() {
        for (n, text) in NAMES {
            assert_eq!(Name::parse(text.as_bytes()), Some(n));
            assert_eq!(n.text(), text);
            assert!(text.as_bytes().starts_with(PREFIX));
        }
        for bad in ["user.sse.", "user.sse.defaults", "user.sse.default.", "user.sse.Default", "user.sse"] {
            assert_eq!(Name::parse(bad.as_bytes()), None);
        }
    }
}
