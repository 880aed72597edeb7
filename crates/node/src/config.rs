//! How a node is set up, and what can go wrong at its start.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use warren_network::{GatewaySettings, Limits};
use warren_types::{Isolation, SandboxId};

use crate::template::Template;

/// Settings of a node; read once.
#[derive(Debug, Clone)]
pub struct Config {
    /// Everything the node keeps is below this folder.
    pub data_dir: PathBuf,
    /// The `warren` program; it is started again as the launcher.
    pub program: PathBuf,
    /// The template that sandboxes start from.
    pub template: Template,
    /// What sandboxes get that do not ask for another; when absent, virtual machines where KVM works.
    pub isolation: Option<Isolation>,
    /// Size of the volume file that is made when the data directory cannot reflink; a share of the free space when
    /// absent.
    pub volume_size_bytes: Option<u64>,
    pub network: NetworkConfig,
    pub images: ImagesConfig,
}

/// Where images come from, and what they are made to trust.
#[derive(Debug, Clone, Default)]
pub struct ImagesConfig {
    /// Registries, as `host` or `host:port`, that are spoken to without TLS and may have private addresses.
    pub insecure_registries: Vec<String>,
    /// A `config.json` of a container engine, with logins.
    pub registry_config: Option<PathBuf>,
    /// Let programs in sandboxes trust the certificate authorities that were added to this host by its owner.
    pub trust_host_cas: bool,
}

/// What of the network is the operator's to say.
#[derive(Debug, Clone, Default)]
pub struct NetworkConfig {
    /// Of each sandbox.
    pub limits: Limits,
    pub gateway: GatewaySettings,
}

impl Config {
    /// A short name of this data directory, to tell this node's cgroups, links and tables from another's.
    pub(crate) fn tag(&self) -> String {
        tag_of(&self.data_dir)
    }
}

/// Six hex digits of the data directory's path.
pub(crate) fn tag_of(data_dir: &Path) -> String {
    let digest = Sha256::digest(data_dir.as_os_str().as_encoded_bytes());
    warren_types::hex(&digest[..3])
}

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("could not prepare {what} at {path}")]
    Folder { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("could not {what}")]
    Command { what: String, source: CommandError },
    #[error("images cannot be had from registries: {0}")]
    Registries(String),
    #[error("could not start the launcher")]
    Launcher(#[source] std::io::Error),
    #[error("cgroups cannot be used")]
    Cgroup(#[from] warren_runtime::cgroup::CgroupError),
    #[error("there can be no virtual machines: {0}")]
    Machines(String),
    #[error(
        "sandbox {id} runs and cannot be taken over: {reason}; nothing was done to it: see that the server may have what it lacks \
         (open files: ulimit -n, LimitNOFILE=), and start it again"
    )]
    Shortage { id: SandboxId, reason: String },
    #[error("could not prepare the network")]
    Network(#[source] std::io::Error),
}

/// A helper program that failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("{program} could not be started; install it with: apt-get install {package}")]
    Missing { program: String, package: &'static str, source: std::io::Error },
    #[error("{command} failed: {stderr}")]
    Failed { command: String, stderr: String },
}
