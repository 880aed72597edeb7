//! A program that draws on a terminal: this one joined to one in the sandbox.
//!
//! A terminal of the API takes a program and nothing else, so a script is put there that goes to the folder, starts the real one
//! and notes its exit code. Keys belong to the program, Ctrl-C too. What closes our terminal leaves the program running; the time
//! limit is kept by us while we watch and by a command in the sandbox when we do not.

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use warren_api::exec::ExecCreate;
use warren_api::files::FileChmod;
use warren_types::{PtyId, SandboxId};

use super::super::launch::Launch;
use super::super::patch::collect::read_file;
use super::headless::Signals;
use super::record::Session;
use super::{Ended, shell_word};
use crate::client::Client;
use crate::failure::{Lost, Refused, Released, StdoutClosed, chain_of, hinted};
use crate::output::Output;
use crate::shell_stream::ShellStream;
use crate::terminal::{RawMode, WindowSize, leave_modes};

const EXIT_FILE_BYTES: u64 = 32;
/// What the exit file says of a program that its limit ended.
const LIMIT: &str = "limit";

const WATCHDOG: &str = r#"sleep "$1"; p=$(cat "$2.pid") && echo limit >"$2.exit" && { kill -TERM -"$p"; sleep 5; kill -KILL -"$p"; }"#;

/// Starts it on a terminal of the present size.
pub(crate) async fn start(
    client: &Client,
    sandbox: &SandboxId,
    launch: &Launch,
    folder: &str,
    limit: Option<u32>,
) -> anyhow::Result<Session> {
    let path = format!("/tmp/.warren-agent-{:016x}", super::random()?);
    let words: Vec<String> = launch.argv.iter().map(|word| shell_word(word)).collect();
    let script = format!(
        "#!/bin/sh\ncd {} || exit 1\necho $$ >{path}.pid\n{}\ncode=$?\n[ -s {path}.exit ] || echo $code >{path}.exit\nexit $code\n",
        shell_word(folder),
        words.join(" ")
    );
    let length = script.len() as u64;
    client.write_file(sandbox, &path, None, reqwest::Body::from(script), Some(length)).await?;
    client.chmod_file(sandbox, &FileChmod { path: path.clone(), mode: "0755".to_owned() }).await?;
    let session = client.create_pty(sandbox, WindowSize::current(), Some(path.clone())).await?.value;
    if let Some(limit) = limit {
        let body = ExecCreate {
            cmd: Some("/bin/sh".to_owned()),
            args: Some(["-c", WATCHDOG, "sh", &limit.to_string(), &path].map(str::to_owned).into()),
            ..ExecCreate::default()
        };
        client.create_exec(sandbox, &body).await?;
    }
    Ok(Session::Pty { id: session.session_id, exit_file: format!("{path}.exit") })
}

/// Joins the terminals until the program ends or somebody leaves.
pub(crate) async fn follow(
    client: &Client,
    output: Output,
    sandbox: &SandboxId,
    (id, exit_file): (&str, &str),
    goes_on: impl Fn() -> bool,
    signals: &mut Signals,
) -> anyhow::Result<Ended> {
    let pty: PtyId = id.parse().map_err(|_| {
        hinted("the server named the terminal in a way that cannot be read", "is it a Warren server?")
    })?;
    let joined = tokio::select! {
        joined = join(client, sandbox, &pty, goes_on) => how(client, output, sandbox, exit_file, joined).await,
        code = signals.leave() => Ok(Ended::Left(code)),
    };
    // It did not end by itself, and what it asked of the terminal still holds.
    if !matches!(joined, Ok(Ended::Exit(_))) {
        leave_modes();
    }
    joined
}

async fn how(
    client: &Client,
    output: Output,
    sandbox: &SandboxId,
    exit_file: &str,
    joined: anyhow::Result<()>,
) -> anyhow::Result<Ended> {
    match joined {
        Ok(()) => Ok(ended(client, sandbox, exit_file).await),
        Err(error) if error.downcast_ref::<Refused>().is_some_and(|refused| refused.status == 404) => {
            Ok(ended(client, sandbox, exit_file).await)
        }
        Err(error) if error.is::<StdoutClosed>() || error.is::<std::io::Error>() => Ok(Ended::Left(129)),
        // Who asks what became of it hears more.
        Err(error) if error.is::<Released>() => Ok(Ended::Left(crate::failure::LOST)),
        Err(error) if error.is::<Lost>() => {
            output.warn(&chain_of(error.as_ref()));
            Ok(Ended::Left(crate::failure::LOST))
        }
        Err(error) => Err(error),
    }
}

async fn join(
    client: &Client,
    sandbox: &SandboxId,
    pty: &PtyId,
    goes_on: impl Fn() -> bool,
) -> anyhow::Result<()> {
    let socket = client.attach_pty(sandbox, pty).await?;
    let mut changes = signal(SignalKind::window_change())?;
    let raw_mode = RawMode::enter().context("could not put the terminal into raw mode")?;
    let (typed, receiver) = tokio::sync::mpsc::channel(4);
    let mut pieces = crate::stdin::read_stdin()?;
    // The end of our input is a terminal that has gone, not a key that was pressed.
    let forwarded = async move {
        while let Some(piece) = pieces.recv().await {
            if typed.send(piece).await.is_err() {
                break;
            }
        }
        std::io::Error::from(std::io::ErrorKind::UnexpectedEof)
    };
    let mut stream = ShellStream::new(client, sandbox, pty, receiver).only_while(goes_on);
    let resized = async {
        let mut told = None;
        loop {
            let current = WindowSize::current();
            if told != Some(current) && client.resize_pty(sandbox, pty, current).await.is_ok() {
                told = Some(current);
            }
            changes.recv().await;
        }
    };
    let outcome = tokio::select! {
        outcome = stream.follow(socket) => outcome.map(drop),
        error = forwarded => Err(error.into()),
        () = resized => Ok(()),
    };
    drop(raw_mode);
    outcome
}

/// What the script noted. A terminal that ended without a note was ended from outside.
async fn ended(client: &Client, sandbox: &SandboxId, exit_file: &str) -> Ended {
    let noted = read_file(client, sandbox, exit_file, EXIT_FILE_BYTES).await.unwrap_or_default();
    let noted = String::from_utf8_lossy(&noted);
    match noted.trim() {
        LIMIT => Ended::TimedOut,
        code => Ended::Exit(code.parse().unwrap_or(1)),
    }
}
