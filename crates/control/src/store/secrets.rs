//! Secret stores and secrets: rows and reads. What changes rows is in `change`. Values are encrypted before they come
//! here and after they leave.

pub(crate) mod change;
pub(crate) mod former;

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use sqlx::FromRow;
use uuid::Uuid;
use warren_node_api::Place;
use warren_types::{HostPattern, OrgId};

use super::sandboxes::column;
use super::{Store, StoreError, timestamp};

/// Of a secret store.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub(crate) struct SecretStoreId(String);

#[derive(Debug, Clone)]
pub(crate) struct SecretStoreRow {
    pub id: SecretStoreId,
    pub org: OrgId,
    pub name: String,
    pub egress_allowlist: Vec<HostPattern>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// A secret as its owner sees it.
#[derive(Debug, Clone)]
pub(crate) struct SecretRow {
    pub id: String,
    pub store: SecretStoreId,
    pub name: String,
    pub allowed_hosts: Vec<HostPattern>,
    pub places: Vec<Place>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// A secret with its encrypted value, and what that is bound to.
#[derive(Debug, Clone)]
pub(crate) struct SealedSecret {
    pub id: String,
    pub org: OrgId,
    pub store: SecretStoreId,
    pub name: String,
    pub version: i64,
    pub sealed: String,
    pub allowed_hosts: Vec<HostPattern>,
    pub places: Vec<Place>,
}

#[derive(FromRow)]
pub(super) struct RawSecretStore {
    id: String,
    org_id: String,
    name: String,
    egress_allowlist: String,
    created_at: i64,
    updated_at: i64,
}

#[derive(FromRow)]
pub(super) struct RawSecret {
    id: String,
    store_id: String,
    name: String,
    allowed_hosts: String,
    places: String,
    created_at: i64,
    updated_at: i64,
}

#[derive(FromRow)]
pub(super) struct RawSealedSecret {
    id: String,
    org_id: String,
    store_id: String,
    name: String,
    version: i64,
    sealed: String,
    allowed_hosts: String,
    places: String,
}

macro_rules! store_columns {
    ($before:literal, $after:literal) => {
        concat!($before, " id, org_id, name, egress_allowlist, created_at, updated_at ", $after)
    };
}
pub(super) use store_columns;

macro_rules! secret_columns {
    ($before:literal, $after:literal) => {
        concat!($before, " id, store_id, name, allowed_hosts, places, created_at, updated_at ", $after)
    };
}

/// Over `secrets e JOIN secret_stores s`.
macro_rules! sealed_columns {
    ($before:literal, $after:literal) => {
        concat!(
            $before,
            " e.id, s.org_id, e.store_id, e.name, e.version, e.sealed, e.allowed_hosts, e.places ",
            $after
        )
    };
}
pub(super) use sealed_columns;

// === impl SecretStoreId ===

impl SecretStoreId {
    pub(crate) fn generate() -> Self {
        Self(Uuid::new_v4().to_string())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SecretStoreId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        Uuid::try_parse(text).map(|id| Self(id.hyphenated().to_string()))
    }
}

impl fmt::Display for SecretStoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl Raw… ===

impl RawSecretStore {
    pub(super) fn parse(self) -> Result<SecretStoreRow, StoreError> {
        Ok(SecretStoreRow {
            id: SecretStoreId(self.id),
            org: OrgId(self.org_id),
            name: self.name,
            egress_allowlist: hosts(&self.egress_allowlist)?,
            created_at: timestamp(self.created_at)?,
            updated_at: timestamp(self.updated_at)?,
        })
    }
}

impl RawSecret {
    pub(super) fn parse(self) -> Result<SecretRow, StoreError> {
        Ok(SecretRow {
            id: self.id,
            store: SecretStoreId(self.store_id),
            name: self.name,
            allowed_hosts: hosts(&self.allowed_hosts)?,
            places: places(&self.places)?,
            created_at: timestamp(self.created_at)?,
            updated_at: timestamp(self.updated_at)?,
        })
    }
}

impl RawSealedSecret {
    pub(super) fn parse(self) -> Result<SealedSecret, StoreError> {
        Ok(SealedSecret {
            id: self.id,
            org: OrgId(self.org_id),
            store: SecretStoreId(self.store_id),
            name: self.name,
            version: self.version,
            sealed: self.sealed,
            allowed_hosts: hosts(&self.allowed_hosts)?,
            places: places(&self.places)?,
        })
    }
}

fn hosts(json: &str) -> Result<Vec<HostPattern>, StoreError> {
    column("a list of hosts", serde_json::from_str(json))
}

fn places(json: &str) -> Result<Vec<Place>, StoreError> {
    column("secrets.places", serde_json::from_str(json))
}

pub(super) fn hosts_json(hosts: &[HostPattern]) -> String {
    serde_json::to_string(hosts).expect("a list of strings has a JSON form")
}

// === impl Store ===

impl Store {
    /// By name.
    pub(crate) async fn list_secret_stores(&self, org: &OrgId) -> Result<Vec<SecretStoreRow>, StoreError> {
        let rows: Vec<RawSecretStore> =
            sqlx::query_as(store_columns!("SELECT", "FROM secret_stores WHERE org_id = $1 ORDER BY name"))
                .bind(org.as_str())
                .fetch_all(&self.reader)
                .await
                .map_err(StoreError::query("list the secret stores"))?;
        rows.into_iter().map(RawSecretStore::parse).collect()
    }

    pub(crate) async fn find_secret_store(
        &self,
        org: &OrgId,
        id: &SecretStoreId,
    ) -> Result<Option<SecretStoreRow>, StoreError> {
        let row: Option<RawSecretStore> =
            sqlx::query_as(store_columns!("SELECT", "FROM secret_stores WHERE org_id = $1 AND id = $2"))
                .bind(org.as_str())
                .bind(id.as_str())
                .fetch_optional(&self.reader)
                .await
                .map_err(StoreError::query("read a secret store"))?;
        row.map(RawSecretStore::parse).transpose()
    }

    pub(crate) async fn find_secret_store_named(
        &self,
        org: &OrgId,
        name: &str,
    ) -> Result<Option<SecretStoreRow>, StoreError> {
        let row: Option<RawSecretStore> =
            sqlx::query_as(store_columns!("SELECT", "FROM secret_stores WHERE org_id = $1 AND name = $2"))
                .bind(org.as_str())
                .bind(name)
                .fetch_optional(&self.reader)
                .await
                .map_err(StoreError::query("read a secret store"))?;
        row.map(RawSecretStore::parse).transpose()
    }

    /// By name.
    pub(crate) async fn list_secrets(&self, store: &SecretStoreId) -> Result<Vec<SecretRow>, StoreError> {
        let rows: Vec<RawSecret> =
            sqlx::query_as(secret_columns!("SELECT", "FROM secrets WHERE store_id = $1 ORDER BY name"))
                .bind(store.as_str())
                .fetch_all(&self.reader)
                .await
                .map_err(StoreError::query("list secrets"))?;
        rows.into_iter().map(RawSecret::parse).collect()
    }

    pub(crate) async fn find_secret(
        &self,
        store: &SecretStoreId,
        name: &str,
    ) -> Result<Option<SecretRow>, StoreError> {
        let row: Option<RawSecret> =
            sqlx::query_as(secret_columns!("SELECT", "FROM secrets WHERE store_id = $1 AND name = $2"))
                .bind(store.as_str())
                .bind(name)
                .fetch_optional(&self.reader)
                .await
                .map_err(StoreError::query("read a secret"))?;
        row.map(RawSecret::parse).transpose()
    }

    /// All secrets of a store, with their encrypted values.
    pub(crate) async fn list_sealed_secrets(
        &self,
        store: &SecretStoreId,
    ) -> Result<Vec<SealedSecret>, StoreError> {
        let rows: Vec<RawSealedSecret> = sqlx::query_as(sealed_columns!(
            "SELECT",
            "FROM secrets e JOIN secret_stores s ON s.id = e.store_id WHERE e.store_id = $1 ORDER BY e.name"
        ))
        .bind(store.as_str())
        .fetch_all(&self.reader)
        .await
        .map_err(StoreError::query("read the secrets of a store"))?;
        rows.into_iter().map(RawSealedSecret::parse).collect()
    }

    /// How many secrets there are with keys of each id.
    pub(crate) async fn list_secret_keys(&self, digits: usize) -> Result<Vec<(String, i64)>, StoreError> {
        sqlx::query_as("SELECT substr(sealed, 1, $1) AS key_id, count(*) FROM secrets GROUP BY key_id")
            .bind(i64::try_from(digits).unwrap_or(i64::MAX))
            .fetch_all(&self.reader)
            .await
            .map_err(StoreError::query("read which keys secrets are encrypted with"))
    }
}
