//! What can go wrong on the lossy disk on request: errors, short writes, syncs that fail or lie, and the power
//! cut itself. Decides only; the disk carries it out.

/// The calls that change the disk or make a change durable. Each one counts as a step at which power can be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Write,
    Truncate,
    Fallocate,
    Attr,
    Create,
    Link,
    Rename,
    Unlink,
    Fsync,
}

/// What happens instead of the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The call fails with this errno and changes nothing (ENOSPC, EIO, EDQUOT).
    Errno(i32),
    /// A write takes only its first half.
    ShortWrite,
    /// A sync fails with EIO and, as Linux does, forgets that the pages were dirty: a later sync succeeds, but
    /// what this one should have written reached the disk in part at best.
    SyncFails,
    /// A sync succeeds and makes nothing durable. No honest disk does this: it is for testing the tests.
    SyncLies,
}

/// A fault that waits for its call.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Only calls of these kinds; empty means all.
    pub calls: Vec<Call>,
    /// Only on files whose name ends like this; empty means all.
    pub name_ends: String,
    /// How many matching calls pass before it strikes.
    pub after: u64,
    /// How many matching calls it strikes, u64::MAX for ever.
    pub times: u64,
    pub action: Action,
}

impl Fault {
    /// `action` at the next matching call, once.
    pub fn once(calls: &[Call], action: Action) -> Fault {
        Fault { calls: calls.to_vec(), name_ends: String::new(), after: 0, times: 1, action }
    }

    /// Every sync of a file whose name ends with `name_ends` is acknowledged and does nothing, for ever.
    pub fn lying_sync(name_ends: &str) -> Fault {
        Fault {
            calls: vec![Call::Fsync],
            name_ends: name_ends.to_string(),
            after: 0,
            times: u64::MAX,
            action: Action::SyncLies,
        }
    }

    /// Whether it strikes this call; counts down.
    pub fn strikes(&mut self, call: Call, name: &[u8]) -> bool {
        let matches =
            (self.calls.is_empty() || self.calls.contains(&call)) && name.ends_with(self.name_ends.as_bytes());
        if !matches || self.times == 0 {
            return false;
        }
        if self.after > 0 {
            self.after -= 1;
            return false;
        }
        if self.times != u64::MAX {
            self.times -= 1;
        }
        true
    }
}
