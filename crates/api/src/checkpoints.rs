//! Checkpoints, forks and patches.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use warren_types::EgressPolicy;

/// Body of `POST …/checkpoints`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointCreate {
    /// Unique among the checkpoints of its sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `full` (when absent) or `disk_only`. What it really holds is in `holds` of the checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promote_to_full: Option<bool>,
    #[serde(
        default,
        deserialize_with = "warren_types::object::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub retention_policy: Option<RetentionPolicy>,
}

/// Which older checkpoints go when the new one is ready.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RetentionPolicy {
    /// `none` (when absent) or `delete_oldest`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Of this kind, the new one included; as many as are allowed when absent.
    #[serde(
        default,
        deserialize_with = "warren_types::whole::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub max_count: Option<i64>,
}

/// A checkpoint as clients see it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Checkpoint {
    pub id: String,
    pub org_id: String,
    pub sandbox_id: String,
    pub name: String,
    /// As it was asked for: `full` or `disk_only`.
    pub kind: String,
    /// *Additive.* What it holds: `disk`, or `memory` with the disk and every process.
    #[serde(default)]
    pub holds: String,
    /// `processing`, `ready` or `failed`.
    pub status: String,
    /// *Additive.* The state it holds was taken: what is written from then on is not in it.
    #[serde(default)]
    pub captured: bool,
    /// *Additive.* Whether it outlives the machine it is on.
    #[serde(default)]
    pub durable: bool,
    /// *Additive.* Where it is kept: `local`.
    #[serde(default)]
    pub location: String,
    /// *Additive.* `quiesced`: everything stood still, all that had been written is in it. `crash`: the sandbox did not come
    /// to rest in time, as after a loss of power; so is the disk alone of a virtual machine, without what its guest had not
    /// written out. Absent until it is captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency: Option<String>,
    /// *Additive.* How long the sandbox stood still, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_ms: Option<f64>,
    /// Bytes of data in it; 0 until it is ready.
    pub size_bytes: u64,
    pub is_public: bool,
    /// What the sandbox was made with, as it was at that moment.
    pub sandbox_config: SandboxConfig,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_msg: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub failed_at: Option<Timestamp>,
}

/// The settings of a sandbox, with which another can be made.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxConfig {
    #[serde(rename = "templateID", default, skip_serializing_if = "Option::is_none")]
    pub template_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u32>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub envs: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// The name of its own secret store, as that is called now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_store: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_count: Option<u32>,
    /// MiB.
    #[serde(rename = "memoryMB", default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u32>,
    /// MiB.
    #[serde(rename = "diskMB", default, skip_serializing_if = "Option::is_none")]
    pub disk_mb: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_enabled: Option<bool>,
    /// *Additive.*
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub start_commands: Vec<String>,
}

/// Answer of `POST …/restore`: strings only, because clients read it so.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Restoring {
    pub sandbox_id: String,
    pub checkpoint_id: String,
    /// `restoring`; later calls wait for its end.
    pub status: String,
}

/// Body of `POST /api/sandboxes/from-checkpoint/{cid}`. All fields are optional.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Fork {
    /// Seconds without use after which it hibernates. 0 or absent = never; negative counts as 0.
    #[serde(
        default,
        deserialize_with = "warren_types::whole::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub timeout: Option<i64>,
    /// Over those of the checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envs: Option<BTreeMap<String, String>>,
    /// Over those of the checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, String>>,
    /// MiB; raised to what the checkpoint had, and to the next tier.
    #[serde(
        rename = "memoryMB",
        default,
        deserialize_with = "warren_types::whole::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub memory_mb: Option<i64>,
    /// *Additive.* Requires a token of who asks for its previews; not taken over from the checkpoint's sandbox.
    #[serde(
        default,
        deserialize_with = "warren_types::object::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub preview_auth: Option<crate::previews::PreviewAuth>,
    /// Name of a secret store, over those the checkpoint's sandbox had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_store: Option<String>,
    /// *Additive.* Hosts it may reach, besides those the checkpoint's sandbox might.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_allowlist: Option<Vec<String>>,
    /// *Additive.* As for a create, over those of the checkpoint's sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_allowed_hosts: Option<BTreeMap<String, Vec<String>>>,
    /// *Additive.* What it may reach, instead of what the checkpoint's sandbox itself was given.
    #[serde(
        default,
        deserialize_with = "warren_types::object::optional",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<crate::egress::PolicyShape>)]
    pub egress: Option<EgressPolicy>,
}

/// Body of `POST …/patches`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct PatchCreate {
    /// Run as `bash -c` by the user `sandbox`, for at most 300 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// A script for every sandbox made from a checkpoint.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Patch {
    pub id: String,
    pub checkpoint_id: String,
    /// From 1; the number of a deleted one is not used again.
    pub sequence: u32,
    pub script: String,
    pub description: String,
    /// `on_wake`: on every transition to running.
    pub strategy: String,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

/// Answer of `POST …/patches`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PatchCreated {
    pub patch: Patch,
}

/// *Additive.* One run of a patch in one sandbox.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PatchRun {
    pub sequence: u32,
    /// Absent when it never got to run, or its end is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Both streams, the newest 16 KiB of each.
    pub stdout: String,
    pub stderr: String,
    #[schema(value_type = String, format = DateTime)]
    pub started_at: Timestamp,
    /// Present when it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
