//! Output of commands from their logs: by offset, over both streams in the order in which they were read.

use std::time::Duration;

use axum::body::Body;
use http::{HeaderMap, Method};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;
use warren_guest_api::exec::{Exec, Exit, ExitReason};
use warren_guest_api::frame::Frame;
use warren_types::{Error, ExecId};

use super::{Call, Output, input, text};
use crate::app::App;
use crate::app::auth::Live;
use crate::app::exec::output::OutputStream;

/// Output that stands still for so long is shown, when some of it has come.
const QUIET: Duration = Duration::from_millis(300);

/// A stretch of a command's log.
#[derive(Debug)]
pub(super) struct Stretch {
    /// Where it starts; later than asked for when older output is not kept any more.
    pub start: u64,
    pub bytes: Vec<u8>,
    /// Present when all of its output has been read and it has ended.
    pub exit: Option<Exit>,
}

impl Stretch {
    pub(super) fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

/// Reads at most `most` bytes from `offset` on: what there is, and what comes within `wait`.
pub(super) async fn read_log(
    app: &App,
    live: &Live,
    exec: &ExecId,
    (offset, most): (u64, usize),
    wait: Duration,
) -> Result<Stretch, Error> {
    let path = format!("exec/{exec}/attach?offset={offset}");
    let answer = app.guest(live, Method::POST, &path, HeaderMap::new(), Body::empty()).await?;
    let mut output = OutputStream::new(answer.into_body());
    let (_, start) = output.started().await?;
    let mut stretch = Stretch { start, bytes: Vec::new(), exit: None };
    let (deadline, mut replayed) = (Instant::now() + wait, false);
    while stretch.bytes.len() < most {
        let until = match (replayed, stretch.bytes.is_empty()) {
            // What is kept comes at once; this is for an agent that does not send it.
            (false, _) => deadline + Duration::from_secs(10),
            (true, true) => deadline,
            (true, false) => deadline.min(Instant::now() + QUIET),
        };
        let Ok(frame) = tokio::time::timeout_at(until, output.next()).await else { break };
        match frame? {
            Frame::Stdout(bytes) | Frame::Stderr(bytes) => {
                let room = most - stretch.bytes.len();
                stretch.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
            Frame::ReplayEnd => replayed = true,
            Frame::Exit(exit) => {
                stretch.exit = Some(exit);
                break;
            }
            Frame::Stdin(_) | Frame::StdinEnd | Frame::Started { .. } | Frame::InputTaken(_) => {}
        }
    }
    Ok(stretch)
}

/// How a command ended, in words.
pub(super) fn ending(exit: Exit) -> String {
    match exit.reason {
        ExitReason::Exited => format!("exit code {}", exit.code),
        ExitReason::Signalled => format!("ended by signal {}, exit code {}", exit.code - 128, exit.code),
        ExitReason::TimedOut => "ended by its time limit".to_owned(),
        ExitReason::Abandoned => "ended because its last client left".to_owned(),
    }
}

#[derive(Deserialize)]
struct ReadOutput {
    #[serde(alias = "process_id")]
    exec_id: String,
    offset: Option<u64>,
    max_bytes: Option<usize>,
    wait_seconds: Option<u64>,
}

/// `sandbox_read_output` and `sandbox_process_output`.
pub(super) async fn read(call: Call, input: Value) -> Result<Output, Error> {
    let input: ReadOutput = input::decode(input)?;
    let live = call.live().await?;
    let exec = input::exec_id("the id", &input.exec_id)?;
    let known =
        call.app.wait_exec(&live, &exec, 0).await.map_err(|error| input::explain_absent(error, &exec))?;
    let most = input.max_bytes.unwrap_or(text::DEFAULT_BYTES);
    let newest = known.log_end.saturating_sub(most as u64).max(known.log_start);
    let offset = input.offset.unwrap_or(newest);
    if offset > known.log_end {
        return Err(Error::invalid(format!(
            "offset {offset} is behind the end of the output, which has {} bytes so far",
            known.log_end
        )));
    }
    let wait = Duration::from_secs(input.wait_seconds.unwrap_or(0));
    let stretch = read_log(&call.app, &live, &exec, (offset, most), wait).await?;
    // The end of what has ended is known even where it was not read up to it.
    let known = if stretch.exit.is_some() { known } else { call.app.wait_exec(&live, &exec, 0).await? };
    Ok(shown(&exec, &known, offset, &stretch))
}

fn shown(exec: &ExecId, known: &Exec, asked: u64, stretch: &Stretch) -> Output {
    let exit = stretch.exit.or(known.exit);
    let end = stretch.end();
    let log_end = known.log_end.max(end);
    let mut said = text::lossy(&stretch.bytes);
    if stretch.start > asked {
        said.insert_str(0, &format!("[bytes {asked} to {} are not kept any more]\n", stretch.start));
    }
    let mut note = match exit {
        Some(exit) => ending(exit),
        None => "still running".to_owned(),
    };
    if end < log_end {
        note.push_str(&format!("; output of {log_end} bytes so far, more from offset {end} on"));
    } else {
        note.push_str(&format!("; the next offset is {end}"));
    }
    text::push_note(&mut said, &note);
    let structured = json!({
        "id": exec.as_str(), "running": exit.is_none(), "exit_code": exit.map(|exit| exit.code),
        "timed_out": exit.is_some_and(|exit| exit.reason == ExitReason::TimedOut),
        "offset": stretch.start, "next_offset": end, "total_bytes": log_end,
    });
    Output::new(said, structured)
}
