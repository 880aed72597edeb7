//! Patches of checkpoints, and how they went in a sandbox.

use std::sync::Arc;

use axum::Json;
use axum::extract::{RawPathParams, State};
use http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use warren_api::ErrorBody;
use warren_api::checkpoints::{Patch, PatchCreate, PatchCreated, PatchRun};

use super::body::{Body, JsonObject};
use super::errors::ApiError;
use super::params::{CheckpointPath, SandboxPath};
use crate::app::App;
use crate::app::auth::Caller;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(patch_create, patch_list))
        .routes(routes!(patch_delete))
        .routes(routes!(patch_run_list))
}

/// Adds a script for every sandbox made from a checkpoint.
///
/// It runs once in each, as `bash -c` by the user `sandbox`, in order, whenever the sandbox begins to run and before
/// anybody may use it. The first that fails stops the run; the next start tries it again.
#[utoipa::path(
    post, path = "/sandboxes/checkpoints/{cid}/patches", tag = "checkpoints", security(("api_key" = [])),
    params(("cid" = String, Path)), request_body = PatchCreate,
    responses(
        (status = 201, body = PatchCreated), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 404, body = ErrorBody)
    )
)]
async fn patch_create(
    State(app): State<Arc<App>>,
    caller: Caller,
    checkpoint: CheckpointPath,
    JsonObject(body): Body<PatchCreate>,
) -> Result<(StatusCode, Json<PatchCreated>), ApiError> {
    let patch = app.create_patch(&caller, &checkpoint.parse()?, body).await?;
    Ok((StatusCode::CREATED, Json(PatchCreated { patch })))
}

/// The patches of a checkpoint, in order.
#[utoipa::path(
    get, path = "/sandboxes/checkpoints/{cid}/patches", tag = "checkpoints", security(("api_key" = [])),
    params(("cid" = String, Path)),
    responses(
        (status = 200, body = [Patch]), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 404, body = ErrorBody)
    )
)]
async fn patch_list(
    State(app): State<Arc<App>>,
    caller: Caller,
    checkpoint: CheckpointPath,
) -> Result<Json<Vec<Patch>>, ApiError> {
    Ok(Json(app.list_patches(&caller, &checkpoint.parse()?).await?))
}

/// Removes a patch. Where it has run already, what it did stays.
#[utoipa::path(
    delete, path = "/sandboxes/checkpoints/{cid}/patches/{pid}", tag = "checkpoints", security(("api_key" = [])),
    params(("cid" = String, Path), ("pid" = String, Path)),
    responses(
        (status = 204), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody)
    )
)]
async fn patch_delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    checkpoint: CheckpointPath,
    params: RawPathParams,
) -> Result<StatusCode, ApiError> {
    let patch = params.iter().find(|(name, _)| *name == "pid").map(|(_, value)| value.to_owned());
    app.delete_patch(&caller, &checkpoint.parse()?, patch.unwrap_or_default()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// *Additive.* How the patches of its checkpoint went in a sandbox, with their output; the newest 50, oldest first.
#[utoipa::path(
    get, path = "/sandboxes/{id}/patches", tag = "checkpoints", security(("api_key" = [])),
    params(("id" = String, Path)),
    responses((status = 200, body = [PatchRun]), (status = 404, body = ErrorBody), (status = 410, body = ErrorBody))
)]
async fn patch_run_list(
    State(app): State<Arc<App>>,
    caller: Caller,
    SandboxPath(id): SandboxPath,
) -> Result<Json<Vec<PatchRun>>, ApiError> {
    Ok(Json(app.list_patch_runs(&caller, &id).await?))
}
