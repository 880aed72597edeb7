//! The table of checkpoints: rows and reads. What changes rows is in `change`.

pub(crate) mod change;

use std::collections::HashMap;

use jiff::Timestamp;
use sqlx::FromRow;
use warren_node_api::SandboxSpec;
use warren_types::{CheckpointId, OrgId, SandboxId, tags::Tags};

use super::access::AccessRecord;
use super::sandboxes::column;
use super::{Store, StoreError, timestamp};

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Full,
    DiskOnly,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Processing,
    Ready,
    Failed,
    /// Gone for its owner; its node may not know yet.
    Deleting,
}

#[derive(Debug, Clone)]
pub(crate) struct CheckpointRow {
    pub id: CheckpointId,
    pub org: OrgId,
    pub sandbox_id: SandboxId,
    pub name: String,
    pub kind: Kind,
    pub status: Status,
    pub captured: bool,
    pub holds: String,
    pub consistency: Option<String>,
    pub pause_us: Option<u64>,
    pub size_bytes: u64,
    pub is_public: bool,
    /// Absent until it is captured.
    pub spec: Option<SandboxSpec>,
    pub metadata: Tags,
    pub alias: Option<String>,
    pub error: Option<String>,
    pub failed_at: Option<Timestamp>,
    pub created_at: Timestamp,
    /// What its sandbox was given.
    pub access: AccessRecord,
}

/// What the reconciler needs of a row.
#[derive(Debug, Clone)]
pub(crate) struct CheckpointStanding {
    pub id: CheckpointId,
    pub status: Status,
    pub generation: u64,
    /// Sequence numbers, ascending.
    pub patches: Vec<u32>,
}

/// The checkpoint that already has an idempotency key.
#[derive(Debug, Clone, FromRow)]
pub(crate) struct KeyedCheckpoint {
    pub body_hash: String,
    pub id: String,
}

macro_rules! with_columns {
    ($before:literal, $after:literal) => {
        concat!(
            $before,
            " id, org_id, sandbox_id, name, kind, status, captured, holds, consistency, pause_us, size_bytes, is_public, \
             spec, metadata, alias, error, failed_at, created_at, access ",
            $after
        )
    };
}
pub(super) use with_columns;

#[derive(FromRow)]
pub(super) struct RawCheckpoint {
    id: String,
    org_id: String,
    sandbox_id: String,
    name: String,
    kind: String,
    status: String,
    captured: i64,
    holds: String,
    consistency: Option<String>,
    pause_us: Option<i64>,
    size_bytes: i64,
    is_public: i64,
    spec: Option<String>,
    metadata: String,
    alias: Option<String>,
    error: Option<String>,
    failed_at: Option<i64>,
    created_at: i64,
    access: Option<String>,
}

#[derive(FromRow)]
struct RawStanding {
    id: String,
    status: String,
    generation: i64,
}

#[derive(FromRow)]
struct RawSequence {
    checkpoint_id: String,
    sequence: i64,
}

#[derive(Debug, thiserror::Error)]
#[error("unknown value {0:?}")]
pub(super) struct Unknown(String);

// === impl Kind ===

impl Kind {
    pub(crate) const ALL: [Self; 2] = [Self::Full, Self::DiskOnly];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::DiskOnly => "disk_only",
        }
    }
}

// === impl Status ===

impl Status {
    pub(crate) const ALL: [Self; 4] = [Self::Processing, Self::Ready, Self::Failed, Self::Deleting];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Processing => "processing",
            Self::Ready => "ready",
            Self::Failed => "failed",
            Self::Deleting => "deleting",
        }
    }

    fn parse(text: &str) -> Result<Self, Unknown> {
        Self::ALL.into_iter().find(|status| status.as_str() == text).ok_or_else(|| Unknown(text.to_owned()))
    }
}

// === impl RawCheckpoint ===

impl RawCheckpoint {
    pub(super) fn parse(self) -> Result<CheckpointRow, StoreError> {
        let kind = Kind::ALL
            .into_iter()
            .find(|kind| kind.as_str() == self.kind)
            .ok_or_else(|| Unknown(self.kind.clone()));
        Ok(CheckpointRow {
            id: column("checkpoints.id", self.id.parse())?,
            org: OrgId(self.org_id),
            sandbox_id: column("checkpoints.sandbox_id", self.sandbox_id.parse())?,
            name: self.name,
            kind: column("checkpoints.kind", kind)?,
            status: column("checkpoints.status", Status::parse(&self.status))?,
            captured: self.captured != 0,
            holds: self.holds,
            consistency: self.consistency,
            pause_us: column("checkpoints.pause_us", self.pause_us.map(TryInto::try_into).transpose())?,
            size_bytes: column("checkpoints.size_bytes", self.size_bytes.try_into())?,
            is_public: self.is_public != 0,
            spec: column("checkpoints.spec", self.spec.as_deref().map(serde_json::from_str).transpose())?,
            metadata: column("checkpoints.metadata", serde_json::from_str(&self.metadata))?,
            alias: self.alias,
            error: self.error,
            failed_at: self.failed_at.map(timestamp).transpose()?,
            created_at: timestamp(self.created_at)?,
            access: column(
                "checkpoints.access",
                self.access.as_deref().map_or_else(|| Ok(AccessRecord::default()), serde_json::from_str),
            )?,
        })
    }
}

impl RawStanding {
    fn parse(self, patches: &mut HashMap<String, Vec<u32>>) -> Result<CheckpointStanding, StoreError> {
        Ok(CheckpointStanding {
            patches: patches.remove(&self.id).unwrap_or_default(),
            id: column("checkpoints.id", self.id.parse())?,
            status: column("checkpoints.status", Status::parse(&self.status))?,
            generation: column("checkpoints.generation", self.generation.try_into())?,
        })
    }
}

// === impl Store ===

impl Store {
    /// A checkpoint, whoever owns it; one that is being deleted is gone.
    pub(crate) async fn find_checkpoint(
        &self,
        id: &CheckpointId,
    ) -> Result<Option<CheckpointRow>, StoreError> {
        let row: Option<RawCheckpoint> = sqlx::query_as(with_columns!(
            "SELECT",
            "FROM checkpoints WHERE id = $1 AND status <> 'deleting'"
        ))
        .bind(id.as_str())
        .fetch_optional(&self.reader)
        .await
        .map_err(StoreError::query("read a checkpoint"))?;
        row.map(RawCheckpoint::parse).transpose()
    }

    /// The checkpoints of a sandbox, newest first.
    pub(crate) async fn list_checkpoints(
        &self,
        sandbox: &SandboxId,
    ) -> Result<Vec<CheckpointRow>, StoreError> {
        let rows: Vec<RawCheckpoint> = sqlx::query_as(with_columns!(
            "SELECT",
            "FROM checkpoints WHERE sandbox_id = $1 AND status <> 'deleting' ORDER BY created_at DESC, id DESC"
        ))
        .bind(sandbox.as_str())
        .fetch_all(&self.reader)
        .await
        .map_err(StoreError::query("list the checkpoints of a sandbox"))?;
        rows.into_iter().map(RawCheckpoint::parse).collect()
    }

    pub(crate) async fn find_keyed_checkpoint(
        &self,
        org: &OrgId,
        key: &str,
    ) -> Result<Option<KeyedCheckpoint>, StoreError> {
        sqlx::query_as("SELECT body_hash, id FROM checkpoints WHERE org_id = $1 AND idempotency_key = $2")
            .bind(org.as_str())
            .bind(key)
            .fetch_optional(&self.reader)
            .await
            .map_err(StoreError::query("look an idempotency key up"))
    }

    /// Where every checkpoint stands, whoever owns it.
    pub(crate) async fn list_checkpoint_standings(&self) -> Result<Vec<CheckpointStanding>, StoreError> {
        let failed = StoreError::query("list the checkpoints");
        let sequences: Vec<RawSequence> =
            sqlx::query_as("SELECT checkpoint_id, sequence FROM checkpoint_patches ORDER BY sequence")
                .fetch_all(&self.reader)
                .await
                .map_err(&failed)?;
        let mut patches: HashMap<String, Vec<u32>> = HashMap::new();
        for row in sequences {
            let sequence = column("checkpoint_patches.sequence", row.sequence.try_into())?;
            patches.entry(row.checkpoint_id).or_default().push(sequence);
        }
        let rows: Vec<RawStanding> = sqlx::query_as("SELECT id, status, generation FROM checkpoints")
            .fetch_all(&self.reader)
            .await
            .map_err(&failed)?;
        rows.into_iter().map(|row| row.parse(&mut patches)).collect()
    }
}
