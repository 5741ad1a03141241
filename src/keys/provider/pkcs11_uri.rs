//! PKCS#11 URIs (RFC 7512): which token, which key on it, which module reaches it and where the PIN comes from.
//! `pin-value` is refused: a command line is seen by others.

use std::path::PathBuf;
use std::time::Duration;

use super::pin::PinSource;
use super::{ProviderError, TIMEOUT_DEFAULT, percent, timeout};

/// Where distributions put modules, for `module-name` and for a module without a path.
const MODULE_DIRS: [&str; 7] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
    "/usr/lib/softhsm",
    "/usr/lib64/pkcs11",
];
/// The module that reaches all modules that the machine has configured.
const DEFAULT_MODULE: &str = "p11-kit-proxy";

/// A parsed reference; `Display` gives its canonical form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pkcs11Uri {
    pub token: TokenIs,
    /// CKA_LABEL.
    pub object: Option<String>,
    /// CKA_ID.
    pub id: Option<Vec<u8>>,
    pub module: PathBuf,
    pub pin: Option<PinSource>,
    pub timeout: Duration,
}

/// What a token must be; at least one is given.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct TokenIs {
    pub token: Option<String>,
    pub serial: Option<String>,
    pub manufacturer: Option<String>,
    pub model: Option<String>,
    pub slot: Option<u64>,
}

impl TokenIs {
    fn parts(&self) -> impl Iterator<Item = (&'static str, String)> {
        let text = |name, value: &Option<String>| value.as_ref().map(|v| (name, percent::encode(v.as_bytes())));
        [
            text("token", &self.token),
            text("serial", &self.serial),
            text("manufacturer", &self.manufacturer),
            text("model", &self.model),
            self.slot.map(|s| ("slot-id", s.to_string())),
        ]
        .into_iter()
        .flatten()
    }
}

impl std::fmt::Display for TokenIs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts: Vec<String> = self.parts().map(|(n, v)| format!("{n}={v}")).collect();
        f.write_str(&parts.join(";"))
    }
}

fn setup(why: &str) -> ProviderError {
    ProviderError::Setup(format!("pkcs11: {why}"))
}

impl Pkcs11Uri {
    /// Parses what follows `pkcs11:`.
    pub fn parse(rest: &str) -> Result<Pkcs11Uri, ProviderError> {
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut uri = Pkcs11Uri {
            token: TokenIs::default(),
            object: None,
            id: None,
            module: PathBuf::new(),
            pin: None,
            timeout: TIMEOUT_DEFAULT,
        };
        for part in path.split(';').filter(|p| !p.is_empty()) {
            let (name, value) = part.split_once('=').ok_or_else(|| setup("an attribute has no value"))?;
            let text = || percent::decode_text(value);
            match name {
                "token" => uri.token.token = Some(text()?),
                "serial" => uri.token.serial = Some(text()?),
                "manufacturer" => uri.token.manufacturer = Some(text()?),
                "model" => uri.token.model = Some(text()?),
                "slot-id" => {
                    uri.token.slot = Some(text()?.parse().map_err(|_| setup("slot-id is a number"))?);
                }
                "object" => uri.object = Some(text()?).filter(|t| !t.is_empty()),
                "id" => uri.id = Some(percent::decode(value)?).filter(|id| !id.is_empty()),
                "type" if value == "secret-key" => {}
                "type" => return Err(setup("only keys of type=secret-key can wrap keys")),
                _ => {
                    return Err(setup(&format!(
                        "{name:?} is not known; known: token, serial, manufacturer, model, slot-id, object, id, type"
                    )));
                }
            }
        }
        let mut module = None;
        for part in query.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = part.split_once('=').ok_or_else(|| setup("an attribute has no value"))?;
            let value = percent::decode_text(value)?;
            match name {
                "module-path" => module = Some(path_of(&value)?),
                "module-name" => module = Some(named(&value)?),
                "pin-source" => uri.pin = Some(PinSource::parse(&value)?),
                "pin-value" => {
                    return Err(setup(
                        "pin-value would be seen by others: use pin-source=file:/PATH, fd:N or env:NAME",
                    ));
                }
                "timeout" => uri.timeout = timeout(&value)?,
                _ => {
                    return Err(setup(&format!(
                        "{name:?} is not known; known: module-path, module-name, pin-source, timeout"
                    )));
                }
            }
        }
        if uri.token == TokenIs::default() {
            return Err(setup("which token? Name it with token=LABEL, serial=, manufacturer=, model= or slot-id="));
        }
        uri.module = match module {
            Some(module) => module,
            None => named(DEFAULT_MODULE).map_err(|_| setup("name the token's module with ?module-path=/PATH.so"))?,
        };
        Ok(uri)
    }
}

/// An absolute path, so that nothing depends on where a process stands or on LD_LIBRARY_PATH.
fn path_of(text: &str) -> Result<PathBuf, ProviderError> {
    let path = PathBuf::from(text);
    if path.is_dir() {
        return Err(setup("module-path is a directory: name the .so in it"));
    }
    Some(path).filter(|p| p.is_absolute()).ok_or_else(|| setup("module-path must be absolute"))
}

fn named(name: &str) -> Result<PathBuf, ProviderError> {
    if name.is_empty() || name.contains('/') {
        return Err(setup("module-name is a name without path and suffix"));
    }
    let tries = MODULE_DIRS.iter().flat_map(|dir| {
        [
            format!("{dir}/{name}.so"),
            format!("{dir}/lib{name}.so"),
            format!("{dir}/pkcs11/{name}.so"),
            format!("{dir}/softhsm/lib{name}.so"),
        ]
    });
    let mut found = tries.map(PathBuf::from).filter(|p| p.exists());
    found.next().ok_or_else(|| setup(&format!("there is no module {name}: name it with module-path=/PATH.so")))
}

impl std::fmt::Display for Pkcs11Uri {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.token)?;
        if let Some(object) = &self.object {
            write!(f, ";object={}", percent::encode(object.as_bytes()))?;
        }
        if let Some(id) = &self.id {
            write!(f, ";id={}", percent::encode_all(id))?;
        }
        write!(f, "?module-path={}", percent::encode(self.module.as_os_str().as_encoded_bytes()))?;
        if let Some(pin) = &self.pin {
            write!(f, "&pin-source={}", percent::encode(pin.to_string().as_bytes()))?;
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
    fn uris_are_those_of_rfc_7512() {
        let text = "token=The%20Software%20PKCS%2311%20Softtoken;manufacturer=Snake%20Oil,%20Inc.;model=1.0;\
                    object=my-key;type=secret-key;id=%69%95%3E%5C?module-path=/lib/x.so&pin-source=file:/etc/token_pin";
        let uri = Pkcs11Uri::parse(text).unwrap();
        assert_eq!(uri.token.token.as_deref(), Some("The Software PKCS#11 Softtoken"));
        assert_eq!(uri.token.manufacturer.as_deref(), Some("Snake Oil, Inc."));
        assert_eq!(uri.id.as_deref(), Some(&b"\x69\x95\x3e\x5c"[..]));
        assert_eq!(uri.pin, Some(PinSource::File("/etc/token_pin".into())));
        assert_eq!(uri.module, PathBuf::from("/lib/x.so"));
        assert_eq!(Pkcs11Uri::parse(&uri.to_string()).unwrap(), uri);
        let odd = Pkcs11Uri::parse("token=a%3bb%3f;slot-id=7?module-path=/m%20x&pin-source=env:P&timeout=2").unwrap();
        assert_eq!(odd.token.token.as_deref(), Some("a;b?"));
        assert_eq!(Pkcs11Uri::parse(&odd.to_string()).unwrap(), odd);
    }

    #[test]
    fn what_is_not_understood_is_refused_and_no_pin_is_taken_from_the_command_line() {
        for (bad, why) in [
            ("?module-path=/x", "which token"),
            ("object=x?module-path=/x", "which token"),
            ("token=t;type=private?module-path=/x", "secret-key"),
            ("token=t;color=red?module-path=/x", "color"),
            ("token=t?module-path=x", "absolute"),
            ("token=t?module-path=/usr/lib", "directory"),
            ("token=t?module-name=no-such-module", "no-such-module"),
            ("token=t?module-path=/x&pin-value=1234", "seen by others"),
            ("token=t?module-path=/x&pin-source=1234", "pin-source"),
            ("token=t?module-path=/x&timeout=99", "timeout"),
            ("token", "no value"),
            ("token=%zz?module-path=/x", "hexadecimal"),
        ] {
            let e = Pkcs11Uri::parse(bad).unwrap_err().to_string();
            assert!(e.contains(why) && !e.contains("1234"), "{bad}: {e}");
        }
    }
}
