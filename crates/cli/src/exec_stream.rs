//! Follows one command: its output to our stdout and stderr, our stdin to it, its exit code to the caller.
//!
//! ```text
//!            ┌─────────── broken ───────────┐
//!            ▼                              │
//!   connect at offset ──▶ replay ──▶ live ──┴──▶ exit code
//!            │
//!            └── refused, or too often broken ──▶ lost
//! ```
//!
//! Output has offsets, so that a broken connection is taken up exactly where it broke: the bytes printed so far are counted
//! and asked for no more. Input has none. Each piece of it is followed by a ping, whose pong says that the server has taken
//! it; when a connection breaks with input still unconfirmed, it refuses to guess whether to send it again and reports the
//! command as lost. It never makes up an exit code.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Notify, mpsc};
use tokio::time::MissedTickBehavior;
use tokio_tungstenite::tungstenite::{Error, Message};
use warren_api::exec_frame;
use warren_types::{ExecId, SandboxId};

use crate::client::Client;
use crate::failure::{Lost, Released, chain_of};
use crate::output::{Output, stdout_error};
use crate::retry::{Backoff, worth_retrying};
use crate::ws::Socket;

const PING_EVERY: Duration = Duration::from_secs(15);
/// A connection on which not even pongs come is broken.
const SILENCE_LIMIT: Duration = Duration::from_secs(50);
const WORKED_AFTER: Duration = Duration::from_secs(5);

/// One command being followed.
pub(crate) struct ExecStream<'a> {
    client: &'a Client,
    output: Output,
    sandbox: &'a SandboxId,
    exec: &'a ExecId,
    input: Input,
    printer: Printer,
    /// Whether output that is no longer kept ends it.
    is_whole: bool,
    /// Asked before a connection that broke is made again.
    goes_on: Box<dyn Fn() -> bool + 'a>,
}

/// What goes up.
struct Input {
    /// None once the input has ended, or when there is none to send.
    pieces: Option<mpsc::Receiver<Bytes>>,
    /// Whether the command is to be told that its input has ended.
    ended: bool,
    sent: u64,
    confirmed: u64,
    /// Told when the server has all of it, and its end.
    taken: Arc<Notify>,
}

/// What comes down, and how far it has been printed.
struct Printer {
    stdout: Box<dyn AsyncWrite + Unpin>,
    stderr: Box<dyn AsyncWrite + Unpin>,
    /// Offset of the next byte to print; none until the first connection says where it starts.
    position: Option<u64>,
    /// Bytes of this connection that were printed already.
    skip: u64,
}

/// How a connection ended.
enum Ended {
    Exit(i32),
    Broken(String),
}

// === impl ExecStream ===

impl<'a> ExecStream<'a> {
    /// `from`: the first byte wanted; none for the server's usual replay. `input`: none to leave the command's input alone.
    pub(crate) fn new(
        client: &'a Client,
        output: Output,
        (sandbox, exec): (&'a SandboxId, &'a ExecId),
        from: Option<u64>,
        input: Option<mpsc::Receiver<Bytes>>,
    ) -> Self {
        Self {
            client,
            output,
            sandbox,
            exec,
            input: Input { pieces: input, ended: false, sent: 0, confirmed: 0, taken: Arc::default() },
            printer: Printer {
                stdout: Box::new(tokio::io::stdout()),
                stderr: Box::new(tokio::io::stderr()),
                position: from,
                skip: 0,
            },
            is_whole: false,
            goes_on: Box::new(|| true),
        }
    }

    /// Connections that break are made again only while this holds: to connect wakes a sandbox.
    pub(crate) fn only_while(mut self, goes_on: impl Fn() -> bool + 'a) -> Self {
        self.goes_on = Box::new(goes_on);
        self
    }

    /// Every byte from the first one wanted, or an error.
    pub(crate) fn without_gaps(mut self) -> Self {
        self.is_whole = true;
        self
    }

    /// Makes the command's input end at once.
    pub(crate) fn without_input(mut self) -> Self {
        self.input.pieces = None;
        self.input.ended = true;
        self
    }

    /// Writes the command's output there instead of to ours.
    pub(crate) fn writing_to(
        mut self,
        stdout: impl AsyncWrite + Unpin + 'static,
        stderr: impl AsyncWrite + Unpin + 'static,
    ) -> Self {
        self.printer.stdout = Box::new(stdout);
        self.printer.stderr = Box::new(stderr);
        self
    }

    /// Follows the command to its exit.
    pub(crate) async fn follow(&mut self) -> anyhow::Result<i32> {
        let mut backoff = Backoff::default();
        let mut attached_before = false;
        loop {
            let reason = match self.client.attach_exec(self.sandbox, self.exec, self.printer.position).await {
                Ok(stream) => {
                    self.align(stream.start, attached_before)?;
                    attached_before = true;
                    let (since, position) = (Instant::now(), self.printer.position);
                    match self.relay(stream.socket).await? {
                        Ended::Exit(code) => return Ok(code),
                        Ended::Broken(reason) => {
                            // A connection that brought nothing and fell at once does not count as having worked.
                            if since.elapsed() > WORKED_AFTER || self.printer.position != position {
                                backoff.reset();
                            }
                            reason
                        }
                    }
                }
                Err(error) if worth_retrying(&error) => chain_of(error.as_ref()),
                Err(error) if attached_before => return Err(self.lost(chain_of(error.as_ref()))),
                Err(error) => return Err(error),
            };
            if self.input.confirmed < self.input.sent {
                return Err(
                    self.lost(format!("{reason}; input was under way and may or may not have arrived"))
                );
            }
            let Some(pause) = backoff.next_pause() else { return Err(self.lost(reason)) };
            let what = if attached_before { "connection broken" } else { "could not attach" };
            if !(self.goes_on)() {
                return Err(Released.into());
            }
            self.output.note(&format!("{what} ({reason}), trying again"));
            tokio::time::sleep(pause).await;
            if !(self.goes_on)() {
                return Err(Released.into());
            }
        }
    }

    /// Hands the input over and leaves: the command goes on without us. One that has ended takes no more of it.
    pub(crate) async fn hand_over(&mut self) -> anyhow::Result<()> {
        let taken = Arc::clone(&self.input.taken);
        tokio::select! {
            exited = self.follow() => exited.map(drop),
            () = taken.notified() => Ok(()),
        }
    }

    /// How to take this command up again from where we are.
    pub(crate) fn how_to_attach(&self) -> String {
        let Self { sandbox, exec, .. } = self;
        match self.printer.position {
            Some(position) if position > 0 => {
                format!("warren execs attach {sandbox} {exec} --offset {position}")
            }
            _ => format!("warren execs attach {sandbox} {exec}"),
        }
    }

    /// Settles where a connection starts against how far we are.
    fn align(&mut self, start: Option<u64>, attached_before: bool) -> anyhow::Result<()> {
        self.printer.skip = 0;
        match (start, self.printer.position) {
            (Some(start), Some(position)) if start > position && self.is_whole => {
                return Err(self.lost("a part of its output is no longer kept".to_owned()));
            }
            (Some(start), Some(position)) if start > position => {
                let missing = start - position;
                self.output
                    .warn(&format!("{missing} bytes of older output are no longer kept and are left out"));
                self.printer.position = Some(start);
            }
            (Some(start), Some(position)) => self.printer.skip = position - start,
            (Some(start), None) => self.printer.position = Some(start),
            (None, _) if attached_before => {
                return Err(
                    self.lost("this server cannot continue a broken stream where it broke".to_owned())
                );
            }
            // A server without offsets replays what it has; the count starts there.
            (None, _) => self.printer.position = None,
        }
        Ok(())
    }

    async fn relay(&mut self, socket: Socket) -> anyhow::Result<Ended> {
        let (sink, stream) = socket.split();
        let Input { pieces, ended, sent, confirmed, taken } = &mut self.input;
        // Both directions at once: a command that stops reading until its output is taken must not hold us up.
        let up = async {
            // A send that fails is not the end: the exit code may be on its way down already.
            let _ = send_input(sink, pieces, ended, sent).await;
            std::future::pending().await
        };
        tokio::select! {
            ended = print_output(stream, &mut self.printer, confirmed, taken) => ended,
            ended = up => ended,
        }
    }

    fn lost(&self, reason: String) -> anyhow::Error {
        Lost {
            reason,
            hint: format!("the command may still be running; see with `{}`", self.how_to_attach()),
        }
        .into()
    }
}

async fn send_input(
    mut sink: SplitSink<Socket, Message>,
    pieces: &mut Option<mpsc::Receiver<Bytes>>,
    ended: &mut bool,
    sent: &mut u64,
) -> Result<(), Error> {
    if *ended {
        sink.send(input_end()).await?;
    }
    let mut ticks = tokio::time::interval(PING_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let next = async {
            match pieces {
                Some(pieces) => pieces.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            piece = next => match piece {
                Some(piece) => {
                    *sent += 1;
                    sink.feed(input_frame(&piece)).await?;
                }
                None => {
                    *pieces = None;
                    *ended = true;
                    sink.feed(input_end()).await?;
                }
            },
            _ = ticks.tick() => {}
        }
        sink.send(Message::Ping(told(*sent, *ended))).await?;
    }
}

/// What a ping asks to be confirmed: so many pieces, and whether the end came after them.
fn told(sent: u64, ended: bool) -> Bytes {
    let mut told = BytesMut::with_capacity(9);
    told.put_u64(sent);
    told.put_u8(ended.into());
    told.freeze()
}

fn input_frame(piece: &[u8]) -> Message {
    let mut frame = BytesMut::with_capacity(piece.len() + 1);
    frame.put_u8(exec_frame::STDIN);
    frame.put_slice(piece);
    Message::Binary(frame.freeze())
}

fn input_end() -> Message {
    Message::Binary(Bytes::from_static(&[exec_frame::STDIN_END]))
}

/// Prints what comes until the stream ends. Time spent printing does not count as silence.
async fn print_output(
    mut stream: SplitStream<Socket>,
    printer: &mut Printer,
    confirmed: &mut u64,
    taken: &Notify,
) -> anyhow::Result<Ended> {
    loop {
        let message = match tokio::time::timeout(SILENCE_LIMIT, stream.next()).await {
            Err(_) => return Ok(Ended::Broken(format!("nothing heard for {} s", SILENCE_LIMIT.as_secs()))),
            Ok(None) => return Ok(Ended::Broken("the connection was closed".to_owned())),
            Ok(Some(Err(error))) => return Ok(Ended::Broken(chain_of(&error))),
            Ok(Some(Ok(message))) => message,
        };
        match message {
            Message::Binary(frame) => {
                if let Some(code) = printer.take(&frame).await? {
                    return Ok(Ended::Exit(code));
                }
            }
            Message::Pong(count) => {
                if let Some((count, ended)) = count.split_first_chunk() {
                    *confirmed = u64::from_be_bytes(*count).max(*confirmed);
                    if ended == [1] {
                        taken.notify_one();
                    }
                }
            }
            Message::Close(frame) => return Ok(Ended::Broken(closing_words(frame.as_ref()))),
            Message::Ping(_) | Message::Text(_) | Message::Frame(_) => {}
        }
    }
}

fn closing_words(frame: Option<&tokio_tungstenite::tungstenite::protocol::CloseFrame>) -> String {
    match frame.map(|frame| frame.reason.as_str()).filter(|reason| !reason.is_empty()) {
        Some(reason) => format!("the server closed the stream: {}", crate::output::printable(reason)),
        None => "the server closed the stream without an exit code".to_owned(),
    }
}

// === impl Printer ===

impl Printer {
    /// Handles one frame; returns the exit code once it comes.
    async fn take(&mut self, frame: &[u8]) -> anyhow::Result<Option<i32>> {
        let Some((&kind, payload)) = frame.split_first() else { return Ok(None) };
        match kind {
            exec_frame::STDOUT => {
                let fresh = self.fresh(payload);
                write(&mut self.stdout, fresh).await.map_err(stdout_error)?;
            }
            exec_frame::STDERR => {
                let fresh = self.fresh(payload);
                // A stderr nobody reads is no reason to stop a command.
                let _ = write(&mut self.stderr, fresh).await;
            }
            exec_frame::EXIT => {
                let code = <[u8; 4]>::try_from(payload).map_err(|_| {
                    anyhow::anyhow!("the server sent an exit code of {} bytes", payload.len())
                })?;
                return Ok(Some(i32::from_be_bytes(code)));
            }
            // The end of the replay changes nothing here; kinds we do not know are from a newer server.
            _ => {}
        }
        Ok(None)
    }

    /// The part of a payload that was not printed before, counted as printed.
    fn fresh<'p>(&mut self, payload: &'p [u8]) -> &'p [u8] {
        let length = payload.len() as u64;
        let skipped = self.skip.min(length);
        self.skip -= skipped;
        if let Some(position) = &mut self.position {
            *position += length - skipped;
        }
        // `skipped` is at most the payload's length.
        &payload[usize::try_from(skipped).unwrap_or(payload.len())..]
    }
}

async fn write(to: &mut (impl tokio::io::AsyncWrite + Unpin), bytes: &[u8]) -> std::io::Result<()> {
    to.write_all(bytes).await?;
    to.flush().await
}
