//! Where credentials for AWS come from, in the order of the AWS tools: environment, the files of ~/.aws, the container's
//! endpoint, the instance's metadata. Kept in memory until shortly before they expire, wiped, never printed.

use std::collections::BTreeMap;
use std::env;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use zeroize::Zeroizing;

use super::aws_uri::is_local;
use super::http::{Call, Http};
use super::{ProviderError, date};

/// How long the metadata services of container and instance may take: they are on this host, or not at all.
const METADATA_TIMEOUT: Duration = Duration::from_secs(2);
/// Credentials that end within this many seconds are fetched anew.
const RENEW_BEFORE_S: u64 = 300;

/// A key pair, and the token of one that is lent for a time.
#[derive(Clone)]
pub struct Credentials {
    pub access: String,
    pub secret: Zeroizing<String>,
    pub token: Option<Zeroizing<String>>,
    /// Unix seconds.
    pub expires: Option<u64>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

impl Credentials {
    /// Whether they are still good for a while. Those from files and environment are read anew each time.
    pub fn lasts(&self, unix: u64) -> bool {
        self.expires.is_some_and(|e| unix + RENEW_BEFORE_S < e)
    }

    fn of(access: &str, secret: &str, token: Option<&str>) -> Option<Credentials> {
        let set = |t: &&str| !t.is_empty();
        Some(Credentials {
            access: Some(access).filter(set)?.to_owned(),
            secret: Zeroizing::new(Some(secret).filter(set)?.to_owned()),
            token: token.filter(set).map(|t| Zeroizing::new(t.to_owned())),
            expires: None,
        })
    }

    /// The JSON of both metadata services.
    fn of_json(body: &[u8]) -> Option<Credentials> {
        let json: Value = serde_json::from_slice(body).ok()?;
        let text = |name: &str| json.get(name).and_then(Value::as_str);
        let mut c = Credentials::of(text("AccessKeyId")?, text("SecretAccessKey")?, text("Token"))?;
        c.expires = text("Expiration").and_then(date::parse_rfc3339);
        Some(c)
    }

    #[cfg(test)]
    pub fn for_test(access: &str, secret: &str, token: Option<&str>) -> Credentials {
        Credentials::of(access, secret, token).expect("neither is empty")
    }
}

fn var(name: &str) -> Option<String> {
    env::var(name).ok().filter(|v| !v.is_empty())
}

/// Finds credentials. `profile` is that of the URI, which goes before the environment.
pub fn find(http: &Http, profile: Option<&str>) -> Result<Credentials, ProviderError> {
    if profile.is_none()
        && let (Some(access), Some(secret)) = (var("AWS_ACCESS_KEY_ID"), var("AWS_SECRET_ACCESS_KEY"))
    {
        let secret = Zeroizing::new(secret);
        if let Some(c) = Credentials::of(&access, &secret, var("AWS_SESSION_TOKEN").as_deref()) {
            return Ok(c);
        }
    }
    let files = Files::from_environment();
    if let Some(c) = files.credentials(profile) {
        return Ok(c);
    }
    if let Some(profile) = profile {
        return Err(ProviderError::Setup(format!("there are no credentials for the AWS profile {profile:?}")));
    }
    if let Some(c) = of_container(http)? {
        return Ok(c);
    }
    if var("AWS_EC2_METADATA_DISABLED").is_none_or(|v| !v.eq_ignore_ascii_case("true"))
        && let Some(c) = of_instance(http)
    {
        return Ok(c);
    }
    Err(ProviderError::Setup(
        "no credentials for AWS: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write ~/.aws/credentials".into(),
    ))
}

/// ECS and EKS: AWS_CONTAINER_CREDENTIALS_RELATIVE_URI or _FULL_URI, with the token that goes with it.
fn of_container(http: &Http) -> Result<Option<Credentials>, ProviderError> {
    let url = match (var("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"), var("AWS_CONTAINER_CREDENTIALS_FULL_URI")) {
        (Some(path), _) => format!("http://169.254.170.2{path}"),
        (None, Some(url)) => url,
        (None, None) => return Ok(None),
    };
    let host = url.split_once("://").map(|(_, h)| h.split('/').next().unwrap_or_default()).unwrap_or_default();
    let fixed = ["169.254.170.2", "169.254.170.23", "[fd00:ec2::23]"];
    if !url.starts_with("https://") && !(url.starts_with("http://") && (is_local(host) || fixed.contains(&host))) {
        return Err(ProviderError::Setup(
            "AWS_CONTAINER_CREDENTIALS_FULL_URI must be https, or on this machine".into(),
        ));
    }
    let token = match var("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE") {
        Some(file) => Some(Zeroizing::new(
            std::fs::read_to_string(&file)
                .map_err(|e| ProviderError::Setup(format!("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE {file}: {e}")))?,
        )),
        None => var("AWS_CONTAINER_AUTHORIZATION_TOKEN").map(Zeroizing::new),
    };
    let headers: Vec<_> = token.iter().map(|t| ("authorization", t.trim())).collect();
    let answer =
        http.call(&Call { put: false, url: &url, headers: &headers, body: None, timeout: METADATA_TIMEOUT })?;
    match Credentials::of_json(&answer.body) {
        Some(c) if answer.status == 200 => Ok(Some(c)),
        _ => Err(ProviderError::Refused(format!("the container's credentials: status {}", answer.status))),
    }
}

/// EC2: version 2 of the instance metadata service. Not being on such a machine is no error.
fn of_instance(http: &Http) -> Option<Credentials> {
    let base = match var("AWS_EC2_METADATA_SERVICE_ENDPOINT") {
        Some(url) => url.trim_end_matches('/').to_owned(),
        None => "http://169.254.169.254".to_owned(),
    };
    let url = |path: &str| format!("{base}/latest/{path}");
    let ask = |put: bool, path: &str, header: (&str, &str)| {
        let call = Call { put, url: &url(path), headers: &[header], body: None, timeout: METADATA_TIMEOUT };
        http.call(&call).ok().filter(|a| a.status == 200).map(|a| a.body)
    };
    let token = ask(true, "api/token", ("x-aws-ec2-metadata-token-ttl-seconds", "60"))?;
    let header = ("x-aws-ec2-metadata-token", std::str::from_utf8(&token).ok()?);
    let roles = "meta-data/iam/security-credentials/";
    let role = ask(false, roles, header)?;
    let role = std::str::from_utf8(&role).ok()?.lines().next()?.trim().to_owned();
    Credentials::of_json(&ask(false, &format!("{roles}{role}"), header)?)
}

/// The INI files of the AWS tools.
pub struct Files {
    /// Credentials and configuration, by section.
    credentials: Sections,
    config: Sections,
}
type Sections = BTreeMap<String, BTreeMap<String, Zeroizing<String>>>;

impl Files {
    pub fn from_environment() -> Files {
        let home = || var("HOME").map(|h| PathBuf::from(h).join(".aws"));
        let read = |name: &str, file: &str| {
            let path = var(name).map(PathBuf::from).or_else(|| Some(home()?.join(file)));
            let text = path.and_then(|p| std::fs::read_to_string(p).ok()).map(Zeroizing::new);
            text.map(|t| sections(&t)).unwrap_or_default()
        };
        Files {
            credentials: read("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
            config: read("AWS_CONFIG_FILE", "config"),
        }
    }

    fn profile(asked: Option<&str>) -> String {
        asked.map(str::to_owned).or_else(|| var("AWS_PROFILE")).unwrap_or_else(|| "default".into())
    }

    fn in_config(&self, profile: &str) -> Option<&BTreeMap<String, Zeroizing<String>>> {
        self.config.get(&format!("profile {profile}")).or_else(|| self.config.get(profile))
    }

    fn credentials(&self, profile: Option<&str>) -> Option<Credentials> {
        let profile = Files::profile(profile);
        [self.credentials.get(&profile), self.in_config(&profile)].into_iter().flatten().find_map(|s| {
            let text = |name: &str| s.get(name).map(|v| v.as_str());
            Credentials::of(text("aws_access_key_id")?, text("aws_secret_access_key")?, text("aws_session_token"))
        })
    }

    /// AWS_REGION, AWS_DEFAULT_REGION, or what the profile says.
    pub fn region(&self, profile: Option<&str>) -> Option<String> {
        let of_profile = || {
            let profile = Files::profile(profile);
            let of = |s: &BTreeMap<String, Zeroizing<String>>| s.get("region").map(|r| r.to_string());
            self.in_config(&profile).and_then(of).or_else(|| self.credentials.get(&profile).and_then(of))
        };
        match profile {
            Some(_) => of_profile(),
            None => var("AWS_REGION").or_else(|| var("AWS_DEFAULT_REGION")).or_else(of_profile),
        }
    }
}

fn sections(text: &str) -> Sections {
    let mut out = Sections::new();
    let mut at = None;
    for line in text.lines() {
        // An indented line belongs to a nested setting, none of which is ours.
        if line.starts_with([' ', '\t', '#', ';']) {
            continue;
        }
        let line = line.trim_end();
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.split(']').next()) {
            let name = name.split_whitespace().collect::<Vec<_>>().join(" ");
            out.entry(name.clone()).or_default();
            at = Some(name);
        } else if let Some((name, value)) = line.split_once('=')
            && let Some(section) = at.as_ref().and_then(|at| out.get_mut(at))
        {
            section.insert(name.trim().to_ascii_lowercase(), Zeroizing::new(value.trim().to_owned()));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_the_aws_tools_are_understood() {
        let files = Files {
            credentials: sections(
                "[default]\naws_access_key_id = A\naws_secret_access_key=b=c\n\n[other]\naws_access_key_id=X\n",
            ),
            config: sections(
                "# c\n[default]\nregion = eu-central-1\n[profile  other]\nregion=r2\ns3 =\n  region = no\n\
                 aws_access_key_id = O\naws_secret_access_key = P\naws_session_token = T\n",
            ),
        };
        let c = files.credentials(Some("default")).unwrap();
        assert_eq!((c.access.as_str(), c.secret.as_str(), c.token.is_none()), ("A", "b=c", true));
        // Half a pair in one file does not hide a whole one in the other.
        let c = files.credentials(Some("other")).unwrap();
        assert_eq!((c.access.as_str(), c.secret.as_str(), c.token.unwrap().as_str()), ("O", "P", "T"));
        assert_eq!(files.region(Some("other")).as_deref(), Some("r2"));
        assert_eq!(files.region(Some("default")).as_deref(), Some("eu-central-1"));
        assert!(files.credentials(Some("none")).is_none());
        assert!(sections("=\n[\n]x=1\n[a\nb=2").contains_key("a"));
    }

    #[test]
    fn lent_credentials_are_renewed_before_they_end_and_are_not_printed() {
        let body = br#"{"AccessKeyId":"A","SecretAccessKey":"hush","Token":"t","Expiration":"2026-01-01T00:00:00Z"}"#;
        let c = Credentials::of_json(body).unwrap();
        let end = date::parse_rfc3339("2026-01-01T00:00:00Z").unwrap();
        assert!(c.lasts(end - 301) && !c.lasts(end - 300));
        assert_eq!(format!("{c:?}"), "Credentials(..)");
        assert!(Credentials::of_json(b"{\"Code\":\"AssumeRoleUnauthorizedAccess\"}").is_none());
    }
}
