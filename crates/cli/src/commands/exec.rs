//! `warren exec ID -- CMD…`: a command in a sandbox as if it ran here.
//!
//! Its stdout and stderr stay apart, our stdin is its stdin to the very end, and its exit code is ours. The first Ctrl-C
//! interrupts the command, the second leaves it running; SIGTERM and SIGHUP are passed on in the same way. When our stdout is
//! closed the command gets the signal a local one would have got.

use std::pin::Pin;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context as Poller, Poll};

use clap::Args;
use tokio::io::AsyncWrite;
use tokio::signal::unix::{Signal, SignalKind, signal};
use warren_api::exec::ExecCreate;
use warren_types::{ExecId, SandboxId};

use crate::client::Client;
use crate::context::Context;
use crate::exec_stream::ExecStream;
use crate::failure::{self, StdoutClosed, chain_of, hinted};
use crate::output::Output;
use crate::words::{Pair, map_of};

const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;
const SIGPIPE: i32 = 13;
const SIGTERM: i32 = 15;
/// Seconds that a command has whose output is kept until it has ended.
const JSON_TIMEOUT: i64 = 60;
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
    let mut body = body_of(args);
    if context.output.json && !detach {
        body.timeout = body.timeout.or(Some(JSON_TIMEOUT));
    }
    if detach {
        let answer = client.create_exec(&id, &body).await?;
        let session = &answer.value.session_id;
        context.output.made("session", session, session, &answer.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    let session = client.create_exec(&id, &body).await?.value;
    let exec: ExecId = session.session_id.parse().map_err(|_| {
        hinted("the server named the command in a way that cannot be read", "is it a Warren server?")
    })?;
    let signals = PassedOn::all()?;
    if context.output.json {
        return to_object(&client, context.output, (&id, &exec), signals).await;
    }
    let input = if no_stdin { None } else { Some(crate::stdin::read_stdin()?) };
    let mut stream = ExecStream::new(&client, context.output, (&id, &exec), Some(0), input);
    if no_stdin {
        stream = stream.without_input();
    }
    follow(&client, context.output, (&id, &exec), stream, signals).await
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

/// Signals that the command gets in our place.
pub(crate) struct PassedOn {
    interrupt: Signal,
    /// What ends whoever only looks on.
    endings: Option<(Signal, Signal)>,
}

impl PassedOn {
    fn all() -> std::io::Result<Self> {
        let endings = Some((signal(SignalKind::terminate())?, signal(SignalKind::hangup())?));
        Ok(Self { endings, ..Self::interrupt()? })
    }

    pub(crate) fn interrupt() -> std::io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, endings: None })
    }

    async fn next(&mut self) -> i32 {
        let ending = async {
            match &mut self.endings {
                Some((terminate, hangup)) => tokio::select! {
                    _ = terminate.recv() => SIGTERM,
                    _ = hangup.recv() => SIGHUP,
                },
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => SIGINT,
            signal = ending => signal,
        }
    }
}

/// How following a command ended.
enum Followed {
    Exit(i32),
    /// Nobody reads our output any more.
    StdoutClosed,
    /// The command runs on.
    Left,
}

/// Runs it without input, and prints what came of it as one object.
async fn to_object(
    client: &Client,
    output: Output,
    names: (&SandboxId, &ExecId),
    signals: PassedOn,
) -> anyhow::Result<ExitCode> {
    let (stdout, stderr) = (Kept::default(), Kept::default());
    let stream = ExecStream::new(client, output, names, Some(0), None)
        .without_input()
        .writing_to(stdout.clone(), stderr.clone());
    let followed = follow_to(client, output, names, stream, signals).await?;
    if let Followed::Exit(code) = followed {
        output.json(
            &serde_json::json!({ "exitCode": code, "stdout": stdout.text(), "stderr": stderr.text() }),
        )?;
    }
    Ok(followed.code())
}

/// Follows a command to its end, with signals as described above.
pub(crate) async fn follow(
    client: &Client,
    output: Output,
    names: (&SandboxId, &ExecId),
    stream: ExecStream<'_>,
    signals: PassedOn,
) -> anyhow::Result<ExitCode> {
    Ok(follow_to(client, output, names, stream, signals).await?.code())
}

async fn follow_to(
    client: &Client,
    output: Output,
    (id, exec): (&SandboxId, &ExecId),
    mut stream: ExecStream<'_>,
    mut signals: PassedOn,
) -> anyhow::Result<Followed> {
    let outcome = {
        let followed = stream.follow();
        tokio::pin!(followed);
        let mut interrupted = false;
        loop {
            tokio::select! {
                outcome = &mut followed => break Some(outcome),
                number = signals.next() => {
                    if interrupted {
                        break None;
                    }
                    interrupted = true;
                    if number == SIGINT {
                        output.note("\ninterrupting; Ctrl-C again leaves the command running");
                    }
                    // The command's output keeps coming while the signal is on its way, and so does a second Ctrl-C.
                    tokio::select! {
                        outcome = &mut followed => break Some(outcome),
                        _ = signals.next() => break None,
                        sent = client.kill_exec(id, exec, number) => if let Err(error) = sent {
                            output.warn(&format!("could not signal it: {}", chain_of(error.as_ref())));
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
            Ok(Followed::Exit(code))
        }
        Some(Err(error)) if error.is::<StdoutClosed>() => {
            // Nobody is left to tell when this fails.
            let _ = client.kill_exec(id, exec, SIGPIPE).await;
            Ok(Followed::StdoutClosed)
        }
        Some(Err(error)) => Err(error),
        None => {
            output.note(&format!("left running; follow it again with `{}`", stream.how_to_attach()));
            Ok(Followed::Left)
        }
    }
}

impl Followed {
    /// The command's code as ours. Codes that do not fit become 255, as in a shell.
    fn code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Exit(code) => u8::try_from(*code).unwrap_or(failure::LOST),
            Self::StdoutClosed => failure::STDOUT_CLOSED,
            Self::Left => failure::DETACHED,
        })
    }
}

/// Output that is kept until the end.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Kept {
    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is not UTF-8 is replaced.
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }
}

impl AsyncWrite for Kept {
    fn poll_write(self: Pin<&mut Self>, _: &mut Poller<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.bytes().extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Poller<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Poller<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
