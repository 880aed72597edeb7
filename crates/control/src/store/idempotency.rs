//! Which create an `Idempotency-Key` stands for. Rows come and go with their sandbox's row (see `sandboxes`); what
//! is here reads them and forgets old ones.

use sqlx::FromRow;
use warren_types::OrgId;

use super::{Store, StoreError};

/// The key a create was asked under, with what identifies its request.
#[derive(Debug, Clone)]
pub(crate) struct IdempotencyKey {
    pub key: String,
    pub body_hash: String,
}

/// The create that already has a key.
#[derive(Debug, Clone, FromRow)]
pub(crate) struct KeyedCreate {
    pub body_hash: String,
    pub sandbox_id: String,
}

impl Store {
    pub(crate) async fn find_keyed_create(
        &self,
        org: &OrgId,
        key: &str,
    ) -> Result<Option<KeyedCreate>, StoreError> {
        sqlx::query_as("SELECT body_hash, sandbox_id FROM idempotency_keys WHERE org_id = $1 AND key = $2")
            .bind(org.as_str())
            .bind(key)
            .fetch_optional(&self.reader)
            .await
            .map_err(StoreError::query("look an idempotency key up"))
    }

    /// Forgets keys from before that time (microseconds).
    pub(crate) async fn forget_idempotency_keys(&self, before: i64) -> Result<u64, StoreError> {
        sqlx::query("DELETE FROM idempotency_keys WHERE created_at < $1")
            .bind(before)
            .execute(&self.writer)
            .await
            .map(|done| done.rows_affected())
            .map_err(StoreError::query("forget old idempotency keys"))
    }
}
