//! Control plane to node.
//!
//! HTTP with JSON bodies; the same requests whether the node is in this process (its router is called directly) or
//! on another machine. Calls are idempotent `ensure_…` with ids chosen by the caller. Every answer about a sandbox
//! is a [`Report`] with a generation that grows with each change, so an old answer never overwrites a newer one.
//!
//! | method and path | request | answer |
//! | --- | --- | --- |
//! | `GET /v1/node` | | [`NodeInfo`] |
//! | `GET /v1/sandboxes` | | array of [`Report`] |
//! | `GET /v1/sandboxes/{id}` | | [`Report`] |
//! | `PUT /v1/sandboxes/{id}` | [`SandboxSpec`] | [`Report`], once it is running |
//! | `DELETE /v1/sandboxes/{id}` | | 204, once nothing of it is left; unknown ids too |
//! | `PUT /v1/sandboxes/{id}/timeout` | [`Timeout`] | [`Report`] |
//! | `POST /v1/sandboxes/{id}/wake` | [`Wake`] or nothing | [`Report`] |
//! | `POST /v1/sandboxes/{id}/hibernate` | | [`Report`] |
//! | `POST /v1/sandboxes/{id}/logs` | [`warren_guest_api::logs::Query`] | as `POST /v1/logs` there; never wakes it, and ends after the history when it does not run |
//! | any `/v1/sandboxes/{id}/guest/{path}` | as in `warren-guest-api` `/v1/{path}` | as there; wakes the sandbox |
//! | `POST /v1/sandboxes/{id}/reboot` | [`Reboot`] | [`Report`], once it is running again |
//! | `PUT /v1/sandboxes/{id}/size` | [`Size`] | [`Report`], once the limits are in force |
//! | `PUT /v1/sandboxes/{id}/restore` | [`Restore`] | [`Report`], once it is certain to happen; later calls wait for its end |
//! | `PUT /v1/sandboxes/{id}/egress` | [`EgressPolicy`] | [`Report`], once it is in force |
//! | `GET /v1/sandboxes/{id}/egress` | | [`EgressReport`] |
//! | `PUT /v1/sandboxes/{id}/secrets` | [`SecretGrant`] | 204, once it is in force; ids not known yet too |
//! | `POST /v1/secret-uses` | [`SecretUsesQuery`] | [`SecretUses`] |
//! | `POST /v1/network-events` | [`NetworkEventsQuery`] | [`NetworkEvents`] |
//! | `GET /v1/sandboxes/{id}/patches` | | array of [`PatchRun`] |
//! | `GET /v1/questions` | | JSON lines: every [`Question`] that is open, then each new one, as long as the connection lives; blank lines keep it alive |
//! | `PUT /v1/questions/{number}` | [`Answer`] | 204; those that are not open too |
//! | `GET /v1/usage` | | array of [`Usage`], running sandboxes only |
//! | `GET /v1/checkpoints` | | array of [`CheckpointReport`] |
//! | `GET /v1/checkpoints/{id}` | | [`CheckpointReport`] |
//! | `PUT /v1/checkpoints/{id}` | [`CheckpointCreate`] | [`CheckpointReport`], once it is captured or after [`CAPTURE_WAIT_SECONDS`] |
//! | `DELETE /v1/checkpoints/{id}` | | 204, once nothing of it is left; unknown ids too |
//! | `PUT /v1/checkpoints/{id}/patches` | array of [`Patch`] | 204; replaces all |
//! | `PUT /v1/checkpoints/{id}/copy` | [`CheckpointCopy`] | [`CheckpointReport`], ready |
//! | `GET /v1/templates` | | array of [`TemplateReport`] |
//! | `POST /v1/templates` | [`TemplateImport`] | JSON lines of [`TemplateLine`]; the last one says how it ended |
//! | `POST /v1/templates/resolve` | [`ImageLookup`] | [`ResolvedImage`]: what the reference stands for now |
//! | `POST /v1/templates/archive` | a tar stream: an OCI layout, or what `docker save` writes | the same |
//! | `DELETE /v1/templates/{name}` | | 204, once nothing of it is left; unknown names too; 409 while anything is made from it |
//! | `GET /v1/space` | | [`Space`] |
//! | `GET /v1/changes` | | JSON lines: a [`Change`] for every sandbox and checkpoint, then one for each change, for as long as the connection lives; blank lines keep it alive |

mod checkpoint;
mod client;
mod egress;
mod question;
mod template;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use warren_types::{CheckpointId, EgressPolicy, Isolation, SandboxId, SandboxState, Size};

pub use checkpoint::{
    CheckpointCopy, CheckpointCreate, CheckpointOrigin, CheckpointReport, CheckpointState, Consistency,
    Holds, Patch, PatchRun, Restore,
};
pub use client::{NodeClient, error_of};
pub use egress::{
    Blocked, EgressReport, FormerSecret, GrantedSecret, NetworkEvent, NetworkEventKind, NetworkEvents,
    NetworkEventsQuery, Place, SecretGrant, SecretUse, SecretUses, SecretUsesQuery,
};
pub use question::{Answer, Question, Subject};
pub use template::{
    Held, ImageLookup, ImageSettings, Import, RegistryAuth, ResolvedImage, Space, TemplateImport,
    TemplateLine, TemplateReport,
};

/// How long a node lets the maker of a checkpoint wait for its capture.
pub const CAPTURE_WAIT_SECONDS: u64 = 10;
/// Code of the error that refuses to run a disk which is not what was written.
pub const CODE_DISK_DAMAGED: &str = "disk_damaged";
/// Code of the error that refuses to go on with memory which is not what was written; the disk can be started from.
pub const CODE_MEMORY_DAMAGED: &str = "memory_damaged";
/// Code of the error that refuses to use a checkpoint whose content is not what was written.
pub const CODE_CHECKPOINT_DAMAGED: &str = "checkpoint_damaged";
/// Code of the error that refuses a size below what is in use; its details are `usedBytes` and `limitBytes`.
pub const CODE_OOM_FLOOR: &str = "oom_floor";

/// Code of the error that refuses to make a virtual machine larger than it was started.
pub const CODE_CANNOT_GROW: &str = "cannot_grow";

/// What a sandbox is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Name of a template the node has, [`TemplateReport::name`].
    pub template: String,
    /// One of those the node offers.
    #[serde(default)]
    pub isolation: Isolation,
    pub size: Size,
    /// Environment of everything started in it.
    pub envs: BTreeMap<String, String>,
    /// Seconds without use after which it hibernates; 0 = never.
    pub timeout_seconds: u32,
    /// What it may reach.
    #[serde(default)]
    pub egress: EgressPolicy,
    /// It has secrets: its traffic passes the gateway, which is given them with [`SecretGrant`].
    #[serde(default)]
    pub sealed: bool,
    /// Shell commands that are started whenever it begins to run; nobody waits for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub start_commands: Vec<String>,
    /// Its disk starts as that of this checkpoint; empty when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_checkpoint: Option<CheckpointId>,
    /// What the image it is made from says of its commands. The variables of an image are in `envs`.
    #[serde(default, skip_serializing_if = "ImageSettings::is_empty")]
    pub image: ImageSettings,
}

/// What a sandbox is, as its node last saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub id: SandboxId,
    pub state: SandboxState,
    /// Grows with every change of this sandbox; kept across restarts of the node.
    pub generation: u64,
    /// Why it is in [`SandboxState::Error`], in words for its owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Something that was tried and did not work, in words for its owner; it is tried again, or waits for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
    /// Its size, once the node has one in force for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// When its present processes began, in milliseconds since the Unix epoch; while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes_since_ms: Option<u64>,
    /// While it runs: it was resumed from memory, so its processes are those from before. While it hibernates: its memory
    /// is kept.
    #[serde(default)]
    pub memory_kept: bool,
    /// How far the patches of the checkpoint it came from were applied.
    #[serde(default)]
    pub patches: PatchProgress,
}

/// How far patches were applied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PatchProgress {
    /// Sequence number of the last one that succeeded; 0 when none has.
    pub applied: u32,
    /// Why the next one failed, when it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A line of the stream of changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Change {
    Checkpoint(Box<CheckpointReport>),
    Sandbox(Report),
}

/// How a sandbox is to be started again.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Reboot {
    /// Without asking its processes to end first.
    pub hard: bool,
}

/// How a sandbox is to wake.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Wake {
    /// With the disk as it was when it hibernated the time before the last; for a disk that was refused as damaged.
    #[serde(default)]
    pub previous_disk: bool,
}

/// What a running sandbox uses.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Usage {
    pub id: SandboxId,
    /// Memory that cannot be taken back without harm: without caches of files.
    pub memory_bytes: u64,
    /// That of a virtual machine is what its host has given it, caches of its files included: only its own kernel knows more.
    #[serde(default)]
    pub with_caches: bool,
}

// === impl Report ===

impl Report {
    /// A report with nothing but the state.
    #[must_use]
    pub fn new(id: SandboxId, state: SandboxState, generation: u64) -> Self {
        Self {
            id,
            state,
            generation,
            reason: None,
            warning: None,
            size: None,
            processes_since_ms: None,
            memory_kept: false,
            patches: PatchProgress::default(),
        }
    }
}

/// New idle time-out, in seconds; 0 = never. Restarts the timer.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Timeout {
    pub timeout_seconds: u32,
}

/// What a node is and has.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeInfo {
    pub id: String,
    pub version: String,
    /// What sandboxes get that do not ask for another.
    pub isolation: Isolation,
    /// All that it offers.
    #[serde(default)]
    pub isolations: Vec<Isolation>,
    pub templates: Vec<String>,
    pub cpus: u32,
    pub memory_mb: u64,
    pub disk_free_mb: u64,
    pub sandboxes_running: u32,
}
