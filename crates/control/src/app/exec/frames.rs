//! Frames cut from a guest's answer.

use axum::body::Body;
use http_body_util::BodyExt;
use warren_guest_api::frame::{Decoder, Frame, FrameError};

/// What is left of an answer that is made of frames.
#[derive(Debug)]
pub(crate) struct Frames {
    body: Body,
    decoder: Decoder,
}

/// Why there are no more frames, other than that the answer has ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FramesError {
    #[error(transparent)]
    Nonsense(#[from] FrameError),
    #[error(transparent)]
    BrokenOff(#[from] axum::Error),
}

impl Frames {
    pub(crate) fn new(body: Body) -> Self {
        Self { body, decoder: Decoder::default() }
    }

    /// The next frame; `None` at the end of the answer. Losing interest half-way loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Option<Frame>, FramesError> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(Some(frame));
            }
            match self.body.frame().await {
                Some(piece) => {
                    if let Ok(bytes) = piece?.into_data() {
                        self.decoder.push(&bytes);
                    }
                }
                None => return Ok(None),
            }
        }
    }
}
