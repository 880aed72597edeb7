//! Checkpoints of a sandbox, restoring in place, publishing, forking.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use warren_api::ErrorBody;
use warren_api::checkpoints::{Checkpoint, CheckpointCreate, Fork, Restoring};
use warren_api::sandboxes::Sandbox;

use super::body::{Body, JsonObject};
use super::errors::ApiError;
use super::headers::PublicBase;
use super::params::{CheckpointPath, SandboxPath};
use super::sandboxes::{created, idempotency_key};
use crate::app::App;
use crate::app::auth::Caller;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(checkpoint_create, checkpoint_list))
        .routes(routes!(checkpoint_delete))
        .routes(routes!(checkpoint_restore))
        .routes(routes!(checkpoint_publish))
        .routes(routes!(checkpoint_unpublish))
        .routes(routes!(checkpoint_fork))
}

/// Takes a checkpoint; answers when it is captured, and it is `ready` a little later.
///
/// The sandbox stands still for milliseconds; calls that arrive meanwhile wait. What was written before the request is in
/// it. Works on a hibernated sandbox too.
#[utoipa::path(
    post, path = "/sandboxes/{id}/checkpoints", tag = "checkpoints", security(("api_key" = [])),
    params(
        ("id" = String, Path),
        ("Idempotency-Key" = Option<String>, Header, description = "The same key and body give the same checkpoint")
    ),
    request_body = CheckpointCreate,
    responses(
        (status = 201, body = Checkpoint), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "The sandbox has a checkpoint of that name"),
        (status = 503, body = ErrorBody)
    )
)]
async fn checkpoint_create(
    State(app): State<Arc<App>>,
    caller: Caller,
    SandboxPath(id): SandboxPath,
    headers: HeaderMap,
    JsonObject(body): Body<CheckpointCreate>,
) -> Result<(StatusCode, Json<Checkpoint>), ApiError> {
    let key = idempotency_key(&headers)?;
    Ok((StatusCode::CREATED, Json(app.create_checkpoint(&caller, &id, body, key).await?)))
}

/// Checkpoints of a sandbox, newest first; of a deleted one too.
#[utoipa::path(
    get, path = "/sandboxes/{id}/checkpoints", tag = "checkpoints", security(("api_key" = [])),
    params(("id" = String, Path)),
    responses((status = 200, body = [Checkpoint]), (status = 404, body = ErrorBody))
)]
async fn checkpoint_list(
    State(app): State<Arc<App>>,
    caller: Caller,
    SandboxPath(id): SandboxPath,
) -> Result<Json<Vec<Checkpoint>>, ApiError> {
    Ok(Json(app.list_checkpoints(&caller, &id).await?))
}

/// Deletes a checkpoint. What was made from it stays.
#[utoipa::path(
    delete, path = "/sandboxes/{id}/checkpoints/{cid}", tag = "checkpoints", security(("api_key" = [])),
    params(("id" = String, Path), ("cid" = String, Path)),
    responses(
        (status = 204), (status = 400, body = ErrorBody, description = "It is of another sandbox"),
        (status = 403, body = ErrorBody), (status = 404, body = ErrorBody)
    )
)]
async fn checkpoint_delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    SandboxPath(id): SandboxPath,
    checkpoint: CheckpointPath,
) -> Result<StatusCode, ApiError> {
    app.check_sandbox(&caller, &id).await?;
    app.delete_checkpoint(&caller, &id, &checkpoint.parse()?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Puts a sandbox back to one of its checkpoints; id, URLs and settings stay.
///
/// Its processes end. Later calls wait until it runs again.
#[utoipa::path(
    post, path = "/sandboxes/{id}/checkpoints/{cid}/restore", tag = "checkpoints", security(("api_key" = [])),
    params(("id" = String, Path), ("cid" = String, Path)),
    responses(
        (status = 200, body = Restoring), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "It is damaged and was not used, or another operation is in progress"),
        (status = 503, body = ErrorBody)
    )
)]
async fn checkpoint_restore(
    State(app): State<Arc<App>>,
    caller: Caller,
    SandboxPath(id): SandboxPath,
    checkpoint: CheckpointPath,
) -> Result<Json<Restoring>, ApiError> {
    app.check_sandbox(&caller, &id).await?;
    Ok(Json(app.restore_checkpoint(&caller, &id, &checkpoint.parse()?).await?))
}

/// Lets every organisation fork a checkpoint. Its owner's to decide; repeating it is fine.
#[utoipa::path(
    post, path = "/sandboxes/checkpoints/{cid}/publish", tag = "checkpoints", security(("api_key" = [])),
    params(("cid" = String, Path)),
    responses(
        (status = 200, body = Checkpoint), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 404, body = ErrorBody)
    )
)]
async fn checkpoint_publish(
    State(app): State<Arc<App>>,
    caller: Caller,
    checkpoint: CheckpointPath,
) -> Result<Json<Checkpoint>, ApiError> {
    Ok(Json(app.publish_checkpoint(&caller, &checkpoint.parse()?, true).await?))
}

/// Takes that back. Sandboxes that were made meanwhile stay.
#[utoipa::path(
    post, path = "/sandboxes/checkpoints/{cid}/unpublish", tag = "checkpoints", security(("api_key" = [])),
    params(("cid" = String, Path)),
    responses(
        (status = 200, body = Checkpoint), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 404, body = ErrorBody)
    )
)]
async fn checkpoint_unpublish(
    State(app): State<Arc<App>>,
    caller: Caller,
    checkpoint: CheckpointPath,
) -> Result<Json<Checkpoint>, ApiError> {
    Ok(Json(app.publish_checkpoint(&caller, &checkpoint.parse()?, false).await?))
}

/// Makes a sandbox that starts as the checkpoint was, and returns once it is running and patched.
///
/// Environment and metadata of the request are laid over those of the checkpoint. A checkpoint that is still being made is
/// waited for, up to 30 s.
#[utoipa::path(
    post, path = "/sandboxes/from-checkpoint/{cid}", tag = "checkpoints", security(("api_key" = [])),
    params(
        ("cid" = String, Path),
        ("Idempotency-Key" = Option<String>, Header, description = "The same key and body give the same sandbox, for a day")
    ),
    request_body(content = Fork, description = "May be left out"),
    responses(
        (status = 201, body = Sandbox), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "The checkpoint is damaged and was not used"),
        (status = 429, body = ErrorBody), (status = 502, body = ErrorBody), (status = 503, body = ErrorBody)
    )
)]
async fn checkpoint_fork(
    State(app): State<Arc<App>>,
    caller: Caller,
    checkpoint: CheckpointPath,
    PublicBase(base): PublicBase,
    headers: HeaderMap,
    JsonObject(body): Body<Fork>,
) -> Result<Response, ApiError> {
    let key = idempotency_key(&headers)?;
    let made = app.fork_checkpoint(&caller, &checkpoint.parse()?, body, key, base).await?;
    Ok(created(made).into_response())
}
