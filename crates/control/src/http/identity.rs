//! Who the caller is.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use http::header::CACHE_CONTROL;
use http::{HeaderValue, StatusCode};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use warren_api::ErrorBody;
use warren_api::identity::{IdentityToken, Whoami};

use super::errors::ApiError;
use crate::app::App;
use crate::app::auth::Caller;
use crate::app::identity;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(whoami)).routes(routes!(token_create))
}

/// At the root, as clients expect them.
pub(super) fn login_routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(begin_login)).routes(routes!(exchange_login))
}

/// The organisation behind the API key.
#[utoipa::path(
    get, path = "/whoami", tag = "identity", security(("api_key" = [])), responses((status = 200, body = Whoami))
)]
async fn whoami(caller: Caller) -> Json<Whoami> {
    Json(identity::whoami(&caller))
}

/// A token that stands for the API key for ten minutes, for programs that are not to have the key itself.
#[utoipa::path(
    post, path = "/auth/token", tag = "identity", security(("api_key" = [])),
    responses((status = 200, body = IdentityToken), (status = 403, body = ErrorBody))
)]
async fn token_create(State(app): State<Arc<App>>, caller: Caller) -> Result<impl IntoResponse, ApiError> {
    let token = app.make_identity_token(&caller).await?;
    Ok(([(CACHE_CONTROL, HeaderValue::from_static("no-store"))], Json(token)))
}

/// Logging in through a browser is not offered: keys are made by who runs the server (`warren keys create`).
#[utoipa::path(post, path = "/auth/cli/device", tag = "identity", responses((status = 503, body = ErrorBody)))]
async fn begin_login() -> ApiError {
    no_login()
}

/// See `/auth/cli/device`.
#[utoipa::path(post, path = "/auth/cli/device/exchange", tag = "identity", responses((status = 503, body = ErrorBody)))]
async fn exchange_login() -> ApiError {
    no_login()
}

/// Here the sentence is a name for programs: `oc login` knows it, and says to set a key instead.
fn no_login() -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "cli_login_unavailable")
}
