pub mod crash_mount;
pub mod history;
pub mod lossy;
pub mod model;
pub mod rng;
pub mod workload;
