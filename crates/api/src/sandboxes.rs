//! Sandboxes.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use warren_types::EgressPolicy;

use crate::previews::PreviewAuth;

/// Body of `POST /api/sandboxes`. All fields are optional.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxCreate {
    /// Template to start from; `base` when absent.
    #[serde(rename = "templateID", alias = "template", default, skip_serializing_if = "Option::is_none")]
    pub template_id: Option<String>,
    /// Seconds without use after which it hibernates. 0 = never; negative counts as 0.
    #[serde(
        default,
        deserialize_with = "warren_types::whole::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub timeout: Option<i64>,
    /// Environment of everything started in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envs: Option<BTreeMap<String, String>>,
    /// Stored with the sandbox and returned; fixed at create.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    #[serde(
        default,
        deserialize_with = "warren_types::whole::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub cpu_count: Option<i64>,
    /// MiB.
    #[serde(
        rename = "memoryMB",
        default,
        deserialize_with = "warren_types::whole::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub memory_mb: Option<i64>,
    /// MiB.
    #[serde(
        rename = "diskMB",
        default,
        deserialize_with = "warren_types::whole::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub disk_mb: Option<i64>,
    /// Whether it may open connections to the outside; true when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_enabled: Option<bool>,
    /// *Additive.* What keeps it apart from the host: `container` (shared kernel) or `vm` (a kernel of its own). The server
    /// has a default; what it cannot do it refuses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<String>,
    /// *Additive.* Tags to start with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<BTreeMap<String, String>>,
    /// *Additive.* Shell commands (`bash -c`, user `sandbox`) that are started whenever the sandbox begins to run: when it is
    /// made, woken, rebooted, restored or forked, where its processes are not kept. No call waits for them; they are listed
    /// like any other command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_commands: Option<Vec<String>>,
    /// Name of a secret store: its secrets become environment variables with sealed tokens, its list narrows what the sandbox
    /// may reach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_store: Option<String>,
    /// Hosts the sandbox may reach: `example.com`, `*.example.com`, `*`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_allowlist: Option<Vec<String>>,
    /// For some of its secrets, by name: where they are put in, of the hosts that the secret itself allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_allowed_hosts: Option<BTreeMap<String, Vec<String>>>,
    /// *Additive.* What it may reach; `egressAllowlist` adds to its rules.
    #[serde(
        default,
        deserialize_with = "warren_types::object::optional",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<crate::egress::PolicyShape>)]
    pub egress: Option<EgressPolicy>,
    /// Requires a token of who asks for its previews.
    #[serde(
        default,
        deserialize_with = "warren_types::object::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub preview_auth: Option<PreviewAuth>,
    /// An image to start from, built first unless it was built before: a manifest ([`crate::images::ImageManifest`]), or
    /// *additive* the name of one in a registry, such as `node:22`. With `Accept: text/event-stream` the answer is a stream
    /// of events, [`crate::images::BuildLog`] among them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<crate::images::ImageManifest>)]
    pub image: Option<serde_json::Value>,
    /// Name of a snapshot to start from: `name`, which is its newest version, or `name@3`. Streams like `image`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// *Additive.* For an `image` whose base is in a registry that asks who is there. Not kept.
    #[serde(
        default,
        deserialize_with = "warren_types::object::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub registry_auth: Option<crate::images::RegistryLogin>,
    /// Where the hosted service puts a sandbox and what from. Here there is no choice to make: they are read, so that one of another
    /// type is refused by name, and have no effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(ignore)]
    pub burst: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(ignore)]
    pub sandbox_family: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(ignore)]
    pub cell_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(ignore)]
    pub image_ref: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(ignore)]
    pub template_rootfs_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(ignore)]
    pub template_workspace_key: Option<String>,
    /// Port of the default preview name of the hosted service; here a preview is named with its port.
    #[serde(
        default,
        deserialize_with = "warren_types::whole::optional",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(ignore)]
    pub port: Option<i64>,
    /// Fields that protect or change what runs. This server does not have the abilities behind them yet and refuses a
    /// request that sets one.
    #[serde(flatten)]
    #[schema(ignore)]
    pub not_yet: NotYet,
}

/// Fields of [`SandboxCreate`] that are refused by name rather than ignored.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NotYet {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhooks: Option<serde_json::Value>,
}

impl NotYet {
    /// Names of the fields that are set to something other than null or an empty list, which is all that means nothing.
    #[must_use]
    pub fn named(&self) -> Vec<&'static str> {
        let fields = [("webhooks", &self.webhooks)];
        let is_set = |value: &serde_json::Value| match value {
            serde_json::Value::Array(items) => !items.is_empty(),
            value => !value.is_null(),
        };
        fields
            .into_iter()
            .filter(|(_, value)| value.as_ref().is_some_and(is_set))
            .map(|(name, _)| name)
            .collect()
    }
}

/// A sandbox as clients see it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
    /// `running`, `hibernated`, `stopped`, `error`; `creating` for a moment in lists.
    pub status: String,
    #[serde(rename = "templateID")]
    pub template_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    pub region: String,
    #[serde(rename = "workerID", default, skip_serializing_if = "Option::is_none")]
    pub worker_id: Option<String>,
    pub cpu_count: u32,
    /// MiB.
    #[serde(rename = "memoryMB")]
    pub memory_mb: u32,
    /// MiB.
    #[serde(rename = "diskMB", default)]
    pub disk_mb: u32,
    /// Idle time-out in seconds; 0 = never.
    #[serde(default)]
    pub timeout: u32,
    #[schema(value_type = String, format = DateTime)]
    pub started_at: Timestamp,
    /// When it stopped; absent while it can still be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub end_at: Option<Timestamp>,
    pub metadata: BTreeMap<String, String>,
    pub tags: BTreeMap<String, String>,
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(serialize_with = "crate::tags::to_the_millisecond")]
    pub tags_last_updated_at: Option<Timestamp>,
    /// Credential for this sandbox's commands, files and terminals; while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Base URL that [`Self::token`] is for; ends in `/api`.
    #[serde(rename = "connectURL", default, skip_serializing_if = "Option::is_none")]
    pub connect_url: Option<String>,
    /// Where its previews are: `{sandboxID}-p{port}.` and this, which includes the server's port where a URL needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox_domain: Option<String>,
    /// What opens its previews; in the answer of the create alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preview_auth_token: Option<String>,
    /// *Additive.* What keeps it apart from the host: `container` (shared kernel) or `vm` (a kernel of its own).
    #[serde(default)]
    pub isolation: String,
    /// *Additive.* Why `status` is `error`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_reason: Option<String>,
    /// *Additive.* Something that was tried for it and did not work, and what becomes of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
    /// *Additive.* Grows with each change of `status`.
    #[serde(default)]
    pub generation: u64,
    /// The checkpoint it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_checkpoint_id: Option<String>,
    /// Why the last run of its checkpoint's patches failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patch_error: Option<String>,
    /// *Additive.* What hibernating keeps: `disk` (processes end; start commands run again when it wakes) or `memory`
    /// (everything goes on where it was).
    #[serde(default)]
    pub hibernation_keeps: String,
    /// *Additive.* When its present processes began: later than `startedAt` when they ended meanwhile. While it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub processes_since: Option<Timestamp>,
}

/// Query of `GET /api/sandboxes`; all additive. Without any, the newest 200 of every status.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SandboxListQuery {
    /// Comma-separated list of statuses.
    #[serde(default)]
    pub status: Option<String>,
    /// At most this many, 1 to 200.
    #[serde(default)]
    pub limit: Option<String>,
    /// From the `X-Next-Cursor` header of the page before.
    #[serde(default)]
    pub cursor: Option<String>,
    // `metadata.<key>=<value>` and `tag.<key>=<value>` are read from the raw query.
}

/// *Additive.* Header of a list that has more: pass its value as `cursor`.
pub const NEXT_CURSOR_HEADER: &str = "x-next-cursor";

/// Body of `POST …/timeout`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct TimeoutChange {
    /// Seconds; 0 = never.
    #[serde(
        default,
        deserialize_with = "warren_types::whole::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub timeout: Option<i64>,
}

/// Body of `POST …/wake`; may be absent.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct Wake {
    /// Replaces the idle time-out. Seconds; 0 = never.
    #[serde(
        default,
        deserialize_with = "warren_types::whole::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub timeout: Option<i64>,
    /// *Additive.* `previous`: with the disk as it was before it last woke; for a disk that was refused as damaged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
}

/// Answer of `POST …/wake`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Woken {
    #[serde(flatten)]
    pub sandbox: Sandbox,
    /// *Additive.* What became of its processes: `running` (it was awake), `kept`, or `restarted` (they had ended; its start
    /// commands were started again).
    #[serde(default)]
    pub processes: String,
}

/// Answer of `POST …/hibernate`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Hibernated {
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
    pub status: String,
    /// *Additive.* What was kept: `disk` or `memory`.
    #[serde(default)]
    pub keeps: String,
}
