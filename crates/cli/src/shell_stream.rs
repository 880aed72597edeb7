//! Joins the local terminal to one in a sandbox: keystrokes up, output down, the window's size beside them.
//!
//! The bytes carry no offsets, so after a broken connection the screen is cleared and the server's scrollback redraws it.
//! While there is no connection Ctrl-C ends the session, since nobody else can answer it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncWriteExt as _, Stdout};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};
use warren_api::pty_end;
use warren_types::{PtyId, SandboxId};

use crate::client::Client;
use crate::failure::{Lost, Refused, Released, chain_of};
use crate::output::stdout_error;
use crate::retry::{Backoff, worth_retrying};
use crate::ws::Socket;

const PING_EVERY: Duration = Duration::from_secs(10);
const SILENCE_LIMIT: Duration = Duration::from_secs(35);
const WORKED_AFTER: Duration = Duration::from_secs(5);
const CTRL_C: u8 = 3;
const CTRL_D: u8 = 4;
const CLEAR_SCREEN: &[u8] = b"\x1b[2J\x1b[H";

pub(crate) struct ShellStream<'a> {
    client: &'a Client,
    sandbox: &'a SandboxId,
    pty: &'a PtyId,
    input: Input,
    stdout: Stdout,
    /// Asked before a connection that broke is made again.
    goes_on: Box<dyn Fn() -> bool + 'a>,
}

struct Input {
    /// None once it has ended.
    pieces: Option<mpsc::Receiver<Bytes>>,
    /// Last byte sent; decides how the end of input is typed.
    last: u8,
}

enum Ended {
    /// The shell has exited; with that code, if it was said.
    Closed(Option<i32>),
    Broken(String),
}

impl<'a> ShellStream<'a> {
    pub(crate) fn new(
        client: &'a Client,
        sandbox: &'a SandboxId,
        pty: &'a PtyId,
        input: mpsc::Receiver<Bytes>,
    ) -> Self {
        Self {
            client,
            sandbox,
            pty,
            input: Input { pieces: Some(input), last: b'\n' },
            stdout: tokio::io::stdout(),
            goes_on: Box::new(|| true),
        }
    }

    /// Connections that break are made again only while this holds: to connect wakes a sandbox.
    pub(crate) fn only_while(mut self, goes_on: impl Fn() -> bool + 'a) -> Self {
        self.goes_on = Box::new(goes_on);
        self
    }

    /// Relays until the shell exits; its code, if anybody saw it. `first` is an open connection.
    pub(crate) async fn follow(&mut self, first: Socket) -> anyhow::Result<Option<i32>> {
        let mut backoff = Backoff::default();
        let mut socket = first;
        loop {
            let since = Instant::now();
            let mut reason = match self.relay(socket).await? {
                Ended::Closed(code) => return Ok(code),
                Ended::Broken(reason) => reason,
            };
            if since.elapsed() > WORKED_AFTER {
                backoff.reset();
            }
            socket = loop {
                let Some(pause) = backoff.next_pause() else { return Err(lost(reason)) };
                if !(self.goes_on)() {
                    return Err(Released.into());
                }
                self.print(
                    format!("\r\n[connection broken: {reason}; trying again, Ctrl-C ends]\r\n").as_bytes(),
                )
                .await?;
                if self.pause(pause).await {
                    return Err(lost(reason));
                }
                if !(self.goes_on)() {
                    return Err(Released.into());
                }
                match self.client.attach_pty(self.sandbox, self.pty).await {
                    Ok(socket) => break socket,
                    Err(error) if worth_retrying(&error) => reason = chain_of(error.as_ref()),
                    // It exited while nobody was looking.
                    Err(error)
                        if error.downcast_ref::<Refused>().is_some_and(|refused| refused.status == 404) =>
                    {
                        return Ok(None);
                    }
                    Err(error) => return Err(error),
                }
            };
            self.print(CLEAR_SCREEN).await?;
        }
    }

    async fn relay(&mut self, socket: Socket) -> anyhow::Result<Ended> {
        let (sink, stream) = socket.split();
        let up = async {
            // A send that fails is not the end: the last output may be on its way down already.
            let _ = send_input(sink, &mut self.input).await;
            std::future::pending().await
        };
        tokio::select! {
            ended = print_output(stream, &mut self.stdout) => ended,
            ended = up => ended,
        }
    }

    /// Waits, dropping what is typed; returns whether Ctrl-C was among it.
    async fn pause(&mut self, pause: Duration) -> bool {
        let typed = async {
            while let Some(pieces) = &mut self.input.pieces {
                match pieces.recv().await {
                    Some(piece) if piece.contains(&CTRL_C) => return,
                    Some(_) => {}
                    None => self.input.pieces = None,
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => false,
            () = typed => true,
        }
    }

    async fn print(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        write(&mut self.stdout, bytes).await.map_err(stdout_error)
    }
}

fn lost(reason: String) -> anyhow::Error {
    Lost { reason, hint: "the terminal in the sandbox was ended; `warren shell` opens a new one".to_owned() }
        .into()
}

async fn send_input(mut sink: SplitSink<Socket, Message>, input: &mut Input) -> Result<(), Error> {
    let mut ticks = tokio::time::interval(PING_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let next = async {
            match &mut input.pieces {
                Some(pieces) => pieces.recv().await,
                None => std::future::pending().await,
            }
        };
        let message = tokio::select! {
            piece = next => match piece {
                Some(piece) => {
                    input.last = piece.last().copied().unwrap_or(input.last);
                    Message::Binary(piece)
                }
                None => {
                    input.pieces = None;
                    Message::Binary(end_of_input(input.last))
                }
            },
            _ = ticks.tick() => Message::Ping(Bytes::new()),
        };
        sink.send(message).await?;
    }
}

/// The end of an input that is not a terminal, as one would type it: after an unfinished line, twice.
fn end_of_input(last: u8) -> Bytes {
    if last == b'\n' { Bytes::from_static(&[CTRL_D]) } else { Bytes::from_static(&[CTRL_D, CTRL_D]) }
}

async fn print_output(mut stream: SplitStream<Socket>, stdout: &mut Stdout) -> anyhow::Result<Ended> {
    loop {
        let message = match tokio::time::timeout(SILENCE_LIMIT, stream.next()).await {
            Err(_) => return Ok(Ended::Broken(format!("nothing heard for {} s", SILENCE_LIMIT.as_secs()))),
            Ok(None) => return Ok(Ended::Broken("closed".to_owned())),
            Ok(Some(Err(error))) => return Ok(Ended::Broken(chain_of(&error))),
            Ok(Some(Ok(message))) => message,
        };
        match message {
            Message::Binary(bytes) => write(stdout, &bytes).await.map_err(stdout_error)?,
            Message::Text(text) => write(stdout, text.as_bytes()).await.map_err(stdout_error)?,
            Message::Close(Some(frame)) if frame.code == CloseCode::Normal => {
                return Ok(Ended::Closed(pty_end::code(&frame.reason)));
            }
            Message::Close(_) => return Ok(Ended::Broken("closed by the server".to_owned())),
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
        }
    }
}

async fn write(stdout: &mut Stdout, bytes: &[u8]) -> std::io::Result<()> {
    stdout.write_all(bytes).await?;
    stdout.flush().await
}
