//! Tags of a sandbox, and the tag keys of an organisation.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use warren_api::ErrorBody;
use warren_api::tags::{SandboxTags, TagKeys};

use super::body::{JsonObject, RequiredBody};
use super::errors::ApiError;
use super::params::SandboxPath;
use crate::app::App;
use crate::app::auth::Caller;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(tags_get, tags_replace)).routes(routes!(tag_key_list))
}

/// The tags of a sandbox, in any state.
#[utoipa::path(
    get, path = "/sandboxes/{id}/tags", tag = "tags", security(("api_key" = [])), params(("id" = String, Path)),
    responses((status = 200, body = SandboxTags), (status = 404, body = ErrorBody))
)]
async fn tags_get(
    State(app): State<Arc<App>>,
    caller: Caller,
    SandboxPath(id): SandboxPath,
) -> Result<Json<SandboxTags>, ApiError> {
    Ok(Json(app.get_tags(&caller, &id).await?))
}

/// Replaces all tags of a sandbox at once.
#[utoipa::path(
    put, path = "/sandboxes/{id}/tags", tag = "tags", security(("api_key" = [])), params(("id" = String, Path)),
    request_body = BTreeMap<String, String>,
    responses((status = 200, body = SandboxTags), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody))
)]
async fn tags_replace(
    State(app): State<Arc<App>>,
    caller: Caller,
    SandboxPath(id): SandboxPath,
    JsonObject(tags): RequiredBody<BTreeMap<String, String>>,
) -> Result<Json<SandboxTags>, ApiError> {
    Ok(Json(app.replace_tags(&caller, &id, tags).await?))
}

/// Every tag key in use, with how often.
#[utoipa::path(
    get, path = "/tags", tag = "tags", security(("api_key" = [])), responses((status = 200, body = TagKeys))
)]
async fn tag_key_list(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<TagKeys>, ApiError> {
    Ok(Json(app.list_tag_keys(&caller).await?))
}
