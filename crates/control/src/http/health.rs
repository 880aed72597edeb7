//! Whether the server is there, alive, and able to serve. No credentials.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use warren_api::ErrorBody;
use warren_types::Error;

use super::errors::ApiError;
use crate::app::App;

#[derive(Debug, Serialize, ToSchema)]
struct Health {
    status: &'static str,
}

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(health)).routes(routes!(healthz)).routes(routes!(readyz))
}

/// The server answers.
#[utoipa::path(get, path = "/health", tag = "health", responses((status = 200, body = Health)))]
async fn health() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// The server answers.
#[utoipa::path(get, path = "/healthz", tag = "health", responses((status = 200, body = Health)))]
async fn healthz() -> Json<Health> {
    Json(Health { status: "alive" })
}

/// The server can serve: its store can be read and its node answers.
#[utoipa::path(
    get, path = "/readyz", tag = "health", responses((status = 200, body = Health), (status = 503, body = ErrorBody))
)]
async fn readyz(State(app): State<Arc<App>>) -> Result<Json<Health>, ApiError> {
    if app.shutdown.is_cancelled() {
        return Err(Error::unavailable("the server is stopping").into());
    }
    app.check_ready().await?;
    Ok(Json(Health { status: "ready" }))
}
