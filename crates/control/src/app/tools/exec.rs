//! `sandbox_exec`: a command to its end, with the head and the tail of what it says.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};
use warren_guest_api::exec::{Exec, Exit, ExitReason};
use warren_guest_api::frame::Frame;
use warren_types::{Error, ErrorKind, ExecId};

use super::output::{ending, read_log};
use super::running::{CommandLine, open};
use super::{Call, Output, input, text};
use crate::app::auth::Live;
use crate::app::exec::watched::Watched;

const DEFAULT_SECONDS: u64 = 120;
/// Output that is held here; of more, the command's log is asked for the end. At least what is shown at most.
const HELD_BYTES: usize = 2 * text::MAX_BYTES;
/// One turn of waiting for a command that says too much to be held.
const TURN_MS: u64 = 10_000;

#[derive(Deserialize)]
struct ExecInput {
    command: String,
    cwd: Option<String>,
    timeout_seconds: Option<u64>,
    env: Option<BTreeMap<String, String>>,
    max_bytes: Option<usize>,
}

/// What a command came to.
struct Ran {
    exec: ExecId,
    exit: Exit,
    elapsed: Duration,
    /// Bytes it wrote.
    total: u64,
    /// The beginning, or all of it.
    head: Vec<u8>,
    /// The end, where the beginning is not all of it.
    tail: Vec<u8>,
}

pub(super) async fn run(call: Call, input: Value) -> Result<Output, Error> {
    let input: ExecInput = input::decode(input)?;
    let live = call.live().await?;
    let most = input.max_bytes.unwrap_or(text::DEFAULT_BYTES);
    let line = CommandLine {
        command: input.command,
        cwd: input.cwd,
        env: input.env,
        timeout_seconds: Some(input.timeout_seconds.unwrap_or(DEFAULT_SECONDS)),
    };
    Ok(to_its_end(&call, &live, &line, most).await?.shown())
}

async fn to_its_end(call: &Call, live: &Live, line: &CommandLine, most: usize) -> Result<Ran, Error> {
    let app = &call.app;
    let started = Instant::now();
    let [first, second] = line.bodies()?;
    let Watched { mut output, exec, guard } = match open(app, live, first).await {
        Err(error) if error.kind == ErrorKind::Invalid => open(app, live, second).await?,
        other => other?,
    };
    let mut held = Vec::new();
    let exit = loop {
        match output.next().await {
            Ok(Frame::Stdout(bytes) | Frame::Stderr(bytes)) => held.extend_from_slice(&bytes),
            Ok(Frame::Exit(exit)) => break Some(exit),
            Ok(_) => {}
            Err(error) => {
                // Its sandbox has ended or sleeps; ending the command would wake it.
                guard.leave();
                return Err(error);
            }
        }
        if held.len() > HELD_BYTES {
            break None;
        }
    };
    drop(output);
    let (exit, total) = match exit {
        Some(exit) => (exit, held.len() as u64),
        None => wait_for_end(call, live, &exec).await?,
    };
    guard.leave();
    let elapsed = started.elapsed();
    if total <= most as u64 {
        return Ok(Ran { exec, exit, elapsed, total, head: held, tail: Vec::new() });
    }
    let tail = if total == held.len() as u64 {
        text::tail(&held, most / 2).to_vec()
    } else {
        let offset = total.saturating_sub(most as u64 / 2);
        let stretch = read_log(app, live, &exec, (offset, most / 2), Duration::ZERO).await?;
        text::uncut(&stretch.bytes).to_vec()
    };
    held.truncate(text::head(&held, most / 2).len());
    Ok(Ran { exec, exit, elapsed, total, head: held, tail })
}

/// Waits for a command that goes on by itself; how it ended, and how much it wrote.
async fn wait_for_end(call: &Call, live: &Live, exec: &ExecId) -> Result<(Exit, u64), Error> {
    loop {
        let found: Exec = call.app.wait_exec(live, exec, TURN_MS).await?;
        match found.exit {
            Some(exit) => return Ok((exit, found.log_end)),
            None if found.running => {}
            None => {
                return Err(Error::new(
                    ErrorKind::SandboxFailed,
                    "the sandbox does not know how the command ended",
                ));
            }
        }
    }
}

impl Ran {
    fn shown(self) -> Output {
        let Self { exec, exit, elapsed, total, head, tail } = self;
        let mut said = text::lossy(&head);
        let (from, to) = (head.len() as u64, total.saturating_sub(tail.len() as u64));
        let truncated = from < total;
        if truncated {
            text::push_note(
                &mut said,
                &format!(
                    "… {} of {total} bytes left out: sandbox_read_output with exec_id {exec} and offset {from} reads them …",
                    to.saturating_sub(from)
                ),
            );
            said.push('\n');
            said.push_str(&text::lossy(&tail));
        }
        let seconds = elapsed.as_secs_f64();
        text::push_note(&mut said, &format!("{} after {seconds:.1} s", ending(exit)));
        let structured = json!({
            "exec_id": exec.as_str(), "exit_code": exit.code, "timed_out": exit.reason == ExitReason::TimedOut,
            "seconds": (seconds * 1000.0).round() / 1000.0, "total_bytes": total, "truncated": truncated,
            "left_out": truncated.then(|| json!({"from": from, "to": to})),
        });
        Output::new(said, structured)
    }
}
