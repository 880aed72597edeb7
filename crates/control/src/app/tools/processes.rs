//! Programs that go on running: started, read, fed and ended by their id.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method};
use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::{Value, json};
use warren_api::exec::{ExecKill, ExecSession};
use warren_guest_api::frame::Frame;
use warren_types::{Error, ErrorKind};

use super::output::{ending, read_log};
use super::running::CommandLine;
use super::{Call, Output, input, text};

/// How long a program may take to fail at its start and still be told at once.
const FIRST_MS: u64 = 150;
/// How long a signal gets to take effect before the answer.
const ENDS_WITHIN_MS: u64 = 1000;
/// For an agent that does not take input.
const INPUT_WITHIN: Duration = Duration::from_secs(30);
const MAX_LISTED: usize = 200;
const MAX_COMMAND_CHARS: usize = 200;

#[derive(Deserialize)]
struct Start {
    command: String,
    cwd: Option<String>,
    env: Option<BTreeMap<String, String>>,
}

pub(super) async fn start(call: Call, input: Value) -> Result<Output, Error> {
    let Start { command, cwd, env } = input::decode(input)?;
    let live = call.live().await?;
    let line = CommandLine { command, cwd, env, timeout_seconds: None };
    let [first, second] = line.bodies()?;
    let session = match call.app.create_exec(&live, first).await {
        Err(error) if error.kind == ErrorKind::Invalid => call.app.create_exec(&live, second).await?,
        other => other?,
    };
    let id = session.session_id;
    let exec = input::exec_id("the id", &id)?;
    let known = call.app.wait_exec(&live, &exec, FIRST_MS).await?;
    let Some(exit) = known.exit else {
        let said = format!(
            "started as process {id}. sandbox_process_output shows what it writes, sandbox_process_input writes to it, \
             sandbox_kill_process ends it."
        );
        return Ok(Output::new(said, json!({"process_id": id, "running": true})));
    };
    let stretch = read_log(&call.app, &live, &exec, (0, text::DEFAULT_BYTES), Duration::ZERO).await?;
    let mut said = text::lossy(&stretch.bytes);
    text::push_note(&mut said, &format!("process {id} has ended at once: {}", ending(exit)));
    let structured = json!({"process_id": id, "running": false, "exit_code": exit.code});
    Ok(Output::new(said, structured))
}

#[derive(Deserialize)]
struct Feed {
    process_id: String,
    input: String,
    close: Option<bool>,
}

pub(super) async fn feed(call: Call, input: Value) -> Result<Output, Error> {
    let Feed { process_id, input, close } = input::decode(input)?;
    let live = call.live().await?;
    let exec = input::exec_id("process_id", &process_id)?;
    let known =
        call.app.wait_exec(&live, &exec, 0).await.map_err(|error| input::explain_absent(error, &exec))?;
    if let Some(exit) = known.exit {
        return Err(Error::invalid(format!("process {exec} takes no input any more: {}", ending(exit))));
    }
    let bytes = input.len();
    let mut frames = BytesMut::new();
    if bytes > 0 {
        Frame::Stdin(Bytes::from(input)).encode(&mut frames);
    }
    if close == Some(true) {
        Frame::StdinEnd.encode(&mut frames);
    }
    let path = format!("exec/{exec}/input");
    let send = async {
        let body = Body::from(frames.freeze());
        let mut taken = call.app.guest(&live, Method::POST, &path, HeaderMap::new(), body).await?.into_body();
        // The answer ends once all of it has arrived.
        while let Some(Ok(_)) = taken.frame().await {}
        Ok::<_, Error>(())
    };
    tokio::time::timeout(INPUT_WITHIN, send)
        .await
        .unwrap_or_else(|_| Err(Error::unavailable("the sandbox does not take the input")))?;
    let ended = if close == Some(true) { " and closed its input" } else { "" };
    let said = format!("sent {bytes} bytes to process {exec}{ended}");
    Ok(Output::new(said, json!({"process_id": exec.as_str(), "bytes": bytes})))
}

#[derive(Deserialize)]
struct Kill {
    process_id: String,
    signal: Option<String>,
}

pub(super) async fn kill(call: Call, input: Value) -> Result<Output, Error> {
    let Kill { process_id, signal } = input::decode(input)?;
    let live = call.live().await?;
    let exec = input::exec_id("process_id", &process_id)?;
    let name = signal.as_deref().unwrap_or("KILL");
    let number = match name {
        "HUP" => 1,
        "INT" => 2,
        "QUIT" => 3,
        "USR1" => 10,
        "USR2" => 12,
        "TERM" => 15,
        _ => 9,
    };
    call.app
        .kill_exec(&live, &exec, &ExecKill { signal: Some(number) })
        .await
        .map_err(|error| input::explain_absent(error, &exec))?;
    let known = call.app.wait_exec(&live, &exec, ENDS_WITHIN_MS).await?;
    let said = match known.exit {
        Some(exit) => format!("process {exec} has ended: {}", ending(exit)),
        None => format!("sent {name} to process {exec}, which is still running; KILL ends it for certain"),
    };
    let structured = json!({
        "process_id": exec.as_str(), "running": known.exit.is_none(), "exit_code": known.exit.map(|exit| exit.code),
    });
    Ok(Output::new(said, structured))
}

pub(super) async fn list(call: Call, _: Value) -> Result<Output, Error> {
    let live = call.live().await?;
    let mut sessions = call.app.list_execs(&live).await?;
    sessions.sort_by_key(|session| (!session.running, std::cmp::Reverse(session.started_at)));
    let more = sessions.len().saturating_sub(MAX_LISTED);
    sessions.truncate(MAX_LISTED);
    let mut said = String::new();
    for session in &sessions {
        let state = match session.exit_code {
            Some(code) => format!("exit code {code}"),
            None => "running".to_owned(),
        };
        said.push_str(&format!("{}  {state}  {}\n", session.session_id, command_of(session)));
    }
    if sessions.is_empty() {
        said.push_str("no command runs, and none has ended within the last 10 minutes");
    }
    if more > 0 {
        text::push_note(&mut said, &format!("and {more} more that have ended"));
    }
    let rows: Vec<Value> = sessions
        .iter()
        .map(|session| {
            json!({
                "id": session.session_id, "command": command_of(session), "running": session.running,
                "exit_code": session.exit_code, "started_at": session.started_at.to_string(),
            })
        })
        .collect();
    Ok(Output::new(said, json!({"processes": rows})))
}

/// A command as it was given: without the shell that reads it.
fn command_of(session: &ExecSession) -> String {
    let line = match session.args.as_slice() {
        [flag, line] if flag == "-c" => line.clone(),
        args => {
            std::iter::once(&session.command).chain(args).map(String::as_str).collect::<Vec<_>>().join(" ")
        }
    };
    let mut shown: String = text::name(&line).chars().take(MAX_COMMAND_CHARS).collect();
    if shown.len() < line.len() {
        shown.push('…');
    }
    shown
}
