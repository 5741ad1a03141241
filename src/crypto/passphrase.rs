//! A passphrase made into a key with Argon2id (RFC 9106). The parameters lie beside what the key wraps, within bounds:
//! a text that asks for more memory or time than anybody would is refused before it is obeyed.

use super::CryptoError;
use super::arena::{PAGE_BYTES, Page};
use super::secret::{PassKey, fill_random};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use std::fmt;
use zeroize::{Zeroize, Zeroizing};

/// Longest passphrase in bytes.
pub const PASSPHRASE_BYTES_MAX: usize = 1024;
/// Shortest passphrase that a new key is sealed by, in bytes.
pub const PASSPHRASE_BYTES_MIN: usize = 8;
/// Memory of one derivation if nobody asks for another amount: four times that of RFC 9106, section 4, second option.
pub const KDF_MEMORY_KIB_DEFAULT: u32 = 256 * 1024;
/// Bounds of the memory: RFC 9106 asks for at least 8 KiB a lane; its first option has 2 GiB.
pub const KDF_MEMORY_KIB: std::ops::RangeInclusive<u32> = 64..=4 * 1024 * 1024;
const PASSES: u32 = 3;
const LANES: u32 = 4;
const PASSES_MAX: u32 = 64;
const LANES_MAX: u32 = 64;
const VERSION: &str = "19";

/// Bytes of a secret text, at most a page: what a file, a terminal or a command gave. Locked in memory, wiped on drop.
pub struct SecretText {
    page: Page,
    bytes: usize,
}

impl SecretText {
    /// Nothing yet, to be filled.
    pub fn new() -> SecretText {
        SecretText { page: Page::new(), bytes: 0 }
    }

    /// Takes a copy. None when it is longer than a page.
    pub fn copy_of(text: &[u8]) -> Option<SecretText> {
        let mut new = SecretText::new();
        new.room().get_mut(..text.len())?.copy_from_slice(text);
        new.add(text.len());
        Some(new)
    }

    /// The room behind what is there.
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.page.get_mut()[self.bytes..]
    }

    /// Counts `n` bytes of the room as filled.
    pub fn add(&mut self, n: usize) {
        self.bytes = (self.bytes + n).min(PAGE_BYTES);
    }

    /// The text itself. Only for the call that uses it: do not keep a copy.
    pub fn expose(&self) -> &[u8] {
        &self.page.get()[..self.bytes]
    }

    /// Cuts it down to its first `bytes`, wiping the rest.
    pub fn truncate(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.page.get_mut()[bytes..].zeroize();
        self.bytes = bytes;
    }
}

impl Default for SecretText {
    fn default() -> SecretText {
        SecretText::new()
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(..)")
    }
}

/// What people type: any bytes but a line's end, at most 1024 of them.
pub struct Passphrase(SecretText);

impl Passphrase {
    /// One line, with or without its end (a file that an editor or echo(1) wrote has one).
    ///
    /// # Errors
    /// Why it is no passphrase: empty, more than one line, too long.
    pub fn from_line(mut text: SecretText) -> Result<Passphrase, &'static str> {
        let line = text.expose();
        let line = line.strip_suffix(b"\n").map_or(line, |l| l.strip_suffix(b"\r").unwrap_or(l));
        let bytes = line.len();
        if line.is_empty() {
            return Err("it is empty");
        }
        if line.contains(&b'\n') || line.contains(&0) {
            return Err("it is not one line of text");
        }
        if bytes > PASSPHRASE_BYTES_MAX {
            return Err("it is longer than 1024 bytes");
        }
        text.truncate(bytes);
        Ok(Passphrase(text))
    }

    /// The passphrase itself. Only for the call that uses it: do not keep a copy.
    pub fn expose(&self) -> &[u8] {
        self.0.expose()
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(..)")
    }
}

/// How a passphrase is made into a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kdf {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
    salt: [u8; 16],
}

impl Kdf {
    /// A new salt, and `memory_kib` of memory (`KDF_MEMORY_KIB`).
    pub fn new(memory_kib: u32) -> Result<Kdf, CryptoError> {
        let mut salt = [0u8; 16];
        fill_random(&mut salt)?;
        let memory_kib = memory_kib.clamp(*KDF_MEMORY_KIB.start(), *KDF_MEMORY_KIB.end());
        Ok(Kdf { memory_kib, passes: PASSES, lanes: LANES, salt })
    }

    pub fn memory_kib(&self) -> u32 {
        self.memory_kib
    }

    /// Reads what `Display` wrote: `argon2id 19 MEMORY-KIB PASSES LANES SALT`.
    pub fn parse(text: &str) -> Option<Kdf> {
        let words: Vec<&str> = text.split(' ').collect();
        let ["argon2id", VERSION, memory, passes, lanes, salt] = words[..] else { return None };
        let number = |w: &str| w.parse::<u32>().ok().filter(|n| n.to_string() == w);
        let kdf = Kdf {
            memory_kib: number(memory).filter(|m| KDF_MEMORY_KIB.contains(m))?,
            passes: number(passes).filter(|n| (1..=PASSES_MAX).contains(n))?,
            lanes: number(lanes).filter(|n| (1..=LANES_MAX).contains(n))?,
            salt: crate::types::from_hex(salt)?,
        };
        (kdf.memory_kib >= 8 * kdf.lanes).then_some(kdf)
    }

    /// The key that `secret` gives. Takes the memory and the time that the parameters say.
    ///
    /// # Errors
    /// `Memory` when the system has not so much.
    pub fn derive(&self, secret: &[u8]) -> Result<PassKey, CryptoError> {
        let unfit = |_| CryptoError::Malformed { what: "Argon2id parameters", bytes: 0 };
        let params = Params::new(self.memory_kib, self.passes, self.lanes, Some(32)).map_err(unfit)?;
        let mut blocks: Vec<Block> = Vec::new();
        let count = params.block_count();
        blocks.try_reserve_exact(count).map_err(|_| CryptoError::Memory { kib: self.memory_kib })?;
        blocks.resize(count, Block::new());
        let mut key = Zeroizing::new([0u8; 32]);
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let derived = argon2.hash_password_into_with_memory(secret, &self.salt, &mut key[..], &mut blocks[..]);
        blocks.iter_mut().for_each(Zeroize::zeroize);
        derived.map_err(unfit)?;
        Ok(PassKey::take(&mut key))
    }
}

impl fmt::Display for Kdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Kdf { memory_kib, passes, lanes, salt } = self;
        write!(f, "argon2id {VERSION} {memory_kib} {passes} {lanes} {}", crate::types::to_hex(salt))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::to_hex;

    fn text(t: &[u8]) -> SecretText {
        SecretText::copy_of(t).unwrap()
    }

    #[test]
    fn the_key_of_a_passphrase_has_the_pinned_bytes() {
        // argon2.low_level.hash_secret_raw(b"correct horse", salt, 3, 64, 4, 32, Type.ID) of Python's argon2-cffi 25.1.
        let kdf = Kdf::parse("argon2id 19 64 3 4 000102030405060708090a0b0c0d0e0f").unwrap();
        let key = kdf.derive(b"correct horse").unwrap();
        assert_eq!(to_hex(key.expose()), PINNED);
    }
    const PINNED: &str = "9bd6201406d26eb54e97961ba73c80c0a6fd3571471dda9b048f09a058c13e9e";

    #[test]
    fn parameters_survive_their_text_and_others_are_refused() {
        let kdf = Kdf::new(1024).unwrap();
        assert_eq!(Kdf::parse(&kdf.to_string()), Some(kdf));
        let salt = "000102030405060708090a0b0c0d0e0f";
        for bad in [
            String::new(),
            format!("argon2i 19 1024 3 4 {salt}"),
            format!("argon2id 16 1024 3 4 {salt}"),
            format!("argon2id 19 99999999 3 4 {salt}"),
            format!("argon2id 19 4294967296 3 4 {salt}"),
            format!("argon2id 19 1024 0 4 {salt}"),
            format!("argon2id 19 1024 65 4 {salt}"),
            format!("argon2id 19 1024 3 0 {salt}"),
            format!("argon2id 19 64 3 16 {salt}"),
            format!("argon2id 19 +1024 3 4 {salt}"),
            format!("argon2id 19 1024 3 4 {}", &salt[2..]),
            format!("argon2id 19 1024 3 4 {salt} more"),
        ] {
            assert_eq!(Kdf::parse(&bad), None, "{bad}");
        }
    }

    #[test]
    fn one_line_end_is_not_part_of_a_passphrase() {
        for line in [&b"open sesame"[..], b"open sesame\n", b"open sesame\r\n"] {
            assert_eq!(Passphrase::from_line(text(line)).unwrap().expose(), b"open sesame");
        }
        assert_eq!(Passphrase::from_line(text(b" a \n")).unwrap().expose(), b" a ", "blanks count");
        for bad in [&b""[..], b"\n", b"\r\n", b"two\nlines\n", b"end\n\n", b"nul\0", &[b'x'; 1025]] {
            assert!(Passphrase::from_line(text(bad)).is_err(), "{bad:?}");
        }
        assert!(SecretText::copy_of(&[0; PAGE_BYTES + 1]).is_none());
    }

    #[test]
    fn debug_prints_no_secret() {
        let secret = text(b"open sesame");
        assert_eq!(format!("{secret:?}"), "SecretText(..)");
        assert_eq!(format!("{:?}", Passphrase::from_line(secret).unwrap()), "Passphrase(..)");
    }
}
