//! ssefs mounts a bucket as a directory and seals what is written into it by the bucket's encryption rule.
//! Each module uses only those above it in this list; `tests/tidy.rs` holds that.

pub mod types;

pub mod crypto;

pub mod rule;

pub mod keys;

pub mod catalog;

pub mod log;

pub mod seal;

pub mod bucket;

pub mod fs;

pub mod fuse;

pub mod ops;

pub mod control;

pub mod cli;
