//! Patches of checkpoints.

use jiff::Timestamp;
use sqlx::FromRow;
use warren_types::CheckpointId;

use super::{Store, StoreError, now_micros, timestamp};

#[derive(Debug, Clone)]
pub(crate) struct PatchRow {
    pub id: String,
    pub sequence: u32,
    pub script: String,
    pub description: String,
    pub created_at: Timestamp,
}

#[derive(FromRow)]
struct RawPatch {
    id: String,
    sequence: i64,
    script: String,
    description: String,
    created_at: i64,
}

impl RawPatch {
    fn parse(self) -> Result<PatchRow, StoreError> {
        Ok(PatchRow {
            id: self.id,
            sequence: super::sandboxes::column("checkpoint_patches.sequence", self.sequence.try_into())?,
            script: self.script,
            description: self.description,
            created_at: timestamp(self.created_at)?,
        })
    }
}

impl Store {
    /// Adds a patch with the next number. `None` when there is no such checkpoint.
    pub(crate) async fn insert_patch(
        &self,
        checkpoint: &CheckpointId,
        script: &str,
        description: &str,
    ) -> Result<Option<PatchRow>, StoreError> {
        let failed = StoreError::query("store a patch");
        let (id, now) = (uuid::Uuid::new_v4().to_string(), now_micros());
        let mut tx = self.begin().await?;
        let sequence: Option<i64> = sqlx::query_scalar(
            "UPDATE checkpoints SET patches_made = patches_made + 1 WHERE id = $1 AND status <> 'deleting' \
             RETURNING patches_made",
        )
        .bind(checkpoint.as_str())
        .fetch_optional(&mut *tx)
        .await
        .map_err(&failed)?;
        let Some(sequence) = sequence else { return Ok(None) };
        sqlx::query(
            "INSERT INTO checkpoint_patches (id, checkpoint_id, sequence, script, description, created_at) \
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(&id)
        .bind(checkpoint.as_str())
        .bind(sequence)
        .bind(script)
        .bind(description)
        .bind(now)
        .execute(&mut *tx)
        .await
        .map_err(&failed)?;
        tx.commit().await.map_err(&failed)?;
        let row = RawPatch {
            id,
            sequence,
            script: script.to_owned(),
            description: description.to_owned(),
            created_at: now,
        };
        row.parse().map(Some)
    }

    pub(crate) async fn list_patches(&self, checkpoint: &CheckpointId) -> Result<Vec<PatchRow>, StoreError> {
        let rows: Vec<RawPatch> = sqlx::query_as(
            "SELECT id, sequence, script, description, created_at FROM checkpoint_patches WHERE checkpoint_id = $1 \
             ORDER BY sequence",
        )
        .bind(checkpoint.as_str())
        .fetch_all(&self.reader)
        .await
        .map_err(StoreError::query("list the patches of a checkpoint"))?;
        rows.into_iter().map(RawPatch::parse).collect()
    }

    /// False when the checkpoint has no such patch.
    pub(crate) async fn remove_patch(&self, checkpoint: &CheckpointId, id: &str) -> Result<bool, StoreError> {
        sqlx::query("DELETE FROM checkpoint_patches WHERE checkpoint_id = $1 AND id = $2")
            .bind(checkpoint.as_str())
            .bind(id)
            .execute(&self.writer)
            .await
            .map(|done| done.rows_affected() > 0)
            .map_err(StoreError::query("remove a patch"))
    }
}
