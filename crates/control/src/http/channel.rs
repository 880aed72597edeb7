//! Bodies that a task writes while the client reads. The writer waits for a slow reader and ends with it.

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use tokio::sync::mpsc;

/// Pieces on their way to the client.
const QUEUE: usize = 4;

/// The writing end of a body.
#[derive(Debug, Clone)]
pub(super) struct Writer(mpsc::Sender<Result<Bytes, Broken>>);

/// The client has hung up: nothing that is written arrives.
#[derive(Debug)]
pub(super) struct HungUp;

/// Cuts the connection, so that the client cannot take what it got for the whole.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Broken(String);

pub(super) fn body() -> (Writer, Body) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let pieces = stream::unfold(receiver, async |mut receiver: mpsc::Receiver<_>| {
        let piece = receiver.recv().await?;
        Some((piece, receiver))
    });
    (Writer(sender), Body::from_stream(pieces))
}

impl Writer {
    pub(super) async fn write(&self, bytes: impl Into<Bytes>) -> Result<(), HungUp> {
        self.0.send(Ok(bytes.into())).await.map_err(|_| HungUp)
    }

    pub(super) async fn break_off(&self, reason: String) -> Result<(), HungUp> {
        self.0.send(Err(Broken(reason))).await.map_err(|_| HungUp)
    }

    /// Returns when the client has hung up.
    pub(super) async fn hung_up(&self) {
        self.0.closed().await;
    }
}
