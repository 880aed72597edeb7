//! What the node asks of the launcher, and what comes back.

use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use warren_runtime::{Launcher, Result};

use crate::hardware::Hardware;

/// What its launches are sent under.
pub(crate) const NAME: &str = "vm";

/// Socket of the machine's control channel, in the folder where `agent.sock` is.
pub const CONTROL_SOCKET: &str = "qmp.sock";
pub const AGENT_SOCKET: &str = "agent.sock";

/// A machine to start.
///
/// Two or three descriptors travel with it: the network namespace, a file for what QEMU complains about, and, to restore a
/// snapshot, the device state from its beginning.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Launch {
    /// The host user that QEMU runs as, nobody else's.
    pub user: u32,
    /// The group it is started in: of all sandboxes of the node, and its own in there. The node has made it.
    pub cgroup_parent: String,
    pub cgroup_name: String,
    /// Bytes per second it may read and write on its disk, each.
    pub io_bytes_per_second: u64,
    /// Operations per second it may read and write on its disk, each.
    pub io_operations_per_second: u64,
    /// A tree with QEMU and all it loads: [`crate::emulator::Emulator::tree`].
    pub emulator_tree: PathBuf,
    pub hardware: Hardware,
    /// The template's image, read-only; an image that sandboxes share.
    pub template_image: PathBuf,
    /// The ext4 image it writes to, with the folders `upper` and `work`.
    pub disk_image: PathBuf,
    /// The machine's memory, exactly as large; nobody else's.
    pub memory_file: PathBuf,
    /// Folder in which `agent.sock` and `qmp.sock` are made; nothing inside the sandbox can reach it.
    pub run_dir: PathBuf,
    /// Empty folder on which QEMU's root is assembled.
    pub stage_dir: PathBuf,
    /// Largest packet of the slot's link.
    pub mtu: u32,
    pub start: Start,
}

/// How a machine comes to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    Boot {
        kernel: PathBuf,
        initramfs: PathBuf,
    },
    /// Memory, disk and device state are those of one snapshot.
    Restore,
}

/// A machine whose QEMU is running.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Launched {
    /// Its QEMU, as the host counts.
    pub pid: i32,
    /// Microseconds spent on each step, for benchmarks and traces.
    pub steps: Vec<(String, u32)>,
}

/// Starts a machine; returns when its QEMU program runs. `complaints` receives its standard error.
pub async fn launch(
    launcher: &Launcher,
    launch: &Launch,
    network_namespace: BorrowedFd<'_>,
    complaints: BorrowedFd<'_>,
    device_state: Option<BorrowedFd<'_>>,
) -> Result<Launched> {
    let descriptors: Vec<BorrowedFd<'_>> =
        [network_namespace, complaints].into_iter().chain(device_state).collect();
    launcher.ask(NAME, launch, &descriptors)?.hear().await
}
