//! What sandboxes took: spans of what they were given, samples of what they used. What is asked of them is in `report`.

pub(crate) mod report;

use sqlx::{Sqlite, Transaction};
use warren_types::SandboxId;

use super::{Store, StoreError};

/// Begins spans, at `$1`, of the sandboxes that take something and have no open one; `AND` restricts it further.
macro_rules! begin_spans {
    ($only:literal) => {
        concat!(
            "INSERT INTO usage_spans (sandbox_id, org_id, started_at, seen_at, memory_mb, disk_mb) ",
            "SELECT sandbox_id, org_id, $1, $1, memory_mb, disk_mb FROM usage_now n ",
            "WHERE NOT EXISTS (SELECT 1 FROM usage_spans u WHERE u.sandbox_id = n.sandbox_id AND u.ended_at IS NULL) ",
            $only
        )
    };
}

/// One look at a sandbox's memory.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub id: SandboxId,
    /// First sample of the row that this one belongs to; `at` itself when it begins one.
    pub first_at: i64,
    pub at: i64,
    pub used_kb: i64,
}

/// Ends the open span of a sandbox where it takes something else now, or nothing. `server_since`: what was not seen since then
/// ended at an unknown time; nobody can vouch for more than when it was last seen.
pub(super) async fn end_span(
    tx: &mut Transaction<'static, Sqlite>,
    id: &SandboxId,
    now: i64,
    server_since: i64,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE usage_spans SET ended_at = CASE WHEN seen_at < $1 THEN seen_at WHEN started_at > $2 THEN started_at ELSE $2 END \
         WHERE sandbox_id = $3 AND ended_at IS NULL AND NOT EXISTS (SELECT 1 FROM usage_now n \
         WHERE n.sandbox_id = $3 AND n.memory_mb = usage_spans.memory_mb AND n.disk_mb = usage_spans.disk_mb)",
    )
    .bind(server_since)
    .bind(now)
    .bind(id.as_str())
    .execute(&mut **tx)
    .await
    .map(drop)
    .map_err(StoreError::query("end what a sandbox took"))
}

/// Begins a span where a sandbox takes something and has no open one.
pub(super) async fn begin_span(
    tx: &mut Transaction<'static, Sqlite>,
    id: &SandboxId,
    now: i64,
) -> Result<(), StoreError> {
    sqlx::query(begin_spans!("AND n.sandbox_id = $2"))
        .bind(now)
        .bind(id.as_str())
        .execute(&mut **tx)
        .await
        .map(drop)
        .map_err(StoreError::query("begin what a sandbox takes"))
}

async fn add_samples(tx: &mut Transaction<'static, Sqlite>, samples: &[Sample]) -> Result<(), StoreError> {
    for sample in samples {
        // Of what the node has and nobody knows, nothing is written.
        sqlx::query(
            "INSERT INTO usage_samples (sandbox_id, first_at, last_at, samples, sum_kb, peak_kb) \
             SELECT id, $1, $2, 1, $3, $3 FROM sandboxes WHERE id = $4 AND observed <> 'creating' \
             ON CONFLICT (sandbox_id, first_at) DO UPDATE SET last_at = excluded.last_at, \
             samples = usage_samples.samples + 1, sum_kb = usage_samples.sum_kb + excluded.sum_kb, \
             peak_kb = CASE WHEN excluded.peak_kb > usage_samples.peak_kb THEN excluded.peak_kb \
             ELSE usage_samples.peak_kb END",
        )
        .bind(sample.first_at)
        .bind(sample.at)
        .bind(sample.used_kb)
        .bind(sample.id.as_str())
        .execute(&mut **tx)
        .await
        .map_err(StoreError::query("write down what sandboxes use"))?;
    }
    Ok(())
}

impl Store {
    /// Writes down that what is open was there at that time. What runs and has no span, from before there were any, gets one.
    pub(crate) async fn see_usage(&self, now: i64, samples: &[Sample]) -> Result<(), StoreError> {
        let failed = StoreError::query("write down what sandboxes use");
        let mut tx = self.begin_state().await?;
        sqlx::query("UPDATE usage_spans SET seen_at = $1 WHERE ended_at IS NULL AND seen_at < $1")
            .bind(now)
            .execute(&mut *tx)
            .await
            .map_err(&failed)?;
        sqlx::query(begin_spans!("")).bind(now).execute(&mut *tx).await.map_err(&failed)?;
        add_samples(&mut tx, samples).await?;
        tx.commit().await.map_err(&failed)?;
        self.sync_soon();
        Ok(())
    }

    /// Writes down samples alone.
    pub(crate) async fn see_samples(&self, samples: &[Sample]) -> Result<(), StoreError> {
        let mut tx = self.begin_state().await?;
        add_samples(&mut tx, samples).await?;
        tx.commit().await.map_err(StoreError::query("write down what sandboxes use"))?;
        self.sync_soon();
        Ok(())
    }

    /// What runs, and since when.
    pub(crate) async fn list_runs(&self) -> Result<Vec<(String, i64)>, StoreError> {
        sqlx::query_as(
            "SELECT sandbox_id, started_at FROM usage_spans WHERE ended_at IS NULL AND memory_mb > 0",
        )
        .fetch_all(&self.reader)
        .await
        .map_err(StoreError::query("list what runs"))
    }

    pub(crate) async fn forget_usage(&self, before: i64) -> Result<(), StoreError> {
        for old in
            ["DELETE FROM usage_spans WHERE ended_at < $1", "DELETE FROM usage_samples WHERE last_at < $1"]
        {
            sqlx::query(old)
                .bind(before)
                .execute(&self.writer)
                .await
                .map_err(StoreError::query("remove what was used long ago"))?;
        }
        Ok(())
    }
}
