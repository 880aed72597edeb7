//! The caller's side of the node API.

use axum::body::Body;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, Service, ServiceExt};
use warren_guest_api::MAX_JSON_BYTES;
use warren_guest_api::logs::Query;
use warren_types::{CheckpointId, EgressPolicy, Error, ErrorKind, SandboxId, Size};

use crate::{
    Answer, CheckpointCopy, CheckpointCreate, CheckpointReport, EgressReport, ImageLookup, NetworkEvents,
    NetworkEventsQuery, NodeInfo, Patch, PatchRun, Reboot, Report, ResolvedImage, Restore, SandboxSpec,
    SecretGrant, SecretUses, SecretUsesQuery, Space, TemplateImport, TemplateReport, Timeout, Usage, Wake,
};

/// Talks to one node, whatever carries the requests.
#[derive(Clone)]
pub struct NodeClient {
    service: BoxCloneSyncService<Request<Body>, Response<Body>, BoxError>,
}

impl NodeClient {
    /// `service` takes requests to the node: its router in this process, or a connection.
    pub fn new<S>(service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send + 'static,
    {
        Self { service: BoxCloneSyncService::new(service.map_err(Into::into)) }
    }

    pub async fn get_node(&self) -> Result<NodeInfo, Error> {
        self.call(Method::GET, "/v1/node", None::<&()>).await
    }

    pub async fn list_sandboxes(&self) -> Result<Vec<Report>, Error> {
        self.call(Method::GET, "/v1/sandboxes", None::<&()>).await
    }

    /// Waits for the end of what the sandbox is in the middle of.
    pub async fn get_sandbox(&self, id: &SandboxId) -> Result<Report, Error> {
        self.call(Method::GET, &format!("/v1/sandboxes/{id}"), None::<&()>).await
    }

    /// Makes the sandbox run as `spec` says, or returns it as it is when the node has it already.
    pub async fn ensure_sandbox(&self, id: &SandboxId, spec: &SandboxSpec) -> Result<Report, Error> {
        self.call(Method::PUT, &format!("/v1/sandboxes/{id}"), Some(spec)).await
    }

    /// Returns once nothing of the sandbox is left on the node.
    pub async fn ensure_absent(&self, id: &SandboxId) -> Result<(), Error> {
        let request = build(Method::DELETE, &format!("/v1/sandboxes/{id}"), Body::empty(), None)?;
        self.send(request).await.map(drop)
    }

    pub async fn ensure_timeout(&self, id: &SandboxId, timeout: Timeout) -> Result<Report, Error> {
        self.call(Method::PUT, &format!("/v1/sandboxes/{id}/timeout"), Some(&timeout)).await
    }

    pub async fn ensure_awake(&self, id: &SandboxId, wake: Wake) -> Result<Report, Error> {
        self.call(Method::POST, &format!("/v1/sandboxes/{id}/wake"), Some(&wake)).await
    }

    pub async fn ensure_hibernated(&self, id: &SandboxId) -> Result<Report, Error> {
        self.call(Method::POST, &format!("/v1/sandboxes/{id}/hibernate"), None::<&()>).await
    }

    /// Ends what runs in a sandbox and starts it again on the same disk.
    pub async fn reboot(&self, id: &SandboxId, reboot: Reboot) -> Result<Report, Error> {
        self.call(Method::POST, &format!("/v1/sandboxes/{id}/reboot"), Some(&reboot)).await
    }

    pub async fn ensure_size(&self, id: &SandboxId, size: Size) -> Result<Report, Error> {
        self.call(Method::PUT, &format!("/v1/sandboxes/{id}/size"), Some(&size)).await
    }

    /// Puts a sandbox back to a checkpoint; returns once that is certain to happen.
    pub async fn restore(&self, id: &SandboxId, restore: &Restore) -> Result<Report, Error> {
        self.call(Method::PUT, &format!("/v1/sandboxes/{id}/restore"), Some(restore)).await
    }

    /// Changes what a sandbox may reach; returns once that is in force, for connections that are open too.
    pub async fn ensure_egress(&self, id: &SandboxId, policy: &EgressPolicy) -> Result<Report, Error> {
        self.call(Method::PUT, &format!("/v1/sandboxes/{id}/egress"), Some(policy)).await
    }

    pub async fn get_egress(&self, id: &SandboxId) -> Result<EgressReport, Error> {
        self.call(Method::GET, &format!("/v1/sandboxes/{id}/egress"), None::<&()>).await
    }

    /// Replaces the secrets of a sandbox, which may be one that is about to be made.
    pub async fn ensure_secrets(&self, id: &SandboxId, grant: &SecretGrant) -> Result<(), Error> {
        self.call(Method::PUT, &format!("/v1/sandboxes/{id}/secrets"), Some(grant)).await
    }

    /// What secrets were used for since the batch that is acknowledged.
    pub async fn take_network_events(&self, query: NetworkEventsQuery) -> Result<NetworkEvents, Error> {
        self.call(Method::POST, "/v1/network-events", Some(&query)).await
    }

    pub async fn take_secret_uses(&self, query: SecretUsesQuery) -> Result<SecretUses, Error> {
        self.call(Method::POST, "/v1/secret-uses", Some(&query)).await
    }

    pub async fn list_patch_runs(&self, id: &SandboxId) -> Result<Vec<PatchRun>, Error> {
        self.call(Method::GET, &format!("/v1/sandboxes/{id}/patches"), None::<&()>).await
    }

    pub async fn list_usage(&self) -> Result<Vec<Usage>, Error> {
        self.call(Method::GET, "/v1/usage", None::<&()>).await
    }

    pub async fn list_checkpoints(&self) -> Result<Vec<CheckpointReport>, Error> {
        self.call(Method::GET, "/v1/checkpoints", None::<&()>).await
    }

    pub async fn get_checkpoint(&self, id: &CheckpointId) -> Result<CheckpointReport, Error> {
        self.call(Method::GET, &format!("/v1/checkpoints/{id}"), None::<&()>).await
    }

    /// Makes a checkpoint, or returns it as it is when the node has it already.
    pub async fn ensure_checkpoint(
        &self,
        id: &CheckpointId,
        create: &CheckpointCreate,
    ) -> Result<CheckpointReport, Error> {
        self.call(Method::PUT, &format!("/v1/checkpoints/{id}"), Some(create)).await
    }

    /// Returns once nothing of the checkpoint is left on the node. What was made from it stays.
    pub async fn ensure_checkpoint_absent(&self, id: &CheckpointId) -> Result<(), Error> {
        let request = build(Method::DELETE, &format!("/v1/checkpoints/{id}"), Body::empty(), None)?;
        self.send(request).await.map(drop)
    }

    /// Replaces the patches of a checkpoint.
    pub async fn ensure_patches(&self, id: &CheckpointId, patches: &[Patch]) -> Result<(), Error> {
        self.call(Method::PUT, &format!("/v1/checkpoints/{id}/patches"), Some(&patches)).await
    }

    /// Makes a checkpoint that has the disk of another, or returns it as it is when the node has it already.
    pub async fn ensure_checkpoint_copy(
        &self,
        id: &CheckpointId,
        copy: &CheckpointCopy,
    ) -> Result<CheckpointReport, Error> {
        self.call(Method::PUT, &format!("/v1/checkpoints/{id}/copy"), Some(copy)).await
    }

    pub async fn list_templates(&self) -> Result<Vec<TemplateReport>, Error> {
        self.call(Method::GET, "/v1/templates", None::<&()>).await
    }

    /// Brings an image of a registry onto the node, unless it has it: JSON lines of [`crate::TemplateLine`]. Dropping the
    /// body ends the import, unless somebody else waits for the same one.
    pub async fn import_template(&self, import: &TemplateImport) -> Result<Body, Error> {
        let json = serde_json::to_vec(import)
            .map_err(|error| Error::internal(format!("could not encode a node request: {error}")))?;
        let request = build(Method::POST, "/v1/templates", Body::from(json), Some("application/json"))?;
        self.send(request).await.map(Response::into_body)
    }

    /// What a reference stands for now.
    pub async fn resolve_image(&self, lookup: &ImageLookup) -> Result<ResolvedImage, Error> {
        self.call(Method::POST, "/v1/templates/resolve", Some(lookup)).await
    }

    /// Like [`NodeClient::import_template`], for an image in a tar archive.
    pub async fn import_archive(&self, archive: Body) -> Result<Body, Error> {
        let request = build(Method::POST, "/v1/templates/archive", archive, Some("application/x-tar"))?;
        self.send(request).await.map(Response::into_body)
    }

    /// Returns once nothing of the template is left on the node. Refused while anything is made from it.
    pub async fn ensure_template_absent(&self, name: &str) -> Result<(), Error> {
        let request = build(Method::DELETE, &format!("/v1/templates/{name}"), Body::empty(), None)?;
        self.send(request).await.map(drop)
    }

    pub async fn get_space(&self) -> Result<Space, Error> {
        self.call(Method::GET, "/v1/space", None::<&()>).await
    }

    /// Opens the stream of changes: JSON lines of [`crate::Change`].
    pub async fn watch_changes(&self) -> Result<Body, Error> {
        let request = build(Method::GET, "/v1/changes", Body::empty(), None)?;
        self.send(request).await.map(Response::into_body)
    }

    /// Opens the stream of questions: JSON lines of [`crate::Question`].
    pub async fn watch_questions(&self) -> Result<Body, Error> {
        let request = build(Method::GET, "/v1/questions", Body::empty(), None)?;
        self.send(request).await.map(Response::into_body)
    }

    pub async fn answer_question(&self, number: u64, answer: &Answer) -> Result<(), Error> {
        self.call(Method::PUT, &format!("/v1/questions/{number}"), Some(answer)).await
    }

    /// What a sandbox has logged, without waking it: JSON lines as [`warren_guest_api::logs`] describes them. A body that
    /// ends after the history belongs to a sandbox that does not run.
    pub async fn read_logs(&self, id: &SandboxId, query: &Query) -> Result<Body, Error> {
        let json = serde_json::to_vec(query)
            .map_err(|error| Error::internal(format!("could not encode a node request: {error}")))?;
        let path = format!("/v1/sandboxes/{id}/logs");
        let request = build(Method::POST, &path, Body::from(json), Some("application/json"))?;
        self.send(request).await.map(Response::into_body)
    }

    /// Passes a request on to the guest agent, waking the sandbox first. `path` is that of the guest API after
    /// `/v1/`, with its query; only `range` and `content-length` headers are worth passing. An answer that is not
    /// a success comes back as the error it carries.
    pub async fn guest(
        &self,
        id: &SandboxId,
        method: Method,
        path: &str,
        headers: http::HeaderMap,
        body: Body,
    ) -> Result<Response<Body>, Error> {
        let mut request = build(method, &format!("/v1/sandboxes/{id}/guest/{path}"), body, None)?;
        request.headers_mut().extend(headers);
        self.send(request).await
    }

    /// A guest call with JSON in and JSON out.
    pub async fn guest_json<T: DeserializeOwned>(
        &self,
        id: &SandboxId,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, Error> {
        self.call(method, &format!("/v1/sandboxes/{id}/guest/{path}"), body).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, Error> {
        let request = match body {
            Some(body) => {
                let json = serde_json::to_vec(body)
                    .map_err(|error| Error::internal(format!("could not encode a node request: {error}")))?;
                build(method, path, Body::from(json), Some("application/json"))?
            }
            None => build(method, path, Body::empty(), None)?,
        };
        let bytes = collect(self.send(request).await?.into_body()).await?;
        let bytes: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
        serde_json::from_slice(bytes).map_err(|error| {
            Error::new(ErrorKind::SandboxFailed, format!("the node sent an answer we cannot read: {error}"))
        })
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<Body>, Error> {
        let response = self
            .service
            .clone()
            .oneshot(request)
            .await
            .map_err(|error| Error::unavailable(format!("the node did not answer: {error}")))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let bytes = collect(response.into_body()).await.unwrap_or_default();
        Err(error_of(status, &bytes))
    }
}

/// Reads the error a node or an agent answered with. Tolerates anything in the body.
#[must_use]
pub fn error_of(status: StatusCode, body: &[u8]) -> Error {
    if let Ok(error) = serde_json::from_slice::<Error>(body) {
        return error;
    }
    let kind = match status {
        StatusCode::NOT_FOUND => ErrorKind::NotFound,
        StatusCode::PAYLOAD_TOO_LARGE => ErrorKind::TooLarge,
        status if status.is_client_error() => ErrorKind::Invalid,
        _ => ErrorKind::SandboxFailed,
    };
    Error::new(kind, format!("the sandbox answered {status}"))
}

fn build(method: Method, path: &str, body: Body, content_type: Option<&str>) -> Result<Request<Body>, Error> {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(content_type) = content_type {
        request = request.header(header::CONTENT_TYPE, content_type);
    }
    request.body(body).map_err(|error| Error::invalid(format!("this cannot be asked of a node: {error}")))
}

async fn collect(body: Body) -> Result<Bytes, Error> {
    Limited::new(body, MAX_JSON_BYTES).collect().await.map(http_body_util::Collected::to_bytes).map_err(
        |error| Error::new(ErrorKind::SandboxFailed, format!("the node's answer broke off: {error}")),
    )
}
