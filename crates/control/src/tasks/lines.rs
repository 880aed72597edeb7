//! The lines of a stream that a node keeps open.

use std::time::Duration;

use axum::body::Body;
use bytes::{Buf, BytesMut};
use http_body_util::BodyExt;

pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(100);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(5);
pub(super) const OPEN_DEADLINE: Duration = Duration::from_secs(10);
/// The node sends blank lines to show that it is there; a connection this silent is dead.
const SILENCE: Duration = Duration::from_secs(90);
const MAX_LINE_BYTES: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub(super) enum LinesEnd {
    #[error("the node closed the connection")]
    Closed,
    #[error("the node has been silent for too long")]
    Silent,
    #[error("the connection broke")]
    Broke(#[source] axum::Error),
    #[error("a line is longer than {MAX_LINE_BYTES} bytes")]
    LineTooLong,
}

pub(super) struct Lines {
    body: Body,
    buffer: BytesMut,
}

impl Lines {
    pub(super) fn new(body: Body) -> Self {
        Self { body, buffer: BytesMut::new() }
    }

    /// The next one that is not blank.
    pub(super) async fn next(&mut self) -> Result<BytesMut, LinesEnd> {
        loop {
            while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end);
                self.buffer.advance(1);
                if line.len() > MAX_LINE_BYTES {
                    return Err(LinesEnd::LineTooLong);
                }
                if !line.trim_ascii().is_empty() {
                    return Ok(line);
                }
            }
            if self.buffer.len() > MAX_LINE_BYTES {
                return Err(LinesEnd::LineTooLong);
            }
            match tokio::time::timeout(SILENCE, self.body.frame()).await {
                Err(_) => return Err(LinesEnd::Silent),
                Ok(None) => return Err(LinesEnd::Closed),
                Ok(Some(Err(error))) => return Err(LinesEnd::Broke(error)),
                Ok(Some(Ok(piece))) => {
                    if let Ok(bytes) = piece.into_data() {
                        self.buffer.extend_from_slice(&bytes);
                    }
                }
            }
        }
    }
}
