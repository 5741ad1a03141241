//! Which encryption a PUT gets, and why: request before directory before bucket (rows 5, 6, 38, 70, 71).
//! Everything that must know asks here, so `user.sse.effective` cannot say one thing and a write do another.

use std::fmt;
use std::path::PathBuf;

use super::dialect::Dialect;
use super::model::{Request, Rule};

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

/// The encryption a PUT gets.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Effective {
    /// What applies; [`Rule::None`] also where nothing is set at all.
    pub rule: Rule,
    /// Who says so.
    pub origin: Origin,
}

impl fmt::Display for Effective {
    /// The rule in its short form, a space, the origin: `KMS:k1 directory photos/2024`, `none none`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.rule, self.origin)
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
        return Effective { rule: request.as_rule(), origin: Origin::Request };
    }
    if dialect.directory_rules()
        && let Some((path, rule)) = dirs.into_iter().next()
    {
        return Effective { rule: rule.clone(), origin: Origin::Directory(path.into()) };
    }
    match bucket {
        Some(rule) => Effective { rule: rule.clone(), origin: Origin::Bucket },
        None => Effective { rule: Rule::None, origin: Origin::None },
    }
}
