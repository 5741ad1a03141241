//! Extended attributes: those of ssefs go to `sse`, all others are the user's own, byte for byte.

use super::acl;
use super::sse::{Name, PREFIX};
use super::{Caller, Fs, FsError};
use crate::bucket::BucketError;

/// The attribute of file capabilities, which writing clears (capabilities(7)).
pub(super) const CAPABILITY: &[u8] = b"security.capability";

/// Bytes that the names of an inode's attributes take together, each with its NUL: the kernel lists 64 KiB, and fails
/// listxattr(2) with E2BIG above. The rest is for ACLs and, with `list_sse`, for those of ssefs.
const LIST_BYTES_MAX: usize = (64 << 10) - 1024;

/// Whether a setxattr or removexattr of this name may wait for a commit or convert content: not for an event thread.
pub fn is_slow(name: &[u8]) -> bool {
    name.starts_with(PREFIX)
}

/// Whether removing this attribute locks a file or directory, which is answered when it is done.
pub fn is_lock(name: &[u8]) -> bool {
    Name::parse(name) == Some(Name::Unlock)
}

/// Attributes outside the namespaces that a local disk keeps are refused, as it does.
fn refuse_foreign(name: &[u8]) -> Result<(), FsError> {
    let namespaces = [&b"user."[..], b"trusted.", b"security."];
    if namespaces.contains(&name) {
        return Err(FsError::Invalid("a namespace without a name"));
    }
    if namespaces.iter().any(|ns| name.starts_with(ns)) {
        return Ok(());
    }
    Err(FsError::Unsupported("attributes outside user, trusted and security"))
}

/// Whether this is one of the two ACLs.
fn is_acl(name: &[u8]) -> bool {
    name == acl::ACCESS || name == acl::DEFAULT
}

impl Fs {
    /// # Errors
    /// ENODATA where there is none, EOPNOTSUPP outside the namespaces.
    pub fn get_xattr(&self, caller: Caller, ino: u64, name: &[u8]) -> Result<Vec<u8>, FsError> {
        if name.starts_with(PREFIX) {
            let a = self.bucket.attr(ino)?;
            return self.sse_get(caller, &a, name);
        }
        if !is_acl(name) {
            refuse_foreign(name)?;
        }
        Ok(self.bucket.xattr(ino, name)?)
    }

    /// `flags` are XATTR_CREATE and XATTR_REPLACE.
    ///
    /// # Errors
    /// EEXIST and ENODATA by the flags; for those of ssefs see SEMANTICS.md.
    pub fn set_xattr(&self, caller: Caller, ino: u64, name: &[u8], value: &[u8], flags: i32) -> Result<(), FsError> {
        if name.starts_with(PREFIX) {
            let a = self.bucket.attr(ino)?;
            return self.sse_set(caller, &a, name, value, flags);
        }
        if is_acl(name) {
            let a = self.bucket.attr(ino)?;
            return self.set_acl(caller, &a, name, value);
        }
        refuse_foreign(name)?;
        let names = self.bucket.xattr_names(ino)?;
        let listed: usize = names.iter().map(|n| n.len() + 1).sum();
        // A list that cannot be read any more would be found out by the next backup only.
        if listed + name.len() + 1 > LIST_BYTES_MAX && !names.iter().any(|n| n == name) {
            return Err(BucketError::NoSpace.into());
        }
        self.bucket.set_xattr(ino, name, value, flags)?;
        if name == CAPABILITY {
            self.capability_was_set();
        }
        Ok(())
    }

    /// # Errors
    /// ENODATA where there is none, EOPNOTSUPP outside the namespaces.
    pub fn remove_xattr(&self, caller: Caller, ino: u64, name: &[u8]) -> Result<(), FsError> {
        if name.starts_with(PREFIX) {
            let a = self.bucket.attr(ino)?;
            return self.sse_remove(caller, &a, name);
        }
        if is_acl(name) {
            return self.drop_acl(ino, name);
        }
        refuse_foreign(name)?;
        Ok(self.bucket.remove_xattr(ino, name)?)
    }

    /// All names as listxattr(2) gives them, each with a NUL behind it. Those of ssefs only with the option `list_sse`, and
    /// `trusted.` to root alone, who alone can read them (xattr(7)).
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
        for name in names.iter().filter(|n| caller.uid == 0 || !n.starts_with(b"trusted.")) {
            out.extend_from_slice(name);
            out.push(0);
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_of_a_local_disks_namespaces_are_taken_and_others_are_not() {
        for name in [&b"user.x"[..], b"trusted.posix_acl_access", b"security.selinux", b"user.ssef"] {
            refuse_foreign(name).unwrap();
            assert!(!is_slow(name));
        }
        assert_eq!(refuse_foreign(b"user.").unwrap_err().errno(), libc::EINVAL);
        for name in [&b"nonamespace"[..], b"system.other"] {
            assert_eq!(refuse_foreign(name).unwrap_err().errno(), libc::EOPNOTSUPP);
        }
        assert!(is_slow(b"user.sse.default"));
    }
}
