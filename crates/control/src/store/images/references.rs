//! What references to registries stood for when an organisation last asked.

use warren_types::OrgId;

use crate::store::{Store, StoreError, now_micros};

/// How exact the time is at which something was last asked, in microseconds: a day.
const EXACT: i64 = 24 * 60 * 60 * 1_000_000;

impl Store {
    pub(crate) async fn find_reference(
        &self,
        org: &OrgId,
        reference: &str,
    ) -> Result<Option<String>, StoreError> {
        sqlx::query_scalar("SELECT digest FROM image_references WHERE org_id = $1 AND reference = $2")
            .bind(org.as_str())
            .bind(reference)
            .fetch_optional(&self.reader)
            .await
            .map_err(StoreError::query("read what a reference stood for"))
    }

    /// Hardly ever writes: most references stand for what they stood for before.
    pub(crate) async fn put_reference(
        &self,
        org: &OrgId,
        reference: &str,
        digest: &str,
    ) -> Result<(), StoreError> {
        let failed = StoreError::query("store what a reference stands for");
        let now = now_micros();
        let known: Option<i64> = sqlx::query_scalar(
            "SELECT 1 FROM image_references WHERE org_id = $1 AND reference = $2 AND digest = $3 AND asked_at > $4",
        )
        .bind(org.as_str())
        .bind(reference)
        .bind(digest)
        .bind(now - EXACT)
        .fetch_optional(&self.reader)
        .await
        .map_err(&failed)?;
        if known.is_some() {
            return Ok(());
        }
        sqlx::query(
            "INSERT INTO image_references (org_id, reference, digest, asked_at) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (org_id, reference) DO UPDATE SET digest = excluded.digest, asked_at = excluded.asked_at",
        )
        .bind(org.as_str())
        .bind(reference)
        .bind(digest)
        .bind(now)
        .execute(&self.writer)
        .await
        .map(drop)
        .map_err(&failed)
    }

    /// Forgets what nobody has asked for since that time.
    pub(crate) async fn forget_references(&self, before: i64) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM image_references WHERE asked_at < $1")
            .bind(before)
            .execute(&self.writer)
            .await
            .map(drop)
            .map_err(StoreError::query("forget what references stood for"))
    }
}
