//! Templates as the SDKs know them: `base`, and every snapshot.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use warren_api::ErrorBody;
use warren_api::images::{Template, TemplateCreate};

use super::body::{JsonObject, RequiredBody};
use super::errors::ApiError;
use super::params::TemplatePath;
use crate::app::App;
use crate::app::auth::Caller;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(template_create, template_list))
        .routes(routes!(template_get, template_delete))
}

/// Makes a snapshot of an image in a registry; returns when it can be used.
///
/// The Dockerfile may hold comments and one `FROM`. Whatever else it says is for a container engine to build, whose result is
/// brought here with `POST /api/images/archive`.
#[utoipa::path(
    post, path = "/templates", tag = "images", security(("api_key" = [])), request_body = TemplateCreate,
    responses((status = 201, body = Template), (status = 400, body = ErrorBody), (status = 409, body = ErrorBody))
)]
async fn template_create(
    State(app): State<Arc<App>>,
    caller: Caller,
    JsonObject(body): RequiredBody<TemplateCreate>,
) -> Result<(StatusCode, Json<Template>), ApiError> {
    Ok((StatusCode::CREATED, Json(app.create_template(&caller, body).await?)))
}

/// Everything that `templateID` of a create can be.
#[utoipa::path(
    get, path = "/templates", tag = "images", security(("api_key" = [])),
    responses((status = 200, body = [Template]))
)]
async fn template_list(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<Vec<Template>>, ApiError> {
    Ok(Json(app.list_templates(&caller).await?))
}

/// One template.
#[utoipa::path(
    get, path = "/templates/{template}", tag = "images", security(("api_key" = [])),
    params(("template" = String, Path)),
    responses((status = 200, body = Template), (status = 404, body = ErrorBody))
)]
async fn template_get(
    State(app): State<Arc<App>>,
    caller: Caller,
    TemplatePath(name): TemplatePath,
) -> Result<Json<Template>, ApiError> {
    Ok(Json(app.get_template(&caller, &name).await?))
}

/// Deletes the snapshot of that name.
#[utoipa::path(
    delete, path = "/templates/{template}", tag = "images", security(("api_key" = [])),
    params(("template" = String, Path)),
    responses((status = 204), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody))
)]
async fn template_delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    TemplatePath(name): TemplatePath,
) -> Result<StatusCode, ApiError> {
    app.delete_template(&caller, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}
