//! Commands: one-shot runs, async runs and their results, sessions, kill. Attaching is in `exec_ws`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use warren_api::ErrorBody;
use warren_api::exec::{ExecCreate, ExecHandle, ExecKill, ExecProgress, ExecResult, ExecSession};

use super::body::{Body as JsonBody, ExecBody, JsonObject};
use super::errors::ApiError;
use super::exec_answer::{self, Answer};
use super::params::ExecPath;
use crate::app::App;
use crate::app::auth::Live;
use crate::app::exec::one_shot;
use crate::app::exec::run::RanAsync;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(exec_run))
        .routes(routes!(exec_run_async))
        .routes(routes!(exec_result))
        .routes(routes!(exec_create, exec_list))
        .routes(routes!(exec_kill))
}

/// Runs a command and answers with its output once it has ended.
///
/// `exitCode` is the command's own, 128 + n after signal n, and -1 after its time limit. Who hangs up ends the command with all it
/// started; `exec/run-async` and sessions go on by themselves.
#[utoipa::path(
    post, path = "/sandboxes/{id}/exec/run", tag = "exec", security(("api_key" = []), ("sandbox_token" = [])),
    params(("id" = String, Path)), request_body = ExecCreate,
    responses((status = 200, body = ExecResult), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 410, body = ErrorBody), (status = 502, body = ErrorBody))
)]
async fn exec_run(
    State(app): State<Arc<App>>,
    live: Live,
    JsonObject(body): ExecBody<ExecCreate>,
) -> Result<Response, ApiError> {
    let start = one_shot(body)?;
    let run = {
        let app = Arc::clone(&app);
        async move {
            let ran = app.run_exec(&live, &start).await?;
            Answer::open(&app, &live, ran).await
        }
    };
    exec_answer::of_run(&app, run).await
}

/// Starts a command; answers with its output if it is quick, else with a handle to ask for its result.
#[utoipa::path(
    post, path = "/sandboxes/{id}/exec/run-async", tag = "exec", security(("api_key" = []), ("sandbox_token" = [])),
    params(("id" = String, Path)), request_body = ExecCreate,
    responses((status = 200, body = ExecResult), (status = 202, body = ExecHandle), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 410, body = ErrorBody))
)]
async fn exec_run_async(
    State(app): State<Arc<App>>,
    live: Live,
    JsonObject(body): ExecBody<ExecCreate>,
) -> Result<Response, ApiError> {
    Ok(match app.run_exec_async(&live, &one_shot(body)?).await? {
        RanAsync::Ended(result) => Json(result).into_response(),
        RanAsync::Running(handle) => (StatusCode::ACCEPTED, Json(handle)).into_response(),
    })
}

/// What a command has come to; held for half a second while it runs.
#[utoipa::path(
    get, path = "/sandboxes/{id}/exec/{sid}/result", tag = "exec", security(("api_key" = []), ("sandbox_token" = [])),
    params(("id" = String, Path), ("sid" = String, Path)),
    responses((status = 200, body = ExecProgress), (status = 404, body = ErrorBody), (status = 410, body = ErrorBody))
)]
async fn exec_result(
    State(app): State<Arc<App>>,
    live: Live,
    ExecPath(exec): ExecPath,
) -> Result<Json<ExecProgress>, ApiError> {
    Ok(Json(app.exec_progress(&live, &exec).await?))
}

/// Starts a session: a command to attach to.
#[utoipa::path(
    post, path = "/sandboxes/{id}/exec", tag = "exec", security(("api_key" = []), ("sandbox_token" = [])),
    params(("id" = String, Path)), request_body = ExecCreate,
    responses((status = 201, body = ExecSession), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 410, body = ErrorBody))
)]
async fn exec_create(
    State(app): State<Arc<App>>,
    live: Live,
    JsonObject(body): ExecBody<ExecCreate>,
) -> Result<(StatusCode, Json<ExecSession>), ApiError> {
    Ok((StatusCode::CREATED, Json(app.create_exec(&live, body).await?)))
}

/// Commands that run, and those that ended a short while ago.
#[utoipa::path(
    get, path = "/sandboxes/{id}/exec", tag = "exec", security(("api_key" = []), ("sandbox_token" = [])),
    params(("id" = String, Path)),
    responses((status = 200, body = [ExecSession]), (status = 404, body = ErrorBody), (status = 410, body = ErrorBody))
)]
async fn exec_list(State(app): State<Arc<App>>, live: Live) -> Result<Json<Vec<ExecSession>>, ApiError> {
    Ok(Json(app.list_execs(&live).await?))
}

/// Sends a signal to a command; 9 when none is given. The answer is an empty object, which clients decode.
#[utoipa::path(
    post, path = "/sandboxes/{id}/exec/{sid}/kill", tag = "exec", security(("api_key" = []), ("sandbox_token" = [])),
    params(("id" = String, Path), ("sid" = String, Path)),
    request_body(content = ExecKill, description = "May be left out"),
    responses((status = 200, body = Object), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody))
)]
async fn exec_kill(
    State(app): State<Arc<App>>,
    live: Live,
    ExecPath(exec): ExecPath,
    JsonObject(body): JsonBody<ExecKill>,
) -> Result<Json<serde_json::Value>, ApiError> {
    app.kill_exec(&live, &exec, &body).await?;
    Ok(Json(serde_json::json!({})))
}
