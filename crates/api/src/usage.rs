//! What sandboxes were given and used. GB are 1024 MB.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Answer of `GET /api/usage`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    #[schema(value_type = String, format = DateTime)]
    pub from: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    pub to: Timestamp,
    pub group_by: String,
    /// Of everything that passes the filters, on all pages.
    pub total: UsageAmount,
    /// With a tag: what passes the filters and lacks it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub untagged: Option<UsageOfMany>,
    pub items: Vec<UsageItem>,
    pub next_cursor: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UsageAmount {
    /// Memory that running sandboxes were given, used or not.
    pub memory_gb_seconds: f64,
    /// Disk beyond 20480 MB, of running and of hibernated sandboxes.
    pub disk_overage_gb_seconds: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UsageOfMany {
    #[serde(flatten)]
    pub amount: UsageAmount,
    pub sandbox_count: u64,
}

/// Of one sandbox, or of those with one value of the tag.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum UsageItem {
    Sandbox(UsageOfSandbox),
    Tag(UsageOfTag),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UsageOfSandbox {
    pub sandbox_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    pub tags: BTreeMap<String, String>,
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(serialize_with = "crate::tags::to_the_millisecond")]
    pub tags_last_updated_at: Option<Timestamp>,
    #[serde(flatten)]
    pub amount: UsageAmount,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UsageOfTag {
    pub tag_key: String,
    pub tag_value: String,
    #[serde(flatten)]
    pub usage: UsageOfMany,
}

/// Answer of `GET …/usage` of a sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxUsage {
    pub sandbox_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    #[schema(value_type = String, format = DateTime)]
    pub from: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    pub to: Timestamp,
    pub totals: SandboxUsageTotals,
    /// One for each minute in which it ran, oldest first. Their sums are the totals.
    pub points: Vec<SandboxUsagePoint>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxUsageTotals {
    pub memory_allocated_gb_seconds: f64,
    pub memory_used_gb_seconds: f64,
    pub uptime_seconds: i64,
    pub memory_allocated_peak_mb: i64,
    pub memory_used_peak_mb: i64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxUsagePoint {
    /// When the minute began.
    #[schema(value_type = String, format = DateTime)]
    pub ts: Timestamp,
    pub memory_allocated_gb_seconds: f64,
    /// From samples, the first a few seconds after it began to run, then every half minute; 0 while there is none.
    pub memory_used_gb_seconds: f64,
    pub uptime_seconds: i64,
    pub allocated_memory_mb: i64,
    pub used_memory_mb_avg: i64,
    pub used_memory_mb_peak: i64,
}
