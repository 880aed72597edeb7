//! The log of a sandbox: server-sent events, read as they come.

use jiff::Timestamp;
use reqwest::{Method, Response};
use warren_api::logs::LogRow;
use warren_types::SandboxId;

use super::Client;
use crate::failure::hinted;

/// Longest event that is read; rows of a server are a tenth of it.
const MAX_EVENT_BYTES: usize = 1024 * 1024;

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
    pending: Vec<u8>,
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
        Ok(LogStream { client: self, response: self.send(request).await?, pending: Vec::new() })
    }
}

// === impl LogStream ===

impl LogStream<'_> {
    /// The rows that came next, each also as it was sent; none at the end.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Vec<(LogRow, String)>>> {
        let Some(piece) = self.client.next_chunk(&mut self.response).await? else { return Ok(None) };
        self.pending.extend_from_slice(&piece);
        let end = self.pending.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let rest = self.pending.split_off(end);
        let whole = std::mem::replace(&mut self.pending, rest);
        if self.pending.len() > MAX_EVENT_BYTES {
            return Err(unreadable("a row without an end"));
        }
        let text = String::from_utf8(whole).map_err(|_| unreadable("text that is not UTF-8"))?;
        let mut rows = Vec::new();
        // Comments and blank lines are for the connection.
        for data in text.lines().filter_map(|line| line.strip_prefix("data:")) {
            let row = serde_json::from_str(data).map_err(|error| unreadable(&error.to_string()))?;
            rows.push((row, data.trim().to_owned()));
        }
        Ok(Some(rows))
    }
}

fn unreadable(what: &str) -> anyhow::Error {
    hinted(
        format!("the server sent a log that cannot be read: {what}"),
        "`warren config show` says which address is used; is it a Warren server of this version?",
    )
}
