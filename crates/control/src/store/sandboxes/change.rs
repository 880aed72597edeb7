//! What changes rows of sandboxes. Each function is one transaction, and each says in its WHERE what it must not
//! overwrite: who loses a race learns it from the number of rows. What a sandbox takes is accounted for with what changes it.

use sqlx::{Sqlite, Transaction};
use warren_node_api::Report;
use warren_types::{CheckpointId, OrgId, SandboxId, SandboxState, Size, tags::Tags};

use super::{Intent, RawSandbox, SandboxRow, to_json, with_columns};
use crate::store::access::{AccessRecord, NewToken, insert_access, policy_json, secret_hosts_json};
use crate::store::idempotency::IdempotencyKey;
use crate::store::tags::{LabelKind, insert_labels};
use crate::store::usage::{begin_span, end_span};
use crate::store::{Store, StoreError, now_micros};

/// A row as a create writes it first: `creating`, known to nobody.
#[derive(Debug, Clone)]
pub(crate) struct NewSandbox {
    pub id: SandboxId,
    pub org: OrgId,
    pub node_id: String,
    pub template: String,
    pub alias: Option<String>,
    pub isolation: String,
    pub size: Size,
    pub timeout_seconds: u32,
    pub metadata: Tags,
    pub tags: Tags,
    /// Sandboxes the organisation may have running, this one included.
    pub limit: u32,
    pub idempotency: Option<IdempotencyKey>,
    pub from_checkpoint: Option<CheckpointId>,
    pub access: AccessRecord,
    pub tokens: Vec<NewToken>,
    /// Of the token that opens its previews.
    pub preview_hash: Option<String>,
}

/// What became of an insert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Inserted {
    Yes,
    LimitReached {
        active: u32,
    },
    /// The id, or the idempotency key, has a row already.
    Taken,
    /// A secret store, or a secret, was deleted meanwhile.
    SecretsGone,
}

impl Store {
    /// How many sandboxes count against the limit of an organisation, and whether `id` is in use.
    pub(crate) async fn find_room(&self, org: &OrgId, id: &SandboxId) -> Result<(u32, bool), StoreError> {
        let (active, taken): (i64, i64) = sqlx::query_as(
            "SELECT (SELECT count(*) FROM sandboxes WHERE org_id = $1 AND observed IN ('creating', 'running')), \
             (SELECT count(*) FROM sandboxes WHERE id = $2)",
        )
        .bind(org.as_str())
        .bind(id.as_str())
        .fetch_one(&self.reader)
        .await
        .map_err(StoreError::query("count the running sandboxes"))?;
        Ok((u32::try_from(active).unwrap_or(u32::MAX), taken != 0))
    }

    pub(crate) async fn insert_sandbox(&self, new: &NewSandbox) -> Result<Inserted, StoreError> {
        match self.try_insert(new).await {
            Err(error) if error.is_taken() => Ok(Inserted::Taken),
            Err(error) if error.refers_to_nothing() => Ok(Inserted::SecretsGone),
            done => done,
        }
    }

    async fn try_insert(&self, new: &NewSandbox) -> Result<Inserted, StoreError> {
        let failed = StoreError::query("store a new sandbox");
        let now = now_micros();
        let mut tx = self.begin_state().await?;
        // The count that decides is taken under the write lock; the one before the node was asked is a courtesy.
        let active: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM sandboxes WHERE org_id = $1 AND observed IN ('creating', 'running')",
        )
        .bind(new.org.as_str())
        .fetch_one(&mut *tx)
        .await
        .map_err(&failed)?;
        if active >= i64::from(new.limit) {
            return Ok(Inserted::LimitReached { active: u32::try_from(active).unwrap_or(u32::MAX) });
        }
        sqlx::query(
            "INSERT INTO sandboxes (id, org_id, node_id, template, alias, isolation, cpu_count, memory_mb, disk_mb, \
             timeout_seconds, metadata, tags, tags_updated_at, intent, observed, generation, created_at, from_checkpoint, \
             egress, secret_hosts, preview_hash) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, 0, $16, $17, $18, $19, $20)",
        )
        .bind(new.id.as_str())
        .bind(new.org.as_str())
        .bind(&new.node_id)
        .bind(&new.template)
        .bind(&new.alias)
        .bind(&new.isolation)
        .bind(i64::from(new.size.cpu_count))
        .bind(i64::from(new.size.memory_mb))
        .bind(i64::from(new.size.disk_mb))
        .bind(i64::from(new.timeout_seconds))
        .bind(to_json(&new.metadata))
        .bind(to_json(&new.tags))
        .bind((!new.tags.is_empty()).then_some(now))
        .bind(Intent::Running.as_str())
        .bind(SandboxState::Creating.as_str())
        .bind(now)
        .bind(new.from_checkpoint.as_ref().map(CheckpointId::as_str))
        .bind(new.access.policy.as_ref().map(policy_json))
        .bind(secret_hosts_json(&new.access.secret_hosts))
        .bind(&new.preview_hash)
        .execute(&mut *tx)
        .await
        .map_err(&failed)?;
        insert_labels(&mut tx, &new.org, &new.id, LabelKind::Metadata, &new.metadata).await?;
        insert_labels(&mut tx, &new.org, &new.id, LabelKind::Tag, &new.tags).await?;
        insert_access(&mut tx, &new.id, &new.access.stores, &new.tokens).await?;
        if let Some(key) = &new.idempotency {
            sqlx::query(
                "INSERT INTO idempotency_keys (org_id, key, body_hash, sandbox_id, created_at) VALUES ($1, $2, $3, $4, $5)",
            )
            .bind(new.org.as_str())
            .bind(&key.key)
            .bind(&key.body_hash)
            .bind(new.id.as_str())
            .bind(now)
            .execute(&mut *tx)
            .await
            .map_err(&failed)?;
        }
        tx.commit().await.map_err(&failed)?;
        self.sync_soon();
        Ok(Inserted::Yes)
    }

    /// Ends a create well. `None` when its owner has deleted the sandbox meanwhile.
    pub(crate) async fn settle_created(&self, report: &Report) -> Result<Option<SandboxRow>, StoreError> {
        let failed = StoreError::query("store that a sandbox runs");
        let mut tx = self.begin_state().await?;
        let row: Option<RawSandbox> = sqlx::query_as(with_columns!(
            "UPDATE sandboxes SET observed = $1, generation = $2, warning = $3, processes_since = $4, patch_error = $5, \
             memory_mb = coalesce($6, memory_mb), cpu_count = coalesce($7, cpu_count) \
             WHERE id = $8 AND observed = 'creating' RETURNING",
            ""
        ))
        .bind(report.state.as_str())
        .bind(stored(report.generation))
        .bind(&report.warning)
        .bind(report.processes_since_ms.map(stored))
        .bind(&report.patches.error)
        .bind(report.size.map(|size| i64::from(size.memory_mb)))
        .bind(report.size.map(|size| i64::from(size.cpu_count)))
        .bind(report.id.as_str())
        .fetch_optional(&mut *tx)
        .await
        .map_err(&failed)?;
        begin_span(&mut tx, &report.id, now_micros()).await?;
        tx.commit().await.map_err(&failed)?;
        self.sync_soon();
        row.map(RawSandbox::parse).transpose()
    }

    /// Undoes a create: the row goes, with its labels and its idempotency key. Rows past `creating` stay.
    pub(crate) async fn remove_creating(&self, id: &SandboxId) -> Result<bool, StoreError> {
        sqlx::query("DELETE FROM sandboxes WHERE id = $1 AND observed = 'creating'")
            .bind(id.as_str())
            .execute(&self.writer)
            .await
            .map(|done| done.rows_affected() > 0)
            .map_err(StoreError::query("remove a sandbox that was not made"))
    }

    /// Writes down what a node saw, unless something newer is known. A report of the same generation counts when it
    /// differs: that is how a row that [`Store::mark_lost`] has touched comes back. `creating` rows belong to their
    /// create, stopped ones are final.
    pub(crate) async fn apply_report(&self, report: &Report) -> Result<bool, StoreError> {
        let failed = StoreError::query("store a report about a sandbox");
        let mut tx = self.begin_state().await?;
        let applied = sqlx::query(
            "UPDATE sandboxes SET observed = $1, generation = $2, reason = $3, \
             ended_at = CASE WHEN $1 IN ('stopped', 'error') THEN coalesce(ended_at, $4) END, \
             warning = $6, processes_since = $7, patch_error = $8, \
             memory_mb = coalesce($9, memory_mb), cpu_count = coalesce($10, cpu_count) \
             WHERE id = $5 AND observed NOT IN ('creating', 'stopped') \
             AND (generation < $2 OR (generation = $2 AND observed <> $1))",
        )
        .bind(report.state.as_str())
        .bind(stored(report.generation))
        .bind(&report.reason)
        .bind(now_micros())
        .bind(report.id.as_str())
        .bind(&report.warning)
        .bind(report.processes_since_ms.map(stored))
        .bind(&report.patches.error)
        .bind(report.size.map(|size| i64::from(size.memory_mb)))
        .bind(report.size.map(|size| i64::from(size.cpu_count)))
        .execute(&mut *tx)
        .await
        .map_err(&failed)?;
        if applied.rows_affected() == 0 {
            return Ok(false);
        }
        self.account(&mut tx, &report.id).await?;
        tx.commit().await.map_err(&failed)?;
        self.sync_soon();
        Ok(true)
    }

    /// The node no longer has it. The generation stays, so that the node's own word counts if it finds it again.
    pub(crate) async fn mark_lost(&self, id: &SandboxId, reason: &str) -> Result<bool, StoreError> {
        let failed = StoreError::query("store that a sandbox is lost");
        let mut tx = self.begin().await?;
        let lost = sqlx::query(
            "UPDATE sandboxes SET observed = 'error', reason = $1, ended_at = coalesce(ended_at, $2) \
             WHERE id = $3 AND observed IN ('running', 'hibernated')",
        )
        .bind(reason)
        .bind(now_micros())
        .bind(id.as_str())
        .execute(&mut *tx)
        .await
        .map_err(&failed)?;
        self.account(&mut tx, id).await?;
        tx.commit().await.map_err(&failed)?;
        Ok(lost.rows_affected() > 0)
    }

    /// Records that its owner wants it gone. False when it is stopped already, or not theirs.
    pub(crate) async fn mark_deleted(&self, org: &OrgId, id: &SandboxId) -> Result<bool, StoreError> {
        let failed = StoreError::query("store that a sandbox is deleted");
        let mut tx = self.begin().await?;
        let deleted = sqlx::query(
            "UPDATE sandboxes SET intent = $1, observed = 'stopped', reason = NULL, generation = generation + 1, \
             ended_at = coalesce(ended_at, $2) WHERE id = $3 AND org_id = $4 AND observed <> 'stopped'",
        )
        .bind(Intent::Deleted.as_str())
        .bind(now_micros())
        .bind(id.as_str())
        .bind(org.as_str())
        .execute(&mut *tx)
        .await
        .map_err(&failed)?;
        self.account(&mut tx, id).await?;
        tx.commit().await.map_err(&failed)?;
        Ok(deleted.rows_affected() > 0)
    }

    /// What a sandbox takes has changed, if it has.
    async fn account(&self, tx: &mut Transaction<'static, Sqlite>, id: &SandboxId) -> Result<(), StoreError> {
        let now = now_micros();
        end_span(tx, id, now, self.opened_at).await?;
        begin_span(tx, id, now).await
    }

    /// Records what its owner asked for; nothing brings a deleted one back.
    pub(crate) async fn set_intent(&self, id: &SandboxId, intent: Intent) -> Result<(), StoreError> {
        sqlx::query("UPDATE sandboxes SET intent = $1 WHERE id = $2 AND intent NOT IN ('deleted', $1)")
            .bind(intent.as_str())
            .bind(id.as_str())
            .execute(&self.writer)
            .await
            .map(drop)
            .map_err(StoreError::query("store what a sandbox is meant to be"))
    }

    pub(crate) async fn set_timeout(&self, id: &SandboxId, seconds: u32) -> Result<(), StoreError> {
        sqlx::query("UPDATE sandboxes SET timeout_seconds = $1 WHERE id = $2")
            .bind(i64::from(seconds))
            .bind(id.as_str())
            .execute(&self.writer)
            .await
            .map(drop)
            .map_err(StoreError::query("store the time-out of a sandbox"))
    }
}

/// A generation comes from a node; one beyond the column's range is as good as its end.
pub(in crate::store) fn stored(generation: u64) -> i64 {
    i64::try_from(generation).unwrap_or(i64::MAX)
}
