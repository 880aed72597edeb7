//! One-shot commands: start, collect, answer.
//!
//! Output up to [`KEPT_BYTES`] is collected as it comes. A command that says more is left to go on by itself; its
//! output is then read from its log once it has ended, so that this server's memory stays flat.

use std::time::Duration;

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Method, header};
use jiff::Timestamp;
use warren_api::exec::{ExecHandle, ExecResult};
use warren_guest_api::exec::{Exec, ExecStart, Exit, REPLAY_BYTES};
use warren_guest_api::frame::Frame;
use warren_types::{Error, ErrorKind, ExecId};

use super::output::{Collected, OutputStream};
use crate::app::App;
use crate::app::auth::Live;

/// Output of one command that is held in memory, in bytes over both streams.
const KEPT_BYTES: usize = REPLAY_BYTES as usize;
/// How long an async run may take and still be answered at once.
const INLINE_HOLD: Duration = Duration::from_millis(400);
/// One turn of waiting for a command to end.
const WAIT_TURN_MS: u64 = 30_000;

/// How a one-shot command ended.
#[derive(Debug)]
pub(crate) enum Ran {
    Whole(ExecResult),
    /// Its output is in its log; see [`App::open_output`].
    Large {
        exec: ExecId,
        exit: Exit,
    },
}

/// What an async run has come to within the hold.
#[derive(Debug)]
pub(crate) enum RanAsync {
    Ended(ExecResult),
    Running(ExecHandle),
}

/// Which of a command's two streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OutputKind {
    Stdout,
    Stderr,
}

impl OutputKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

enum Collecting {
    Ended(Exit),
    Overflowed,
}

impl App {
    pub(crate) async fn run_exec(&self, live: &Live, start: &ExecStart) -> Result<Ran, Error> {
        let mut output = self.open_run(live, start).await?;
        let (exec, _) = output.started().await?;
        let mut collected = Collected::default();
        match collect(&mut output, &mut collected).await? {
            Collecting::Ended(exit) => Ok(Ran::Whole(result(collected, exit))),
            Collecting::Overflowed => {
                drop((output, collected));
                let exit = self.wait_for_exit(live, &exec).await?;
                Ok(Ran::Large { exec, exit })
            }
        }
    }

    pub(crate) async fn run_exec_async(&self, live: &Live, start: &ExecStart) -> Result<RanAsync, Error> {
        let mut output = self.open_run(live, start).await?;
        let (exec, _) = output.started().await?;
        let started_at = Timestamp::now();
        let mut collected = Collected::default();
        match tokio::time::timeout(INLINE_HOLD, collect(&mut output, &mut collected)).await {
            Ok(Ok(Collecting::Ended(exit))) => Ok(RanAsync::Ended(result(collected, exit))),
            Ok(Ok(Collecting::Overflowed)) | Err(_) => {
                Ok(RanAsync::Running(ExecHandle { exec_id: exec.to_string(), running: true, started_at }))
            }
            Ok(Err(error)) => Err(error),
        }
    }

    /// What is kept of one stream of a command, as raw bytes.
    pub(crate) async fn open_output(
        &self,
        live: &Live,
        exec: &ExecId,
        kind: OutputKind,
    ) -> Result<Body, Error> {
        let path = format!("exec/{exec}/output?stream={}", kind.as_str());
        let answer = self.guest(live, Method::GET, &path, HeaderMap::new(), Body::empty()).await?;
        Ok(answer.into_body())
    }

    pub(in crate::app) async fn open_run(
        &self,
        live: &Live,
        start: &ExecStart,
    ) -> Result<OutputStream, Error> {
        let json = serde_json::to_vec(start)
            .map_err(|error| Error::internal(format!("could not encode a command: {error}")))?;
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let answer = self.guest(live, Method::POST, "exec/run", headers, Body::from(json)).await?;
        Ok(OutputStream::new(answer.into_body()))
    }

    async fn wait_for_exit(&self, live: &Live, exec: &ExecId) -> Result<Exit, Error> {
        loop {
            let found = self.wait_exec(live, exec, WAIT_TURN_MS).await?;
            if let Some(exit) = found.exit {
                return Ok(exit);
            }
            if !found.running {
                return Err(Error::new(
                    ErrorKind::SandboxFailed,
                    "the sandbox does not know how the command ended",
                ));
            }
        }
    }

    /// The command, as soon as it has ended or after `ms`.
    pub(in crate::app) async fn wait_exec(&self, live: &Live, exec: &ExecId, ms: u64) -> Result<Exec, Error> {
        let asked = tokio::time::Instant::now();
        let found: Exec =
            self.guest_json(live, Method::GET, &format!("exec/{exec}/wait?ms={ms}"), None::<&()>).await?;
        if found.running && found.exit.is_none() && asked.elapsed() < Duration::from_millis(ms / 2) {
            // An agent that does not wait must not make us spin.
            tokio::time::sleep(Duration::from_millis(ms.min(250))).await;
        }
        Ok(found)
    }
}

async fn collect(output: &mut OutputStream, collected: &mut Collected) -> Result<Collecting, Error> {
    loop {
        match output.next().await? {
            Frame::Exit(exit) => return Ok(Collecting::Ended(exit)),
            frame => collected.push(frame),
        }
        if collected.len() > KEPT_BYTES {
            return Ok(Collecting::Overflowed);
        }
    }
}

fn result(collected: Collected, exit: Exit) -> ExecResult {
    let (stdout, stderr) = collected.into_text(Some(exit));
    ExecResult { exit_code: exit.code, stdout, stderr }
}
