//! Files in a sandbox. Contents and archives are streams in both directions.

use reqwest::header::CONTENT_LENGTH;
use reqwest::{Body, Method, RequestBuilder, Response};
use serde_json::Value;
use warren_api::files::{FileChmod, FileEntry, FileMove, FileStat, FileUrl, FileUrlCreate};
use warren_types::SandboxId;

use super::{Answer, Client};

impl Client {
    pub(crate) async fn list_files(
        &self,
        id: &SandboxId,
        path: &str,
    ) -> anyhow::Result<Answer<Vec<FileEntry>>> {
        self.call(self.at(Method::GET, id, &["files", "list"], path)?).await
    }

    pub(crate) async fn stat_file(&self, id: &SandboxId, path: &str) -> anyhow::Result<Answer<FileStat>> {
        self.call(self.at(Method::GET, id, &["files", "stat"], path)?).await
    }

    /// What a path leads to: links are followed.
    pub(crate) async fn stat_target(&self, id: &SandboxId, path: &str) -> anyhow::Result<Answer<FileStat>> {
        let request = self.at(Method::GET, id, &["files", "stat"], path)?.query(&[("follow", "true")]);
        self.call(request).await
    }

    /// Opens a file for reading; its pieces come from [`Client::next_chunk`].
    pub(crate) async fn read_file(&self, id: &SandboxId, path: &str) -> anyhow::Result<Response> {
        self.send_for(self.at(Method::GET, id, &["files"], path)?, "application/octet-stream").await
    }

    /// Writes a file as a whole. With a length the server notices when the contents break off; without a mode a new file gets
    /// 0644, and one that is there keeps its own.
    pub(crate) async fn write_file(
        &self,
        id: &SandboxId,
        path: &str,
        mode: Option<u32>,
        body: Body,
        length: Option<u64>,
    ) -> anyhow::Result<()> {
        let mut request = self.at(Method::PUT, id, &["files"], path)?.body(body);
        if let Some(mode) = mode {
            request = request.query(&[("mode", format!("{mode:04o}"))]);
        }
        if let Some(length) = length {
            request = request.header(CONTENT_LENGTH, length);
        }
        self.send(request).await.map(drop)
    }

    /// Opens a folder for reading, as a tar stream.
    pub(crate) async fn read_archive(&self, id: &SandboxId, path: &str) -> anyhow::Result<Response> {
        self.send_for(self.at(Method::GET, id, &["files", "archive"], path)?, "application/x-tar").await
    }

    /// Unpacks a tar stream into a folder.
    pub(crate) async fn write_archive(&self, id: &SandboxId, path: &str, body: Body) -> anyhow::Result<()> {
        self.send(self.at(Method::PUT, id, &["files", "archive"], path)?.body(body)).await.map(drop)
    }

    pub(crate) async fn make_folder(&self, id: &SandboxId, path: &str) -> anyhow::Result<()> {
        self.call::<Value>(self.at(Method::POST, id, &["files", "mkdir"], path)?).await.map(drop)
    }

    /// Removes a file, or a folder and all in it.
    pub(crate) async fn remove_file(&self, id: &SandboxId, path: &str) -> anyhow::Result<()> {
        self.call::<Value>(self.at(Method::DELETE, id, &["files"], path)?).await.map(drop)
    }

    pub(crate) async fn move_file(&self, id: &SandboxId, body: &FileMove) -> anyhow::Result<()> {
        let path = ["sandboxes", id.as_str(), "files", "move"];
        self.call::<Value>(self.request(Method::POST, &path)?.json(body)).await.map(drop)
    }

    pub(crate) async fn chmod_file(&self, id: &SandboxId, body: &FileChmod) -> anyhow::Result<()> {
        let path = ["sandboxes", id.as_str(), "files", "chmod"];
        self.call::<Value>(self.request(Method::POST, &path)?.json(body)).await.map(drop)
    }

    /// A URL that reads or writes a file without a key.
    pub(crate) async fn sign_file_url(
        &self,
        id: &SandboxId,
        upload: bool,
        body: &FileUrlCreate,
    ) -> anyhow::Result<Answer<FileUrl>> {
        let route = if upload { "upload-url" } else { "download-url" };
        let path = ["sandboxes", id.as_str(), "files", route];
        self.call(self.request(Method::POST, &path)?.json(body)).await
    }

    fn at(
        &self,
        method: Method,
        id: &SandboxId,
        route: &[&str],
        path: &str,
    ) -> anyhow::Result<RequestBuilder> {
        let segments: Vec<&str> = ["sandboxes", id.as_str()].iter().chain(route).copied().collect();
        Ok(self.request(method, &segments)?.query(&[("path", path)]))
    }
}
