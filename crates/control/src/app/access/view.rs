//! What a sandbox may reach, as its owner sees and changes it.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use warren_api::egress::{AllowedHosts, Blocked, Egress, EgressChange};
use warren_types::{EgressPolicy, Error, SandboxId, SandboxState};

use super::policy::{effective, hosts_of, narrowed};
use super::push::in_time;
use super::request::checked;
use crate::app::App;
use crate::app::audit::Kind;
use crate::app::auth::{Caller, sandbox_not_found};
use crate::store::access::Access;

/// How long a node may take to say what it has refused.
const REPORT_DEADLINE: Duration = Duration::from_secs(2);
/// Of what a node says was refused, this much is shown. Names in it are of a guest's choosing.
const MAX_BLOCKED: usize = 100;
const MAX_HOST_CHARS: usize = 255;
const MAX_REASON_CHARS: usize = 300;

impl App {
    /// Neither wakes the sandbox nor counts as use.
    pub(crate) async fn allowed_hosts(&self, caller: &Caller, id: &SandboxId) -> Result<AllowedHosts, Error> {
        let access = self.store.find_access(caller.org(), id).await?.ok_or_else(sandbox_not_found)?;
        let policy = in_force(&access);
        let mut names = access.stores.iter().rev().map(|store| store.name.clone());
        let (secret_store, base_secret_store) = (names.next(), names.next());
        let per_secret = access.tokens.iter().filter_map(|(_, secret)| {
            let narrower = access.secret_hosts.get(&secret.name).map(Vec::as_slice).unwrap_or_default();
            let restricted = !secret.allowed_hosts.is_empty() || !narrower.is_empty();
            let hosts = narrowed(&secret.allowed_hosts, narrower).unwrap_or_default();
            restricted.then(|| (secret.name.clone(), hosts.iter().map(ToString::to_string).collect()))
        });
        Ok(AllowedHosts {
            sandbox_id: id.to_string(),
            secret_store,
            base_secret_store,
            egress_allowlist: hosts_of(&policy),
            per_secret_allowed_hosts: per_secret.collect(),
            policy,
            blocked: if can_be_used(&access) { self.blocked(id).await } else { Vec::new() },
        })
    }

    pub(crate) async fn get_egress(&self, caller: &Caller, id: &SandboxId) -> Result<Egress, Error> {
        let access = self.store.find_access(caller.org(), id).await?.ok_or_else(sandbox_not_found)?;
        Ok(Egress {
            sandbox_id: id.to_string(),
            effective: in_force(&access),
            policy: access.policy.unwrap_or_default(),
        })
    }

    /// Replaces a sandbox's own policy; answers when it is in force. The node first: what is stored is what counts there.
    pub(crate) async fn set_egress(
        self: &Arc<Self>,
        caller: &Caller,
        id: &SandboxId,
        body: EgressChange,
    ) -> Result<Egress, Error> {
        self.usable_standing(caller, id).await?;
        let mode = body.mode.ok_or_else(|| Error::invalid("mode is required: open, allowlist or none"))?;
        let policy = checked(EgressPolicy { mode, allow: body.allow })?;
        let (app, org, id) = (Arc::clone(self), caller.org().clone(), id.clone());
        let rules: Vec<String> = policy.allow.iter().map(|rule| rule.host.to_string()).collect();
        let note = caller.note(Kind::Policy).of(&id).with("mode", json!(mode)).with("allow", rules);
        self.change(note, async move {
            let _turn = app.access_changes.turn(&id).await;
            let mut access = app.store.find_access(&org, &id).await?.ok_or_else(sandbox_not_found)?;
            access.policy = Some(policy);
            let effective = in_force(&access);
            effective.check().map_err(|error| Error::invalid(format!("egress: {error}")))?;
            let report = in_time(app.node.ensure_egress(&id, &effective)).await?;
            app.store.apply_report(&report).await?;
            let policy = access.policy.unwrap_or_default();
            app.store.set_policy(&id, &policy).await?;
            Ok(Egress { sandbox_id: id.to_string(), policy, effective })
        })
        .await
    }

    /// What was refused of late; nothing when the node cannot say.
    async fn blocked(&self, id: &SandboxId) -> Vec<Blocked> {
        let report = match tokio::time::timeout(REPORT_DEADLINE, self.node.get_egress(id)).await {
            Ok(Ok(report)) => report,
            Ok(Err(error)) => {
                tracing::debug!(sandbox = %id, %error, "the node does not say what it has refused");
                return Vec::new();
            }
            Err(_) => return Vec::new(),
        };
        let shown = report.blocked.into_iter().take(MAX_BLOCKED).map(|one| Blocked {
            host: plain(&one.host, MAX_HOST_CHARS),
            port: one.port,
            reason: plain(&one.reason, MAX_REASON_CHARS),
            count: one.count,
            at: i64::try_from(one.at_ms)
                .ok()
                .and_then(|ms| Timestamp::from_millisecond(ms).ok())
                .unwrap_or_default(),
        });
        shown.collect()
    }
}

fn in_force(access: &Access) -> EgressPolicy {
    effective(access.policy.as_ref(), access.stores.iter().map(|store| store.egress_allowlist.as_slice()))
}

fn can_be_used(access: &Access) -> bool {
    matches!(access.observed, SandboxState::Running | SandboxState::Hibernated)
}

fn plain(text: &str, max: usize) -> String {
    text.chars().filter(|character| !character.is_control()).take(max).collect()
}
