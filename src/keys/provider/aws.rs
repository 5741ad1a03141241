//! AWS KMS, or what speaks its API: GenerateDataKey, Decrypt with encryption context, DescribeKey. Each call is bounded
//! in time over all its tries; only what may pass by itself is tried again.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64ct::{Base64, Encoding};
use parking_lot::Mutex;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::aws_credentials::{self, Credentials};
use super::aws_uri::{AwsUri, Endpoint};
use super::http::{Answer, Call, Http};
use super::{BLOB_BYTES_MAX, Context, Description, OneTime, Provider, ProviderError, quoted, sigv4};

const CONTENT_TYPE: &str = "application/x-amz-json-1.1";
/// Tries of one call.
const TRIES_MAX: u32 = 3;
/// Rest before the second try, doubled before the third.
const FIRST_REST: Duration = Duration::from_millis(200);

/// A key of AWS KMS.
pub struct AwsKey {
    uri: AwsUri,
    endpoint: Endpoint,
    http: Http,
    /// Credentials that were lent for a time.
    lent: Mutex<Option<Credentials>>,
}

impl AwsKey {
    pub fn open(rest: &str) -> Result<AwsKey, ProviderError> {
        let uri = AwsUri::parse(rest)?;
        let endpoint = uri.endpoint();
        let http = Http::new(endpoint.is_tls());
        Ok(AwsKey { uri, endpoint, http, lent: Mutex::new(None) })
    }

    fn credentials(&self, anew: bool) -> Result<Credentials, ProviderError> {
        let now = unix();
        if !anew && let Some(c) = self.lent.lock().as_ref().filter(|c| c.lasts(now)) {
            return Ok(c.clone());
        }
        let found = aws_credentials::find(&self.http, self.uri.profile.as_deref())?;
        *self.lent.lock() = found.expires.is_some().then(|| found.clone());
        Ok(found)
    }

    /// One operation, tried again while that may help and there is time.
    fn operation(&self, name: &str, mut request: Value) -> Result<Value, ProviderError> {
        request["KeyId"] = json!(self.uri.key);
        let body = request.to_string();
        let end = Instant::now() + self.uri.timeout;
        let (mut rest, mut anew) = (FIRST_REST, false);
        for left in (0..TRIES_MAX).rev() {
            let time = end.saturating_duration_since(Instant::now());
            let failed = match self.once(name, body.as_bytes(), time, anew) {
                Ok(answer) => return Ok(answer),
                Err(f) => f,
            };
            anew = failed.credentials;
            if left == 0 || !failed.passing || Instant::now() + rest >= end {
                return Err(failed.error);
            }
            std::thread::sleep(rest);
            rest *= 2;
        }
        Err(ProviderError::Unreachable(format!("{} was not asked", self.endpoint.url)))
    }

    fn once(&self, name: &str, body: &[u8], timeout: Duration, anew: bool) -> Result<Value, Failed> {
        let credentials = self.credentials(anew)?;
        let target = format!("TrentService.{name}");
        let signed = [("content-type", CONTENT_TYPE), ("x-amz-target", &target)];
        let request = sigv4::Request {
            host: &self.endpoint.host,
            region: &self.uri.region,
            service: "kms",
            headers: &signed,
            body,
            unix: unix(),
        };
        let signature = sigv4::sign(&request, &credentials);
        let mut headers = signed.to_vec();
        headers.extend(signature.iter().map(|(n, v)| (*n, v.as_str())));
        let url = format!("{}/", self.endpoint.url);
        let answer = self.http.call(&Call { put: false, url: &url, headers: &headers, body: Some(body), timeout })?;
        if answer.status == 200 {
            let json = serde_json::from_slice::<Value>(&answer.body).ok().filter(Value::is_object);
            return json.ok_or_else(|| self.garbled("no JSON").into());
        }
        Err(self.refusal(&answer))
    }

    fn garbled(&self, why: &str) -> ProviderError {
        ProviderError::Unreachable(format!("{} gave an answer that makes no sense ({why})", self.endpoint.url))
    }

    /// What an answer with another status than 200 means.
    fn refusal(&self, answer: &Answer) -> Failed {
        let json: Value = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
        let text = |names: &[&str]| names.iter().find_map(|n| json.get(n)?.as_str()).map(quoted).unwrap_or_default();
        let kind = text(&["__type", "code"]);
        let kind = kind.rsplit(['#', '.']).next().unwrap_or_default().split(':').next().unwrap_or_default();
        let message = text(&["message", "Message"]);
        let told = format!("{}: {kind} {message}", self.endpoint.url);
        let told = told.trim().to_owned();
        let error = match kind {
            "DisabledException" => ProviderError::Disabled(told),
            "KMSInvalidStateException" if message.to_ascii_lowercase().contains("delet") => {
                ProviderError::PendingDeletion(told)
            }
            // Pending import: the key material has expired or was deleted.
            "KMSInvalidStateException" => ProviderError::Disabled(told),
            "NotFoundException" => ProviderError::Gone(told),
            "InvalidCiphertextException" => ProviderError::Altered(told),
            "IncorrectKeyException" => ProviderError::WrongKey(told),
            "ThrottlingException"
            | "LimitExceededException"
            | "KMSInternalException"
            | "DependencyTimeoutException"
            | "KeyUnavailableException"
            | "InternalFailure"
            | "ServiceUnavailable" => {
                return Failed { error: ProviderError::Unreachable(told), passing: true, credentials: false };
            }
            "ExpiredTokenException" | "UnrecognizedClientException" | "InvalidClientTokenId" => {
                return Failed { error: ProviderError::Refused(told), passing: true, credentials: true };
            }
            _ if answer.status >= 500 || answer.status == 429 => {
                let error = ProviderError::Unreachable(format!("{told} (status {})", answer.status));
                return Failed { error, passing: true, credentials: false };
            }
            "" => ProviderError::Unreachable(format!("{told} status {}", answer.status)),
            _ => ProviderError::Refused(told),
        };
        error.into()
    }

    fn context(context: &Context<'_>) -> Value {
        context.pairs().into_iter().map(|(n, v)| (n.to_owned(), Value::String(v))).collect()
    }

    /// The secret of an answer, which must be of this very key.
    fn secret(&self, answer: &mut Value) -> Result<OneTime, ProviderError> {
        let key = answer.get("KeyId").and_then(Value::as_str).unwrap_or_default();
        if self.uri.key.contains(":key/") && key != self.uri.key {
            return Err(ProviderError::WrongKey(format!("{} answered for {}", self.endpoint.url, quoted(key))));
        }
        let text = match answer.get_mut("Plaintext").map(Value::take) {
            Some(Value::String(text)) => Zeroizing::new(text),
            _ => return Err(self.garbled("no Plaintext")),
        };
        let bytes = Zeroizing::new(Base64::decode_vec(&text).map_err(|_| self.garbled("Plaintext is no base64"))?);
        let mut secret = Zeroizing::new([0u8; 32]);
        if bytes.len() != 32 {
            return Err(self.garbled("Plaintext is not 32 bytes"));
        }
        secret.copy_from_slice(&bytes);
        if *secret == [0; 32] {
            return Err(self.garbled("Plaintext is all zero"));
        }
        Ok(OneTime::take(&mut secret))
    }
}

/// Why one try failed, and whether another may do better.
struct Failed {
    error: ProviderError,
    passing: bool,
    /// Credentials are to be fetched anew.
    credentials: bool,
}

impl From<ProviderError> for Failed {
    fn from(error: ProviderError) -> Failed {
        let passing = matches!(error, ProviderError::Unreachable(_));
        Failed { error, passing, credentials: false }
    }
}

impl Provider for AwsKey {
    fn generate(&self, context: &Context<'_>) -> Result<(OneTime, Vec<u8>), ProviderError> {
        let request = json!({ "KeySpec": "AES_256", "EncryptionContext": AwsKey::context(context) });
        let mut answer = self.operation("GenerateDataKey", request)?;
        let secret = self.secret(&mut answer)?;
        let blob = answer.get("CiphertextBlob").and_then(Value::as_str).and_then(|t| Base64::decode_vec(t).ok());
        match blob {
            Some(blob) if (1..=BLOB_BYTES_MAX).contains(&blob.len()) => Ok((secret, blob)),
            _ => Err(self.garbled("CiphertextBlob")),
        }
    }

    fn unwrap(&self, context: &Context<'_>, blob: &[u8]) -> Result<OneTime, ProviderError> {
        let request = json!({
            "CiphertextBlob": Base64::encode_string(blob),
            "EncryptionContext": AwsKey::context(context),
        });
        self.secret(&mut self.operation("Decrypt", request)?)
    }

    fn describe(&self) -> Result<Description, ProviderError> {
        let answer = self.operation("DescribeKey", json!({}))?;
        let data = answer.get("KeyMetadata").ok_or_else(|| self.garbled("no KeyMetadata"))?;
        let text = |name: &str| data.get(name).and_then(Value::as_str).map(quoted).unwrap_or_default();
        let told = format!("{}: {}", self.endpoint.url, text("KeyState"));
        match text("KeyState").as_str() {
            "Enabled" => {}
            "PendingDeletion" | "PendingReplicaDeletion" => return Err(ProviderError::PendingDeletion(told)),
            "Disabled" | "PendingImport" => return Err(ProviderError::Disabled(told)),
            _ => return Err(ProviderError::Unreachable(told)),
        }
        // What a service leaves out is as AWS has it by default.
        let is = |names: &[&str], good: &str| names.iter().map(|n| text(n)).all(|t| t.is_empty() || t == good);
        if !is(&["KeyUsage"], "ENCRYPT_DECRYPT") || !is(&["KeySpec", "CustomerMasterKeySpec"], "SYMMETRIC_DEFAULT") {
            return Err(ProviderError::Setup("only symmetric keys for encryption can wrap keys".into()));
        }
        let arn = text("Arn");
        if !arn.starts_with("arn:") || !arn.contains(":key/") {
            return Err(self.garbled("no ARN"));
        }
        let detail = format!("{}, {}", self.endpoint.host, [text("Origin"), text("KeyManager")].join(" "));
        Ok(Description { key: arn, detail })
    }
}

/// The key by its ARN: an alias may point elsewhere one day, what it has wrapped does not move.
pub fn settle(rest: &str) -> Result<(String, Description), ProviderError> {
    let key = AwsKey::open(rest)?;
    let description = key.describe()?;
    let settled = AwsUri { key: description.key.clone(), ..key.uri.clone() };
    // A service of one's own may name another region in its ARNs than its requests are signed for.
    let of_arn = description.key.split(':').nth(3).unwrap_or_default();
    if of_arn != settled.region {
        return Err(ProviderError::Setup(format!("the key {} is not in region {}", description.key, settled.region)));
    }
    Ok((settled.to_string(), description))
}

fn unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
