//! The states that a directory went through while a program worked on it, and the judgement after a crash: promise
//! 62 wants the directory equal to the state at ONE moment, no earlier than the last acknowledged fsync.
#![allow(dead_code)]

use std::fmt;
use std::time::Instant;

use super::model::{Op, Seen, State};

/// What was done, and the tree after each step: `states[k]` is the tree after `k` operations.
#[derive(Clone)]
pub struct History {
    pub states: Vec<State>,
    pub ops: Vec<Op>,
    /// Ticks of a clock shared by all threads at which each operation began and ended (MAX: never).
    pub spans: Vec<(u64, u64)>,
    /// When each operation was recorded, just after it ended.
    pub times: Vec<Instant>,
    /// The oldest state that may come back: the newest that an fsync or a clean unmount acknowledged.
    pub acknowledged: usize,
}

/// Which states of a history a directory equals: the first and the last of them.
#[derive(Clone, Copy, Debug)]
pub struct Match {
    pub first: usize,
    pub last: usize,
}

impl History {
    /// A history that starts from a state which is there for certain.
    pub fn new(mut start: State) -> History {
        start.release();
        History { states: vec![start], ops: Vec::new(), spans: Vec::new(), times: Vec::new(), acknowledged: 0 }
    }

    /// The tree after everything done so far.
    pub fn now(&self) -> &State {
        &self.states[self.states.len() - 1]
    }

    /// Records an operation, done or in flight.
    pub fn push(&mut self, op: Op, span: (u64, u64)) {
        let mut state = self.now().clone();
        state.apply(&op);
        self.states.push(state);
        self.ops.push(op);
        self.spans.push(span);
        self.times.push(Instant::now());
    }

    /// Everything done so far is acknowledged.
    pub fn acknowledge(&mut self) {
        self.acknowledged = self.states.len() - 1;
    }

    /// Everything that had ended by `moment` counts as acknowledged: the commit interval has made it durable.
    pub fn acknowledge_until(&mut self, moment: Instant) {
        let finished = self.times.iter().zip(&self.spans);
        let finished = finished.take_while(|(time, span)| **time <= moment && span.1 != u64::MAX).count();
        self.acknowledged = self.acknowledged.max(finished);
    }

    /// Finds the states that the directory equals, or says what is wrong with it.
    pub fn find(&self, seen: &Seen) -> Result<Match, Box<Broken>> {
        let fits = |k: &usize| self.states[*k].difference(seen).is_none();
        let Some(last) = (self.acknowledged..self.states.len()).rev().find(fits) else {
            return Err(Box::new(Broken {
                older: (0..self.acknowledged).rev().find(fits),
                acknowledged: self.acknowledged,
                newest: self.states.len() - 1,
                from_acknowledged: self.states[self.acknowledged].difference(seen),
                from_newest: self.now().difference(seen),
                nearest: (self.acknowledged..self.states.len())
                    .map(|k| (k, self.states[k].difference(seen).unwrap_or_default()))
                    .collect(),
                ops: self.ops.clone(),
            }));
        };
        let first = (self.acknowledged..=last).find(fits).unwrap_or(last);
        Ok(Match { first, last })
    }
}

/// A directory that equals no state it may equal.
pub struct Broken {
    /// The state it does equal, older than the acknowledged one: acknowledged changes are lost.
    pub older: Option<usize>,
    acknowledged: usize,
    newest: usize,
    from_acknowledged: Option<String>,
    from_newest: Option<String>,
    nearest: Vec<(usize, String)>,
    ops: Vec<Op>,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let none = || "nothing".to_string();
        match self.older {
            Some(k) => writeln!(
                f,
                "acknowledged changes are lost: the tree is state {k}, acknowledged was state {}",
                self.acknowledged
            )?,
            None => {
                writeln!(f, "the tree is no state of its history (candidates {}..={})", self.acknowledged, self.newest)?
            }
        }
        let (a, n) = (self.from_acknowledged.clone(), self.from_newest.clone());
        writeln!(f, "  against state {}: {}", self.acknowledged, a.unwrap_or_else(none))?;
        writeln!(f, "  against state {}: {}", self.newest, n.unwrap_or_else(none))?;
        for (k, difference) in self.nearest.iter().rev().take(40) {
            writeln!(f, "  state {k} (after {:?}): {difference}", k.checked_sub(1).map(|k| &self.ops[k]))?;
        }
        Ok(())
    }
}
