//! Images, snapshots and templates.

use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE};
use reqwest::{Body, Method};
use serde_json::Value;
use warren_api::IDEMPOTENCY_KEY_HEADER;
use warren_api::images::{ImageUsage, Published, Snapshot, SnapshotCreate, Template};
use warren_api::sandboxes::SandboxCreate;

use super::{Answer, Client, EventStream};

const SNAPSHOTS: &str = "snapshots";
const IMAGES: &str = "images";

/// What the image in an archive is to be.
pub(crate) struct ArchiveImport {
    pub(crate) name: String,
    pub(crate) isolation: Option<String>,
    /// Of the archive in bytes, when that is known.
    pub(crate) length: Option<u64>,
}

impl Client {
    /// Builds an image under a name; the result is a [`Snapshot`].
    pub(crate) async fn create_snapshot(&self, body: &SnapshotCreate) -> anyhow::Result<EventStream<'_>> {
        self.open_events(self.request(Method::POST, &[SNAPSHOTS])?.json(body)).await
    }

    /// The same of the image in a tar archive.
    pub(crate) async fn import_archive(
        &self,
        import: &ArchiveImport,
        archive: Body,
    ) -> anyhow::Result<EventStream<'_>> {
        let mut query = vec![("name", import.name.as_str()), ("newVersion", "true")];
        query.extend(import.isolation.as_deref().map(|isolation| ("isolation", isolation)));
        let mut request = self.request(Method::POST, &[IMAGES, "archive"])?.query(&query).body(archive);
        request = request.header(CONTENT_TYPE, "application/x-tar");
        if let Some(length) = import.length {
            request = request.header(CONTENT_LENGTH, length);
        }
        self.open_events(request).await
    }

    /// Makes a sandbox from an image or a snapshot; the result is a [`warren_api::sandboxes::Sandbox`].
    pub(crate) async fn create_sandbox_streamed(
        &self,
        body: &SandboxCreate,
        key: Option<&str>,
    ) -> anyhow::Result<EventStream<'_>> {
        let mut request = self.request(Method::POST, &["sandboxes"])?.json(body);
        if let Some(key) = key {
            request = request.header(IDEMPOTENCY_KEY_HEADER, key);
        }
        self.open_events(request).await
    }

    /// The newest version of each, or every one.
    pub(crate) async fn list_snapshots(&self, all_versions: bool) -> anyhow::Result<Answer<Vec<Snapshot>>> {
        let request = self.request(Method::GET, &[SNAPSHOTS])?;
        self.call(if all_versions { request.query(&[("versions", "all")]) } else { request }).await
    }

    /// By `name` or `name@version`.
    pub(crate) async fn get_snapshot(&self, name: &str) -> anyhow::Result<Answer<Snapshot>> {
        self.call(self.request(Method::GET, &[SNAPSHOTS, name])?).await
    }

    pub(crate) async fn delete_snapshot(&self, name: &str) -> anyhow::Result<()> {
        self.call::<Value>(self.request(Method::DELETE, &[SNAPSHOTS, name])?).await.map(drop)
    }

    pub(crate) async fn publish_snapshot(
        &self,
        name: &str,
        public: bool,
    ) -> anyhow::Result<Answer<Published>> {
        let verb = if public { "publish" } else { "unpublish" };
        self.call(self.request(Method::POST, &[SNAPSHOTS, name, verb])?).await
    }

    pub(crate) async fn list_images(&self) -> anyhow::Result<Answer<Vec<Snapshot>>> {
        self.call(self.request(Method::GET, &[IMAGES])?).await
    }

    pub(crate) async fn delete_image(&self, id: &str) -> anyhow::Result<()> {
        self.call::<Value>(self.request(Method::DELETE, &[IMAGES, id])?).await.map(drop)
    }

    pub(crate) async fn image_usage(&self) -> anyhow::Result<Answer<ImageUsage>> {
        self.call(self.request(Method::GET, &[IMAGES, "usage"])?).await
    }

    pub(crate) async fn list_templates(&self) -> anyhow::Result<Answer<Vec<Template>>> {
        self.call(self.request(Method::GET, &["templates"])?).await
    }
}
