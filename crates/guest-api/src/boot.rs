//! What an agent is started with.
//!
//! The runtime starts the agent program with the argument `init` and these open descriptors; nothing is passed
//! through the environment or the file system of the sandbox.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use warren_types::SandboxId;

/// Descriptor of a listening stream socket on which the agent accepts its node.
pub const LISTENER_FD: i32 = 3;
/// Descriptor of a file that holds [`Boot`] as JSON, from its start to its end.
pub const BOOT_FD: i32 = 4;

/// Settings of the sandbox that the agent applies to everything it starts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Boot {
    pub sandbox_id: SandboxId,
    /// Environment added to every command and terminal, under the command's own.
    pub envs: BTreeMap<String, String>,
}

/// The user that commands, terminals and files belong to.
pub const USER: &str = "sandbox";
pub const UID: u32 = 1000;
pub const GID: u32 = 1000;
pub const HOME: &str = "/home/sandbox";
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Where the sandbox sees its own cgroup (version 2), with the right to make children in it.
pub const CGROUP_DIR: &str = "/sys/fs/cgroup";
