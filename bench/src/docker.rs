//! Docker through its API, over its Unix socket, with containers as close to a sandbox as Docker makes them: the same
//! root file system, user, memory, CPU and process limits.

pub(crate) mod daemon;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use http::Method;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio_util::io::ReaderStream;

use crate::http::{Address, Client, Repeated};
use daemon::Network;

const IMAGE: &str = "warren-bench:base";
/// What a Warren sandbox has unless it asks for more.
const MEMORY_BYTES: u64 = 4096 << 20;
const NANO_CPUS: u64 = 1_000_000_000;
const PIDS: u64 = 4096;
/// Docker puts a frame head before each piece of output of a command without a terminal.
const HEAD: usize = 8;
const TAR_BLOCK: u64 = 512;

#[derive(Clone)]
pub(crate) struct Docker {
    client: Client,
    network: Network,
}

/// The streams of a running exec.
pub(crate) struct Attached {
    stream: TokioIo<Upgraded>,
}

// === impl Docker ===

impl Docker {
    pub(crate) fn new(socket: &Path, network: Network) -> Self {
        Self { client: Client::new(Address::Unix(socket.to_owned())), network }
    }

    /// Waits until the daemon answers.
    async fn wait_ready(socket: &Path, limit: Duration) -> anyhow::Result<()> {
        let begun = Instant::now();
        let mut docker = Self::new(socket, Network::None);
        while let Err(error) = docker.client.call(Method::GET, "/_ping", None).await {
            ensure!(begun.elapsed() < limit, "dockerd does not answer: {error:#}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// What this Docker is, in a few words.
    pub(crate) async fn describe(&mut self) -> anyhow::Result<String> {
        let info = self.get("/info").await?;
        let word = |name: &str| info[name].as_str().unwrap_or("unknown").to_owned();
        let network = match self.network {
            Network::Bridge => "own bridge without packet filter rules",
            Network::None => "no network",
        };
        Ok(format!("Docker {}, {}, {network}", word("ServerVersion"), word("Driver")))
    }

    /// Makes an image of a folder.
    pub(crate) async fn import(&mut self, folder: &Path) -> anyhow::Result<()> {
        let mut tar = Command::new("tar")
            .args(["--numeric-owner", "--create", "--directory"])
            .arg(folder)
            .arg(".")
            .stdout(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("could not start tar")?;
        let output = tar.stdout.take().context("tar has no output")?;
        let stream = ReaderStream::with_capacity(output, 256 * 1024).map_ok(Frame::data);
        let (repository, tag) = IMAGE.split_once(':').unwrap_or((IMAGE, "latest"));
        let path = format!("/images/create?fromSrc=-&repo={repository}&tag={tag}");
        let body = StreamBody::new(stream).boxed_unsync();
        let response = self.client.send(Method::POST, &path, Some("application/x-tar"), body).await?;
        let status = response.status();
        let words = response.into_body().collect().await?.to_bytes();
        let words = String::from_utf8_lossy(&words);
        ensure!(status.is_success() && !words.contains("\"error\""), "import: {status} {}", words.trim());
        ensure!(tar.wait().await?.success(), "tar could not read {}", folder.display());
        Ok(())
    }

    /// Makes and starts a container that waits; returns its id.
    pub(crate) async fn create(&mut self) -> anyhow::Result<String> {
        self.create_from(IMAGE).await
    }

    pub(crate) async fn create_from(&mut self, image: &str) -> anyhow::Result<String> {
        let network = match self.network {
            Network::Bridge => "bridge",
            Network::None => "none",
        };
        let container = json!({
            "Image": image, "Cmd": ["sleep", "infinity"], "User": "1000:1000", "WorkingDir": "/home/sandbox",
            "HostConfig": {
                "Memory": MEMORY_BYTES, "NanoCpus": NANO_CPUS, "PidsLimit": PIDS, "NetworkMode": network,
                "LogConfig": { "Type": "none" },
            },
        });
        let id = self.post("/containers/create", &container).await?;
        let id = id["Id"].as_str().context("docker made a container without an id")?.to_owned();
        self.start(&id).await?;
        Ok(id)
    }

    pub(crate) async fn start(&mut self, id: &str) -> anyhow::Result<()> {
        self.client.call(Method::POST, &format!("/containers/{id}/start"), None).await.map(|_| ())
    }

    /// Ends its processes, at once; its files stay.
    pub(crate) async fn stop(&mut self, id: &str) -> anyhow::Result<()> {
        self.client.call(Method::POST, &format!("/containers/{id}/stop?t=0"), None).await.map(|_| ())
    }

    /// Makes an image of a container, which stands still meanwhile; the image's id.
    pub(crate) async fn commit(&mut self, id: &str) -> anyhow::Result<String> {
        let image = self.post(&format!("/commit?container={id}&pause=1"), &json!({})).await?;
        Ok(image["Id"].as_str().context("docker made an image without an id")?.to_owned())
    }

    pub(crate) async fn delete_image(&mut self, image: &str) -> anyhow::Result<()> {
        self.client.call(Method::DELETE, &format!("/images/{image}?force=1"), None).await.map(|_| ())
    }

    pub(crate) async fn delete(&mut self, id: &str) -> anyhow::Result<()> {
        self.client.call(Method::DELETE, &format!("/containers/{id}?force=1&v=1"), None).await.map(|_| ())
    }

    pub(crate) async fn delete_all(&mut self) -> anyhow::Result<()> {
        let list = self.get("/containers/json?all=1").await?;
        for container in list.as_array().into_iter().flatten() {
            if let Some(id) = container["Id"].as_str() {
                self.delete(id).await?;
            }
        }
        Ok(())
    }

    pub(crate) async fn exec(
        &mut self,
        id: &str,
        command: &[&str],
        terminal: bool,
    ) -> anyhow::Result<Attached> {
        let exec = json!({
            "Cmd": command, "AttachStdin": terminal, "AttachStdout": true, "AttachStderr": true, "Tty": terminal,
        });
        let exec = self.post(&format!("/containers/{id}/exec"), &exec).await?;
        let exec = exec["Id"].as_str().context("docker made an exec without an id")?;
        let start = json!({ "Detach": false, "Tty": terminal });
        let stream = self.client.upgrade(&format!("/exec/{exec}/start"), &start).await?;
        Ok(Attached { stream })
    }

    /// Puts a file of this size and repeated content at `path`.
    pub(crate) async fn put_file(
        &mut self,
        id: &str,
        path: &Path,
        block: Bytes,
        size: u64,
    ) -> anyhow::Result<()> {
        let (folder, name) = (path.parent().context("no folder")?, path.file_name().context("no name")?);
        let zeros = Bytes::from_static(&[0; TAR_BLOCK as usize]);
        let padding = size.next_multiple_of(TAR_BLOCK) - size + 2 * TAR_BLOCK;
        let head = tar_head(&name.to_string_lossy(), size);
        let body = Repeated::new([(head, TAR_BLOCK), (block, size), (zeros, padding)]).boxed_unsync();
        let at = format!("/containers/{id}/archive?path={}", folder.display());
        let response = self.client.send(Method::PUT, &at, Some("application/x-tar"), body).await?;
        let status = response.status();
        let words = response.into_body().collect().await?.to_bytes();
        ensure!(status.is_success(), "PUT {at}: {status} {}", String::from_utf8_lossy(&words));
        Ok(())
    }

    /// Reads a path as an archive; how many bytes came.
    pub(crate) async fn get_file(&mut self, id: &str, path: &Path) -> anyhow::Result<u64> {
        let at = format!("/containers/{id}/archive?path={}", path.display());
        let response = self.client.send(Method::GET, &at, None, crate::http::empty()).await?;
        ensure!(response.status().is_success(), "GET {at}: {}", response.status());
        let mut body = response.into_body();
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            length += frame?.data_ref().map_or(0, |data| data.len() as u64);
        }
        Ok(length)
    }

    async fn get(&mut self, path: &str) -> anyhow::Result<Value> {
        let answer = self.client.call(Method::GET, path, None).await?;
        serde_json::from_slice(&answer.body).with_context(|| format!("{path}: docker sent no JSON"))
    }

    async fn post(&mut self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let answer = self.client.call(Method::POST, path, Some(body)).await?;
        serde_json::from_slice(&answer.body).with_context(|| format!("{path}: docker sent no JSON"))
    }
}

// === impl Attached ===

impl Attached {
    /// Waits for this text as the command's first output.
    pub(crate) async fn expect(&mut self, text: &str) -> anyhow::Result<()> {
        let mut buffer = vec![0; HEAD + text.len()];
        self.stream.read_exact(&mut buffer).await.context("the exec ended without output")?;
        ensure!(
            &buffer[HEAD..] == text.as_bytes(),
            "the exec wrote {:?}",
            String::from_utf8_lossy(&buffer[HEAD..])
        );
        Ok(())
    }

    /// Reads to the end; how many bytes of output came.
    pub(crate) async fn drain(&mut self) -> anyhow::Result<u64> {
        let mut buffer = vec![0; 256 * 1024];
        let (mut left_of_frame, mut length) = (0, 0u64);
        let (mut head, mut in_head) = ([0; HEAD], 0);
        loop {
            let count = self.stream.read(&mut buffer).await?;
            if count == 0 {
                return Ok(length);
            }
            let mut bytes = &buffer[..count];
            while !bytes.is_empty() {
                if left_of_frame == 0 {
                    let take = bytes.len().min(HEAD - in_head);
                    head[in_head..in_head + take].copy_from_slice(&bytes[..take]);
                    in_head += take;
                    bytes = &bytes[take..];
                    if in_head == HEAD {
                        left_of_frame = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
                        in_head = 0;
                    }
                } else {
                    let take = bytes.len().min(left_of_frame);
                    length += take as u64;
                    left_of_frame -= take;
                    bytes = &bytes[take..];
                }
            }
        }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.stream.write_all(bytes).await?;
        Ok(self.stream.flush().await?)
    }

    /// Some of a terminal's output.
    pub(crate) async fn receive(&mut self) -> anyhow::Result<Bytes> {
        let mut buffer = [0; 4096];
        let reading = self.stream.read(&mut buffer);
        let count = tokio::time::timeout(crate::http::DEADLINE, reading)
            .await
            .context("the terminal fell silent")??;
        ensure!(count > 0, "the terminal was closed");
        Ok(Bytes::copy_from_slice(&buffer[..count]))
    }
}

/// The head of one regular file in a tar archive.
fn tar_head(name: &str, size: u64) -> Bytes {
    let mut head = [0u8; TAR_BLOCK as usize];
    let mut put = |at: usize, text: &str| head[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644\0");
    put(108, "0001750\0");
    put(116, "0001750\0");
    put(124, &format!("{size:011o}\0"));
    put(136, "00000000000\0");
    // The sum is taken with spaces in its own place.
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = head.iter().map(|byte| u32::from(*byte)).sum();
    let sum = format!("{sum:06o}\0 ");
    head[148..156].copy_from_slice(sum.as_bytes());
    Bytes::copy_from_slice(&head)
}
