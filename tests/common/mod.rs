//! The crash tests' parts: a disk that forgets, a model of a mount, and a workload. Test programs include what they need.

pub mod crash_mount;
pub mod history;
pub mod lossy;
pub mod model;
pub mod rng;
pub mod run;
pub mod sys;
pub mod workload;
