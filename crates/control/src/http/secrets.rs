//! Secrets of a store: list, set, delete, and what they were used for. No route answers a value.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use warren_api::ErrorBody;
use warren_api::secrets::{SecretEntry, SecretSet, SecretStored, SecretUse};

use super::body::{Body, JsonObject};
use super::errors::ApiError;
use super::params::{NamePath, SecretStorePath};
use crate::app::App;
use crate::app::auth::Caller;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(secret_list))
        .routes(routes!(secret_set, secret_delete))
        .routes(routes!(secret_use_list))
}

/// The secrets of a store by name, without their values.
#[utoipa::path(
    get, path = "/secret-stores/{store}/secrets", tag = "secrets", security(("api_key" = [])),
    params(("store" = String, Path)),
    responses((status = 200, body = [SecretEntry]), (status = 404, body = ErrorBody))
)]
async fn secret_list(
    State(app): State<Arc<App>>,
    caller: Caller,
    SecretStorePath(store): SecretStorePath,
) -> Result<Json<Vec<SecretEntry>>, ApiError> {
    Ok(Json(app.list_secrets(&caller, &store).await?))
}

/// Sets a secret. Sandboxes that have it have the new value when this answers, behind the same token; a new name is for
/// sandboxes that are made from then on.
///
/// A value has at most 64 KiB; a store has at most 100 secrets, and 384 KiB of them encrypted.
#[utoipa::path(
    put, path = "/secret-stores/{store}/secrets/{name}", tag = "secrets", security(("api_key" = [])),
    params(("store" = String, Path), ("name" = String, Path, description = "Letters, digits and _, not a digit first")),
    request_body = SecretSet,
    responses((status = 200, body = SecretStored), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody))
)]
async fn secret_set(
    State(app): State<Arc<App>>,
    caller: Caller,
    SecretStorePath(store): SecretStorePath,
    NamePath(name): NamePath,
    JsonObject(body): Body<SecretSet>,
) -> Result<Json<SecretStored>, ApiError> {
    Ok(Json(app.set_secret(&caller, &store, &name, body).await?))
}

/// Deletes a secret, also from the sandboxes that have it: its token there stands for nothing any more.
#[utoipa::path(
    delete, path = "/secret-stores/{store}/secrets/{name}", tag = "secrets", security(("api_key" = [])),
    params(("store" = String, Path), ("name" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody))
)]
async fn secret_delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    SecretStorePath(store): SecretStorePath,
    NamePath(name): NamePath,
) -> Result<StatusCode, ApiError> {
    app.delete_secret(&caller, &store, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What a secret was used for, newest first: one entry for a minute, a host and a sandbox. The newest 1000 are kept, for
/// 30 days.
#[utoipa::path(
    get, path = "/secret-stores/{store}/secrets/{name}/uses", tag = "secrets", security(("api_key" = [])),
    params(("store" = String, Path), ("name" = String, Path)),
    responses((status = 200, body = [SecretUse]), (status = 404, body = ErrorBody))
)]
async fn secret_use_list(
    State(app): State<Arc<App>>,
    caller: Caller,
    SecretStorePath(store): SecretStorePath,
    NamePath(name): NamePath,
) -> Result<Json<Vec<SecretUse>>, ApiError> {
    Ok(Json(app.list_secret_uses(&caller, &store, &name).await?))
}
