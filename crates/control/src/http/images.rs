//! Images, with a name or without; what they take of the volume; archives.

use std::sync::Arc;

use axum::Json;
use axum::body::Body as RawBody;
use axum::extract::{RawPathParams, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get};
use http::{HeaderMap, StatusCode};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use warren_api::ErrorBody;
use warren_api::checkpoints::{Patch, PatchCreate, PatchCreated};
use warren_api::images::{ImageUsage, Snapshot};
use warren_types::Error;

use super::body::{Body, JsonObject};
use super::errors::ApiError;
use super::events;
use super::params::ImagePath;
use super::query::Query;
use super::snapshots::patch_of;
use crate::app::App;
use crate::app::auth::Caller;
use crate::app::images::archive::{ArchiveWanted, PendingArchive};
use crate::app::images::patches::Named;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(image_list))
        .routes(routes!(image_usage))
        .routes(routes!(image_archive))
        .routes(routes!(image_get, image_delete))
        .routes(routes!(image_patch_create, image_patch_list))
        .routes(routes!(image_patch_delete))
        .merge(of_names_like_routes())
}

/// A snapshot may be called like one of the routes above. Such a name is an image's in the methods that the route does not have;
/// `GET /images/usage` alone is taken, where `usage@1`, the id, and `/snapshots/usage` are left.
fn of_names_like_routes() -> OpenApiRouter<Arc<App>> {
    let image = |name: &str| ImagePath(name.to_owned());
    let get_archive = move |app, caller| image_get(app, caller, image("archive"));
    let delete_archive = move |app, caller| image_delete(app, caller, image("archive"));
    let delete_usage = move |app, caller| image_delete(app, caller, image("usage"));
    OpenApiRouter::new()
        .route("/images/archive", get(get_archive).delete(delete_archive))
        .route("/images/usage", delete(delete_usage))
}

/// All images, newest first; one with several names several times. Long contents of files are left out.
#[utoipa::path(
    get, path = "/images", tag = "images", security(("api_key" = [])),
    responses((status = 200, body = [Snapshot]))
)]
async fn image_list(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<Vec<Snapshot>>, ApiError> {
    Ok(Json(app.list_images(&caller).await?))
}

/// *Additive.* What the images of all organisations take of the volume.
#[utoipa::path(
    get, path = "/images/usage", tag = "images", security(("api_key" = [])),
    responses((status = 200, body = ImageUsage), (status = 503, body = ErrorBody))
)]
async fn image_usage(State(app): State<Arc<App>>, _: Caller) -> Result<Json<ImageUsage>, ApiError> {
    Ok(Json(app.get_image_usage().await?))
}

/// *Additive.* Makes an image of a tar archive: an OCI layout, or what `docker save` writes.
///
/// With `Accept: text/event-stream` the answer is a stream of events, as for a snapshot.
#[utoipa::path(
    post, path = "/images/archive", tag = "images", security(("api_key" = [])),
    params(
        ("name" = Option<String>, Query, description = "Makes it a snapshot of that name"),
        ("newVersion" = Option<bool>, Query, description = "A name that is taken gets another version instead of 409"),
        ("isolation" = Option<String>, Query, description = "container or vm; the server's own when absent")
    ),
    request_body(content = Vec<u8>, content_type = "application/x-tar"),
    responses(
        (status = 201, body = Snapshot), (status = 400, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "The name is taken"), (status = 413, body = ErrorBody),
        (status = 429, body = ErrorBody, description = "The organisation is sending enough of them"),
        (status = 503, body = ErrorBody)
    )
)]
async fn image_archive(
    State(app): State<Arc<App>>,
    caller: Caller,
    query: Query,
    headers: HeaderMap,
    body: RawBody,
) -> Result<Response, ApiError> {
    let isolation = match query.get("isolation") {
        None | Some("") => None,
        Some(word) => Some(word.parse().map_err(Error::invalid)?),
    };
    let wanted = ArchiveWanted {
        name: query.get("name").filter(|name| !name.is_empty()).map(str::to_owned),
        new_version: query.get("newVersion").is_some_and(|word| matches!(word, "1" | "true")),
        isolation,
    };
    let PendingArchive { reader, image } = app.begin_archive(&caller, wanted, body).await?;
    let finish =
        async move { image.await.map_err(|_| Error::internal("what was made of an archive was not told")) };
    if events::are_wanted(&headers) {
        return Ok(events::stream(&app, Vec::new(), Some(reader), None, finish));
    }
    reader.ended().await?;
    Ok((StatusCode::CREATED, Json(finish.await?)).into_response())
}

/// One image, by its id or by the name of a snapshot.
#[utoipa::path(
    get, path = "/images/{image}", tag = "images", security(("api_key" = [])),
    params(("image" = String, Path)),
    responses((status = 200, body = Snapshot), (status = 404, body = ErrorBody))
)]
async fn image_get(
    State(app): State<Arc<App>>,
    caller: Caller,
    ImagePath(image): ImagePath,
) -> Result<Json<Snapshot>, ApiError> {
    Ok(Json(app.get_image(&caller, &image).await?))
}

/// Deletes an image with its names. One that is being built is built no more. Sandboxes made from it live on.
#[utoipa::path(
    delete, path = "/images/{image}", tag = "images", security(("api_key" = [])),
    params(("image" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody))
)]
async fn image_delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    ImagePath(image): ImagePath,
) -> Result<StatusCode, ApiError> {
    app.delete_image(&caller, &image).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Adds a script for every sandbox made from an image, as for those of a checkpoint.
#[utoipa::path(
    post, path = "/images/{image}/patches", tag = "images", security(("api_key" = [])),
    params(("image" = String, Path)), request_body = PatchCreate,
    responses((status = 201, body = PatchCreated), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody))
)]
async fn image_patch_create(
    State(app): State<Arc<App>>,
    caller: Caller,
    ImagePath(image): ImagePath,
    JsonObject(body): Body<PatchCreate>,
) -> Result<(StatusCode, Json<PatchCreated>), ApiError> {
    let patch = app.create_image_patch(&caller, &Named::Image(image), body).await?;
    Ok((StatusCode::CREATED, Json(PatchCreated { patch })))
}

/// The patches of an image, in order.
#[utoipa::path(
    get, path = "/images/{image}/patches", tag = "images", security(("api_key" = [])),
    params(("image" = String, Path)),
    responses((status = 200, body = [Patch]), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody))
)]
async fn image_patch_list(
    State(app): State<Arc<App>>,
    caller: Caller,
    ImagePath(image): ImagePath,
) -> Result<Json<Vec<Patch>>, ApiError> {
    Ok(Json(app.list_image_patches(&caller, &Named::Image(image)).await?))
}

/// Removes a patch of an image. Where it has run already, what it did stays.
#[utoipa::path(
    delete, path = "/images/{image}/patches/{pid}", tag = "images", security(("api_key" = [])),
    params(("image" = String, Path), ("pid" = String, Path)),
    responses((status = 204), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody))
)]
async fn image_patch_delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    ImagePath(image): ImagePath,
    params: RawPathParams,
) -> Result<StatusCode, ApiError> {
    app.delete_image_patch(&caller, &Named::Image(image), patch_of(&params)).await?;
    Ok(StatusCode::NO_CONTENT)
}
