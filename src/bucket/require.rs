//! A bucket that refuses plain objects (SEMANTICS 76): where such a PUT is refused, and what may not take the encryption away
//! from what is written later.

use super::{Bucket, BucketError};
use crate::rule::Rule;

/// Plain objects named in a refusal at most.
const NAMED_MAX: usize = 20;

impl Bucket {
    /// Err if a PUT may not be plain. Every new seal that is comes through here.
    pub(super) fn refuse_plain(&self) -> Result<(), BucketError> {
        let s = self.settings();
        if !s.require_encryption {
            return Ok(());
        }
        Err(BucketError::Denied(format!(
            "bucket {0} refuses plain objects, and no rule encrypts this one: set a rule (ssefs encryption put {0} AES256) or a request (user.sse.algorithm)",
            s.name
        )))
    }

    /// Err if this rule of the bucket (or of a directory), or none, would make plain PUTs where they are refused. The caller
    /// holds the names' permit.
    pub(super) fn keep_encryption(&self, dir: Option<u64>, rule: Option<&Rule>) -> Result<(), BucketError> {
        let s = self.settings();
        if !s.require_encryption {
            return Ok(());
        }
        let refused = |what: &str| {
            Err(BucketError::Denied(format!(
                "bucket {} refuses plain objects: {what}; end that first: ssefs bucket require-encryption {0} --off",
                s.name
            )))
        };
        match rule {
            Some(Rule::None) => refused("no directory of it can have the rule none"),
            Some(_) => Ok(()),
            None => {
                let (had, others) = match dir {
                    None => (s.rule.is_some(), !s.dir_rules.is_empty()),
                    Some(dir) => {
                        (s.dir_rules.contains_key(&dir), s.rule.is_some() || s.dir_rules.keys().any(|d| *d != dir))
                    }
                };
                if had && !others { refused("its last rule cannot be deleted") } else { Ok(()) }
            }
        }
    }

    /// Refuse plain objects from now on, or no longer. Err while there are plain ones, with some of their names.
    pub fn require_encryption(&self, uid: u32, on: bool) -> Result<(), BucketError> {
        self.health()?;
        self.may_rule(uid)?;
        if self.settings().require_encryption == on {
            return Ok(());
        }
        if on {
            self.commit()?;
            self.no_plain_objects()?;
        }
        {
            let _permit = self.gate.names();
            let s = self.settings();
            if on && s.dir_rules.values().any(|r| *r == Rule::None) {
                return Err(BucketError::Denied(format!(
                    "a directory of bucket {0} has the rule none: change that first (ssefs bucket show {0})",
                    s.name
                )));
            }
            self.change_settings(|s| s.require_encryption = on);
        }
        self.commit()?;
        // One that was made while the first look was had.
        if on && let Err(e) = self.no_plain_objects() {
            {
                let _permit = self.gate.names();
                self.change_settings(|s| s.require_encryption = false);
            }
            self.commit()?;
            return Err(e);
        }
        Ok(())
    }

    fn no_plain_objects(&self) -> Result<(), BucketError> {
        let n = self.catalog().snapshot()?.plain_objects()?;
        if n == 0 {
            return Ok(());
        }
        let report = self.coverage(Some(super::Listed::Plain), NAMED_MAX, &super::job::QUIET)?;
        let names: Vec<&str> = report.listed.iter().map(|l| l.path.as_str()).collect();
        let more = if n > names.len() as u64 { ", ..." } else { "" };
        Err(BucketError::Denied(format!(
            "bucket {0} holds {n} plain objects ({1}{more}): convert them first: ssefs object convert {0}:",
            self.name,
            names.join(", ")
        )))
    }
}
