//! Audit records: a file of their own, `audit.db`, that is only ever appended to and cut at its old end.
//!
//! A group of records is one statement, so that it is there whole or not at all. It is in the file when it is answered, which
//! outlives this process, and on the drive a little later ([`AuditStore::sync`]).

use std::fs::File;
use std::path::{Path, PathBuf};

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{FromRow, QueryBuilder, Sqlite, SqliteExecutor, SqlitePool, Transaction};

use super::audit_heads::SealedHead;
use super::{BUSY_TIMEOUT, StoreError, make_private, now_micros, pool};

pub(crate) const FILE_NAME: &str = "audit.db";
const READERS: u32 = 2;

#[derive(Debug, Clone)]
pub(crate) struct AuditStore {
    writer: SqlitePool,
    reader: SqlitePool,
    log: PathBuf,
}

/// A record as it is stored. `id` is over all organisations, and 0 for one that is not stored yet.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub(crate) struct AuditRow {
    pub id: i64,
    pub org: String,
    pub seq: i64,
    /// Microseconds.
    pub at: i64,
    pub sandbox: Option<String>,
    pub kind: String,
    pub actor: String,
    pub request: Option<String>,
    pub detail: String,
    pub hash: String,
    /// That this installation wrote it. Records from before there was one have none.
    pub mac: Option<String>,
}

/// The end of a chain.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub(crate) struct Head {
    pub seq: i64,
    pub hash: String,
}

/// Which records of an organisation are wanted, oldest first.
#[derive(Debug, Clone, Default)]
pub(crate) struct AuditFilter {
    pub org: String,
    pub after: i64,
    pub sandbox: Option<String>,
    /// Whole kinds, or what comes before a dot in them.
    pub kinds: Vec<String>,
    pub actor: Option<String>,
    /// Microseconds.
    pub since: Option<i64>,
    pub until: Option<i64>,
    pub limit: i64,
    /// The last `limit` of them instead of the first.
    pub newest: bool,
}

pub(crate) async fn insert(executor: impl SqliteExecutor<'_>, rows: &[AuditRow]) -> Result<(), StoreError> {
    let mut query = QueryBuilder::<Sqlite>::new(
        "INSERT INTO audit (org, seq, at, sandbox, kind, actor, request, detail, hash, mac) ",
    );
    query.push_values(rows, |mut values, row| {
        values
            .push_bind(&row.org)
            .push_bind(row.seq)
            .push_bind(row.at)
            .push_bind(&row.sandbox)
            .push_bind(&row.kind)
            .push_bind(&row.actor)
            .push_bind(&row.request)
            .push_bind(&row.detail)
            .push_bind(&row.hash)
            .push_bind(&row.mac);
    });
    query.build().execute(executor).await.map(drop).map_err(StoreError::query("write audit records"))
}

pub(crate) async fn head(executor: impl SqliteExecutor<'_>, org: &str) -> Result<Option<Head>, StoreError> {
    sqlx::query_as(
        "SELECT seq, hash FROM (SELECT seq, hash FROM audit WHERE org = $1 ORDER BY seq DESC LIMIT 1) \
         UNION ALL SELECT seq, hash FROM audit_anchors WHERE org = $1 ORDER BY seq DESC LIMIT 1",
    )
    .bind(org)
    .fetch_optional(executor)
    .await
    .map_err(StoreError::query("find the end of the audit records"))
}

impl AuditStore {
    pub(crate) fn exists(data_dir: &Path) -> bool {
        data_dir.join(FILE_NAME).exists()
    }

    /// Opens the records in `data_dir`, makes the file if it is not there, and brings its tables up to date.
    pub(crate) async fn open(data_dir: &Path) -> Result<Self, StoreError> {
        let path = data_dir.join(FILE_NAME);
        make_private(data_dir, &path).map_err(|source| StoreError::Prepare { path: path.clone(), source })?;
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(BUSY_TIMEOUT);
        let open = |source| StoreError::Open { path: path.clone(), source };
        let writer = pool(1).connect_with(options.clone()).await.map_err(open)?;
        sqlx::migrate!("migrations/audit").run(&writer).await.map_err(StoreError::migrating(path.clone()))?;
        let reader = pool(READERS).connect_with(options.read_only(true)).await.map_err(open)?;
        let mut log = path.into_os_string();
        log.push("-wal");
        Ok(Self { writer, reader, log: log.into() })
    }

    /// Adds records, all or none. [`StoreError::is_taken`] when somebody else has gone on with one of the chains.
    pub(crate) async fn append(&self, rows: &[AuditRow]) -> Result<(), StoreError> {
        insert(&self.writer, rows).await
    }

    /// Keeps everybody else from adding records until the transaction ends.
    pub(crate) async fn begin(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        self.writer
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(StoreError::query("begin to write audit records"))
    }

    /// Makes what was appended outlast a loss of power.
    pub(crate) async fn sync(&self) -> std::io::Result<()> {
        let log = self.log.clone();
        let synced = tokio::task::spawn_blocking(move || File::open(log)?.sync_data()).await;
        synced.map_err(std::io::Error::other).flatten()
    }

    /// Where the chain of an organisation ends: its last record, or what was removed last.
    pub(crate) async fn find_head(&self, org: &str) -> Result<Option<Head>, StoreError> {
        head(&self.reader, org).await
    }

    /// The record of that number.
    pub(crate) async fn find_at(&self, org: &str, seq: i64) -> Result<Option<Head>, StoreError> {
        sqlx::query_as("SELECT seq, hash FROM audit WHERE org = $1 AND seq = $2")
            .bind(org)
            .bind(seq)
            .fetch_optional(&self.reader)
            .await
            .map_err(StoreError::query("find an audit record"))
    }

    /// Organisations with records, or that had some.
    pub(crate) async fn list_orgs(&self) -> Result<Vec<String>, StoreError> {
        sqlx::query_scalar("SELECT org FROM audit UNION SELECT org FROM audit_anchors ORDER BY 1")
            .fetch_all(&self.reader)
            .await
            .map_err(StoreError::query("list whose audit records there are"))
    }

    pub(crate) async fn list(&self, filter: &AuditFilter) -> Result<Vec<AuditRow>, StoreError> {
        let mut query = QueryBuilder::<Sqlite>::new(
            "SELECT id, org, seq, at, sandbox, kind, actor, request, detail, hash, mac FROM audit WHERE org = ",
        );
        query.push_bind(&filter.org).push(" AND seq > ").push_bind(filter.after);
        if let Some(sandbox) = &filter.sandbox {
            query.push(" AND sandbox = ").push_bind(sandbox);
        }
        if let Some(actor) = &filter.actor {
            query.push(" AND actor = ").push_bind(actor);
        }
        if let Some(since) = filter.since {
            query.push(" AND at >= ").push_bind(since);
        }
        if let Some(until) = filter.until {
            query.push(" AND at < ").push_bind(until);
        }
        if !filter.kinds.is_empty() {
            query.push(" AND (");
            for (index, kind) in filter.kinds.iter().enumerate() {
                query.push(if index == 0 { "" } else { " OR " });
                query.push("kind = ").push_bind(kind);
                // What begins with the word and a dot; nothing in it is a pattern.
                query.push(" OR substr(kind, 1, ").push_bind(kind.len() as i64 + 1);
                query.push(") = ").push_bind(format!("{kind}."));
            }
            query.push(")");
        }
        query.push(if filter.newest { " ORDER BY seq DESC LIMIT " } else { " ORDER BY seq LIMIT " });
        query.push_bind(filter.limit);
        let mut rows: Vec<AuditRow> = query
            .build_query_as()
            .fetch_all(&self.reader)
            .await
            .map_err(StoreError::query("list audit records"))?;
        if filter.newest {
            rows.reverse();
        }
        Ok(rows)
    }

    /// Records of all organisations in the order they were written.
    pub(crate) async fn list_after_id(&self, id: i64, limit: i64) -> Result<Vec<AuditRow>, StoreError> {
        sqlx::query_as(
            "SELECT id, org, seq, at, sandbox, kind, actor, request, detail, hash, mac FROM audit WHERE id > $1 \
             ORDER BY id LIMIT $2",
        )
        .bind(id)
        .bind(limit)
        .fetch_all(&self.reader)
        .await
        .map_err(StoreError::query("list audit records to send"))
    }

    pub(crate) async fn find_anchor(&self, org: &str) -> Result<Option<SealedHead>, StoreError> {
        sqlx::query_as("SELECT org, seq, hash, mac FROM audit_anchors WHERE org = $1")
            .bind(org)
            .fetch_optional(&self.reader)
            .await
            .map_err(StoreError::query("find where audit records begin"))
    }

    /// The last of the oldest records of an organisation that are all from before that time (microseconds).
    pub(crate) async fn find_last_before(&self, org: &str, time: i64) -> Result<Option<Head>, StoreError> {
        sqlx::query_as(
            "SELECT seq, hash FROM audit WHERE org = $1 AND seq < coalesce( \
                 (SELECT seq FROM audit WHERE org = $1 AND at >= $2 ORDER BY seq LIMIT 1), \
                 (SELECT max(seq) FROM audit WHERE org = $1)) \
             ORDER BY seq DESC LIMIT 1",
        )
        .bind(org)
        .bind(time)
        .fetch_optional(&self.reader)
        .await
        .map_err(StoreError::query("find old audit records"))
    }

    /// Removes the records up to an anchor, and leaves the anchor.
    pub(crate) async fn remove_until(&self, anchor: &SealedHead) -> Result<u64, StoreError> {
        let failed = StoreError::query("remove old audit records");
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await.map_err(&failed)?;
        sqlx::query(
            "INSERT INTO audit_anchors (org, seq, hash, mac, at) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (org) DO UPDATE SET seq = excluded.seq, hash = excluded.hash, mac = excluded.mac, at = excluded.at",
        )
        .bind(&anchor.org)
        .bind(anchor.seq)
        .bind(&anchor.hash)
        .bind(&anchor.mac)
        .bind(now_micros())
        .execute(&mut *tx)
        .await
        .map_err(&failed)?;
        let removed = sqlx::query("DELETE FROM audit WHERE org = $1 AND seq <= $2")
            .bind(&anchor.org)
            .bind(anchor.seq)
            .execute(&mut *tx)
            .await
            .map_err(&failed)?;
        tx.commit().await.map_err(&failed)?;
        Ok(removed.rows_affected())
    }

    pub(crate) async fn find_cursor(&self, target: &str) -> Result<Option<i64>, StoreError> {
        sqlx::query_scalar("SELECT id FROM audit_cursors WHERE target = $1")
            .bind(target)
            .fetch_optional(&self.reader)
            .await
            .map_err(StoreError::query("find how far audit records were sent"))
    }

    pub(crate) async fn put_cursor(&self, target: &str, id: i64) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO audit_cursors (target, id) VALUES ($1, $2) ON CONFLICT (target) DO UPDATE SET id = excluded.id",
        )
        .bind(target)
        .bind(id)
        .execute(&self.writer)
        .await
        .map(drop)
        .map_err(StoreError::query("write down how far audit records were sent"))
    }
}
