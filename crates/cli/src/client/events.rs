//! What a build says while it goes on: server-sent events, and how it ended.
//!
//! An event is the lines up to a blank one. Only the lines that the server sends are understood, `event:` and `data:`;
//! others and comments are for the connection. Events of other names are passed over, so that a newer server can say more.

use bytes::{Buf as _, BytesMut};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap};
use reqwest::{RequestBuilder, Response};
use serde::de::DeserializeOwned;
use serde_json::Value;
use warren_api::images::{BuildError, BuildLog};

use super::{Answer, Client, MAX_JSON_BYTES, WHICH_SERVER};
use crate::failure::hinted;

/// A result holds the manifest that was sent, and something around it.
const MAX_EVENT_BYTES: usize = MAX_JSON_BYTES + (1 << 20);
pub(crate) const EVENT_STREAM: &str = "text/event-stream";

/// The log of a build, as it is written.
pub(crate) struct EventStream<'a> {
    client: &'a Client,
    response: Response,
    parser: Parser,
    /// Whether the answer is the result itself, from a server that had nothing to say before it.
    is_whole: bool,
}

/// One step further.
pub(crate) enum Ended<T> {
    NotYet(BuildLog),
    Done(Answer<T>),
    /// Why the build failed, as the server says it.
    Failed(String),
}

/// Splits bytes into events. Pieces may end anywhere.
#[derive(Debug, Default)]
pub(super) struct Parser {
    pub(super) pending: BytesMut,
    /// Bytes of `pending` that hold no line end.
    searched: usize,
    name: String,
    data: String,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Event {
    name: String,
    pub(super) data: String,
}

impl Client {
    /// Sends a request whose answer tells how far it is.
    pub(super) async fn open_events(&self, request: RequestBuilder) -> anyhow::Result<EventStream<'_>> {
        let response = self.send(request.header(ACCEPT, EVENT_STREAM)).await?;
        let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let is_whole = !kind.is_some_and(|kind| kind.starts_with(EVENT_STREAM));
        Ok(EventStream { client: self, response, parser: Parser::default(), is_whole })
    }
}

// === impl EventStream ===

impl EventStream<'_> {
    /// The next line of the log, or how the build ended; nothing comes after that.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> anyhow::Result<Ended<T>> {
        if self.is_whole {
            return self.read_whole().await;
        }
        loop {
            while let Some(event) = self.parser.next()? {
                if let Some(step) = understand(&event)? {
                    return Ok(step);
                }
            }
            match self.client.next_chunk(&mut self.response).await? {
                Some(piece) => self.parser.pending.extend_from_slice(&piece),
                None => {
                    return Err(hinted(
                        "the log ended before it said how the build ended",
                        "the same command goes on from there: steps that were done are not run again",
                    ));
                }
            }
        }
    }

    async fn read_whole<T: DeserializeOwned>(&mut self) -> anyhow::Result<Ended<T>> {
        let mut body = Vec::new();
        while let Some(piece) = self.client.next_chunk(&mut self.response).await? {
            if body.len() + piece.len() > MAX_EVENT_BYTES {
                return Err(unreadable("an answer without an end"));
            }
            body.extend_from_slice(&piece);
        }
        let json = serde_json::from_slice(&body).map_err(|error| unreadable(&error.to_string()))?;
        result_of(json)
    }
}

/// What an event says; none when it is not for us.
fn understand<T: DeserializeOwned>(event: &Event) -> anyhow::Result<Option<Ended<T>>> {
    let unreadable = |error: serde_json::Error| unreadable(&error.to_string());
    Ok(match event.name.as_str() {
        "build_log" => Some(Ended::NotYet(serde_json::from_str(&event.data).map_err(unreadable)?)),
        "error" => {
            Some(Ended::Failed(serde_json::from_str::<BuildError>(&event.data).map_err(unreadable)?.error))
        }
        "result" => Some(result_of(serde_json::from_str(&event.data).map_err(unreadable)?)?),
        _ => None,
    })
}

fn result_of<T: DeserializeOwned>(json: Value) -> anyhow::Result<Ended<T>> {
    let value = T::deserialize(&json).map_err(|error| unreadable(&error.to_string()))?;
    Ok(Ended::Done(Answer { value, json, headers: HeaderMap::new() }))
}

fn unreadable(what: &str) -> anyhow::Error {
    hinted(format!("the server sent events that cannot be read: {what}"), WHICH_SERVER)
}

// === impl Parser ===

impl Parser {
    /// Whether an event has begun that is not whole.
    pub(super) fn is_within(&self) -> bool {
        !self.pending.is_empty() || !self.name.is_empty() || !self.data.is_empty()
    }

    /// The next event of what has come so far.
    pub(super) fn next(&mut self) -> anyhow::Result<Option<Event>> {
        loop {
            let found = self.pending[self.searched..].iter().position(|byte| *byte == b'\n');
            let Some(end) = found.map(|at| self.searched + at) else {
                self.searched = self.pending.len();
                if self.searched + self.data.len() > MAX_EVENT_BYTES {
                    return Err(unreadable("one without an end"));
                }
                return Ok(None);
            };
            let line = self.pending.split_to(end);
            self.pending.advance(1);
            self.searched = 0;
            let line = std::str::from_utf8(&line).map_err(|_| unreadable("text that is not UTF-8"))?;
            if let Some(event) = self.line(line.strip_suffix('\r').unwrap_or(line))? {
                return Ok(Some(event));
            }
        }
    }

    fn line(&mut self, line: &str) -> anyhow::Result<Option<Event>> {
        if line.is_empty() {
            let (name, data) = (std::mem::take(&mut self.name), std::mem::take(&mut self.data));
            return Ok((!data.is_empty()).then_some(Event { name, data }));
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.name),
            "data" => {
                if self.data.len() + value.len() > MAX_EVENT_BYTES {
                    return Err(unreadable("one without an end"));
                }
                if !self.data.is_empty() {
                    self.data.push('\n');
                }
                self.data.push_str(value);
            }
            _ => {}
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events_of(pieces: &[&[u8]]) -> Vec<(String, String)> {
        let mut parser = Parser::default();
        let mut found = Vec::new();
        for piece in pieces {
            parser.pending.extend_from_slice(piece);
            while let Some(event) = parser.next().unwrap() {
                found.push((event.name, event.data));
            }
        }
        found
    }

    #[test]
    fn pieces_may_end_anywhere() {
        let text = ": keepalive\n\nevent: build_log\ndata: {\"a\":\"é\"}\n\nevent: other\nid: 7\n\ndata:x\r\ndata: y\r\n\r\nevent: cut\ndata: off"
            .as_bytes();
        let whole = events_of(&[text]);
        let expected = [("build_log", "{\"a\":\"é\"}"), ("", "x\ny")];
        assert_eq!(whole, expected.map(|(name, data)| (name.to_owned(), data.to_owned())));
        for at in 0..text.len() {
            assert_eq!(events_of(&[&text[..at], &text[at..]]), whole, "cut at {at}");
        }
        assert_eq!(events_of(&text.chunks(1).collect::<Vec<_>>()), whole);
    }

    #[test]
    fn what_never_ends_is_refused() {
        let mut parser = Parser::default();
        let piece = vec![b'x'; 1 << 20];
        let refused = (0..128).any(|_| {
            parser.pending.extend_from_slice(&piece);
            parser.next().is_err()
        });
        assert!(refused, "a line without an end");
        let mut parser = Parser::default();
        let line = [b"data: ".as_slice(), &piece, b"\n"].concat();
        let refused = (0..128).any(|_| {
            parser.pending.extend_from_slice(&line);
            parser.next().is_err()
        });
        assert!(refused, "an event without an end");
        let mut parser = Parser::default();
        parser.pending.extend_from_slice(b"data: \xff\n\n");
        assert!(parser.next().is_err());
    }
}
