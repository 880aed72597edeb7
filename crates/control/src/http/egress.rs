//! What a sandbox may reach: shown with what was refused, and changed while it runs.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use warren_api::ErrorBody;
use warren_api::egress::{AllowedHosts, Egress, EgressChange};

use super::body::{JsonObject, RequiredBody};
use super::errors::ApiError;
use super::params::SandboxPath;
use crate::app::App;
use crate::app::auth::Caller;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(allowed_hosts)).routes(routes!(egress_get, egress_set))
}

/// What a sandbox may reach, where its secrets are put in, and what was refused of late. Does not wake it.
#[utoipa::path(
    get, path = "/sandboxes/{id}/allowed-hosts", tag = "egress", security(("api_key" = [])),
    params(("id" = String, Path)),
    responses((status = 200, body = AllowedHosts), (status = 404, body = ErrorBody))
)]
async fn allowed_hosts(
    State(app): State<Arc<App>>,
    caller: Caller,
    SandboxPath(id): SandboxPath,
) -> Result<Json<AllowedHosts>, ApiError> {
    Ok(Json(app.allowed_hosts(&caller, &id).await?))
}

/// A sandbox's own policy, and what is in force with the lists of its secret stores.
#[utoipa::path(
    get, path = "/sandboxes/{id}/egress", tag = "egress", security(("api_key" = [])),
    params(("id" = String, Path)),
    responses((status = 200, body = Egress), (status = 404, body = ErrorBody))
)]
async fn egress_get(
    State(app): State<Arc<App>>,
    caller: Caller,
    SandboxPath(id): SandboxPath,
) -> Result<Json<Egress>, ApiError> {
    Ok(Json(app.get_egress(&caller, &id).await?))
}

/// Replaces a sandbox's own policy, `egressAllowlist` of its create included. In force when this answers, for
/// connections that are open too.
#[utoipa::path(
    put, path = "/sandboxes/{id}/egress", tag = "egress", security(("api_key" = [])),
    params(("id" = String, Path)), request_body = EgressChange,
    responses(
        (status = 200, body = Egress), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 410, body = ErrorBody), (status = 503, body = ErrorBody)
    )
)]
async fn egress_set(
    State(app): State<Arc<App>>,
    caller: Caller,
    SandboxPath(id): SandboxPath,
    JsonObject(body): RequiredBody<EgressChange>,
) -> Result<Json<Egress>, ApiError> {
    Ok(Json(app.set_egress(&caller, &id, body).await?))
}
