//! Key services that others run, behind the embedded keyring: PKCS#11 tokens and whatever speaks the API of AWS KMS.
//! A service only ever makes and gives back a one-time secret of 32 bytes, under which ssefs wraps a KEK itself
//! (FORMAT.md, "Wrapped keys"); so what a service answers is never trusted to be the right key.

mod aws;
mod aws_credentials;
mod aws_uri;
mod date;
mod external;
mod http;
mod percent;
mod pin;
mod pkcs11;
mod pkcs11_uri;
mod pkcs11_worker;
mod sigv4;

use std::fmt;
use std::time::Duration;

use subtle::ConstantTimeEq;

use crate::crypto::secret::MasterKey;
use crate::types::{BucketId, KekId, KeyId};

pub use pin::note_given_descriptors;

pub use external::{Calls, External, Standing};

/// Longest blob that is kept; AWS KMS gives at most 6144 bytes.
pub const BLOB_BYTES_MAX: usize = 8192;
/// How long one call to a service may take in all, unless its URI says `timeout=SECONDS`.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// A secret that wraps one KEK, once.
pub type OneTime = MasterKey;

/// What a one-time secret is for. The service gets it as encryption context (AWS) or associated data (PKCS#11), so
/// that a blob opens in its place only.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    pub bucket: &'a BucketId,
    pub kek: KekId,
    pub key: &'a KeyId,
}

impl Context<'_> {
    /// Names and values, in the order in which they are authenticated.
    pub fn pairs(&self) -> [(&'static str, String); 3] {
        [
            ("ssefs:bucket", self.bucket.to_string()),
            ("ssefs:kek", self.kek.0.to_string()),
            ("ssefs:key", self.key.to_string()),
        ]
    }

    /// The pairs as one text of bytes: field(name) ‖ field(value) of each.
    pub fn associated_data(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        for (name, value) in self.pairs() {
            for part in [name.as_bytes(), value.as_bytes()] {
                out.extend_from_slice(&(part.len() as u32).to_le_bytes());
                out.extend_from_slice(part);
            }
        }
        out
    }
}

/// A key of an external service. Calls may take as long as the service's time limit: never hold a lock over one.
pub trait Provider: Send + Sync {
    /// A new one-time secret, and the blob from which the service alone can make it again.
    fn generate(&self, context: &Context<'_>) -> Result<(OneTime, Vec<u8>), ProviderError>;

    /// The one-time secret of a blob, when it was made for this context.
    fn unwrap(&self, context: &Context<'_>, blob: &[u8]) -> Result<OneTime, ProviderError>;

    /// Whether the key can be used, without using it. Not being usable is an error like any other.
    fn describe(&self) -> Result<Description, ProviderError>;
}

/// What a service tells of a key that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// The service's own name of the key: an ARN, or token and object.
    pub key: String,
    /// More of it, in words.
    pub detail: String,
}

/// Why a service did not do it, by what can be done about it. Texts never hold a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// No answer that means anything, in time or at all: wait, or see to the service.
    #[error("the key service cannot be reached: {0}")]
    Unreachable(String),
    /// It answers, and does not let us: see to credentials, PIN or policy.
    #[error("the key service refuses: {0}")]
    Refused(String),
    #[error("the key service has disabled the key ({0})")]
    Disabled(String),
    #[error("the key is pending deletion in the key service ({0})")]
    PendingDeletion(String),
    #[error("the key service has no such key any more ({0})")]
    Gone(String),
    /// The blob is of another key of the service.
    #[error("the key service says that another key wrapped this ({0})")]
    WrongKey(String),
    /// The blob, or the place it was made for, is not what it was.
    #[error("the key service says that this is not what it wrapped, or not for this place ({0})")]
    Altered(String),
    /// What the URI or the machine has does not do: nothing was asked.
    #[error("{0}")]
    Setup(String),
}

impl ProviderError {
    /// Whether the key may not be used any more, by the word of the service itself: what is unwrapped is cut off.
    pub fn revokes(&self) -> bool {
        matches!(self, ProviderError::Disabled(_) | ProviderError::PendingDeletion(_) | ProviderError::Gone(_))
    }

    /// The code of the clouds' key services for this.
    pub fn code(&self) -> &'static str {
        match self {
            ProviderError::Unreachable(_) => "KMS.DependencyTimeoutException",
            ProviderError::Refused(_) => "KMS.AccessDeniedException",
            ProviderError::Disabled(_) => "KMS.DisabledException",
            ProviderError::PendingDeletion(_) => "KMS.KMSInvalidStateException",
            ProviderError::Gone(_) => "KMS.NotFoundException",
            ProviderError::WrongKey(_) => "KMS.IncorrectKeyException",
            ProviderError::Altered(_) => "KMS.InvalidCiphertextException",
            ProviderError::Setup(_) => "KMS.InvalidConfigurationException",
        }
    }
}

/// The services that ssefs knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    Pkcs11,
    AwsKms,
}

impl Service {
    /// As the keyring's column `provider` and the scheme of a URI have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Service::Pkcs11 => "pkcs11",
            Service::AwsKms => "aws-kms",
        }
    }

    pub fn parse(word: &str) -> Option<Service> {
        [Service::Pkcs11, Service::AwsKms].into_iter().find(|s| s.as_str() == word)
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A key of a service as the keyring keeps it: the service, and the rest of the URI in its canonical form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRef {
    pub service: Service,
    pub rest: String,
}

impl KeyRef {
    /// Splits `pkcs11:...` or `aws-kms:...`.
    pub fn parse(uri: &str) -> Result<KeyRef, ProviderError> {
        let known = uri.split_once(':').and_then(|(scheme, rest)| Some((Service::parse(scheme)?, rest)));
        let (service, rest) = known.ok_or_else(|| {
            ProviderError::Setup("a key service is named by pkcs11:... (RFC 7512) or aws-kms:KEY".into())
        })?;
        Ok(KeyRef { service, rest: rest.to_owned() })
    }

    /// The key of this reference, ready to be asked. Asks nothing yet.
    pub fn open(&self) -> Result<Box<dyn Provider>, ProviderError> {
        Ok(match self.service {
            Service::Pkcs11 => Box::new(pkcs11::Pkcs11Key::open(&self.rest)?),
            Service::AwsKms => Box::new(aws::AwsKey::open(&self.rest)?),
        })
    }

    /// Looks the key up in its service and gives back how to keep it: by what does not change (an ARN, an object's
    /// id). `may_make`: a PKCS#11 key that is named and not there is made. True when it was.
    pub fn settle(&self, may_make: bool) -> Result<(KeyRef, Description, bool), ProviderError> {
        let (rest, description, made) = match self.service {
            Service::Pkcs11 => pkcs11::settle(&self.rest, may_make)?,
            Service::AwsKms => {
                let (rest, description) = aws::settle(&self.rest)?;
                (rest, description, false)
            }
        };
        Ok((KeyRef { service: self.service, rest }, description, made))
    }

    /// Whether the key does what it must, before anything hangs on it: a secret goes there and comes back.
    pub fn prove(&self) -> Result<(), ProviderError> {
        let (key, context) = (self.open()?, (BucketId::default(), KeyId("none".into())));
        let context = Context { bucket: &context.0, kek: KekId(0), key: &context.1 };
        let (secret, blob) = key.generate(&context)?;
        match bool::from(key.unwrap(&context, &blob)?.expose().ct_eq(secret.expose())) {
            true => Ok(()),
            false => Err(ProviderError::Setup("the key service gave back another secret than it gave out".into())),
        }
    }

    /// Takes back a key that was made for nothing. Only for one that nothing hangs on.
    pub fn unmake(&self) {
        if self.service == Service::Pkcs11
            && let Err(e) = pkcs11::destroy(&self.rest)
        {
            log::warn!("a key was made for nothing and is still there: {self}: {e}");
        }
    }

    /// A new key beside this one, for a new version. A service that rotates its keys itself refuses.
    pub fn rotate(&self) -> Result<KeyRef, ProviderError> {
        match self.service {
            Service::Pkcs11 => Ok(KeyRef { service: self.service, rest: pkcs11::make_next(&self.rest)? }),
            Service::AwsKms => Err(ProviderError::Setup(
                "AWS KMS rotates the key itself: aws kms enable-key-rotation, or rotate-key-on-demand; \
                 ssefs notices nothing and needs nothing"
                    .into(),
            )),
        }
    }
}

impl fmt::Display for KeyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.service, self.rest)
    }
}

/// What somebody else says, made fit for a line of ours.
fn quoted(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
}

/// `timeout=` of a URI: 1 to 60 seconds.
fn timeout(text: &str) -> Result<Duration, ProviderError> {
    match text.parse::<u64>() {
        Ok(s) if (1..=60).contains(&s) => Ok(Duration::from_secs(s)),
        _ => Err(ProviderError::Setup("timeout is 1 to 60 seconds".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_associated_data_tells_bucket_kek_and_key_apart_from_each_other() {
        let (bucket, key) = (BucketId([0xab; 16]), KeyId("mk-1".into()));
        let one = Context { bucket: &bucket, kek: KekId(1), key: &key }.associated_data();
        assert_eq!(&one[..16], b"\x0c\0\0\0ssefs:bucket");
        let longer = KeyId("mk-11".into());
        for other in [
            Context { bucket: &bucket, kek: KekId(11), key: &key },
            Context { bucket: &bucket, kek: KekId(1), key: &longer },
        ] {
            assert_ne!(one, other.associated_data());
        }
    }

    #[test]
    fn a_uri_names_its_service() {
        let r = KeyRef::parse("aws-kms:alias/x?region=eu-west-1").unwrap();
        assert_eq!((r.service, r.rest.as_str()), (Service::AwsKms, "alias/x?region=eu-west-1"));
        assert_eq!(KeyRef::parse("pkcs11:token=t").unwrap().to_string(), "pkcs11:token=t");
        for bad in ["", "aws-kms", "vault:x", "PKCS11:token=t"] {
            assert!(KeyRef::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn words_of_others_are_cut_and_have_no_control_characters() {
        assert_eq!(quoted("a\n\x1b[31mb"), "a  [31mb");
        assert_eq!(quoted(&"x".repeat(5000)).len(), 300);
    }
}
