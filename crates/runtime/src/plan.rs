//! What every launch has: limits, and reasons why it failed.

use serde::{Deserialize, Serialize};

/// Largest request, in bytes; environments are the large part.
pub const MAX_REQUEST_BYTES: usize = 2 * 1024 * 1024;

/// The cgroup of a sandbox and its limits.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CgroupPlan {
    /// Name of the group of all sandboxes of this node.
    pub parent: String,
    pub name: String,
    pub cpu_count: u32,
    /// CPUs it may run on; empty = all.
    pub cpus: Vec<u32>,
    pub memory_bytes: u64,
    pub pids: u32,
    /// Bytes per second it may read and write on its disk, each.
    pub io_bytes_per_second: u64,
    /// Operations per second it may read and write on its disk, each.
    pub io_operations_per_second: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize, thiserror::Error)]
#[error("could not {step}: {message}")]
pub struct LaunchError {
    /// What was being done.
    pub step: String,
    pub message: String,
}

impl LaunchError {
    pub fn new(step: impl Into<String>, cause: impl std::fmt::Display) -> Self {
        Self { step: step.into(), message: cause.to_string() }
    }
}

pub type Result<T> = std::result::Result<T, LaunchError>;

/// Says what was being done when something failed.
pub trait Step<T> {
    fn step(self, what: &str) -> Result<T>;
}

impl<T, E: std::fmt::Display> Step<T> for std::result::Result<T, E> {
    fn step(self, what: &str) -> Result<T> {
        self.map_err(|error| LaunchError::new(what, error))
    }
}
