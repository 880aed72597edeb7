//! Frames: how live input and output travel inside request and response bodies.
//!
//! ```text
//! kind u8 | length u32 big-endian | payload
//! ```
//!
//! The kinds and payloads equal those of the public exec WebSocket, so that what stands between client and agent
//! passes payloads on without touching them. A stream of output ends with exactly one [`Frame::Exit`]; a stream
//! that ends without it is *lost*, and nobody invents a code for it.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::exec::{Exit, ExitReason};

/// Largest payload, in bytes.
pub const MAX_PAYLOAD: usize = 4 * 1024 * 1024;
/// What a frame adds to its payload, in bytes.
pub const HEADER: usize = 5;

pub const STDIN: u8 = 0;
pub const STDOUT: u8 = 1;
pub const STDERR: u8 = 2;
pub const EXIT: u8 = 3;
pub const REPLAY_END: u8 = 4;
pub const STDIN_END: u8 = 5;
pub const STARTED: u8 = 6;
pub const INPUT_TAKEN: u8 = 7;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Bytes for the command's standard input.
    Stdin(Bytes),
    Stdout(Bytes),
    Stderr(Bytes),
    /// The command has ended. Payload: code as big-endian `i32`, then one byte for the reason.
    Exit(Exit),
    /// What follows is live. Payload: none.
    ReplayEnd,
    /// No more standard input will come. Payload: none.
    StdinEnd,
    /// The command is running, or the reader is attached. Payload: id, then the offset of the first byte that follows as
    /// big-endian `u64`.
    Started {
        id: [u8; 8],
        offset: u64,
    },
    /// So many more bytes of input may be sent, see [`crate::input`]. Payload: their number as big-endian `u32`.
    InputTaken(u32),
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {0} bytes is larger than {MAX_PAYLOAD}")]
    TooLarge(usize),
    #[error("unknown frame kind {0}")]
    UnknownKind(u8),
    #[error("a frame of kind {kind} cannot have a payload of {length} bytes")]
    BadPayload { kind: u8, length: usize },
}

impl Frame {
    /// Appends the frame; output payloads are better sent as [`Frame::header`] and the bytes themselves.
    pub fn encode(&self, into: &mut BytesMut) {
        let mut put = |kind: u8, payload: &[u8]| {
            into.reserve(HEADER + payload.len());
            into.put_slice(&Self::header(kind, payload.len()));
            into.put_slice(payload);
        };
        match self {
            Self::Stdin(bytes) => put(STDIN, bytes),
            Self::Stdout(bytes) => put(STDOUT, bytes),
            Self::Stderr(bytes) => put(STDERR, bytes),
            Self::Exit(exit) => {
                let mut payload = [0; 5];
                payload[..4].copy_from_slice(&exit.code.to_be_bytes());
                payload[4] = reason_byte(exit.reason);
                put(EXIT, &payload);
            }
            Self::ReplayEnd => put(REPLAY_END, &[]),
            Self::StdinEnd => put(STDIN_END, &[]),
            Self::Started { id, offset } => {
                let mut payload = [0; 16];
                payload[..8].copy_from_slice(id);
                payload[8..].copy_from_slice(&offset.to_be_bytes());
                put(STARTED, &payload);
            }
            Self::InputTaken(bytes) => put(INPUT_TAKEN, &bytes.to_be_bytes()),
        }
    }

    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        let mut bytes = BytesMut::new();
        self.encode(&mut bytes);
        bytes.freeze()
    }

    /// The five bytes that precede a payload of `length` bytes.
    #[must_use]
    pub fn header(kind: u8, length: usize) -> [u8; HEADER] {
        let length = u32::try_from(length).expect("payloads are cut to MAX_PAYLOAD by whoever sends them");
        let [a, b, c, d] = length.to_be_bytes();
        [kind, a, b, c, d]
    }
}

fn reason_byte(reason: ExitReason) -> u8 {
    match reason {
        ExitReason::Exited => 0,
        ExitReason::Signalled => 1,
        ExitReason::TimedOut => 2,
        ExitReason::Abandoned => 3,
    }
}

/// Cuts a byte stream into frames. Feed it with [`Decoder::push`]; take whole frames with [`Decoder::next_frame`].
///
/// Holds at most one frame and what was pushed after it.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
}

impl Decoder {
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Takes the next whole frame, or `None` until more bytes come. After an error the stream is of no more use.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        if self.buffer.len() < HEADER {
            return Ok(None);
        }
        let kind = self.buffer[0];
        let length =
            u32::from_be_bytes([self.buffer[1], self.buffer[2], self.buffer[3], self.buffer[4]]) as usize;
        check(kind, length)?;
        if self.buffer.len() < HEADER + length {
            self.buffer.reserve(HEADER + length - self.buffer.len());
            return Ok(None);
        }
        self.buffer.advance(HEADER);
        let payload = self.buffer.split_to(length).freeze();
        parse(kind, payload).map(Some)
    }

    /// Whether the stream stands between two frames.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }
}

/// Refuses a header before its payload is waited for.
fn check(kind: u8, length: usize) -> Result<(), FrameError> {
    if length > MAX_PAYLOAD {
        return Err(FrameError::TooLarge(length));
    }
    let fits = match kind {
        STDIN | STDOUT | STDERR => true,
        EXIT => length == 5,
        REPLAY_END | STDIN_END => length == 0,
        STARTED => length == 16,
        INPUT_TAKEN => length == 4,
        _ => return Err(FrameError::UnknownKind(kind)),
    };
    if fits { Ok(()) } else { Err(FrameError::BadPayload { kind, length }) }
}

fn parse(kind: u8, payload: Bytes) -> Result<Frame, FrameError> {
    let bad = FrameError::BadPayload { kind, length: payload.len() };
    Ok(match kind {
        STDIN => Frame::Stdin(payload),
        STDOUT => Frame::Stdout(payload),
        STDERR => Frame::Stderr(payload),
        EXIT => {
            let code: [u8; 4] = payload.get(..4).and_then(|code| code.try_into().ok()).ok_or(bad)?;
            let reason = match payload.get(4) {
                Some(0) => ExitReason::Exited,
                Some(1) => ExitReason::Signalled,
                Some(2) => ExitReason::TimedOut,
                Some(3) => ExitReason::Abandoned,
                _ => return Err(FrameError::BadPayload { kind, length: payload.len() }),
            };
            Frame::Exit(Exit { code: i32::from_be_bytes(code), reason })
        }
        REPLAY_END => Frame::ReplayEnd,
        STDIN_END => Frame::StdinEnd,
        STARTED => {
            let id: [u8; 8] = payload.get(..8).and_then(|id| id.try_into().ok()).ok_or(bad)?;
            let offset: [u8; 8] = payload
                .get(8..)
                .and_then(|offset| offset.try_into().ok())
                .ok_or(FrameError::BadPayload { kind, length: payload.len() })?;
            Frame::Started { id, offset: u64::from_be_bytes(offset) }
        }
        INPUT_TAKEN => {
            let bytes: [u8; 4] = payload[..].try_into().map_err(|_| bad)?;
            Frame::InputTaken(u32::from_be_bytes(bytes))
        }
        _ => return Err(FrameError::UnknownKind(kind)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_frame() -> impl Strategy<Value = Frame> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from);
        let reason = prop_oneof![
            Just(ExitReason::Exited),
            Just(ExitReason::Signalled),
            Just(ExitReason::TimedOut),
            Just(ExitReason::Abandoned)
        ];
        prop_oneof![
            bytes().prop_map(Frame::Stdin),
            bytes().prop_map(Frame::Stdout),
            bytes().prop_map(Frame::Stderr),
            (any::<i32>(), reason).prop_map(|(code, reason)| Frame::Exit(Exit { code, reason })),
            Just(Frame::ReplayEnd),
            Just(Frame::StdinEnd),
            (any::<[u8; 8]>(), any::<u64>()).prop_map(|(id, offset)| Frame::Started { id, offset }),
            any::<u32>().prop_map(Frame::InputTaken),
        ]
    }

    proptest! {
        #[test]
        fn frames_survive_any_cutting(frames in proptest::collection::vec(any_frame(), 0..20), cut in 1usize..64) {
            let mut wire = BytesMut::new();
            for frame in &frames {
                frame.encode(&mut wire);
            }
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for piece in wire.chunks(cut) {
                decoder.push(piece);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    seen.push(frame);
                }
            }
            prop_assert!(decoder.is_empty());
            prop_assert_eq!(seen, frames);
        }

        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut decoder = Decoder::default();
            decoder.push(&noise);
            while let Ok(Some(_)) = decoder.next_frame() {}
        }
    }

    #[test]
    fn a_huge_length_is_refused_before_it_is_buffered() {
        let mut decoder = Decoder::default();
        decoder.push(&[STDOUT, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(decoder.next_frame(), Err(FrameError::TooLarge(0xffff_ffff)));
    }
}
