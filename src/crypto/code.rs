//! The code of a recovery kit: 160 random bits in letters and digits that people do not confuse (Crockford's base 32),
//! with three more that tell a typing error before any work is done.

use super::CryptoError;
use super::passphrase::{Passphrase, SecretText};
use super::secret::fill_random;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/// Symbols with 5 random bits each, and those that check them.
const RANDOM: usize = 32;
const CHECK: usize = 3;
const GROUP: usize = 5;

/// A new code, in seven groups of five with dashes between them.
pub fn new() -> Result<SecretText, CryptoError> {
    let mut random = Zeroizing::new([0u8; RANDOM]);
    fill_random(&mut random[..])?;
    let mut symbols = Zeroizing::new([0u8; RANDOM + CHECK]);
    for (symbol, byte) in symbols.iter_mut().zip(random.iter()) {
        *symbol = ALPHABET[(byte & 31) as usize];
    }
    let check = check(&symbols[..RANDOM]);
    symbols[RANDOM..].copy_from_slice(&check);
    let mut text = SecretText::new();
    for (i, group) in symbols.chunks(GROUP).enumerate() {
        let dash = usize::from(i > 0);
        let room = &mut text.room()[..dash + group.len()];
        room[..dash].fill(b'-');
        room[dash..].copy_from_slice(group);
        text.add(dash + group.len());
    }
    Ok(text)
}

/// What was typed, made into the passphrase that the code is: without dashes and blanks, in capitals, O as 0, I and L as 1.
///
/// # Errors
/// Why it cannot be a code.
pub fn parse(typed: &Passphrase) -> Result<Passphrase, &'static str> {
    let mut symbols = Zeroizing::new([0u8; RANDOM + CHECK]);
    let mut n = 0;
    for &byte in typed.expose() {
        let symbol = match byte.to_ascii_uppercase() {
            b'-' | b' ' | b'\t' => continue,
            b'O' => b'0',
            b'I' | b'L' => b'1',
            symbol if ALPHABET.contains(&symbol) => symbol,
            _ => return Err("it holds a character that no code has"),
        };
        *symbols.get_mut(n).ok_or("it is longer than a code, which has 35 letters and digits")? = symbol;
        n += 1;
    }
    if n != RANDOM + CHECK {
        return Err("it is shorter than a code, which has 35 letters and digits");
    }
    if check(&symbols[..RANDOM]) != symbols[RANDOM..] {
        return Err("it has a typing error");
    }
    let text = SecretText::copy_of(&symbols[..]).ok_or("it is too long")?;
    Passphrase::from_line(text)
}

fn check(symbols: &[u8]) -> [u8; CHECK] {
    let hash = Sha256::new_with_prefix(b"ssefs-kit-code-1").chain_update(symbols).finalize();
    std::array::from_fn(|i| ALPHABET[(hash[i] & 31) as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(text: &str) -> Passphrase {
        Passphrase::from_line(SecretText::copy_of(text.as_bytes()).unwrap()).unwrap()
    }

    #[test]
    fn a_code_is_read_back_however_it_is_typed() {
        let code = String::from_utf8(new().unwrap().expose().to_vec()).unwrap();
        assert_eq!(code.len(), 41);
        let plain = code.replace('-', "");
        for form in [code.clone(), code.to_lowercase(), code.replace('-', " "), plain.clone()] {
            assert_eq!(parse(&typed(&form)).unwrap().expose(), plain.as_bytes(), "{form}");
        }
        let confused = plain.to_lowercase().replace('0', "o").replace('1', "l");
        assert_eq!(parse(&typed(&confused)).unwrap().expose(), plain.as_bytes());
        assert_ne!(new().unwrap().expose(), code.as_bytes());
    }

    #[test]
    fn typing_errors_are_told_at_once() {
        let code = String::from_utf8(new().unwrap().expose().to_vec()).unwrap();
        let other = if code.starts_with('7') { "8" } else { "7" };
        let wrong = [
            code[1..].to_owned(),
            format!("{code}0"),
            format!("{other}{}", &code[1..]),
            code.replacen('-', "_", 1),
            "correct horse battery staple".into(),
        ];
        // One in 32768 altered codes has a check that agrees by chance; this one differs in the code alone.
        for wrong in wrong {
            assert!(parse(&typed(&wrong)).is_err(), "{wrong}");
        }
    }
}
