//! What secrets were used for: one row for all requests of a minute from one sandbox to one host.

use jiff::Timestamp;
use sqlx::FromRow;
use warren_types::SandboxId;

use super::sandboxes::column;
use super::{Store, StoreError, timestamp};

const MICROS_PER_MINUTE: i64 = 60 * 1_000_000;

/// Requests that a secret was put into.
#[derive(Debug, Clone)]
pub(crate) struct SecretUseRow {
    pub sandbox_id: SandboxId,
    pub host: String,
    pub count: u64,
    /// The last of them.
    pub used_at: Timestamp,
}

/// The same, as a node counted them.
#[derive(Debug, Clone)]
pub(crate) struct NewUse {
    pub sandbox_id: SandboxId,
    pub name: String,
    pub host: String,
    pub count: i64,
    /// Microseconds.
    pub used_at: i64,
}

#[derive(FromRow)]
struct RawUse {
    sandbox_id: String,
    host: String,
    count: i64,
    used_at: i64,
}

impl RawUse {
    fn parse(self) -> Result<SecretUseRow, StoreError> {
        Ok(SecretUseRow {
            sandbox_id: column("secret_uses.sandbox_id", self.sandbox_id.parse())?,
            host: self.host,
            count: column("secret_uses.count", self.count.try_into())?,
            used_at: timestamp(self.used_at)?,
        })
    }
}

impl Store {
    /// Adds uses. What was added before changes nothing: a node repeats what it has not heard to have arrived, and its
    /// times only grow. Secrets and sandboxes that are not known any more are left out.
    pub(crate) async fn add_secret_uses(&self, uses: &[NewUse]) -> Result<(), StoreError> {
        let failed = StoreError::query("write down what secrets were used for");
        let mut tx = self.begin_state().await?;
        for one in uses {
            sqlx::query(
                "INSERT INTO secret_uses (secret_id, sandbox_id, host, minute, count, used_at) \
                 SELECT t.secret_id, t.sandbox_id, $1, $2, $3, $4 FROM sealed_tokens t \
                 WHERE t.sandbox_id = $5 AND t.name = $6 \
                 ON CONFLICT (secret_id, sandbox_id, host, minute) DO UPDATE \
                 SET count = secret_uses.count + excluded.count, used_at = excluded.used_at \
                 WHERE excluded.used_at > secret_uses.used_at",
            )
            .bind(&one.host)
            .bind(one.used_at / MICROS_PER_MINUTE)
            .bind(one.count)
            .bind(one.used_at)
            .bind(one.sandbox_id.as_str())
            .bind(&one.name)
            .execute(&mut *tx)
            .await
            .map_err(&failed)?;
        }
        tx.commit().await.map_err(&failed)?;
        self.sync_soon();
        Ok(())
    }

    /// Newest first.
    pub(crate) async fn list_secret_uses(
        &self,
        secret_id: &str,
        limit: u32,
    ) -> Result<Vec<SecretUseRow>, StoreError> {
        let rows: Vec<RawUse> = sqlx::query_as(
            "SELECT sandbox_id, host, count, used_at FROM secret_uses WHERE secret_id = $1 \
             ORDER BY used_at DESC, sandbox_id, host LIMIT $2",
        )
        .bind(secret_id)
        .bind(i64::from(limit))
        .fetch_all(&self.reader)
        .await
        .map_err(StoreError::query("list what a secret was used for"))?;
        rows.into_iter().map(RawUse::parse).collect()
    }

    /// Forgets uses from before that time (microseconds), and of each secret all but the newest.
    pub(crate) async fn forget_secret_uses(&self, before: i64, keep: u32) -> Result<(), StoreError> {
        let failed = StoreError::query("forget what secrets were used for");
        let crowded: Vec<String> =
            sqlx::query_scalar("SELECT secret_id FROM secret_uses GROUP BY secret_id HAVING count(*) > $1")
                .bind(i64::from(keep))
                .fetch_all(&self.reader)
                .await
                .map_err(&failed)?;
        sqlx::query("DELETE FROM secret_uses WHERE used_at < $1")
            .bind(before)
            .execute(&self.writer)
            .await
            .map_err(&failed)?;
        for secret in crowded {
            sqlx::query(
                "DELETE FROM secret_uses WHERE secret_id = $1 AND used_at < \
                 (SELECT used_at FROM secret_uses WHERE secret_id = $1 ORDER BY used_at DESC LIMIT 1 OFFSET $2)",
            )
            .bind(&secret)
            .bind(i64::from(keep) - 1)
            .execute(&self.writer)
            .await
            .map_err(&failed)?;
        }
        Ok(())
    }
}
