//! Checkpoints, forks and patches.

use reqwest::Method;
use serde_json::Value;
use warren_api::IDEMPOTENCY_KEY_HEADER;
use warren_api::checkpoints::{
    Checkpoint, CheckpointCreate, Fork, Patch, PatchCreate, PatchCreated, Restoring,
};
use warren_api::sandboxes::Sandbox;
use warren_types::{CheckpointId, SandboxId};

use super::{Answer, Client};

impl Client {
    pub(crate) async fn create_checkpoint(
        &self,
        sandbox: &SandboxId,
        body: &CheckpointCreate,
        key: Option<&str>,
    ) -> anyhow::Result<Answer<Checkpoint>> {
        let segments = ["sandboxes", sandbox.as_str(), "checkpoints"];
        let mut request = self.request(Method::POST, &segments)?.json(body);
        if let Some(key) = key {
            request = request.header(IDEMPOTENCY_KEY_HEADER, key);
        }
        self.call(request).await
    }

    pub(crate) async fn list_checkpoints(
        &self,
        sandbox: &SandboxId,
    ) -> anyhow::Result<Answer<Vec<Checkpoint>>> {
        self.call(self.request(Method::GET, &["sandboxes", sandbox.as_str(), "checkpoints"])?).await
    }

    pub(crate) async fn delete_checkpoint(
        &self,
        sandbox: &SandboxId,
        id: &CheckpointId,
    ) -> anyhow::Result<()> {
        let segments = ["sandboxes", sandbox.as_str(), "checkpoints", id.as_str()];
        self.call::<Value>(self.request(Method::DELETE, &segments)?).await.map(drop)
    }

    pub(crate) async fn restore_checkpoint(
        &self,
        sandbox: &SandboxId,
        id: &CheckpointId,
    ) -> anyhow::Result<Answer<Restoring>> {
        let segments = ["sandboxes", sandbox.as_str(), "checkpoints", id.as_str(), "restore"];
        self.call(self.request(Method::POST, &segments)?).await
    }

    pub(crate) async fn publish_checkpoint(
        &self,
        id: &CheckpointId,
        public: bool,
    ) -> anyhow::Result<Answer<Checkpoint>> {
        let verb = if public { "publish" } else { "unpublish" };
        self.call(self.request(Method::POST, &["sandboxes", "checkpoints", id.as_str(), verb])?).await
    }

    pub(crate) async fn fork_checkpoint(
        &self,
        id: &CheckpointId,
        body: &Fork,
        key: Option<&str>,
    ) -> anyhow::Result<Answer<Sandbox>> {
        let mut request =
            self.request(Method::POST, &["sandboxes", "from-checkpoint", id.as_str()])?.json(body);
        if let Some(key) = key {
            request = request.header(IDEMPOTENCY_KEY_HEADER, key);
        }
        self.call(request).await
    }

    pub(crate) async fn create_patch(
        &self,
        id: &CheckpointId,
        body: &PatchCreate,
    ) -> anyhow::Result<Answer<PatchCreated>> {
        let segments = ["sandboxes", "checkpoints", id.as_str(), "patches"];
        self.call(self.request(Method::POST, &segments)?.json(body)).await
    }

    pub(crate) async fn list_patches(&self, id: &CheckpointId) -> anyhow::Result<Answer<Vec<Patch>>> {
        self.call(self.request(Method::GET, &["sandboxes", "checkpoints", id.as_str(), "patches"])?).await
    }

    pub(crate) async fn delete_patch(&self, id: &CheckpointId, patch: &str) -> anyhow::Result<()> {
        let segments = ["sandboxes", "checkpoints", id.as_str(), "patches", patch];
        self.call::<Value>(self.request(Method::DELETE, &segments)?).await.map(drop)
    }
}
