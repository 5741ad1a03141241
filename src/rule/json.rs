//! The JSON that `aws s3api put-bucket-encryption --server-side-encryption-configuration` takes, read strictly:
//! objects only where objects belong, no unknown and no repeated field, exactly one rule.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::error::{Position, RuleError, quoted};
use super::model::{Fields, Rule};
use super::xml::algorithm_of_configuration;

/// AWS: ServerSideEncryptionConfiguration.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Configuration {
    #[serde(rename = "Rules")]
    rules: OneRule,
}

/// AWS: ServerSideEncryptionRule. Its BlockedEncryptionTypes is refused as unknown: ssefs could not keep it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleObject {
    #[serde(rename = "ApplyServerSideEncryptionByDefault")]
    by_default: Object<ByDefault>,
    /// Read and dropped: every bucket here has a bucket key (row 54).
    #[serde(rename = "BucketKeyEnabled", default)]
    _bucket_key: Option<bool>,
}

/// AWS: ServerSideEncryptionByDefault.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ByDefault {
    #[serde(rename = "SSEAlgorithm")]
    algorithm: String,
    #[serde(rename = "KMSMasterKeyID", default)]
    key: Option<String>,
}

/// Reads one rule.
pub(super) fn parse(text: &str) -> Result<Rule, RuleError> {
    let Object(configuration) = serde_json::from_str::<Object<Configuration>>(text).map_err(|e| malformed(text, &e))?;
    let OneRule(RuleObject { by_default: Object(fields), .. }) = configuration.rules;
    let algorithm = fields.algorithm.trim_ascii();
    if algorithm.is_empty() {
        let at = Position::of_byte(text.as_bytes(), text.find("\"SSEAlgorithm\"").unwrap_or(0));
        return Err(RuleError::malformed(at, "SSEAlgorithm is required"));
    }
    Fields {
        algorithm: algorithm_of_configuration(algorithm),
        key: fields.key.as_deref().map(str::trim_ascii),
        data_encryption: None,
    }
    .into_rule()
}

fn malformed(text: &str, error: &serde_json::Error) -> RuleError {
    let as_u32 = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let lines = text.lines().count();
    let at =
        Position { line: as_u32(error.line().clamp(1, lines.max(1))), column: Some(as_u32(error.column().max(1))) };
    // serde_json ends its message with the position, which ours begins with.
    let full = error.to_string();
    let what = full.rsplit_once(" at line ").map_or(full.as_str(), |(what, _)| what);
    RuleError::malformed(at, quoted(what))
}

/// A `T` written as a JSON object. Derived structs would also take an array of their fields in order.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

/// An array of exactly one rule.
struct OneRule(RuleObject);

impl<'de> Deserialize<'de> for OneRule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneRuleVisitor;
        impl<'de> Visitor<'de> for OneRuleVisitor {
            type Value = OneRule;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of one rule")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut rules: A) -> Result<OneRule, A::Error> {
                let Some(Object(rule)) = rules.next_element::<Object<RuleObject>>()? else {
                    return Err(A::Error::custom("Rules is empty: give one rule, or delete the bucket's"));
                };
                if rules.next_element::<IgnoredAny>()?.is_some() {
                    return Err(A::Error::custom("there is a second rule: a bucket has one"));
                }
                Ok(OneRule(rule))
            }
        }
        deserializer.deserialize_seq(OneRuleVisitor)
    }
}
