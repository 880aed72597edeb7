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
    /// Who commands, terminals and new files belong to.
    #[serde(default)]
    pub user: User,
    /// Where commands and terminals start that do not say; the user's home when absent, or when it is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
}

/// An account of the sandbox, by its numbers: whoever made the image has looked them up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    /// Absolute path.
    pub home: String,
}

// === impl User ===

impl Default for User {
    fn default() -> Self {
        Self { name: USER.to_owned(), uid: UID, gid: GID, home: HOME.to_owned() }
    }
}

/// The user that commands, terminals and files belong to where the image names no other.
pub const USER: &str = "sandbox";
pub const UID: u32 = 1000;
pub const GID: u32 = 1000;
pub const HOME: &str = "/home/sandbox";
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Where the sandbox sees its own cgroup (version 2), with the right to make children in it.
pub const CGROUP_DIR: &str = "/sys/fs/cgroup";
