//! The table of images, and the names they have: rows and reads. What changes rows is in `change`, layers are in `layers`.

pub(crate) mod change;
pub(crate) mod layers;
pub(crate) mod names;
pub(crate) mod references;

use std::collections::BTreeMap;

use jiff::Timestamp;
use sqlx::FromRow;
use warren_types::{CheckpointId, Isolation, OrgId};

use super::sandboxes::column;
use super::{Store, StoreError, timestamp};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ImageStatus {
    Building,
    Ready,
    Failed,
}

#[derive(Debug, Clone)]
pub(crate) struct ImageRow {
    pub id: String,
    pub org: OrgId,
    pub content_hash: String,
    pub isolation: Isolation,
    /// MiB; `None` where its manifest does not say.
    pub memory_mb: Option<u32>,
    /// Its manifest without long contents, JSON.
    pub shown: String,
    /// Of its checkpoint too: what was built and is lost is `Failed`.
    pub status: ImageStatus,
    pub error: Option<String>,
    pub checkpoint_id: Option<CheckpointId>,
    pub size_bytes: u64,
    pub envs: BTreeMap<String, String>,
    pub workdir: Option<String>,
    pub created_at: Timestamp,
    pub last_used_at: Timestamp,
}

/// What an image starts from, where that is more than what its manifest says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct StoredBase {
    /// The image a snapshot stands for.
    pub image: Option<(OrgId, String)>,
    /// What a reference to a registry stands for.
    pub digest: Option<String>,
}

/// What makes an image the same as another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ImageKey {
    pub org: OrgId,
    pub content_hash: String,
    pub isolation: Isolation,
    pub memory_mb: Option<u32>,
}

macro_rules! image_columns {
    ($before:literal, $after:literal) => {
        concat!(
            $before,
            " i.id, i.org_id, i.content_hash, i.isolation, i.memory_mb, i.shown, i.status, i.error, i.checkpoint_id, \
             c.status AS checkpoint_status, c.error AS checkpoint_error, c.size_bytes, i.envs, i.workdir, \
             i.created_at AS made_at, i.last_used_at ",
            $after
        )
    };
}
pub(super) use image_columns;

#[derive(FromRow)]
pub(super) struct RawImage {
    id: String,
    org_id: String,
    content_hash: String,
    isolation: String,
    memory_mb: i64,
    shown: String,
    status: String,
    error: Option<String>,
    checkpoint_id: Option<String>,
    checkpoint_status: Option<String>,
    checkpoint_error: Option<String>,
    size_bytes: Option<i64>,
    envs: String,
    workdir: Option<String>,
    made_at: i64,
    last_used_at: i64,
}

#[derive(Debug, thiserror::Error)]
#[error("unknown value {0:?}")]
struct Unknown(String);

/// Why an image whose checkpoint is not there cannot be used.
const LOST: &str = "what was built is no longer on its node; it is built anew when it is asked for";

// === impl ImageStatus ===

impl ImageStatus {
    const ALL: [Self; 3] = [Self::Building, Self::Ready, Self::Failed];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Building => "building",
            Self::Ready => "ready",
            Self::Failed => "failed",
        }
    }

    fn parse(text: &str) -> Result<Self, Unknown> {
        Self::ALL.into_iter().find(|status| status.as_str() == text).ok_or_else(|| Unknown(text.to_owned()))
    }
}

// === impl RawImage ===

impl RawImage {
    pub(super) fn parse(self) -> Result<ImageRow, StoreError> {
        let stored = column("images.status", ImageStatus::parse(&self.status))?;
        let lost = stored == ImageStatus::Ready && self.checkpoint_status.as_deref() != Some("ready");
        let (status, error) = if lost {
            (ImageStatus::Failed, Some(self.checkpoint_error.unwrap_or_else(|| LOST.to_owned())))
        } else {
            (stored, self.error)
        };
        let memory: u32 = column("images.memory_mb", self.memory_mb.try_into())?;
        Ok(ImageRow {
            id: self.id,
            org: OrgId(self.org_id),
            content_hash: self.content_hash,
            isolation: column("images.isolation", self.isolation.parse::<Isolation>().map_err(Unknown))?,
            memory_mb: (memory != 0).then_some(memory),
            shown: self.shown,
            status,
            error,
            checkpoint_id: column(
                "images.checkpoint_id",
                self.checkpoint_id.map(|id| id.parse()).transpose(),
            )?,
            size_bytes: column("checkpoints.size_bytes", self.size_bytes.unwrap_or(0).try_into())?,
            envs: column("images.envs", serde_json::from_str(&self.envs))?,
            workdir: self.workdir,
            created_at: timestamp(self.made_at)?,
            last_used_at: timestamp(self.last_used_at)?,
        })
    }
}

// === impl Store ===

impl Store {
    pub(crate) async fn find_image(&self, org: &OrgId, id: &str) -> Result<Option<ImageRow>, StoreError> {
        let row: Option<RawImage> = sqlx::query_as(image_columns!(
            "SELECT",
            "FROM images i LEFT JOIN checkpoints c ON c.id = i.checkpoint_id WHERE i.id = $1 AND i.org_id = $2"
        ))
        .bind(id)
        .bind(org.as_str())
        .fetch_optional(&self.reader)
        .await
        .map_err(StoreError::query("read an image"))?;
        row.map(RawImage::parse).transpose()
    }

    pub(crate) async fn find_image_like(&self, key: &ImageKey) -> Result<Option<ImageRow>, StoreError> {
        let row: Option<RawImage> = sqlx::query_as(image_columns!(
            "SELECT",
            "FROM images i LEFT JOIN checkpoints c ON c.id = i.checkpoint_id \
             WHERE i.org_id = $1 AND i.content_hash = $2 AND i.isolation = $3 AND i.memory_mb = $4"
        ))
        .bind(key.org.as_str())
        .bind(&key.content_hash)
        .bind(key.isolation.as_str())
        .bind(i64::from(key.memory_mb.unwrap_or(0)))
        .fetch_optional(&self.reader)
        .await
        .map_err(StoreError::query("look an image up"))?;
        row.map(RawImage::parse).transpose()
    }

    /// What an image is made of, as it was sent; `None` too where that is longer than `max` bytes.
    pub(crate) async fn find_manifest(&self, id: &str, max: u32) -> Result<Option<String>, StoreError> {
        sqlx::query_scalar("SELECT manifest FROM images WHERE id = $1 AND octet_length(manifest) <= $2")
            .bind(id)
            .bind(i64::from(max))
            .fetch_optional(&self.reader)
            .await
            .map_err(StoreError::query("read what an image is made of"))
    }

    /// What an image started from, as far as its name may stand for something else by now.
    pub(crate) async fn find_image_base(&self, id: &str) -> Result<StoredBase, StoreError> {
        let found: Option<(Option<String>, Option<String>, Option<String>)> =
            sqlx::query_as("SELECT base_org, base_image, base_digest FROM images WHERE id = $1")
                .bind(id)
                .fetch_optional(&self.reader)
                .await
                .map_err(StoreError::query("read what an image starts from"))?;
        let (org, image, digest) = found.unwrap_or_default();
        Ok(StoredBase { image: org.map(OrgId).zip(image), digest })
    }

    /// Images that were being built, whoever owns them, and whether they have a name.
    pub(crate) async fn list_unfinished_images(&self) -> Result<Vec<(String, OrgId, bool)>, StoreError> {
        let rows: Vec<(String, String, i64)> = sqlx::query_as(
            "SELECT i.id, i.org_id, (SELECT count(*) FROM image_names n WHERE n.image_id = i.id) FROM images i \
             WHERE i.status = 'building'",
        )
        .fetch_all(&self.reader)
        .await
        .map_err(StoreError::query("list the images that were being built"))?;
        Ok(rows.into_iter().map(|(id, org, names)| (id, OrgId(org), names > 0)).collect())
    }
}
