//! Warren's public API as a client uses it.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::header::{HeaderName, HeaderValue};
use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use warren_api::{API_KEY_HEADER, exec_frame};

use crate::frames::Counter;
use crate::http::{Address, Client, DEADLINE, Repeated};

const DRAIN_BUFFER: usize = 256 * 1024;

/// A client with one connection; clones have their own.
#[derive(Clone)]
pub(crate) struct Warren {
    client: Client,
    address: SocketAddr,
    key: HeaderValue,
}

/// A sandbox that was made, and what the server said about the time it took.
pub(crate) struct Created {
    pub(crate) id: String,
    pub(crate) server_timing: Option<String>,
}

/// A checkpoint that was captured.
pub(crate) struct Taken {
    pub(crate) id: String,
    /// How long the sandbox stood still, in milliseconds, as the server measured it.
    pub(crate) pause: f64,
}

/// An open WebSocket to a command or a terminal.
pub(crate) struct Socket(WebSocketStream<TcpStream>);

// === impl Warren ===

impl Warren {
    pub(crate) fn new(address: SocketAddr, key: &str) -> anyhow::Result<Self> {
        let mut key = HeaderValue::from_str(key).context("the API key has characters no key has")?;
        key.set_sensitive(true);
        let name = HeaderName::from_static(API_KEY_HEADER);
        let client = Client::new(Address::Tcp(address)).with_header(name, key.clone());
        Ok(Self { client, address, key })
    }

    pub(crate) async fn connect(&mut self) -> anyhow::Result<()> {
        self.client.connect().await
    }

    /// A container of the default size with a network, that never goes idle.
    pub(crate) async fn create(&mut self) -> anyhow::Result<Created> {
        let body = json!({ "timeout": 0, "isolation": "container" });
        let answer = self.client.call(Method::POST, "/api/sandboxes", Some(&body)).await?;
        let id = text(&answer.body, "sandboxID")?;
        let server_timing = answer.headers.get("server-timing").and_then(|value| value.to_str().ok());
        Ok(Created { id, server_timing: server_timing.map(str::to_owned) })
    }

    /// The same as a virtual machine; its id.
    pub(crate) async fn create_machine(&mut self, memory_mb: u32) -> anyhow::Result<String> {
        let body = json!({ "timeout": 0, "isolation": "vm", "memoryMB": memory_mb });
        let answer = self.client.call(Method::POST, "/api/sandboxes", Some(&body)).await?;
        text(&answer.body, "sandboxID")
    }

    /// Builds an image and names it, or makes the next version of that name; returns when it is ready.
    pub(crate) async fn build(&mut self, name: &str, image: &Value, isolation: &str) -> anyhow::Result<()> {
        let body = json!({ "name": name, "image": image, "newVersion": true, "isolation": isolation });
        let answer = self.client.call(Method::POST, "/api/snapshots", Some(&body)).await?;
        ensure!(text(&answer.body, "status")? == "ready", "snapshot {name} is not ready");
        Ok(())
    }

    pub(crate) async fn delete_snapshot(&mut self, name: &str) -> anyhow::Result<()> {
        self.client.call(Method::DELETE, &format!("/api/snapshots/{name}"), None).await.map(|_| ())
    }

    /// A sandbox from a snapshot; its id.
    pub(crate) async fn create_from(
        &mut self,
        snapshot: &str,
        memory_mb: Option<u32>,
    ) -> anyhow::Result<String> {
        let mut body = json!({ "timeout": 0, "snapshot": snapshot });
        if let Some(memory_mb) = memory_mb {
            body["memoryMB"] = memory_mb.into();
        }
        let answer = self.client.call(Method::POST, "/api/sandboxes", Some(&body)).await?;
        text(&answer.body, "sandboxID")
    }

    /// Starts it again without asking anything in it to end.
    pub(crate) async fn power_cycle(&mut self, id: &str) -> anyhow::Result<()> {
        self.client.call(Method::POST, &format!("/api/sandboxes/{id}/power-cycle"), None).await.map(|_| ())
    }

    /// Takes a checkpoint of the disk; returns when it is captured. One of a sandbox that did not come to rest is an
    /// error.
    pub(crate) async fn checkpoint(&mut self, id: &str, name: &str) -> anyhow::Result<Taken> {
        self.take(id, name, "disk_only").await
    }

    /// The same of everything it has.
    pub(crate) async fn checkpoint_all(&mut self, id: &str, name: &str) -> anyhow::Result<Taken> {
        self.take(id, name, "full").await
    }

    async fn take(&mut self, id: &str, name: &str, kind: &str) -> anyhow::Result<Taken> {
        let path = format!("/api/sandboxes/{id}/checkpoints");
        let body = json!({ "name": name, "kind": kind });
        let answer = self.client.call(Method::POST, &path, Some(&body)).await?;
        let made: Value = serde_json::from_slice(&answer.body).context("the server sent no JSON")?;
        ensure!(made["consistency"] == "quiesced", "checkpoint {name} of {id}: {made}");
        let pause = made["pauseMs"].as_f64().context("the checkpoint has no pauseMs")?;
        Ok(Taken { id: text(&answer.body, "id")?, pause })
    }

    pub(crate) async fn wait_checkpoint(&mut self, id: &str, checkpoint: &str) -> anyhow::Result<()> {
        let path = format!("/api/sandboxes/{id}/checkpoints");
        loop {
            let answer = self.client.call(Method::GET, &path, None).await?;
            let list: Value = serde_json::from_slice(&answer.body).context("the server sent no JSON")?;
            let found = list.as_array().into_iter().flatten().find(|one| one["id"] == checkpoint);
            match found.and_then(|one| one["status"].as_str()) {
                Some("processing") => tokio::time::sleep(Duration::from_millis(2)).await,
                Some("ready") => return Ok(()),
                other => bail!("checkpoint {checkpoint} is {other:?}"),
            }
        }
    }

    pub(crate) async fn delete_checkpoint(&mut self, id: &str, checkpoint: &str) -> anyhow::Result<()> {
        let path = format!("/api/sandboxes/{id}/checkpoints/{checkpoint}");
        self.client.call(Method::DELETE, &path, None).await.map(|_| ())
    }

    /// A sandbox that starts with the disk of a checkpoint; its id.
    pub(crate) async fn fork(&mut self, checkpoint: &str) -> anyhow::Result<String> {
        let path = format!("/api/sandboxes/from-checkpoint/{checkpoint}");
        let answer = self.client.call(Method::POST, &path, Some(&json!({}))).await?;
        text(&answer.body, "sandboxID")
    }

    pub(crate) async fn restore(&mut self, id: &str, checkpoint: &str) -> anyhow::Result<()> {
        let path = format!("/api/sandboxes/{id}/checkpoints/{checkpoint}/restore");
        self.client.call(Method::POST, &path, None).await.map(|_| ())
    }

    pub(crate) async fn hibernate(&mut self, id: &str) -> anyhow::Result<()> {
        self.client.call(Method::POST, &format!("/api/sandboxes/{id}/hibernate"), None).await.map(|_| ())
    }

    pub(crate) async fn delete(&mut self, id: &str) -> anyhow::Result<()> {
        self.client.call(Method::DELETE, &format!("/api/sandboxes/{id}"), None).await.map(|_| ())
    }

    /// Runs a command to its end and returns its output. A command that fails is an error.
    pub(crate) async fn run(&mut self, id: &str, command: &str) -> anyhow::Result<String> {
        let path = format!("/api/sandboxes/{id}/exec/run");
        let answer = self.client.call(Method::POST, &path, Some(&json!({ "cmd": command }))).await?;
        let result: Value = serde_json::from_slice(&answer.body).context("exec/run sent no JSON")?;
        ensure!(result["exitCode"] == 0, "`{command}` in {id}: {result}");
        Ok(result["stdout"].as_str().unwrap_or_default().to_owned())
    }

    /// The same, read by bash.
    pub(crate) async fn run_by_bash(&mut self, id: &str, command: &str) -> anyhow::Result<()> {
        let path = format!("/api/sandboxes/{id}/exec/run");
        let body = json!({ "cmd": "bash", "args": ["-c", command] });
        let answer = self.client.call(Method::POST, &path, Some(&body)).await?;
        let result: Value = serde_json::from_slice(&answer.body).context("exec/run sent no JSON")?;
        ensure!(result["exitCode"] == 0, "`{command}` in {id}: {result}");
        Ok(())
    }

    /// The same as a tool, through MCP.
    pub(crate) async fn call_tool(&mut self, id: &str, command: &str) -> anyhow::Result<()> {
        let path = format!("/mcp/{id}");
        let arguments = json!({ "command": command });
        let params = json!({ "name": "sandbox_exec", "arguments": arguments });
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params });
        let answer = self.client.call(Method::POST, &path, Some(&body)).await?;
        let words = String::from_utf8_lossy(&answer.body);
        ensure!(words.contains("[exit code 0"), "`{command}` as a tool in {id}: {words}");
        Ok(())
    }

    pub(crate) async fn put_file(&mut self, id: &str, path: &Path, content: Repeated) -> anyhow::Result<()> {
        let at = format!("/api/sandboxes/{id}/files?path={}", path.display());
        let body = content.boxed_unsync();
        let response = self.client.send(Method::PUT, &at, Some("application/octet-stream"), body).await?;
        let status = response.status();
        let words = response.into_body().collect().await?.to_bytes();
        ensure!(status.is_success(), "PUT {at}: {status} {}", String::from_utf8_lossy(&words));
        Ok(())
    }

    /// Reads a file, shows each piece to `see`, and returns how many bytes it had.
    pub(crate) async fn get_file(
        &mut self,
        id: &str,
        path: &Path,
        mut see: impl FnMut(&Bytes),
    ) -> anyhow::Result<u64> {
        let at = format!("/api/sandboxes/{id}/files?path={}", path.display());
        let response = self.client.send(Method::GET, &at, None, crate::http::empty()).await?;
        ensure!(response.status() == StatusCode::OK, "GET {at}: {}", response.status());
        let mut body = response.into_body();
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame?.into_data() {
                length += data.len() as u64;
                see(&data);
            }
        }
        Ok(length)
    }

    /// Starts a command and attaches to it; the command's own first output may already be on its way.
    pub(crate) async fn start_command(&mut self, id: &str, command: &str) -> anyhow::Result<Socket> {
        let path = format!("/api/sandboxes/{id}/exec");
        let body = json!({ "cmd": "sh", "args": ["-c", command] });
        let answer = self.client.call(Method::POST, &path, Some(&body)).await?;
        self.open(&format!("{path}/{}", text(&answer.body, "sessionID")?)).await
    }

    pub(crate) async fn start_terminal(&mut self, id: &str) -> anyhow::Result<Socket> {
        let path = format!("/api/sandboxes/{id}/pty");
        let answer = self.client.call(Method::POST, &path, Some(&json!({ "cols": 80, "rows": 24 }))).await?;
        self.open(&format!("{path}/{}", text(&answer.body, "sessionID")?)).await
    }

    async fn open(&self, path: &str) -> anyhow::Result<Socket> {
        let mut request = format!("ws://{}{path}", self.address).into_client_request()?;
        request.headers_mut().insert(API_KEY_HEADER, self.key.clone());
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let opening = tokio_tungstenite::client_async(request, stream);
        let (socket, _) = tokio::time::timeout(DEADLINE, opening)
            .await
            .with_context(|| format!("{path}: no WebSocket in time"))?
            .with_context(|| format!("{path}: no WebSocket"))?;
        Ok(Socket(socket))
    }
}

// === impl Socket ===

impl Socket {
    pub(crate) async fn send(&mut self, bytes: Bytes) -> anyhow::Result<()> {
        self.0.send(Message::Binary(bytes)).await.context("the WebSocket broke")
    }

    /// The next binary message.
    pub(crate) async fn receive(&mut self) -> anyhow::Result<Bytes> {
        loop {
            let message =
                tokio::time::timeout(DEADLINE, self.0.next()).await.context("the WebSocket fell silent")?;
            match message.context("the WebSocket was closed")?? {
                Message::Binary(bytes) => return Ok(bytes),
                Message::Close(frame) => bail!("the server closed the WebSocket: {frame:?}"),
                Message::Text(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }

    /// Reads a command's frames until the replay is over.
    pub(crate) async fn wait_live(&mut self) -> anyhow::Result<()> {
        while self.receive().await?.first() != Some(&exec_frame::REPLAY_END) {}
        Ok(())
    }

    /// Reads to the exit of a command; how many bytes of output came. A command that fails is an error. Only after
    /// [`Self::wait_live`] and before the command has written: what is buffered here is not looked at.
    pub(crate) async fn drain(self) -> anyhow::Result<u64> {
        let mut stream = self.0.into_inner();
        let mut counter = Counter::default();
        let mut buffer = vec![0; DRAIN_BUFFER];
        loop {
            let reading = tokio::time::timeout(DEADLINE, stream.read(&mut buffer));
            let count = reading.await.context("the stream fell silent")??;
            ensure!(count > 0, "the stream ended without an exit code");
            match counter.take(&buffer[..count])? {
                None => {}
                Some(0) => return Ok(counter.output()),
                Some(code) => bail!("the command ended with {code}"),
            }
        }
    }
}

fn text(body: &[u8], field: &str) -> anyhow::Result<String> {
    let value: Value = serde_json::from_slice(body).context("the server sent no JSON")?;
    let text = value[field].as_str().with_context(|| format!("the answer has no {field}"))?;
    Ok(text.to_owned())
}
