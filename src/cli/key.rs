//! shim
use super::{args::KeyCmd, place::Place}; use crate::ops::OpError;
pub fn run(_p: &Place, _c: &KeyCmd) -> Result<(), OpError> { Err(OpError::usage("shim")) }
