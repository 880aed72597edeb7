//! Commands in a sandbox.

use reqwest::Method;
use serde_json::Value;
use warren_api::EXEC_OFFSET_HEADER;
use warren_api::exec::{ExecCreate, ExecKill, ExecSession};
use warren_types::{ExecId, SandboxId};

use super::{Answer, Client};
use crate::ws::Socket;

/// An open stream of a command's output.
pub(crate) struct ExecStream {
    pub(crate) socket: Socket,
    /// Offset of the first output byte it will carry; none from a server that does not say.
    pub(crate) start: Option<u64>,
}

impl Client {
    pub(crate) async fn create_exec(
        &self,
        id: &SandboxId,
        body: &ExecCreate,
    ) -> anyhow::Result<Answer<ExecSession>> {
        self.call(self.request(Method::POST, &["sandboxes", id.as_str(), "exec"])?.json(body)).await
    }

    pub(crate) async fn list_execs(&self, id: &SandboxId) -> anyhow::Result<Answer<Vec<ExecSession>>> {
        self.call(self.request(Method::GET, &["sandboxes", id.as_str(), "exec"])?).await
    }

    pub(crate) async fn kill_exec(&self, id: &SandboxId, exec: &ExecId, signal: i32) -> anyhow::Result<()> {
        let body = ExecKill { signal: Some(i64::from(signal)) };
        let path = ["sandboxes", id.as_str(), "exec", exec.as_str(), "kill"];
        self.call::<Value>(self.request(Method::POST, &path)?.json(&body)).await.map(drop)
    }

    /// Opens the output of a command, from `offset` on, or from where the server's usual replay starts.
    pub(crate) async fn attach_exec(
        &self,
        id: &SandboxId,
        exec: &ExecId,
        offset: Option<u64>,
    ) -> anyhow::Result<ExecStream> {
        let query: Vec<(&str, String)> = offset.iter().map(|offset| ("offset", offset.to_string())).collect();
        let opened = self.open(&["sandboxes", id.as_str(), "exec", exec.as_str()], &query).await?;
        let start =
            opened.headers.get(EXEC_OFFSET_HEADER).and_then(|value| value.to_str().ok()?.parse().ok());
        Ok(ExecStream { socket: opened.socket, start })
    }
}
