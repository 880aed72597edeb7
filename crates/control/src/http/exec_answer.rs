//! The answer of a one-shot run.
//!
//! A run answers with its true status while it is quick. A slow one gets the head of a 200 and then a blank from
//! time to time, so that no client or proxy takes the silence for a dead connection; blanks before JSON are legal.
//! A client that hangs up ends the command with all it started. Output that does not fit in memory is read from the
//! command's log while it is sent.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header};
use tracing::Instrument;
use warren_api::exec::ExecResult;
use warren_guest_api::exec::Exit;
use warren_types::{Error, ExecId};

use super::channel::{self, HungUp, Writer};
use super::errors::ApiError;
use super::json_text::JsonText;
use crate::app::App;
use crate::app::auth::Live;
use crate::app::exec::output::{missing_in_stderr, next_piece, told_in_stderr};
use crate::app::exec::run::{OutputKind, Ran};

/// How long a run may take before the head of its answer is sent, and then between two blanks.
const PATIENCE: Duration = Duration::from_secs(10);

type Running = Pin<Box<dyn Future<Output = Result<Answer, Error>> + Send>>;

/// A run that has ended, with what is needed to write it down.
pub(super) enum Answer {
    Whole(ExecResult),
    Large(Box<LargeAnswer>),
}

/// Output that is read from the command's log while it is sent.
pub(super) struct LargeAnswer {
    live: Live,
    exec: ExecId,
    exit: Exit,
    missing: u64,
    stdout: Body,
}

impl Answer {
    pub(super) async fn open(app: &App, live: &Live, ran: Ran) -> Result<Self, Error> {
        Ok(match ran {
            Ran::Whole(result) => Self::Whole(result),
            Ran::Large { exec, exit, missing } => {
                let stdout = app.open_output(live, &exec, OutputKind::Stdout).await?;
                Self::Large(Box::new(LargeAnswer { live: live.clone(), exec, exit, missing, stdout }))
            }
        })
    }

    fn into_response(self, app: &Arc<App>) -> Response {
        match self {
            Self::Whole(result) => Json(result).into_response(),
            Self::Large(large) => {
                let app = Arc::clone(app);
                written(&Arc::clone(&app), async move |writer| large.write(&app, &writer).await)
            }
        }
    }

    async fn write(self, app: &App, writer: &Writer) -> Result<(), HungUp> {
        match self {
            Self::Whole(result) => match serde_json::to_vec(&result) {
                Ok(json) => writer.write(json).await,
                Err(error) => writer.break_off(error.to_string()).await,
            },
            Self::Large(large) => large.write(app, writer).await,
        }
    }
}

impl LargeAnswer {
    async fn write(mut self, app: &App, writer: &Writer) -> Result<(), HungUp> {
        let truncated = if self.missing > 0 { "\"truncated\":true," } else { "" };
        writer.write(format!("{{\"exitCode\":{},{truncated}\"stdout\":\"", self.exit.code)).await?;
        if let Err(error) = copy_text(&mut self.stdout, "", writer).await? {
            return writer.break_off(error.message).await;
        }
        writer.write("\",\"stderr\":\"").await?;
        let told = missing_in_stderr(self.missing) + told_in_stderr(Some(self.exit));
        let copied = match app.open_output(&self.live, &self.exec, OutputKind::Stderr).await {
            Ok(mut stderr) => copy_text(&mut stderr, &told, writer).await?,
            Err(error) => Err(error),
        };
        if let Err(error) = copied {
            return writer.break_off(error.message).await;
        }
        writer.write("\"}").await
    }
}

/// Copies output into a JSON string as it comes, then `after`.
async fn copy_text(output: &mut Body, after: &str, writer: &Writer) -> Result<Result<(), Error>, HungUp> {
    let mut text = JsonText::default();
    loop {
        let piece = match next_piece(output).await {
            Ok(piece) => piece,
            Err(error) => return Ok(Err(error)),
        };
        let Some(piece) = piece else { break };
        let mut escaped = Vec::with_capacity(piece.len() + piece.len() / 8);
        text.push(&piece, &mut escaped);
        writer.write(escaped).await?;
    }
    let mut end = Vec::new();
    text.finish(&mut end);
    JsonText::default().push(after.as_bytes(), &mut end);
    writer.write(end).await?;
    Ok(Ok(()))
}

/// Waits for a run, and answers it in the way its duration asks for.
pub(super) async fn of_run(
    app: &Arc<App>,
    run: impl Future<Output = Result<Answer, Error>> + Send + 'static,
) -> Result<Response, ApiError> {
    let mut running: Running = Box::pin(run);
    tokio::select! {
        answer = &mut running => Ok(answer?.into_response(app)),
        () = tokio::time::sleep(PATIENCE) => Ok(keep_alive(app, running)),
        () = app.shutdown.cancelled() => Err(stopping().into()),
    }
}

/// The answer of a run that takes long: from here on everything is status 200.
fn keep_alive(app: &Arc<App>, mut running: Running) -> Response {
    let app = Arc::clone(app);
    written(&Arc::clone(&app), async move |writer| {
        let answer = loop {
            writer.write(" ").await?;
            tokio::select! {
                answer = &mut running => break answer,
                () = tokio::time::sleep(PATIENCE) => {}
                () = writer.hung_up() => return Err(HungUp),
                () = app.shutdown.cancelled() => break Err(stopping()),
            }
        };
        match answer {
            Ok(answer) => answer.write(&app, &writer).await,
            Err(error) => {
                let body = ApiError::from(error).into_body();
                writer.write(serde_json::to_vec(&body).unwrap_or_default()).await
            }
        }
    })
}

/// A JSON answer that a task of its own writes.
fn written<F>(app: &App, write: impl FnOnce(Writer) -> F) -> Response
where
    F: Future<Output = Result<(), HungUp>> + Send + 'static,
{
    let (writer, body) = channel::body();
    let writing = write(writer);
    app.tasks.spawn(
        async move {
            if let Err(HungUp) = writing.await {
                tracing::debug!("the client hung up");
            }
        }
        .in_current_span(),
    );
    let json = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, json)], body).into_response()
}

fn stopping() -> Error {
    Error::unavailable("the server is stopping; the command goes on, but its answer cannot be waited for")
}
