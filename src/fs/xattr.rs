//! Extended attributes: those of ssefs go to `sse`, all others are the user's own, byte for byte.

use super::sse::PREFIX;
use super::{Caller, Fs, FsError};

/// The attribute of file capabilities, which writing clears (capabilities(7)).
pub(super) const CAPABILITY: &[u8] = b"security.capability";
const ACL_PREFIX: &[u8] = b"system.posix_acl_";

/// Whether a setxattr or removexattr of this name may wait for a commit or convert content: not for an event thread.
pub fn is_slow(name: &[u8]) -> bool {
    name.starts_with(PREFIX)
}

/// An ACL that nobody enforces would be a lie: none is taken as long as the mode bits do not follow it.
/// Attributes outside the namespaces that a local disk keeps are refused, as it does.
fn refuse_foreign(name: &[u8]) -> Result<(), FsError> {
    if [&b"user."[..], b"trusted.", b"security.", b"system."].iter().any(|ns| name.starts_with(ns) && name.len() > ns.len()) {
        return Ok(());
    }
    Err(FsError::Unsupported("attributes outside user, trusted and security"))
}

fn refuse_acl(name: &[u8]) -> Result<(), FsError> {
    if name.starts_with(ACL_PREFIX) {
        return Err(FsError::Unsupported("POSIX access control lists"));
    }
    Ok(())
}

impl Fs {
    /// # Errors
    /// ENODATA where there is none.
    pub fn get_xattr(&self, caller: Caller, ino: u64, name: &[u8]) -> Result<Vec<u8>, FsError> {
        if name.starts_with(PREFIX) {
            let a = self.bucket.attr(ino)?;
            return self.sse_get(caller, &a, name);
        }
        refuse_acl(name)?;
        Ok(self.bucket.xattr(ino, name)?)
    }

    /// `flags` are XATTR_CREATE and XATTR_REPLACE.
    ///
    /// # Errors
    /// EEXIST and ENODATA by the flags; for those of ssefs see SEMANTICS.md.
    pub fn set_xattr(
        &self, caller: Caller, ino: u64, name: &[u8], value: &[u8], flags: i32,
    ) -> Result<(), FsError> {
        if name.starts_with(PREFIX) {
            let a = self.bucket.attr(ino)?;
            return self.sse_set(caller, &a, name, value, flags);
        }
        refuse_foreign(name)?;
        refuse_acl(name)?;
        self.bucket.set_xattr(ino, name, value, flags)?;
        if name == CAPABILITY {
            self.capability_was_set();
        }
        Ok(())
    }

    /// # Errors
    /// ENODATA where there is none.
    pub fn remove_xattr(&self, caller: Caller, ino: u64, name: &[u8]) -> Result<(), FsError> {
        if name.starts_with(PREFIX) {
            let a = self.bucket.attr(ino)?;
            return self.sse_remove(caller, &a, name);
        }
        refuse_acl(name)?;
        Ok(self.bucket.remove_xattr(ino, name)?)
    }

    /// All names as listxattr(2) gives them, each with a NUL behind it. Those of ssefs only with the option `list_sse`.
    ///
    /// # Errors
    /// Those of the bucket.
    pub fn list_xattr(&self, caller: Caller, ino: u64) -> Result<Vec<u8>, FsError> {
        let mut names = self.bucket.xattr_names(ino)?;
        if self.list_sse {
            let a = self.bucket.attr(ino)?;
            names.extend(self.sse_list(caller, &a));
        }
        let mut out = Vec::new();
        for name in names {
            out.extend_from_slice(&name);
            out.push(0);
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acl_is_refused_and_the_users_own_attributes_are_not() {
        assert_eq!(refuse_acl(b"system.posix_acl_access").unwrap_err().errno(), libc::EOPNOTSUPP);
        assert_eq!(refuse_acl(b"system.posix_acl_default").unwrap_err().errno(), libc::EOPNOTSUPP);
        for name in [&b"user.x"[..], b"trusted.posix_acl_access", b"security.selinux", b"user.ssef"] {
            refuse_acl(name).unwrap();
            assert!(!is_slow(name));
        }
        assert!(is_slow(b"user.sse.default"));
    }
}
