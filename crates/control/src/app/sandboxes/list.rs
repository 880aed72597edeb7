//! Lists: newest first, every status, in pages.

use jiff::Timestamp;
use warren_api::sandboxes::Sandbox;
use warren_types::{Error, SandboxId, SandboxState};

use crate::app::App;
use crate::app::auth::Caller;
use crate::store::sandboxes::list::ListFilter;
use crate::store::tags::LabelKind;

const MAX_PAGE: u32 = 200;
/// A query may have them instead of a header.
const CREDENTIALS: [&str; 2] = ["api_key", "token"];
/// Label filters one list may have.
const MAX_LABELS: usize = 20;

/// What a list asks for, from its query.
#[derive(Debug, Clone)]
pub(crate) struct ListRequest {
    filter: ListFilter,
    limit: u32,
}

#[derive(Debug)]
pub(crate) struct Page {
    pub sandboxes: Vec<Sandbox>,
    /// Where the next page starts; absent on the last one.
    pub next: Option<String>,
}

impl ListRequest {
    /// Reads decoded query pairs. An unknown name is refused: a filter that is misspelt would give everything.
    pub(crate) fn parse(query: impl IntoIterator<Item = (String, String)>) -> Result<Self, Error> {
        let mut request = Self { filter: ListFilter::default(), limit: MAX_PAGE };
        for (name, value) in query {
            let filter = &mut request.filter;
            match name.as_str() {
                "status" => filter.states = parse_states(&value)?,
                "limit" => request.limit = parse_limit(&value)?,
                "cursor" => filter.after = Some(parse_cursor(&value)?),
                name if CREDENTIALS.contains(&name) => {}
                name => {
                    let (kind, key) = if let Some(key) = name.strip_prefix("metadata.") {
                        (LabelKind::Metadata, key)
                    } else if let Some(key) = name.strip_prefix("tag.") {
                        (LabelKind::Tag, key)
                    } else {
                        return Err(Error::invalid(format!(
                            "{name:?} is no filter; there are status, limit, cursor, metadata.KEY and tag.KEY"
                        )));
                    };
                    filter.labels.push((kind, key.to_owned(), value));
                }
            }
        }
        if request.filter.labels.len() > MAX_LABELS {
            return Err(Error::invalid(format!("at most {MAX_LABELS} metadata and tag filters are allowed")));
        }
        Ok(request)
    }
}

fn parse_states(value: &str) -> Result<Vec<SandboxState>, Error> {
    value
        .split(',')
        .map(str::trim)
        .filter(|state| !state.is_empty())
        .map(|state| state.parse().map_err(|error| Error::invalid(format!("status: {error}"))))
        .collect()
}

fn parse_limit(value: &str) -> Result<u32, Error> {
    match value.parse() {
        Ok(limit @ 1..=MAX_PAGE) => Ok(limit),
        _ => Err(Error::invalid(format!("limit must be a number from 1 to {MAX_PAGE}"))),
    }
}

/// A cursor names the last row of the page before: its time in microseconds, a dot, its id.
fn parse_cursor(value: &str) -> Result<(i64, SandboxId), Error> {
    value
        .split_once('.')
        .and_then(|(micros, id)| Some((micros.parse().ok()?, id.parse().ok()?)))
        .ok_or_else(|| Error::invalid("cursor must be the X-Next-Cursor of an earlier page"))
}

fn cursor(at: Timestamp, id: &str) -> String {
    format!("{}.{id}", at.as_microsecond())
}

impl App {
    pub(crate) async fn list_sandboxes(&self, caller: &Caller, request: &ListRequest) -> Result<Page, Error> {
        // One more than asked for tells whether there is a next page.
        let mut rows = self.store.list_sandboxes(caller.org(), &request.filter, request.limit + 1).await?;
        let more = rows.len() > request.limit as usize;
        rows.truncate(request.limit as usize);
        let sandboxes: Vec<Sandbox> = rows.into_iter().map(|row| self.view(row)).collect();
        let last = sandboxes.last().filter(|_| more);
        let next = last.map(|last| cursor(last.started_at, &last.sandbox_id));
        Ok(Page { sandboxes, next })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_filter_is_refused() {
        let parse = |name: &str| ListRequest::parse([(name.to_owned(), "running".to_owned())]);
        for good in ["status", "metadata.a", "tag.a", "api_key"] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in ["state", "metadata", "tags.a", ""] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_cursor_reads_back() {
        let at = Timestamp::from_microsecond(1_786_000_000_123_456).unwrap();
        let (micros, id) = parse_cursor(&cursor(at, "sb-0123abcd")).unwrap();
        assert_eq!((micros, id.as_str()), (at.as_microsecond(), "sb-0123abcd"));
        for bad in ["", ".", "1", "1.sb-1", "x.sb-0123abcd", "99999999999999999999.sb-0123abcd"] {
            assert!(parse_cursor(bad).is_err(), "{bad:?}");
        }
    }
}
