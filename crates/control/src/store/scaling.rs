//! How sandboxes may be scaled: columns of their table.

use sqlx::FromRow;
use warren_types::SandboxId;

use super::sandboxes::column;
use super::{Store, StoreError};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scaling {
    pub locked: bool,
    pub autoscale: bool,
    /// MiB; 0 = never set.
    pub min_mb: u32,
    pub max_mb: u32,
}

/// A running sandbox that scales by itself.
#[derive(Debug, Clone)]
pub(crate) struct Autoscaled {
    pub id: SandboxId,
    pub memory_mb: u32,
    pub min_mb: u32,
    pub max_mb: u32,
}

#[derive(FromRow)]
struct RawScaling {
    scaling_locked: i64,
    autoscale: i64,
    autoscale_min_mb: i64,
    autoscale_max_mb: i64,
}

#[derive(FromRow)]
struct RawAutoscaled {
    id: String,
    memory_mb: i64,
    autoscale_min_mb: i64,
    autoscale_max_mb: i64,
}

impl Store {
    pub(crate) async fn find_scaling(&self, id: &SandboxId) -> Result<Option<Scaling>, StoreError> {
        let row: Option<RawScaling> = sqlx::query_as(
            "SELECT scaling_locked, autoscale, autoscale_min_mb, autoscale_max_mb FROM sandboxes WHERE id = $1",
        )
        .bind(id.as_str())
        .fetch_optional(&self.reader)
        .await
        .map_err(StoreError::query("read how a sandbox scales"))?;
        row.map(|row| {
            Ok(Scaling {
                locked: row.scaling_locked != 0,
                autoscale: row.autoscale != 0,
                min_mb: column("sandboxes.autoscale_min_mb", row.autoscale_min_mb.try_into())?,
                max_mb: column("sandboxes.autoscale_max_mb", row.autoscale_max_mb.try_into())?,
            })
        })
        .transpose()
    }

    /// Switches scaling by itself on, unless it is locked; false then.
    pub(crate) async fn start_autoscale(
        &self,
        id: &SandboxId,
        min_mb: u32,
        max_mb: u32,
    ) -> Result<bool, StoreError> {
        sqlx::query(
            "UPDATE sandboxes SET autoscale = 1, autoscale_min_mb = $1, autoscale_max_mb = $2 \
             WHERE id = $3 AND scaling_locked = 0",
        )
        .bind(i64::from(min_mb))
        .bind(i64::from(max_mb))
        .bind(id.as_str())
        .execute(&self.writer)
        .await
        .map(|done| done.rows_affected() > 0)
        .map_err(StoreError::query("store how a sandbox scales"))
    }

    /// Whether it was on.
    pub(crate) async fn stop_autoscale(&self, id: &SandboxId) -> Result<bool, StoreError> {
        sqlx::query("UPDATE sandboxes SET autoscale = 0 WHERE id = $1 AND autoscale <> 0")
            .bind(id.as_str())
            .execute(&self.writer)
            .await
            .map(|done| done.rows_affected() > 0)
            .map_err(StoreError::query("store how a sandbox scales"))
    }

    /// Locking ends scaling by itself; unlocking does not bring it back.
    pub(crate) async fn set_scaling_lock(&self, id: &SandboxId, locked: bool) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE sandboxes SET scaling_locked = $1, autoscale = CASE WHEN $1 <> 0 THEN 0 ELSE autoscale END WHERE id = $2",
        )
        .bind(i64::from(locked))
        .bind(id.as_str())
        .execute(&self.writer)
        .await
        .map(drop)
        .map_err(StoreError::query("store whether a sandbox may scale"))
    }

    /// Every running sandbox that scales by itself, whoever owns it.
    pub(crate) async fn list_autoscaled(&self) -> Result<Vec<Autoscaled>, StoreError> {
        let rows: Vec<RawAutoscaled> = sqlx::query_as(
            "SELECT id, memory_mb, autoscale_min_mb, autoscale_max_mb FROM sandboxes \
             WHERE autoscale <> 0 AND scaling_locked = 0 AND observed = 'running'",
        )
        .fetch_all(&self.reader)
        .await
        .map_err(StoreError::query("list the sandboxes that scale by themselves"))?;
        rows.into_iter()
            .map(|row| {
                Ok(Autoscaled {
                    id: column("sandboxes.id", row.id.parse())?,
                    memory_mb: column("sandboxes.memory_mb", row.memory_mb.try_into())?,
                    min_mb: column("sandboxes.autoscale_min_mb", row.autoscale_min_mb.try_into())?,
                    max_mb: column("sandboxes.autoscale_max_mb", row.autoscale_max_mb.try_into())?,
                })
            })
            .collect()
    }
}
