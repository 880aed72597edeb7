//! Patches of checkpoints. Those of one image in either isolation have the same patches: each has its own row and number, and
//! the rows of one patch are made and removed together.

use jiff::Timestamp;
use sqlx::{FromRow, Sqlite, Transaction};
use warren_types::CheckpointId;

use super::sandboxes::column;
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
            sequence: column("checkpoint_patches.sequence", self.sequence.try_into())?,
            script: self.script,
            description: self.description,
            created_at: timestamp(self.created_at)?,
        })
    }
}

/// What is stored of a patch, whichever checkpoint has it.
struct NewPatch<'a> {
    id: &'a str,
    original: Option<&'a str>,
    script: &'a str,
    description: &'a str,
    created_at: i64,
}

impl Store {
    /// Adds a patch with the next number, and the same to the other checkpoints of its image, which are told with it. `None`
    /// when there is no such checkpoint.
    pub(crate) async fn insert_patch(
        &self,
        checkpoint: &CheckpointId,
        script: &str,
        description: &str,
    ) -> Result<Option<(PatchRow, Vec<CheckpointId>)>, StoreError> {
        let failed = StoreError::query("store a patch");
        let (id, now) = (uuid::Uuid::new_v4().to_string(), now_micros());
        let mut tx = self.begin().await?;
        let new = NewPatch { id: &id, original: None, script, description, created_at: now };
        let Some(sequence) = add(&mut tx, checkpoint.as_str(), &new).await? else { return Ok(None) };
        let others: Vec<String> = sqlx::query_scalar(
            "SELECT o.checkpoint_id FROM images i JOIN images o ON o.org_id = i.org_id AND o.content_hash = i.content_hash \
             AND o.memory_mb = i.memory_mb AND o.id <> i.id WHERE i.checkpoint_id = $1 AND o.status = 'ready' \
             AND o.checkpoint_id IS NOT NULL",
        )
        .bind(checkpoint.as_str())
        .fetch_all(&mut *tx)
        .await
        .map_err(&failed)?;
        for other in &others {
            let copy = uuid::Uuid::new_v4().to_string();
            add(&mut tx, other, &NewPatch { id: &copy, original: Some(&id), ..new }).await?;
        }
        tx.commit().await.map_err(&failed)?;
        let row = RawPatch {
            id,
            sequence,
            script: script.to_owned(),
            description: description.to_owned(),
            created_at: now,
        };
        Ok(Some((row.parse()?, checkpoints_of(&others)?)))
    }

    /// Gives a checkpoint that was made for an image the patches that its other ones have, those that it has not. How many
    /// that were.
    pub(crate) async fn copy_patches(
        &self,
        image: &str,
        checkpoint: &CheckpointId,
    ) -> Result<usize, StoreError> {
        let failed = StoreError::query("copy the patches of an image");
        let mut tx = self.begin().await?;
        let missing: Vec<(String, String, String, i64)> = sqlx::query_as(
            "SELECT coalesce(p.original, p.id), p.script, p.description, p.created_at FROM images i \
             JOIN images o ON o.org_id = i.org_id AND o.content_hash = i.content_hash AND o.memory_mb = i.memory_mb \
             AND o.id <> i.id JOIN checkpoint_patches p ON p.checkpoint_id = o.checkpoint_id WHERE i.id = $1 \
             AND o.status = 'ready' AND NOT EXISTS (SELECT 1 FROM checkpoint_patches h WHERE h.checkpoint_id = $2 \
             AND coalesce(h.original, h.id) = coalesce(p.original, p.id)) ORDER BY p.sequence",
        )
        .bind(image)
        .bind(checkpoint.as_str())
        .fetch_all(&mut *tx)
        .await
        .map_err(&failed)?;
        for (original, script, description, created_at) in &missing {
            let id = uuid::Uuid::new_v4().to_string();
            let copy =
                NewPatch { id: &id, original: Some(original), script, description, created_at: *created_at };
            add(&mut tx, checkpoint.as_str(), &copy).await?;
        }
        tx.commit().await.map_err(&failed)?;
        Ok(missing.len())
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

    /// Removes a patch wherever it is; the checkpoints that had it. None of them when that checkpoint has no such patch.
    pub(crate) async fn remove_patch(
        &self,
        checkpoint: &CheckpointId,
        id: &str,
    ) -> Result<Vec<CheckpointId>, StoreError> {
        let removed: Vec<String> = sqlx::query_scalar(
            "DELETE FROM checkpoint_patches WHERE coalesce(original, id) = (SELECT coalesce(original, id) \
             FROM checkpoint_patches WHERE checkpoint_id = $1 AND id = $2) RETURNING checkpoint_id",
        )
        .bind(checkpoint.as_str())
        .bind(id)
        .fetch_all(&self.writer)
        .await
        .map_err(StoreError::query("remove a patch"))?;
        checkpoints_of(&removed)
    }
}

/// Stores a patch under the next number of its checkpoint, which is returned.
async fn add(
    tx: &mut Transaction<'_, Sqlite>,
    checkpoint: &str,
    new: &NewPatch<'_>,
) -> Result<Option<i64>, StoreError> {
    let failed = StoreError::query("store a patch");
    let sequence: Option<i64> = sqlx::query_scalar(
        "UPDATE checkpoints SET patches_made = patches_made + 1 WHERE id = $1 AND status <> 'deleting' \
         RETURNING patches_made",
    )
    .bind(checkpoint)
    .fetch_optional(&mut **tx)
    .await
    .map_err(&failed)?;
    let Some(sequence) = sequence else { return Ok(None) };
    sqlx::query(
        "INSERT INTO checkpoint_patches (id, checkpoint_id, sequence, script, description, created_at, original) \
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(new.id)
    .bind(checkpoint)
    .bind(sequence)
    .bind(new.script)
    .bind(new.description)
    .bind(new.created_at)
    .bind(new.original)
    .execute(&mut **tx)
    .await
    .map_err(&failed)?;
    Ok(Some(sequence))
}

fn checkpoints_of(ids: &[String]) -> Result<Vec<CheckpointId>, StoreError> {
    ids.iter().map(|id| column("checkpoint_patches.checkpoint_id", id.parse())).collect()
}
