//! Previews: what listens on a port of a sandbox, under a host name of its own.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Header that opens the previews of a sandbox which requires a token.
pub const PREVIEW_TOKEN_HEADER: &str = "x-oc-preview-token";

/// `previewAuth` of a create or a fork: who asks for a preview must show a token.
#[derive(Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct PreviewAuth {
    /// `bearer`, the only one there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
    /// At least 16 visible characters. `auto`, empty or absent: the server makes one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

impl std::fmt::Debug for PreviewAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PreviewAuth").field("scheme", &self.scheme).finish_non_exhaustive()
    }
}

/// Body of `POST …/preview`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PreviewCreate {
    /// 1 to 65535.
    #[serde(
        default,
        deserialize_with = "warren_types::whole::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub port: Option<i64>,
    /// A domain of the organisation, as the operator of the server knows it: the preview has a second name there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Must be absent or empty: `previewAuth` of a create is what protects previews.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub auth_config: Option<serde_json::Value>,
}

/// A preview that was registered. Ports can be opened without that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Preview {
    pub id: String,
    pub sandbox_id: String,
    pub org_id: String,
    /// Host name, with the server's port where it is not the usual one; without a scheme.
    pub hostname: String,
    /// The second name, where a `domain` was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom_hostname: Option<String>,
    pub port: u16,
    pub ssl_status: String,
    pub auth_config: BTreeMap<String, String>,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// *Additive.* Where a browser finds it.
    #[serde(default)]
    pub url: String,
}

/// Answer of `POST …/preview/rotate`.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PreviewTokenRotated {
    /// Shown this once.
    pub preview_auth_token: String,
    pub scheme: String,
}

/// *Additive.* Body of `POST …/preview/{port}/share`; may be absent.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PreviewShareCreate {
    /// Seconds; 3600 when absent or not positive, 604800 at most.
    #[serde(
        default,
        deserialize_with = "warren_types::whole::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub expires_in: Option<i64>,
}

/// *Additive.* A link that opens one preview in a browser, without a token.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PreviewShare {
    pub url: String,
    /// RFC 3339, UTC. Rotating the token ends it earlier.
    pub expires_at: String,
}
