//! What comes with a request: bounded JSON, and the parameters of a query.

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body::Body as _;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use std::future::poll_fn;
use std::pin::Pin;

use warren_guest_api::MAX_JSON_BYTES;
use warren_types::{Error, ErrorKind};

use crate::query::Query;
use crate::reply::Failure;

/// The next bytes of a body; `None` at its proper end.
pub(crate) async fn next_bytes(body: &mut Incoming) -> Option<Result<Bytes, hyper::Error>> {
    loop {
        match poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await? {
            Ok(frame) => {
                if let Ok(bytes) = frame.into_data() {
                    return Some(Ok(bytes));
                }
            }
            Err(error) => return Some(Err(error)),
        }
    }
}

/// Reads a body of JSON.
pub(crate) async fn json<T: DeserializeOwned>(body: Incoming) -> Result<T, Failure> {
    let text = whole(body, MAX_JSON_BYTES).await?;
    serde_json::from_slice(&text)
        .map_err(|error| Error::invalid(format!("the request is not understood: {error}")).into())
}

/// Reads a body of at most so many bytes.
pub(crate) async fn whole(mut body: Incoming, most: usize) -> Result<Bytes, Failure> {
    let mut text = BytesMut::new();
    while let Some(bytes) = next_bytes(&mut body).await {
        let bytes = bytes.map_err(|_| Error::invalid("the request ended early"))?;
        if text.len() + bytes.len() > most {
            let message = format!("the request is longer than {most} bytes");
            return Err(Error::new(ErrorKind::TooLarge, message).into());
        }
        text.extend_from_slice(&bytes);
    }
    Ok(text.freeze())
}

/// A parameter that is a whole number, if it is there.
pub(crate) fn number(query: &Query, name: &str) -> Result<Option<u64>, Failure> {
    let Some(value) = query.get(name) else { return Ok(None) };
    let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    number.map(Some).ok_or_else(|| Error::invalid(format!("{name} must be a whole number")).into())
}

pub(crate) fn wrong_method() -> Failure {
    Failure {
        status: Some(StatusCode::METHOD_NOT_ALLOWED),
        error: Error::invalid("this path does not know that method"),
    }
}
