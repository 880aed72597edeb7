//! Previews.

use reqwest::Method;
use serde_json::Value;
use warren_api::previews::{Preview, PreviewCreate, PreviewShare, PreviewShareCreate, PreviewTokenRotated};
use warren_types::SandboxId;

use super::{Answer, Client};

impl Client {
    pub(crate) async fn create_preview(&self, id: &SandboxId, port: u16) -> anyhow::Result<Answer<Preview>> {
        let body = PreviewCreate { port: Some(i64::from(port)), ..PreviewCreate::default() };
        self.call(self.request(Method::POST, &["sandboxes", id.as_str(), "preview"])?.json(&body)).await
    }

    pub(crate) async fn list_previews(&self, id: &SandboxId) -> anyhow::Result<Answer<Vec<Preview>>> {
        self.call(self.request(Method::GET, &["sandboxes", id.as_str(), "preview"])?).await
    }

    pub(crate) async fn delete_preview(&self, id: &SandboxId, port: u16) -> anyhow::Result<()> {
        let path = ["sandboxes", id.as_str(), "preview", &port.to_string()];
        self.call::<Value>(self.request(Method::DELETE, &path)?).await.map(drop)
    }

    pub(crate) async fn rotate_preview_token(
        &self,
        id: &SandboxId,
    ) -> anyhow::Result<Answer<PreviewTokenRotated>> {
        self.call(self.request(Method::POST, &["sandboxes", id.as_str(), "preview", "rotate"])?).await
    }

    pub(crate) async fn share_preview(
        &self,
        id: &SandboxId,
        port: u16,
        expires_in: Option<u32>,
    ) -> anyhow::Result<Answer<PreviewShare>> {
        let body = PreviewShareCreate { expires_in: expires_in.map(i64::from) };
        let path = ["sandboxes", id.as_str(), "preview", &port.to_string(), "share"];
        self.call(self.request(Method::POST, &path)?.json(&body)).await
    }

    /// How previews are asked for: the scheme of the server's address.
    pub(crate) fn scheme(&self) -> &str {
        self.base.scheme()
    }
}
