//! A path inside a bucket on its way through JSON. Names are any bytes but `/` and NUL, JSON strings are Unicode:
//! a path that is no UTF-8 travels as its bytes.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A path relative to a bucket's root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WirePath(PathBuf);

impl WirePath {
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl From<PathBuf> for WirePath {
    fn from(path: PathBuf) -> WirePath {
        WirePath(path)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Form {
    Text(String),
    Bytes(Vec<u8>),
}

impl Serialize for WirePath {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self.0.to_str() {
            Some(text) => Form::Text(text.to_owned()).serialize(s),
            None => Form::Bytes(self.0.clone().into_os_string().into_vec()).serialize(s),
        }
    }
}

impl<'de> Deserialize<'de> for WirePath {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<WirePath, D::Error> {
        Ok(WirePath(match Form::deserialize(d)? {
            Form::Text(text) => text.into(),
            Form::Bytes(bytes) => OsString::from_vec(bytes).into(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_any_bytes_go_through_json_and_back() {
        for name in [&b"photos/2024"[..], b"", b"\xff\xfe/x", "ü/\u{1f600}\n".as_bytes()] {
            let path = WirePath(OsString::from_vec(name.to_vec()).into());
            let text = serde_json::to_string(&path).unwrap();
            assert!(!text.contains('\n'), "one line");
            assert_eq!(serde_json::from_str::<WirePath>(&text).unwrap(), path);
        }
    }
}
