//! Percent-encoding of URIs (RFC 3986), as far as PKCS#11 and KMS URIs need it.

use super::ProviderError;

/// The bytes of an encoded text.
pub fn decode(text: &str) -> Result<Vec<u8>, ProviderError> {
    let bad = || ProviderError::Setup("a % in the URI of the key is not followed by two hexadecimal digits".into());
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b != b'%' {
            out.push(b);
            continue;
        }
        let mut digit = || bytes.next().and_then(|c| (c as char).to_digit(16)).ok_or_else(bad);
        out.push((digit()? * 16 + digit()?) as u8);
    }
    Ok(out)
}

/// The same as text.
pub fn decode_text(text: &str) -> Result<String, ProviderError> {
    String::from_utf8(decode(text)?).map_err(|_| ProviderError::Setup("the URI of the key is not UTF-8".into()))
}

/// Encodes all but letters, digits and `-._~/:`, which no part of these URIs splits at.
pub fn encode(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for &b in bytes {
        if b.is_ascii_alphanumeric() || b"-._~/:".contains(&b) {
            out.push(b as char);
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

/// Encodes every byte: what RFC 7512 likes for ids.
pub fn encode_all(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("%{b:02X}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoding_goes_there_and_back() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decode(&encode(&all)).unwrap(), all);
        assert_eq!(decode(&encode_all(&all)).unwrap(), all);
        assert_eq!(encode(b"a;b=c&d?e% f"), "a%3Bb%3Dc%26d%3Fe%25%20f");
        for bad in ["%", "%1", "%zz", "a%2"] {
            assert!(decode(bad).is_err(), "{bad}");
        }
        assert!(decode_text("%ff").is_err());
    }
}
