//! The dialect of a bucket: which vendor's habits it follows. One table, the same as in SEMANTICS.md; every
//! question about a dialect is answered from it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::{RuleError, quoted};
use super::model::{Method, Request, Rule};

/// Whose rules a bucket follows. A property of the bucket, `native` unless chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dialect {
    /// ssefs's own: all that any vendor allows, and the directory rule `none`.
    #[default]
    Native,
    /// Tencent Cloud COS.
    Cos,
    /// Alibaba Cloud OSS.
    Oss,
    /// JD Cloud OSS.
    Jd,
    /// AWS S3.
    Aws,
}

/// What a rule is set on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// The bucket's root.
    Bucket,
    /// A directory below it: the rule of a prefix.
    Directory,
}

/// The shape of a printed rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum XmlForm {
    /// `ServerSideEncryptionRule`, algorithm `KMS` (Alibaba: PutBucketEncryption).
    Oss,
    /// `ServerSideEncryptionConfiguration`, algorithm `KMS` (Tencent: PUT Bucket encryption).
    Cos,
    /// `ServerSideEncryptionConfiguration`, algorithm `aws:kms` (AWS: PutBucketEncryption; JD: PUT Bucket encryption).
    Aws,
}

/// One column of the table.
struct Traits {
    name: &'static str,
    aes256: bool,
    cmk: bool,
    sm4: bool,
    sse_c: bool,
    none: bool,
    requests_win: bool,
    directory_rules: bool,
    xml: XmlForm,
    no_rule_code: &'static str,
}

const NATIVE: Traits = Traits {
    name: "native",
    aes256: true,
    cmk: true,
    sm4: true,
    sse_c: true,
    none: true,
    requests_win: true,
    directory_rules: true,
    xml: XmlForm::Oss,
    no_rule_code: "NoSuchServerSideEncryptionRule",
};
const COS: Traits =
    Traits { name: "cos", none: false, xml: XmlForm::Cos, no_rule_code: "NoSuchEncryptionConfiguration", ..NATIVE };
const OSS: Traits = Traits { name: "oss", none: false, ..NATIVE };
const AWS: Traits = Traits {
    name: "aws",
    sm4: false,
    none: false,
    xml: XmlForm::Aws,
    no_rule_code: "ServerSideEncryptionConfigurationNotFoundError",
    ..NATIVE
};
// JD's documents name no code for "no rule"; its encryption API is S3's, so is the code.
const JD: Traits =
    Traits { name: "jd", aes256: false, cmk: false, sse_c: false, requests_win: false, directory_rules: false, ..AWS };

impl Dialect {
    /// Every dialect, in the order of the contract's table.
    pub const ALL: [Dialect; 5] = [Dialect::Native, Dialect::Cos, Dialect::Oss, Dialect::Jd, Dialect::Aws];

    const fn traits(self) -> &'static Traits {
        match self {
            Dialect::Native => &NATIVE,
            Dialect::Cos => &COS,
            Dialect::Oss => &OSS,
            Dialect::Jd => &JD,
            Dialect::Aws => &AWS,
        }
    }

    /// The name, lower case.
    pub fn as_str(self) -> &'static str {
        self.traits().name
    }

    /// Whether a request on an object beats the rule (row 6) or has no effect (row 38).
    pub fn requests_win(self) -> bool {
        self.traits().requests_win
    }

    /// Whether a directory may have a rule (rows 70, 33).
    pub fn directory_rules(self) -> bool {
        self.traits().directory_rules
    }

    /// Whether data may be encrypted with SM4.
    pub fn sm4(self) -> bool {
        self.traits().sm4
    }

    /// Whether an object may be encrypted with a customer key (row 38 says what a refusal looks like).
    pub fn sse_c(self) -> bool {
        self.traits().sse_c
    }

    /// The form in which rules are printed as XML.
    pub fn xml_form(self) -> XmlForm {
        self.traits().xml
    }

    /// The error code of "there is no rule" (row 58).
    pub fn no_rule_code(self) -> &'static str {
        self.traits().no_rule_code
    }

    /// Whether `rule` may be set at `place`. A bucket that refuses plain objects must refuse `none` besides: that
    /// is a setting of the bucket, not of its dialect.
    ///
    /// # Errors
    /// [`RuleError::DirectoryRule`], [`RuleError::NoneOnBucket`] or [`RuleError::NotInDialect`].
    pub fn check_rule(self, rule: &Rule, place: Place) -> Result<(), RuleError> {
        if place == Place::Directory && !self.directory_rules() {
            return Err(RuleError::DirectoryRule { dialect: self });
        }
        self.check_anywhere(rule)?;
        if place == Place::Bucket && *rule == Rule::None {
            return Err(RuleError::NoneOnBucket);
        }
        Ok(())
    }

    /// Whether an object may be requested so. Where requests have no effect every one of these is taken (row 38).
    ///
    /// # Errors
    /// [`RuleError::NotInDialect`].
    pub fn check_request(self, request: &Request) -> Result<(), RuleError> {
        let Some(rule) = request.as_rule() else { return self.check_customer() };
        if self.requests_win() { self.check_anywhere(&rule) } else { Ok(()) }
    }

    /// Whether an object may be requested with a customer key (rows 29, 38): never taken where it would have no effect.
    ///
    /// # Errors
    /// [`RuleError::NotInDialect`].
    pub fn check_customer(self) -> Result<(), RuleError> {
        if self.sse_c() {
            return Ok(());
        }
        let what = format!("a customer key ({})", Method::SseC);
        Err(RuleError::NotInDialect { what, dialect: self, instead: "the bucket's rule applies" })
    }

    /// The part of [`Self::check_rule`] that does not depend on the place.
    pub(super) fn check_anywhere(self, rule: &Rule) -> Result<(), RuleError> {
        let allowed = self.traits();
        let instead = match rule {
            Rule::None if !allowed.none => "delete the rule instead",
            Rule::Aes256 if !allowed.aes256 => "use KMS",
            Rule::Kms { key: Some(_), .. } if !allowed.cmk => "use KMS without a key",
            Rule::Kms { sm4: true, .. } if !allowed.sm4 => "leave out SM4",
            Rule::None | Rule::Aes256 | Rule::Kms { .. } => return Ok(()),
        };
        Err(RuleError::NotInDialect { what: quoted(&rule.to_string()), dialect: self, instead })
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Dialect {
    type Err = RuleError;

    fn from_str(name: &str) -> Result<Dialect, RuleError> {
        Dialect::ALL
            .into_iter()
            .find(|dialect| dialect.as_str() == name)
            .ok_or_else(|| RuleError::UnknownDialect { name: quoted(name) })
    }
}
