//! The table of sandboxes: rows and the reads of one of them. What changes rows is in `change`, pages are in `list`.

pub(crate) mod change;
pub(crate) mod list;

use std::error::Error as StdError;
use std::str::FromStr;

use jiff::Timestamp;
use sqlx::FromRow;
use warren_types::{CheckpointId, OrgId, SandboxId, SandboxState, Size, tags::Tags};

use super::{Store, StoreError, timestamp};

/// What the owner last asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Intent {
    Running,
    Hibernated,
    Deleted,
}

#[derive(Debug, Clone)]
pub(crate) struct SandboxRow {
    pub id: SandboxId,
    pub org: OrgId,
    pub node_id: String,
    pub template: String,
    pub alias: Option<String>,
    pub isolation: String,
    pub size: Size,
    pub timeout_seconds: u32,
    pub metadata: Tags,
    pub tags: Tags,
    pub tags_updated_at: Option<Timestamp>,
    pub observed: SandboxState,
    pub generation: u64,
    pub reason: Option<String>,
    pub created_at: Timestamp,
    pub ended_at: Option<Timestamp>,
    pub warning: Option<String>,
    pub processes_since: Option<Timestamp>,
    pub from_checkpoint: Option<CheckpointId>,
    pub patch_error: Option<String>,
}

/// What a data-plane call and the reconciler need of a row.
#[derive(Debug, Clone)]
pub(crate) struct SandboxStanding {
    pub id: SandboxId,
    pub org: OrgId,
    pub intent: Intent,
    pub observed: SandboxState,
    pub generation: u64,
    pub reason: Option<String>,
    /// Of the token that opens its previews; `None`: they are open.
    pub preview_hash: Option<String>,
}

/// A statement over whole rows: the column list in one place.
macro_rules! with_columns {
    ($before:literal, $after:literal) => {
        concat!(
            $before,
            " id, org_id, node_id, template, alias, isolation, cpu_count, memory_mb, disk_mb, timeout_seconds, \
             metadata, tags, tags_updated_at, observed, generation, reason, created_at, ended_at, warning, \
             processes_since, from_checkpoint, patch_error ",
            $after
        )
    };
}
pub(super) use with_columns;

#[derive(FromRow)]
pub(super) struct RawSandbox {
    id: String,
    org_id: String,
    node_id: String,
    template: String,
    alias: Option<String>,
    isolation: String,
    cpu_count: i64,
    memory_mb: i64,
    disk_mb: i64,
    timeout_seconds: i64,
    metadata: String,
    tags: String,
    tags_updated_at: Option<i64>,
    observed: String,
    generation: i64,
    reason: Option<String>,
    created_at: i64,
    ended_at: Option<i64>,
    warning: Option<String>,
    processes_since: Option<i64>,
    from_checkpoint: Option<String>,
    patch_error: Option<String>,
}

#[derive(FromRow)]
pub(super) struct RawStanding {
    id: String,
    org_id: String,
    intent: String,
    observed: String,
    generation: i64,
    reason: Option<String>,
    preview_hash: Option<String>,
}

// === impl Intent ===

impl Intent {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Hibernated => "hibernated",
            Self::Deleted => "deleted",
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("unknown intent {0:?}: expected running, hibernated or deleted")]
pub(crate) struct UnknownIntent(String);

impl FromStr for Intent {
    type Err = UnknownIntent;

    fn from_str(text: &str) -> Result<Self, UnknownIntent> {
        [Self::Running, Self::Hibernated, Self::Deleted]
            .into_iter()
            .find(|intent| intent.as_str() == text)
            .ok_or_else(|| UnknownIntent(text.to_owned()))
    }
}

// === impl RawSandbox ===

impl RawSandbox {
    pub(super) fn parse(self) -> Result<SandboxRow, StoreError> {
        Ok(SandboxRow {
            id: column("sandboxes.id", self.id.parse())?,
            org: OrgId(self.org_id),
            node_id: self.node_id,
            template: self.template,
            alias: self.alias,
            isolation: self.isolation,
            size: Size {
                cpu_count: column("sandboxes.cpu_count", self.cpu_count.try_into())?,
                memory_mb: column("sandboxes.memory_mb", self.memory_mb.try_into())?,
                disk_mb: column("sandboxes.disk_mb", self.disk_mb.try_into())?,
            },
            timeout_seconds: column("sandboxes.timeout_seconds", self.timeout_seconds.try_into())?,
            metadata: column("sandboxes.metadata", serde_json::from_str(&self.metadata))?,
            tags: column("sandboxes.tags", serde_json::from_str(&self.tags))?,
            tags_updated_at: self.tags_updated_at.map(timestamp).transpose()?,
            observed: column("sandboxes.observed", self.observed.parse())?,
            generation: column("sandboxes.generation", self.generation.try_into())?,
            reason: self.reason,
            created_at: timestamp(self.created_at)?,
            ended_at: self.ended_at.map(timestamp).transpose()?,
            warning: self.warning,
            processes_since: column(
                "sandboxes.processes_since",
                self.processes_since.map(Timestamp::from_millisecond).transpose(),
            )?,
            from_checkpoint: column(
                "sandboxes.from_checkpoint",
                self.from_checkpoint.map(|id| id.parse()).transpose(),
            )?,
            patch_error: self.patch_error,
        })
    }
}

impl RawStanding {
    pub(super) fn parse(self) -> Result<SandboxStanding, StoreError> {
        Ok(SandboxStanding {
            id: column("sandboxes.id", self.id.parse())?,
            org: OrgId(self.org_id),
            intent: column("sandboxes.intent", self.intent.parse())?,
            observed: column("sandboxes.observed", self.observed.parse())?,
            generation: column("sandboxes.generation", self.generation.try_into())?,
            reason: self.reason,
            preview_hash: self.preview_hash,
        })
    }
}

pub(super) fn column<T, E: StdError + Send + Sync + 'static>(
    column: &'static str,
    parsed: Result<T, E>,
) -> Result<T, StoreError> {
    parsed.map_err(|source| StoreError::Column { column, source: Box::new(source) })
}

pub(super) fn to_json(labels: &Tags) -> String {
    serde_json::to_string(labels).expect("a map of strings has a JSON form")
}

// === impl Store ===

impl Store {
    pub(crate) async fn find_sandbox(
        &self,
        org: &OrgId,
        id: &SandboxId,
    ) -> Result<Option<SandboxRow>, StoreError> {
        let row: Option<RawSandbox> =
            sqlx::query_as(with_columns!("SELECT", "FROM sandboxes WHERE id = $1 AND org_id = $2"))
                .bind(id.as_str())
                .bind(org.as_str())
                .fetch_optional(&self.reader)
                .await
                .map_err(StoreError::query("read a sandbox"))?;
        row.map(RawSandbox::parse).transpose()
    }

    /// Where it stands, whoever owns it: the caller compares the organisation, or is not acting for one.
    pub(crate) async fn find_standing(&self, id: &SandboxId) -> Result<Option<SandboxStanding>, StoreError> {
        self.memory.recall(|kept| &mut kept.standings, id, self.read_standing(id)).await
    }

    async fn read_standing(&self, id: &SandboxId) -> Result<Option<SandboxStanding>, StoreError> {
        let row: Option<RawStanding> = sqlx::query_as(
            "SELECT id, org_id, intent, observed, generation, reason, preview_hash FROM sandboxes WHERE id = $1",
        )
        .bind(id.as_str())
        .fetch_optional(&self.reader)
        .await
        .map_err(StoreError::query("read where a sandbox stands"))?;
        row.map(RawStanding::parse).transpose()
    }

    /// Everything that is not stopped, whoever owns it.
    pub(crate) async fn list_unstopped(&self) -> Result<Vec<SandboxStanding>, StoreError> {
        let rows: Vec<RawStanding> = sqlx::query_as(
            "SELECT id, org_id, intent, observed, generation, reason, preview_hash FROM sandboxes \
             WHERE observed IN ('creating', 'running', 'hibernated', 'error')",
        )
        .fetch_all(&self.reader)
        .await
        .map_err(StoreError::query("list the sandboxes that are not stopped"))?;
        rows.into_iter().map(RawStanding::parse).collect()
    }
}
