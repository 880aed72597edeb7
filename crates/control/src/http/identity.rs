//! Who the caller is.

use std::sync::Arc;

use axum::Json;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use warren_api::identity::Whoami;

use crate::app::App;
use crate::app::auth::Caller;
use crate::app::identity;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(whoami))
}

/// The organisation behind the API key.
#[utoipa::path(
    get, path = "/whoami", tag = "identity", security(("api_key" = [])), responses((status = 200, body = Whoami))
)]
async fn whoami(caller: Caller) -> Json<Whoami> {
    Json(identity::whoami(&caller))
}
