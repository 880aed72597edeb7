//! What secrets were: values that were replaced or removed, kept encrypted for a while for the sandboxes that had them.

use sqlx::{FromRow, Sqlite, Transaction};
use warren_types::SandboxId;

use super::{RawSealedSecret, SealedSecret};
use crate::store::{Store, StoreError, now_micros};

/// For so long what a host says is searched for a value that it was given before; as nodes have it.
const KEPT_MICROS: i64 = 60 * 60 * 1_000_000;
/// Values of one secret.
const KEPT_VERSIONS: i64 = 4;

/// A secret as it was for a sandbox.
#[derive(Debug, Clone)]
pub(crate) struct FormerRow {
    pub token: String,
    pub secret: SealedSecret,
    /// Microseconds.
    pub until: i64,
}

#[derive(FromRow)]
struct RawFormer {
    token: String,
    until: i64,
    #[sqlx(flatten)]
    secret: RawSealedSecret,
}

impl Store {
    /// The newest first.
    pub(crate) async fn list_former_secrets(&self, id: &SandboxId) -> Result<Vec<FormerRow>, StoreError> {
        let rows: Vec<RawFormer> = sqlx::query_as(
            "SELECT t.token, f.until, f.secret_id AS id, f.org_id, f.store_id, f.name, f.version, f.sealed, \
             f.allowed_hosts, '[]' AS places FROM \
             (SELECT token, secret_id FROM sealed_tokens WHERE sandbox_id = $1 \
             UNION SELECT token, secret_id FROM former_tokens WHERE sandbox_id = $1) t \
             JOIN former_secrets f ON f.secret_id = t.secret_id WHERE f.until > $2 \
             ORDER BY f.until DESC, f.version DESC",
        )
        .bind(id.as_str())
        .bind(now_micros())
        .fetch_all(&self.reader)
        .await
        .map_err(StoreError::query("read what the secrets of a sandbox were"))?;
        let parse = |row: RawFormer| {
            Ok(FormerRow { token: row.token, until: row.until, secret: row.secret.parse()? })
        };
        rows.into_iter().map(parse).collect()
    }

    /// Forgets values whose time is over, and tokens of sandboxes that ended before that time (microseconds).
    pub(crate) async fn forget_former_secrets(&self, before: i64) -> Result<(), StoreError> {
        let failed = StoreError::query("forget what secrets were");
        sqlx::query("DELETE FROM former_secrets WHERE until <= $1")
            .bind(now_micros())
            .execute(&self.writer)
            .await
            .map_err(&failed)?;
        sqlx::query(
            "DELETE FROM former_tokens WHERE sandbox_id IN (SELECT t.sandbox_id FROM former_tokens t \
             JOIN sandboxes b ON b.id = t.sandbox_id WHERE b.observed = 'stopped' AND b.ended_at < $1)",
        )
        .bind(before)
        .execute(&self.writer)
        .await
        .map(drop)
        .map_err(failed)
    }

    /// Encrypts anew what secrets were.
    pub(super) async fn reseal_former<E: From<StoreError>>(
        tx: &mut Transaction<'static, Sqlite>,
        mut reseal: impl FnMut(&SealedSecret) -> Result<String, E>,
    ) -> Result<(), E> {
        let failed = StoreError::query("encrypt anew what secrets were");
        let rows: Vec<RawSealedSecret> = sqlx::query_as(
            "SELECT secret_id AS id, org_id, store_id, name, version, sealed, allowed_hosts, '[]' AS places \
             FROM former_secrets",
        )
        .fetch_all(&mut **tx)
        .await
        .map_err(&failed)?;
        for row in rows {
            let former = row.parse()?;
            let sealed = reseal(&former)?;
            sqlx::query("UPDATE former_secrets SET sealed = $1 WHERE secret_id = $2 AND version = $3")
                .bind(sealed)
                .bind(&former.id)
                .bind(former.version)
                .execute(&mut **tx)
                .await
                .map_err(&failed)?;
        }
        Ok(())
    }
}

/// Keeps what secrets are that a sandbox has, before they change: the one secret, or all of a store.
pub(super) async fn keep(tx: &mut Transaction<'static, Sqlite>, of: Of<'_>) -> Result<(), StoreError> {
    let failed = StoreError::query("keep what a secret was");
    let (secret, store) = of.ids();
    sqlx::query(
        "INSERT OR REPLACE INTO former_secrets \
         (secret_id, org_id, store_id, name, version, sealed, allowed_hosts, until) \
         SELECT e.id, s.org_id, e.store_id, e.name, e.version, e.sealed, e.allowed_hosts, $1 \
         FROM secrets e JOIN secret_stores s ON s.id = e.store_id WHERE (e.id = $2 OR e.store_id = $3) \
         AND EXISTS (SELECT 1 FROM sealed_tokens t WHERE t.secret_id = e.id)",
    )
    .bind(now_micros() + KEPT_MICROS)
    .bind(secret)
    .bind(store)
    .execute(&mut **tx)
    .await
    .map_err(&failed)?;
    sqlx::query(
        "DELETE FROM former_secrets WHERE (secret_id = $1 OR store_id = $2) AND version <= \
         (SELECT max(f.version) FROM former_secrets f WHERE f.secret_id = former_secrets.secret_id) - $3",
    )
    .bind(secret)
    .bind(store)
    .bind(KEPT_VERSIONS)
    .execute(&mut **tx)
    .await
    .map(drop)
    .map_err(failed)
}

/// The same, with what stands for them, which goes with them.
pub(super) async fn keep_with_tokens(
    tx: &mut Transaction<'static, Sqlite>,
    of: Of<'_>,
) -> Result<(), StoreError> {
    let (secret, store) = of.ids();
    sqlx::query(
        "INSERT OR REPLACE INTO former_tokens (sandbox_id, token, secret_id) \
         SELECT t.sandbox_id, t.token, t.secret_id FROM sealed_tokens t JOIN secrets e ON e.id = t.secret_id \
         WHERE e.id = $1 OR e.store_id = $2",
    )
    .bind(secret)
    .bind(store)
    .execute(&mut **tx)
    .await
    .map_err(StoreError::query("keep what stood for a secret"))?;
    keep(tx, of).await
}

/// What is about to change.
#[derive(Clone, Copy)]
pub(super) enum Of<'a> {
    Secret(&'a str),
    Store(&'a str),
}

impl Of<'_> {
    fn ids(&self) -> (Option<&str>, Option<&str>) {
        match self {
            Self::Secret(id) => (Some(id), None),
            Self::Store(id) => (None, Some(id)),
        }
    }
}
