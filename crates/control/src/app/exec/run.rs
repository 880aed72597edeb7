//! One-shot commands: start, collect, answer.
//!
//! Output up to [`KEPT_BYTES`] is collected as it comes. A command that says more is left to go on by itself; its
//! output is then read from its log once it has ended, so that this server's memory stays flat.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Method, header};
use jiff::Timestamp;
use warren_api::exec::{ExecHandle, ExecResult};
use warren_guest_api::exec::{Exec, ExecStart, Exit, REPLAY_BYTES};
use warren_guest_api::frame::Frame;
use warren_types::{Error, ErrorKind, ExecId, SandboxState};

use super::output::{Collected, OutputStream};
use super::watched::Watched;
use crate::app::App;
use crate::app::audit::detail::of_command;
use crate::app::audit::{Kind, facts};
use crate::app::auth::Live;

/// Output of one command that is held in memory, in bytes over both streams.
const KEPT_BYTES: usize = REPLAY_BYTES as usize;
/// How long an async run may take and still be answered at once.
const INLINE_HOLD: Duration = Duration::from_millis(400);
/// One turn of waiting for a command to end.
const WAIT_TURN_MS: u64 = 30_000;

/// Of a command whose sandbox was hibernated with its memory.
const CODE_GOES_ON: &str = "command_goes_on";
/// Of one whose sandbox was hibernated without, or started anew.
const CODE_ENDED: &str = "command_ended";

/// How a one-shot command ended.
#[derive(Debug)]
pub(crate) enum Ran {
    Whole(ExecResult),
    /// Its output is in its log; see [`App::open_output`].
    Large {
        exec: ExecId,
        exit: Exit,
        /// Bytes at the beginning of its output that were more than its log keeps.
        missing: u64,
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
    /// Runs a command to its end, or until whoever waits for it leaves: then it is ended with all it started.
    pub(crate) async fn run_exec(self: &Arc<Self>, live: &Live, start: &ExecStart) -> Result<Ran, Error> {
        let note = live.note(Kind::Exec).with_all(of_command(start)).with("mode", "run");
        let told = |(exec, ran): &(ExecId, Ran)| {
            let code = match ran {
                Ran::Whole(result) => result.exit_code,
                Ran::Large { exit, .. } => exit.code,
            };
            facts([("exec", exec.as_str().into()), ("exitCode", code.into())])
        };
        let (_, ran) = self.audit.around_with(note, self.run_exec_now(live, start), told).await?;
        Ok(ran)
    }

    async fn run_exec_now(self: &Arc<Self>, live: &Live, start: &ExecStart) -> Result<(ExecId, Ran), Error> {
        let (start, id) = with_id(start);
        let Watched { output, exec, guard } = match self.start_watched(live, start).await {
            Ok(watched) => watched,
            Err(error) => return self.perhaps_begun(live, &id, error).await.map(|ran| (id, ran)),
        };
        let ran = self.to_its_end(live, &exec, output).await;
        // It has ended; or its sandbox has, or sleeps, and ending the command would wake it.
        guard.leave();
        Ok((exec, ran?))
    }

    /// What came of a command whose agent broke off before it said that it begins: it may have begun, so whoever asked for it is
    /// not to try again without a thought.
    async fn perhaps_begun(&self, live: &Live, id: &ExecId, error: Error) -> Result<Ran, Error> {
        self.check_perhaps_begun(live, error).await?;
        let (exit, missing) = self.wait_for_exit(live, id).await.map_err(unknown_end)?;
        Ok(Ran::Large { exec: id.clone(), exit, missing })
    }

    /// Whether its agent can be asked for it. One that could not be woken has begun nothing.
    async fn check_perhaps_begun(&self, live: &Live, error: Error) -> Result<(), Error> {
        let runs = error.kind == ErrorKind::SandboxFailed
            && self
                .node
                .get_sandbox(live.id())
                .await
                .is_ok_and(|report| report.state == SandboxState::Running);
        if runs { Ok(()) } else { self.unless_ended(live.id(), Err(error)).await }
    }

    async fn to_its_end(&self, live: &Live, exec: &ExecId, mut output: OutputStream) -> Result<Ran, Error> {
        let mut collected = Collected::default();
        match collect(&mut output, &mut collected).await {
            Ok(Collecting::Ended(exit)) => return Ok(Ran::Whole(result(collected, exit))),
            Ok(Collecting::Overflowed) => {}
            Err(error) => {
                let goes_on = self.check_goes_on(live, exec, error).await;
                self.unless_ended(live.id(), goes_on).await?;
            }
        }
        drop((output, collected));
        let (exit, missing) = self.wait_for_exit(live, exec).await.map_err(unknown_end)?;
        Ok(Ran::Large { exec: exec.clone(), exit, missing })
    }

    /// Whether a command can be waited for whose output broke off. One whose sandbox was hibernated is not a reason to wake it,
    /// and not one that may be run again without a thought.
    async fn check_goes_on(&self, live: &Live, exec: &ExecId, error: Error) -> Result<(), Error> {
        let Ok(report) = self.node.get_sandbox(live.id()).await else { return Err(error) };
        match report.state {
            SandboxState::Running => Ok(()),
            SandboxState::Hibernated if report.memory_kept => Err(Error::conflict(format!(
                "the sandbox was hibernated while the command ran: it goes on when the sandbox wakes, and can be attached to as \
                 session {exec}"
            ))
            .with_code(CODE_GOES_ON)),
            SandboxState::Hibernated => Err(Error::conflict(
                "the sandbox was hibernated while the command ran, and that ended the command",
            )
            .with_code(CODE_ENDED)),
            SandboxState::Error | SandboxState::Stopped | SandboxState::Creating => Err(error),
        }
    }

    pub(crate) async fn run_exec_async(&self, live: &Live, start: &ExecStart) -> Result<RanAsync, Error> {
        let note = live.note(Kind::Exec).with_all(of_command(start)).with("mode", "async");
        let told = |(exec, ran): &(ExecId, RanAsync)| {
            let mut facts = facts([("exec", exec.as_str().into())]);
            if let RanAsync::Ended(result) = ran {
                facts.insert("exitCode".to_owned(), result.exit_code.into());
            }
            facts
        };
        let (_, ran) = self.audit.around_with(note, self.run_exec_async_now(live, start), told).await?;
        Ok(ran)
    }

    async fn run_exec_async_now(&self, live: &Live, start: &ExecStart) -> Result<(ExecId, RanAsync), Error> {
        let (start, id) = with_id(start);
        let started_at = Timestamp::now();
        let handle = |exec: &ExecId| ExecHandle { exec_id: exec.to_string(), running: true, started_at };
        let begun = async {
            let mut output = self.open_run(live, &start).await?;
            let (exec, _) = output.started().await?;
            Ok((output, exec))
        };
        let (mut output, exec) = match begun.await {
            Ok(begun) => begun,
            Err(error) => {
                // It may have begun; then it can be asked for.
                self.check_perhaps_begun(live, error).await?;
                self.wait_exec(live, &id, 0).await.map_err(unknown_end)?;
                return Ok((id.clone(), RanAsync::Running(handle(&id))));
            }
        };
        let mut collected = Collected::default();
        match tokio::time::timeout(INLINE_HOLD, collect(&mut output, &mut collected)).await {
            Ok(Ok(Collecting::Ended(exit))) => Ok((exec, RanAsync::Ended(result(collected, exit)))),
            // One whose output broke off is asked for as any other.
            Ok(Ok(Collecting::Overflowed) | Err(_)) | Err(_) => {
                let running = RanAsync::Running(handle(&exec));
                Ok((exec, running))
            }
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

    /// How it ended, and how many bytes of its output are no longer kept.
    async fn wait_for_exit(&self, live: &Live, exec: &ExecId) -> Result<(Exit, u64), Error> {
        loop {
            let found = self.wait_exec(live, exec, WAIT_TURN_MS).await?;
            if let Some(exit) = found.exit {
                return Ok((exit, found.log_start));
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

/// A command under an id of ours, by which it can be asked for whatever becomes of the answer.
fn with_id(start: &ExecStart) -> (ExecStart, ExecId) {
    let id = ExecId::generate();
    (ExecStart { id: Some(id.clone()), ..start.clone() }, id)
}

/// The agent does not know a command that this run has started, or asked for: it is another agent, and what ran went with the one
/// before.
fn unknown_end(error: Error) -> Error {
    match error.kind {
        ErrorKind::NotFound => Error::conflict(
            "the sandbox was started anew while the command ran, or was about to; what became of it is not known",
        )
        .with_code(CODE_ENDED),
        _ => error,
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
    ExecResult { exit_code: exit.code, truncated: false, stdout, stderr }
}
