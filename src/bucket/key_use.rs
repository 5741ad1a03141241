//! Which master keys a bucket hangs on. A key that is named in a rule or a request is resolved once, to its id, and the
//! bucket registered in the keyring before anything is sealed under it; the registration ends when the bucket proves
//! that it holds nothing of the key any more (SEMANTICS 52, 59, 75).

use std::time::Duration;

use super::{Bucket, BucketError};
use crate::keys::{DEFAULT_CMK_ALIAS, KeyError, KeyService};
use crate::rule::{Request, Rule, RuleError};
use crate::types::KeyId;

/// How often a conversion that may be at work under the key is asked whether it is done.
const TRIES: u32 = 50;
const BETWEEN_TRIES: Duration = Duration::from_millis(20);

/// What a bucket holds of a master key.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct KeyUse {
    pub objects: u64,
    /// Files with a request that names it.
    pub requests: u64,
    /// Where a rule names it: `bucket`, or `directory PATH`.
    pub rules: Vec<String>,
    /// The bucket does not hang on it any more, and the keyring knows.
    pub released: bool,
}

impl KeyUse {
    fn is_none(&self) -> bool {
        self.objects == 0 && self.requests == 0 && self.rules.is_empty()
    }
}

/// A key that cannot be named in a rule or a request is an error of what was asked (row 59), not of a key that data needs.
pub(super) fn asked(e: BucketError) -> BucketError {
    let BucketError::Key(e) = e else { return e };
    BucketError::Rule(match e {
        KeyError::NotFound(key) => RuleError::KeyNotFound { key },
        KeyError::Destroyed { key, when } => RuleError::KeyDestroyed { key, when: crate::types::utc(when) },
        KeyError::Disabled(key) => RuleError::KeyDisabled { key },
        KeyError::PendingImport(key) => RuleError::KeyPendingImport { key },
        KeyError::PendingDeletion(key) => RuleError::KeyPendingDeletion { key },
        e => return BucketError::Key(e),
    })
}

impl Bucket {
    /// Whether a user may name the key of this rule or request, if it names one.
    ///
    /// # Errors
    /// `Denied`; and as errors of the rule those of a key that is not there or cannot be used.
    pub fn may_name_key(&self, uid: u32, rule: &Rule) -> Result<(), BucketError> {
        match rule.key() {
            Some(name) => self.keys()?.name_key(uid, name).map(drop).map_err(|e| asked(e.into())),
            None => Ok(()),
        }
    }

    /// The rule with its key by id, found to be usable, and the bucket registered as hanging on it.
    pub(super) fn rule_by_id(&self, rule: Rule) -> Result<Rule, BucketError> {
        self.by_id(rule).map_err(asked)
    }

    fn by_id(&self, rule: Rule) -> Result<Rule, BucketError> {
        let rule = match rule {
            Rule::Kms { key: Some(name), sm4 } => Rule::Kms { key: Some(self.keys()?.name_key(0, &name)?.0), sm4 },
            rule => rule,
        };
        let resolved = self.resolve_rule(&rule)?;
        if !resolved.key.0.is_empty() {
            self.keys()?.depend(&self.id, &resolved.key)?;
        }
        Ok(rule)
    }

    /// The same of a request.
    pub(super) fn request_by_id(&self, request: Request) -> Result<Request, BucketError> {
        match request.as_rule() {
            Some(rule) => Ok(self.rule_by_id(rule)?.try_into()?),
            None => Ok(request),
        }
    }

    /// What the bucket holds of a key; when that is nothing, it does not hang on the key any more.
    pub fn key_use(&self, key: &KeyId) -> Result<KeyUse, BucketError> {
        if !self.read_only {
            self.commit()?;
        }
        let mut found = self.count_use(key)?;
        if !found.is_none() || self.read_only {
            return Ok(found);
        }
        for _ in 0..TRIES {
            // Nobody is between taking a KEK and showing what it wraps, and nobody can begin.
            let Some(_alone) = self.sealing.try_write() else {
                std::thread::sleep(BETWEEN_TRIES);
                continue;
            };
            found = self.count_use(key)?;
            let in_memory = self.table.all().into_iter().any(|inode| {
                let st = inode.state.lock();
                st.content.as_ref().and_then(|c| c.seal.as_ref()).is_some_and(|s| s.resolved.key == *key)
            });
            if in_memory {
                found.objects = found.objects.max(1);
            }
            if !found.is_none() {
                return Ok(found);
            }
            self.drop_keks_of(key)?;
            // The KEKs are gone for good before the keyring forgets who had them.
            self.commit()?;
            self.keys()?.release(&self.id, key)?;
            found.released = true;
            return Ok(found);
        }
        Err(BucketError::Invalid("a conversion or a rewrap is at work: try again when it is done"))
    }

    fn count_use(&self, key: &KeyId) -> Result<KeyUse, BucketError> {
        let (objects, requests) = {
            let catalog = self.catalog().lock();
            (catalog.seals_under(&key.0)?, catalog.request_rules()?)
        };
        let mut found = KeyUse { objects, ..KeyUse::default() };
        for (rule, files) in requests {
            // A request for SSE-C names no master key.
            let Some(rule) = rule.parse::<Request>()?.as_rule() else { continue };
            if self.names(&rule, key)? {
                found.requests += files;
            }
        }
        let settings = self.settings();
        if settings.rule.as_ref().map_or(Ok(false), |rule| self.names(rule, key))? {
            found.rules.push("bucket".into());
        }
        for (dir, rule) in &settings.dir_rules {
            if self.names(rule, key)? {
                found.rules.push(format!("directory {}", self.path_of(*dir)?.display()));
            }
        }
        for job in settings.jobs.values().filter(|j| !j.rule.is_empty()) {
            if self.names(&job.rule.parse()?, key)? {
                found.rules.push(format!("job {}", job.kind));
            }
        }
        found.rules.sort();
        Ok(found)
    }

    fn names(&self, rule: &Rule, key: &KeyId) -> Result<bool, BucketError> {
        let Rule::Kms { key: named, .. } = rule else { return Ok(false) };
        let alias = self.keys()?.describe(key)?.alias;
        Ok(match named {
            Some(name) => *name == key.0 || alias.as_deref() == Some(name),
            None => alias.as_deref() == Some(DEFAULT_CMK_ALIAS),
        })
    }

    fn drop_keks_of(&self, key: &KeyId) -> Result<(), BucketError> {
        let _permit = self.gate.names();
        let gone: Vec<u64> = self.keks.lock().iter().filter(|r| r.key_id == key.0).map(|r| r.id).collect();
        for id in &gone {
            self.catalog().lock().delete_kek(*id)?;
            self.unwrapped.lock().remove(&crate::types::KekId(*id));
        }
        self.keks.lock().retain(|r| r.key_id != key.0);
        self.resolved.lock().clear();
        self.lists_changed();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r59_a_key_that_cannot_be_named_is_an_error_of_the_rule() {
        let told = |e: KeyError| asked(e.into()).to_string();
        let key = || "k9".to_string();
        assert!(told(KeyError::NotFound(key())).starts_with("KMS.NotFoundException: the key k9 does not exist"));
        assert!(told(KeyError::Destroyed { key: key(), when: 0 }).contains("k9 does not exist any more"));
        assert!(told(KeyError::Disabled(key())).starts_with("KMS.DisabledException: the key k9"));
        assert!(told(KeyError::PendingDeletion(key())).starts_with("KMS.KMSInvalidStateException: the key k9"));
        assert!(told(KeyError::PendingImport(key())).starts_with("KMS.KMSInvalidStateException: the key k9"));
    }
}
