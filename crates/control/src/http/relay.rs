//! Between a WebSocket and an attached command or terminal.
//!
//! Two halves run side by side so that input which nobody reads never holds output up. Output is taken only when
//! the piece before is handed on: a slow client slows the command, not this server's memory. Input is read ahead of
//! the command, up to a limit: only who reads the socket sees that its client pings or leaves.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use warren_api::{exec_frame, pty_end};
use warren_guest_api::frame::{Frame, MAX_PAYLOAD};
use warren_guest_api::text::whole_characters;

use crate::app::exec::attach::{Attached, Input};
use crate::app::exec::output::OutputStream;

/// Largest message a client may send.
pub(super) const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;
/// Output sent in one message, at most.
const MAX_OUTPUT_BYTES: usize = 256 * 1024;
/// How long a connection may be silent before a sign of life is sent.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// The same while so much input is pending that the socket is not read: writing is then the only way to learn that the
/// client has gone.
const KEEP_ALIVE_UNREAD: Duration = Duration::from_secs(2);
/// Input that may wait for a command to read it; the message that goes beyond it is kept as well.
const MAX_PENDING_BYTES: usize = 4 * 1024 * 1024;
/// What keeping a message costs besides its bytes, so that small ones count.
const PENDING_OVERHEAD: usize = 64;
/// How long a command may take over a piece of what a client that has left had still sent.
const LEFT_GRACE: Duration = Duration::from_secs(2);
/// How long a client may take to answer a close.
const CLOSE_GRACE: Duration = Duration::from_secs(2);

/// How frames look to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// Binary messages whose first byte is the kind.
    Exec,
    /// Raw bytes.
    Pty,
}

/// Why a relay ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// With that code.
    Exited(i32),
    /// The output broke off: how the command ended is not known.
    Lost,
    ClientLeft,
    ClientBroke,
    MessageTooLarge,
    Stopping,
}

// === impl Protocol ===

impl Protocol {
    /// Output as messages; none for what this protocol does not show.
    fn messages(self, frame: Frame) -> Vec<Message> {
        match (self, frame) {
            (Self::Exec, Frame::Stdout(bytes)) => pieces(exec_frame::STDOUT, &bytes),
            (Self::Exec, Frame::Stderr(bytes)) => pieces(exec_frame::STDERR, &bytes),
            (Self::Exec, Frame::Exit(exit)) => {
                let [a, b, c, d] = exit.code.to_be_bytes();
                vec![Message::Binary(Bytes::copy_from_slice(&[exec_frame::EXIT, a, b, c, d]))]
            }
            (Self::Exec, Frame::ReplayEnd) => {
                vec![Message::Binary(Bytes::from_static(&[exec_frame::REPLAY_END]))]
            }
            (Self::Pty, Frame::Stdout(mut bytes)) => {
                let mut messages = Vec::with_capacity(bytes.len().div_ceil(MAX_OUTPUT_BYTES));
                while !bytes.is_empty() {
                    messages.push(Message::Binary(bytes.split_to(piece_length(&bytes))));
                }
                messages
            }
            (Self::Pty, Frame::Stderr(_) | Frame::Exit(_) | Frame::ReplayEnd)
            | (_, Frame::Stdin(_) | Frame::StdinEnd | Frame::Started { .. } | Frame::InputTaken(_)) => {
                Vec::new()
            }
        }
    }

    /// What a client sent as input; nothing for what is ignored.
    fn input(self, message: Message) -> Vec<Frame> {
        match (self, message) {
            (Self::Exec, Message::Binary(bytes)) => match bytes.first() {
                Some(&exec_frame::STDIN) => typed(bytes.slice(1..)),
                Some(&exec_frame::STDIN_END) => vec![Frame::StdinEnd],
                _ => Vec::new(),
            },
            (Self::Pty, message @ (Message::Binary(_) | Message::Text(_))) => typed(message.into_data()),
            (Self::Exec, Message::Text(_)) | (_, Message::Ping(_) | Message::Pong(_) | Message::Close(_)) => {
                Vec::new()
            }
        }
    }

    /// A message that means nothing, for connections that are cut when silent. An empty one is what clients of
    /// commands are used to; a terminal gets a ping, so that it never sees a message without bytes.
    fn keep_alive(self) -> Message {
        match self {
            Self::Exec => Message::Binary(Bytes::new()),
            Self::Pty => Message::Ping(Bytes::new()),
        }
    }
}

fn pieces(kind: u8, mut bytes: &[u8]) -> Vec<Message> {
    let mut messages = Vec::with_capacity(bytes.len().div_ceil(MAX_OUTPUT_BYTES));
    while !bytes.is_empty() {
        let (piece, rest) = bytes.split_at(piece_length(bytes));
        let mut message = BytesMut::with_capacity(1 + piece.len());
        message.put_u8(kind);
        message.put_slice(piece);
        messages.push(Message::Binary(message.freeze()));
        bytes = rest;
    }
    messages
}

/// How much of `bytes` goes into one message. The agent sends whole characters; none is cut in two here.
fn piece_length(bytes: &[u8]) -> usize {
    if bytes.len() <= MAX_OUTPUT_BYTES {
        return bytes.len();
    }
    whole_characters(&bytes[..MAX_OUTPUT_BYTES])
}

// === impl End ===

impl End {
    fn close_frame(self, protocol: Protocol) -> Option<CloseFrame> {
        let (code, reason) = match self {
            // A terminal's bytes have no place for how its shell has ended.
            Self::Exited(code) if protocol == Protocol::Pty => (close_code::NORMAL, pty_end::reason(code)),
            Self::Exited(_) => (close_code::NORMAL, "exec completed".to_owned()),
            Self::Lost => (close_code::ERROR, "the output was lost".to_owned()),
            Self::MessageTooLarge => (close_code::SIZE, "the message is too large".to_owned()),
            Self::ClientBroke => (close_code::PROTOCOL, "not a WebSocket message".to_owned()),
            Self::Stopping => (close_code::AWAY, "the server is stopping".to_owned()),
            Self::ClientLeft => return None,
        };
        Some(CloseFrame { code, reason: reason.into() })
    }
}

/// Relays until the command ends, the client leaves, or the server stops.
pub(super) async fn relay(
    socket: WebSocket,
    attached: Attached,
    protocol: Protocol,
    shutdown: CancellationToken,
) {
    let (mut sink, mut stream) = socket.split();
    let Attached { mut output, mut input } = attached;
    let mut pending = VecDeque::new();
    let unread = AtomicBool::new(false);
    let end = tokio::select! {
        end = pump_out(&mut sink, &mut output, protocol, &unread) => end,
        end = pump_in(&mut stream, &mut input, &mut pending, protocol, &unread) => end,
        () = shutdown.cancelled() => End::Stopping,
    };
    // Lets go of the command first: whether somebody is attached to it must be true at once.
    drop(output);
    tracing::debug!(?end, "a WebSocket ends");
    let flushing = async {
        match end {
            // Nobody reads what else there is.
            End::Exited(_) | End::Lost => {}
            End::ClientLeft | End::ClientBroke | End::MessageTooLarge => flush(pending, input).await,
            End::Stopping => drop(tokio::time::timeout(LEFT_GRACE, flush(pending, input)).await),
        }
    };
    let closing = async {
        match end.close_frame(protocol) {
            Some(frame) => {
                if sink.send(Message::Close(Some(frame))).await.is_err() {
                    return;
                }
                // Until the client has closed as well: a socket that is dropped with bytes unread resets the
                // connection, and the client may lose the end of what was sent to it.
                while let Some(Ok(_)) = stream.next().await {}
            }
            None => drop(sink.close().await),
        }
    };
    // A client that does not answer the close is gone, or as good as.
    let _ = tokio::join!(flushing, tokio::time::timeout(CLOSE_GRACE, closing));
}

async fn pump_out(
    sink: &mut SplitSink<WebSocket, Message>,
    output: &mut OutputStream,
    protocol: Protocol,
    unread: &AtomicBool,
) -> End {
    let mut silent_since = Instant::now();
    loop {
        let frame = match tokio::time::timeout(KEEP_ALIVE_UNREAD, output.next()).await {
            Ok(Ok(frame)) => frame,
            Ok(Err(error)) => {
                tracing::info!(%error, "a command is cut off from its client");
                return End::Lost;
            }
            Err(_) => {
                if !unread.load(Ordering::Relaxed) && silent_since.elapsed() < KEEP_ALIVE {
                    continue;
                }
                if sink.send(protocol.keep_alive()).await.is_err() {
                    return End::ClientLeft;
                }
                silent_since = Instant::now();
                continue;
            }
        };
        silent_since = Instant::now();
        let exit = if let Frame::Exit(exit) = &frame { Some(exit.code) } else { None };
        for message in protocol.messages(frame) {
            if sink.send(message).await.is_err() {
                return End::ClientLeft;
            }
        }
        if let Some(code) = exit {
            return End::Exited(code);
        }
    }
}

/// Input in frames that are not too large.
fn typed(mut bytes: Bytes) -> Vec<Frame> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        frames.push(Frame::Stdin(bytes.split_to(bytes.len().min(MAX_PAYLOAD))));
    }
    frames
}

/// `pending` is what was read and not handed on yet.
async fn pump_in(
    stream: &mut SplitStream<WebSocket>,
    input: &mut Input,
    pending: &mut VecDeque<Bytes>,
    protocol: Protocol,
    unread: &AtomicBool,
) -> End {
    let mut held = 0;
    loop {
        unread.store(held >= MAX_PENDING_BYTES, Ordering::Relaxed);
        tokio::select! {
            message = stream.next(), if held < MAX_PENDING_BYTES => {
                let message = match message {
                    None | Some(Ok(Message::Close(_))) => return End::ClientLeft,
                    Some(Err(error)) => return end_of(error),
                    Some(Ok(message)) => message,
                };
                for frame in protocol.input(message) {
                    let bytes = frame.to_bytes();
                    held += bytes.len() + PENDING_OVERHEAD;
                    pending.push_back(bytes);
                }
            }
            sent = send_first(input, pending), if !pending.is_empty() => {
                held = match sent {
                    Some(bytes) => held - bytes,
                    // A command that has closed its input does not mind what else comes.
                    None => {
                        pending.clear();
                        0
                    }
                };
            }
        }
    }
}

/// Sends of the first frame what there is room for; by how much there is less to hold, or `None` when no more input is
/// wanted.
async fn send_first(input: &mut Input, pending: &mut VecDeque<Bytes>) -> Option<usize> {
    let first = pending.front_mut()?;
    let before = first.len();
    if !input.send(first).await {
        return None;
    }
    let sent = before - first.len();
    if first.is_empty() {
        pending.pop_front();
        return Some(sent + PENDING_OVERHEAD);
    }
    Some(sent)
}

/// Who sends and leaves at once means what was sent; a command that does not read cannot keep the client attached.
async fn flush(mut pending: VecDeque<Bytes>, mut input: Input) {
    while !pending.is_empty() {
        match tokio::time::timeout(LEFT_GRACE, send_first(&mut input, &mut pending)).await {
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => break,
        }
    }
    let _ = tokio::time::timeout(LEFT_GRACE, input.finish()).await;
}

/// What a broken message says about its sender.
fn end_of(error: axum::Error) -> End {
    use tokio_tungstenite::tungstenite::Error;
    match error.into_inner().downcast_ref::<Error>() {
        Some(Error::Capacity(_)) => End::MessageTooLarge,
        Some(Error::Protocol(_) | Error::Utf8(_)) => End::ClientBroke,
        _ => End::ClientLeft,
    }
}
