//! Signature Version 4 of AWS, for POST requests to the path `/` without a query: all that KMS needs. (The crate
//! aws-sigv4 wants a newer compiler than ssefs does, and thirty crates.)

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::aws_credentials::Credentials;
use super::date;
use crate::types::to_hex;

/// What is signed.
pub struct Request<'a> {
    /// As the header `host` has it.
    pub host: &'a str,
    pub region: &'a str,
    pub service: &'a str,
    /// Further headers, names in lower case, sorted.
    pub headers: &'a [(&'a str, &'a str)],
    pub body: &'a [u8],
    pub unix: u64,
}

/// Headers to send besides those signed: the date, the token if there is one, and the signature.
pub fn sign(r: &Request<'_>, credentials: &Credentials) -> Vec<(&'static str, Zeroizing<String>)> {
    let stamp = date::basic(r.unix);
    let day = &stamp[..8];
    let token = credentials.token.as_deref().map(String::as_str);
    let mut headers: Vec<(&str, &str)> = r.headers.to_vec();
    headers.extend([("host", r.host), ("x-amz-date", &stamp)]);
    headers.extend(token.map(|t| ("x-amz-security-token", t)));
    headers.sort_unstable();
    let names = headers.iter().map(|(n, _)| *n).collect::<Vec<_>>().join(";");
    let mut canonical = Zeroizing::new(String::from("POST\n/\n\n"));
    for (name, value) in &headers {
        canonical.push_str(&format!("{name}:{}\n", value.trim()));
    }
    canonical.push_str(&format!("\n{names}\n{}", hex_digest(r.body)));
    let scope = format!("{day}/{}/{}/aws4_request", r.region, r.service);
    let to_sign = format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{}", hex_digest(canonical.as_bytes()));
    let mut key = Zeroizing::new([b"AWS4", credentials.secret.as_bytes()].concat());
    for part in [day, r.region, r.service, "aws4_request"] {
        key = Zeroizing::new(hmac(&key, part.as_bytes()));
    }
    let signature = to_hex(&hmac(&key, to_sign.as_bytes()));
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}",
        credentials.access
    );
    let mut out = vec![("x-amz-date", Zeroizing::new(stamp)), ("authorization", Zeroizing::new(authorization))];
    out.extend(token.map(|t| ("x-amz-security-token", Zeroizing::new(t.to_owned()))));
    out
}

fn hex_digest(bytes: &[u8]) -> String {
    to_hex(&Sha256::digest(bytes))
}

fn hmac(key: &[u8], bytes: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(bytes);
    mac.finalize().into_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(headers: &[(&str, &str)], body: &[u8], token: Option<&str>) -> String {
        // The key pair of AWS's own test suite.
        let credentials = Credentials::for_test("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", token);
        let request = Request {
            host: "example.amazonaws.com",
            region: "us-east-1",
            service: "service",
            headers,
            body,
            unix: 1_440_938_160,
        };
        let out = sign(&request, &credentials);
        out.iter().find(|(n, _)| *n == "authorization").unwrap().1.to_string()
    }

    /// aws-sig-v4-test-suite: post-vanilla, post-x-www-form-urlencoded, post-sts-header-before.
    #[test]
    fn signatures_are_those_of_the_test_suite_of_aws() {
        assert_eq!(
            signed(&[], b"", None),
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
             SignedHeaders=host;x-amz-date, Signature=5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"
        );
        let form = [("content-type", "application/x-www-form-urlencoded")];
        assert!(
            signed(&form, b"Param1=value1", None)
                .ends_with("ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a")
        );
        let token = "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTflfKD8YUuwthAx7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVXAkiY9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSYvKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA==";
        assert!(
            signed(&[], b"", Some(token)).ends_with("85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead")
        );
    }
}
