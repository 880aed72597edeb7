//! The log of a sandbox: server-sent events, read as they come.

use jiff::Timestamp;
use reqwest::{Method, Response};
use warren_api::logs::LogRow;
use warren_types::SandboxId;

use super::events::{EVENT_STREAM, Parser};
use super::{Client, WHICH_SERVER};
use crate::failure::hinted;

/// Which rows a log is to show.
#[derive(Debug, Clone)]
pub(crate) struct LogFilter {
    pub(crate) tail: bool,
    pub(crate) since: Option<Timestamp>,
    pub(crate) until: Option<Timestamp>,
    pub(crate) text: Option<String>,
    pub(crate) sources: Vec<String>,
    pub(crate) limit: Option<u32>,
}

pub(crate) struct LogStream<'a> {
    client: &'a Client,
    response: Response,
    parser: Parser,
}

impl Client {
    pub(crate) async fn read_logs(
        &self,
        id: &SandboxId,
        filter: &LogFilter,
    ) -> anyhow::Result<LogStream<'_>> {
        let mut query: Vec<(&str, String)> = Vec::new();
        if !filter.tail {
            query.push(("tail", "false".to_owned()));
        }
        query.extend(filter.since.map(|time| ("since", time.to_string())));
        query.extend(filter.until.map(|time| ("until", time.to_string())));
        query.extend(filter.text.clone().map(|text| ("q", text)));
        if !filter.sources.is_empty() {
            query.push(("source", filter.sources.join(",")));
        }
        query.extend(filter.limit.map(|limit| ("limit", limit.to_string())));
        let request = self.request(Method::GET, &["sandboxes", id.as_str(), "logs"])?.query(&query);
        let response = self.send_for(request, EVENT_STREAM).await?;
        Ok(LogStream { client: self, response, parser: Parser::default() })
    }
}

// === impl LogStream ===

impl LogStream<'_> {
    /// The rows that came next, each also as it was sent; none at the end.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Vec<(LogRow, String)>>> {
        let Some(piece) = self.client.next_chunk(&mut self.response).await? else {
            return if self.parser.is_within() { Err(unreadable("it ends within a row")) } else { Ok(None) };
        };
        self.parser.pending.extend_from_slice(&piece);
        let mut rows = Vec::new();
        while let Some(event) = self.parser.next()? {
            let row = serde_json::from_str(&event.data).map_err(|error| unreadable(&error.to_string()))?;
            rows.push((row, event.data.trim().to_owned()));
        }
        Ok(Some(rows))
    }
}

fn unreadable(what: &str) -> anyhow::Error {
    hinted(format!("the server sent a log that cannot be read: {what}"), WHICH_SERVER)
}
