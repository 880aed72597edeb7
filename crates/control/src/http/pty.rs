//! Terminals: create, attach, resize, delete.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::response::Response;
use http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use warren_api::ErrorBody;
use warren_api::pty::{PtyCreate, PtyResize, PtySession};

use super::body::{Body, JsonObject};
use super::errors::ApiError;
use super::exec_ws::{answer, over_http_2, wanted};
use super::params::PtyPath;
use super::relay::Protocol;
use crate::app::App;
use crate::app::auth::Live;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(pty_create))
        .routes(routes!(pty_attach, pty_delete))
        .route("/sandboxes/{id}/pty/{sid}", over_http_2(pty_attach))
        .routes(routes!(pty_resize))
}

/// Opens a terminal.
#[utoipa::path(
    post, path = "/sandboxes/{id}/pty", tag = "pty", security(("api_key" = []), ("sandbox_token" = [])),
    params(("id" = String, Path)), request_body(content = PtyCreate, description = "May be left out"),
    responses((status = 201, body = PtySession), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 410, body = ErrorBody))
)]
async fn pty_create(
    State(app): State<Arc<App>>,
    live: Live,
    JsonObject(body): Body<PtyCreate>,
) -> Result<(StatusCode, Json<PtySession>), ApiError> {
    Ok((StatusCode::CREATED, Json(app.create_pty(&live, body).await?)))
}

/// Attaches to a terminal: a WebSocket of raw bytes both ways. The server closes when the shell ends, with its exit code as the
/// reason: `exit 3`.
#[utoipa::path(
    get, path = "/sandboxes/{id}/pty/{sid}", tag = "pty", security(("api_key" = []), ("sandbox_token" = [])),
    params(
        ("id" = String, Path), ("sid" = String, Path),
        ("api_key" = Option<String>, Query, description = "For clients that cannot set headers"),
        ("token" = Option<String>, Query, description = "For clients that cannot set headers")
    ),
    responses((status = 101), (status = 404, body = ErrorBody), (status = 410, body = ErrorBody), (status = 426, body = ErrorBody))
)]
async fn pty_attach(
    State(app): State<Arc<App>>,
    live: Live,
    PtyPath(pty): PtyPath,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let upgrade = wanted(upgrade)?;
    let attached = app.attach_pty(&live, &pty).await?;
    Ok(answer(&app, upgrade, attached, Protocol::Pty))
}

/// Tells a terminal its new size.
#[utoipa::path(
    post, path = "/sandboxes/{id}/pty/{sid}/resize", tag = "pty", security(("api_key" = []), ("sandbox_token" = [])),
    params(("id" = String, Path), ("sid" = String, Path)), request_body = PtyResize,
    responses((status = 200), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody))
)]
async fn pty_resize(
    State(app): State<Arc<App>>,
    live: Live,
    PtyPath(pty): PtyPath,
    JsonObject(body): Body<PtyResize>,
) -> Result<StatusCode, ApiError> {
    app.resize_pty(&live, &pty, &body).await?;
    Ok(StatusCode::OK)
}

/// Ends a terminal and what runs in it.
#[utoipa::path(
    delete, path = "/sandboxes/{id}/pty/{sid}", tag = "pty", security(("api_key" = []), ("sandbox_token" = [])),
    params(("id" = String, Path), ("sid" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody))
)]
async fn pty_delete(
    State(app): State<Arc<App>>,
    live: Live,
    PtyPath(pty): PtyPath,
) -> Result<StatusCode, ApiError> {
    app.delete_pty(&live, &pty).await?;
    Ok(StatusCode::NO_CONTENT)
}
