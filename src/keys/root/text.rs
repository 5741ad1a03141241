//! The root key as text (FORMAT.md, "Root key"): what a file holds, and what a command or a credential gives.

use super::super::KeyError;
use crate::crypto::passphrase::SecretText;
use crate::crypto::secret::RootKey;
use std::path::Path;
use zeroize::Zeroizing;

const FAMILY: &[u8] = b"ssefs-root-key-";
const PREFIX: &[u8] = b"ssefs-root-key-1 ";
/// Bytes of the text.
pub const TEXT_BYTES: usize = PREFIX.len() + 64 + 1;
const DIGITS: &str = "it has not 64 hexadecimal digits";

pub fn pack(key: &RootKey) -> SecretText {
    let mut text = SecretText::new();
    let room = text.room();
    room[..PREFIX.len()].copy_from_slice(PREFIX);
    for (pair, byte) in room[PREFIX.len()..].chunks_exact_mut(2).zip(key.expose()) {
        pair.copy_from_slice(&[byte >> 4, byte & 15].map(|nibble| b"0123456789abcdef"[nibble as usize]));
    }
    room[TEXT_BYTES - 1] = b'\n';
    text.add(TEXT_BYTES);
    text
}

/// A file's text: all of it, to the letter.
pub fn parse(text: &[u8]) -> Result<RootKey, &'static str> {
    let Some(rest) = text.strip_prefix(PREFIX) else {
        return Err(match text {
            [] => "the file is empty",
            t if t.starts_with(FAMILY) => "its version is newer than this ssefs knows (1)",
            _ => "it does not begin with \"ssefs-root-key-1 \"",
        });
    };
    let digits = rest.strip_suffix(b"\n").ok_or("it is not one line")?;
    hexadecimal(digits)
}

/// What another program keeps: the same text, or the 64 digits alone, with or without a line's end.
pub fn parse_given(text: &[u8], from: &str) -> Result<RootKey, KeyError> {
    let line = text.strip_suffix(b"\n").map_or(text, |l| l.strip_suffix(b"\r").unwrap_or(l));
    let key = match line.strip_prefix(PREFIX) {
        Some(digits) => hexadecimal(digits),
        None if line.is_empty() => Err("it is empty"),
        None if line.starts_with(FAMILY) => Err("its version is newer than this ssefs knows (1)"),
        None => hexadecimal(line),
    };
    key.map_err(|why| KeyError::RootMalformed { path: Path::new(from).to_owned(), why })
}

fn hexadecimal(digits: &[u8]) -> Result<RootKey, &'static str> {
    if digits.len() != 64 {
        return Err(DIGITS);
    }
    let mut key = Zeroizing::new([0u8; 32]);
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |c: u8| (c as char).to_digit(16).ok_or(DIGITS);
        *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
    }
    Ok(RootKey::take(&mut key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_gives_may_be_the_digits_alone_and_nothing_else() {
        let digits = "0f".repeat(32);
        for good in
            [digits.clone(), format!("{digits}\n"), format!("{digits}\r\n"), format!("ssefs-root-key-1 {digits}\n")]
        {
            assert_eq!(parse_given(good.as_bytes(), "x").unwrap().expose(), &[15; 32], "{good:?}");
        }
        let bad = [
            String::new(),
            "\n".into(),
            digits[1..].into(),
            format!("{digits}0f"),
            format!("{digits}\n\n"),
            format!(" {digits}"),
            digits.replacen('f', "g", 1),
            format!("ssefs-root-key-2 {digits}\n"),
            "Enter passphrase: ".into(),
        ];
        for bad in bad {
            let error = parse_given(bad.as_bytes(), "the output of /bin/x").unwrap_err().to_string();
            assert!(error.contains("the output of /bin/x") && !error.contains("0f0f"), "{error}");
        }
    }

    #[test]
    fn a_key_survives_its_text() {
        let key = RootKey::take(&mut [0xa7; 32]);
        let text = pack(&key);
        assert_eq!(text.expose().len(), TEXT_BYTES);
        assert_eq!(parse(text.expose()).unwrap().expose(), key.expose());
    }
}
