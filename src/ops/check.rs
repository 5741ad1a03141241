//! placeholder until pulled
use crate::bucket::*;
use super::Progress;
pub struct CheckOptions { pub read_data: bool }
#[derive(serde::Serialize)]
pub struct CheckReport { pub problems: Vec<String> }
pub fn check(_b: &Bucket, _o: CheckOptions, _p: &dyn Progress) -> Result<CheckReport, BucketError> { Ok(CheckReport { problems: vec![] }) }
