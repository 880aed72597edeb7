//! What commands have come to, kept for the agent that comes after this one: a container's ends when it hibernates, and whoever
//! asks for a result after that is to have it. What still ran ends with the agent, and is kept as that.
//!
//! A file: a line that names the sandbox, then for each command, newest first, its [`Exec`] as JSON and its newest output as
//! frames, both with their length in front. It is read once and removed. A disk that was copied into another sandbox has it
//! too, and there it means nothing.

use std::fs;
use std::future::poll_fn;
use std::io;
use std::path::Path;
use std::rc::Rc;

use bytes::{Buf, Bytes, BytesMut};
use warren_guest_api::exec::{Exec, Exit, ExitReason, REPLAY_BYTES};
use warren_guest_api::frame::{Decoder, Frame};
use warren_types::SandboxId;

use super::Command;
use crate::clock::now_ms;
use crate::log::{Batch, Stream};

/// What is kept of all commands together, in bytes.
const MAX_BYTES: usize = 16 * 1024 * 1024;
const KILLED: Exit = Exit { code: 128 + 9, reason: ExitReason::Signalled };

/// One command as it is read again.
pub(super) struct Kept {
    pub(super) exec: Exec,
    pub(super) output: Vec<(Stream, Bytes)>,
}

/// What is written of `commands`, oldest first in that list.
pub(super) async fn encode(sandbox: &SandboxId, commands: &[Rc<Command>]) -> Bytes {
    let mut text = BytesMut::from(header(sandbox).as_str());
    for command in commands.iter().rev() {
        let mut exec = command.view();
        let output = newest_output(command).await;
        if exec.exit.is_none() {
            (exec.running, exec.exit, exec.ended_at_ms) = (false, Some(KILLED), Some(now_ms()));
        }
        exec.attached_clients = 0;
        exec.log_start = output.start;
        exec.log_end = output.end;
        let Ok(json) = serde_json::to_vec(&exec) else { continue };
        if text.len() + json.len() + output.frames.len() > MAX_BYTES {
            break;
        }
        for part in [&json[..], &output.frames] {
            // Shorter than all may be together.
            text.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
            text.extend_from_slice(part);
        }
    }
    text.freeze()
}

struct Output {
    start: u64,
    end: u64,
    frames: BytesMut,
}

/// As much as is replayed to who attaches.
async fn newest_output(command: &Command) -> Output {
    let end = command.output.end();
    let start = command.output.replay_start(REPLAY_BYTES);
    let mut reader = command.output.reader(start, false);
    let mut output = Output { start: reader.at(), end, frames: BytesMut::new() };
    while let Some(Ok(batch)) = poll_fn(|context| reader.poll_batch(end, context)).await {
        match batch {
            Batch::Frames(frames, _) => output.frames.extend_from_slice(&frames),
            Batch::One(stream, bytes) => {
                output.frames.extend_from_slice(&Frame::header(stream.kind(), bytes.len()));
                output.frames.extend_from_slice(&bytes);
            }
        }
    }
    output
}

/// Puts it in its place at once.
pub(super) fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    let unfinished = path.with_added_extension("unfinished");
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(&unfinished, text)?;
    fs::rename(unfinished, path)
}

/// What the agent before this one has kept, oldest first, and not any more. Nothing where it was another sandbox's or is not
/// what was written.
pub(super) fn take(path: &Path, sandbox: &SandboxId) -> Vec<Kept> {
    let size = fs::symlink_metadata(path).map_or(0, |meta| if meta.is_file() { meta.len() } else { 0 });
    let text = if (1..=MAX_BYTES as u64).contains(&size) { fs::read(path).ok() } else { None };
    let _ = fs::remove_file(path);
    let mut kept = text.and_then(|text| decode(Bytes::from(text), sandbox)).unwrap_or_default();
    kept.reverse();
    kept
}

fn header(sandbox: &SandboxId) -> String {
    format!("warren-kept 1 {sandbox}\n")
}

fn decode(mut text: Bytes, sandbox: &SandboxId) -> Option<Vec<Kept>> {
    let header = header(sandbox);
    if !text.starts_with(header.as_bytes()) {
        return None;
    }
    text.advance(header.len());
    let mut kept = Vec::new();
    while !text.is_empty() {
        let exec: Exec = serde_json::from_slice(&part(&mut text)?).ok()?;
        let mut decoder = Decoder::default();
        decoder.push(&part(&mut text)?);
        let mut output = Vec::new();
        while let Some(frame) = decoder.next_frame().ok()? {
            match frame {
                Frame::Stdout(bytes) => output.push((Stream::Stdout, bytes)),
                Frame::Stderr(bytes) => output.push((Stream::Stderr, bytes)),
                _ => return None,
            }
        }
        let length = output.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>();
        let is_whole = exec.exit.is_some() && exec.log_end.checked_sub(exec.log_start) == Some(length);
        (is_whole && length <= 2 * REPLAY_BYTES).then(|| kept.push(Kept { exec, output }))?;
    }
    Some(kept)
}

fn part(text: &mut Bytes) -> Option<Bytes> {
    let length = usize::try_from(text.try_get_u32().ok()?).ok()?;
    (length <= text.len()).then(|| text.split_to(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox() -> SandboxId {
        "sb-0a1b2c3d".parse().unwrap()
    }

    fn text(exit: Option<Exit>, output: &[u8]) -> Vec<u8> {
        let exec = Exec {
            id: "0a1b2c3d".parse().unwrap(),
            cmd: "x".into(),
            args: Vec::new(),
            running: false,
            exit,
            started_at_ms: 1,
            ended_at_ms: Some(2),
            attached_clients: 0,
            log_start: 7,
            log_end: 7 + output.len() as u64,
        };
        let json = serde_json::to_vec(&exec).unwrap();
        let frame = Frame::Stdout(Bytes::copy_from_slice(output)).to_bytes();
        let mut text = header(&sandbox()).into_bytes();
        for part in [&json[..], &frame] {
            text.extend_from_slice(&u32::try_from(part.len()).unwrap().to_be_bytes());
            text.extend_from_slice(part);
        }
        text
    }

    #[test]
    fn what_is_not_what_was_written_is_not_taken() {
        let whole = text(Some(KILLED), b"said");
        let kept = decode(whole.clone().into(), &sandbox()).unwrap();
        assert_eq!(
            (kept.len(), kept[0].exec.exit, &kept[0].output[0].1[..]),
            (1, Some(KILLED), &b"said"[..])
        );
        assert!(
            decode(whole.clone().into(), &"sb-0a1b2c3e".parse().unwrap()).is_none(),
            "of another sandbox"
        );
        assert!(decode(text(None, b"said").into(), &sandbox()).is_none(), "it cannot be running");
        for length in header(&sandbox()).len() + 1..whole.len() {
            assert!(decode(whole[..length].to_vec().into(), &sandbox()).is_none(), "cut at {length}");
        }
    }
}
