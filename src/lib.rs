
pub mod rule;
