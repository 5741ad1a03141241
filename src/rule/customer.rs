//! Requests for SSE-C as they are kept: a salt and a verifier, by which a key is told from another, and never the key.
//! People are shown `SSE-C` alone. What the bytes are made from is the bucket's business.

use std::fmt;
use std::str::FromStr;

use super::error::RuleError;

/// How the kept form begins.
pub(super) const PREFIX: &str = "SSE-C:";
/// Users that may have asked for one directory, those of all files beside them.
pub const DIR_REQUESTS_MAX: usize = 64;

/// SSE-C asked for with a key that this verifier tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Customer {
    pub salt: [u8; 32],
    pub verifier: [u8; 32],
}

impl Customer {
    /// As the catalog keeps it: `SSE-C:SALT:VERIFIER`, 64 hexadecimal digits each.
    pub fn stored(&self) -> String {
        use fmt::Write;
        let mut out = String::from(PREFIX);
        for (i, part) in [&self.salt, &self.verifier].into_iter().enumerate() {
            if i > 0 {
                out.push(':');
            }
            for b in part {
                let _ = write!(out, "{b:02x}");
            }
        }
        out
    }
}

fn bytes(hex: &str) -> Option<[u8; 32]> {
    let lower = |c: &u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
    if hex.len() != 64 || !hex.as_bytes().iter().all(lower) {
        return None;
    }
    let mut out = [0u8; 32];
    for (i, b) in out.iter_mut().enumerate() {
        *b = u8::from_str_radix(hex.get(2 * i..2 * i + 2)?, 16).ok()?;
    }
    Some(out)
}

impl FromStr for Customer {
    type Err = RuleError;

    /// Reads the kept form; nothing that a user gives comes here.
    fn from_str(text: &str) -> Result<Customer, RuleError> {
        let parts = || -> Option<Customer> {
            let (salt, verifier) = text.strip_prefix(PREFIX)?.split_once(':')?;
            Some(Customer { salt: bytes(salt)?, verifier: bytes(verifier)? })
        };
        parts().ok_or(RuleError::UnknownAlgorithm)
    }
}

/// The requests of a directory for new files below it: at most one for all files, and one for those of each user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DirRequests(Vec<(Option<u32>, Customer)>);

impl DirRequests {
    /// What holds for a new file of this user: the user's own, else the one for all.
    pub fn of(&self, uid: u32) -> Option<&Customer> {
        let find = |who: Option<u32>| self.0.iter().find(|(u, _)| *u == who).map(|(_, c)| c);
        find(Some(uid)).or_else(|| find(None))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Set or take away the request of a user, or for None that of all. False when it was not there to be taken away, or when
    /// there is no room for one more.
    #[must_use]
    pub fn set(&mut self, who: Option<u32>, customer: Option<Customer>) -> bool {
        let at = self.0.iter().position(|(u, _)| *u == who);
        match (at, customer) {
            (Some(i), Some(c)) => self.0[i].1 = c,
            (Some(i), None) => drop(self.0.remove(i)),
            (None, Some(c)) if self.0.len() < DIR_REQUESTS_MAX => {
                self.0.push((who, c));
                self.0.sort_by_key(|(u, _)| *u);
            }
            (None, _) => return false,
        }
        true
    }

    /// As the catalog keeps them: `SSE-C:SALT:VERIFIER` for all, with `:UID` for those of a user, separated by blanks.
    pub fn stored(&self) -> String {
        let each = self.0.iter().map(|(who, c)| match who {
            Some(uid) => format!("{}:{uid}", c.stored()),
            None => c.stored(),
        });
        each.collect::<Vec<_>>().join(" ")
    }
}

impl FromStr for DirRequests {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<DirRequests, RuleError> {
        let mut out = DirRequests::default();
        for word in text.split(' ') {
            let uid = || word.rsplit_once(':')?.1.parse::<u32>().ok();
            // Without a user the last field is a verifier, which is no number of 32 bits however it looks.
            let (one, who) = match word.parse::<Customer>() {
                Ok(c) => (c, None),
                Err(e) => (word.rsplit_once(':').map_or("", |(c, _)| c).parse()?, Some(uid().ok_or(e)?)),
            };
            if out.0.iter().any(|(u, _)| *u == who) || !out.set(who, Some(one)) {
                return Err(RuleError::UnknownAlgorithm);
            }
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Customer = Customer { salt: [0xa5; 32], verifier: [1; 32] };
    const TWO: Customer = Customer { salt: [3; 32], verifier: [4; 32] };

    #[test]
    fn the_kept_form_comes_back_and_nothing_near_it_does() {
        let text = ONE.stored();
        assert_eq!(text.len(), 6 + 64 + 1 + 64);
        assert_eq!(text.parse::<Customer>(), Ok(ONE));
        for bad in [&text[1..], &text[..text.len() - 1], &text.to_uppercase(), &format!("{text}0"), "SSE-C", "SSE-C::"]
        {
            assert!(bad.parse::<Customer>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_user_has_its_own_request_before_that_of_all() {
        let mut d = DirRequests::default();
        assert!(d.of(7).is_none() && d.is_empty());
        assert!(d.set(Some(7), Some(ONE)) && d.set(None, Some(TWO)));
        assert_eq!((d.of(7), d.of(8)), (Some(&ONE), Some(&TWO)));
        assert_eq!(d.stored().parse::<DirRequests>().unwrap(), d);
        assert!(d.set(Some(7), None) && !d.set(Some(7), None));
        assert_eq!(d.of(7), Some(&TWO));
        for bad in ["", &format!("{} {}", ONE.stored(), ONE.stored()), &format!("{}:x", ONE.stored())] {
            assert!(bad.parse::<DirRequests>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_number_of_users_is_bounded() {
        let mut d = DirRequests::default();
        for uid in 0..DIR_REQUESTS_MAX as u32 {
            assert!(d.set(Some(uid), Some(ONE)));
        }
        assert!(!d.set(None, Some(ONE)) && d.set(Some(3), Some(TWO)));
        assert_eq!(d.stored().parse::<DirRequests>().unwrap(), d);
    }
}
