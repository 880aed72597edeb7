//! What the node asks of the launcher, and what comes back.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use warren_guest_api::boot::Boot;

/// Largest request, in bytes; environments are the large part.
pub const MAX_REQUEST_BYTES: usize = 2 * 1024 * 1024;

/// What the launcher can be asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    Launch(Launch),
    Capture(Capture),
}

/// The disk of a running sandbox, to be taken while everything in it stands still.
///
/// Four descriptors travel with it: a folder of the sandbox's root, its image, an empty file on the same file system, and the
/// write end of a pipe for the answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Capture {
    pub cgroup_parent: String,
    pub cgroup_name: String,
    /// A sandbox that does not come to rest within this is taken as it is.
    pub rest_within_ms: u64,
    /// Longest time it is kept at rest.
    pub rest_at_most_ms: u64,
}

/// A disk that was taken.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Captured {
    /// Everything stood still, and all that had been written is in the image.
    pub quiesced: bool,
    /// From the first process that was stopped to the last that went on, in microseconds.
    pub pause_us: u64,
}

/// A sandbox to start.
///
/// Three descriptors travel with it: the network namespace, the file that holds [`Boot`], and the write end of a pipe
/// for the answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Launch {
    pub hostname: String,
    /// First of the 65536 host ids its user namespace maps to 0.
    pub id_base: u32,
    pub cgroup: CgroupPlan,
    /// Where the template's read-only file system is mounted on the host.
    pub template_root: PathBuf,
    /// The ext4 image it writes to, with the folders `upper` and `work`.
    pub disk_image: PathBuf,
    /// Folder in which the agent's socket `agent.sock` is made; nothing inside the sandbox can reach it.
    pub run_dir: PathBuf,
    /// Empty folders on which the set-up process assembles the root: `template`, `disk` and `root`.
    pub stage_dir: PathBuf,
    /// The guest agent program.
    pub agent: PathBuf,
    /// Mount point of an lxcfs, when there is one.
    pub lxcfs: Option<PathBuf>,
}

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

/// A sandbox whose agent program is running; the agent answers on `run_dir/agent.sock`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Launched {
    /// Its PID 1, as the host counts.
    pub pid: i32,
    /// The loop device of its disk, as `major:minor`.
    pub disk_device: String,
    /// Microseconds spent on each step, for benchmarks and traces.
    pub steps: Vec<(String, u32)>,
}

#[derive(Debug, Clone, Serialize, Deserialize, thiserror::Error)]
#[error("could not {step}: {message}")]
pub struct LaunchError {
    /// What was being done.
    pub step: String,
    pub message: String,
}

impl LaunchError {
    pub(crate) fn new(step: impl Into<String>, cause: impl std::fmt::Display) -> Self {
        Self { step: step.into(), message: cause.to_string() }
    }
}

pub(crate) type Result<T> = std::result::Result<T, LaunchError>;

/// Says what was being done when something failed.
pub(crate) trait Step<T> {
    fn step(self, what: &str) -> Result<T>;
}

impl<T, E: std::fmt::Display> Step<T> for std::result::Result<T, E> {
    fn step(self, what: &str) -> Result<T> {
        self.map_err(|error| LaunchError::new(what, error))
    }
}

/// Encodes what the agent reads at its start.
#[must_use]
pub fn encode_boot(boot: &Boot) -> Vec<u8> {
    serde_json::to_vec(boot).expect("a map of strings is always valid JSON")
}
