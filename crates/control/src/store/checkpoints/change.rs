//! What changes rows of checkpoints. Each function is one transaction, and each says in its WHERE what it must not
//! overwrite.

use warren_node_api::{CheckpointReport, CheckpointState, Consistency, Holds, SandboxSpec};
use warren_types::{CheckpointId, OrgId, SandboxId, tags::Tags};

use super::{CheckpointRow, Kind, RawCheckpoint, with_columns};
use crate::store::access::AccessRecord;
use crate::store::idempotency::IdempotencyKey;
use crate::store::sandboxes::change::stored;
use crate::store::sandboxes::{column, to_json};
use crate::store::{Store, StoreError, now_micros};

/// What may be deleted to make room: whole, not shared, and of no use to anybody who still lives.
macro_rules! dispensable {
    () => {
        "status = 'ready' AND is_public = 0 \
         AND NOT EXISTS (SELECT 1 FROM checkpoint_patches p WHERE p.checkpoint_id = checkpoints.id) \
         AND NOT EXISTS (SELECT 1 FROM sandboxes s WHERE s.from_checkpoint = checkpoints.id \
         AND s.observed <> 'stopped')"
    };
}

#[derive(Debug, Clone)]
pub(crate) struct NewCheckpoint {
    pub id: CheckpointId,
    pub org: OrgId,
    pub sandbox_id: SandboxId,
    pub node_id: String,
    pub name: String,
    pub kind: Kind,
    /// Of its kind and sandbox, this one included.
    pub limit: u32,
    /// How many of its kind are to be left once it is ready.
    pub keep: Option<u32>,
    pub metadata: Tags,
    pub alias: Option<String>,
    pub idempotency: Option<IdempotencyKey>,
    /// What its sandbox was given.
    pub access: AccessRecord,
    /// By whom it is made.
    pub made_for: MadeFor,
}

/// What a checkpoint is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MadeFor {
    /// Whoever asked for it, until they delete it.
    Owner,
    /// A step of an image.
    Layer,
    Image,
}

impl MadeFor {
    fn as_str(self) -> Option<&'static str> {
        match self {
            Self::Owner => None,
            Self::Layer => Some("layer"),
            Self::Image => Some("image"),
        }
    }
}

/// What became of an insert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inserted {
    Yes,
    LimitReached,
    /// The name, or the idempotency key, has a row already.
    Taken,
}

impl Store {
    pub(crate) async fn insert_checkpoint(&self, new: &NewCheckpoint) -> Result<Inserted, StoreError> {
        match self.try_insert_checkpoint(new).await {
            Err(error) if error.is_taken() => Ok(Inserted::Taken),
            done => done,
        }
    }

    async fn try_insert_checkpoint(&self, new: &NewCheckpoint) -> Result<Inserted, StoreError> {
        let failed = StoreError::query("store a new checkpoint");
        let mut tx = self.begin().await?;
        let (count, dispensable): (i64, i64) = sqlx::query_as(concat!(
            "SELECT count(*), coalesce(sum(CASE WHEN ",
            dispensable!(),
            " THEN 1 ELSE 0 END), 0) FROM checkpoints WHERE sandbox_id = $1 AND kind = $2 AND status IN ('processing', 'ready')"
        ))
        .bind(new.sandbox_id.as_str())
        .bind(new.kind.as_str())
        .fetch_one(&mut *tx)
        .await
        .map_err(&failed)?;
        // One over the limit for as long as the new one is made: an old one goes when there is something in its place.
        let room_to_come = new.keep.is_some() && dispensable > 0 && count == i64::from(new.limit);
        if count >= i64::from(new.limit) && !room_to_come {
            return Ok(Inserted::LimitReached);
        }
        let (key, hash) = new.idempotency.clone().map(|key| (key.key, key.body_hash)).unzip();
        sqlx::query(
            "INSERT INTO checkpoints (id, org_id, sandbox_id, node_id, name, kind, status, generation, captured, holds, \
             size_bytes, is_public, metadata, alias, keep, created_at, idempotency_key, body_hash, access, made_for) \
             VALUES ($1, $2, $3, $4, $5, $6, 'processing', 0, 0, 'disk', 0, 0, $7, $8, $9, $10, $11, $12, $13, $14)",
        )
        .bind(new.id.as_str())
        .bind(new.org.as_str())
        .bind(new.sandbox_id.as_str())
        .bind(&new.node_id)
        .bind(&new.name)
        .bind(new.kind.as_str())
        .bind(to_json(&new.metadata))
        .bind(&new.alias)
        .bind(new.keep.map(i64::from))
        .bind(now_micros())
        .bind(key)
        .bind(hash)
        .bind((!new.access.is_nothing()).then(|| serde_json::to_string(&new.access).expect("a record is plain data")))
        .bind(new.made_for.as_str())
        .execute(&mut *tx)
        .await
        .map_err(&failed)?;
        tx.commit().await.map_err(&failed)?;
        Ok(Inserted::Yes)
    }

    /// Writes down what a node saw, unless something newer is known. Nothing brings a deleted one back.
    pub(crate) async fn apply_checkpoint_report(
        &self,
        report: &CheckpointReport,
    ) -> Result<bool, StoreError> {
        let status = match report.state {
            CheckpointState::Processing => "processing",
            CheckpointState::Ready => "ready",
            CheckpointState::Failed => "failed",
        };
        let failed = (report.state == CheckpointState::Failed).then(now_micros);
        sqlx::query(
            "UPDATE checkpoints SET status = $1, generation = $2, captured = $3, holds = $4, consistency = $5, \
             pause_us = $6, size_bytes = $7, error = $8, failed_at = coalesce(failed_at, $9) \
             WHERE id = $10 AND status <> 'deleting' AND generation < $2",
        )
        .bind(status)
        .bind(stored(report.generation))
        .bind(i64::from(report.captured))
        .bind(match report.holds {
            Holds::Disk => "disk",
            Holds::Memory => "memory",
        })
        .bind(report.consistency.map(|consistency| match consistency {
            Consistency::Quiesced => "quiesced",
            Consistency::Crash => "crash",
        }))
        .bind(report.pause_us.map(stored))
        .bind(stored(report.size_bytes))
        .bind(&report.error)
        .bind(failed)
        .bind(report.checkpoint_id.as_str())
        .execute(&self.writer)
        .await
        .map(|done| done.rows_affected() > 0)
        .map_err(StoreError::query("store a report about a checkpoint"))
    }

    /// Whether it is not known yet what a checkpoint is of.
    pub(crate) async fn lacks_checkpoint_spec(&self, id: &CheckpointId) -> Result<bool, StoreError> {
        sqlx::query_scalar("SELECT count(*) FROM checkpoints WHERE id = $1 AND spec IS NULL")
            .bind(id.as_str())
            .fetch_one(&self.reader)
            .await
            .map(|count: i64| count > 0)
            .map_err(StoreError::query("read what a checkpoint is of"))
    }

    pub(crate) async fn set_checkpoint_spec(
        &self,
        id: &CheckpointId,
        spec: &SandboxSpec,
    ) -> Result<(), StoreError> {
        let spec = serde_json::to_string(spec).expect("a spec is plain data");
        sqlx::query("UPDATE checkpoints SET spec = $1 WHERE id = $2 AND spec IS NULL")
            .bind(spec)
            .bind(id.as_str())
            .execute(&self.writer)
            .await
            .map(drop)
            .map_err(StoreError::query("store what a checkpoint is of"))
    }

    /// Its node does not have it. False when it had failed already, or is being deleted.
    pub(crate) async fn fail_checkpoint(&self, id: &CheckpointId, why: &str) -> Result<bool, StoreError> {
        sqlx::query(
            "UPDATE checkpoints SET status = 'failed', error = $1, failed_at = $2 \
             WHERE id = $3 AND status IN ('processing', 'ready')",
        )
        .bind(why)
        .bind(now_micros())
        .bind(id.as_str())
        .execute(&self.writer)
        .await
        .map(|done| done.rows_affected() > 0)
        .map_err(StoreError::query("store that a checkpoint failed"))
    }

    /// Records that its owner wants it gone; its name is free from here on.
    pub(crate) async fn mark_checkpoint_deleting(&self, id: &CheckpointId) -> Result<bool, StoreError> {
        sqlx::query(
            "UPDATE checkpoints SET status = 'deleting', keep = NULL, idempotency_key = NULL \
             WHERE id = $1 AND status <> 'deleting'",
        )
        .bind(id.as_str())
        .execute(&self.writer)
        .await
        .map(|done| done.rows_affected() > 0)
        .map_err(StoreError::query("store that a checkpoint is deleted"))
    }

    /// Forgets a checkpoint that its node no longer has, with its patches.
    pub(crate) async fn remove_checkpoint(&self, id: &CheckpointId) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM checkpoints WHERE id = $1")
            .bind(id.as_str())
            .execute(&self.writer)
            .await
            .map(drop)
            .map_err(StoreError::query("forget a checkpoint"))
    }

    pub(crate) async fn set_checkpoint_public(
        &self,
        id: &CheckpointId,
        public: bool,
    ) -> Result<Option<CheckpointRow>, StoreError> {
        let row: Option<RawCheckpoint> = sqlx::query_as(with_columns!(
            "UPDATE checkpoints SET is_public = $1 WHERE id = $2 AND status <> 'deleting' RETURNING",
            ""
        ))
        .bind(i64::from(public))
        .bind(id.as_str())
        .fetch_optional(&self.writer)
        .await
        .map_err(StoreError::query("publish a checkpoint"))?;
        row.map(RawCheckpoint::parse).transpose()
    }

    /// Ready checkpoints whose older siblings are still to be thinned out.
    pub(crate) async fn list_retentions_due(&self) -> Result<Vec<CheckpointId>, StoreError> {
        let ids: Vec<String> =
            sqlx::query_scalar("SELECT id FROM checkpoints WHERE keep IS NOT NULL AND status = 'ready'")
                .fetch_all(&self.reader)
                .await
                .map_err(StoreError::query("list the checkpoints that replace others"))?;
        ids.iter().map(|id| column("checkpoints.id", id.parse())).collect()
    }

    /// Marks the oldest siblings of a ready checkpoint as deleted until as few are left as it was made with; their ids. They
    /// need not become ready in the order in which they were made, so it may be among them. The newest stays, and so does
    /// what others depend on, even if more are left then.
    pub(crate) async fn retain(&self, newest: &CheckpointId) -> Result<Vec<CheckpointId>, StoreError> {
        let failed = StoreError::query("delete the oldest checkpoints");
        let mut tx = self.begin().await?;
        let deleted: Vec<String> = sqlx::query_scalar(concat!(
            "UPDATE checkpoints SET status = 'deleting', idempotency_key = NULL WHERE id IN (SELECT id FROM checkpoints WHERE ",
            dispensable!(),
            " AND (sandbox_id, kind) = (SELECT sandbox_id, kind FROM checkpoints WHERE id = $1) \
             AND EXISTS (SELECT 1 FROM checkpoints l WHERE l.sandbox_id = checkpoints.sandbox_id \
             AND l.kind = checkpoints.kind AND l.status = 'ready' \
             AND (l.created_at, l.id) > (checkpoints.created_at, checkpoints.id)) \
             ORDER BY created_at, id LIMIT (SELECT CASE WHEN count(*) > n.keep THEN count(*) - n.keep ELSE 0 END \
             FROM checkpoints c JOIN checkpoints n ON n.id = $1 WHERE n.keep IS NOT NULL AND n.status = 'ready' \
             AND c.sandbox_id = n.sandbox_id AND c.kind = n.kind AND c.status = 'ready')) RETURNING id"
        ))
        .bind(newest.as_str())
        .fetch_all(&mut *tx)
        .await
        .map_err(&failed)?;
        sqlx::query("UPDATE checkpoints SET keep = NULL WHERE id = $1")
            .bind(newest.as_str())
            .execute(&mut *tx)
            .await
            .map_err(&failed)?;
        tx.commit().await.map_err(&failed)?;
        deleted.iter().map(|id| column("checkpoints.id", id.parse())).collect()
    }
}
