//! Images, and the names they go by.
//!
//! An image is a manifest: a base and steps. It is built once into a checkpoint, found again by the hash of its content, and
//! sandboxes are made from that. A snapshot is an image with a name; each build under the same name is a new version of it.
//!
//! | event of a build | data |
//! | --- | --- |
//! | `build_log` | [`BuildLog`] |
//! | `error` | [`BuildError`]; the last one |
//! | `result` | [`Snapshot`], or the sandbox of a create; the last one |

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What an image is made of.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageManifest {
    /// `base` (also when empty or absent, `default` or `ubuntu`); or *additive* a reference to an image of a registry
    /// (`node:22`, `ghcr.io/owner/name@sha256:…`), `snapshot:NAME[@VERSION]` or `checkpoint:ID`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    #[serde(default)]
    pub steps: Vec<ImageStep>,
    /// MiB of the sandbox that runs the steps.
    #[serde(
        rename = "builderMemoryMB",
        default,
        deserialize_with = "warren_types::whole::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub builder_memory_mb: Option<i64>,
    /// MiB that sandboxes made from it have at least.
    #[serde(
        rename = "runtimeMemoryMB",
        default,
        deserialize_with = "warren_types::whole::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub runtime_memory_mb: Option<i64>,
    /// Makes the built image a snapshot of that name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// One step: its type, and its arguments under `args` or *additive* beside it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ImageStep {
    /// `apt_install`, `pip_install`, `run`, `env`, `workdir`, `add_file` or `add_dir`.
    #[serde(rename = "type", default)]
    pub kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub args: Option<serde_json::Map<String, serde_json::Value>>,
    /// Arguments that were written beside the type.
    #[serde(flatten)]
    #[schema(ignore)]
    pub beside: serde_json::Map<String, serde_json::Value>,
}

/// Body of `POST /api/snapshots`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotCreate {
    #[serde(default)]
    pub name: String,
    /// As in a create of a sandbox.
    #[schema(value_type = ImageManifest)]
    #[serde(default)]
    pub image: Option<serde_json::Value>,
    /// *Additive.* A name that is taken gets another version instead of 409.
    #[serde(default)]
    pub new_version: bool,
    /// *Additive.* What keeps its sandboxes apart, `container` or `vm`; the server's own when absent. It is built for the other
    /// one too when a create asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<String>,
    /// *Additive.* For a base in a registry that asks who is there. Not kept.
    #[serde(
        default,
        deserialize_with = "warren_types::object::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub registry_auth: Option<RegistryLogin>,
}

/// Who asks a registry.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct RegistryLogin {
    pub username: String,
    pub password: String,
}

/// An image as clients see it; `name` and `version` make it a snapshot.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    pub id: String,
    pub org_id: String,
    /// Of base (and what its tag stood for) and steps, with sorted keys; the same whichever SDK sent them.
    pub content_hash: String,
    /// What sandboxes are made from; absent until it is built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// *Additive.* From 1, for each name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// As it was sent.
    #[schema(value_type = ImageManifest)]
    pub manifest: serde_json::Value,
    /// `building`, `ready` or `failed`.
    pub status: String,
    /// *Additive.* Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// *Additive.* What keeps its sandboxes apart, `container` or `vm`.
    #[serde(default)]
    pub isolation: String,
    /// *Additive.* All organisations may make sandboxes from it.
    #[serde(default)]
    pub public: bool,
    /// *Additive.* Bytes of data of its disk over its base, shared with other images or not.
    #[serde(default)]
    pub size_bytes: u64,
    /// *Additive.* Variables of everything started in sandboxes made from it.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// *Additive.* Where commands start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    pub last_used_at: Timestamp,
}

/// Line of a build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BuildLog {
    /// From 1; 0 before the first step and after the last.
    pub step: u32,
    /// `resolve`, `pull`, `cache_hit`, `build`, `checkpoint`, `create`, or the type of the step.
    #[serde(rename = "type")]
    pub kind: String,
    pub message: String,
}

/// Why a build failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BuildError {
    pub error: String,
}

/// Body of `POST /api/templates`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct TemplateCreate {
    #[serde(default)]
    pub name: String,
    /// Comments and one `FROM`. What else a Dockerfile says is built by a container engine and brought here as an archive.
    #[serde(default)]
    pub dockerfile: String,
}

/// A template as the SDKs see it: `base`, or a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Template {
    /// What `templateID` of a create takes.
    #[serde(rename = "templateID")]
    pub template_id: String,
    pub name: String,
    /// Its newest version.
    pub tag: String,
    /// `building`, `ready` or `failed`.
    pub status: String,
}

/// Answer of `POST …/publish` and `…/unpublish`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Published {
    pub name: String,
    pub public: bool,
}

/// Answer of `GET /api/images/usage`: what images take of the volume, each block counted once.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageUsage {
    /// Bytes of all images, layers and templates of every organisation together.
    pub used_bytes: u64,
    /// Above this, what is not used is removed, the longest unused first; 0 = never.
    pub budget_bytes: u64,
    pub volume_bytes: u64,
    pub free_bytes: u64,
}

// === impl RegistryLogin ===

impl std::fmt::Debug for RegistryLogin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryLogin").field("username", &self.username).finish_non_exhaustive()
    }
}
