//! POSIX access control lists. The kernel keeps the permissions (FUSE_POSIX_ACL); what is left to the file system is here:
//! mode bits follow an ACL and the ACL follows chmod(2), and new files inherit the default ACL of their directory
//! (acl(5), and fs/posix_acl.c of Linux for the value's bytes).

use super::{Caller, Fs, FsError};
use crate::bucket::{Attr, BucketError, SetAttr};

pub const ACCESS: &[u8] = b"system.posix_acl_access";
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const GROUP_OBJ: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
const ENTRY_BYTES: usize = 8;

/// Entries of an ACL: (tag, permissions, id).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acl(Vec<(u16, u16, u32)>);

impl Acl {
    /// From the value of the attribute; None if it is no ACL that has all it must have.
    pub fn parse(value: &[u8]) -> Option<Acl> {
        let (version, entries) = value.split_first_chunk::<4>()?;
        if u32::from_le_bytes(*version) != VERSION || entries.len() % ENTRY_BYTES != 0 {
            return None;
        }
        let acl = Acl(entries
            .chunks_exact(ENTRY_BYTES)
            .map(|e| {
                let tag = u16::from_le_bytes([e[0], e[1]]);
                (tag, u16::from_le_bytes([e[2], e[3]]) & 7, u32::from_le_bytes([e[4], e[5], e[6], e[7]]))
            })
            .collect());
        [USER_OBJ, GROUP_OBJ, OTHER].iter().all(|t| acl.0.iter().filter(|e| e.0 == *t).count() == 1).then_some(acl)
    }

    fn pack(&self) -> Vec<u8> {
        let mut out = VERSION.to_le_bytes().to_vec();
        for (tag, perm, id) in &self.0 {
            out.extend_from_slice(&tag.to_le_bytes());
            out.extend_from_slice(&perm.to_le_bytes());
            out.extend_from_slice(&id.to_le_bytes());
        }
        out
    }

    /// The entry that the group bits of the mode stand for.
    fn group_class(&self) -> u16 {
        if self.0.iter().any(|e| e.0 == MASK) { MASK } else { GROUP_OBJ }
    }

    fn perm(&self, tag: u16) -> u32 {
        self.0.iter().find(|e| e.0 == tag).map_or(0, |e| u32::from(e.1))
    }

    /// The nine permission bits that say the same, as far as bits can.
    fn mode(&self) -> u32 {
        self.perm(USER_OBJ) << 6 | self.perm(self.group_class()) << 3 | self.perm(OTHER)
    }

    /// Whether the mode alone says all of it.
    fn is_mode(&self) -> bool {
        self.0.len() == 3
    }

    /// Set the three classes: to `mode`, or to what both allow.
    fn apply(&mut self, mode: u32, both: bool) {
        let group = self.group_class();
        for (tag, perm, _) in &mut self.0 {
            let bits = match *tag {
                USER_OBJ => mode >> 6 & 7,
                OTHER => mode & 7,
                t if t == group => mode >> 3 & 7,
                _ => continue,
            } as u16;
            *perm = if both { *perm & bits } else { bits };
        }
    }
}

/// What a new inode gets: its permission bits, and the ACLs to store.
#[derive(Debug, PartialEq, Eq)]
pub struct Inherited {
    pub mode: u32,
    pub access: Option<Vec<u8>>,
    pub default: Option<Vec<u8>>,
}

/// By the default ACL of the directory; without one the umask applies.
pub fn inherit(default: Option<&[u8]>, mode: u32, umask: u32) -> Inherited {
    let is_dir = mode & libc::S_IFMT == libc::S_IFDIR;
    let Some(mut acl) = default.filter(|_| mode & libc::S_IFMT != libc::S_IFLNK).and_then(Acl::parse) else {
        let umask = if mode & libc::S_IFMT == libc::S_IFLNK { 0 } else { umask };
        return Inherited { mode: mode & !(umask & 0o777), access: None, default: None };
    };
    acl.apply(mode, true);
    Inherited {
        mode: mode & !0o777 | acl.mode(),
        access: (!acl.is_mode()).then(|| acl.pack()),
        default: if is_dir { default.map(<[u8]>::to_vec) } else { None },
    }
}

impl Fs {
    /// The ACL of an inode, if it has one.
    pub(super) fn acl(&self, ino: u64, name: &[u8]) -> Result<Option<Vec<u8>>, FsError> {
        match self.bucket.xattr(ino, name) {
            Ok(v) => Ok(Some(v)),
            Err(BucketError::NoAttribute) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Set an ACL: the mode follows an access ACL, and one that the mode can say is not stored.
    pub(super) fn set_acl(&self, caller: Caller, a: &Attr, name: &[u8], value: &[u8]) -> Result<(), FsError> {
        let acl = Acl::parse(value).ok_or(BucketError::Invalid("not an access control list"))?;
        if name == DEFAULT {
            if a.mode & libc::S_IFMT != libc::S_IFDIR {
                return Err(BucketError::Denied("only directories have a default ACL".into()).into());
            }
            return Ok(self.bucket.set_xattr(a.ino, name, value, 0)?);
        }
        if acl.is_mode() {
            self.drop_acl(a.ino, name)?;
        } else {
            self.bucket.set_xattr(a.ino, name, value, 0)?;
        }
        let mut mode = a.mode & !0o777 | acl.mode();
        // As chmod(2), which takes the set-group-ID bit from who is not in the group.
        if mode & libc::S_ISGID != 0 && !caller.in_group(a.gid) {
            mode &= !libc::S_ISGID;
        }
        self.bucket.set_attr(a.ino, &SetAttr { mode: Some(mode), ..SetAttr::default() })?;
        Ok(())
    }

    pub(super) fn drop_acl(&self, ino: u64, name: &[u8]) -> Result<(), FsError> {
        match self.bucket.remove_xattr(ino, name) {
            Ok(()) | Err(BucketError::NoAttribute) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// chmod(2): the ACL's classes become what the mode says.
    pub(super) fn acl_follows(&self, a: &Attr, mode: u32) -> Result<(), FsError> {
        if a.flags & crate::catalog::FLAG_XATTR == 0 {
            return Ok(());
        }
        let Some(mut acl) = self.acl(a.ino, ACCESS)?.and_then(|v| Acl::parse(&v)) else { return Ok(()) };
        acl.apply(mode, false);
        Ok(self.bucket.set_xattr(a.ino, ACCESS, &acl.pack(), 0)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Acl {
        Acl(entries.to_vec())
    }

    #[test]
    fn values_go_there_and_back_and_broken_ones_are_refused() {
        let a = acl(&[
            (USER_OBJ, 6, u32::MAX),
            (2, 4, 4711),
            (GROUP_OBJ, 4, u32::MAX),
            (MASK, 6, u32::MAX),
            (OTHER, 0, u32::MAX),
        ]);
        let v = a.pack();
        assert_eq!(Acl::parse(&v), Some(a.clone()));
        assert_eq!(a.mode(), 0o660, "the group bits are the mask's");
        for bad in [&v[..3], &v[..v.len() - 1], &v[..12], &[1, 0, 0, 0][..], &[][..]] {
            assert_eq!(Acl::parse(bad), None);
        }
    }

    #[test]
    fn new_files_inherit_and_without_a_default_the_umask_applies() {
        let file = libc::S_IFREG | 0o666;
        assert_eq!(inherit(None, file, 0o027), Inherited { mode: libc::S_IFREG | 0o640, access: None, default: None });
        let d = acl(&[(USER_OBJ, 7, 0), (2, 5, 4711), (GROUP_OBJ, 5, 0), (MASK, 5, 0), (OTHER, 0, 0)]).pack();
        let got = inherit(Some(&d), file, 0o077);
        assert_eq!(got.mode, libc::S_IFREG | 0o640, "the umask does not count");
        assert_eq!(got.default, None);
        let access = Acl::parse(&got.access.unwrap()).unwrap();
        assert_eq!((access.perm(MASK), access.perm(2)), (4, 5));
        assert_eq!(inherit(Some(&d), libc::S_IFDIR | 0o777, 0).default, Some(d));
    }

    #[test]
    fn chmod_changes_the_mask_and_not_the_group() {
        let mut a = acl(&[(USER_OBJ, 7, 0), (2, 7, 1), (GROUP_OBJ, 5, 0), (MASK, 7, 0), (OTHER, 4, 0)]);
        a.apply(0o610, false);
        assert_eq!((a.perm(USER_OBJ), a.perm(GROUP_OBJ), a.perm(MASK), a.perm(OTHER)), (6, 5, 1, 0));
    }
}
