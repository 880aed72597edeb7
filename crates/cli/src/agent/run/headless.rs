//! A program without a terminal: its output here, its exit code ours.
//!
//! Ctrl-C once interrupts it, and ends it when it does not go by itself; twice leaves. A closed terminal leaves too. The time limit
//! is the sandbox's own: it holds whether anybody watches or not.

use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep_until, timeout};
use warren_api::exec::ExecCreate;
use warren_types::{ExecId, SandboxId};

use super::super::launch::Launch;
use super::Ended;
use super::record::{Run, Session};
use crate::client::Client;
use crate::exec_stream::ExecStream;
use crate::failure::{DETACHED, Lost, Refused, Released, StdoutClosed, chain_of, hinted};
use crate::output::Output;

/// What the API reports for a command that its time limit ended.
const EXIT_OF_LIMIT: i32 = -1;
/// Between interrupting, asking and ending.
const PATIENCE: Duration = Duration::from_secs(5);
/// A program may be slow to begin reading.
const TAKEN_WITHIN: Duration = Duration::from_secs(60);
const CALL_LIMIT: Duration = Duration::from_secs(5);
const SIGNALS: [i32; 3] = [2, 15, 9];

/// What may happen from outside while a program runs.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    pub(crate) fn catch() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// A signal that asks to leave, with the exit code it means.
    pub(crate) async fn leave(&mut self) -> u8 {
        tokio::select! {
            _ = self.terminate.recv() => 143,
            _ = self.hangup.recv() => 129,
        }
    }

    /// Any of them.
    pub(crate) async fn any(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => DETACHED,
            _ = self.terminate.recv() => 143,
            _ = self.hangup.recv() => 129,
        }
    }
}

pub(crate) async fn start(
    client: &Client,
    sandbox: &SandboxId,
    launch: &Launch,
    folder: &str,
    limit: Option<u32>,
) -> anyhow::Result<ExecId> {
    let (program, arguments) = launch.argv.split_first().context("there is nothing to run")?;
    let body = ExecCreate {
        cmd: Some(program.clone()),
        args: Some(arguments.to_vec()),
        envs: None,
        cwd: Some(folder.to_owned()),
        timeout: limit.map(i64::from),
        max_run_after_disconnect: None,
    };
    let session = client.create_exec(sandbox, &body).await?.value;
    session.session_id.parse().map_err(|_| {
        hinted("the server named the command in a way that cannot be read", "is it a Warren server?")
    })
}

/// The stream of a run's program, from its beginning.
pub(crate) fn stream<'a>(
    client: &'a Client,
    output: Output,
    at: (&'a SandboxId, &'a ExecId),
    prompt: Option<&str>,
) -> ExecStream<'a> {
    match prompt {
        None => ExecStream::new(client, output, at, Some(0), None).without_input(),
        Some(prompt) => {
            let (pieces, receiver) = tokio::sync::mpsc::channel(1);
            // There is room for one, and there is one; then the input ends.
            let _ = pieces.try_send(bytes::Bytes::copy_from_slice(prompt.as_bytes()));
            ExecStream::new(client, output, at, Some(0), Some(receiver))
        }
    }
}

/// Gives a program that nobody follows what it reads, and its end.
pub(crate) async fn hand_over(
    client: &Client,
    output: Output,
    at: (&SandboxId, &ExecId),
    prompt: Option<&str>,
) -> anyhow::Result<()> {
    let mut stream = stream(client, output, at, prompt).writing_to(tokio::io::sink(), tokio::io::sink());
    let handed = timeout(TAKEN_WITHIN, stream.hand_over()).await;
    handed.unwrap_or_else(|_| Err(anyhow::anyhow!("the agent did not read what it is to do")))
}

/// Follows it to its end, or until somebody leaves.
pub(crate) async fn follow(
    client: &Client,
    output: Output,
    (sandbox, exec): (&SandboxId, &ExecId),
    mut stream: ExecStream<'_>,
    signals: &mut Signals,
) -> anyhow::Result<Ended> {
    let followed = stream.follow();
    tokio::pin!(followed);
    // How many of the signals were sent, and when the next is due.
    let mut sent = 0;
    let mut due: Option<Instant> = None;
    let exited = loop {
        let escalate = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            exited = &mut followed => break exited,
            code = signals.any() => {
                if code != DETACHED || sent > 0 {
                    return Ok(Ended::Left(code));
                }
                output.note("\nstopping the agent; what it did so far is kept. Ctrl-C again leaves at once");
            }
            () = escalate => {}
        }
        if sent < SIGNALS.len() {
            let told = timeout(CALL_LIMIT, client.kill_exec(sandbox, exec, SIGNALS[sent])).await;
            if let Ok(Err(error)) = told {
                output.note(&format!("could not stop it: {}", chain_of(error.as_ref())));
            }
            sent += 1;
            due = Some(Instant::now() + PATIENCE);
        } else {
            due = None;
        }
    };
    match exited {
        Ok(EXIT_OF_LIMIT) => Ok(Ended::TimedOut),
        Ok(_) if sent > 0 => Ok(Ended::Stopped),
        Ok(code) => Ok(Ended::Exit(code)),
        // Nobody reads any more, or the terminal has gone.
        Err(error) if error.is::<StdoutClosed>() || error.is::<std::io::Error>() => Ok(Ended::Left(129)),
        Err(error) if error.downcast_ref::<Refused>().is_some_and(|refused| refused.status == 404) => {
            output.note(
                "its program is not there any more: a container that slept keeps files and no processes",
            );
            Ok(Ended::Exit(crate::failure::LOST.into()))
        }
        // Who asks what became of it hears more.
        Err(error) if error.is::<Released>() => Ok(Ended::Left(crate::failure::LOST)),
        Err(error) if error.is::<Lost>() => {
            output.warn(&chain_of(error.as_ref()));
            Ok(Ended::Left(crate::failure::LOST))
        }
        Err(error) => Err(error),
    }
}

/// The session of a run that is such a program.
pub(crate) fn exec_of(run: &Run) -> Option<ExecId> {
    match &run.record.session {
        Some(Session::Exec { id }) => id.parse().ok(),
        _ => None,
    }
}
