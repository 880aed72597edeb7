//! What changes rows of secret stores and secrets. Each function is one transaction; those that take something away
//! from sandboxes also say from which.

use sqlx::{Sqlite, Transaction};
use warren_node_api::Place;
use warren_types::{EgressPolicy, HostPattern, OrgId, SandboxId};

use super::former::{self, Of};
use super::{
    RawSealedSecret, RawSecretStore, SealedSecret, SecretStoreId, SecretStoreRow, hosts_json, sealed_columns,
    store_columns,
};
use crate::store::access::{policy_json, read_policy};
use crate::store::sandboxes::column;
use crate::store::{Store, StoreError, now_micros};

/// What became of an insert.
#[derive(Debug)]
pub(crate) enum StoreInserted {
    Yes(Box<SecretStoreRow>),
    LimitReached,
    /// The organisation has a store of that name.
    Taken,
}

/// What became of a change.
#[derive(Debug)]
pub(crate) enum StoreChanged {
    Yes(Box<SecretStoreRow>),
    /// The organisation has another store of that name.
    Taken,
    Absent,
}

/// A secret as it is to be.
#[derive(Debug)]
pub(crate) struct SecretChange<'a> {
    pub store: &'a SecretStoreId,
    pub name: &'a str,
    /// As they are when absent; none for a new secret.
    pub allowed_hosts: Option<&'a [HostPattern]>,
    pub places: Option<&'a [Place]>,
    /// Of a new secret that says nothing.
    pub default_places: &'a [Place],
    pub limit: u32,
    /// Bytes of all encrypted values of a store.
    pub limit_bytes: u64,
}

/// What became of it.
#[derive(Debug)]
pub(crate) enum SecretChanged {
    /// The id of the secret.
    Yes(String),
    TooMany,
    TooLarge,
    /// There is no such store.
    Absent,
}

impl Store {
    pub(crate) async fn insert_secret_store(
        &self,
        org: &OrgId,
        name: &str,
        egress_allowlist: &[HostPattern],
        limit: u32,
    ) -> Result<StoreInserted, StoreError> {
        let failed = StoreError::query("store a secret store");
        let mut tx = self.begin().await?;
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM secret_stores WHERE org_id = $1")
            .bind(org.as_str())
            .fetch_one(&mut *tx)
            .await
            .map_err(&failed)?;
        if count >= i64::from(limit) {
            return Ok(StoreInserted::LimitReached);
        }
        let row: Option<RawSecretStore> = sqlx::query_as(store_columns!(
            "INSERT INTO secret_stores (id, org_id, name, egress_allowlist, created_at, updated_at) \
             VALUES ($1, $2, $3, $4, $5, $5) ON CONFLICT (org_id, name) DO NOTHING RETURNING",
            ""
        ))
        .bind(SecretStoreId::generate().as_str())
        .bind(org.as_str())
        .bind(name)
        .bind(hosts_json(egress_allowlist))
        .bind(now_micros())
        .fetch_optional(&mut *tx)
        .await
        .map_err(&failed)?;
        tx.commit().await.map_err(&failed)?;
        row.map_or(Ok(StoreInserted::Taken), |row| Ok(StoreInserted::Yes(Box::new(row.parse()?))))
    }

    /// What is absent stays as it is.
    pub(crate) async fn change_secret_store(
        &self,
        org: &OrgId,
        id: &SecretStoreId,
        name: Option<&str>,
        egress_allowlist: Option<&[HostPattern]>,
    ) -> Result<StoreChanged, StoreError> {
        let row: Result<Option<RawSecretStore>, StoreError> = sqlx::query_as(store_columns!(
            "UPDATE secret_stores SET name = coalesce($1, name), egress_allowlist = coalesce($2, egress_allowlist), \
             updated_at = $3 WHERE org_id = $4 AND id = $5 RETURNING",
            ""
        ))
        .bind(name)
        .bind(egress_allowlist.map(hosts_json))
        .bind(now_micros())
        .bind(org.as_str())
        .bind(id.as_str())
        .fetch_optional(&self.writer)
        .await
        .map_err(StoreError::query("change a secret store"));
        match row {
            Ok(Some(row)) => Ok(StoreChanged::Yes(Box::new(row.parse()?))),
            Ok(None) => Ok(StoreChanged::Absent),
            Err(error) if error.is_taken() => Ok(StoreChanged::Taken),
            Err(error) => Err(error),
        }
    }

    /// Deletes a store with its secrets and what stands for them; the sandboxes that had it. What its list allowed
    /// them is added to their own policies by `keep`. `None` when there is no such store.
    pub(crate) async fn delete_secret_store(
        &self,
        org: &OrgId,
        id: &SecretStoreId,
        keep: fn(Option<EgressPolicy>, &[HostPattern]) -> Option<EgressPolicy>,
    ) -> Result<Option<Vec<SandboxId>>, StoreError> {
        let failed = StoreError::query("delete a secret store");
        let mut tx = self.begin().await?;
        let store: Option<RawSecretStore> =
            sqlx::query_as(store_columns!("SELECT", "FROM secret_stores WHERE org_id = $1 AND id = $2"))
                .bind(org.as_str())
                .bind(id.as_str())
                .fetch_optional(&mut *tx)
                .await
                .map_err(&failed)?;
        let Some(store) = store.map(RawSecretStore::parse).transpose()? else { return Ok(None) };
        let attached: Vec<(String, Option<String>)> = sqlx::query_as(
            "SELECT b.id, b.egress FROM sandboxes b JOIN sandbox_secret_stores l ON l.sandbox_id = b.id \
             WHERE l.store_id = $1 AND b.observed <> 'stopped'",
        )
        .bind(id.as_str())
        .fetch_all(&mut *tx)
        .await
        .map_err(&failed)?;
        for (sandbox, egress) in &attached {
            let kept = keep(read_policy(egress.as_deref())?, &store.egress_allowlist);
            sqlx::query("UPDATE sandboxes SET egress = $1 WHERE id = $2")
                .bind(kept.as_ref().map(policy_json))
                .bind(sandbox)
                .execute(&mut *tx)
                .await
                .map_err(&failed)?;
        }
        former::keep_with_tokens(&mut tx, Of::Store(id.as_str())).await?;
        sqlx::query("DELETE FROM secret_stores WHERE id = $1")
            .bind(id.as_str())
            .execute(&mut *tx)
            .await
            .map_err(&failed)?;
        tx.commit().await.map_err(&failed)?;
        attached
            .into_iter()
            .map(|(sandbox, _)| column("sandboxes.id", sandbox.parse()))
            .collect::<Result<_, _>>()
            .map(Some)
    }

    /// Writes a secret. `seal` encrypts its value for the version it will have, while nobody else can write: so a
    /// rotation of keys comes wholly before it or wholly after it.
    pub(crate) async fn put_secret<E: From<StoreError>>(
        &self,
        change: &SecretChange<'_>,
        seal: impl FnOnce(i64) -> Result<String, E>,
    ) -> Result<SecretChanged, E> {
        let failed = StoreError::query("store a secret");
        let mut tx = self.begin().await?;
        let there: i64 = sqlx::query_scalar("SELECT count(*) FROM secret_stores WHERE id = $1")
            .bind(change.store.as_str())
            .fetch_one(&mut *tx)
            .await
            .map_err(&failed)?;
        let old: Option<(String, i64)> =
            sqlx::query_as("SELECT id, version FROM secrets WHERE store_id = $1 AND name = $2")
                .bind(change.store.as_str())
                .bind(change.name)
                .fetch_optional(&mut *tx)
                .await
                .map_err(&failed)?;
        let (others, bytes): (i64, i64) = sqlx::query_as(
            "SELECT count(*), coalesce(sum(length(sealed)), 0) FROM secrets WHERE store_id = $1 AND name <> $2",
        )
        .bind(change.store.as_str())
        .bind(change.name)
        .fetch_one(&mut *tx)
        .await
        .map_err(&failed)?;
        if there == 0 {
            return Ok(SecretChanged::Absent);
        }
        if others >= i64::from(change.limit) {
            return Ok(SecretChanged::TooMany);
        }
        let version = old.as_ref().map_or(1, |(_, version)| version + 1);
        let sealed = seal(version)?;
        if u64::try_from(bytes).unwrap_or(0) + sealed.len() as u64 > change.limit_bytes {
            return Ok(SecretChanged::TooLarge);
        }
        let id = match old {
            Some((id, _)) => {
                former::keep(&mut tx, Of::Secret(&id)).await?;
                update_secret(&mut tx, change, id, version, &sealed).await?
            }
            None => insert_secret(&mut tx, change, version, &sealed).await?,
        };
        tx.commit().await.map_err(&failed)?;
        Ok(SecretChanged::Yes(id))
    }

    /// Deletes a secret and what stands for it; the sandboxes that had it. `None` when there is no such secret.
    pub(crate) async fn delete_secret(
        &self,
        store: &SecretStoreId,
        name: &str,
    ) -> Result<Option<Vec<SandboxId>>, StoreError> {
        let failed = StoreError::query("delete a secret");
        let mut tx = self.begin().await?;
        let id: Option<String> =
            sqlx::query_scalar("SELECT id FROM secrets WHERE store_id = $1 AND name = $2")
                .bind(store.as_str())
                .bind(name)
                .fetch_optional(&mut *tx)
                .await
                .map_err(&failed)?;
        let Some(id) = id else { return Ok(None) };
        let holders: Vec<String> =
            sqlx::query_scalar("SELECT sandbox_id FROM sealed_tokens WHERE secret_id = $1")
                .bind(&id)
                .fetch_all(&mut *tx)
                .await
                .map_err(&failed)?;
        former::keep_with_tokens(&mut tx, Of::Secret(&id)).await?;
        sqlx::query("DELETE FROM secrets WHERE id = $1")
            .bind(&id)
            .execute(&mut *tx)
            .await
            .map_err(&failed)?;
        tx.commit().await.map_err(&failed)?;
        holders.iter().map(|id| column("sandboxes.id", id.parse())).collect::<Result<_, _>>().map(Some)
    }

    /// Encrypts every value anew, all or none; how many there were.
    pub(crate) async fn reseal_secrets<E: From<StoreError>>(
        &self,
        mut reseal: impl FnMut(&SealedSecret) -> Result<String, E>,
    ) -> Result<u64, E> {
        let failed = StoreError::query("encrypt the secrets anew");
        let mut tx = self.begin().await?;
        let rows: Vec<RawSealedSecret> = sqlx::query_as(sealed_columns!(
            "SELECT",
            "FROM secrets e JOIN secret_stores s ON s.id = e.store_id"
        ))
        .fetch_all(&mut *tx)
        .await
        .map_err(&failed)?;
        let count = rows.len() as u64;
        for row in rows {
            let secret = row.parse()?;
            let sealed = reseal(&secret)?;
            sqlx::query("UPDATE secrets SET sealed = $1 WHERE id = $2")
                .bind(sealed)
                .bind(&secret.id)
                .execute(&mut *tx)
                .await
                .map_err(&failed)?;
        }
        Self::reseal_former(&mut tx, reseal).await?;
        tx.commit().await.map_err(&failed)?;
        Ok(count)
    }
}

async fn insert_secret(
    tx: &mut Transaction<'static, Sqlite>,
    change: &SecretChange<'_>,
    version: i64,
    sealed: &str,
) -> Result<String, StoreError> {
    let id = uuid::Uuid::new_v4().to_string();
    sqlx::query(
        "INSERT INTO secrets (id, store_id, name, version, sealed, allowed_hosts, places, created_at, updated_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8)",
    )
    .bind(&id)
    .bind(change.store.as_str())
    .bind(change.name)
    .bind(version)
    .bind(sealed)
    .bind(hosts_json(change.allowed_hosts.unwrap_or_default()))
    .bind(places_json(change.places.unwrap_or(change.default_places)))
    .bind(now_micros())
    .execute(&mut **tx)
    .await
    .map_err(StoreError::query("store a new secret"))?;
    Ok(id)
}

async fn update_secret(
    tx: &mut Transaction<'static, Sqlite>,
    change: &SecretChange<'_>,
    id: String,
    version: i64,
    sealed: &str,
) -> Result<String, StoreError> {
    sqlx::query(
        "UPDATE secrets SET version = $1, sealed = $2, allowed_hosts = coalesce($3, allowed_hosts), \
         places = coalesce($4, places), updated_at = $5 WHERE id = $6",
    )
    .bind(version)
    .bind(sealed)
    .bind(change.allowed_hosts.map(hosts_json))
    .bind(change.places.map(places_json))
    .bind(now_micros())
    .bind(&id)
    .execute(&mut **tx)
    .await
    .map_err(StoreError::query("store a secret's new value"))?;
    Ok(id)
}

fn places_json(places: &[Place]) -> String {
    serde_json::to_string(places).expect("a list of words has a JSON form")
}
