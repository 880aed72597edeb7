//! The newest audit record of each organisation, as it was sealed.

use sqlx::{FromRow, SqliteExecutor};

use super::audit::Head;
use super::{Store, StoreError, now_micros};

/// A place in a chain, with the proof that this installation wrote it down.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub(crate) struct SealedHead {
    pub org: String,
    pub seq: i64,
    pub hash: String,
    pub mac: String,
}

impl SealedHead {
    pub(crate) fn head(&self) -> Head {
        Head { seq: self.seq, hash: self.hash.clone() }
    }
}

/// Writes one down; one that is older than what is there changes nothing.
pub(super) async fn put(executor: impl SqliteExecutor<'_>, head: &SealedHead) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO audit_heads (org, seq, hash, mac, at) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (org) DO UPDATE SET seq = excluded.seq, hash = excluded.hash, mac = excluded.mac, at = excluded.at \
         WHERE excluded.seq > audit_heads.seq",
    )
    .bind(&head.org)
    .bind(head.seq)
    .bind(&head.hash)
    .bind(&head.mac)
    .bind(now_micros())
    .execute(executor)
    .await
    .map(drop)
}

impl Store {
    /// Writes heads down; one that is older than what is there changes nothing.
    pub(crate) async fn put_audit_heads(&self, heads: &[SealedHead]) -> Result<(), StoreError> {
        let failed = StoreError::query("write down the head of the audit records");
        let mut tx = self.begin_state().await?;
        for head in heads {
            put(&mut *tx, head).await.map_err(&failed)?;
        }
        tx.commit().await.map_err(&failed)?;
        self.sync_soon();
        Ok(())
    }

    pub(crate) async fn list_audit_heads(&self) -> Result<Vec<SealedHead>, StoreError> {
        sqlx::query_as("SELECT org, seq, hash, mac FROM audit_heads ORDER BY org")
            .fetch_all(&self.reader)
            .await
            .map_err(StoreError::query("list the heads of the audit records"))
    }
}
