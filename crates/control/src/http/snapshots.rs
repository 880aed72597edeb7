//! Snapshots: named images, with versions.

use std::sync::Arc;

use axum::Json;
use axum::extract::{RawPathParams, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use warren_api::ErrorBody;
use warren_api::checkpoints::{Patch, PatchCreate, PatchCreated};
use warren_api::images::{Published, Snapshot, SnapshotCreate};

use super::body::{Body, ImageBody, JsonObject};
use super::errors::ApiError;
use super::events;
use super::params::SnapshotPath;
use super::query::Query;
use crate::app::App;
use crate::app::auth::Caller;
use crate::app::images::patches::Named;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(snapshot_create, snapshot_list))
        .routes(routes!(snapshot_get, snapshot_delete))
        .routes(routes!(snapshot_publish))
        .routes(routes!(snapshot_unpublish))
        .routes(routes!(snapshot_patch_create, snapshot_patch_list))
        .routes(routes!(snapshot_patch_delete))
}

/// Builds an image and gives it a name. Of an image that was built before only the name is new.
///
/// With `Accept: text/event-stream` the answer is a stream of events: `build_log`, and at the end `result` with the snapshot
/// or `error`. With `async=1` the answer comes at once. Who hangs up does not end the build; deleting the snapshot does.
#[utoipa::path(
    post, path = "/snapshots", tag = "images", security(("api_key" = [])),
    params(("async" = Option<String>, Query, description = "1: answer at once, with status building")),
    request_body = SnapshotCreate,
    responses(
        (status = 201, body = Snapshot), (status = 202, body = Snapshot), (status = 400, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "The name is taken"), (status = 413, body = ErrorBody)
    )
)]
async fn snapshot_create(
    State(app): State<Arc<App>>,
    caller: Caller,
    query: Query,
    headers: HeaderMap,
    JsonObject(body): ImageBody<SnapshotCreate>,
) -> Result<Response, ApiError> {
    let at_once = query.get("async").is_some_and(|word| matches!(word, "1" | "true"));
    let pending = app.begin_snapshot(&caller, body).await?;
    if at_once {
        let snapshot = app.show_pending(&pending).await?;
        return Ok((StatusCode::ACCEPTED, Json(snapshot)).into_response());
    }
    if !events::are_wanted(&headers) {
        return Ok((StatusCode::CREATED, Json(app.finish_snapshot(pending).await?)).into_response());
    }
    let reader = pending.reader();
    let mut first = vec![events::line(0, "resolve", "Resolving the image")];
    if reader.is_none() {
        first.push(events::line(0, "cache_hit", "The image was built before"));
    }
    let finish = {
        let app = Arc::clone(&app);
        async move { app.finish_snapshot(pending).await }
    };
    Ok(events::stream(&app, first, reader, None, finish))
}

/// The newest version of each snapshot, newest first. Long contents of files are left out of their manifests.
#[utoipa::path(
    get, path = "/snapshots", tag = "images", security(("api_key" = [])),
    params(("versions" = Option<String>, Query, description = "all: every version")),
    responses((status = 200, body = [Snapshot]))
)]
async fn snapshot_list(
    State(app): State<Arc<App>>,
    caller: Caller,
    query: Query,
) -> Result<Json<Vec<Snapshot>>, ApiError> {
    Ok(Json(app.list_snapshots(&caller, query.get("versions") == Some("all")).await?))
}

/// One snapshot: `name`, which is its newest version, or `name@3`.
#[utoipa::path(
    get, path = "/snapshots/{snapshot}", tag = "images", security(("api_key" = [])),
    params(("snapshot" = String, Path)),
    responses((status = 200, body = Snapshot), (status = 404, body = ErrorBody))
)]
async fn snapshot_get(
    State(app): State<Arc<App>>,
    caller: Caller,
    SnapshotPath(name): SnapshotPath,
) -> Result<Json<Snapshot>, ApiError> {
    Ok(Json(app.get_snapshot(&caller, &name).await?))
}

/// Deletes a snapshot with all its versions, or the one that is named. One that is being built is built no more.
/// Sandboxes made from it live on.
#[utoipa::path(
    delete, path = "/snapshots/{snapshot}", tag = "images", security(("api_key" = [])),
    params(("snapshot" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody))
)]
async fn snapshot_delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    SnapshotPath(name): SnapshotPath,
) -> Result<StatusCode, ApiError> {
    app.delete_snapshot(&caller, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lets every organisation that has no snapshot of that name make sandboxes from this one. A name that another organisation
/// has published is refused.
#[utoipa::path(
    post, path = "/snapshots/{snapshot}/publish", tag = "images", security(("api_key" = [])),
    params(("snapshot" = String, Path)),
    responses((status = 200, body = Published), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody))
)]
async fn snapshot_publish(
    State(app): State<Arc<App>>,
    caller: Caller,
    SnapshotPath(name): SnapshotPath,
) -> Result<Json<Published>, ApiError> {
    let (name, public) = app.publish_snapshot(&caller, &name, true).await?;
    Ok(Json(Published { name, public }))
}

/// Keeps a snapshot to its organisation again.
#[utoipa::path(
    post, path = "/snapshots/{snapshot}/unpublish", tag = "images", security(("api_key" = [])),
    params(("snapshot" = String, Path)),
    responses((status = 200, body = Published), (status = 404, body = ErrorBody))
)]
async fn snapshot_unpublish(
    State(app): State<Arc<App>>,
    caller: Caller,
    SnapshotPath(name): SnapshotPath,
) -> Result<Json<Published>, ApiError> {
    let (name, public) = app.publish_snapshot(&caller, &name, false).await?;
    Ok(Json(Published { name, public }))
}

/// Adds a script for every sandbox made from a snapshot, as for those of a checkpoint.
#[utoipa::path(
    post, path = "/snapshots/{snapshot}/patches", tag = "images", security(("api_key" = [])),
    params(("snapshot" = String, Path)), request_body = PatchCreate,
    responses((status = 201, body = PatchCreated), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody))
)]
async fn snapshot_patch_create(
    State(app): State<Arc<App>>,
    caller: Caller,
    SnapshotPath(name): SnapshotPath,
    JsonObject(body): Body<PatchCreate>,
) -> Result<(StatusCode, Json<PatchCreated>), ApiError> {
    let patch = app.create_image_patch(&caller, &Named::Snapshot(name), body).await?;
    Ok((StatusCode::CREATED, Json(PatchCreated { patch })))
}

/// The patches of a snapshot, in order.
#[utoipa::path(
    get, path = "/snapshots/{snapshot}/patches", tag = "images", security(("api_key" = [])),
    params(("snapshot" = String, Path)),
    responses((status = 200, body = [Patch]), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody))
)]
async fn snapshot_patch_list(
    State(app): State<Arc<App>>,
    caller: Caller,
    SnapshotPath(name): SnapshotPath,
) -> Result<Json<Vec<Patch>>, ApiError> {
    Ok(Json(app.list_image_patches(&caller, &Named::Snapshot(name)).await?))
}

/// Removes a patch of a snapshot. Where it has run already, what it did stays.
#[utoipa::path(
    delete, path = "/snapshots/{snapshot}/patches/{pid}", tag = "images", security(("api_key" = [])),
    params(("snapshot" = String, Path), ("pid" = String, Path)),
    responses((status = 204), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody))
)]
async fn snapshot_patch_delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    SnapshotPath(name): SnapshotPath,
    params: RawPathParams,
) -> Result<StatusCode, ApiError> {
    app.delete_image_patch(&caller, &Named::Snapshot(name), patch_of(&params)).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) fn patch_of(params: &RawPathParams) -> String {
    params.iter().find(|(name, _)| *name == "pid").map(|(_, value)| value.to_owned()).unwrap_or_default()
}
