//! Output of a command as it arrives, and a bounded collection of it.

use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt;
use warren_guest_api::exec::{Exit, ExitReason};
use warren_guest_api::frame::Frame;
use warren_types::{Error, ErrorKind, ExecId};

use super::frames::Frames;
use crate::app::audit;

const TIMED_OUT: &str = "\nProcess timed out";

/// Frames of one command or terminal. After [`Frame::Exit`] there is nothing more to ask for; an end without it is
/// an error, because nobody knows then how the command ended.
#[derive(Debug)]
pub(crate) struct OutputStream {
    frames: Frames,
    /// What comes is the rest of a line whose beginning is no longer there; it is left out.
    in_cut_line: bool,
    /// Told how the command ended.
    on_exit: Option<audit::Exit>,
}

/// Output that fits in memory.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

// === impl OutputStream ===

impl OutputStream {
    pub(crate) fn new(body: Body) -> Self {
        Self { frames: Frames::new(body), in_cut_line: false, on_exit: None }
    }

    /// Leaves standard output out up to the end of the line it is in.
    pub(super) fn begin_with_a_line(&mut self) {
        self.in_cut_line = true;
    }

    /// Has the end of the command recorded when it comes by.
    pub(super) fn record_exit(&mut self, exit: audit::Exit) {
        self.on_exit = Some(exit);
    }

    pub(crate) async fn next(&mut self) -> Result<Frame, Error> {
        loop {
            let next = self.frames.next().await.map_err(|error| lost(&error))?;
            match next.ok_or_else(|| lost(&"it ended without saying how the command did"))? {
                Frame::Stdout(mut bytes) if self.in_cut_line => {
                    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { continue };
                    self.in_cut_line = false;
                    drop(bytes.split_to(end + 1));
                    if !bytes.is_empty() {
                        return Ok(Frame::Stdout(bytes));
                    }
                }
                Frame::Exit(exit) => {
                    if let Some(on_exit) = self.on_exit.take() {
                        on_exit.seen(exit.code);
                    }
                    return Ok(Frame::Exit(exit));
                }
                frame => return Ok(frame),
            }
        }
    }

    /// Takes the frame that every stream of a command starts with: its id and the offset of what follows.
    pub(crate) async fn started(&mut self) -> Result<(ExecId, u64), Error> {
        let bad = || Error::new(ErrorKind::SandboxFailed, "the sandbox did not say which command it started");
        match self.next().await? {
            Frame::Started { id, offset } => {
                let id = std::str::from_utf8(&id).ok().and_then(|id| id.parse().ok()).ok_or_else(bad)?;
                Ok((id, offset))
            }
            _ => Err(bad()),
        }
    }
}

fn lost(cause: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorKind::SandboxFailed, format!("the output of the command was lost: {cause}"))
}

// === impl Collected ===

impl Collected {
    pub(crate) fn len(&self) -> usize {
        self.stdout.len() + self.stderr.len()
    }

    pub(crate) fn push(&mut self, frame: Frame) {
        match frame {
            Frame::Stdout(bytes) => self.stdout.extend_from_slice(&bytes),
            Frame::Stderr(bytes) => self.stderr.extend_from_slice(&bytes),
            Frame::Stdin(_)
            | Frame::Exit(_)
            | Frame::ReplayEnd
            | Frame::StdinEnd
            | Frame::Started { .. }
            | Frame::InputTaken(_) => {}
        }
    }

    /// The two streams as text; what is not UTF-8 is replaced. A time limit that struck is told at the end.
    pub(crate) fn into_text(self, exit: Option<Exit>) -> (String, String) {
        let mut stderr = text(self.stderr);
        stderr.push_str(told_in_stderr(exit));
        (text(self.stdout), stderr)
    }
}

/// What clients expect at the end of standard error when the time limit ended a command.
pub(crate) fn told_in_stderr(exit: Option<Exit>) -> &'static str {
    match exit.map(|exit| exit.reason) {
        Some(ExitReason::TimedOut) => TIMED_OUT,
        Some(ExitReason::Exited | ExitReason::Signalled | ExitReason::Abandoned) | None => "",
    }
}

/// What the same place says when the beginning of the output is missing from an answer.
pub(crate) fn missing_in_stderr(missing: u64) -> String {
    match missing {
        0 => String::new(),
        _ => format!(
            "\nThe first {missing} bytes of output are missing: the command wrote more than is kept of it\n"
        ),
    }
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// Raw output of a finished command, piece by piece.
pub(crate) async fn next_piece(body: &mut Body) -> Result<Option<Bytes>, Error> {
    loop {
        match body.frame().await {
            Some(Ok(piece)) => {
                if let Ok(bytes) = piece.into_data() {
                    return Ok(Some(bytes));
                }
            }
            Some(Err(error)) => return Err(lost(&error)),
            None => return Ok(None),
        }
    }
}
