//! What a sandbox has logged, as server-sent events.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderName, HeaderValue};
use tokio::time::{Instant, interval_at};
use tracing::Instrument;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use warren_api::ErrorBody;
use warren_api::logs::LogRow;

use super::channel::{self, HungUp, Writer};
use super::errors::ApiError;
use super::params::SandboxPath;
use super::query::Query;
use crate::app::App;
use crate::app::auth::Caller;
use crate::app::logs::{LogRequest, LogStream};

/// How often a sign of life is sent.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

const HEADERS: [(HeaderName, HeaderValue); 3] = [
    (CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
    (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    // For proxies that would collect the events otherwise.
    (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
];

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(logs_read))
}

/// Lines of commands, their ends, and what appeared under `/var/log`: history, oldest first, then live rows.
///
/// The stream ends after the history with `tail=false`, and where the sandbox does not run; it ends as well when the
/// sandbox stops running. Reading neither wakes a sandbox nor keeps it awake. A sandbox that has failed shows what it had
/// logged when it last hibernated. Comments keep the connection alive.
#[utoipa::path(
    get, path = "/sandboxes/{id}/logs", tag = "logs", security(("api_key" = [])),
    params(
        ("id" = String, Path),
        ("tail" = Option<bool>, Query, description = "false: the history and its end; true when absent"),
        ("since" = Option<String>, Query, description = "RFC 3339; when the sandbox was made, when absent"),
        ("until" = Option<String>, Query, description = "RFC 3339; ignored while live rows follow"),
        ("q" = Option<String>, Query, description = "Text that the line contains"),
        ("source" = Option<String>, Query,
            description = "Comma-separated: var_log, exec_stdout, exec_stderr, agent; all when absent"),
        ("limit" = Option<u32>, Query,
            description = "Newest rows of the history, 1000 when absent; more than 10000 are 10000")
    ),
    responses(
        (status = 200, content_type = "text/event-stream", body = LogRow, description = "One row in each event's data"),
        (status = 400, body = ErrorBody), (status = 404, body = ErrorBody), (status = 410, body = ErrorBody),
        (status = 503, body = ErrorBody)
    )
)]
async fn logs_read(
    State(app): State<Arc<App>>,
    caller: Caller,
    SandboxPath(id): SandboxPath,
    query: Query,
) -> Result<Response, ApiError> {
    let request = LogRequest::parse(|name| query.get(name))?;
    let log = app.read_logs(&caller, &id, request).await?;
    let (writer, body) = channel::body();
    let shutdown = app.shutdown.clone();
    let writing = async move {
        let end = tokio::select! {
            end = write(log, &writer) => end,
            () = writer.hung_up() => Err(HungUp),
            () = shutdown.cancelled() => Ok(()),
        };
        if let Err(HungUp) = end {
            tracing::debug!("the reader of a log has hung up");
        }
    };
    app.tasks.spawn(writing.in_current_span());
    Ok((HEADERS, body).into_response())
}

/// Passes a log on to its end.
async fn write(mut log: LogStream, writer: &Writer) -> Result<(), HungUp> {
    let mut keep_alive = interval_at(Instant::now() + KEEP_ALIVE, KEEP_ALIVE);
    loop {
        tokio::select! {
            rows = log.next() => match rows {
                Ok(Some(rows)) if rows.is_empty() => {}
                Ok(Some(rows)) => writer.write(events(&rows)).await?,
                Ok(None) => return Ok(()),
                // A sandbox that stops running takes its live rows with it.
                Err(error) if log.is_live() => {
                    tracing::debug!(%error, "live rows end");
                    return Ok(());
                }
                // A part of the history must not pass for all of it.
                Err(error) => {
                    tracing::info!(%error, "a log breaks off");
                    return writer.break_off(error.message).await;
                }
            },
            _ = keep_alive.tick() => writer.write(": keepalive\n\n").await?,
        }
    }
}

fn events(rows: &[LogRow]) -> Vec<u8> {
    let mut text = Vec::new();
    for row in rows {
        text.extend_from_slice(b"data: ");
        serde_json::to_writer(&mut text, row).expect("strings and numbers have a JSON form");
        text.extend_from_slice(b"\n\n");
    }
    text
}
