//! What sandboxes were given and used.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use warren_api::ErrorBody;
use warren_api::usage::{SandboxUsage, Usage};

use super::errors::ApiError;
use super::params::SandboxPath;
use super::query::Query;
use crate::app::App;
use crate::app::auth::Caller;
use crate::app::usage::{SandboxUsageRequest, UsageRequest};

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(usage_get)).routes(routes!(sandbox_usage_get))
}

/// Memory and disk that sandboxes were given, by sandbox or by a tag, those that have ended included; 90 days are kept.
///
/// Memory counts while a sandbox runs. Disk counts beyond 20480 MB, also while it is hibernated. Tags are those of now.
#[utoipa::path(
    get, path = "/usage", tag = "usage", security(("api_key" = [])),
    params(
        ("groupBy" = String, Query, description = "sandbox, or tag:KEY"),
        ("from" = Option<String>, Query, description = "YYYY-MM-DD, which is midnight UTC, or RFC 3339; 30 days before `to` when absent"),
        ("to" = Option<String>, Query, description = "The same; now when absent. At most 90 days after `from`"),
        ("filter[tag:KEY]" = Option<String>, Query,
            description = "Comma-separated values, one of which the tag has; an empty one: it lacks the tag. Several tags: all must pass"),
        ("sort" = Option<String>, Query, description = "-memoryGbSeconds (when absent) or -diskOverageGbSeconds"),
        ("limit" = Option<u32>, Query, description = "1 to 500; 50 when absent"),
        ("cursor" = Option<String>, Query, description = "nextCursor of the page before, with the other parameters as they were")
    ),
    responses((status = 200, body = Usage), (status = 400, body = ErrorBody))
)]
async fn usage_get(
    State(app): State<Arc<App>>,
    caller: Caller,
    query: Query,
) -> Result<Json<Usage>, ApiError> {
    Ok(Json(app.get_usage(&caller, &UsageRequest::parse(query.into_pairs())?).await?))
}

/// What one sandbox was given and used, minute by minute, in any state.
#[utoipa::path(
    get, path = "/sandboxes/{id}/usage", tag = "usage", security(("api_key" = [])),
    params(
        ("id" = String, Path),
        ("from" = Option<String>, Query, description = "YYYY-MM-DD or RFC 3339; an hour before `to` when absent"),
        ("to" = Option<String>, Query, description = "The same; now when absent. At most 30 days after `from`")
    ),
    responses((status = 200, body = SandboxUsage), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody))
)]
async fn sandbox_usage_get(
    State(app): State<Arc<App>>,
    caller: Caller,
    SandboxPath(id): SandboxPath,
    query: Query,
) -> Result<Json<SandboxUsage>, ApiError> {
    let request = SandboxUsageRequest::parse(|name| query.get(name))?;
    Ok(Json(app.get_sandbox_usage(&caller, &id, &request).await?))
}
