//! Audit records, read as JSON lines.

use jiff::Timestamp;
use reqwest::header::ACCEPT;
use reqwest::{Method, Response};
use warren_api::audit::{AuditExport, AuditRecord};
use warren_types::SandboxId;

use super::{Answer, Client, WHICH_SERVER};
use crate::failure::hinted;

const JSON_LINES: &str = "application/x-ndjson";
/// Longest line that is read; records of a server are a tenth of it.
const MAX_LINE_BYTES: usize = 1024 * 1024;

/// Which records are wanted.
#[derive(Debug, Clone, Default)]
pub(crate) struct AuditFilter {
    pub(crate) after: Option<i64>,
    pub(crate) kinds: Vec<String>,
    pub(crate) actor: Option<String>,
    pub(crate) since: Option<Timestamp>,
    pub(crate) until: Option<Timestamp>,
    pub(crate) limit: Option<u32>,
    pub(crate) newest: bool,
    pub(crate) follow: bool,
}

pub(crate) struct AuditStream<'a> {
    client: &'a Client,
    response: Response,
    pending: Vec<u8>,
}

impl Client {
    pub(crate) async fn read_audit(
        &self,
        sandbox: Option<&SandboxId>,
        filter: &AuditFilter,
    ) -> anyhow::Result<AuditStream<'_>> {
        let mut query: Vec<(&str, String)> = Vec::new();
        query.extend(filter.after.map(|after| ("after", after.to_string())));
        if !filter.kinds.is_empty() {
            query.push(("kind", filter.kinds.join(",")));
        }
        query.extend(filter.actor.clone().map(|actor| ("actor", actor)));
        query.extend(filter.since.map(|time| ("since", time.to_string())));
        query.extend(filter.until.map(|time| ("until", time.to_string())));
        query.extend(filter.limit.map(|limit| ("limit", limit.to_string())));
        query.extend(filter.newest.then(|| ("newest", "true".to_owned())));
        query.extend(filter.follow.then(|| ("follow", "true".to_owned())));
        let request = match sandbox {
            Some(id) => self.request(Method::GET, &["sandboxes", id.as_str(), "audit"])?,
            None => self.request(Method::GET, &["audit"])?,
        };
        let request = request.query(&query).header(ACCEPT, JSON_LINES);
        Ok(AuditStream {
            client: self,
            response: self.send_for(request, JSON_LINES).await?,
            pending: Vec::new(),
        })
    }

    /// Where the chain begins and ends.
    pub(crate) async fn get_audit_export(&self) -> anyhow::Result<Answer<AuditExport>> {
        self.call(self.request(Method::GET, &["audit", "export"])?).await
    }
}

// === impl AuditStream ===

impl AuditStream<'_> {
    /// The records that came next, each also as it was sent; none at the end.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Vec<(AuditRecord, String)>>> {
        let Some(piece) = self.client.next_chunk(&mut self.response).await? else {
            let is_whole = self.pending.iter().all(u8::is_ascii_whitespace);
            return if is_whole { Ok(None) } else { Err(unreadable("they end within one")) };
        };
        self.pending.extend_from_slice(&piece);
        let end = self.pending.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let rest = self.pending.split_off(end);
        let whole = std::mem::replace(&mut self.pending, rest);
        if self.pending.len() > MAX_LINE_BYTES {
            return Err(unreadable("a line without an end"));
        }
        let text = String::from_utf8(whole).map_err(|_| unreadable("text that is not UTF-8"))?;
        let mut records = Vec::new();
        // Blank lines are for the connection.
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let record = serde_json::from_str(line).map_err(|error| unreadable(&error.to_string()))?;
            records.push((record, line.to_owned()));
        }
        Ok(Some(records))
    }
}

fn unreadable(what: &str) -> anyhow::Error {
    hinted(format!("the server sent audit records that cannot be read: {what}"), WHICH_SERVER)
}
