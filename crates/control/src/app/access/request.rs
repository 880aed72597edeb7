//! What a request asks a sandbox to be given, checked.

use std::collections::BTreeMap;

use warren_types::{EgressMode, EgressPolicy, EgressRule, Error, HostPattern};

use super::policy::add;
use crate::store::access::{AccessRecord, SecretHosts};

/// Entries of one list of hosts.
const MAX_HOSTS: usize = 100;
/// Rules of a sandbox's own policy. With [`super::prepare::MAX_LAYERS`] lists on top it is one that can be applied.
const MAX_RULES: usize = 200;
/// Secrets whose hosts a create may narrow.
const MAX_SECRET_HOSTS: usize = 100;

/// What a create or a fork asks for.
#[derive(Debug, Clone, Default)]
pub(crate) struct AccessWanted {
    /// A store by its name.
    pub store: Option<String>,
    /// The sandbox's own policy, and with a fork what is inherited.
    pub record: AccessRecord,
    /// Narrower hosts for secrets that it must have.
    pub secret_hosts: SecretHosts,
    /// Of a fork: what was in force in the sandbox its checkpoint is of, in case one of its stores is gone.
    pub inherited_effective: Option<EgressPolicy>,
}

impl AccessWanted {
    pub(crate) fn is_nothing(&self) -> bool {
        self.store.is_none() && self.record.is_nothing() && self.secret_hosts.is_empty()
    }
}

/// The fields of a request that say what may be reached.
#[derive(Debug, Clone, Default)]
pub(crate) struct PolicyFields {
    pub network_enabled: Option<bool>,
    pub egress: Option<EgressPolicy>,
    pub egress_allowlist: Option<Vec<String>>,
}

impl PolicyFields {
    /// One policy out of them; fields that contradict each other are refused, so that none is passed over.
    pub(crate) fn policy(self) -> Result<Option<EgressPolicy>, Error> {
        let list = hosts("egressAllowlist", self.egress_allowlist.unwrap_or_default())?;
        let mode = self.egress.as_ref().map(|policy| policy.mode);
        let off = match (self.network_enabled, mode) {
            (Some(false), None | Some(EgressMode::None)) | (None, Some(EgressMode::None)) => true,
            (Some(false), Some(_)) => {
                return Err(Error::invalid(
                    "networkEnabled is false, but egress allows something; leave one of them out",
                ));
            }
            (Some(true), Some(EgressMode::None)) => {
                return Err(Error::invalid(
                    "networkEnabled is true, but egress.mode is none; leave one of them out",
                ));
            }
            (_, _) => false,
        };
        if off && !list.is_empty() {
            return Err(Error::invalid(
                "egressAllowlist names hosts, but the network is off; leave one of them out",
            ));
        }
        if mode == Some(EgressMode::Open) && !list.is_empty() {
            return Err(Error::invalid(
                "egress.mode is open, but egressAllowlist names hosts; leave one of them out",
            ));
        }
        if off {
            return checked(self.egress.unwrap_or_else(EgressPolicy::none)).map(Some);
        }
        let own = self.egress.map(checked).transpose()?;
        if list.is_empty() {
            return Ok(own.filter(|own| own.mode != EgressMode::Open));
        }
        checked(with_hosts(own.unwrap_or_default(), list)).map(Some)
    }
}

/// A list of these hosts, besides those of the policy.
pub(crate) fn with_hosts(policy: EgressPolicy, hosts: Vec<HostPattern>) -> EgressPolicy {
    let mut allow = policy.allow;
    for host in hosts {
        add(&mut allow, EgressRule::host(host));
    }
    EgressPolicy { mode: EgressMode::Allowlist, allow }
}

/// A policy that can be applied, with all that may come to it.
pub(crate) fn checked(policy: EgressPolicy) -> Result<EgressPolicy, Error> {
    policy.check().map_err(|error| Error::invalid(format!("egress: {error}")))?;
    if policy.allow.len() > MAX_RULES {
        return Err(Error::invalid(format!(
            "egress may have {MAX_RULES} rules (got {})",
            policy.allow.len()
        )));
    }
    Ok(policy)
}

/// A list of hosts, each once.
pub(crate) fn hosts(field: &str, texts: Vec<String>) -> Result<Vec<HostPattern>, Error> {
    if texts.len() > MAX_HOSTS {
        return Err(Error::invalid(format!("{field} may have {MAX_HOSTS} entries (got {})", texts.len())));
    }
    let mut hosts = Vec::new();
    for text in texts {
        if text.trim().is_empty() {
            return Err(Error::invalid(format!("{field} entries cannot be empty")));
        }
        let host: HostPattern =
            text.trim().parse().map_err(|error| Error::invalid(format!("{field}: {error}")))?;
        if !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    Ok(hosts)
}

/// Hosts of secrets, by name. A secret without any is not narrowed.
pub(crate) fn secret_hosts(field: Option<BTreeMap<String, Vec<String>>>) -> Result<SecretHosts, Error> {
    let field = field.unwrap_or_default();
    if field.len() > MAX_SECRET_HOSTS {
        return Err(Error::invalid(format!(
            "secretAllowedHosts may name {MAX_SECRET_HOSTS} secrets (got {})",
            field.len()
        )));
    }
    let mut narrowed = SecretHosts::new();
    for (name, texts) in field {
        let hosts = hosts(&format!("secretAllowedHosts.{name}"), texts)?;
        if !hosts.is_empty() {
            narrowed.insert(name, hosts);
        }
    }
    Ok(narrowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(json: serde_json::Value) -> Result<Option<EgressPolicy>, Error> {
        let body: warren_api::sandboxes::SandboxCreate = serde_json::from_value(json).unwrap();
        PolicyFields {
            network_enabled: body.network_enabled,
            egress: body.egress,
            egress_allowlist: body.egress_allowlist,
        }
        .policy()
    }

    #[test]
    fn fields_become_one_policy() {
        let shown = |json| serde_json::to_value(fields(json).unwrap()).unwrap();
        use serde_json::json;
        assert_eq!(shown(json!({})), json!(null));
        assert_eq!(
            shown(json!({"networkEnabled": true, "egress": {"mode": "open"}, "egressAllowlist": []})),
            json!(null)
        );
        assert_eq!(shown(json!({"networkEnabled": false})), json!({"mode": "none"}));
        assert_eq!(shown(json!({"egress": {"mode": "none"}})), json!({"mode": "none"}));
        assert_eq!(shown(json!({"egress": {"mode": "allowlist"}})), json!({"mode": "allowlist"}));
        assert_eq!(
            shown(json!({"egressAllowlist": ["A.com.", "a.com", "*"]})),
            json!({"mode": "allowlist", "allow": [{"host": "a.com"}, {"host": "*"}]})
        );
        assert_eq!(
            shown(
                json!({"egress": {"mode": "allowlist", "allow": [{"host": "b.com", "ports": [22]}]}, "egressAllowlist": ["a.com"]})
            ),
            json!({"mode": "allowlist", "allow": [{"host": "b.com", "ports": [22]}, {"host": "a.com"}]})
        );
        for contradiction in [
            json!({"networkEnabled": false, "egressAllowlist": ["a.com"]}),
            json!({"networkEnabled": false, "egress": {"mode": "open"}}),
            json!({"networkEnabled": false, "egress": {"mode": "allowlist"}}),
            json!({"networkEnabled": true, "egress": {"mode": "none"}}),
            json!({"egress": {"mode": "none"}, "egressAllowlist": ["a.com"]}),
            json!({"egress": {"mode": "open"}, "egressAllowlist": ["a.com"]}),
            json!({"egress": {"mode": "none", "allow": [{"host": "a.com"}]}}),
            json!({"egressAllowlist": [" "]}),
            json!({"egressAllowlist": ["a b"]}),
            json!({"egressAllowlist": vec!["a.com"; 101]}),
        ] {
            assert!(fields(contradiction.clone()).is_err(), "{contradiction}");
        }
    }
}
