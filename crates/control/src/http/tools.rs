//! Tools over plain HTTP: definitions in the styles of models' APIs, and calls in the same styles.

mod styles;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{FromRequestParts, RawPathParams, State};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderValue, header};
use serde_json::{Map, Value};
use tracing::Instrument;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use warren_api::ErrorBody;
use warren_api::tools::{ToolResult, ToolText};
use warren_types::Error;

use super::auth;
use super::body::{AnyJson, JsonObject, ToolBody};
use super::channel;
use super::errors::ApiError;
use super::headers::PublicBase;
use super::params::SandboxPath;
use super::query::Query;
use super::request_id::id_of;
use crate::app::App;
use crate::app::auth::Live;
use crate::app::tools::{Bound, Output, Scope};

/// How long a call may take before the head of its answer is sent, and then between two blanks, which are legal before JSON.
const PATIENCE: Duration = Duration::from_secs(10);

type Running = Pin<Box<dyn Future<Output = Result<Value, Error>> + Send>>;

/// The tools of the sandbox in the path, for whoever may use it.
#[derive(Debug)]
struct OfSandbox(Scope);

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(tool_list, tool_call_in_style)).routes(routes!(tool_call))
}

impl FromRequestParts<Arc<App>> for OfSandbox {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let PublicBase(base) = PublicBase::of(parts, app);
        let Some(credential) = auth::of_tools(&parts.headers) else {
            // A token in the query, as for everything else of a sandbox. It says whose the sandbox is, and no more.
            let live = Live::from_request_parts(parts, app).await?;
            let identity = auth::of_query(parts, app).await?;
            return Ok(Self(Scope { identity, bound: Bound::To(live.id().clone()), base }));
        };
        let identity = app.authenticate(&credential).await?.in_request(id_of(&parts.extensions));
        let SandboxPath(id) = SandboxPath::from_request_parts(parts, app).await?;
        app.reach(&identity, &id).await?;
        Ok(Self(Scope { identity, bound: Bound::To(id), base }))
    }
}

/// The tools of a sandbox, as definitions for a model: in the style of MCP, of OpenAI's APIs or of Anthropic's.
#[utoipa::path(
    get, path = "/sandboxes/{id}/tools", tag = "tools", security(("api_key" = []), ("sandbox_token" = [])),
    params(("id" = String, Path), ("format" = Option<String>, Query, description = "mcp (when absent), openai, responses or anthropic")),
    responses((status = 200, body = [Object]), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 410, body = ErrorBody))
)]
async fn tool_list(
    State(app): State<Arc<App>>,
    OfSandbox(scope): OfSandbox,
    query: Query,
) -> Result<Json<Vec<Value>>, ApiError> {
    let style = styles::Style::parse(query.get("format"))?;
    Ok(Json(app.list_tools(&scope).iter().map(|tool| style.define(tool)).collect()))
}

/// Calls a tool with its input as the body.
///
/// What goes wrong in the tool, wrong input too, is a 200 with `isError` and a sentence for the model.
#[utoipa::path(
    post, path = "/sandboxes/{id}/tools/{name}", tag = "tools", security(("api_key" = []), ("sandbox_token" = [])),
    params(("id" = String, Path), ("name" = String, Path)), request_body(content = Object, description = "May be left out"),
    responses((status = 200, body = ToolResult), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 410, body = ErrorBody), (status = 413, body = ErrorBody))
)]
async fn tool_call(
    State(app): State<Arc<App>>,
    OfSandbox(scope): OfSandbox,
    params: RawPathParams,
    JsonObject(input): ToolBody<Map<String, Value>>,
) -> Result<Response, ApiError> {
    let name = params.iter().find(|(name, _)| *name == "name").map_or("", |(_, value)| value).to_owned();
    let call = {
        let app = Arc::clone(&app);
        async move { to_json(&ToolResult::from(app.call_tool(&scope, &name, input).await?)) }
    };
    answer(&app, Box::pin(call)).await
}

/// Calls the tools that a model has asked for, in the words of its API.
///
/// The body is a `tool_call` of OpenAI's Chat Completions, a `function_call` of its Responses, a `tool_use` of Anthropic's Messages, or an
/// array of them; the answer is what goes back to the model: `tool` messages, `function_call_output` items, `tool_result` blocks. Calls of
/// an array are made one after the other.
#[utoipa::path(
    post, path = "/sandboxes/{id}/tools", tag = "tools", security(("api_key" = []), ("sandbox_token" = [])),
    params(("id" = String, Path)), request_body = Object,
    responses((status = 200, body = Object), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 410, body = ErrorBody), (status = 413, body = ErrorBody))
)]
async fn tool_call_in_style(
    State(app): State<Arc<App>>,
    OfSandbox(scope): OfSandbox,
    AnyJson(body): AnyJson,
) -> Result<Response, ApiError> {
    let (calls, is_list) = styles::calls(&body)?;
    let call = {
        let app = Arc::clone(&app);
        async move {
            let mut answers = Vec::new();
            for call in calls {
                answers.push(call.run(&app, &scope).await);
            }
            Ok(if is_list { Value::Array(answers) } else { answers.pop().unwrap_or_default() })
        }
    };
    answer(&app, Box::pin(call)).await
}

impl From<Output> for ToolResult {
    fn from(output: Output) -> Self {
        Self {
            content: vec![ToolText::new(output.text)],
            is_error: output.is_error,
            structured: output.structured,
        }
    }
}

fn to_json(result: &ToolResult) -> Result<Value, Error> {
    serde_json::to_value(result)
        .map_err(|error| Error::internal(format!("a result has no JSON form: {error}")))
}

/// Waits for a call, and keeps the connection alive when it takes long. When the client leaves, the call is given up.
async fn answer(app: &Arc<App>, mut running: Running) -> Result<Response, ApiError> {
    tokio::select! {
        answer = &mut running => return Ok(Json(answer?).into_response()),
        () = tokio::time::sleep(PATIENCE) => {}
        () = app.shutdown.cancelled() => return Err(stopping().into()),
    }
    let (writer, body) = channel::body();
    let shutdown = app.shutdown.clone();
    let writing = async move {
        let answer = loop {
            if writer.write(" ").await.is_err() {
                return;
            }
            tokio::select! {
                answer = &mut running => break answer,
                () = tokio::time::sleep(PATIENCE) => {}
                () = writer.hung_up() => return,
                () = shutdown.cancelled() => break Err(stopping()),
            }
        };
        let json = match answer {
            Ok(answer) => serde_json::to_vec(&answer),
            Err(error) => serde_json::to_vec(&ApiError::from(error).into_body()),
        };
        // Nobody is left to tell when this fails.
        let _ = writer.write(json.unwrap_or_default()).await;
    };
    app.tasks.spawn(writing.in_current_span());
    let json = HeaderValue::from_static("application/json");
    Ok(([(header::CONTENT_TYPE, json)], body).into_response())
}

fn stopping() -> Error {
    Error::unavailable("the server is stopping; the call was given up")
}
