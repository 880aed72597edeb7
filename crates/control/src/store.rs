//! Tables and queries; one file a table.
//!
//! Owns the SQLite file `control.sqlite`. Writes go through one connection in transactions that take the write lock
//! at once (a deferred one that turns into a write fails without waiting); reads have a small pool of their own and
//! never wait for a writer. What people decide (keys, tags, deletes, settings) is synced to the drive with its commit.
//! What creates and reports write is in the file at once, so that it outlives this process, and on the drive within
//! [`SYNC_AFTER`]: a create would otherwise wait twice for the drive. The SQL is written so that PostgreSQL would take the same text.
//!
//! Nothing here decides anything: no rights, no defaults, no words for clients.

pub(crate) mod access;
pub(crate) mod audit;
pub(crate) mod audit_heads;
pub(crate) mod checkpoints;
mod error;
pub(crate) mod idempotency;
pub(crate) mod images;
pub(crate) mod keys;
mod memory;
pub(crate) mod patches;
pub(crate) mod previews;
pub(crate) mod sandboxes;
pub(crate) mod scaling;
pub(crate) mod secret_uses;
pub(crate) mod secrets;
pub(crate) mod tags;
pub(crate) mod usage;

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Sqlite, SqlitePool, Transaction};
use tokio::sync::Notify;

pub use error::StoreError;
use memory::Memory;

const FILE_NAME: &str = "control.sqlite";
const READERS: u32 = 4;
/// What creates and reports have written is on the drive at most this much later, and the time that takes.
const SYNC_AFTER: Duration = Duration::from_millis(500);
/// How long a write waits for another process (`warren keys` beside a server).
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
pub(crate) struct Store {
    writer: SqlitePool,
    /// Writes that are synced a little later: those of creates and reports.
    states: SqlitePool,
    reader: SqlitePool,
    memory: Memory,
    log: PathBuf,
    unsynced: Arc<Notify>,
    /// When it was opened: what was not seen since then may have changed while no server was there.
    opened_at: i64,
}

impl Store {
    pub(crate) fn exists(data_dir: &Path) -> bool {
        data_dir.join(FILE_NAME).exists()
    }

    /// Takes a database that was made a moment ago away again, so that the next start finds it missing too.
    pub(crate) fn remove_new(data_dir: &Path) {
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(data_dir.join(format!("{FILE_NAME}{suffix}")));
        }
    }

    /// Opens the store in `data_dir`, makes it if it is not there, and brings its tables up to date.
    pub(crate) async fn open(data_dir: &Path) -> Result<Self, StoreError> {
        let path = data_dir.join(FILE_NAME);
        make_private(data_dir, &path).map_err(|source| StoreError::Prepare { path: path.clone(), source })?;

        let options = SqliteConnectOptions::new()
            .filename(&path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT);
        let open = |source| StoreError::Open { path: path.clone(), source };
        let writer = pool(1).connect_with(options.clone()).await.map_err(open)?;
        sqlx::migrate!("migrations/sqlite")
            .run(&writer)
            .await
            .map_err(StoreError::migrating(path.clone()))?;
        let relaxed = options.clone().synchronous(SqliteSynchronous::Normal);
        let states = pool(1).connect_with(relaxed).await.map_err(open)?;
        let reader = pool(READERS).connect_with(options.read_only(true)).await.map_err(open)?;
        let memory = Memory::open(&path, &writer).await?;
        let mut log = path.clone().into_os_string();
        log.push("-wal");
        Ok(Self {
            writer,
            states,
            reader,
            memory,
            log: log.into(),
            unsynced: Arc::default(),
            opened_at: now_micros(),
        })
    }

    /// Whether the store can be read.
    pub(crate) async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1")
            .execute(&self.reader)
            .await
            .map(drop)
            .map_err(StoreError::query("read the store"))
    }

    /// Begins a transaction of the kind that is synced later.
    async fn begin_state(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        self.states.begin_with("BEGIN IMMEDIATE").await.map_err(StoreError::query("begin a transaction"))
    }

    /// Says that something was committed that is not synced yet.
    fn sync_soon(&self) {
        self.unsynced.notify_one();
    }

    /// Syncs what was committed, a little after each commit and once for all that come together. Runs for ever.
    pub(crate) async fn keep_synced(&self) {
        loop {
            self.unsynced.notified().await;
            tokio::time::sleep(SYNC_AFTER).await;
            let log = self.log.clone();
            let synced = tokio::task::spawn_blocking(move || File::open(log)?.sync_data()).await;
            if let Err(error) = synced.map_err(std::io::Error::other).flatten() {
                tracing::warn!(%error, "the store could not be synced to the drive");
            }
        }
    }

    async fn begin(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        self.writer.begin_with("BEGIN IMMEDIATE").await.map_err(StoreError::query("begin a transaction"))
    }
}

/// Connections to a file do not go stale: they are neither tested before use nor replaced.
fn pool(connections: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(connections)
        .test_before_acquire(false)
        .idle_timeout(None)
        .max_lifetime(None)
}

/// The folder and the file are for the server's own user: hashes of keys and names of customers are in there.
fn make_private(data_dir: &Path, file: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(data_dir)?;
    OpenOptions::new().create(true).append(true).mode(0o600).open(file)?;
    Ok(())
}

pub(crate) fn now_micros() -> i64 {
    Timestamp::now().as_microsecond()
}

/// A stored time; text and numbers in the file are ours, so a bad one is a broken file.
fn timestamp(micros: i64) -> Result<Timestamp, StoreError> {
    Timestamp::from_microsecond(micros)
        .map_err(|source| StoreError::Column { column: "a time", source: source.into() })
}
