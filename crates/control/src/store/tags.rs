//! Tags, and the label index that filters and counts read.

use jiff::Timestamp;
use sqlx::{FromRow, Sqlite, Transaction};
use warren_types::{OrgId, SandboxId, tags::Tags};

use super::{Store, StoreError, now_micros, sandboxes, timestamp};

/// What a label is one of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LabelKind {
    Metadata,
    Tag,
}

impl LabelKind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Metadata => "metadata",
            Self::Tag => "tag",
        }
    }
}

#[derive(Debug, Clone, FromRow)]
pub(crate) struct TagKeyRow {
    pub key: String,
    pub sandbox_count: i64,
    pub value_count: i64,
}

impl Store {
    /// Replaces all tags of a sandbox. `None` when the organisation has no such sandbox.
    pub(crate) async fn replace_tags(
        &self,
        org: &OrgId,
        id: &SandboxId,
        tags: &Tags,
    ) -> Result<Option<Timestamp>, StoreError> {
        let failed = StoreError::query("replace the tags of a sandbox");
        let now = now_micros();
        let mut tx = self.begin().await?;
        let changed =
            sqlx::query("UPDATE sandboxes SET tags = $1, tags_updated_at = $2 WHERE id = $3 AND org_id = $4")
                .bind(sandboxes::to_json(tags))
                .bind(now)
                .bind(id.as_str())
                .bind(org.as_str())
                .execute(&mut *tx)
                .await
                .map_err(&failed)?;
        if changed.rows_affected() == 0 {
            return Ok(None);
        }
        sqlx::query("DELETE FROM sandbox_labels WHERE sandbox_id = $1 AND kind = $2")
            .bind(id.as_str())
            .bind(LabelKind::Tag.as_str())
            .execute(&mut *tx)
            .await
            .map_err(&failed)?;
        insert_labels(&mut tx, org, id, LabelKind::Tag, tags).await?;
        tx.commit().await.map_err(&failed)?;
        timestamp(now).map(Some)
    }

    /// Every tag key of an organisation, stopped sandboxes included.
    pub(crate) async fn list_tag_keys(&self, org: &OrgId) -> Result<Vec<TagKeyRow>, StoreError> {
        sqlx::query_as(
            "SELECT key, count(DISTINCT sandbox_id) AS sandbox_count, count(DISTINCT value) AS value_count \
             FROM sandbox_labels WHERE org_id = $1 AND kind = $2 GROUP BY key ORDER BY key",
        )
        .bind(org.as_str())
        .bind(LabelKind::Tag.as_str())
        .fetch_all(&self.reader)
        .await
        .map_err(StoreError::query("list the tag keys"))
    }
}

pub(super) async fn insert_labels(
    tx: &mut Transaction<'static, Sqlite>,
    org: &OrgId,
    id: &SandboxId,
    kind: LabelKind,
    labels: &Tags,
) -> Result<(), StoreError> {
    for (key, value) in labels {
        sqlx::query(
            "INSERT INTO sandbox_labels (sandbox_id, org_id, kind, key, value) VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(id.as_str())
        .bind(org.as_str())
        .bind(kind.as_str())
        .bind(key)
        .bind(value)
        .execute(&mut **tx)
        .await
        .map_err(StoreError::query("index the labels of a sandbox"))?;
    }
    Ok(())
}
