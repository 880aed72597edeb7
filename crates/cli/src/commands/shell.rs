//! `warren shell ID`: a terminal in a sandbox.
//!
//! Ends with the exit code of the shell. Owns the session on both sides: the local terminal leaves raw mode and the one in the
//! sandbox is ended on every way out, signals included.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use warren_types::{PtyId, SandboxId};

use crate::client::Client;
use crate::context::Context;
use crate::endings::Endings;
use crate::failure::{LOST, StdoutClosed, hinted};
use crate::shell_stream::ShellStream;
use crate::terminal::{RawMode, WindowSize};

/// How long saying goodbye may take.
const GOODBYE_LIMIT: Duration = Duration::from_secs(3);

#[derive(Args)]
pub(crate) struct ShellArgs {
    id: SandboxId,
    /// Program to run [default: /bin/bash, else /bin/sh]
    #[arg(long, value_name = "PATH")]
    shell: Option<String>,
}

pub(crate) async fn run(context: &Context, args: ShellArgs) -> anyhow::Result<ExitCode> {
    let client = context.client()?;
    // Before there is anything to tidy up, so that no signal falls between.
    let mut endings = Endings::catch()?;
    let size = WindowSize::current();
    let session = client.create_pty(&args.id, size, args.shell).await?.value;
    let pty: PtyId = session.session_id.parse().map_err(|_| {
        hinted("the server named the terminal in a way that cannot be read", "is it a Warren server?")
    })?;
    let outcome = tokio::select! {
        outcome = join(&client, &args.id, &pty, size) => outcome,
        code = endings.next() => Ok(ExitCode::from(code)),
    };
    // By now raw mode is over: its guard lived in `join`. A terminal that has exited already is fine.
    let _ = tokio::time::timeout(GOODBYE_LIMIT, client.kill_pty(&args.id, &pty)).await;
    match outcome {
        Err(error) if error.is::<StdoutClosed>() => Ok(ExitCode::SUCCESS),
        outcome => outcome,
    }
}

async fn join(client: &Client, id: &SandboxId, pty: &PtyId, size: WindowSize) -> anyhow::Result<ExitCode> {
    let socket = client.attach_pty(id, pty).await?;
    let mut changes = signal(SignalKind::window_change())?;
    let raw_mode = RawMode::enter().context("could not put the terminal into raw mode")?;
    let mut stream = ShellStream::new(client, id, pty, crate::stdin::read_stdin()?);
    let resized = async {
        let mut told = size;
        loop {
            let current = WindowSize::current();
            // One that cannot be told now is told with the next change; the session goes on.
            if current != told && client.resize_pty(id, pty, current).await.is_ok() {
                told = current;
            }
            changes.recv().await;
        }
    };
    let outcome = tokio::select! {
        outcome = stream.follow(socket) => outcome,
        () = resized => Ok(None),
    };
    drop(raw_mode);
    // Codes that do not fit become 255, as in a shell.
    outcome.map(|code| ExitCode::from(u8::try_from(code.unwrap_or(0)).unwrap_or(LOST)))
}
