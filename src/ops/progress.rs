//! How a long operation says how far it is, and learns that nobody waits for it any more. The command line draws a
//! bar from it, a mount sends it as lines over the control socket, a test ignores it.

/// Receives the progress of one operation. Called from any thread, often: implementations must be cheap.
pub trait Progress: Sync {
    /// A stage begins: what it does, and how many units it has where that is known.
    fn stage(&self, what: &str, total: Option<u64>);
    /// So many more units of the stage are done.
    fn advance(&self, units: u64);
    /// True when the operation should stop at its next safe point.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Progress that nobody sees.
pub struct Quiet;

impl Progress for Quiet {
    fn stage(&self, _what: &str, _total: Option<u64>) {}
    fn advance(&self, _units: u64) {}
}
