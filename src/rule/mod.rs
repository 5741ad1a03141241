//! The encryption rule: what a bucket, a directory or a request asks for, in every form it is written in.
//!
//! Pure code: text in, values out. It never touches a disk, a key or a kernel, and it never decides who may set
//! a rule. The contract is the table of methods, attributes and dialects in SEMANTICS.md; xattrs, the command
//! line and HTTP all come in through [`parse`], so that one spelling cannot mean two things.

mod customer;
mod dialect;
mod edit;
mod error;
mod json;
mod model;
mod parse;
mod resolve;
mod short;
mod xml;

pub use customer::{Customer, DIR_REQUESTS_MAX, DirRequests};
pub use dialect::{Dialect, Place, XmlForm};
pub use edit::{
    request_with_algorithm, request_with_data_encryption, request_with_kms_key, with_algorithm, with_data_encryption,
    with_kms_key,
};
pub use error::{Position, RuleError};
pub use model::{Cipher, KEY_NAME_BYTES_MAX, Method, Request, Rule};
pub use parse::{RULE_TEXT_BYTES_MAX, parse, parse_for};
pub use resolve::{Asked, Effective, Origin, resolve};
pub use xml::{XML_NODES_MAX, print_xml};
