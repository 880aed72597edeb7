//! Previews: the list of registered ones, the token that opens them, links to share.

use std::sync::Arc;

use axum::Json;
use axum::extract::RawPathParams;
use axum::extract::State;
use http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use warren_api::ErrorBody;
use warren_api::previews::{Preview, PreviewCreate, PreviewShare, PreviewShareCreate, PreviewTokenRotated};

use super::body::{Body, JsonObject};
use super::errors::ApiError;
use super::headers::PublicBase;
use super::params::SandboxPath;
use crate::app::App;
use crate::app::auth::Caller;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(preview_create, preview_list))
        .routes(routes!(preview_rotate))
        .routes(routes!(preview_delete))
        .routes(routes!(preview_share))
}

/// Registers a port for the list of previews. Every port can be opened without.
#[utoipa::path(
    post, path = "/sandboxes/{id}/preview", tag = "previews", security(("api_key" = [])),
    params(("id" = String, Path)), request_body = PreviewCreate,
    responses((status = 201, body = Preview), (status = 200, body = Preview, description = "It was registered already"),
        (status = 400, body = ErrorBody), (status = 404, body = ErrorBody), (status = 410, body = ErrorBody))
)]
async fn preview_create(
    State(app): State<Arc<App>>,
    caller: Caller,
    SandboxPath(id): SandboxPath,
    PublicBase(base): PublicBase,
    JsonObject(body): Body<PreviewCreate>,
) -> Result<(StatusCode, Json<Preview>), ApiError> {
    let (preview, is_new) = app.create_preview(&caller, &id, body, &base).await?;
    Ok((if is_new { StatusCode::CREATED } else { StatusCode::OK }, Json(preview)))
}

/// The registered previews of a sandbox, by port.
#[utoipa::path(
    get, path = "/sandboxes/{id}/preview", tag = "previews", security(("api_key" = [])), params(("id" = String, Path)),
    responses((status = 200, body = [Preview]), (status = 404, body = ErrorBody))
)]
async fn preview_list(
    State(app): State<Arc<App>>,
    caller: Caller,
    SandboxPath(id): SandboxPath,
    PublicBase(base): PublicBase,
) -> Result<Json<Vec<Preview>>, ApiError> {
    Ok(Json(app.list_previews(&caller, &id, &base).await?))
}

/// Takes a port off the list. It can still be opened.
#[utoipa::path(
    delete, path = "/sandboxes/{id}/preview/{port}", tag = "previews", security(("api_key" = [])),
    params(("id" = String, Path), ("port" = u16, Path)),
    responses((status = 204), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody))
)]
async fn preview_delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    SandboxPath(id): SandboxPath,
    params: RawPathParams,
) -> Result<StatusCode, ApiError> {
    app.delete_preview(&caller, &id, port_of(&params)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Makes a new token for the previews of a sandbox. The old one, and every link that was shared, end at once; previews that
/// were open are closed.
#[utoipa::path(
    post, path = "/sandboxes/{id}/preview/rotate", tag = "previews", security(("api_key" = [])),
    params(("id" = String, Path)),
    responses((status = 200, body = PreviewTokenRotated), (status = 404, body = ErrorBody), (status = 410, body = ErrorBody))
)]
async fn preview_rotate(
    State(app): State<Arc<App>>,
    caller: Caller,
    SandboxPath(id): SandboxPath,
) -> Result<Json<PreviewTokenRotated>, ApiError> {
    Ok(Json(app.rotate_preview_token(&caller, &id).await?))
}

/// A link that opens one port in a browser, without the token, until it expires.
///
/// Opening it sets a cookie for that preview alone and leads to its plain address. 409 when previews are open to everybody.
#[utoipa::path(
    post, path = "/sandboxes/{id}/preview/{port}/share", tag = "previews", security(("api_key" = [])),
    params(("id" = String, Path), ("port" = u16, Path)),
    request_body(content = PreviewShareCreate, description = "May be left out"),
    responses((status = 200, body = PreviewShare), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 410, body = ErrorBody))
)]
async fn preview_share(
    State(app): State<Arc<App>>,
    caller: Caller,
    SandboxPath(id): SandboxPath,
    PublicBase(base): PublicBase,
    params: RawPathParams,
    JsonObject(body): Body<PreviewShareCreate>,
) -> Result<Json<PreviewShare>, ApiError> {
    Ok(Json(app.share_preview(&caller, &id, port_of(&params), &body, &base).await?))
}

fn port_of(params: &RawPathParams) -> &str {
    params.iter().find(|(name, _)| *name == "port").map_or("", |(_, value)| value)
}
