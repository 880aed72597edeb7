//! `warren exec ID -- CMD…`: a command in a sandbox as if it ran here.
//!
//! Its stdout and stderr stay apart, our stdin is its stdin to the very end, and its exit code is ours. The first Ctrl-C
//! interrupts the command, the second leaves it running. When our stdout is closed the command gets the signal a local one
//! would have got.

use std::process::ExitCode;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use warren_api::exec::ExecCreate;
use warren_types::{ExecId, SandboxId};

use crate::client::Client;
use crate::context::Context;
use crate::exec_stream::ExecStream;
use crate::failure::{self, StdoutClosed, chain_of, hinted};
use crate::output::Output;
use crate::words::{Pair, map_of};

const SIGINT: i32 = 2;
const SIGPIPE: i32 = 13;
/// What the API reports for a command that its time limit ended.
const TIMED_OUT: i32 = -1;

#[derive(Args)]
#[command(after_help = "\
With --json the command runs without input, and its exit code and output are printed as one object.
Its time limit is then 60 s unless --timeout says otherwise.

Example: echo hello | warren exec sb-0123abcd -- sha256sum")]
pub(crate) struct ExecArgs {
    id: SandboxId,
    /// Folder to run in [default: /home/sandbox]
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    /// Environment variable; repeatable
    #[arg(long, short, value_name = "KEY=VALUE")]
    env: Vec<Pair>,
    /// Seconds after which it is ended with all it started [default: none]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u32>,
    /// Start it, print its session id and leave it
    #[arg(long, short)]
    detach: bool,
    /// Give CMD, joined with blanks, to /bin/sh
    #[arg(long)]
    shell: bool,
    /// Leave our stdin alone; the command's is empty
    #[arg(long, short = 'n')]
    no_stdin: bool,
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

pub(crate) async fn run(context: &Context, args: ExecArgs) -> anyhow::Result<ExitCode> {
    let client = context.client()?;
    let (id, detach, no_stdin) = (args.id.clone(), args.detach, args.no_stdin);
    let body = body_of(args);
    if detach {
        let answer = client.create_exec(&id, &body).await?;
        if context.output.json {
            context.output.json(&answer.json)?;
        } else {
            context.output.line(&crate::output::printable(&answer.value.session_id))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    if context.output.json {
        let answer = client.run_exec(&id, &body).await?;
        context.output.json(&answer.json)?;
        return Ok(mirrored(answer.value.exit_code));
    }
    let session = client.create_exec(&id, &body).await?.value;
    let exec: ExecId = session.session_id.parse().map_err(|_| {
        hinted("the server named the command in a way that cannot be read", "is it a Warren server?")
    })?;
    let input = if no_stdin { None } else { Some(crate::stdin::read_stdin()?) };
    let mut stream = ExecStream::new(&client, context.output, (&id, &exec), Some(0), input);
    if no_stdin {
        stream = stream.without_input();
    }
    follow(&client, context.output, (&id, &exec), stream).await
}

fn body_of(args: ExecArgs) -> ExecCreate {
    let mut words = args.command.into_iter();
    let (cmd, args_of_command) = if args.shell {
        ("/bin/sh".to_owned(), vec!["-c".to_owned(), words.collect::<Vec<_>>().join(" ")])
    } else {
        // clap asks for at least one word.
        (words.next().unwrap_or_default(), words.collect())
    };
    ExecCreate {
        cmd: Some(cmd),
        args: Some(args_of_command),
        envs: map_of(args.env),
        cwd: args.cwd,
        timeout: args.timeout.map(i64::from),
        max_run_after_disconnect: None,
    }
}

/// Follows a command to its end, with Ctrl-C as described above.
pub(crate) async fn follow(
    client: &Client,
    output: Output,
    (id, exec): (&SandboxId, &ExecId),
    mut stream: ExecStream<'_>,
) -> anyhow::Result<ExitCode> {
    let mut interrupts = signal(SignalKind::interrupt())?;
    let outcome = {
        let followed = stream.follow();
        tokio::pin!(followed);
        let mut interrupted = false;
        loop {
            tokio::select! {
                outcome = &mut followed => break Some(outcome),
                _ = interrupts.recv() => {
                    if interrupted {
                        break None;
                    }
                    interrupted = true;
                    output.note("\ninterrupting; Ctrl-C again leaves the command running");
                    // The command's output keeps coming while the signal is on its way, and so does a second Ctrl-C.
                    tokio::select! {
                        outcome = &mut followed => break Some(outcome),
                        _ = interrupts.recv() => break None,
                        sent = client.kill_exec(id, exec, SIGINT) => if let Err(error) = sent {
                            output.warn(&format!("could not interrupt it: {}", chain_of(error.as_ref())));
                        },
                    }
                }
            }
        }
    };
    match outcome {
        Some(Ok(code)) => {
            if code == TIMED_OUT {
                output.note("the command was ended by its time limit");
            }
            Ok(mirrored(code))
        }
        Some(Err(error)) if error.is::<StdoutClosed>() => {
            // Nobody is left to tell when this fails.
            let _ = client.kill_exec(id, exec, SIGPIPE).await;
            Ok(ExitCode::from(failure::STDOUT_CLOSED))
        }
        Some(Err(error)) => Err(error),
        None => {
            output.note(&format!("left running; follow it again with `{}`", stream.how_to_attach()));
            Ok(ExitCode::from(failure::DETACHED))
        }
    }
}

/// A command's code as ours. Codes that do not fit become 255, as in a shell.
fn mirrored(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(failure::LOST))
}
