//! What sandboxes may reach and which secrets they have: their own policies, the stores in their layers, and the tokens
//! that stand for secrets.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sqlx::{FromRow, Sqlite, Transaction};
use warren_types::{EgressPolicy, HostPattern, OrgId, SandboxId, SandboxState};

use super::sandboxes::column;
use super::secrets::former::FormerRow;
use super::secrets::{
    RawSealedSecret, RawSecretStore, SealedSecret, SecretStoreId, SecretStoreRow, sealed_columns,
};
use super::{Store, StoreError};

/// Narrower hosts for some secrets, by name.
pub(crate) type SecretHosts = BTreeMap<String, Vec<HostPattern>>;

/// What a sandbox was given: what a fork of it inherits. Kept with its checkpoints.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct AccessRecord {
    /// The lowest layer first.
    pub stores: Vec<SecretStoreId>,
    /// Its own; everything when absent.
    pub policy: Option<EgressPolicy>,
    pub secret_hosts: SecretHosts,
}

/// What stands for a secret in a new sandbox.
#[derive(Debug, Clone)]
pub(crate) struct NewToken {
    pub name: String,
    pub token: String,
    pub secret_id: String,
}

/// Of a sandbox, with everything it comes from.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    pub observed: SandboxState,
    pub policy: Option<EgressPolicy>,
    pub secret_hosts: SecretHosts,
    /// The lowest layer first.
    pub stores: Vec<SecretStoreRow>,
    /// Tokens with the secrets they stand for, by name.
    pub tokens: Vec<(String, SealedSecret)>,
    /// What its secrets were, the newest first.
    pub former: Vec<FormerRow>,
}

#[derive(FromRow)]
struct RawOwn {
    observed: String,
    egress: Option<String>,
    secret_hosts: Option<String>,
}

#[derive(FromRow)]
struct RawLayer {
    egress: Option<String>,
    secret_hosts: Option<String>,
    store_id: Option<String>,
}

#[derive(FromRow)]
struct RawToken {
    token: String,
    #[sqlx(flatten)]
    secret: RawSealedSecret,
}

impl AccessRecord {
    pub(crate) fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

impl Store {
    /// `None` when the organisation has no such sandbox.
    pub(crate) async fn find_access(
        &self,
        org: &OrgId,
        id: &SandboxId,
    ) -> Result<Option<Access>, StoreError> {
        let failed = StoreError::query("read what a sandbox may reach");
        let own: Option<RawOwn> = sqlx::query_as(
            "SELECT observed, egress, secret_hosts FROM sandboxes WHERE id = $1 AND org_id = $2",
        )
        .bind(id.as_str())
        .bind(org.as_str())
        .fetch_optional(&self.reader)
        .await
        .map_err(&failed)?;
        let Some(own) = own else { return Ok(None) };
        let stores: Vec<RawSecretStore> = sqlx::query_as(
            "SELECT s.id, s.org_id, s.name, s.egress_allowlist, s.created_at, s.updated_at \
             FROM sandbox_secret_stores l JOIN secret_stores s ON s.id = l.store_id \
             WHERE l.sandbox_id = $1 ORDER BY l.layer",
        )
        .bind(id.as_str())
        .fetch_all(&self.reader)
        .await
        .map_err(&failed)?;
        let tokens: Vec<RawToken> = sqlx::query_as(sealed_columns!(
            "SELECT t.token,",
            "FROM sealed_tokens t JOIN secrets e ON e.id = t.secret_id JOIN secret_stores s ON s.id = e.store_id \
             WHERE t.sandbox_id = $1 ORDER BY t.name"
        ))
        .bind(id.as_str())
        .fetch_all(&self.reader)
        .await
        .map_err(&failed)?;
        Ok(Some(Access {
            observed: column("sandboxes.observed", own.observed.parse())?,
            policy: read_policy(own.egress.as_deref())?,
            secret_hosts: read_secret_hosts(own.secret_hosts.as_deref())?,
            stores: stores.into_iter().map(RawSecretStore::parse).collect::<Result<_, _>>()?,
            tokens: tokens
                .into_iter()
                .map(|row| Ok((row.token, row.secret.parse()?)))
                .collect::<Result<_, StoreError>>()?,
            former: self.list_former_secrets(id).await?,
        }))
    }

    /// What a checkpoint of a sandbox remembers.
    pub(crate) async fn find_access_record(&self, id: &SandboxId) -> Result<AccessRecord, StoreError> {
        let rows: Vec<RawLayer> = sqlx::query_as(
            "SELECT b.egress, b.secret_hosts, l.store_id FROM sandboxes b \
             LEFT JOIN sandbox_secret_stores l ON l.sandbox_id = b.id WHERE b.id = $1 ORDER BY l.layer",
        )
        .bind(id.as_str())
        .fetch_all(&self.reader)
        .await
        .map_err(StoreError::query("read what a sandbox was given"))?;
        let Some(first) = rows.first() else { return Ok(AccessRecord::default()) };
        Ok(AccessRecord {
            policy: read_policy(first.egress.as_deref())?,
            secret_hosts: read_secret_hosts(first.secret_hosts.as_deref())?,
            stores: rows
                .iter()
                .filter_map(|row| row.store_id.as_deref())
                .map(|id| column("sandbox_secret_stores.store_id", id.parse()))
                .collect::<Result<_, _>>()?,
        })
    }

    pub(crate) async fn set_policy(&self, id: &SandboxId, policy: &EgressPolicy) -> Result<(), StoreError> {
        sqlx::query("UPDATE sandboxes SET egress = $1 WHERE id = $2")
            .bind(policy_json(policy))
            .bind(id.as_str())
            .execute(&self.writer)
            .await
            .map(drop)
            .map_err(StoreError::query("store what a sandbox may reach"))
    }

    /// Sandboxes that can be used and have this store in a layer.
    pub(crate) async fn list_with_store(
        &self,
        store: &SecretStoreId,
    ) -> Result<Vec<(OrgId, SandboxId)>, StoreError> {
        let rows: Vec<(String, String)> = sqlx::query_as(
            "SELECT b.org_id, b.id FROM sandboxes b JOIN sandbox_secret_stores l ON l.sandbox_id = b.id \
             WHERE l.store_id = $1 AND b.observed <> 'stopped'",
        )
        .bind(store.as_str())
        .fetch_all(&self.reader)
        .await
        .map_err(StoreError::query("list the sandboxes with a secret store"))?;
        owned(rows)
    }

    /// Sandboxes that can be used and have this secret.
    pub(crate) async fn list_with_secret(
        &self,
        secret_id: &str,
    ) -> Result<Vec<(OrgId, SandboxId)>, StoreError> {
        let rows: Vec<(String, String)> = sqlx::query_as(
            "SELECT b.org_id, b.id FROM sandboxes b JOIN sealed_tokens t ON t.sandbox_id = b.id \
             WHERE t.secret_id = $1 AND b.observed <> 'stopped'",
        )
        .bind(secret_id)
        .fetch_all(&self.reader)
        .await
        .map_err(StoreError::query("list the sandboxes with a secret"))?;
        owned(rows)
    }

    /// Every sandbox that can be used and was given anything, also what it has lost since: its node waits to be told.
    pub(crate) async fn list_with_access(&self) -> Result<Vec<(OrgId, SandboxId)>, StoreError> {
        let rows: Vec<(String, String)> = sqlx::query_as(
            "SELECT b.org_id, b.id FROM sandboxes b WHERE b.observed IN ('running', 'hibernated', 'error') \
             AND (b.egress IS NOT NULL \
             OR EXISTS (SELECT 1 FROM sandbox_secret_stores l WHERE l.sandbox_id = b.id) \
             OR EXISTS (SELECT 1 FROM sealed_tokens t WHERE t.sandbox_id = b.id) \
             OR EXISTS (SELECT 1 FROM former_tokens t WHERE t.sandbox_id = b.id))",
        )
        .fetch_all(&self.reader)
        .await
        .map_err(StoreError::query("list the sandboxes that were given something"))?;
        owned(rows)
    }

    /// Forgets the tokens of sandboxes that ended before that time (microseconds).
    pub(crate) async fn forget_tokens(&self, before: i64) -> Result<u64, StoreError> {
        sqlx::query(
            "DELETE FROM sealed_tokens WHERE sandbox_id IN (SELECT t.sandbox_id FROM sealed_tokens t \
             JOIN sandboxes b ON b.id = t.sandbox_id WHERE b.observed = 'stopped' AND b.ended_at < $1)",
        )
        .bind(before)
        .execute(&self.writer)
        .await
        .map(|done| done.rows_affected())
        .map_err(StoreError::query("forget tokens of sandboxes that ended"))
    }
}

/// Writes the layers and tokens of a row that is there.
pub(super) async fn insert_access(
    tx: &mut Transaction<'static, Sqlite>,
    id: &SandboxId,
    stores: &[SecretStoreId],
    tokens: &[NewToken],
) -> Result<(), StoreError> {
    let failed = StoreError::query("store what a sandbox is given");
    for (layer, store) in stores.iter().enumerate() {
        sqlx::query("INSERT INTO sandbox_secret_stores (sandbox_id, layer, store_id) VALUES ($1, $2, $3)")
            .bind(id.as_str())
            .bind(i64::try_from(layer).unwrap_or(i64::MAX))
            .bind(store.as_str())
            .execute(&mut **tx)
            .await
            .map_err(&failed)?;
    }
    for token in tokens {
        sqlx::query("INSERT INTO sealed_tokens (sandbox_id, name, token, secret_id) VALUES ($1, $2, $3, $4)")
            .bind(id.as_str())
            .bind(&token.name)
            .bind(&token.token)
            .bind(&token.secret_id)
            .execute(&mut **tx)
            .await
            .map_err(&failed)?;
    }
    Ok(())
}

fn owned(rows: Vec<(String, String)>) -> Result<Vec<(OrgId, SandboxId)>, StoreError> {
    rows.into_iter().map(|(org, id)| Ok((OrgId(org), column("sandboxes.id", id.parse())?))).collect()
}

pub(super) fn policy_json(policy: &EgressPolicy) -> String {
    serde_json::to_string(policy).expect("a policy has a JSON form")
}

pub(super) fn read_policy(json: Option<&str>) -> Result<Option<EgressPolicy>, StoreError> {
    column("sandboxes.egress", json.map(serde_json::from_str).transpose())
}

pub(super) fn secret_hosts_json(hosts: &SecretHosts) -> Option<String> {
    (!hosts.is_empty())
        .then(|| serde_json::to_string(hosts).expect("a map of lists of strings has a JSON form"))
}

fn read_secret_hosts(json: Option<&str>) -> Result<SecretHosts, StoreError> {
    json.map_or(Ok(SecretHosts::new()), |json| column("sandboxes.secret_hosts", serde_json::from_str(json)))
}
