//! What the node asks of the launcher, and what comes back.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use warren_guest_api::boot::Boot;
use warren_runtime::client::memory_file;
use warren_runtime::{CgroupPlan, Launcher, Result, Step};

/// What its launches are sent under.
pub(crate) const NAME: &str = "container";

/// A sandbox to start.
///
/// Two descriptors travel with it: the network namespace, and the file that holds [`Boot`].
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

/// Starts a sandbox; returns when its agent program runs. `boot` is what the agent reads at its start.
pub async fn launch(
    launcher: &Launcher,
    launch: &Launch,
    network_namespace: BorrowedFd<'_>,
    boot: &Boot,
) -> Result<Launched> {
    let boot = serde_json::to_vec(boot).expect("a map of strings is always valid JSON");
    let boot = memory_file(&boot).step("write the agent's settings")?;
    launcher.launch(NAME, launch, &[network_namespace, boot.as_fd()]).await
}
