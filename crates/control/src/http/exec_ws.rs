//! Attaching to a command over a WebSocket.
//!
//! The guest's stream is opened before the upgrade is answered: what is wrong with it can then still be told as plain
//! HTTP, and the offset of what follows stands in a header of the answer.

use std::sync::Arc;

use axum::extract::State;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::handler::Handler;
use axum::response::Response;
use axum::routing::MethodRouter;
use http::{HeaderValue, StatusCode};
use tracing::Instrument;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use warren_api::{EXEC_OFFSET_HEADER, ErrorBody};
use warren_types::{Error, ExecId};

use super::errors::ApiError;
use super::params::ExecPath;
use super::query::Query;
use super::relay::{MAX_MESSAGE_BYTES, Protocol, relay};
use crate::app::App;
use crate::app::auth::Live;
use crate::app::exec::attach::Attached;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(exec_attach))
        .route("/sandboxes/{id}/exec/{sid}", over_http_2(exec_attach))
}

/// A WebSocket in HTTP/2 is asked for with CONNECT (RFC 8441), as browsers do on a connection they have.
pub(super) fn over_http_2<T: 'static, H: Handler<T, Arc<App>>>(attach: H) -> MethodRouter<Arc<App>> {
    axum::routing::connect(attach)
}

/// Attaches to a command: a WebSocket of binary messages whose first byte is the kind.
///
/// Client to server: 0 input, 5 end of input. Server to client: 1 stdout, 2 stderr, 3 exit code as a big-endian 32-bit
/// integer, 4 the replay of earlier output is over. After 3 the server closes.
#[utoipa::path(
    get, path = "/sandboxes/{id}/exec/{sid}", tag = "exec", security(("api_key" = []), ("sandbox_token" = [])),
    params(
        ("id" = String, Path), ("sid" = String, Path),
        ("offset" = Option<u64>, Query, description = "First byte of output to replay; when absent the newest MiB, of an agent session all that is kept"),
        ("api_key" = Option<String>, Query, description = "For clients that cannot set headers"),
        ("token" = Option<String>, Query, description = "For clients that cannot set headers")
    ),
    responses((status = 101), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 410, body = ErrorBody), (status = 426, body = ErrorBody))
)]
async fn exec_attach(
    State(app): State<Arc<App>>,
    live: Live,
    ExecPath(exec): ExecPath,
    query: Query,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    attach(&app, &live, &exec, &query, wanted(upgrade)?).await
}

pub(super) async fn attach(
    app: &Arc<App>,
    live: &Live,
    exec: &ExecId,
    query: &Query,
    upgrade: WebSocketUpgrade,
) -> Result<Response, ApiError> {
    let offset = query
        .get("offset")
        .map(|offset| offset.parse().map_err(|_| Error::invalid("offset must be a number of bytes")))
        .transpose()?;
    let (attached, offset) = app.attach_exec(live, exec, offset).await?;
    let mut response = answer(app, upgrade, attached, Protocol::Exec);
    response.headers_mut().insert(EXEC_OFFSET_HEADER, HeaderValue::from(offset));
    Ok(response)
}

/// Refuses plain requests to a WebSocket route.
pub(super) fn wanted(
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<WebSocketUpgrade, ApiError> {
    upgrade.map_err(|rejection| {
        ApiError::new(
            StatusCode::UPGRADE_REQUIRED,
            format!(
                "this path is a WebSocket; connect to it with a WebSocket client ({})",
                rejection.body_text()
            ),
        )
    })
}

/// Completes the upgrade and relays in the background.
pub(super) fn answer(
    app: &Arc<App>,
    upgrade: WebSocketUpgrade,
    attached: Attached,
    protocol: Protocol,
) -> Response {
    let (shutdown, tasks) = (app.shutdown.clone(), app.tasks.token());
    let span = tracing::Span::current();
    upgrade.max_message_size(MAX_MESSAGE_BYTES).max_frame_size(MAX_MESSAGE_BYTES).on_upgrade(
        async move |socket| {
            relay(socket, attached, protocol, shutdown).instrument(span).await;
            drop(tasks);
        },
    )
}
