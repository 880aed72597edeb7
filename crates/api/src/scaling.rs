//! More or less memory for a sandbox, by hand and by itself.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of `POST …/scale`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct Scale {
    /// MiB: 1024, 4096, 8192 or 16384. The vCPUs follow.
    #[serde(
        rename = "memoryMB",
        default,
        deserialize_with = "warren_types::whole::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub memory_mb: Option<i64>,
    /// As in a create: read, and without effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(ignore)]
    pub burst: Option<bool>,
}

/// Answer of `POST …/scale`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Scaled {
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
    #[serde(rename = "workerID")]
    pub worker_id: String,
    #[serde(rename = "memoryMB")]
    pub memory_mb: u32,
    /// vCPUs times 100.
    pub cpu_percent: u32,
    pub migrated: bool,
    pub ok: bool,
    /// Whether it was scaling by itself until now: that ends when it is scaled by hand.
    pub autoscale_disabled: bool,
}

/// Body of `PUT …/autoscale`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct AutoscaleChange {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// MiB, a tier; the smallest when absent.
    #[serde(
        rename = "minMemoryMB",
        default,
        deserialize_with = "warren_types::whole::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub min_memory_mb: Option<i64>,
    /// MiB, a tier; the largest when absent.
    #[serde(
        rename = "maxMemoryMB",
        default,
        deserialize_with = "warren_types::whole::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub max_memory_mb: Option<i64>,
}

/// Answer of `GET` and `PUT …/autoscale`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Autoscale {
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
    pub enabled: bool,
    /// 0 when never set.
    #[serde(rename = "minMemoryMB")]
    pub min_memory_mb: u32,
    /// 0 when never set.
    #[serde(rename = "maxMemoryMB")]
    pub max_memory_mb: u32,
}

/// Body of `PUT …/scaling-lock`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct ScalingLockChange {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locked: Option<bool>,
}

/// Answer of `GET` and `PUT …/scaling-lock`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ScalingLock {
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
    pub locked: bool,
}
