//! `/api/sandboxes`: create, list, get, delete, time-out, hibernate, wake, reboot.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{AppendHeaders, IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use warren_api::sandboxes::{
    Hibernated, NEXT_CURSOR_HEADER, Sandbox, SandboxCreate, TimeoutChange, Wake, Woken,
};
use warren_api::{ErrorBody, IDEMPOTENCY_KEY_HEADER};
use warren_types::Error;

use super::body::{Body, CreateBody, JsonObject};
use super::errors::ApiError;
use super::events;
use super::headers::PublicBase;
use super::params::SandboxPath;
use super::query::Query;
use crate::app::App;
use crate::app::auth::Caller;
use crate::app::images::create::{Begun, is_from_image};
use crate::app::sandboxes::create::{Created, Timing};
use crate::app::sandboxes::list::ListRequest;

const SERVER_TIMING: &str = "server-timing";

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(sandbox_create, sandbox_list))
        .routes(routes!(sandbox_get, sandbox_delete))
        .routes(routes!(sandbox_set_timeout))
        .routes(routes!(sandbox_hibernate))
        .routes(routes!(sandbox_wake))
        .routes(routes!(sandbox_reboot))
        .routes(routes!(sandbox_power_cycle))
}

/// Makes a sandbox and returns once it is running.
///
/// From an image or a snapshot, with `Accept: text/event-stream`, the answer is a stream of events: `build_log`, and at the end
/// `result` with the sandbox or `error`.
#[utoipa::path(
    post, path = "/sandboxes", tag = "sandboxes", security(("api_key" = [])),
    params(("Idempotency-Key" = Option<String>, Header, description = "The same key and body give the same sandbox, for a day")),
    request_body(content = SandboxCreate, description = "May be left out"),
    responses(
        (status = 201, body = Sandbox), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody, description = "No such template"),
        (status = 409, body = ErrorBody, description = "The Idempotency-Key stands for another request"),
        (status = 413, body = ErrorBody), (status = 429, body = ErrorBody), (status = 502, body = ErrorBody),
        (status = 503, body = ErrorBody)
    )
)]
async fn sandbox_create(
    State(app): State<Arc<App>>,
    caller: Caller,
    PublicBase(base): PublicBase,
    headers: HeaderMap,
    CreateBody(mut body): CreateBody,
) -> Result<Response, ApiError> {
    let key = idempotency_key(&headers)?;
    let streams = is_from_image(&body) && events::are_wanted(&headers);
    if !is_from_image(&body) && app.names_snapshot(&caller, &body).await? {
        body.snapshot = body.template_id.take();
    }
    if !is_from_image(&body) {
        return Ok(created(app.create_sandbox(&caller, body, key, base).await?).into_response());
    }
    let pending = match app.begin_from_image(&caller, body, key, base).await? {
        Begun::Repeated(made) if streams => {
            let finish = async move { Ok::<_, Error>(made.sandbox) };
            return Ok(events::stream(&app, Vec::new(), None, None, finish));
        }
        Begun::Repeated(made) => return Ok(created(*made).into_response()),
        Begun::Pending(pending) => *pending,
    };
    let reader = pending.reader();
    if !streams {
        events::wait(reader).await?;
        return Ok(created(app.make_from_image(pending).await?).into_response());
    }
    let mut first = vec![events::line(0, "resolve", "Resolving the image")];
    if reader.is_none() {
        first.push(events::line(0, "cache_hit", "The image was built before"));
    }
    let last = Some(events::line(0, "create", "Creating the sandbox"));
    let finish = {
        let app = Arc::clone(&app);
        async move { app.make_from_image(pending).await.map(|made| made.sandbox) }
    };
    Ok(events::stream(&app, first, reader, last, finish))
}

/// The answer to whatever made a sandbox.
pub(super) fn created(created: Created) -> impl IntoResponse {
    let timing = created.timing.map(|timing| AppendHeaders([(SERVER_TIMING, server_timing(timing))]));
    (StatusCode::CREATED, timing, Json(created.sandbox))
}

/// Sandboxes of every status, newest first.
///
/// At most 200; `X-Next-Cursor` of the answer continues the list.
#[utoipa::path(
    get, path = "/sandboxes", tag = "sandboxes", security(("api_key" = [])),
    params(
        ("status" = Option<String>, Query, description = "Comma-separated statuses"),
        ("limit" = Option<u32>, Query, description = "1 to 200"),
        ("cursor" = Option<String>, Query, description = "X-Next-Cursor of the page before"),
        ("metadata.{key}" = Option<String>, Query, description = "Only sandboxes with that metadata; repeatable"),
        ("tag.{key}" = Option<String>, Query, description = "Only sandboxes with that tag; repeatable")
    ),
    responses((status = 200, body = [Sandbox]), (status = 400, body = ErrorBody))
)]
async fn sandbox_list(
    State(app): State<Arc<App>>,
    caller: Caller,
    query: Query,
) -> Result<Response, ApiError> {
    let page = app.list_sandboxes(&caller, &ListRequest::parse(query.into_pairs())?).await?;
    let next = page.next.map(|next| AppendHeaders([(NEXT_CURSOR_HEADER, next)]));
    Ok((next, Json(page.sandboxes)).into_response())
}

/// One sandbox, stopped ones included. Does not wake it.
#[utoipa::path(
    get, path = "/sandboxes/{id}", tag = "sandboxes", security(("api_key" = [])),
    params(("id" = String, Path)),
    responses((status = 200, body = Sandbox), (status = 404, body = ErrorBody))
)]
async fn sandbox_get(
    State(app): State<Arc<App>>,
    caller: Caller,
    SandboxPath(id): SandboxPath,
    PublicBase(base): PublicBase,
) -> Result<Json<Sandbox>, ApiError> {
    Ok(Json(app.get_sandbox(&caller, &id, &base).await?))
}

/// Stops a sandbox for good. Repeating it is fine.
#[utoipa::path(
    delete, path = "/sandboxes/{id}", tag = "sandboxes", security(("api_key" = [])),
    params(("id" = String, Path), ("deleteSecretStore" = Option<String>, Query, description = "1, true, yes, y or on: its secret store is deleted too, for every sandbox")),
    responses((status = 204), (status = 404, body = ErrorBody))
)]
async fn sandbox_delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    SandboxPath(id): SandboxPath,
    query: Query,
) -> Result<StatusCode, ApiError> {
    app.delete_sandbox(&caller, &id).await?;
    let with_store = query.get("deleteSecretStore").map(str::to_ascii_lowercase);
    if with_store.is_some_and(|word| matches!(word.as_str(), "1" | "true" | "yes" | "y" | "on")) {
        app.delete_store_of(&caller, &id).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Replaces the idle time-out and restarts its timer.
#[utoipa::path(
    post, path = "/sandboxes/{id}/timeout", tag = "sandboxes", security(("api_key" = [])),
    params(("id" = String, Path)), request_body = TimeoutChange,
    responses(
        (status = 204), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody), (status = 410, body = ErrorBody)
    )
)]
async fn sandbox_set_timeout(
    State(app): State<Arc<App>>,
    caller: Caller,
    SandboxPath(id): SandboxPath,
    JsonObject(body): Body<TimeoutChange>,
) -> Result<StatusCode, ApiError> {
    app.set_timeout(&caller, &id, body.timeout).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Puts a sandbox to sleep; the next use wakes it.
#[utoipa::path(
    post, path = "/sandboxes/{id}/hibernate", tag = "sandboxes", security(("api_key" = [])),
    params(("id" = String, Path)),
    responses((status = 200, body = Hibernated), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody))
)]
async fn sandbox_hibernate(
    State(app): State<Arc<App>>,
    caller: Caller,
    SandboxPath(id): SandboxPath,
) -> Result<Json<Hibernated>, ApiError> {
    Ok(Json(app.hibernate(&caller, &id).await?))
}

/// Wakes a sandbox; one that runs already is fine. A time-out in the body replaces the stored one.
///
/// A disk that is not what was written when it hibernated is refused with 409 and `code` `disk_damaged`, memory with
/// `memory_damaged`; the sentence says what there is instead. A reboot needs the disk alone.
#[utoipa::path(
    post, path = "/sandboxes/{id}/wake", tag = "sandboxes", security(("api_key" = [])),
    params(("id" = String, Path)), request_body(content = Wake, description = "May be left out"),
    responses(
        (status = 200, body = Woken), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 410, body = ErrorBody)
    )
)]
async fn sandbox_wake(
    State(app): State<Arc<App>>,
    caller: Caller,
    SandboxPath(id): SandboxPath,
    PublicBase(base): PublicBase,
    JsonObject(body): Body<Wake>,
) -> Result<Json<Woken>, ApiError> {
    Ok(Json(app.wake(&caller, &id, body, base).await?))
}

/// Asks everything in a sandbox to end and starts it again on the same disk. One that hibernates is started.
#[utoipa::path(
    post, path = "/sandboxes/{id}/reboot", tag = "sandboxes", security(("api_key" = [])),
    params(("id" = String, Path)),
    responses(
        (status = 204), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "Another operation is in progress"), (status = 410, body = ErrorBody)
    )
)]
async fn sandbox_reboot(
    State(app): State<Arc<App>>,
    caller: Caller,
    SandboxPath(id): SandboxPath,
) -> Result<StatusCode, ApiError> {
    app.reboot(&caller, &id, false).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Ends everything in a sandbox at once and starts it again on the same disk. One that hibernates is started.
#[utoipa::path(
    post, path = "/sandboxes/{id}/power-cycle", tag = "sandboxes", security(("api_key" = [])),
    params(("id" = String, Path)),
    responses(
        (status = 204), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "Another operation is in progress"), (status = 410, body = ErrorBody)
    )
)]
async fn sandbox_power_cycle(
    State(app): State<Arc<App>>,
    caller: Caller,
    SandboxPath(id): SandboxPath,
) -> Result<StatusCode, ApiError> {
    app.reboot(&caller, &id, true).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Error> {
    headers
        .get(IDEMPOTENCY_KEY_HEADER)
        .map(|key| {
            key.to_str()
                .map(str::to_owned)
                .map_err(|_| Error::invalid("Idempotency-Key must be visible ASCII"))
        })
        .transpose()
}

fn server_timing(timing: Timing) -> HeaderValue {
    let ms = |duration: std::time::Duration| duration.as_secs_f64() * 1000.0;
    let text = format!("node;dur={:.2}, store;dur={:.2}", ms(timing.node), ms(timing.store));
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
}
