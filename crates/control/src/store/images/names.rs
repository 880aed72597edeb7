//! Snapshots: the names of images.

use jiff::Timestamp;
use sqlx::FromRow;
use warren_types::OrgId;

use super::{ImageRow, RawImage, image_columns};
use crate::store::sandboxes::column;
use crate::store::{Store, StoreError, now_micros, timestamp};

/// An image, by one of its names or by none.
#[derive(Debug, Clone)]
pub(crate) struct NamedImage {
    pub image: ImageRow,
    pub name: Option<SnapshotName>,
}

#[derive(Debug, Clone)]
pub(crate) struct SnapshotName {
    pub name: String,
    pub version: u32,
    pub is_public: bool,
    pub created_at: Timestamp,
}

/// What became of a version that was to be published, or to be published no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Publishing {
    Done,
    /// Another organisation has published that name.
    Taken,
    /// There is no such version.
    Gone,
}

/// What became of a new name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Naming {
    Version(u32),
    Taken,
    /// The image was deleted meanwhile.
    ImageGone,
}

#[derive(FromRow)]
struct RawNamed {
    #[sqlx(flatten)]
    image: RawImage,
    name: Option<String>,
    version: Option<i64>,
    is_public: Option<i64>,
    named_at: Option<i64>,
}

macro_rules! named_columns {
    ($after:literal) => {
        image_columns!("SELECT n.name, n.version, n.is_public, n.created_at AS named_at,", $after)
    };
}

impl RawNamed {
    fn parse(self) -> Result<NamedImage, StoreError> {
        let name = match (self.name, self.version, self.named_at) {
            (Some(name), Some(version), Some(at)) => Some(SnapshotName {
                name,
                version: column("image_names.version", version.try_into())?,
                is_public: self.is_public.is_some_and(|public| public != 0),
                created_at: timestamp(at)?,
            }),
            _ => None,
        };
        Ok(NamedImage { image: self.image.parse()?, name })
    }
}

impl Store {
    /// A version of a name, the newest when it is not said which.
    pub(crate) async fn find_snapshot(
        &self,
        org: &OrgId,
        name: &str,
        version: Option<u32>,
    ) -> Result<Option<NamedImage>, StoreError> {
        self.find_version(org, name, version, false).await
    }

    /// What starts from a name: that version; without one the newest that is ready, or the newest at all where none is, so
    /// that a build of the next version takes nothing away.
    pub(crate) async fn find_snapshot_to_use(
        &self,
        org: &OrgId,
        name: &str,
        version: Option<u32>,
    ) -> Result<Option<NamedImage>, StoreError> {
        self.find_version(org, name, version, true).await
    }

    async fn find_version(
        &self,
        org: &OrgId,
        name: &str,
        version: Option<u32>,
        ready_first: bool,
    ) -> Result<Option<NamedImage>, StoreError> {
        let row: Option<RawNamed> = sqlx::query_as(named_columns!(
            "FROM image_names n JOIN images i ON i.id = n.image_id LEFT JOIN checkpoints c ON c.id = i.checkpoint_id \
             WHERE n.org_id = $1 AND n.name = $2 AND ($3 = 0 OR n.version = $3) \
             ORDER BY ($4 = 1 AND i.status = 'ready' AND c.status IS 'ready') DESC, n.version DESC LIMIT 1"
        ))
        .bind(org.as_str())
        .bind(name)
        .bind(i64::from(version.unwrap_or(0)))
        .bind(i64::from(ready_first))
        .fetch_optional(&self.reader)
        .await
        .map_err(StoreError::query("look a snapshot up"))?;
        row.map(RawNamed::parse).transpose()
    }

    /// The same of one that its owner has published.
    pub(crate) async fn find_public_snapshot(
        &self,
        name: &str,
        version: Option<u32>,
    ) -> Result<Option<NamedImage>, StoreError> {
        let row: Option<RawNamed> = sqlx::query_as(named_columns!(
            "FROM image_names n JOIN images i ON i.id = n.image_id LEFT JOIN checkpoints c ON c.id = i.checkpoint_id \
             WHERE n.name = $1 AND n.is_public <> 0 AND ($2 = 0 OR n.version = $2) AND n.org_id = (SELECT p.org_id \
             FROM image_names p WHERE p.name = $1 AND p.is_public <> 0 ORDER BY p.created_at, p.org_id LIMIT 1) \
             ORDER BY (i.status = 'ready' AND c.status IS 'ready') DESC, n.version DESC LIMIT 1"
        ))
        .bind(name)
        .bind(i64::from(version.unwrap_or(0)))
        .fetch_optional(&self.reader)
        .await
        .map_err(StoreError::query("look a published snapshot up"))?;
        row.map(RawNamed::parse).transpose()
    }

    /// Newest first; of each name the newest version alone, or all of them.
    pub(crate) async fn list_snapshots(
        &self,
        org: &OrgId,
        all_versions: bool,
    ) -> Result<Vec<NamedImage>, StoreError> {
        let rows: Vec<RawNamed> = sqlx::query_as(named_columns!(
            "FROM image_names n JOIN images i ON i.id = n.image_id LEFT JOIN checkpoints c ON c.id = i.checkpoint_id \
             WHERE n.org_id = $1 AND ($2 <> 0 OR n.version = (SELECT max(o.version) FROM image_names o \
             WHERE o.org_id = n.org_id AND o.name = n.name)) ORDER BY n.created_at DESC, n.name, n.version DESC"
        ))
        .bind(org.as_str())
        .bind(i64::from(all_versions))
        .fetch_all(&self.reader)
        .await
        .map_err(StoreError::query("list snapshots"))?;
        rows.into_iter().map(RawNamed::parse).collect()
    }

    /// All images, newest first; those with several names several times.
    pub(crate) async fn list_images(&self, org: &OrgId) -> Result<Vec<NamedImage>, StoreError> {
        let rows: Vec<RawNamed> = sqlx::query_as(named_columns!(
            "FROM images i LEFT JOIN image_names n ON n.image_id = i.id LEFT JOIN checkpoints c ON c.id = i.checkpoint_id \
             WHERE i.org_id = $1 ORDER BY i.created_at DESC, i.id, n.name, n.version DESC"
        ))
        .bind(org.as_str())
        .fetch_all(&self.reader)
        .await
        .map_err(StoreError::query("list images"))?;
        rows.into_iter().map(RawNamed::parse).collect()
    }

    /// Gives an image a name. Versions whose build failed do not count as there and make room; one that was seen to have
    /// `failed`, and whose image this is, is tried again, and keeps its number.
    pub(crate) async fn insert_name(
        &self,
        org: &OrgId,
        name: &str,
        new_version: bool,
        image: &str,
        failed_version: Option<u32>,
    ) -> Result<Naming, StoreError> {
        let failed = StoreError::query("store the name of an image");
        let mut tx = self.begin().await?;
        if let Some(version) = failed_version {
            let has_it: Option<i64> = sqlx::query_scalar(
                "SELECT 1 FROM image_names WHERE org_id = $1 AND name = $2 AND version = $3 AND image_id = $4",
            )
            .bind(org.as_str())
            .bind(name)
            .bind(i64::from(version))
            .bind(image)
            .fetch_optional(&mut *tx)
            .await
            .map_err(&failed)?;
            if has_it.is_some() {
                return Ok(Naming::Version(version));
            }
        }
        sqlx::query(
            "DELETE FROM image_names WHERE org_id = $1 AND name = $2 AND image_id IN \
             (SELECT id FROM images WHERE org_id = $1 AND status = 'failed')",
        )
        .bind(org.as_str())
        .bind(name)
        .execute(&mut *tx)
        .await
        .map_err(&failed)?;
        let newest: Option<i64> =
            sqlx::query_scalar("SELECT max(version) FROM image_names WHERE org_id = $1 AND name = $2")
                .bind(org.as_str())
                .bind(name)
                .fetch_one(&mut *tx)
                .await
                .map_err(&failed)?;
        if newest.is_some() && !new_version {
            return Ok(Naming::Taken);
        }
        let deleted: Option<i64> =
            sqlx::query_scalar("SELECT deleted FROM image_versions WHERE org_id = $1 AND name = $2")
                .bind(org.as_str())
                .bind(name)
                .fetch_optional(&mut *tx)
                .await
                .map_err(&failed)?;
        let version = newest.max(deleted).unwrap_or(0) + 1;
        let inserted = sqlx::query(
            "INSERT INTO image_names (org_id, name, version, image_id, is_public, created_at) \
             SELECT $1, $2, $3, id, 0, $5 FROM images WHERE id = $4",
        )
        .bind(org.as_str())
        .bind(name)
        .bind(version)
        .bind(image)
        .bind(now_micros())
        .execute(&mut *tx)
        .await
        .map_err(&failed)?;
        if inserted.rows_affected() == 0 {
            return Ok(Naming::ImageGone);
        }
        tx.commit().await.map_err(&failed)?;
        Ok(Naming::Version(column("image_names.version", version.try_into())?))
    }

    /// Takes a name away, one version or all; the images that had it.
    pub(crate) async fn remove_names(
        &self,
        org: &OrgId,
        name: &str,
        version: Option<u32>,
    ) -> Result<Vec<String>, StoreError> {
        let failed = StoreError::query("take the name of an image away");
        let version = i64::from(version.unwrap_or(0));
        let mut tx = self.begin().await?;
        // What nobody could use needs no number.
        sqlx::query(
            "INSERT INTO image_versions (org_id, name, deleted) \
             SELECT n.org_id, n.name, max(n.version) FROM image_names n JOIN images i ON i.id = n.image_id \
             WHERE n.org_id = $1 AND n.name = $2 AND ($3 = 0 OR n.version = $3) AND i.status = 'ready' \
             GROUP BY n.org_id, n.name \
             ON CONFLICT (org_id, name) DO UPDATE SET deleted = excluded.deleted \
             WHERE excluded.deleted > image_versions.deleted",
        )
        .bind(org.as_str())
        .bind(name)
        .bind(version)
        .execute(&mut *tx)
        .await
        .map_err(&failed)?;
        let removed = sqlx::query_scalar(
            "DELETE FROM image_names WHERE org_id = $1 AND name = $2 AND ($3 = 0 OR version = $3) RETURNING image_id",
        )
        .bind(org.as_str())
        .bind(name)
        .bind(version)
        .fetch_all(&mut *tx)
        .await
        .map_err(&failed)?;
        tx.commit().await.map_err(&failed)?;
        Ok(removed)
    }

    /// Images of the same content, of which none has a name.
    pub(crate) async fn list_nameless_like(&self, image: &str) -> Result<Vec<String>, StoreError> {
        sqlx::query_scalar(
            "SELECT s.id FROM images i JOIN images s ON s.org_id = i.org_id AND s.content_hash = i.content_hash \
             AND s.memory_mb = i.memory_mb WHERE i.id = $1 AND NOT EXISTS (SELECT 1 FROM image_names n \
             JOIN images o ON o.id = n.image_id WHERE o.org_id = i.org_id AND o.content_hash = i.content_hash \
             AND o.memory_mb = i.memory_mb)",
        )
        .bind(image)
        .fetch_all(&self.reader)
        .await
        .map_err(StoreError::query("list images without a name"))
    }

    /// Makes a version known to everybody, or no more. A name that is published is its publisher's: what others start from
    /// it does not change because somebody else publishes the same name.
    pub(crate) async fn set_name_public(
        &self,
        org: &OrgId,
        name: &SnapshotName,
        public: bool,
    ) -> Result<Publishing, StoreError> {
        let failed = StoreError::query("publish a snapshot");
        let mut tx = self.begin().await?;
        let others: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM image_names WHERE name = $1 AND org_id <> $2 AND is_public <> 0",
        )
        .bind(&name.name)
        .bind(org.as_str())
        .fetch_one(&mut *tx)
        .await
        .map_err(&failed)?;
        if public && others > 0 {
            return Ok(Publishing::Taken);
        }
        let changed = sqlx::query(
            "UPDATE image_names SET is_public = $1 WHERE org_id = $2 AND name = $3 AND version = $4",
        )
        .bind(i64::from(public))
        .bind(org.as_str())
        .bind(&name.name)
        .bind(i64::from(name.version))
        .execute(&mut *tx)
        .await
        .map_err(&failed)?;
        tx.commit().await.map_err(&failed)?;
        Ok(if changed.rows_affected() > 0 { Publishing::Done } else { Publishing::Gone })
    }

    /// Whether any name of an image is published.
    pub(crate) async fn is_image_public(&self, image: &str) -> Result<bool, StoreError> {
        sqlx::query_scalar("SELECT count(*) FROM image_names WHERE image_id = $1 AND is_public <> 0")
            .bind(image)
            .fetch_one(&self.reader)
            .await
            .map(|count: i64| count > 0)
            .map_err(StoreError::query("read whether an image is published"))
    }
}
