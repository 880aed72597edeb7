//! What commands have come to, kept for the agent that comes after this one: an agent ends when its container hibernates, or its
//! sandbox is started anew, and whoever asks for a result after that is to have it. What still runs ends with the agent, and is
//! kept as that.
//!
//! A line that says what it is, then for each command, newest first, its [`Exec`] as JSON and its newest output as frames, both
//! with their length in front. The node has it from one agent to the next, so it goes with the sandbox and not with its disk.

use std::future::poll_fn;
use std::rc::Rc;

use bytes::{Buf, Bytes, BytesMut};
use warren_guest_api::exec::{Exec, Exit, ExitReason, KEPT_BYTES, REPLAY_BYTES};
use warren_guest_api::frame::{Decoder, Frame};

use super::Command;
use crate::clock::now_ms;
use crate::log::{Batch, Stream};

const HEADER: &[u8] = b"warren-kept 2\n";
const KILLED: Exit = Exit { code: 128 + 9, reason: ExitReason::Signalled };

/// One command as it is read again.
pub(super) struct Kept {
    pub(super) exec: Exec,
    pub(super) output: Vec<(Stream, Bytes)>,
}

/// What is written of `commands`, oldest first in that list.
pub(super) async fn encode(commands: &[Rc<Command>]) -> Bytes {
    let mut text = BytesMut::from(HEADER);
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
        if text.len() + json.len() + output.frames.len() + 2 * size_of::<u32>() > KEPT_BYTES {
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

/// What an earlier agent has told, oldest first; `None` where that is not what was told.
pub(super) fn decode(text: Bytes) -> Option<Vec<Kept>> {
    let mut kept = decode_newest_first(text)?;
    kept.reverse();
    Some(kept)
}

fn decode_newest_first(mut text: Bytes) -> Option<Vec<Kept>> {
    if !text.starts_with(HEADER) {
        return None;
    }
    text.advance(HEADER.len());
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
        let mut text = HEADER.to_vec();
        for part in [&json[..], &frame] {
            text.extend_from_slice(&u32::try_from(part.len()).unwrap().to_be_bytes());
            text.extend_from_slice(part);
        }
        text
    }

    #[test]
    fn what_is_not_what_was_written_is_not_taken() {
        let whole = text(Some(KILLED), b"said");
        let kept = decode(whole.clone().into()).unwrap();
        assert_eq!(
            (kept.len(), kept[0].exec.exit, &kept[0].output[0].1[..]),
            (1, Some(KILLED), &b"said"[..])
        );
        assert!(decode(text(None, b"said").into()).is_none(), "it cannot be running");
        for length in HEADER.len() + 1..whole.len() {
            assert!(decode(whole[..length].to_vec().into()).is_none(), "cut at {length}");
        }
    }
}
