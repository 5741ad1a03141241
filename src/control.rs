//! The control socket of a mount: how the command line asks a bucket that another process has open. One JSON line
//! asks, any number of progress lines and one final line answer. The socket lies in a directory that only its owner
//! (and root) can enter, and the kernel says who called; this module never decides what a caller may do to a rule,
//! the bucket does.

mod client;
mod runtime_dir;
mod server;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ops::{Command, OpError};

pub use client::{ask, ask_within, find_mount};
pub use runtime_dir::{runtime_dirs_to_search, socket_dir};
pub use server::{Bound, Handler, Server, bind};

/// Longest request in bytes; a rule of 64 KiB fits even when JSON escapes every byte of it.
pub const REQUEST_BYTES_MAX: u64 = 512 * 1024;
/// Longest line of an answer in bytes.
pub const ANSWER_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Clients served at the same time; more are told to come back.
pub const CLIENTS_MAX: usize = 32;

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Which mount is this?
    Who,
    /// Something for the bucket.
    Run(Command),
    /// Answered when the mount has ended and the bucket is closed: how `umount` learns that all is on disk.
    AwaitClosed,
}

/// One line of an answer; every line but the last is `Stage` or `Advance`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    Stage { what: String, total: Option<u64> },
    Advance(u64),
    Done(Value),
    Failed(OpError),
}

/// A live mount, in its own words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountIdentity {
    pub pid: u32,
    pub bucket: String,
    pub store: PathBuf,
    pub mountpoint: PathBuf,
    #[serde(default)]
    pub socket: PathBuf,
}
