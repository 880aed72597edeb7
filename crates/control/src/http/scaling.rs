//! Scaling a sandbox: by hand, by itself, and the lock.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use warren_api::ErrorBody;
use warren_api::scaling::{Autoscale, AutoscaleChange, Scale, Scaled, ScalingLock, ScalingLockChange};

use super::body::{Body, JsonObject};
use super::errors::ApiError;
use super::params::SandboxPath;
use crate::app::App;
use crate::app::auth::Caller;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(sandbox_scale))
        .routes(routes!(autoscale_get, autoscale_set))
        .routes(routes!(scaling_lock_get, scaling_lock_set))
}

/// Changes the memory of a running sandbox, and with it its vCPUs. Ends scaling by itself.
#[utoipa::path(
    post, path = "/sandboxes/{id}/scale", tag = "scaling", security(("api_key" = [])),
    params(("id" = String, Path)), request_body = Scale,
    responses(
        (status = 200, body = Scaled), (status = 400, body = ErrorBody),
        (status = 403, body = ErrorBody, description = "code scaling_locked"), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "code oom_floor: more is in use; details usedBytes, limitBytes"),
        (status = 410, body = ErrorBody)
    )
)]
async fn sandbox_scale(
    State(app): State<Arc<App>>,
    caller: Caller,
    SandboxPath(id): SandboxPath,
    JsonObject(body): Body<Scale>,
) -> Result<Json<Scaled>, ApiError> {
    Ok(Json(app.scale(&caller, &id, body).await?))
}

/// Whether a sandbox scales by itself, and between which sizes.
#[utoipa::path(
    get, path = "/sandboxes/{id}/autoscale", tag = "scaling", security(("api_key" = [])),
    params(("id" = String, Path)),
    responses((status = 200, body = Autoscale), (status = 404, body = ErrorBody))
)]
async fn autoscale_get(
    State(app): State<Arc<App>>,
    caller: Caller,
    SandboxPath(id): SandboxPath,
) -> Result<Json<Autoscale>, ApiError> {
    Ok(Json(app.get_autoscale(&caller, &id).await?))
}

/// Lets a sandbox scale by itself, or not.
#[utoipa::path(
    put, path = "/sandboxes/{id}/autoscale", tag = "scaling", security(("api_key" = [])),
    params(("id" = String, Path)), request_body = AutoscaleChange,
    responses(
        (status = 200, body = Autoscale), (status = 400, body = ErrorBody),
        (status = 403, body = ErrorBody, description = "code scaling_locked"), (status = 404, body = ErrorBody),
        (status = 410, body = ErrorBody)
    )
)]
async fn autoscale_set(
    State(app): State<Arc<App>>,
    caller: Caller,
    SandboxPath(id): SandboxPath,
    JsonObject(body): Body<AutoscaleChange>,
) -> Result<Json<Autoscale>, ApiError> {
    Ok(Json(app.set_autoscale(&caller, &id, body).await?))
}

/// Whether the size of a sandbox is locked.
#[utoipa::path(
    get, path = "/sandboxes/{id}/scaling-lock", tag = "scaling", security(("api_key" = [])),
    params(("id" = String, Path)),
    responses((status = 200, body = ScalingLock), (status = 404, body = ErrorBody))
)]
async fn scaling_lock_get(
    State(app): State<Arc<App>>,
    caller: Caller,
    SandboxPath(id): SandboxPath,
) -> Result<Json<ScalingLock>, ApiError> {
    Ok(Json(app.get_scaling_lock(&caller, &id).await?))
}

/// Locks the size of a sandbox, or unlocks it. Locking also ends scaling by itself.
#[utoipa::path(
    put, path = "/sandboxes/{id}/scaling-lock", tag = "scaling", security(("api_key" = [])),
    params(("id" = String, Path)), request_body = ScalingLockChange,
    responses(
        (status = 200, body = ScalingLock), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 410, body = ErrorBody)
    )
)]
async fn scaling_lock_set(
    State(app): State<Arc<App>>,
    caller: Caller,
    SandboxPath(id): SandboxPath,
    JsonObject(body): Body<ScalingLockChange>,
) -> Result<Json<ScalingLock>, ApiError> {
    Ok(Json(app.set_scaling_lock(&caller, &id, body).await?))
}
