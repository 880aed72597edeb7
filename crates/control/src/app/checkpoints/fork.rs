//! Forking: a new sandbox that starts with the disk of a checkpoint.

use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use warren_api::checkpoints::Fork;
use warren_types::{CheckpointId, Error, ErrorKind};

use super::checkpoint_not_found;
use super::derive::Over;
use crate::app::App;
use crate::app::auth::Caller;
use crate::app::idempotency;
use crate::app::sandboxes::create::{CreateError, Created};
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
        body: Fork,
        idempotency_key: Option<String>,
        base: String,
    ) -> Result<Created, CreateError> {
        let row = self.find_forkable(caller, id).await?;
        let key = idempotency_key.map(|key| identify(key, id, &body)).transpose()?;
        let over = Over::try_from(body)?;
        let row = self.wait_until_made(caller, row).await?;
        if row.status != Status::Ready {
            return Err(self.not_ready(caller, &row).await.into());
        }
        let wanted = over.onto(caller.org(), row, None)?;
        match self.create_wanted(caller, wanted, key, base).await {
            Err(CreateError::Other(error)) => Err(self.refused_by_node(caller, id, error).await.into()),
            done => done,
        }
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

fn identify(key: String, checkpoint: &CheckpointId, body: &Fork) -> Result<IdempotencyKey, Error> {
    idempotency::check(&key)?;
    let body = serde_json::to_vec(&(checkpoint, body))
        .map_err(|error| Error::internal(format!("a request has no JSON form: {error}")))?;
    Ok(IdempotencyKey { key, body_hash: warren_types::hex(&Sha256::digest(&body)) })
}
