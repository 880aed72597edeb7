//! Attaching to a command or a terminal: frames both ways.

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Method};
use tokio::sync::mpsc;
use warren_types::{Error, ExecId, PtyId};

use super::output::OutputStream;
use crate::app::App;
use crate::app::auth::Live;

/// Input frames on their way; one more waits for the command to read.
const INPUT_QUEUE: usize = 2;

/// Both directions of an attached command or terminal.
#[derive(Debug)]
pub(crate) struct Attached {
    pub output: OutputStream,
    pub input: Input,
}

/// Where input goes. Waits when the other end does not read.
#[derive(Debug)]
pub(crate) struct Input(mpsc::Sender<Bytes>);

impl Input {
    /// Waits for room for one frame, encoded; `None` once nobody takes input any more. Losing interest half-way
    /// loses nothing.
    pub(crate) async fn room(&self) -> Option<mpsc::Permit<'_, Bytes>> {
        self.0.reserve().await.ok()
    }
}

impl App {
    /// Attaches to a command; returns also the offset of the first byte that will come.
    pub(crate) async fn attach_exec(
        &self,
        live: &Live,
        exec: &ExecId,
        offset: Option<u64>,
    ) -> Result<(Attached, u64), Error> {
        let query = offset.map(|offset| format!("?offset={offset}")).unwrap_or_default();
        let mut attached = self.attach(live, &format!("exec/{exec}/attach{query}")).await?;
        let (_, offset) = attached.output.started().await?;
        Ok((attached, offset))
    }

    pub(crate) async fn attach_pty(&self, live: &Live, pty: &PtyId) -> Result<Attached, Error> {
        self.attach(live, &format!("pty/{pty}/attach")).await
    }

    async fn attach(&self, live: &Live, path: &str) -> Result<Attached, Error> {
        let (sender, receiver) = mpsc::channel(INPUT_QUEUE);
        let frames = stream::unfold(receiver, async |mut receiver: mpsc::Receiver<Bytes>| {
            let bytes = receiver.recv().await?;
            Some((Ok::<_, std::convert::Infallible>(bytes), receiver))
        });
        let answer =
            self.guest(live, Method::POST, path, HeaderMap::new(), Body::from_stream(frames)).await?;
        Ok(Attached { output: OutputStream::new(answer.into_body()), input: Input(sender) })
    }
}
