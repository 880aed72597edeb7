//! What the node asks of the launcher, and what comes back.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use warren_guest_api::boot::Boot;

/// What its requests are sent under.
pub(crate) const NAME: &str = "container";

/// What the launcher can be asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    Prepare(Preparation),
    Capture(Capture),
    Figures(Figures),
}

/// A running sandbox whose `/proc` is to tell its figures through another lxcfs than before.
///
/// One descriptor travels with it: the sandbox's mount namespace.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Figures {
    /// Mount point of that lxcfs.
    pub(crate) lxcfs: PathBuf,
}

/// The disk of a running sandbox, to be taken while everything in it stands still.
///
/// Three descriptors travel with it: a folder of the sandbox's root, its image, and an empty file on the same file system.
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
/// Two descriptors travel with it: the network namespace, and one end of a packet socket on which the disk and the launch
/// come later.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Preparation {
    pub hostname: String,
    /// First of the 65536 host ids its user namespace maps to 0.
    pub id_base: u32,
    /// Where the template's read-only file system is mounted on the host.
    pub template_root: PathBuf,
    /// Empty folder on which the set-up process assembles the root.
    pub stage_dir: PathBuf,
    /// Mount point of an lxcfs, when there is one.
    pub lxcfs: Option<PathBuf>,
}

/// A root that waits for its disk. Nothing runs in it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Prepared {
    /// The set-up process that holds it, as the host counts. It wants to be moved into the sandbox's cgroup.
    pub(crate) pid: i32,
    pub(crate) steps: Vec<(String, u32)>,
}

/// What gives a prepared root its disk: this word and two descriptors, the mounted disk and the write end of a pipe for the
/// answer.
pub(crate) const FURNISH: &[u8] = b"disk";

/// A root that waits for its sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Furnished {
    pub(crate) steps: Vec<(String, u32)>,
}

/// What starts a sandbox in a furnished root: this word and four descriptors. They are the folder in which the agent's
/// socket `agent.sock` is made, which nothing inside the sandbox can reach; the guest agent program; the file that holds
/// [`Boot`]; and the write end of a pipe for the answer.
pub(crate) const LAUNCH: &[u8] = b"launch";

/// A sandbox whose agent program is running; the agent answers on `run_dir/agent.sock`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Launched {
    /// Its PID 1, as the host counts.
    pub pid: i32,
    /// Microseconds spent on each step, for benchmarks and traces.
    pub steps: Vec<(String, u32)>,
}

/// Encodes what the agent reads at its start.
#[must_use]
pub fn encode_boot(boot: &Boot) -> Vec<u8> {
    serde_json::to_vec(boot).expect("a map of strings is always valid JSON")
}
