//! The node API's edge: decode, hand to the actor, encode.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, delete, get, post, put};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use warren_guest_api::logs::Query;
use warren_guest_api::{MAX_JSON_BYTES, status_of};
use warren_node_api::{
    Answer, CheckpointCopy, CheckpointCreate, Patch, Reboot, Report, Restore, SandboxSpec, SecretGrant,
    Timeout, Wake,
};
use warren_types::{CheckpointId, EgressPolicy, Error, ErrorKind, SandboxId, Size};

use crate::registry::Registry;
use crate::sandbox::log::{self, Log};
use crate::sandbox::restore::Order;
use crate::sandbox::{Handle, activity, patch};

mod templates;

type Shared = State<Arc<Registry>>;
type Result<T> = std::result::Result<T, Failure>;

/// Changes are preceded by a blank line this often, so that both ends notice a dead connection.
const KEEP_ALIVE: std::time::Duration = std::time::Duration::from_secs(15);

const NO_LOGS: &str =
    "this sandbox was started by an older server and keeps no log; hibernate and wake it to start one";

pub(crate) fn router(registry: Arc<Registry>) -> Router {
    Router::new()
        .route("/v1/node", get(node))
        .route("/v1/changes", get(changes))
        .route("/v1/sandboxes", get(list))
        .route("/v1/sandboxes/{id}", get(show).put(ensure).delete(remove))
        .route("/v1/sandboxes/{id}/timeout", put(timeout))
        .route("/v1/sandboxes/{id}/wake", post(wake))
        .route("/v1/sandboxes/{id}/hibernate", post(hibernate))
        .route("/v1/sandboxes/{id}/reboot", post(reboot))
        .route("/v1/sandboxes/{id}/size", put(resize))
        .route("/v1/sandboxes/{id}/restore", put(restore))
        .route("/v1/sandboxes/{id}/egress", get(egress).put(set_egress))
        .route("/v1/sandboxes/{id}/secrets", put(grant))
        .route("/v1/secret-uses", post(secret_uses))
        .route("/v1/network-events", post(network_events))
        .route("/v1/sandboxes/{id}/patches", get(patch_runs))
        .route("/v1/sandboxes/{id}/logs", post(logs))
        .route("/v1/sandboxes/{id}/guest/{*path}", any(guest))
        .route("/v1/questions", get(questions))
        .route("/v1/questions/{number}", put(answer))
        .route("/v1/usage", get(usage))
        .route("/v1/checkpoints", get(list_checkpoints))
        .route("/v1/checkpoints/{id}", get(show_checkpoint).put(ensure_checkpoint).delete(remove_checkpoint))
        .route("/v1/checkpoints/{id}/patches", put(set_patches))
        .route("/v1/checkpoints/{id}/copy", put(copy_checkpoint))
        .route("/v1/templates", get(templates::list).post(templates::import))
        .route("/v1/templates/resolve", post(templates::resolve))
        .route("/v1/templates/archive", post(templates::import_archive))
        .route("/v1/templates/{name}", delete(templates::remove))
        .route("/v1/space", get(templates::space))
        .with_state(registry)
}

struct Failure(Error);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(status_of(self.0.kind)).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        json(status, &self.0)
    }
}

fn json(status: StatusCode, value: &impl Serialize) -> Response {
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

async fn decode<T: DeserializeOwned>(body: Body) -> Result<T> {
    let bytes = Limited::new(body, MAX_JSON_BYTES)
        .collect()
        .await
        .map_err(|error| Error::invalid(format!("the request could not be read: {error}")))?
        .to_bytes();
    let bytes: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
    serde_json::from_slice(bytes)
        .map_err(|error| Failure(Error::invalid(format!("the request is not what was expected: {error}"))))
}

fn parse(id: &str) -> Result<SandboxId> {
    id.parse().map_err(|_| Failure(Error::not_found(format!("sandbox {id} not found"))))
}

async fn node(State(registry): Shared) -> Response {
    json(StatusCode::OK, &registry.info())
}

async fn list(State(registry): Shared) -> Response {
    json(StatusCode::OK, &registry.list())
}

async fn show(State(registry): Shared, Path(id): Path<String>) -> Result<Response> {
    Ok(report(&registry.get(&parse(&id)?)?.report().await?))
}

async fn ensure(State(registry): Shared, Path(id): Path<String>, body: Body) -> Result<Response> {
    let spec: SandboxSpec = decode(body).await?;
    Ok(report(&registry.ensure(parse(&id)?, spec).await?))
}

async fn remove(State(registry): Shared, Path(id): Path<String>) -> Result<StatusCode> {
    registry.forget_secrets(&parse(&id)?);
    match registry.find(&parse(&id)?) {
        Some(handle) => match handle.delete().await {
            // Somebody else's delete came to its end a moment ago.
            Err(error) if error.kind == ErrorKind::NotFound => {}
            deleted => deleted?,
        },
        // A sandbox that is not there is as absent as it was asked to be.
        None => registry.remove_what_was_left_alone(&parse(&id)?)?,
    }
    Ok(StatusCode::NO_CONTENT)
}

async fn timeout(State(registry): Shared, Path(id): Path<String>, body: Body) -> Result<Response> {
    let Timeout { timeout_seconds } = decode(body).await?;
    Ok(report(&registry.get(&parse(&id)?)?.set_timeout(timeout_seconds).await?))
}

async fn wake(State(registry): Shared, Path(id): Path<String>, body: Body) -> Result<Response> {
    let wake: Wake = decode(body).await?;
    Ok(report(&registry.get(&parse(&id)?)?.wake(wake).await?))
}

async fn reboot(State(registry): Shared, Path(id): Path<String>, body: Body) -> Result<Response> {
    let Reboot { hard } = decode(body).await?;
    Ok(report(&registry.get(&parse(&id)?)?.begin(Order::Reboot { hard }).await?))
}

async fn resize(State(registry): Shared, Path(id): Path<String>, body: Body) -> Result<Response> {
    let size: Size = decode(body).await?;
    Ok(report(&registry.get(&parse(&id)?)?.resize(size).await?))
}

async fn restore(State(registry): Shared, Path(id): Path<String>, body: Body) -> Result<Response> {
    let Restore { checkpoint_id } = decode(body).await?;
    Ok(report(&registry.restore(&parse(&id)?, &checkpoint_id).await?))
}

async fn egress(State(registry): Shared, Path(id): Path<String>) -> Result<Response> {
    Ok(json(StatusCode::OK, &registry.get(&parse(&id)?)?.session.report()))
}

async fn set_egress(State(registry): Shared, Path(id): Path<String>, body: Body) -> Result<Response> {
    let policy: EgressPolicy = decode(body).await?;
    policy.check().map_err(|error| Error::invalid(error.to_string()))?;
    Ok(report(&registry.get(&parse(&id)?)?.set_egress(policy).await?))
}

async fn grant(State(registry): Shared, Path(id): Path<String>, body: Body) -> Result<StatusCode> {
    let grant: SecretGrant = decode(body).await?;
    registry.grant(&parse(&id)?, grant);
    Ok(StatusCode::NO_CONTENT)
}

async fn secret_uses(State(registry): Shared, body: Body) -> Result<Response> {
    Ok(json(StatusCode::OK, &registry.take_secret_uses(decode(body).await?)))
}

async fn network_events(State(registry): Shared, body: Body) -> Result<Response> {
    Ok(json(StatusCode::OK, &registry.take_network_events(decode(body).await?)))
}

async fn patch_runs(State(registry): Shared, Path(id): Path<String>) -> Result<Response> {
    let id = parse(&id)?;
    registry.get(&id)?;
    Ok(json(StatusCode::OK, &patch::runs(&registry.sandbox_dir(&id))))
}

async fn usage(State(registry): Shared) -> Response {
    json(StatusCode::OK, &registry.usage().await)
}

fn parse_checkpoint(id: &str) -> Result<CheckpointId> {
    id.parse().map_err(|_| Failure(Error::not_found(format!("checkpoint {id} not found"))))
}

async fn list_checkpoints(State(registry): Shared) -> Response {
    json(StatusCode::OK, &registry.checkpoints().list())
}

async fn show_checkpoint(State(registry): Shared, Path(id): Path<String>) -> Result<Response> {
    Ok(json(StatusCode::OK, &registry.checkpoints().get(&parse_checkpoint(&id)?)?))
}

async fn ensure_checkpoint(State(registry): Shared, Path(id): Path<String>, body: Body) -> Result<Response> {
    let create: CheckpointCreate = decode(body).await?;
    Ok(json(StatusCode::OK, &registry.ensure_checkpoint(parse_checkpoint(&id)?, create).await?))
}

async fn copy_checkpoint(State(registry): Shared, Path(id): Path<String>, body: Body) -> Result<Response> {
    let copy: CheckpointCopy = decode(body).await?;
    Ok(json(StatusCode::OK, &registry.ensure_checkpoint_copy(parse_checkpoint(&id)?, copy).await?))
}

async fn remove_checkpoint(State(registry): Shared, Path(id): Path<String>) -> Result<StatusCode> {
    registry.remove_checkpoint(&parse_checkpoint(&id)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn set_patches(State(registry): Shared, Path(id): Path<String>, body: Body) -> Result<StatusCode> {
    let patches: Vec<Patch> = decode(body).await?;
    registry.checkpoints().set_patches(&parse_checkpoint(&id)?, patches).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn hibernate(State(registry): Shared, Path(id): Path<String>) -> Result<Response> {
    Ok(report(&registry.get(&parse(&id)?)?.hibernate().await?))
}

/// What a sandbox has logged. Does not wake it and does not keep it awake.
async fn logs(State(registry): Shared, Path(id): Path<String>, body: Body) -> Result<Response> {
    let query: Query = decode(body).await?;
    let query = query.checked();
    let handle = registry.get(&parse(&id)?)?;
    let mut failed = None;
    loop {
        let agent = match handle.log().await? {
            Log::Agent(agent) => agent,
            Log::Copy(folder) => return Ok(log::of_copy(&folder, &query).await?.into_response()),
        };
        match (log::of_agent(&agent, &query).await, failed) {
            (Ok(Some(answer)), _) => return Ok(answer),
            (Ok(None), _) => return Err(Error::unavailable(NO_LOGS).into()),
            (Err(error), Some(())) => return Err(error.into()),
            // It may have ended a moment ago.
            (Err(_), None) => handle.doubt().await,
        }
        failed = Some(());
    }
}

fn report(report: &Report) -> Response {
    json(StatusCode::OK, report)
}

/// Passes a call on to the agent, unread, and its answer back.
async fn guest(
    State(registry): Shared,
    Path((id, _)): Path<(String, String)>,
    mut request: Request,
) -> Result<Response> {
    let handle = registry.get(&parse(&id)?)?;
    let prefix = format!("/v1/sandboxes/{id}/guest");
    let target = request.uri().path_and_query().map_or("", http::uri::PathAndQuery::as_str);
    let rest = target.strip_prefix(&prefix).ok_or_else(|| Error::invalid("this path cannot be asked for"))?;
    let path = format!("/v1{rest}");
    let is_stream = counts_by_traffic(&path);
    let (connection, call) = handle.use_guest().await?;
    if is_stream {
        request = watch_traffic(request, &handle);
    }
    let response = match connection.call(request, &path).await {
        Ok(response) => response,
        Err(error) => {
            // Looked into at once, so that the sandbox's state says what became of its agent.
            handle.doubt().await;
            return Err(error.into());
        }
    };
    Ok(if is_stream {
        response.map(|body| activity::count(body, handle.activity.clone()))
    } else {
        response.map(|body| activity::hold(body, call))
    })
}

/// Output and input of who is attached and connections to ports count by their traffic, any other call from beginning to
/// end.
fn counts_by_traffic(path_and_query: &str) -> bool {
    let path = path_and_query.split('?').next().unwrap_or_default();
    path.starts_with("/v1/ports/") || ["/attach", "/input"].iter().any(|end| path.ends_with(end))
}

fn watch_traffic(request: Request, handle: &Handle) -> Request {
    handle.activity.touch();
    request.map(|body| activity::count(body, handle.activity.clone()))
}

/// Every sandbox and checkpoint, then every change.
async fn changes(State(registry): Shared) -> Response {
    let changes = registry.watch();
    let stop = registry.stop.clone();
    lines(changes, move || registry.list_all(), stop)
}

/// Every question that is open, then each new one.
async fn questions(State(registry): Shared) -> Response {
    let asked = registry.questions.watch();
    let stop = registry.stop.clone();
    lines(asked, move || registry.questions.open(), stop)
}

async fn answer(State(registry): Shared, Path(number): Path<u64>, body: Body) -> Result<StatusCode> {
    registry.questions.answer(number, decode::<Answer>(body).await?);
    Ok(StatusCode::NO_CONTENT)
}

/// All that there is and then what comes, as JSON lines.
fn lines<T>(
    mut coming: Receiver<T>,
    all: impl Fn() -> Vec<T> + Send + 'static,
    stop: CancellationToken,
) -> Response
where
    T: Serialize + Clone + Send + 'static,
{
    let (sender, receiver) =
        tokio::sync::mpsc::channel::<std::result::Result<Bytes, std::convert::Infallible>>(64);
    tokio::spawn(async move {
        let mut pending = all();
        loop {
            for item in pending.drain(..) {
                let mut line = serde_json::to_vec(&item).unwrap_or_default();
                line.push(b'\n');
                if sender.send(Ok(line.into())).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = sender.closed() => return,
                item = coming.recv() => match item {
                    Ok(item) => pending.push(item),
                    // Too slow for the backlog: everything anew says the same.
                    Err(RecvError::Lagged(_)) => pending = all(),
                    Err(RecvError::Closed) => return,
                },
                () = tokio::time::sleep(KEEP_ALIVE) => {
                    if sender.send(Ok(Bytes::from_static(b"\n"))).await.is_err() {
                        return;
                    }
                }
            }
        }
    });
    let lines = futures_util::stream::unfold(receiver, async |mut receiver| {
        receiver.recv().await.map(|line| (line, receiver))
    });
    Body::from_stream(lines).into_response()
}
