//! Previews that were registered, and the token that opens those of a sandbox.

use jiff::Timestamp;
use sqlx::FromRow;
use warren_types::{OrgId, SandboxId};

use super::sandboxes::column;
use super::{Store, StoreError, now_micros, timestamp};

#[derive(Debug, Clone)]
pub(crate) struct PreviewRow {
    pub id: String,
    pub port: u16,
    pub created_at: Timestamp,
    /// Of the organisation: where it has a second name.
    pub domain: Option<String>,
}

#[derive(FromRow)]
struct RawPreview {
    id: String,
    port: i64,
    created_at: i64,
    domain: Option<String>,
}

impl RawPreview {
    fn parse(self) -> Result<PreviewRow, StoreError> {
        Ok(PreviewRow {
            id: self.id,
            port: column("previews.port", u16::try_from(self.port))?,
            created_at: timestamp(self.created_at)?,
            domain: self.domain,
        })
    }
}

impl Store {
    /// Registers a port, or finds it registered; and whether it is new. One without a `domain` keeps what it has.
    pub(crate) async fn ensure_preview(
        &self,
        sandbox: &SandboxId,
        port: u16,
        domain: Option<&str>,
    ) -> Result<(PreviewRow, bool), StoreError> {
        let failed = StoreError::query("store a preview");
        let mut tx = self.begin().await?;
        let inserted = sqlx::query(
            "INSERT INTO previews (id, sandbox_id, port, created_at) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (sandbox_id, port) DO NOTHING",
        )
        .bind(uuid::Uuid::new_v4().to_string())
        .bind(sandbox.as_str())
        .bind(i64::from(port))
        .bind(now_micros())
        .execute(&mut *tx)
        .await
        .map_err(&failed)?;
        let row: RawPreview = sqlx::query_as(
            "UPDATE previews SET domain = coalesce($1, domain) WHERE sandbox_id = $2 AND port = $3 \
             RETURNING id, port, created_at, domain",
        )
        .bind(domain)
        .bind(sandbox.as_str())
        .bind(i64::from(port))
        .fetch_one(&mut *tx)
        .await
        .map_err(&failed)?;
        tx.commit().await.map_err(&failed)?;
        Ok((row.parse()?, inserted.rows_affected() > 0))
    }

    /// By port.
    pub(crate) async fn list_previews(&self, sandbox: &SandboxId) -> Result<Vec<PreviewRow>, StoreError> {
        let rows: Vec<RawPreview> = sqlx::query_as(
            "SELECT id, port, created_at, domain FROM previews WHERE sandbox_id = $1 ORDER BY port",
        )
        .bind(sandbox.as_str())
        .fetch_all(&self.reader)
        .await
        .map_err(StoreError::query("list the previews of a sandbox"))?;
        rows.into_iter().map(RawPreview::parse).collect()
    }

    /// Whether that port was registered for that domain.
    pub(crate) async fn has_preview_at(
        &self,
        sandbox: &SandboxId,
        port: u16,
        domain: &str,
    ) -> Result<bool, StoreError> {
        let count: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM previews WHERE sandbox_id = $1 AND port = $2 AND domain = $3",
        )
        .bind(sandbox.as_str())
        .bind(i64::from(port))
        .bind(domain)
        .fetch_one(&self.reader)
        .await
        .map_err(StoreError::query("look for a preview"))?;
        Ok(count > 0)
    }

    /// Whether that is the name of the organisation.
    pub(crate) async fn is_org_named(&self, org: &OrgId, name: &str) -> Result<bool, StoreError> {
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM orgs WHERE id = $1 AND name = $2")
            .bind(org.as_str())
            .bind(name)
            .fetch_one(&self.reader)
            .await
            .map_err(StoreError::query("read the name of an organisation"))?;
        Ok(count > 0)
    }

    /// False when it was not registered.
    pub(crate) async fn remove_preview(&self, sandbox: &SandboxId, port: u16) -> Result<bool, StoreError> {
        sqlx::query("DELETE FROM previews WHERE sandbox_id = $1 AND port = $2")
            .bind(sandbox.as_str())
            .bind(i64::from(port))
            .execute(&self.writer)
            .await
            .map(|done| done.rows_affected() > 0)
            .map_err(StoreError::query("remove a preview"))
    }

    pub(crate) async fn remove_previews(&self, sandbox: &SandboxId) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM previews WHERE sandbox_id = $1")
            .bind(sandbox.as_str())
            .execute(&self.writer)
            .await
            .map(drop)
            .map_err(StoreError::query("remove the previews of a sandbox"))
    }

    /// From here on only a token with that hash opens its previews.
    pub(crate) async fn set_preview_hash(&self, sandbox: &SandboxId, hash: &str) -> Result<(), StoreError> {
        sqlx::query("UPDATE sandboxes SET preview_hash = $1 WHERE id = $2")
            .bind(hash)
            .bind(sandbox.as_str())
            .execute(&self.writer)
            .await
            .map(drop)
            .map_err(StoreError::query("store the preview token of a sandbox"))
    }
}
