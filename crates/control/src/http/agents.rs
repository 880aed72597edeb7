//! Agent sessions: start, list, attach, and what they are told.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::response::Response;
use http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use warren_api::ErrorBody;
use warren_api::agents::{AgentOptions, AgentPermission, AgentPrompt, AgentSession};
use warren_api::exec::ExecKill;

use super::body::{Body, ExecBody, JsonObject};
use super::errors::ApiError;
use super::exec_ws::{attach, over_http_2, wanted};
use super::params::AgentPath;
use super::query::Query;
use crate::app::App;
use crate::app::auth::Live;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(agent_create, agent_list))
        .routes(routes!(agent_attach))
        .route("/sandboxes/{id}/agent/{sid}", over_http_2(agent_attach))
        .routes(routes!(agent_prompt))
        .routes(routes!(agent_interrupt))
        .routes(routes!(agent_configure))
        .routes(routes!(agent_permission))
        .routes(routes!(agent_kill))
}

/// Starts an agent in the sandbox: a command that takes and says lines of JSON.
///
/// The agent itself must be installed in the sandbox. Attach to what the session says with the WebSocket of commands.
#[utoipa::path(
    post, path = "/sandboxes/{id}/agent", tag = "agents", security(("api_key" = []), ("sandbox_token" = [])),
    params(("id" = String, Path)), request_body(content = AgentOptions, description = "May be left out"),
    responses((status = 201, body = AgentSession), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 410, body = ErrorBody), (status = 502, body = ErrorBody))
)]
async fn agent_create(
    State(app): State<Arc<App>>,
    live: Live,
    JsonObject(body): ExecBody<AgentOptions>,
) -> Result<(StatusCode, Json<AgentSession>), ApiError> {
    Ok((StatusCode::CREATED, Json(app.create_agent(live, body).await?)))
}

/// Agent sessions that run, and those that ended within the last five minutes.
#[utoipa::path(
    get, path = "/sandboxes/{id}/agent", tag = "agents", security(("api_key" = []), ("sandbox_token" = [])),
    params(("id" = String, Path)),
    responses((status = 200, body = [AgentSession]), (status = 404, body = ErrorBody), (status = 410, body = ErrorBody))
)]
async fn agent_list(State(app): State<Arc<App>>, live: Live) -> Result<Json<Vec<AgentSession>>, ApiError> {
    Ok(Json(app.list_agents(&live).await?))
}

/// Attaches to a session: the same WebSocket as that of commands.
#[utoipa::path(
    get, path = "/sandboxes/{id}/agent/{sid}", tag = "agents", security(("api_key" = []), ("sandbox_token" = [])),
    params(
        ("id" = String, Path), ("sid" = String, Path),
        ("offset" = Option<u64>, Query, description = "First byte of output to replay; all that is kept when absent"),
        ("api_key" = Option<String>, Query, description = "For clients that cannot set headers"),
        ("token" = Option<String>, Query, description = "For clients that cannot set headers")
    ),
    responses((status = 101), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 410, body = ErrorBody), (status = 426, body = ErrorBody))
)]
async fn agent_attach(
    State(app): State<Arc<App>>,
    live: Live,
    AgentPath(session): AgentPath,
    query: Query,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let upgrade = wanted(upgrade)?;
    app.get_agent(&live, &session).await?;
    attach(&app, &live, &session, &query, upgrade).await
}

/// Gives the agent something to do, after what it is doing.
#[utoipa::path(
    post, path = "/sandboxes/{id}/agent/{sid}/prompt", tag = "agents",
    security(("api_key" = []), ("sandbox_token" = [])),
    params(("id" = String, Path), ("sid" = String, Path)), request_body = AgentPrompt,
    responses((status = 204), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 503, body = ErrorBody))
)]
async fn agent_prompt(
    State(app): State<Arc<App>>,
    live: Live,
    AgentPath(session): AgentPath,
    JsonObject(body): ExecBody<AgentPrompt>,
) -> Result<StatusCode, ApiError> {
    app.prompt_agent(&live, &session, &body).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Stops what the agent is doing; the session goes on.
#[utoipa::path(
    post, path = "/sandboxes/{id}/agent/{sid}/interrupt", tag = "agents",
    security(("api_key" = []), ("sandbox_token" = [])),
    params(("id" = String, Path), ("sid" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 503, body = ErrorBody))
)]
async fn agent_interrupt(
    State(app): State<Arc<App>>,
    live: Live,
    AgentPath(session): AgentPath,
) -> Result<StatusCode, ApiError> {
    app.interrupt_agent(&live, &session).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Changes options of a session. Its answer is the event `configured`.
#[utoipa::path(
    post, path = "/sandboxes/{id}/agent/{sid}/configure", tag = "agents",
    security(("api_key" = []), ("sandbox_token" = [])),
    params(("id" = String, Path), ("sid" = String, Path)), request_body = AgentOptions,
    responses((status = 204), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 503, body = ErrorBody))
)]
async fn agent_configure(
    State(app): State<Arc<App>>,
    live: Live,
    AgentPath(session): AgentPath,
    JsonObject(body): ExecBody<AgentOptions>,
) -> Result<StatusCode, ApiError> {
    app.configure_agent(&live, &session, &body).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Answers a `permission_request` event of a session.
#[utoipa::path(
    post, path = "/sandboxes/{id}/agent/{sid}/permission", tag = "agents",
    security(("api_key" = []), ("sandbox_token" = [])),
    params(("id" = String, Path), ("sid" = String, Path)), request_body = AgentPermission,
    responses((status = 204), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 503, body = ErrorBody))
)]
async fn agent_permission(
    State(app): State<Arc<App>>,
    live: Live,
    AgentPath(session): AgentPath,
    JsonObject(body): ExecBody<AgentPermission>,
) -> Result<StatusCode, ApiError> {
    app.answer_agent(&live, &session, &body).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Sends a signal to a session; 9 when none is given.
#[utoipa::path(
    post, path = "/sandboxes/{id}/agent/{sid}/kill", tag = "agents",
    security(("api_key" = []), ("sandbox_token" = [])),
    params(("id" = String, Path), ("sid" = String, Path)),
    request_body(content = ExecKill, description = "May be left out"),
    responses((status = 204), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody))
)]
async fn agent_kill(
    State(app): State<Arc<App>>,
    live: Live,
    AgentPath(session): AgentPath,
    JsonObject(body): Body<ExecKill>,
) -> Result<StatusCode, ApiError> {
    app.kill_agent(&live, &session, &body).await?;
    Ok(StatusCode::NO_CONTENT)
}
