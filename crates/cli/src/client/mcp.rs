//! Messages of MCP on their way to the server, and what it answers.

use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use reqwest::{Method, Response, StatusCode};
use warren_types::SandboxId;

use super::events::{EVENT_STREAM, Parser};
use super::{Client, MAX_ERROR_BYTES, MAX_JSON_BYTES, header_of, refusal};
use crate::commands::mcp::message::Message;
use crate::failure::{About, hinted};

const SESSION_ID: &str = "mcp-session-id";
const PROTOCOL_VERSION: &str = "mcp-protocol-version";
const METHOD: &str = "mcp-method";
const NAME: &str = "mcp-name";

/// Whose tools a message is for.
#[derive(Debug, Clone)]
pub(crate) enum McpTarget {
    Sandbox(SandboxId),
    /// One that is not made yet.
    Later,
    /// Each call names one.
    All,
}

/// What was settled when the client initialised.
#[derive(Debug, Clone, Default)]
pub(crate) struct McpHeaders {
    pub(crate) session: Option<String>,
    pub(crate) version: Option<String>,
}

/// Messages that answer one.
pub(crate) struct McpAnswer {
    response: Response,
    parser: Parser,
    kind: Kind,
    /// One that is here already.
    whole: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The answer is a message.
    Whole,
    /// Each event has one.
    Events,
    Done,
}

impl Client {
    pub(crate) async fn mcp(
        &self,
        target: &McpTarget,
        settled: &McpHeaders,
        message: &Message,
    ) -> anyhow::Result<McpAnswer> {
        let mut url = self.base.clone();
        let path = self.base.path().trim_end_matches('/').trim_end_matches("/api").to_owned();
        match target {
            McpTarget::Sandbox(id) => url.set_path(&format!("{path}/mcp/{id}")),
            McpTarget::All | McpTarget::Later => url.set_path(&format!("{path}/mcp")),
        }
        if matches!(target, McpTarget::Later) {
            url.set_query(Some("tools=sandbox"));
        }
        let about = if matches!(target, McpTarget::Sandbox(_)) { About::Sandbox } else { About::Other };
        let mut request = self
            .http
            .request(Method::POST, url)
            .header(ACCEPT, "application/json, text/event-stream")
            .header(CONTENT_TYPE, "application/json")
            .body(message.raw.clone());
        if let Some(key) = &self.key {
            request = request.header(warren_api::API_KEY_HEADER, header_of(key)?);
        }
        // The protocol without `initialize` says all of this with each message, and wants it in headers too.
        let own = message.version();
        let about_it = own.is_some();
        for (name, value) in [
            (SESSION_ID, settled.session.as_deref()),
            (PROTOCOL_VERSION, own.or(settled.version.as_deref())),
            (METHOD, about_it.then_some(message.method.as_str())),
            (NAME, message.name().filter(|_| about_it)),
        ] {
            if let Some(value) = value.and_then(|value| HeaderValue::from_str(value).ok()) {
                request = request.header(name, value);
            }
        }
        let mut response =
            self.http.execute(request.build()?).await.map_err(|error| self.unreachable(error, false))?;
        let is = |kind: &str| {
            let found = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
            found.is_some_and(|found| found.starts_with(kind))
        };
        let status = response.status();
        let kind = match status {
            StatusCode::ACCEPTED | StatusCode::NO_CONTENT => Kind::Done,
            _ if status.is_success() && is(EVENT_STREAM) => Kind::Events,
            _ if status.is_success() => Kind::Whole,
            _ => {
                let mut body = Vec::new();
                while body.len() < MAX_ERROR_BYTES
                    && let Some(piece) = self.next_chunk(&mut response).await?
                {
                    body.extend_from_slice(&piece);
                }
                if !is_message(&body) {
                    return Err(refusal(status.as_u16(), None, &body, about).into());
                }
                let whole = Some(one_line(&String::from_utf8_lossy(&body)));
                return Ok(McpAnswer { response, parser: Parser::default(), kind: Kind::Done, whole });
            }
        };
        Ok(McpAnswer { response, parser: Parser::default(), kind, whole: None })
    }
}

/// Whether an answer that is an error is a message of the protocol all the same.
fn is_message(body: &[u8]) -> bool {
    let json = serde_json::from_slice::<serde_json::Value>(body);
    json.is_ok_and(|json| json.get("jsonrpc").is_some())
}

impl McpAnswer {
    /// The session id that came with it.
    pub(crate) fn session(&self) -> Option<String> {
        self.response.headers().get(SESSION_ID)?.to_str().ok().map(str::to_owned)
    }

    /// The next message, on one line.
    pub(crate) async fn next(&mut self, client: &Client) -> anyhow::Result<Option<String>> {
        match self.kind {
            Kind::Done => Ok(self.whole.take()),
            Kind::Whole => {
                self.kind = Kind::Done;
                self.whole(client).await.map(Some)
            }
            Kind::Events => loop {
                while let Some(event) = self.parser.next()? {
                    if !event.data.trim().is_empty() {
                        return Ok(Some(one_line(&event.data)));
                    }
                }
                match client.next_chunk(&mut self.response).await? {
                    Some(piece) => self.parser.pending.extend_from_slice(&piece),
                    None => return Ok(None),
                }
            },
        }
    }

    async fn whole(&mut self, client: &Client) -> anyhow::Result<String> {
        let mut body = Vec::new();
        while let Some(piece) = client.next_chunk(&mut self.response).await? {
            if body.len() + piece.len() > MAX_JSON_BYTES {
                return Err(hinted("the server's answer is too large", "ask for less at once"));
            }
            body.extend_from_slice(&piece);
        }
        Ok(one_line(&String::from_utf8_lossy(&body)))
    }
}

/// JSON has line ends only between its words.
fn one_line(json: &str) -> String {
    json.replace(['\n', '\r'], " ")
}
