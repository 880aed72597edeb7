//! Tags.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Answer of `GET` and `PUT …/tags`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxTags {
    pub tags: BTreeMap<String, String>,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub tags_last_updated_at: Option<Timestamp>,
}

/// Answer of `GET /api/tags`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TagKeys {
    pub keys: Vec<TagKey>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TagKey {
    pub key: String,
    pub sandbox_count: u64,
    pub value_count: u64,
}
