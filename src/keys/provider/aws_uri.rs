//! `aws-kms:KEY[?region=R&endpoint=URL&profile=P&timeout=S]`: KEY is a key id, an alias (`alias/NAME`) or an ARN of
//! either, as the AWS tools take them. `aws-kms://KEY` and `aws-kms:///KEY` are the same.

use std::time::Duration;

use super::aws_credentials::Files;
use super::{ProviderError, TIMEOUT_DEFAULT, percent, timeout};

/// A parsed reference; `Display` gives its canonical form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwsUri {
    pub key: String,
    pub region: String,
    /// None: the one that AWS has in the region.
    pub endpoint: Option<Endpoint>,
    pub profile: Option<String>,
    pub timeout: Duration,
}

/// `https://host[:port]`, or the same with http on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub url: String,
    /// Host and port, as the header `host` has them.
    pub host: String,
}

impl Endpoint {
    fn parse(url: &str) -> Result<Endpoint, ProviderError> {
        let bad = |why: &str| ProviderError::Setup(format!("the endpoint {url:?} of the key service {why}"));
        let url = url.strip_suffix('/').unwrap_or(url);
        let (scheme, host) = url.split_once("://").ok_or_else(|| bad("is no URL"))?;
        // As the header `host` has it, which is signed: without the port that goes without saying.
        let usual = if scheme == "https" { ":443" } else { ":80" };
        let host = host.strip_suffix(usual).unwrap_or(host);
        let legal = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
        if host.is_empty() || host.len() > 255 || !host.bytes().all(legal) {
            return Err(bad("must be a host, and a port if need be, without a path"));
        }
        match scheme {
            "https" => {}
            "http" if is_local(host) => {}
            "http" => return Err(bad("is not on this machine: it must be https")),
            _ => return Err(bad("must be https")),
        }
        Ok(Endpoint { url: format!("{scheme}://{host}"), host: host.to_owned() })
    }

    pub fn is_tls(&self) -> bool {
        self.url.starts_with("https:")
    }
}

/// Whether host[:port] is this machine.
pub fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl AwsUri {
    /// Parses a reference; what it leaves out comes from the environment and the AWS configuration files.
    pub fn parse(rest: &str) -> Result<AwsUri, ProviderError> {
        let setup = |why: &str| ProviderError::Setup(format!("aws-kms: {why}"));
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let key = percent::decode_text(path.trim_start_matches('/'))?;
        let legal = |b: u8| b.is_ascii_alphanumeric() || b":/_-".contains(&b);
        if key.is_empty() || key.len() > 2048 || !key.bytes().all(legal) {
            return Err(setup("name the key by its id, alias/NAME, or ARN"));
        }
        let mut uri = AwsUri { key, region: String::new(), endpoint: None, profile: None, timeout: TIMEOUT_DEFAULT };
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent::decode_text(value)?;
            match name {
                "region" => uri.region = value,
                "endpoint" => uri.endpoint = Some(Endpoint::parse(&value)?),
                "profile" if !value.is_empty() => uri.profile = Some(value),
                "timeout" => uri.timeout = timeout(&value)?,
                _ => return Err(setup(&format!("{name:?} is not known; known: region, endpoint, profile, timeout"))),
            }
        }
        if let Some(of_arn) = uri.key.strip_prefix("arn:") {
            let parts: Vec<&str> = of_arn.splitn(5, ':').collect();
            let [_, "kms", region, _, _] = parts[..] else { return Err(setup("this is not the ARN of a key")) };
            if !uri.region.is_empty() && uri.region != region {
                return Err(setup("region= is not that of the ARN"));
            }
            uri.region = region.to_owned();
        }
        if uri.region.is_empty() {
            uri.region = Files::from_environment().region(uri.profile.as_deref()).unwrap_or_default();
        }
        let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        if uri.region.is_empty() || uri.region.len() > 64 || !uri.region.bytes().all(legal) {
            return Err(setup("which region? Name the key by its ARN, or add ?region=REGION"));
        }
        Ok(uri)
    }

    /// Where requests go.
    pub fn endpoint(&self) -> Endpoint {
        self.endpoint.clone().unwrap_or_else(|| {
            let domain = if self.region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
            let host = format!("kms.{}.{domain}", self.region);
            Endpoint { url: format!("https://{host}"), host }
        })
    }
}

impl std::fmt::Display for AwsUri {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}?region={}", percent::encode(self.key.as_bytes()), self.region)?;
        if let Some(e) = &self.endpoint {
            write!(f, "&endpoint={}", percent::encode(e.url.as_bytes()))?;
        }
        if let Some(p) = &self.profile {
            write!(f, "&profile={}", percent::encode(p.as_bytes()))?;
        }
        if self.timeout != TIMEOUT_DEFAULT {
            write!(f, "&timeout={}", self.timeout.as_secs())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_named_as_the_aws_tools_name_them() {
        let arn = "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab";
        for form in [arn.to_owned(), format!("//{arn}"), format!("///{arn}?region=eu-west-1")] {
            let uri = AwsUri::parse(&form).unwrap();
            assert_eq!((uri.key.as_str(), uri.region.as_str()), (arn, "eu-west-1"), "{form}");
            assert_eq!(uri.endpoint().url, "https://kms.eu-west-1.amazonaws.com");
        }
        let uri =
            AwsUri::parse("alias/a?region=cn-north-1&profile=p%20q&timeout=3&endpoint=http://127.0.0.1:5000/").unwrap();
        assert_eq!(uri.endpoint().host, "127.0.0.1:5000");
        assert_eq!(uri.to_string(), "alias/a?region=cn-north-1&endpoint=http://127.0.0.1:5000&profile=p%20q&timeout=3");
        assert_eq!(AwsUri::parse(&uri.to_string()).unwrap(), uri);
        assert!(AwsUri::parse("alias/a?region=cn-north-1").unwrap().endpoint().url.ends_with(".com.cn"));
    }

    #[test]
    fn a_secret_never_goes_over_a_network_without_tls() {
        for good in ["http://localhost:1", "http://[::1]:8", "http://127.9.9.9", "https://kms.example:8443"] {
            assert!(Endpoint::parse(good).is_ok(), "{good}");
        }
        assert_eq!(Endpoint::parse("https://kms.example:443/").unwrap().url, "https://kms.example");
        for bad in [
            "http://example.com",
            "http://127.0.0.1.example.com",
            "http://localhost.example.com",
            "http://[::2]",
            "ftp://localhost",
            "https://h/path",
            "https://user@h",
            "https://",
            "localhost",
        ] {
            assert!(Endpoint::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for bad in [
            "",
            "?region=x",
            "alias/a?region=a&color=red",
            "alias/a b?region=a",
            "alias/a?region=a/b",
            "alias/a?region=a&timeout=0",
            "arn:aws:s3:eu-west-1:1:key/x",
            "arn:aws:kms:eu-west-1:1:key/x?region=us-east-1",
        ] {
            assert!(AwsUri::parse(bad).is_err(), "{bad}");
        }
    }
}
