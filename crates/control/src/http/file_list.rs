//! The answer that lists a folder.
//!
//! A listing that fits in one piece is answered as a whole, with a length and a true status. A longer one is written while
//! it is read from the guest; should it break off there, the connection is cut, so that nobody takes it for complete.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderValue, header};
use warren_types::Error;

use crate::app::files::Listing;

/// JSON that is written at a time, in bytes.
const PIECE: usize = 64 * 1024;

/// A listing on its way to become a JSON array.
struct Text {
    listing: Listing,
    /// What the next piece begins with, or nothing once the array has ended.
    next: Option<u8>,
}

pub(super) async fn answer(listing: Listing) -> Result<Response, Error> {
    let mut text = Text { listing, next: Some(b'[') };
    let first = text.piece().await?;
    let body = match text.next {
        None => Body::from(first),
        Some(_) => {
            let rest = stream::try_unfold(text, async |mut text: Text| {
                if text.next.is_none() {
                    return Ok(None);
                }
                let piece = text.piece().await?;
                Ok::<_, Error>(Some((piece, text)))
            });
            let first = stream::once(std::future::ready(Ok(first)));
            Body::from_stream(futures_util::StreamExt::chain(first, rest))
        }
    };
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response())
}

impl Text {
    async fn piece(&mut self) -> Result<Bytes, Error> {
        let mut text = Vec::with_capacity(PIECE + PIECE / 8);
        while text.len() < PIECE
            && let Some(next) = self.next
        {
            let entry = self.listing.next().await?;
            if next == b'[' || entry.is_some() {
                text.push(next);
            }
            match entry {
                Some(entry) => {
                    serde_json::to_writer(&mut text, &entry)
                        .map_err(|error| Error::internal(format!("could not encode an entry: {error}")))?;
                    self.next = Some(b',');
                }
                None => {
                    text.push(b']');
                    self.next = None;
                }
            }
        }
        Ok(text.into())
    }
}
