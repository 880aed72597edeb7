//! What a sandbox may reach.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use warren_types::{EgressMode, EgressPolicy, EgressRule};

/// Answer of `GET …/allowed-hosts`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AllowedHosts {
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
    /// The store of its uppermost layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_store: Option<String>,
    /// The store below that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_secret_store: Option<String>,
    /// Hosts it may reach; none stands for no restriction, unless `policy` says otherwise.
    pub egress_allowlist: Vec<String>,
    /// Where its secrets are put in; those without a restriction are left out.
    pub per_secret_allowed_hosts: BTreeMap<String, Vec<String>>,
    /// *Additive.* What is in force.
    #[serde(default)]
    #[schema(value_type = PolicyShape)]
    pub policy: EgressPolicy,
    /// *Additive.* What was refused of late, newest first.
    #[serde(default)]
    pub blocked: Vec<Blocked>,
}

/// *Additive.* Attempts of one kind that were refused.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Blocked {
    /// A name where one is known, otherwise an address.
    pub host: String,
    /// 0 for a question for a name.
    pub port: u16,
    pub reason: String,
    pub count: u64,
    /// The last of them.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
}

/// *Additive.* Answer of `GET` and `PUT …/egress`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Egress {
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
    /// What the sandbox itself was given.
    #[schema(value_type = PolicyShape)]
    pub policy: EgressPolicy,
    /// What is in force: `policy` with the lists of its secret stores.
    #[schema(value_type = PolicyShape)]
    pub effective: EgressPolicy,
}

/// *Additive.* Body of `PUT …/egress`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EgressChange {
    /// `open`, `allowlist` or `none`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub mode: Option<EgressMode>,
    /// Of the mode `allowlist`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Option<Vec<RuleShape>>)]
    pub allow: Vec<EgressRule>,
}

/// What a sandbox may reach.
// The document shows this for `EgressPolicy`, whose crate knows nothing of documents.
#[derive(ToSchema)]
#[schema(as = EgressPolicy)]
pub struct PolicyShape {
    /// `open`: everything but what no sandbox may reach. `allowlist`: what the rules name. `none`: nothing.
    pub mode: String,
    /// Of the mode `allowlist`.
    pub allow: Option<Vec<RuleShape>>,
}

/// One host, or the hosts of a pattern, and what may be done there.
// Likewise for `EgressRule`.
#[derive(ToSchema)]
#[schema(as = EgressRule)]
pub struct RuleShape {
    /// `example.com`; `*.example.com` for everything below it; `*`.
    pub host: String,
    /// 80 and 443 when absent.
    pub ports: Option<Vec<u16>>,
    /// HTTP methods in capitals; all when absent.
    pub methods: Option<Vec<String>>,
    /// What the path has to begin with; all when absent.
    pub paths: Option<Vec<String>>,
}
