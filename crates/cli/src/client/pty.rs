//! Terminals in a sandbox.

use reqwest::Method;
use serde_json::Value;
use warren_api::pty::{PtyCreate, PtyResize, PtySession};
use warren_types::{PtyId, SandboxId};

use super::{Answer, Client};
use crate::terminal::WindowSize;
use crate::ws::Socket;

impl Client {
    pub(crate) async fn create_pty(
        &self,
        id: &SandboxId,
        size: WindowSize,
        shell: Option<String>,
    ) -> anyhow::Result<Answer<PtySession>> {
        let body = PtyCreate { cols: Some(size.cols.into()), rows: Some(size.rows.into()), shell };
        self.call(self.request(Method::POST, &["sandboxes", id.as_str(), "pty"])?.json(&body)).await
    }

    pub(crate) async fn attach_pty(&self, id: &SandboxId, pty: &PtyId) -> anyhow::Result<Socket> {
        self.open(&["sandboxes", id.as_str(), "pty", pty.as_str()], &[]).await.map(|opened| opened.socket)
    }

    pub(crate) async fn resize_pty(
        &self,
        id: &SandboxId,
        pty: &PtyId,
        size: WindowSize,
    ) -> anyhow::Result<()> {
        let body = PtyResize { cols: size.cols.into(), rows: size.rows.into() };
        let path = ["sandboxes", id.as_str(), "pty", pty.as_str(), "resize"];
        self.call::<Value>(self.request(Method::POST, &path)?.json(&body)).await.map(drop)
    }

    pub(crate) async fn kill_pty(&self, id: &SandboxId, pty: &PtyId) -> anyhow::Result<()> {
        let path = ["sandboxes", id.as_str(), "pty", pty.as_str()];
        self.call::<Value>(self.request(Method::DELETE, &path)?).await.map(drop)
    }
}
