//! One HTTP request with limits on everything: time to connect and in all, length of headers and answer; no redirect
//! is followed, since it would carry a signature elsewhere. TLS is verified by rustls against the machine's own
//! certificates, or those of the file that AWS_CA_BUNDLE names.

use std::env;
use std::time::Duration;

use ureq::Agent;
use ureq::tls::{Certificate, PemItem, TlsConfig, parse_pem};
use zeroize::Zeroizing;

use super::{ProviderError, quoted};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest answer, in bytes.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// What is asked. `body` makes it a POST.
pub struct Call<'a> {
    pub put: bool,
    pub url: &'a str,
    pub headers: &'a [(&'a str, &'a str)],
    pub body: Option<&'a [u8]>,
    /// For all of it.
    pub timeout: Duration,
}

/// An answer of any status. Its body may hold a secret.
pub struct Answer {
    pub status: u16,
    pub body: Zeroizing<Vec<u8>>,
}

/// Connections that are kept open between calls.
pub struct Http {
    plain: Agent,
    tls: Result<Agent, ProviderError>,
}

impl Http {
    /// `tls`: whether TLS will be needed, so that certificates are to be read.
    pub fn new(tls: bool) -> Http {
        let unread = Err(ProviderError::Setup("no TLS was asked for".into()));
        Http { plain: agent(None, false), tls: if tls { tls_agent() } else { unread } }
    }

    /// Makes one request. An answer that is cut off, or too long, or no HTTP is `Unreachable`.
    pub fn call(&self, call: &Call<'_>) -> Result<Answer, ProviderError> {
        let failed = |e: ureq::Error| ProviderError::Unreachable(quoted(&format!("{}: {e}", origin(call.url))));
        let agent = if call.url.starts_with("https:") { self.tls.as_ref().map_err(Clone::clone)? } else { &self.plain };
        let mut answer = match call.body {
            Some(body) => {
                let mut request = agent.post(call.url);
                for (name, value) in call.headers {
                    request = request.header(*name, *value);
                }
                limited(request, call.timeout).send(body)
            }
            None if call.put => {
                let mut request = agent.put(call.url);
                for (name, value) in call.headers {
                    request = request.header(*name, *value);
                }
                limited(request, call.timeout).send_empty()
            }
            None => {
                let mut request = agent.get(call.url);
                for (name, value) in call.headers {
                    request = request.header(*name, *value);
                }
                limited(request, call.timeout).call()
            }
        }
        .map_err(failed)?;
        let body = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec().map_err(failed)?;
        Ok(Answer { status: answer.status().as_u16(), body: Zeroizing::new(body) })
    }
}

fn limited<B>(request: ureq::RequestBuilder<B>, timeout: Duration) -> ureq::RequestBuilder<B> {
    request
        .config()
        .timeout_global(Some(timeout))
        .timeout_connect(Some(CONNECT_TIMEOUT.min(timeout)))
        .timeout_resolve(Some(CONNECT_TIMEOUT.min(timeout)))
        .build()
}

/// Scheme and host: what messages show.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |i| i + 3);
    let end = url[host..].find('/').map_or(url.len(), |i| host + i);
    &url[..end]
}

fn agent(tls: Option<TlsConfig>, proxies: bool) -> Agent {
    let mut config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .max_response_header_size(16 << 10)
        .max_idle_connections(2)
        .user_agent(concat!("ssefs/", env!("CARGO_PKG_VERSION")));
    if !proxies {
        // Metadata services and services of this machine are not asked through HTTPS_PROXY.
        config = config.proxy(None);
    }
    if let Some(tls) = tls {
        config = config.tls_config(tls).https_only(true);
    }
    config.build().new_agent()
}

#[cfg(feature = "aws-lc")]
fn tls_agent() -> Result<Agent, ProviderError> {
    use std::sync::Arc;
    use ureq::tls::RootCerts;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let roots = RootCerts::Specific(Arc::new(roots()?));
    let tls = TlsConfig::builder().root_certs(roots).unversioned_rustls_crypto_provider(provider).build();
    Ok(agent(Some(tls), true))
}

#[cfg(not(feature = "aws-lc"))]
fn tls_agent() -> Result<Agent, ProviderError> {
    let _ = roots;
    Err(ProviderError::Setup(
        "this ssefs was built without TLS (feature aws-lc): it reaches services of this machine only".into(),
    ))
}

fn roots() -> Result<Vec<Certificate<'static>>, ProviderError> {
    let certificates: Vec<Certificate<'static>> = match env::var_os("AWS_CA_BUNDLE").filter(|f| !f.is_empty()) {
        Some(file) => {
            let bad = |e: &dyn std::fmt::Display| {
                ProviderError::Setup(format!("AWS_CA_BUNDLE {}: {e}", file.to_string_lossy()))
            };
            let pem = std::fs::read(&file).map_err(|e| bad(&e))?;
            let items: Result<Vec<_>, _> = parse_pem(&pem).collect();
            let certificates = items.map_err(|e| bad(&e))?.into_iter().filter_map(|item| match item {
                PemItem::Certificate(c) => Some(c),
                _ => None,
            });
            certificates.collect()
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            found.certs.iter().map(|c| Certificate::from_der(c).to_owned()).collect()
        }
    };
    if certificates.is_empty() {
        return Err(ProviderError::Setup(
            "no certificates of authorities to verify TLS with: install ca-certificates, or name a file with AWS_CA_BUNDLE".into(),
        ));
    }
    Ok(certificates)
}
