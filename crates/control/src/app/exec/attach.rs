//! Attaching to a command or a terminal: its output, and its input beside it.

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Method};
use tokio::sync::mpsc;
use warren_guest_api::frame::Frame;
use warren_guest_api::input::Credit;
use warren_types::{Error, ExecId, PtyId};

use super::frames::Frames;
use super::output::OutputStream;
use crate::app::App;
use crate::app::audit::Kind;
use crate::app::auth::Live;

/// Pieces of input on their way; the agent takes them as soon as they come.
const INPUT_QUEUE: usize = 2;

/// Both directions of an attached command or terminal. Dropping the output detaches.
#[derive(Debug)]
pub(crate) struct Attached {
    pub output: OutputStream,
    pub input: Input,
}

/// Where input goes. Dropping it gives up what has not arrived yet.
#[derive(Debug)]
pub(crate) struct Input {
    pieces: mpsc::Sender<Bytes>,
    credit: Credit,
    grants: Frames,
}

impl Input {
    /// Sends the beginning of `frames`, which are encoded, as soon as the agent has room for a byte of them; `false` once
    /// it takes no more input. Losing interest half-way loses nothing.
    pub(crate) async fn send(&mut self, frames: &mut Bytes) -> bool {
        while self.credit.left() == 0 {
            match self.grants.next().await {
                Ok(Some(Frame::InputTaken(bytes))) if self.credit.grant(bytes).is_ok() => {}
                Ok(_) | Err(_) => return false,
            }
        }
        let Ok(place) = self.pieces.reserve().await else { return false };
        place.send(frames.split_to(self.credit.spend(frames.len())));
        true
    }

    /// Ends the input and waits until what was sent has arrived.
    pub(crate) async fn finish(self) {
        let Self { pieces, mut grants, .. } = self;
        drop(pieces);
        while let Ok(Some(_)) = grants.next().await {}
    }
}

impl App {
    /// Attaches to a command; returns also the offset of the first byte that will come. Who names no offset gets the
    /// newest output of a command, and all that is kept of an agent session, from the beginning of a line.
    pub(crate) async fn attach_exec(
        &self,
        live: &Live,
        exec: &ExecId,
        offset: Option<u64>,
    ) -> Result<(Attached, u64), Error> {
        let (attached, found) = self.attach_at(live, exec, offset).await?;
        if offset.is_some() || found == 0 || !self.is_agent(live, exec).await? {
            return Ok((attached, found));
        }
        drop(attached);
        let (mut attached, found) = self.attach_at(live, exec, Some(0)).await?;
        if found > 0 {
            attached.output.begin_with_a_line();
        }
        Ok((attached, found))
    }

    async fn attach_at(
        &self,
        live: &Live,
        exec: &ExecId,
        offset: Option<u64>,
    ) -> Result<(Attached, u64), Error> {
        let query = offset.map(|offset| format!("?offset={offset}")).unwrap_or_default();
        let path = format!("exec/{exec}");
        let note = live.note(Kind::ExecAttach).with("exec", exec.as_str());
        let mut attached = self.audit.around(note, self.attach(live, &path, &query)).await?;
        attached.output.record_exit(self.audit.exit_of(live, exec));
        let (_, offset) = attached.output.started().await?;
        Ok((attached, offset))
    }

    pub(crate) async fn attach_pty(&self, live: &Live, pty: &PtyId) -> Result<Attached, Error> {
        let path = format!("pty/{pty}");
        let note = live.note(Kind::PtyAttach).with("pty", pty.as_str());
        self.audit.around(note, self.attach(live, &path, "")).await
    }

    async fn attach(&self, live: &Live, path: &str, query: &str) -> Result<Attached, Error> {
        let output_path = format!("{path}/attach{query}");
        let (output, input) = tokio::try_join!(
            self.guest(live, Method::POST, &output_path, HeaderMap::new(), Body::empty()),
            self.open_input(live, path),
        )?;
        Ok(Attached { output: OutputStream::new(output.into_body()), input })
    }

    /// Where the input of a command or terminal goes, without its output.
    async fn open_input(&self, live: &Live, path: &str) -> Result<Input, Error> {
        let (pieces, receiver) = mpsc::channel(INPUT_QUEUE);
        let body =
            Body::from_stream(stream::unfold(receiver, async |mut receiver: mpsc::Receiver<Bytes>| {
                let bytes = receiver.recv().await?;
                Some((Ok::<_, std::convert::Infallible>(bytes), receiver))
            }));
        let path = format!("{path}/input");
        let grants = self.guest(live, Method::POST, &path, HeaderMap::new(), body).await?;
        Ok(Input { pieces, credit: Credit::default(), grants: Frames::new(grants.into_body()) })
    }

    /// Sends one piece of input to a command and leaves; `false` when the command takes no more. Several pieces that
    /// are sent at the same time do not mix.
    pub(crate) async fn send_input(&self, live: &Live, exec: &ExecId, bytes: Bytes) -> Result<bool, Error> {
        let mut input = self.open_input(live, &format!("exec/{exec}")).await?;
        let mut frame = Frame::Stdin(bytes).to_bytes();
        while !frame.is_empty() {
            if !input.send(&mut frame).await {
                return Ok(false);
            }
        }
        input.finish().await;
        Ok(true)
    }
}
