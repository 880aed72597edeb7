//! What changes rows of images. Each function is one transaction, and each says in its WHERE what it must not overwrite.

use std::collections::BTreeMap;

use warren_types::{CheckpointId, OrgId};

use super::{ImageKey, StoredBase};
use crate::store::sandboxes::{column, to_json};
use crate::store::{Store, StoreError, now_micros};

/// An image that is about to be built.
#[derive(Debug, Clone)]
pub(crate) struct NewImage {
    pub key: ImageKey,
    pub manifest: String,
    pub base: StoredBase,
    pub shown: String,
}

/// What a build has come to.
#[derive(Debug, Clone)]
pub(crate) struct BuiltImage {
    pub checkpoint_id: CheckpointId,
    pub layer: Option<String>,
    pub template: String,
    pub envs: BTreeMap<String, String>,
    pub workdir: Option<String>,
}

impl Store {
    /// The id of the row, which is `building` now, and the checkpoint that it had before.
    pub(crate) async fn begin_image(
        &self,
        new: &NewImage,
    ) -> Result<(String, Option<CheckpointId>), StoreError> {
        let failed = StoreError::query("store an image that is being built");
        let mut tx = self.begin().await?;
        let before: Option<(String, Option<String>)> = sqlx::query_as(
            "SELECT id, checkpoint_id FROM images WHERE org_id = $1 AND content_hash = $2 AND isolation = $3 \
             AND memory_mb = $4",
        )
        .bind(new.key.org.as_str())
        .bind(&new.key.content_hash)
        .bind(new.key.isolation.as_str())
        .bind(i64::from(new.key.memory_mb.unwrap_or(0)))
        .fetch_optional(&mut *tx)
        .await
        .map_err(&failed)?;
        let now = now_micros();
        let (id, before) = match before {
            Some((id, before)) => {
                sqlx::query(
                    "UPDATE images SET status = 'building', error = NULL, checkpoint_id = NULL, layer = NULL, \
                     last_used_at = $1, base_digest = coalesce($3, base_digest) WHERE id = $2",
                )
                .bind(now)
                .bind(&id)
                .bind(&new.base.digest)
                .execute(&mut *tx)
                .await
                .map_err(&failed)?;
                (id, before)
            }
            None => {
                let id = uuid::Uuid::new_v4().to_string();
                sqlx::query(
                    "INSERT INTO images (id, org_id, content_hash, isolation, memory_mb, manifest, base_org, base_image, \
                     shown, status, envs, created_at, last_used_at, base_digest) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, \
                     'building', '{}', $10, $10, $11)",
                )
                .bind(&id)
                .bind(new.key.org.as_str())
                .bind(&new.key.content_hash)
                .bind(new.key.isolation.as_str())
                .bind(i64::from(new.key.memory_mb.unwrap_or(0)))
                .bind(&new.manifest)
                .bind(new.base.image.as_ref().map(|(org, _)| org.as_str()))
                .bind(new.base.image.as_ref().map(|(_, id)| id))
                .bind(&new.shown)
                .bind(now)
                .bind(&new.base.digest)
                .execute(&mut *tx)
                .await
                .map_err(&failed)?;
                (id, None)
            }
        };
        tx.commit().await.map_err(&failed)?;
        Ok((id, column("images.checkpoint_id", before.map(|id| id.parse()).transpose())?))
    }

    /// False when the image was deleted meanwhile: then nobody will have what was built.
    pub(crate) async fn finish_image(&self, id: &str, built: &BuiltImage) -> Result<bool, StoreError> {
        sqlx::query(
            "UPDATE images SET status = 'ready', error = NULL, checkpoint_id = $1, layer = $2, template = $3, envs = $4, \
             workdir = $5, last_used_at = $6 WHERE id = $7 AND status = 'building'",
        )
        .bind(built.checkpoint_id.as_str())
        .bind(&built.layer)
        .bind(&built.template)
        .bind(to_json(&built.envs))
        .bind(&built.workdir)
        .bind(now_micros())
        .bind(id)
        .execute(&self.writer)
        .await
        .map(|done| done.rows_affected() > 0)
        .map_err(StoreError::query("store that an image is built"))
    }

    pub(crate) async fn fail_image(&self, id: &str, why: &str) -> Result<bool, StoreError> {
        sqlx::query("UPDATE images SET status = 'failed', error = $1 WHERE id = $2 AND status = 'building'")
            .bind(why)
            .bind(id)
            .execute(&self.writer)
            .await
            .map(|done| done.rows_affected() > 0)
            .map_err(StoreError::query("store that an image could not be built"))
    }

    pub(crate) async fn touch_image(&self, id: &str) -> Result<(), StoreError> {
        let touched = sqlx::query("UPDATE images SET last_used_at = $1 WHERE id = $2")
            .bind(now_micros())
            .bind(id)
            .execute(&self.states)
            .await
            .map(drop)
            .map_err(StoreError::query("store that an image was used"));
        self.sync_soon();
        touched
    }

    /// Forgets an image and its names; the checkpoint that is to be deleted now.
    pub(crate) async fn remove_image(
        &self,
        org: &OrgId,
        id: &str,
    ) -> Result<Option<Option<CheckpointId>>, StoreError> {
        let removed: Option<Option<String>> =
            sqlx::query_scalar("DELETE FROM images WHERE id = $1 AND org_id = $2 RETURNING checkpoint_id")
                .bind(id)
                .bind(org.as_str())
                .fetch_optional(&self.writer)
                .await
                .map_err(StoreError::query("forget an image"))?;
        removed.map(|id| column("images.checkpoint_id", id.map(|id| id.parse()).transpose())).transpose()
    }

    /// Forgets an image if none of the same content has a name.
    pub(crate) async fn remove_nameless_image(
        &self,
        org: &OrgId,
        id: &str,
    ) -> Result<Option<Option<CheckpointId>>, StoreError> {
        let removed: Option<Option<String>> = sqlx::query_scalar(
            "DELETE FROM images WHERE id = $1 AND org_id = $2 AND NOT EXISTS (SELECT 1 FROM image_names n \
             JOIN images o ON o.id = n.image_id WHERE o.org_id = images.org_id \
             AND o.content_hash = images.content_hash AND o.memory_mb = images.memory_mb) RETURNING checkpoint_id",
        )
        .bind(id)
        .bind(org.as_str())
        .fetch_optional(&self.writer)
        .await
        .map_err(StoreError::query("forget an image without a name"))?;
        removed.map(|id| column("images.checkpoint_id", id.map(|id| id.parse()).transpose())).transpose()
    }

    /// Forgets an image that has no name and that nobody has used since that time.
    pub(crate) async fn remove_unused_image(
        &self,
        id: &str,
        before: i64,
    ) -> Result<Option<Option<CheckpointId>>, StoreError> {
        let removed: Option<Option<String>> = sqlx::query_scalar(
            "DELETE FROM images WHERE id = $1 AND last_used_at < $2 AND status <> 'building' \
             AND NOT EXISTS (SELECT 1 FROM image_names n WHERE n.image_id = images.id) RETURNING checkpoint_id",
        )
        .bind(id)
        .bind(before)
        .fetch_optional(&self.writer)
        .await
        .map_err(StoreError::query("forget an image that is not used"))?;
        removed.map(|id| column("images.checkpoint_id", id.map(|id| id.parse()).transpose())).transpose()
    }
}
