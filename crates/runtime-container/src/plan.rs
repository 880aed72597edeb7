//! What the node asks of the launcher, and what comes back.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use warren_guest_api::boot::Boot;

/// Largest request, in bytes; paths are the large part.
pub const MAX_REQUEST_BYTES: usize = 64 * 1024;

/// What the launcher can be asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    Prepare(Preparation),
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

/// A root to prepare: what of a sandbox does not depend on who will have it.
///
/// Four descriptors travel with it: the network namespace, the mounted disk, one end of a packet socket on which the
/// launch comes later, and the write end of a pipe for the answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Preparation {
    pub hostname: String,
    /// First of the 65536 host ids its user namespace maps to 0.
    pub id_base: u32,
    /// Where the template's read-only file system is mounted on the host.
    pub template_root: PathBuf,
    /// Empty folders on which the set-up process assembles the root: `template`, `disk` and `root`.
    pub stage_dir: PathBuf,
    /// Mount point of an lxcfs, when there is one.
    pub lxcfs: Option<PathBuf>,
}

/// A root that waits for its sandbox. Nothing runs in it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Prepared {
    /// The set-up process that holds it, as the host counts. It wants to be moved into the sandbox's cgroup.
    pub(crate) pid: i32,
    pub(crate) steps: Vec<(String, u32)>,
}

/// What starts a sandbox in a prepared root: four descriptors and nothing else. They are the folder in which the agent's
/// socket `agent.sock` is made, which nothing inside the sandbox can reach; the guest agent program; the file that holds
/// [`Boot`]; and the write end of a pipe for the answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Launch;

/// A sandbox whose agent program is running; the agent answers on `run_dir/agent.sock`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Launched {
    /// Its PID 1, as the host counts.
    pub pid: i32,
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
