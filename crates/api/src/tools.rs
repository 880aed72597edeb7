//! Tools of a sandbox for models: what there is, and calls. *Additive.*

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Answer of `POST …/tools/{name}`. What goes wrong in a tool is said in `content`, for the model that called it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ToolResult {
    pub content: Vec<ToolText>,
    pub is_error: bool,
    /// The same in fields, without what is long; which ones depends on the tool.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub structured: serde_json::Value,
}

/// A piece of a [`ToolResult`].
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ToolText {
    /// `text`
    #[serde(rename = "type")]
    pub kind: String,
    pub text: String,
}

impl ToolText {
    #[must_use]
    pub fn new(text: String) -> Self {
        Self { kind: "text".to_owned(), text }
    }
}
