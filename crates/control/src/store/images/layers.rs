//! Layers: how far builds have come. And what of all that nobody needs, the longest unused first.

use warren_types::{CheckpointId, OrgId};

use crate::store::sandboxes::column;
use crate::store::{Store, StoreError, now_micros};

/// Something that may be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unused {
    Layer { org: OrgId, key: String, checkpoint_id: CheckpointId },
    Image { id: String, checkpoint_id: Option<CheckpointId> },
}

impl Store {
    /// The checkpoint of a layer that is whole, or will be in a moment.
    pub(crate) async fn find_layer(
        &self,
        org: &OrgId,
        key: &str,
    ) -> Result<Option<CheckpointId>, StoreError> {
        let found: Option<String> = sqlx::query_scalar(
            "SELECT l.checkpoint_id FROM image_layers l JOIN checkpoints c ON c.id = l.checkpoint_id \
             WHERE l.org_id = $1 AND l.key = $2 AND c.status IN ('processing', 'ready')",
        )
        .bind(org.as_str())
        .bind(key)
        .fetch_optional(&self.reader)
        .await
        .map_err(StoreError::query("look a layer up"))?;
        column("image_layers.checkpoint_id", found.map(|id| id.parse()).transpose())
    }

    /// The checkpoint that this one takes the place of.
    pub(crate) async fn put_layer(
        &self,
        org: &OrgId,
        key: &str,
        checkpoint: &CheckpointId,
    ) -> Result<Option<CheckpointId>, StoreError> {
        let failed = StoreError::query("store a layer");
        let mut tx = self.begin().await?;
        let before: Option<String> = sqlx::query_scalar(
            "DELETE FROM image_layers WHERE org_id = $1 AND key = $2 RETURNING checkpoint_id",
        )
        .bind(org.as_str())
        .bind(key)
        .fetch_optional(&mut *tx)
        .await
        .map_err(&failed)?;
        sqlx::query(
            "INSERT INTO image_layers (org_id, key, checkpoint_id, created_at, last_used_at) VALUES ($1, $2, $3, $4, $4)",
        )
        .bind(org.as_str())
        .bind(key)
        .bind(checkpoint.as_str())
        .bind(now_micros())
        .execute(&mut *tx)
        .await
        .map_err(&failed)?;
        tx.commit().await.map_err(&failed)?;
        column("image_layers.checkpoint_id", before.map(|id| id.parse()).transpose())
    }

    pub(crate) async fn touch_layers(&self, org: &OrgId, keys: &[String]) -> Result<(), StoreError> {
        let now = now_micros();
        for key in keys {
            sqlx::query("UPDATE image_layers SET last_used_at = $1 WHERE org_id = $2 AND key = $3")
                .bind(now)
                .bind(org.as_str())
                .bind(key)
                .execute(&self.states)
                .await
                .map_err(StoreError::query("store that a layer was used"))?;
        }
        self.sync_soon();
        Ok(())
    }

    /// Forgets a layer, unless it has another checkpoint by now.
    pub(crate) async fn remove_layer(
        &self,
        org: &OrgId,
        key: &str,
        checkpoint: &CheckpointId,
    ) -> Result<bool, StoreError> {
        sqlx::query("DELETE FROM image_layers WHERE org_id = $1 AND key = $2 AND checkpoint_id = $3")
            .bind(org.as_str())
            .bind(key)
            .bind(checkpoint.as_str())
            .execute(&self.writer)
            .await
            .map(|done| done.rows_affected() > 0)
            .map_err(StoreError::query("forget a layer"))
    }

    /// Layers no image ends in and images without a name that were last used before that time, the longest unused first.
    pub(crate) async fn list_unused(&self, before: i64) -> Result<Vec<Unused>, StoreError> {
        let failed = StoreError::query("list what images do not need");
        let layers: Vec<(String, String, String, i64)> = sqlx::query_as(
            "SELECT org_id, key, checkpoint_id, last_used_at FROM image_layers l WHERE last_used_at < $1 \
             AND NOT EXISTS (SELECT 1 FROM images i WHERE i.org_id = l.org_id AND i.layer = l.key)",
        )
        .bind(before)
        .fetch_all(&self.reader)
        .await
        .map_err(&failed)?;
        let images: Vec<(String, Option<String>, i64)> = sqlx::query_as(
            "SELECT id, checkpoint_id, last_used_at FROM images i WHERE last_used_at < $1 AND status <> 'building' \
             AND NOT EXISTS (SELECT 1 FROM image_names n WHERE n.image_id = i.id)",
        )
        .bind(before)
        .fetch_all(&self.reader)
        .await
        .map_err(&failed)?;
        let mut all = Vec::with_capacity(layers.len() + images.len());
        for (org, key, checkpoint, used) in layers {
            let checkpoint_id = column("image_layers.checkpoint_id", checkpoint.parse())?;
            all.push((used, Unused::Layer { org: OrgId(org), key, checkpoint_id }));
        }
        for (id, checkpoint, used) in images {
            let checkpoint_id = column("images.checkpoint_id", checkpoint.map(|id| id.parse()).transpose())?;
            all.push((used, Unused::Image { id, checkpoint_id }));
        }
        all.sort_by_key(|(used, _)| *used);
        Ok(all.into_iter().map(|(_, unused)| unused).collect())
    }

    /// Forgets layers whose checkpoint is lost.
    pub(crate) async fn forget_lost_layers(&self) -> Result<(), StoreError> {
        sqlx::query(
            "DELETE FROM image_layers WHERE NOT EXISTS (SELECT 1 FROM checkpoints c \
             WHERE c.id = image_layers.checkpoint_id AND c.status IN ('processing', 'ready'))",
        )
        .execute(&self.writer)
        .await
        .map(drop)
        .map_err(StoreError::query("forget layers that are lost"))
    }

    /// Forgets images without a name that could not be built and that nobody has asked for since that time.
    pub(crate) async fn forget_failed_builds(&self, before: i64) -> Result<(), StoreError> {
        sqlx::query(
            "DELETE FROM images WHERE status = 'failed' AND last_used_at < $1 \
             AND NOT EXISTS (SELECT 1 FROM image_names n WHERE n.image_id = images.id)",
        )
        .bind(before)
        .execute(&self.writer)
        .await
        .map(drop)
        .map_err(StoreError::query("forget failed builds"))
    }

    /// Whether a layer or an image has that checkpoint.
    pub(crate) async fn is_kept_for_builds(&self, checkpoint: &CheckpointId) -> Result<bool, StoreError> {
        let found: Option<i64> = sqlx::query_scalar(
            "SELECT 1 FROM image_layers WHERE checkpoint_id = $1 UNION SELECT 1 FROM images WHERE checkpoint_id = $1",
        )
        .bind(checkpoint.as_str())
        .fetch_optional(&self.reader)
        .await
        .map_err(StoreError::query("look for what has a checkpoint"))?;
        Ok(found.is_some())
    }

    /// Checkpoints that builds made before that time and that no layer and no image has: of builds that were cut off.
    pub(crate) async fn list_stray_builds(&self, before: i64) -> Result<Vec<CheckpointId>, StoreError> {
        let ids: Vec<String> = sqlx::query_scalar(
            "SELECT id FROM checkpoints c WHERE c.made_for IS NOT NULL AND c.created_at < $1 AND c.status <> 'deleting' \
             AND NOT EXISTS (SELECT 1 FROM image_layers l WHERE l.checkpoint_id = c.id) \
             AND NOT EXISTS (SELECT 1 FROM images i WHERE i.checkpoint_id = c.id)",
        )
        .bind(before)
        .fetch_all(&self.reader)
        .await
        .map_err(StoreError::query("list what builds left behind"))?;
        ids.iter().map(|id| column("checkpoints.id", id.parse())).collect()
    }
}
