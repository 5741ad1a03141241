//! What a check found: problems with where they are and what to do, and how much was looked at.

use serde::Serialize;

use crate::bucket::ROOT;
use crate::catalog::Reader;

/// Problems told one by one; more are counted.
const TOLD_MAX: usize = 10_000;
/// As deep as paths can be.
const DEPTH_MAX: usize = 4096;

/// What kind of problem; kept for ever, as scripts read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// SQLite finds its own file damaged.
    Catalog,
    /// A name leads to no inode, or to one of another kind.
    Name,
    /// An inode has more or fewer names than it counts, or a directory other subdirectories.
    Links,
    /// A directory is not below the root, or not where it says.
    Directory,
    /// An unlinked inode is not on the list of those to be freed, or a linked one is.
    Orphan,
    Symlink,
    /// Extended attributes or a request without their flag.
    Attribute,
    /// A row hangs on an inode that is not there.
    Stray,
    Request,
    /// An object's seal row is missing, or not what was written.
    Seal,
    /// An object's map is not what was written.
    Map,
    /// An inode counts other bytes of log than its chunks have.
    Sealed,
    /// A chunk lies outside its segment, or over another.
    Chunk,
    /// A map's node is used twice or by nobody.
    Node,
    /// A segment is missing, cut, or not the bucket's; or it counts other bytes as live.
    Segment,
    /// A chunk's content is not what was written.
    ChunkData,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    pub code: Code,
    /// Inode number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Bytes of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<u64>,
    /// As its file is called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segment: Option<String>,
    pub what: String,
    pub todo: &'static str,
}

impl Problem {
    pub(super) fn new(code: Code, what: impl Into<String>, todo: &'static str) -> Problem {
        Problem { code, object: None, path: None, from: None, to: None, segment: None, what: what.into(), todo }
    }

    pub(super) fn object(mut self, ino: u64) -> Problem {
        self.object = Some(ino);
        self
    }

    pub(super) fn range(mut self, from: u64, to: u64) -> Problem {
        (self.from, self.to) = (Some(from), Some(to));
        self
    }

    pub(super) fn segment(mut self, id: u32) -> Problem {
        self.segment = Some(super::segment_name(id));
        self
    }
}

/// The answer of `ssefs check`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct CheckReport {
    pub problems: Vec<Problem>,
    /// Problems that are not listed: there were too many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub more_problems: Option<u64>,
    /// What could not be looked at, and why; no damage.
    pub notes: Vec<String>,
    pub inodes: u64,
    pub names: u64,
    /// Files with content, and those whose keys are not to be had now.
    pub objects: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locked_objects: Option<u64>,
    pub chunks: u64,
    /// Bytes shown by maps, and with `read_data` those of chunks that were read.
    pub bytes: u64,
    pub bytes_read: u64,
    pub nodes: u64,
    pub segments: u64,
    pub seconds: f64,
}

/// Gathers.
#[derive(Default)]
pub(super) struct Log {
    pub report: CheckReport,
    pub problems: Vec<Problem>,
    more: u64,
}

impl Log {
    pub fn problem(&mut self, p: Problem) {
        if self.problems.len() < TOLD_MAX {
            self.problems.push(p);
        } else {
            self.more += 1;
        }
    }

    pub fn finish(self) -> CheckReport {
        let more_problems = (self.more > 0).then_some(self.more);
        CheckReport { problems: self.problems, more_problems, ..self.report }
    }
}

/// The path of an inode as far as names tell it.
pub(super) fn lost_path(rows: &Reader, ino: u64) -> Option<String> {
    let mut names = Vec::new();
    let mut at = ino;
    while at != ROOT {
        let parent = rows.inode(at).ok()??.parent;
        let name = rows.name_of(parent, at).ok()??;
        names.push(String::from_utf8_lossy(&name).into_owned());
        if names.len() > DEPTH_MAX {
            return None;
        }
        at = parent;
    }
    names.reverse();
    Some(names.join("/"))
}
