//! The error every operation ends with, whether it ran here or in the process that holds the mount: a stable code,
//! a message that names what and where, and a hint what to do next. It crosses the control socket as JSON.

use serde::{Deserialize, Serialize};

/// What kind of failure it was; each has one exit code, kept for ever (`ssefs(1)`, EXIT STATUS).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// Anything that has no code of its own: an I/O error, a failed bucket.
    General,
    /// The command line was not understood.
    Usage,
    /// A bucket, object, key, rule or mount that is not there.
    NotFound,
    /// Somebody else has it: a lock, a busy mount.
    Busy,
    /// Not allowed for this user.
    Permission,
    /// A root key, master key or customer key is missing, wrong, disabled or gone.
    Key,
    /// Data, map or settings were altered or are damaged.
    Damage,
    /// The rule or the dialect refuses it; the message begins with the vendor's code.
    Refused,
    /// The file system could not be mounted: no FUSE, an unusable mountpoint.
    Mount,
    /// The disk is full.
    Full,
    /// The store was written by a newer ssefs.
    Newer,
    /// It exists already.
    Exists,
    /// Not everything is done, or not everything is as the rule wants it; the answer names what is not.
    Incomplete,
}

/// Every code in the order of its exit status, with the words of the manual.
pub const EXIT_CODES: [(u8, ErrorCode, &str); 13] = [
    (1, ErrorCode::General, "any other failure"),
    (2, ErrorCode::Usage, "the command line was not understood"),
    (3, ErrorCode::NotFound, "a bucket, object, key, rule or mount is not there"),
    (4, ErrorCode::Busy, "locked or in use by somebody else"),
    (5, ErrorCode::Permission, "this user may not do that"),
    (6, ErrorCode::Key, "a key is missing, wrong, disabled or gone"),
    (7, ErrorCode::Damage, "damaged or altered data was found"),
    (8, ErrorCode::Refused, "refused by the rule or the bucket's dialect"),
    (9, ErrorCode::Mount, "the file system could not be mounted or unmounted"),
    (10, ErrorCode::Full, "the disk is full"),
    (11, ErrorCode::Newer, "the store was written by a newer ssefs"),
    (12, ErrorCode::Exists, "it exists already"),
    (
        13,
        ErrorCode::Incomplete,
        "not everything is under the rule, or not everything could be done: what is not is named",
    ),
];

impl ErrorCode {
    /// The code of a failed system call, by its errno.
    pub fn of_io(e: &std::io::Error) -> ErrorCode {
        match e.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => ErrorCode::NotFound,
            Some(libc::EACCES | libc::EPERM | libc::EROFS) => ErrorCode::Permission,
            Some(libc::EBUSY | libc::EAGAIN) => ErrorCode::Busy,
            Some(libc::ENOSPC | libc::EDQUOT) => ErrorCode::Full,
            Some(libc::EEXIST) => ErrorCode::Exists,
            _ => ErrorCode::General,
        }
    }

    /// The exit status of this code.
    pub fn exit_status(self) -> u8 {
        EXIT_CODES.iter().find(|(_, code, _)| *code == self).map_or(1, |(status, _, _)| *status)
    }
}

/// A failed operation, in words for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct OpError {
    pub code: ErrorCode,
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl OpError {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> OpError {
        OpError { code, message: message.into(), hint: None }
    }

    /// The same with a line that says what to do next.
    pub fn hint(mut self, hint: impl Into<String>) -> OpError {
        self.hint = Some(hint.into());
        self
    }

    pub fn usage(message: impl Into<String>) -> OpError {
        OpError::new(ErrorCode::Usage, message)
    }

    /// An I/O failure while doing `what` ("read /etc/x"), coded by its errno.
    pub fn io(what: impl std::fmt::Display, e: &std::io::Error) -> OpError {
        OpError::new(ErrorCode::of_io(e), format!("cannot {what}: {e}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_the_manual_and_none_is_used_twice() {
        for (i, (status, code, _)) in EXIT_CODES.iter().enumerate() {
            assert_eq!(*status as usize, i + 1);
            assert_eq!(code.exit_status(), *status);
        }
    }

    #[test]
    fn an_error_survives_the_socket() {
        let e = OpError::new(ErrorCode::NotFound, "no such bucket").hint("make it");
        let text = serde_json::to_string(&e).unwrap();
        assert_eq!(text, r#"{"code":"not-found","message":"no such bucket","hint":"make it"}"#);
        assert_eq!(serde_json::from_str::<OpError>(&text).unwrap(), e);
    }
}
