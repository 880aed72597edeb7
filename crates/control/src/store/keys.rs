//! Organisations and their API keys.

use jiff::Timestamp;
use sqlx::FromRow;
use warren_types::OrgId;

use super::{Store, StoreError, audit_heads, now_micros, timestamp};
use crate::audit::chain::START;
use crate::audit::seal::{Place, Seal};

/// A key that is good now, as a request needs to know it.
#[derive(Debug, Clone, FromRow)]
pub(crate) struct ActiveKey {
    pub id: String,
    pub org_id: String,
    pub org_name: String,
}

/// A key as its owner sees it.
#[derive(Debug, Clone)]
pub(crate) struct KeyRow {
    pub id: String,
    pub org_id: OrgId,
    pub org_name: String,
    pub prefix: String,
    pub label: Option<String>,
    pub created_at: Timestamp,
    pub last_used_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
}

#[derive(FromRow)]
struct RawKey {
    id: String,
    org_id: String,
    org_name: String,
    prefix: String,
    label: Option<String>,
    created_at: i64,
    last_used_at: Option<i64>,
    revoked_at: Option<i64>,
}

impl RawKey {
    fn parse(self) -> Result<KeyRow, StoreError> {
        Ok(KeyRow {
            id: self.id,
            org_id: OrgId(self.org_id),
            org_name: self.org_name,
            prefix: self.prefix,
            label: self.label,
            created_at: timestamp(self.created_at)?,
            last_used_at: self.last_used_at.map(timestamp).transpose()?,
            revoked_at: self.revoked_at.map(timestamp).transpose()?,
        })
    }
}

const KEY: &str = "SELECT k.id, k.org_id, o.name AS org_name, k.prefix, k.label, k.created_at, k.last_used_at, k.revoked_at \
     FROM api_keys k JOIN orgs o ON o.id = k.org_id WHERE $1 = '' OR k.id = $1 ORDER BY k.created_at, k.id";

impl Store {
    /// The key with that hash, unless it is revoked. Asked on every request, so that a revocation counts at once.
    pub(crate) async fn find_active_key(&self, hash: &String) -> Result<Option<ActiveKey>, StoreError> {
        self.memory.recall(|kept| &mut kept.keys, hash, self.read_active_key(hash)).await
    }

    async fn read_active_key(&self, hash: &str) -> Result<Option<ActiveKey>, StoreError> {
        sqlx::query_as(
            "SELECT k.id, k.org_id, o.name AS org_name FROM api_keys k JOIN orgs o ON o.id = k.org_id \
             WHERE k.hash = $1 AND k.revoked_at IS NULL",
        )
        .bind(hash)
        .fetch_optional(&self.reader)
        .await
        .map_err(StoreError::query("look an API key up"))
    }

    /// The same by its id.
    pub(crate) async fn find_active_key_of_id(&self, id: &String) -> Result<Option<ActiveKey>, StoreError> {
        self.memory.recall(|kept| &mut kept.keys, id, self.read_active_key_of_id(id)).await
    }

    async fn read_active_key_of_id(&self, id: &str) -> Result<Option<ActiveKey>, StoreError> {
        sqlx::query_as(
            "SELECT k.id, k.org_id, o.name AS org_name FROM api_keys k JOIN orgs o ON o.id = k.org_id \
             WHERE k.id = $1 AND k.revoked_at IS NULL",
        )
        .bind(id)
        .fetch_optional(&self.reader)
        .await
        .map_err(StoreError::query("look an API key up"))
    }

    /// Stores a key, and its organisation when it is the first of that name.
    pub(crate) async fn insert_key(
        &self,
        org_name: &str,
        label: Option<&str>,
        hash: &str,
        prefix: &str,
        seal: &Seal,
    ) -> Result<KeyRow, StoreError> {
        let failed = StoreError::query("store an API key");
        let now = now_micros();
        let id = uuid::Uuid::new_v4().to_string();
        let mut tx = self.begin().await?;
        let org = uuid::Uuid::new_v4().to_string();
        let made = sqlx::query(
            "INSERT INTO orgs (id, name, created_at) VALUES ($1, $2, $3) ON CONFLICT (name) DO NOTHING",
        )
        .bind(&org)
        .bind(org_name)
        .bind(now)
        .execute(&mut *tx)
        .await
        .map_err(&failed)?;
        if made.rows_affected() > 0 {
            // Its audit records begin with it: an organisation whose seal is not there has lost it, whenever a crash comes.
            audit_heads::put(&mut *tx, &seal.seal(Place::Head, &org, 0, START)).await.map_err(&failed)?;
        }
        sqlx::query(
            "INSERT INTO api_keys (id, org_id, hash, prefix, label, created_at) \
             SELECT $1, id, $2, $3, $4, $5 FROM orgs WHERE name = $6",
        )
        .bind(&id)
        .bind(hash)
        .bind(prefix)
        .bind(label)
        .bind(now)
        .bind(org_name)
        .execute(&mut *tx)
        .await
        .map_err(&failed)?;
        let key: RawKey = sqlx::query_as(KEY).bind(&id).fetch_one(&mut *tx).await.map_err(&failed)?;
        tx.commit().await.map_err(&failed)?;
        key.parse()
    }

    pub(crate) async fn list_org_ids(&self) -> Result<Vec<String>, StoreError> {
        sqlx::query_scalar("SELECT id FROM orgs ORDER BY id")
            .fetch_all(&self.reader)
            .await
            .map_err(StoreError::query("list the organisations"))
    }

    pub(crate) async fn list_keys(&self) -> Result<Vec<KeyRow>, StoreError> {
        let rows: Vec<RawKey> = sqlx::query_as(KEY)
            .bind("")
            .fetch_all(&self.reader)
            .await
            .map_err(StoreError::query("list the API keys"))?;
        rows.into_iter().map(RawKey::parse).collect()
    }

    /// Revokes a key; one that is revoked already keeps its time.
    pub(crate) async fn revoke_key(&self, id: &str) -> Result<KeyRow, StoreError> {
        let failed = StoreError::query("revoke an API key");
        let mut tx = self.begin().await?;
        sqlx::query("UPDATE api_keys SET revoked_at = $1 WHERE id = $2 AND revoked_at IS NULL")
            .bind(now_micros())
            .bind(id)
            .execute(&mut *tx)
            .await
            .map_err(&failed)?;
        let key: RawKey = sqlx::query_as(KEY).bind(id).fetch_one(&mut *tx).await.map_err(&failed)?;
        tx.commit().await.map_err(&failed)?;
        key.parse()
    }

    /// Writes down when keys were last used: pairs of key id and microseconds.
    pub(crate) async fn touch_keys(&self, used: &[(String, i64)]) -> Result<(), StoreError> {
        let failed = StoreError::query("write down when API keys were used");
        let mut tx = self.begin().await?;
        for (id, at) in used {
            sqlx::query("UPDATE api_keys SET last_used_at = $1 WHERE id = $2")
                .bind(at)
                .bind(id)
                .execute(&mut *tx)
                .await
                .map_err(&failed)?;
        }
        tx.commit().await.map_err(&failed)
    }
}
