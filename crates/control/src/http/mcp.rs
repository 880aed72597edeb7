//! The Model Context Protocol over streamable HTTP: `/mcp/{id}` with the tools of one sandbox, `/mcp` with those of all of an
//! organisation's.
//!
//! ```text
//!   POST ─▶ origin ─▶ credential ─▶ sandbox ─▶ rmcp ─▶ Door ─▶ call_tool
//! ```
//!
//! No session is kept. Every request carries its credential and is served by itself, in the protocol with `initialize` and in the one
//! without, so a client outlives a restart of this server, and there is nothing that could be taken over. A client that has initialised
//! gets a session id all the same: with it, its `notifications/cancelled` finds the call it is about ([`cancel`]).
//!
//! These routes are not in `/openapi.json`, which has no words for them.

mod cancel;
mod door;
mod origin;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use warren_types::{Error, ErrorKind};

use super::auth;
use super::body::{MAX_TOOL_BYTES, read_in_time};
use super::errors::ApiError;
use super::headers::PublicBase;
use super::params::SandboxPath;
use super::query::Query;
use super::request_id::id_of;
use crate::app::App;
use crate::app::auth::{Caller, no_credential};
use crate::app::tools::{Bound, Scope};
use axum::extract::FromRequestParts;
use cancel::Message;
use door::Door;

const SESSION_ID: &str = "mcp-session-id";
const BOTH: HeaderValue = HeaderValue::from_static("application/json, text/event-stream");
/// Between two signs of life while a tool works.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().route("/mcp", any(organisation)).route("/mcp/{id}", any(sandbox))
}

/// The tools of all sandboxes of an organisation. With `?tools=sandbox`, those of one that is still to be made.
async fn organisation(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let (mut parts, body) = request.into_parts();
    origin::check(&parts, &app)?;
    let credential = auth::of_tools(&parts.headers).ok_or_else(no_credential);
    let identity = match credential {
        Ok(credential) => app.authenticate(&credential).await,
        Err(error) => Err(error),
    };
    let identity = match identity {
        Ok(identity) => identity.in_request(id_of(&parts.extensions)),
        Err(error) => return Ok(ask_for_key(error)),
    };
    Caller::try_from(identity.clone()).map_err(|_| {
        Error::new(ErrorKind::Forbidden, "a sandbox token opens /mcp/{its sandbox's id}; use an API key here")
    })?;
    let query = Query::from_request_parts(&mut parts, &app).await?;
    let bound = match query.get("tools") {
        None | Some("") => Bound::No,
        Some("sandbox") => Bound::Later,
        Some(_) => return Err(Error::invalid("tools must be sandbox, or be left out").into()),
    };
    let PublicBase(base) = PublicBase::of(&parts, &app);
    serve(&app, Scope { identity, bound, base }, Request::from_parts(parts, body)).await
}

/// The tools of one sandbox. One that has been stopped is told so by its tools, where a model reads it.
async fn sandbox(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let (mut parts, body) = request.into_parts();
    origin::check(&parts, &app)?;
    let Some(credential) = auth::of_tools(&parts.headers) else { return Ok(ask_for_key(no_credential())) };
    let identity = match app.authenticate(&credential).await {
        Ok(identity) => identity.in_request(id_of(&parts.extensions)),
        Err(error) => return Ok(ask_for_key(error)),
    };
    let SandboxPath(id) = SandboxPath::from_request_parts(&mut parts, &app).await?;
    match app.reach(&identity, &id).await {
        Err(error) if !matches!(error.kind, ErrorKind::Gone | ErrorKind::Unavailable) => {
            return Err(error.into());
        }
        _ => {}
    }
    let PublicBase(base) = PublicBase::of(&parts, &app);
    serve(&app, Scope { identity, bound: Bound::To(id), base }, Request::from_parts(parts, body)).await
}

fn ask_for_key(error: Error) -> Response {
    let mut response = ApiError::from(error).into_response();
    if response.status() == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

async fn serve(app: &Arc<App>, scope: Scope, request: Request) -> Result<Response, ApiError> {
    match *request.method() {
        Method::POST => {}
        // There is no session to end and none to listen to.
        Method::DELETE => return Ok(StatusCode::NO_CONTENT.into_response()),
        _ => {
            let refused = ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "messages of MCP are sent with POST");
            return Ok(([(header::ALLOW, "POST, DELETE")], refused).into_response());
        }
    }
    let (mut parts, body) = request.into_parts();
    let bytes = read_in_time(Request::new(body), MAX_TOOL_BYTES).await?;
    let message = Message::read(&bytes);
    let session = session_of(&parts.headers);
    if let Some(cancelled) = message.cancels(&scope, session.as_deref()) {
        app.tools.cancel(&cancelled);
    }
    let door = Door { app: Arc::clone(app), call: message.call(&scope, session.as_deref()), scope };
    // Ours are not its.
    parts.headers.remove(SESSION_ID);
    let streams = accepts(&parts.headers, "text/event-stream");
    parts.headers.insert(header::ACCEPT, BOTH);
    // Clients say what they send, and those that do not send JSON all the same.
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // Any name: this server is reached under whatever name its operator gave it, and nothing is answered without a key, which no page
    // of another site can make a browser add. Pages are kept out by `origin`.
    let config = StreamableHttpServerConfig::default()
        .disable_allowed_hosts()
        .with_legacy_session_mode(false)
        .with_json_response(!streams)
        .with_sse_keep_alive(Some(KEEP_ALIVE))
        .with_sse_retry(None)
        .with_max_request_body_bytes(MAX_TOOL_BYTES)
        .with_cancellation_token(app.shutdown.child_token());
    let service = StreamableHttpService::new(
        move || Ok(door.clone()),
        Arc::new(NeverSessionManager::default()),
        config,
    );
    let answer = service.handle(http::Request::from_parts(parts, Body::from(bytes))).await;
    let mut answer = answer.map(Body::new);
    if message.is_initialize() && answer.status() == StatusCode::OK {
        let id = uuid::Uuid::new_v4().simple().to_string();
        answer
            .headers_mut()
            .insert(SESSION_ID, HeaderValue::from_str(&id).expect("hex digits make a header"));
    }
    Ok(explained(answer))
}

/// Errors of ours have a sentence in JSON; those of the library that are plain text get one.
fn explained(answer: Response) -> Response {
    let status = answer.status();
    let is_json = answer
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    if !status.is_client_error() && !status.is_server_error() || is_json {
        return answer;
    }
    let status = match status {
        // It was told that it gets JSON; it is not.
        StatusCode::UNSUPPORTED_MEDIA_TYPE => StatusCode::BAD_REQUEST,
        status if status.is_server_error() => StatusCode::SERVICE_UNAVAILABLE,
        status => status,
    };
    ApiError::new(status, "this is no message of MCP that can be answered: POST one JSON-RPC 2.0 message, and leave headers of MCP to a client")
        .into_response()
}

fn session_of(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(SESSION_ID)?.to_str().ok()?;
    (id.len() <= 64).then(|| id.to_owned())
}

/// Whether a client takes such answers; one that names none takes JSON.
fn accepts(headers: &HeaderMap, kind: &str) -> bool {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|accept| accept.to_str().ok())
        .flat_map(|accept| accept.split(','))
        .any(|accept| {
            accept.trim().split(';').next().is_some_and(|word| word.trim().eq_ignore_ascii_case(kind))
        })
}
