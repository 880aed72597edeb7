//! Forking: a new sandbox that starts with the disk of a checkpoint.

use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use warren_api::checkpoints::Fork;
use warren_node_api::SandboxSpec;
use warren_types::{CheckpointId, EgressMode, EgressPolicy, Error, ErrorKind, OrgId};

use super::{checkpoint_not_found, not_ready};
use crate::app::App;
use crate::app::access::remove_given;
use crate::app::access::request::{AccessWanted, PolicyFields, checked, secret_hosts, with_hosts};
use crate::app::auth::{Caller, hex};
use crate::app::idempotency;
use crate::app::previews::wanted_token;
use crate::app::sandboxes::create::{CreateError, Created};
use crate::app::sandboxes::request::{Wanted, checked_envs, checked_metadata, timeout_or_never};
use crate::store::access::AccessRecord;
use crate::store::checkpoints::{CheckpointRow, Status};
use crate::store::idempotency::IdempotencyKey;

/// How long a fork waits for a checkpoint that is still being made.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// A change that was missed is seen after this.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

impl App {
    pub(crate) async fn fork_checkpoint(
        self: &Arc<Self>,
        caller: &Caller,
        id: &CheckpointId,
        mut body: Fork,
        idempotency_key: Option<String>,
        base: String,
    ) -> Result<Created, CreateError> {
        let row = self.find_forkable(caller, id).await?;
        let key = idempotency_key.map(|key| identify(key, id, &body)).transpose()?;
        let timeout_seconds = timeout_or_never(body.timeout)?;
        let preview_token = wanted_token(body.preview_auth.take())?;
        let row = self.wait_until_made(caller, row).await?;
        if row.status != Status::Ready {
            return Err(not_ready(&row).into());
        }
        let Some(spec) = row.spec else {
            return Err(Error::internal("a ready checkpoint says nothing of its sandbox").into());
        };
        let access = access(caller, &row.org, row.access, &spec, &mut body)?;
        let mut envs = spec.envs.clone();
        remove_given(&mut envs);
        envs.extend(body.envs.unwrap_or_default());
        let mut metadata = row.metadata;
        metadata.extend(body.metadata.unwrap_or_default());
        let size = spec.size.with_memory_between_this_and_largest(body.memory_mb.unwrap_or(0));
        let wanted = Wanted {
            isolation: Some(spec.isolation),
            spec: SandboxSpec {
                size,
                envs: checked_envs(envs)?,
                timeout_seconds,
                from_checkpoint: Some(id.clone()),
                egress: EgressPolicy::default(),
                sealed: false,
                ..spec
            },
            alias: None,
            metadata: checked_metadata(metadata)?,
            tags: Default::default(),
            access,
            preview_token,
        };
        self.create_wanted(caller, wanted, key, base).await
    }

    /// A checkpoint the caller may fork: theirs, or a public one.
    async fn find_forkable(&self, caller: &Caller, id: &CheckpointId) -> Result<CheckpointRow, Error> {
        let row = self.store.find_checkpoint(id).await?.ok_or_else(checkpoint_not_found)?;
        if row.org == *caller.org() || row.is_public {
            return Ok(row);
        }
        Err(Error::new(
            ErrorKind::Forbidden,
            "this checkpoint belongs to another organisation, which has not published it",
        ))
    }

    async fn wait_until_made(&self, caller: &Caller, row: CheckpointRow) -> Result<CheckpointRow, Error> {
        let deadline = tokio::time::Instant::now() + READY_WITHIN;
        let mut row = row;
        while row.status == Status::Processing && tokio::time::Instant::now() < deadline {
            let changed = self.checkpoint_changed.notified();
            tokio::pin!(changed);
            // Listens from here on, so that nothing is missed between the look and the wait.
            changed.as_mut().enable();
            row = self.find_forkable(caller, &row.id).await?;
            if row.status == Status::Processing {
                let _ = tokio::time::timeout(LOOK_AGAIN, changed).await;
            }
        }
        Ok(row)
    }
}

/// What a fork is given: that of the checkpoint's sandbox, and over it what the request says. Stores are their
/// organisation's own, so a fork of somebody else's checkpoint has none of its.
fn access(
    caller: &Caller,
    owner: &OrgId,
    inherited: AccessRecord,
    spec: &SandboxSpec,
    body: &mut Fork,
) -> Result<AccessWanted, Error> {
    let asked = PolicyFields {
        network_enabled: None,
        egress: body.egress.take(),
        egress_allowlist: body.egress_allowlist.take(),
    };
    let replaces = asked.egress.is_some();
    let asked = asked.policy()?;
    let policy = match (inherited_policy(inherited.policy, spec), asked) {
        (_, asked) if replaces => asked,
        (own, None) => own,
        (None, Some(asked)) => Some(asked),
        (Some(own), Some(_)) if own.mode == EgressMode::None => {
            return Err(Error::invalid(
                "the checkpoint's sandbox had no network; say egress instead of egressAllowlist to give the fork one",
            ));
        }
        (Some(own), Some(asked)) => {
            Some(checked(with_hosts(own, asked.allow.into_iter().map(|rule| rule.host).collect()))?)
        }
    };
    let ours = caller.org() == owner;
    Ok(AccessWanted {
        store: body.secret_store.take().filter(|name| !name.is_empty()),
        record: AccessRecord {
            stores: if ours { inherited.stores } else { Vec::new() },
            policy,
            secret_hosts: if ours { inherited.secret_hosts } else { Default::default() },
        },
        secret_hosts: secret_hosts(body.secret_allowed_hosts.take())?,
        inherited_effective: ours.then(|| spec.egress.clone()),
    })
}

/// The own policy of a checkpoint's sandbox. One from before there were others is in its spec alone.
fn inherited_policy(policy: Option<EgressPolicy>, spec: &SandboxSpec) -> Option<EgressPolicy> {
    policy.or_else(|| (spec.egress.mode == EgressMode::None).then(EgressPolicy::none))
}

fn identify(key: String, checkpoint: &CheckpointId, body: &Fork) -> Result<IdempotencyKey, Error> {
    idempotency::check(&key)?;
    let body = serde_json::to_vec(&(checkpoint, body))
        .map_err(|error| Error::internal(format!("a request has no JSON form: {error}")))?;
    Ok(IdempotencyKey { key, body_hash: hex(&Sha256::digest(&body)) })
}
