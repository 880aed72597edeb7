//! What the gateway of the simulated node was told. Nothing is sent anywhere.

use std::collections::{HashMap, VecDeque};

use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;
use warren_node_api::{
    Blocked, EgressReport, FormerSecret, GrantedSecret, NetworkEvent, NetworkEvents, NetworkEventsQuery,
    Report, SecretGrant, SecretUse, SecretUses, SecretUsesQuery,
};
use warren_types::{EgressPolicy, Error, SandboxId};

use super::{Answer, SimNode, unknown};

#[derive(Default)]
pub(crate) struct Gateway {
    pub(crate) grants: HashMap<SandboxId, Vec<GrantedSecret>>,
    pub(crate) former: HashMap<SandboxId, Vec<FormerSecret>>,
    /// Calls so far: of secrets, of policies.
    pub(crate) secret_calls: usize,
    pub(crate) policy_calls: usize,
    /// Neither is taken in.
    pub(crate) deaf: bool,
    pub(crate) blocked: Vec<Blocked>,
    /// Batches to come, and the number of the first of them.
    pub(crate) uses: VecDeque<Vec<SecretUse>>,
    /// What the gateway has decided and nobody has taken.
    pub(crate) events: Vec<NetworkEvent>,
    pub(crate) first_batch: u64,
}

impl SimNode {
    /// Name, token, value and hosts of each secret that a sandbox has.
    pub(crate) fn secrets_of(&self, id: &str) -> Vec<(String, String, String, Vec<String>)> {
        let node = self.state();
        let mut secrets: Vec<_> = node
            .egress
            .grants
            .get(&id.parse().unwrap())
            .into_iter()
            .flatten()
            .map(|one| {
                let hosts = one.hosts.iter().map(ToString::to_string).collect();
                (one.name.clone(), one.token.clone(), one.value.expose().clone(), hosts)
            })
            .collect();
        secrets.sort();
        secrets
    }

    /// Tokens and values of what its secrets were, the newest first.
    pub(crate) fn former_of(&self, id: &str) -> Vec<(String, String)> {
        let node = self.state();
        let former = node.egress.former.get(&id.parse().unwrap()).into_iter().flatten();
        former.map(|one| (one.secret.token.clone(), one.secret.value.expose().clone())).collect()
    }

    /// Only names and values.
    pub(crate) fn values_of(&self, id: &str) -> Vec<(String, String)> {
        self.secrets_of(id).into_iter().map(|(name, _, value, _)| (name, value)).collect()
    }

    pub(crate) fn policy_of(&self, id: &str) -> serde_json::Value {
        serde_json::to_value(&self.state().sandboxes[&id.parse().unwrap()].spec.egress).unwrap()
    }

    pub(crate) fn envs_of(&self, id: &str) -> std::collections::BTreeMap<String, String> {
        self.state().sandboxes[&id.parse().unwrap()].spec.envs.clone()
    }
}

fn listening(gateway: &Gateway) -> Result<(), Error> {
    if gateway.deaf { Err(Error::unavailable("the gateway is away")) } else { Ok(()) }
}

pub(super) async fn set_policy(
    State(node): State<SimNode>,
    Path(id): Path<SandboxId>,
    Json(policy): Json<EgressPolicy>,
) -> Answer<Json<Report>> {
    let mut node = node.state();
    node.egress.policy_calls += 1;
    listening(&node.egress)?;
    policy.check().map_err(|error| Error::invalid(error.to_string()))?;
    let sandbox = node.sandboxes.get_mut(&id).ok_or_else(unknown)?;
    sandbox.spec.egress = policy;
    Ok(Json(sandbox.report.clone()))
}

pub(super) async fn report(
    State(node): State<SimNode>,
    Path(id): Path<SandboxId>,
) -> Answer<Json<EgressReport>> {
    let node = node.state();
    listening(&node.egress)?;
    node.sandboxes.get(&id).ok_or_else(unknown)?;
    Ok(Json(EgressReport { blocked: node.egress.blocked.clone() }))
}

pub(super) async fn set_secrets(
    State(node): State<SimNode>,
    Path(id): Path<SandboxId>,
    Json(grant): Json<SecretGrant>,
) -> Answer<StatusCode> {
    let mut node = node.state();
    node.egress.secret_calls += 1;
    listening(&node.egress)?;
    node.egress.former.insert(id.clone(), grant.former);
    node.egress.grants.insert(id, grant.secrets);
    Ok(StatusCode::NO_CONTENT)
}

/// Each question is taken to acknowledge what the one before was answered.
pub(super) async fn events(
    State(node): State<SimNode>,
    Json(query): Json<NetworkEventsQuery>,
) -> Answer<Json<NetworkEvents>> {
    let mut node = node.state();
    let events = std::mem::take(&mut node.egress.events);
    Ok(Json(NetworkEvents { batch: query.acknowledged + u64::from(!events.is_empty()), events }))
}

pub(super) async fn uses(
    State(node): State<SimNode>,
    Json(query): Json<SecretUsesQuery>,
) -> Answer<Json<SecretUses>> {
    let mut node = node.state();
    let gateway = &mut node.egress;
    if query.acknowledged == gateway.first_batch + 1 && gateway.uses.pop_front().is_some() {
        gateway.first_batch += 1;
    }
    match gateway.uses.front() {
        Some(uses) => Ok(Json(SecretUses { batch: gateway.first_batch + 1, uses: uses.clone() })),
        None => Ok(Json(SecretUses { batch: gateway.first_batch, uses: Vec::new() })),
    }
}
