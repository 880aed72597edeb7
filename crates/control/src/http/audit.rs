//! Audit records: of an organisation, and of one sandbox, deleted ones included.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{AppendHeaders, IntoResponse, Response};
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue};
use tracing::Instrument;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use warren_api::ErrorBody;
use warren_api::audit::{AuditExport, AuditRecord};
use warren_api::sandboxes::NEXT_CURSOR_HEADER;

use super::channel::{self, HungUp, Writer};
use super::errors::ApiError;
use super::params::SandboxPath;
use super::query::Query;
use crate::app::App;
use crate::app::audit::read::{AuditRequest, AuditStream};
use crate::app::auth::Caller;

const LINES: &str = "application/x-ndjson";
/// How often a sign of life is sent, and records of another process are looked for.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

const HEADERS: [(HeaderName, HeaderValue); 3] = [
    (CONTENT_TYPE, HeaderValue::from_static(LINES)),
    (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    // For proxies that would collect the lines otherwise.
    (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
];

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(audit_list))
        .routes(routes!(audit_export))
        .routes(routes!(sandbox_audit_list))
}

/// What was done in this organisation, oldest first: commands, terminals, file changes, decisions of the network, uses of
/// secrets, and what changes sandboxes.
///
/// With `Accept: application/x-ndjson` or `follow` the answer is JSON lines: all of them, unless `limit` says less, and with
/// `follow` new ones as they come; blank lines keep the connection alive.
#[utoipa::path(
    get, path = "/audit", tag = "audit", security(("api_key" = [])),
    params(
        ("sandbox" = Option<String>, Query, description = "Only of that sandbox"),
        ("after" = Option<i64>, Query, description = "Only records behind that `seq`"),
        ("limit" = Option<u32>, Query, description = "1 to 1000; 100 when absent"),
        ("kind" = Option<String>, Query,
            description = "Comma-separated kinds, or what stands before the dot in them, such as `exec,file`"),
        ("actor" = Option<String>, Query, description = "Only of that actor, such as `key:…`"),
        ("since" = Option<String>, Query, description = "RFC 3339"),
        ("until" = Option<String>, Query, description = "RFC 3339"),
        ("newest" = Option<bool>, Query, description = "true: the last `limit` of them instead of the first"),
        ("follow" = Option<bool>, Query, description = "true: goes on with new ones, as JSON lines")
    ),
    responses((status = 200, body = [AuditRecord]), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody))
)]
async fn audit_list(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    query: Query,
) -> Result<Response, ApiError> {
    answer(&app, &caller, &headers, AuditRequest::parse(|name| query.get(name))?).await
}

/// Where the chain of this organisation begins and ends: the first line of an export, with which it can be verified.
#[utoipa::path(
    get, path = "/audit/export", tag = "audit", security(("api_key" = [])),
    responses((status = 200, body = AuditExport))
)]
async fn audit_export(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<AuditExport>, ApiError> {
    Ok(Json(app.audit_export(&caller).await?))
}

/// The same as for an organisation, of one sandbox; also of one that was deleted.
#[utoipa::path(
    get, path = "/sandboxes/{id}/audit", tag = "audit", security(("api_key" = [])),
    params(
        ("id" = String, Path),
        ("after" = Option<i64>, Query, description = "Only records behind that `seq`"),
        ("limit" = Option<u32>, Query, description = "1 to 1000; 100 when absent"),
        ("kind" = Option<String>, Query, description = "Comma-separated kinds, or what stands before the dot in them"),
        ("actor" = Option<String>, Query), ("since" = Option<String>, Query), ("until" = Option<String>, Query),
        ("newest" = Option<bool>, Query), ("follow" = Option<bool>, Query)
    ),
    responses((status = 200, body = [AuditRecord]), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody))
)]
async fn sandbox_audit_list(
    State(app): State<Arc<App>>,
    caller: Caller,
    SandboxPath(id): SandboxPath,
    headers: HeaderMap,
    query: Query,
) -> Result<Response, ApiError> {
    answer(&app, &caller, &headers, AuditRequest::parse(|name| query.get(name))?.of(id)).await
}

async fn answer(
    app: &Arc<App>,
    caller: &Caller,
    headers: &HeaderMap,
    request: AuditRequest,
) -> Result<Response, ApiError> {
    let lines = headers.get(ACCEPT).is_some_and(|accept| accept.as_bytes().trim_ascii() == LINES.as_bytes());
    if lines || request.follow {
        let stream = app.stream_audit(caller, request).await?;
        return Ok(written(app, stream));
    }
    let (records, more) = app.list_audit(caller, request).await?;
    let next = records.last().filter(|_| more).map(|last| last.seq.to_string());
    Ok((next.map(|next| AppendHeaders([(NEXT_CURSOR_HEADER, next)])), Json(records)).into_response())
}

fn written(app: &Arc<App>, stream: AuditStream) -> Response {
    let (writer, body) = channel::body();
    let writing = {
        let app = Arc::clone(app);
        async move {
            let end = tokio::select! {
                end = write(&app, stream, &writer) => end,
                () = writer.hung_up() => Err(HungUp),
                () = app.shutdown.cancelled() => Ok(()),
            };
            if let Err(HungUp) = end {
                tracing::debug!("the reader of audit records has hung up");
            }
        }
    };
    app.tasks.spawn(writing.in_current_span());
    (HEADERS, body).into_response()
}

async fn write(app: &App, mut stream: AuditStream, writer: &Writer) -> Result<(), HungUp> {
    loop {
        match app.next_audit(&mut stream).await {
            Ok(None) => return Ok(()),
            Ok(Some(records)) if records.is_empty() => {
                if tokio::time::timeout(KEEP_ALIVE, stream.more()).await.is_err() {
                    writer.write("\n").await?;
                }
            }
            Ok(Some(records)) => writer.write(lines(&records)).await?,
            // A part must not pass for all of it.
            Err(error) => return writer.break_off(error.message).await,
        }
    }
}

fn lines(records: &[AuditRecord]) -> Vec<u8> {
    let mut text = Vec::new();
    for record in records {
        serde_json::to_writer(&mut text, record).expect("strings and numbers have a JSON form");
        text.push(b'\n');
    }
    text
}
