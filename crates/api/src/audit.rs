//! Audit records. All of this is *additive*.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One thing that was done, tried or seen. Records of an organisation form a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditRecord {
    /// Counts from 1, without a gap.
    pub seq: i64,
    /// When it was written, RFC 3339.
    #[schema(format = DateTime)]
    pub at: String,
    pub org: String,
    #[serde(rename = "sandboxID", default, skip_serializing_if = "Option::is_none")]
    pub sandbox_id: Option<String>,
    /// Such as `exec`, `file.write`, `sandbox.create`, `network`.
    pub kind: String,
    /// Who did it: `key:` and a key's id, `sandbox_token`, `signed_url`, `preview`, `sandbox` (a program in it), `server`.
    pub actor: String,
    /// `X-Request-Id` of the request that it belongs to.
    #[serde(rename = "requestID", default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// What was done; which fields there are depends on the kind.
    #[schema(value_type = Object)]
    pub detail: serde_json::Value,
    /// SHA-256 over the hash before it and this record, in hexadecimal digits.
    pub hash: String,
}

/// Where the chain of an organisation begins and ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditExport {
    /// Of the form of records.
    pub version: u32,
    pub org: String,
    /// Records up to this one were removed for their age; 0 when none was.
    pub after: i64,
    /// The hash of that one.
    pub after_hash: String,
    /// The server's seal over organisation, number and hash of that one, when there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_mac: Option<String>,
    pub head: AuditHead,
}

/// The newest record of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditHead {
    /// 0 when there is no record yet.
    pub seq: i64,
    pub hash: String,
    /// The server's seal over organisation, number and hash.
    pub mac: String,
}
