//! What a sandbox may reach, and the secrets that are put in for it on the way.
//!
//! Policies are part of a sandbox's [`crate::SandboxSpec`] and written down with it. Values of secrets are not: a node
//! keeps them in memory, is given them before the sandbox is made and again after each of its starts, and until then
//! lets nothing sealed out.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use warren_types::{HostPattern, SandboxId, Secret};

/// All secrets of one sandbox; replaces those it had. An id that the node has no sandbox of is one that is about to be
/// made.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SecretGrant {
    pub secrets: Vec<GrantedSecret>,
    /// What they were, the newest first: looked for in replies and not put in. A node knows what it was granted before;
    /// these are from before it started or its sandbox slept as well.
    #[serde(default)]
    pub former: Vec<FormerSecret>,
}

/// A secret as it was before it was changed or removed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FormerSecret {
    #[serde(flatten)]
    pub secret: GrantedSecret,
    /// Until when it is looked for, in milliseconds since the Unix epoch.
    pub until_ms: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GrantedSecret {
    pub name: String,
    /// What stands for it inside: `osb_sealed_` and 32 hexadecimal digits.
    pub token: String,
    #[serde(serialize_with = "expose", deserialize_with = "enclose")]
    pub value: Secret<String>,
    /// Where it is put in; empty stands for every host that the policy allows.
    pub hosts: Vec<HostPattern>,
    /// In which parts of a request.
    pub places: Vec<Place>,
}

/// A part of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// Values of headers, and inside those of basic authentication.
    Header,
    /// The query of the address.
    Query,
    Body,
}

/// What was refused of late, newest first.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct EgressReport {
    pub blocked: Vec<Blocked>,
}

/// Attempts of one kind, counted together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocked {
    /// A name where one is known, otherwise an address.
    pub host: String,
    /// 0 for a question for a name.
    pub port: u16,
    /// What stopped it, in words for the sandbox's owner.
    pub reason: String,
    pub count: u64,
    /// The last time, in milliseconds since the Unix epoch.
    pub at_ms: u64,
}

/// Asks for what was used since the batch that is acknowledged; 0 acknowledges none.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct SecretUsesQuery {
    pub acknowledged: u64,
}

/// Uses of secrets. The same batch is answered until it is acknowledged.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SecretUses {
    pub batch: u64,
    pub uses: Vec<SecretUse>,
}

/// Requests that one secret was put into for one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretUse {
    pub sandbox: SandboxId,
    pub name: String,
    pub host: String,
    pub count: u64,
    /// The last time, in milliseconds since the Unix epoch.
    pub at_ms: u64,
}

/// Asks for events since the batch that is acknowledged; 0 acknowledges none.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct NetworkEventsQuery {
    pub acknowledged: u64,
    /// Also what is still being counted.
    #[serde(default)]
    pub all: bool,
}

/// What gateways decided. The same batch is answered until it is acknowledged.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NetworkEvents {
    pub batch: u64,
    pub events: Vec<NetworkEvent>,
}

/// Decisions of one kind. The first in a minute is told at once; those that repeat it are counted and told when the minute
/// is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkEvent {
    pub sandbox: SandboxId,
    #[serde(flatten)]
    pub kind: NetworkEventKind,
    /// A name where one is known, otherwise an address.
    pub host: String,
    /// 0 for a question for a name.
    pub port: u16,
    pub count: u64,
    /// Stands for more kinds than are counted apart: the host is one of them.
    #[serde(default)]
    pub folded: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum NetworkEventKind {
    Allowed {
        /// Of a request that was read.
        method: Option<String>,
    },
    Refused {
        /// What stopped it, in words for the sandbox's owner.
        rule: String,
    },
    SecretUse {
        name: String,
    },
}

/// The few calls that carry values are what this is for.
pub(crate) fn expose<S: Serializer>(secret: &Secret<String>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.expose())
}

pub(crate) fn enclose<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Secret<String>, D::Error> {
    String::deserialize(deserializer).map(Secret::new)
}
