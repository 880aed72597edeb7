//! `/api/secret-stores`: make, list, read, change, delete.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use warren_api::ErrorBody;
use warren_api::secrets::{SecretStore, SecretStoreChange, SecretStoreCreate};

use super::body::{Body, JsonObject};
use super::errors::ApiError;
use super::params::SecretStorePath;
use crate::app::App;
use crate::app::auth::Caller;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(secret_store_create, secret_store_list)).routes(routes!(
        secret_store_get,
        secret_store_change,
        secret_store_delete
    ))
}

/// Makes a secret store. At most 100 an organisation.
#[utoipa::path(
    post, path = "/secret-stores", tag = "secrets", security(("api_key" = [])), request_body = SecretStoreCreate,
    responses(
        (status = 201, body = SecretStore), (status = 400, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "There is a store of that name")
    )
)]
async fn secret_store_create(
    State(app): State<Arc<App>>,
    caller: Caller,
    JsonObject(body): Body<SecretStoreCreate>,
) -> Result<(StatusCode, Json<SecretStore>), ApiError> {
    Ok((StatusCode::CREATED, Json(app.create_secret_store(&caller, body).await?)))
}

/// Every secret store, by name.
#[utoipa::path(
    get, path = "/secret-stores", tag = "secrets", security(("api_key" = [])),
    responses((status = 200, body = [SecretStore]))
)]
async fn secret_store_list(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<Json<Vec<SecretStore>>, ApiError> {
    Ok(Json(app.list_secret_stores(&caller).await?))
}

/// One secret store.
#[utoipa::path(
    get, path = "/secret-stores/{store}", tag = "secrets", security(("api_key" = [])),
    params(("store" = String, Path)),
    responses((status = 200, body = SecretStore), (status = 404, body = ErrorBody))
)]
async fn secret_store_get(
    State(app): State<Arc<App>>,
    caller: Caller,
    SecretStorePath(store): SecretStorePath,
) -> Result<Json<SecretStore>, ApiError> {
    Ok(Json(app.get_secret_store(&caller, &store).await?))
}

/// Changes the name or the list of a secret store. A new list is in force in its sandboxes when this answers.
#[utoipa::path(
    put, path = "/secret-stores/{store}", tag = "secrets", security(("api_key" = [])),
    params(("store" = String, Path)), request_body = SecretStoreChange,
    responses(
        (status = 200, body = SecretStore), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "There is another store of that name")
    )
)]
async fn secret_store_change(
    State(app): State<Arc<App>>,
    caller: Caller,
    SecretStorePath(store): SecretStorePath,
    JsonObject(body): Body<SecretStoreChange>,
) -> Result<Json<SecretStore>, ApiError> {
    Ok(Json(app.change_secret_store(&caller, &store, body).await?))
}

/// Deletes a secret store and its secrets, also from the sandboxes that have it. What its list kept from them stays
/// out of their reach.
#[utoipa::path(
    delete, path = "/secret-stores/{store}", tag = "secrets", security(("api_key" = [])),
    params(("store" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody))
)]
async fn secret_store_delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    SecretStorePath(store): SecretStorePath,
) -> Result<StatusCode, ApiError> {
    app.delete_secret_store(&caller, &store).await?;
    Ok(StatusCode::NO_CONTENT)
}
