//! What is particular to an agent in a virtual machine.
//!
//! Its kernel starts it as `/init` of an initramfs with the argument `machine`. It loads the modules it finds in
//! [`MODULES_DIR`] in the order of their names, mounts the two disks, and waits on the serial port [`PORT`]. The machine has no
//! sandbox yet: it may be one that is about to become the template of many. It becomes a sandbox's by [`Renew`], which a
//! node calls after every boot and every restore and before anything else.

use serde::{Deserialize, Serialize};

use crate::boot::Boot;

/// Name of the virtio-serial port between node and agent.
pub const PORT: &str = "warren.agent";
/// Where the initramfs keeps kernel modules, named so that their order is that of their dependencies.
pub const MODULES_DIR: &str = "/modules";
/// The disk with the read-only template, and the one with the folders `upper` and `work`.
pub const TEMPLATE_DISK: &str = "/dev/vda";
pub const WRITABLE_DISK: &str = "/dev/vdb";
/// Where the writable disk's own file system can be used directly: an overlay cannot lie on an overlay.
pub const PLAIN_FOLDERS: [&str; 2] = ["/var/lib/docker", "/var/lib/containerd"];

/// Bytes of entropy a [`Renew`] carries.
pub const ENTROPY_BYTES: usize = 64;

/// Body of `POST /v1/renew`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Renew {
    pub boot: Boot,
    pub identity: Identity,
    pub hostname: String,
    /// What the clock is to say: time since 1970.
    pub unix_time_us: u64,
    /// Goes into the kernel's random number generator, which starts a new sequence; [`ENTROPY_BYTES`] long.
    pub entropy: Vec<u8>,
    /// Largest packet of the network it is connected to now.
    pub mtu: u32,
}

/// Whose machine this is from here on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Identity {
    /// A machine that did not exist before: a new machine id and new host keys.
    New,
    /// The one it was, after a hibernation or put back to a checkpoint.
    Same,
}

/// Answer of `POST /v1/renew`, given when all of it is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewed {
    pub machine_id: String,
    /// What the clock says.
    pub unix_time_us: u64,
    /// The kernel's version, for people.
    pub kernel: String,
}

/// Answer of `GET /v1/usage`: what only the machine's own kernel knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes that cannot be taken back without harm.
    pub memory_bytes: u64,
    pub processes: u64,
}
