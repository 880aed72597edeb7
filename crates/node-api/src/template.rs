//! Templates, and the space that they and checkpoints take.
//!
//! A template is a read-only file system that disks are laid over. `base` is always there; the others are images of
//! registries and archives, flattened into one file system and named after what they were made of, so that the same image
//! is there once.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use warren_guest_api::boot::User;
use warren_types::{CheckpointId, Error, Secret};

use crate::egress::{enclose, expose};

/// What an image says of the commands of sandboxes made from it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSettings {
    /// Whose they are; `sandbox` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<User>,
    /// Where they start; the user's home when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
}

/// An image that a registry is asked about.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageLookup {
    /// `[registry/]repository[:tag][@digest]`, as container engines write it.
    pub reference: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<RegistryAuth>,
}

/// An image to fetch from a registry.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TemplateImport {
    /// As in [`ImageLookup`].
    pub reference: String,
    /// Of [`ResolvedImage`]: this is fetched, whatever the reference stands for by now. Where the node has it already the
    /// registry is not asked, nor whom it would let in: that is for whoever knows the digest to have done.
    pub digest: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<RegistryAuth>,
}

/// What a reference stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedImage {
    /// Of the image's manifest for this node's platform, `sha256:…`.
    pub digest: String,
}

/// Who asks a registry. Kept for as long as one import goes on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RegistryAuth {
    pub username: String,
    #[serde(serialize_with = "expose", deserialize_with = "enclose")]
    pub password: Secret<String>,
}

/// One line of an import. Nothing follows a template or an error.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TemplateLine {
    Progress(Import),
    Template(Box<TemplateReport>),
    Error(Error),
}

/// How far an import is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    /// What is being done, in words.
    pub message: String,
    /// Bytes of the image that have come, as they are stored there.
    pub done_bytes: u64,
    /// Absent until it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
}

/// A template that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateReport {
    /// What a sandbox's `template` says: `base`, or `oci-` and 32 hexadecimal digits.
    pub name: String,
    /// As it was asked for when it was made; absent where it came as an archive that names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Of the image's manifest, `sha256:…`. Of `base`: that of its file system.
    pub digest: String,
    pub settings: ImageSettings,
    /// Its variables.
    #[serde(default)]
    pub envs: BTreeMap<String, String>,
    /// What a container engine would start; told, not started.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    #[serde(default)]
    pub cmd: Vec<String>,
    /// Of its file system on the volume, in bytes.
    pub size_bytes: u64,
    /// Milliseconds since the Unix epoch.
    pub created_at_ms: u64,
}

/// What the volume holds. Files share blocks, so sums over them say too much: `used_bytes` counts each block once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Space {
    pub volume_bytes: u64,
    pub free_bytes: u64,
    /// Blocks of all templates and checkpoints together, each counted once, in bytes.
    pub used_bytes: u64,
    /// By name.
    pub templates: BTreeMap<String, Held>,
    pub checkpoints: BTreeMap<CheckpointId, Held>,
}

/// What one template or checkpoint takes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// All of its data, shared or not.
    pub bytes: u64,
    /// What would come back if it were removed: blocks that nothing else has.
    pub own_bytes: u64,
    /// Sandboxes and checkpoints that are laid over it; for a template.
    #[serde(default)]
    pub users: u32,
}

// === impl ImageSettings ===

impl ImageSettings {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
