//! Which encryption a PUT gets, and why: request before directory before bucket (rows 5, 6, 38, 70, 71).
//! Everything that must know asks here, so `user.sse.effective` cannot say one thing and a write do another.

use std::fmt;
use std::path::PathBuf;

use super::customer::Customer;
use super::dialect::Dialect;
use super::model::{Cipher, Method, Request, Rule};

/// Where an object's encryption comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Origin {
    /// Asked for this object.
    Request,
    /// The rule of this directory, its path relative to the bucket's root.
    Directory(PathBuf),
    /// The bucket's rule.
    Bucket,
    /// Nothing asks for encryption.
    None,
}

impl fmt::Display for Origin {
    /// `request`, `directory photos/2024`, `bucket` or `none`; a path's control characters are escaped, bytes
    /// that are not UTF-8 replaced.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Request => f.write_str("request"),
            Origin::Bucket => f.write_str("bucket"),
            Origin::None => f.write_str("none"),
            Origin::Directory(path) => {
                f.write_str("directory ")?;
                for c in path.to_string_lossy().chars() {
                    if c.is_control() {
                        write!(f, "{}", c.escape_default())?;
                    } else {
                        write!(f, "{c}")?;
                    }
                }
                Ok(())
            }
        }
    }
}

/// What a PUT is to be sealed by: a rule, or SSE-C, which no rule can say.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Asked {
    Rule(Rule),
    Customer(Customer),
}

impl Asked {
    pub fn method(&self) -> Method {
        match self {
            Asked::Rule(rule) => rule.method(),
            Asked::Customer(_) => Method::SseC,
        }
    }

    pub fn cipher(&self) -> Cipher {
        match self {
            Asked::Rule(rule) => rule.cipher(),
            Asked::Customer(_) => Cipher::Aes256Gcm,
        }
    }

    /// The rule, if it is one.
    pub fn rule(&self) -> Option<&Rule> {
        match self {
            Asked::Rule(rule) => Some(rule),
            Asked::Customer(_) => None,
        }
    }
}

impl From<Rule> for Asked {
    fn from(rule: Rule) -> Asked {
        Asked::Rule(rule)
    }
}

impl From<&Request> for Asked {
    fn from(request: &Request) -> Asked {
        match request {
            Request::SseC(customer) => Asked::Customer(*customer),
            Request::Aes256 => Asked::Rule(Rule::Aes256),
            Request::Kms { key, sm4 } => Asked::Rule(Rule::Kms { key: key.clone(), sm4: *sm4 }),
        }
    }
}

impl fmt::Display for Asked {
    /// A rule's short form, or `SSE-C`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Asked::Rule(rule) => rule.fmt(f),
            Asked::Customer(_) => f.write_str(Method::SseC.as_str()),
        }
    }
}

/// The encryption a PUT gets.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Effective {
    /// What applies; [`Rule::None`] also where nothing is set at all.
    pub asked: Asked,
    /// Who says so.
    pub origin: Origin,
}

impl fmt::Display for Effective {
    /// What applies, a space, the origin: `KMS:k1 directory photos/2024`, `SSE-C request`, `none none`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.asked, self.origin)
    }
}

/// Decides what a PUT gets. `dirs` are the rules of the directories above the object, nearest first; only as many
/// are taken from it as are needed. In a dialect that has no directory rules, or no requests, they are not asked.
pub fn resolve<'r, P: Into<PathBuf>>(
    request: Option<&Request>,
    dirs: impl IntoIterator<Item = (P, &'r Rule)>,
    bucket: Option<&Rule>,
    dialect: Dialect,
) -> Effective {
    if let Some(request) = request.filter(|_| dialect.requests_win()) {
        return Effective { asked: request.into(), origin: Origin::Request };
    }
    if dialect.directory_rules()
        && let Some((path, rule)) = dirs.into_iter().next()
    {
        return Effective { asked: rule.clone().into(), origin: Origin::Directory(path.into()) };
    }
    match bucket {
        Some(rule) => Effective { asked: rule.clone().into(), origin: Origin::Bucket },
        None => Effective { asked: Rule::None.into(), origin: Origin::None },
    }
}
