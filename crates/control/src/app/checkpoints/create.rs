//! Create a checkpoint.

use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use warren_api::checkpoints::{Checkpoint, CheckpointCreate, RetentionPolicy};
use warren_node_api::{CAPTURE_WAIT_SECONDS, CheckpointCreate as Order, CheckpointReport};
use warren_types::{CheckpointId, Error, ErrorKind, SandboxId, SandboxState};

use crate::app::App;
use crate::app::audit::{Kind as Audited, facts};
use crate::app::auth::{Caller, sandbox_not_found};
use crate::app::guest::from_node;
use crate::app::idempotency;
use crate::store::checkpoints::change::{Inserted, MadeFor, NewCheckpoint};
use crate::store::checkpoints::{CheckpointRow, Kind, Status};
use crate::store::idempotency::IdempotencyKey;

const MAX_NAME_BYTES: usize = 128;
/// What a node gets beyond the time it lets us wait.
const NODE_DEADLINE: Duration = Duration::from_secs(CAPTURE_WAIT_SECONDS + 10);

/// What a request asks for, checked.
#[derive(Debug, Clone)]
pub(crate) struct CreateCheckpoint {
    name: String,
    kind: Kind,
    keep: Option<u32>,
}

impl TryFrom<CheckpointCreate> for CreateCheckpoint {
    type Error = Error;

    fn try_from(body: CheckpointCreate) -> Result<Self, Error> {
        let name = body.name.unwrap_or_default();
        if name.trim().is_empty() {
            return Err(Error::invalid("name is required"));
        }
        if name.len() > MAX_NAME_BYTES || name.contains(char::is_control) {
            return Err(Error::invalid(format!(
                "name must be at most {MAX_NAME_BYTES} bytes without control characters"
            )));
        }
        let kind = match body.kind.as_deref() {
            None | Some("" | "full") => Kind::Full,
            Some("disk_only") => Kind::DiskOnly,
            Some(_) => return Err(Error::invalid("kind must be full or disk_only")),
        };
        if body.promote_to_full.is_some() && kind != Kind::DiskOnly {
            return Err(Error::invalid("promoteToFull is only supported for disk_only checkpoints"));
        }
        let keep = body.retention_policy.map_or(Ok(None), |policy| keep(&policy, kind))?;
        Ok(Self { name, kind, keep })
    }
}

fn keep(policy: &RetentionPolicy, kind: Kind) -> Result<Option<u32>, Error> {
    let limit = limit(kind);
    match policy.mode.as_deref() {
        None | Some("" | "none") => return Ok(None),
        Some("delete_oldest") => {}
        Some(_) => {
            return Err(Error::invalid(
                "unsupported checkpoint retention policy; the modes are none and delete_oldest",
            ));
        }
    }
    match policy.max_count.map(u32::try_from) {
        // Clients written in Go send 0 for what was not set.
        None | Some(Ok(0)) => Ok(Some(limit)),
        Some(Ok(count)) if count <= limit => Ok(Some(count)),
        Some(_) => Err(Error::invalid(format!(
            "retentionPolicy.maxCount must be between 1 and {limit} for {} checkpoints",
            kind.as_str()
        ))),
    }
}

/// Checkpoints of one kind that a sandbox may have.
fn limit(kind: Kind) -> u32 {
    match kind {
        Kind::Full => 10,
        Kind::DiskOnly => 100,
    }
}

impl App {
    /// Answers when the checkpoint is captured: what was written before the request is in it, what is written after the
    /// answer is not. Only a disk with very much to write out takes longer than clients wait; the answer then comes before.
    pub(crate) async fn create_checkpoint(
        self: &Arc<Self>,
        caller: &Caller,
        sandbox: &SandboxId,
        body: CheckpointCreate,
        idempotency_key: Option<String>,
    ) -> Result<Checkpoint, Error> {
        let standing = self.standing_in_any_state(caller, sandbox).await?;
        let key = idempotency_key.map(|key| identify(key, sandbox, &body)).transpose()?;
        let create = CreateCheckpoint::try_from(body)?;
        match standing.observed {
            SandboxState::Running | SandboxState::Hibernated => {}
            SandboxState::Creating | SandboxState::Stopped | SandboxState::Error => {
                return Err(Error::invalid("sandbox must be running to create a checkpoint"));
            }
        }
        let (app, caller, sandbox) = (Arc::clone(self), caller.clone(), sandbox.clone());
        let note = caller.note(Audited::CheckpointCreate).of(&sandbox).with("name", create.name.as_str());
        let note = note.with("kind", create.kind.as_str());
        self.to_the_end(async move {
            let make = app.create_checkpoint_once(&caller, &sandbox, create, key);
            app.audit.around_with(note, make, |made| facts([("checkpoint", made.id.as_str().into())])).await
        })
        .await
    }

    async fn create_checkpoint_once(
        self: &Arc<Self>,
        caller: &Caller,
        sandbox: &SandboxId,
        create: CreateCheckpoint,
        key: Option<IdempotencyKey>,
    ) -> Result<Checkpoint, Error> {
        let _turn = match &key {
            Some(key) => Some(self.key_turns.turn(&(caller.org().clone(), key.key.clone())).await),
            None => None,
        };
        if let Some(key) = &key
            && let Some(row) = self.find_checkpoint_with_key(caller, key).await?
        {
            return self.checkpoint_view(row).await;
        }
        let row = self.store.find_sandbox(caller.org(), sandbox).await?.ok_or_else(sandbox_not_found)?;
        let new = NewCheckpoint {
            id: CheckpointId::generate(),
            org: caller.org().clone(),
            sandbox_id: sandbox.clone(),
            node_id: row.node_id,
            name: create.name,
            kind: create.kind,
            limit: limit(create.kind),
            keep: create.keep,
            metadata: row.metadata,
            alias: row.alias,
            idempotency: key,
            access: self.store.find_access_record(sandbox).await?,
            made_for: MadeFor::Owner,
        };
        // The reconciler keeps off while the node has not heard of it.
        let _flight = self.checkpoints_in_flight.begin(&new.id);
        match self.store.insert_checkpoint(&new).await? {
            Inserted::Yes => {}
            Inserted::Taken => {
                return Err(Error::conflict(
                    "checkpoint name already exists for this sandbox; choose another or delete that one",
                ));
            }
            Inserted::LimitReached => {
                return Err(Error::invalid(format!(
                    "maximum {} {} checkpoints per sandbox; delete one, or let the oldest go with a retentionPolicy of \
                     delete_oldest",
                    new.limit,
                    new.kind.as_str()
                )));
            }
        }
        let made = async {
            let report = self.make_on_node(&new).await?;
            self.take_checkpoint_report(&report).await
        };
        if let Err(error) = made.await {
            // Nobody was told of it.
            self.delete_checkpoint_row(&new.id).await?;
            return Err(error);
        }
        self.answer_created(&new.id).await
    }

    pub(in crate::app) async fn make_on_node(&self, new: &NewCheckpoint) -> Result<CheckpointReport, Error> {
        let order = Order { sandbox_id: new.sandbox_id.clone(), disk_only: new.kind == Kind::DiskOnly };
        let made = tokio::time::timeout(NODE_DEADLINE, self.node.ensure_checkpoint(&new.id, &order)).await;
        let report = made
            .unwrap_or_else(|_| Err(Error::unavailable("the node took too long to take the checkpoint")))
            .map_err(from_node)?;
        match &report.error {
            Some(why) if !report.captured => {
                Err(Error::unavailable(format!("the checkpoint could not be taken: {why}")))
            }
            _ => Ok(report),
        }
    }

    /// The checkpoint as it was when it was captured. It may be further by now; whoever follows the contract lists it
    /// until it is.
    async fn answer_created(&self, id: &CheckpointId) -> Result<Checkpoint, Error> {
        let row = self.store.find_checkpoint(id).await?;
        let row =
            row.ok_or_else(|| Error::new(ErrorKind::Gone, "the checkpoint was deleted while it was made"))?;
        Ok(match row.status {
            Status::Ready => Checkpoint {
                status: Status::Processing.as_str().to_owned(),
                size_bytes: 0,
                ..self.checkpoint_view(row).await?
            },
            Status::Processing | Status::Failed | Status::Deleting => self.checkpoint_view(row).await?,
        })
    }

    async fn find_checkpoint_with_key(
        &self,
        caller: &Caller,
        key: &IdempotencyKey,
    ) -> Result<Option<CheckpointRow>, Error> {
        let Some(earlier) = self.store.find_keyed_checkpoint(caller.org(), &key.key).await? else {
            return Ok(None);
        };
        if earlier.body_hash != key.body_hash {
            return Err(Error::conflict(
                "this Idempotency-Key was used for a different request; use a new one",
            )
            .with_code("idempotency_key_conflict"));
        }
        let id = earlier.id.parse::<CheckpointId>();
        let id = id.map_err(|error| Error::internal(format!("a stored key names no checkpoint: {error}")))?;
        Ok(self.store.find_checkpoint(&id).await?)
    }
}

fn identify(key: String, sandbox: &SandboxId, body: &CheckpointCreate) -> Result<IdempotencyKey, Error> {
    idempotency::check(&key)?;
    let body = serde_json::to_vec(&(sandbox, body))
        .map_err(|error| Error::internal(format!("a request has no JSON form: {error}")))?;
    Ok(IdempotencyKey { key, body_hash: warren_types::hex(&Sha256::digest(&body)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: serde_json::Value) -> Result<CreateCheckpoint, Error> {
        serde_json::from_value::<CheckpointCreate>(json).unwrap().try_into()
    }

    #[test]
    fn what_is_left_out_and_what_is_wrong() {
        let plain = parse(serde_json::json!({"name": "a"})).unwrap();
        assert_eq!((plain.kind, plain.keep), (Kind::Full, None));
        let keep = |count: i64| {
            let policy = serde_json::json!({"mode": "delete_oldest", "maxCount": count});
            parse(serde_json::json!({"name": "a", "retentionPolicy": policy})).map(|create| create.keep)
        };
        assert_eq!((keep(0).unwrap(), keep(1).unwrap(), keep(10).unwrap()), (Some(10), Some(1), Some(10)));
        for count in [-1, 11, i64::MAX] {
            assert!(keep(count).unwrap_err().message.contains("between 1 and 10 for full"));
        }
        for (body, says) in [
            (serde_json::json!({}), "name is required"),
            (serde_json::json!({"name": " "}), "name is required"),
            (serde_json::json!({"name": "x".repeat(129)}), "at most 128 bytes"),
            (serde_json::json!({"name": "a\nb"}), "control characters"),
            (serde_json::json!({"name": "a", "kind": "half"}), "kind must be full or disk_only"),
            (serde_json::json!({"name": "a", "promoteToFull": true}), "promoteToFull is only supported"),
            (
                serde_json::json!({"name": "a", "retentionPolicy": {"mode": "newest"}}),
                "unsupported checkpoint retention policy",
            ),
        ] {
            assert!(parse(body).unwrap_err().message.contains(says), "{says}");
        }
        let disk =
            parse(serde_json::json!({"name": "a", "kind": "disk_only", "promoteToFull": true})).unwrap();
        assert_eq!(disk.kind, Kind::DiskOnly);
    }
}
