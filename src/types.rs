//! The names and numbers every layer shares. Parsed once, valid for ever after: a `BucketName` that exists is a
//! legal one. Nothing here does I/O or knows a key.

use std::fmt;
use std::str::FromStr;

/// Unit of alignment of chunks, of the log and of direct I/O, in bytes.
pub const BLOCK: usize = 4096;
/// Largest legal chunk, in bytes.
pub const CHUNK_BYTES_MAX: u32 = 256 * 1024;
/// Chunk size of a bucket unless another is asked for, in bytes.
pub const CHUNK_BYTES_DEFAULT: u32 = 16 * 1024;
/// Bytes a sealed chunk has beyond its content: nonce 12 and tag 16.
pub const FRAME_OVERHEAD: usize = 28;

/// Why a name or an id was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("bucket name {0:?} is not allowed: use 1 to 255 of A-Z a-z 0-9 . _ - and begin with none of . -")]
    Bucket(String),
    #[error("{what} must be {digits} hexadecimal digits, not {got:?}")]
    Hex { what: &'static str, digits: usize, got: String },
}

/// A legal bucket name (FORMAT.md, Files).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BucketName(String);

impl BucketName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BucketName {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let bytes = s.as_bytes();
        if bytes.is_empty() || bytes.len() > 255 || !bytes.iter().all(|&b| legal(b)) || matches!(bytes[0], b'.' | b'-')
        {
            return Err(NameError::Bucket(s.chars().take(80).collect()));
        }
        Ok(BucketName(s.to_owned()))
    }
}

impl fmt::Display for BucketName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Lower-case hexadecimal of some bytes.
pub fn to_hex(bytes: &[u8]) -> String {
    let mut s = String::with_capacity(bytes.len() * 2);
    for b in bytes {
        s.push(char::from_digit((b >> 4) as u32, 16).unwrap_or('?'));
        s.push(char::from_digit((b & 15) as u32, 16).unwrap_or('?'));
    }
    s
}

/// Bytes of a hexadecimal text; None unless it is exactly `N` bytes of it.
pub fn from_hex<const N: usize>(s: &str) -> Option<[u8; N]> {
    if s.len() != 2 * N || !s.is_ascii() {
        return None;
    }
    let mut out = [0u8; N];
    for (i, pair) in s.as_bytes().chunks_exact(2).enumerate() {
        let hi = (pair[0] as char).to_digit(16)?;
        let lo = (pair[1] as char).to_digit(16)?;
        out[i] = (hi * 16 + lo) as u8;
    }
    Some(out)
}

/// A time in Unix seconds (before 1970 as 1970) as `2026-01-31T23:59:59Z` (civil-from-days of the proleptic Gregorian calendar).
pub fn utc(seconds: i64) -> String {
    let seconds = u64::try_from(seconds).unwrap_or(0);
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days are counted from 1 March of year 0, so that the leap day ends a year.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

macro_rules! id16 {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        pub struct $name(pub [u8; 16]);
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), to_hex(&self.0))
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&to_hex(&self.0))
            }
        }
        impl FromStr for $name {
            type Err = NameError;
            fn from_str(s: &str) -> Result<Self, NameError> {
                from_hex::<16>(s).map($name).ok_or_else(|| NameError::Hex {
                    what: $what, digits: 32, got: s.chars().take(64).collect(),
                })
            }
        }
        impl TryFrom<&[u8]> for $name {
            type Error = NameError;
            fn try_from(b: &[u8]) -> Result<Self, NameError> {
                b.try_into().map($name).map_err(|_| NameError::Hex {
                    what: $what, digits: 32, got: format!("{} bytes", b.len()),
                })
            }
        }
    };
}

id16!(
    /// A store's identity, random.
    StoreId, "a store id");
id16!(
    /// A bucket's identity, random; survives renaming and moving.
    BucketId, "a bucket id");
id16!(
    /// One PUT: random, made when an object is given its content.
    SealId, "a seal id");
id16!(
    /// One opening of a bucket for writing: random, part of every chunk's sequence.
    OpenId, "an open id");

/// An object (a regular file) and any other inode of a bucket: its inode number, stable for life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ObjectId(pub u64);

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A key that wraps data keys, by its number inside one bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct KekId(pub u64);

/// The id of a master key, for example `mk-0123456789abcdef`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub String);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The sequence of a chunk: which opening wrote it (by its number in the catalog) and the count within it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Sequence {
    pub open_no: u32,
    pub counter: u64,
}

/// Where a sealed chunk lies: segment id and byte position of its frame in the segment file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Location {
    pub segment: u32,
    pub position: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_names_that_could_leave_the_store_are_refused() {
        for bad in ["", ".", "..", ".x", "-x", "a/b", "a\0b", "a\nb", "a b", "é", &"a".repeat(256)] {
            assert!(bad.parse::<BucketName>().is_err(), "{bad:?}");
        }
        for good in ["a", "bench", "my.bucket_1-x", &"a".repeat(255)] {
            assert!(good.parse::<BucketName>().is_ok(), "{good:?}");
        }
    }

    #[test]
    fn hexadecimal_goes_there_and_back() {
        let id = SealId([0xa5; 16]);
        assert_eq!(id.to_string().parse::<SealId>().unwrap(), id);
        assert!("xyz".parse::<SealId>().is_err());
    }

    #[test]
    fn times_carry_the_right_date() {
        for (seconds, text) in [
            (-1, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(seconds), text);
        }
    }
}
