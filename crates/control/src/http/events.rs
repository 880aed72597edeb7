//! Builds as server-sent events: what they say, then what came of them.
//!
//! ```text
//! event: build_log
//! data: {"step":1,"type":"run","message":"Step 1/1: run make"}
//!
//! event: result            or `error`; the last one
//! data: {…}
//! ```
//!
//! The readers in clients want a blank after each colon, one line of data and no carriage return.

use std::sync::Arc;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Serialize;
use tokio::time::{Instant, interval_at};
use tracing::Instrument;
use warren_api::ErrorBody;
use warren_api::images::{BuildError, BuildLog};
use warren_types::Error;

use super::channel::{self, HungUp, Writer};
use super::errors::ApiError;
use crate::app::App;
use crate::app::images::{Next, Reader};

const EVENT_STREAM: &str = "text/event-stream";
/// How often a sign of life is sent. Some clients give up after half a minute of silence.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

const HEADERS: [(HeaderName, HeaderValue); 3] = [
    (CONTENT_TYPE, HeaderValue::from_static(EVENT_STREAM)),
    (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    // For proxies that would collect the events otherwise.
    (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
];

/// Whether a client asks for events and nothing else.
pub(super) fn are_wanted(headers: &HeaderMap) -> bool {
    headers.get(ACCEPT).is_some_and(|accept| accept.as_bytes().trim_ascii() == EVENT_STREAM.as_bytes())
}

/// An answer that tells what `reader` hears and then what `finish` gives. `finish` is not begun for a client that has hung
/// up; the build goes on without it.
pub(super) fn stream<T, E>(
    app: &Arc<App>,
    first: Vec<BuildLog>,
    reader: Option<Reader>,
    last: Option<BuildLog>,
    finish: impl Future<Output = Result<T, E>> + Send + 'static,
) -> Response
where
    T: Serialize + Send + 'static,
    E: Into<ApiError> + Send + 'static,
{
    let (writer, body) = channel::body();
    let shutdown = app.shutdown.clone();
    let writing = async move {
        let end = tokio::select! {
            biased;
            end = write(&writer, first, reader, last, finish) => end,
            () = writer.hung_up() => Err(HungUp),
            () = stopped(shutdown) => {
                write_error(&writer, "the server is stopping; ask again, and what is built already is kept").await
            }
        };
        if let Err(HungUp) = end {
            tracing::debug!("who listened to a build has hung up");
        }
    };
    app.tasks.spawn(writing.in_current_span());
    (HEADERS, body).into_response()
}

/// Builds end when the server stops, and say so themselves; this is for what does not.
async fn stopped(shutdown: tokio_util::sync::CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
}

async fn write<T: Serialize, E: Into<ApiError>>(
    writer: &Writer,
    first: Vec<BuildLog>,
    reader: Option<Reader>,
    last: Option<BuildLog>,
    finish: impl Future<Output = Result<T, E>>,
) -> Result<(), HungUp> {
    let mut keep_alive = interval_at(Instant::now() + KEEP_ALIVE, KEEP_ALIVE);
    write_lines(writer, &first).await?;
    if let Some(mut reader) = reader {
        loop {
            tokio::select! {
                next = reader.next() => match next {
                    Next::Lines(lines) => write_lines(writer, &lines).await?,
                    Next::End(Ok(())) => break,
                    Next::End(Err(error)) => return write_error(writer, &error.message).await,
                },
                _ = keep_alive.tick() => writer.write(": keepalive\n\n").await?,
            }
        }
    }
    write_lines(writer, last.as_slice()).await?;
    tokio::pin!(finish);
    loop {
        tokio::select! {
            done = &mut finish => {
                return match done {
                    Ok(result) => writer.write(event("result", &result)).await,
                    Err(error) => {
                        let ErrorBody { error, .. } = error.into().into_body();
                        write_error(writer, &error).await
                    }
                };
            }
            _ = keep_alive.tick() => writer.write(": keepalive\n\n").await?,
        }
    }
}

async fn write_lines(writer: &Writer, lines: &[BuildLog]) -> Result<(), HungUp> {
    if lines.is_empty() {
        return Ok(());
    }
    writer.write(lines.iter().flat_map(|line| event("build_log", line)).collect::<Vec<u8>>()).await
}

async fn write_error(writer: &Writer, error: &str) -> Result<(), HungUp> {
    writer.write(event("error", &BuildError { error: error.to_owned() })).await
}

/// JSON escapes line ends, so that the data is one line.
fn event(name: &str, data: &impl Serialize) -> Vec<u8> {
    let mut text = format!("event: {name}\ndata: ").into_bytes();
    serde_json::to_writer(&mut text, data).expect("what is sent has a JSON form");
    text.extend_from_slice(b"\n\n");
    text
}

/// A line of ours.
pub(super) fn line(step: u32, kind: &str, message: impl Into<String>) -> BuildLog {
    BuildLog { step, kind: kind.to_owned(), message: message.into() }
}

/// The end of a build for clients that do not listen to it.
pub(super) async fn wait(reader: Option<Reader>) -> Result<(), Error> {
    match reader {
        Some(reader) => reader.ended().await,
        None => Ok(()),
    }
}
