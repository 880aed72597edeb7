//! What a sandbox has logged: what is asked for, and the rows as a node passes them on from a guest, who may send anything.

use axum::body::Body;
use bytes::BytesMut;
use http_body_util::BodyExt;
use jiff::Timestamp;
use warren_api::logs::{DEFAULT_LOG_ROWS, LogRow};
use warren_guest_api::logs::{Filter, MAX_LIMIT, MAX_ROW_BYTES, Query, Row, Source};
use warren_types::{Error, ErrorKind, SandboxId, SandboxState};

use super::App;
use super::auth::{Caller, has_been_stopped, sandbox_not_found};
use super::exec::timestamp;
use super::guest::from_node;

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogRequest {
    tail: bool,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    text: Option<String>,
    sources: Vec<Source>,
    limit: u32,
}

/// Rows of one sandbox as they come.
#[derive(Debug)]
pub(crate) struct LogStream {
    sandbox: SandboxId,
    body: Body,
    pending: BytesMut,
    is_live: bool,
    /// What came after the rows that were handed out last.
    failed: Option<Error>,
}

// === impl LogRequest ===

impl LogRequest {
    /// From the query of a request; an empty value is an absent one.
    pub(crate) fn parse<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Result<Self, Error> {
        let given = |name| get(name).filter(|value| !value.is_empty());
        Ok(Self {
            tail: given("tail").map_or(Ok(true), parse_tail)?,
            since: given("since").map(|text| parse_time("since", text)).transpose()?,
            until: given("until").map(|text| parse_time("until", text)).transpose()?,
            text: given("q").map(parse_text).transpose()?,
            sources: given("source").map_or(Ok(Vec::new()), parse_sources)?,
            limit: given("limit").map_or(Ok(DEFAULT_LOG_ROWS), parse_limit)?,
        })
    }

    /// What is asked of the node, for a sandbox that was made at this time.
    fn query(self, created_at: Timestamp) -> Query {
        let millis = |time: Timestamp| u64::try_from(time.as_millisecond()).unwrap_or(0);
        Query {
            filter: Filter {
                since_ms: Some(millis(self.since.unwrap_or(created_at))),
                until_ms: self.until.map(millis),
                text: self.text,
                sources: self.sources,
            },
            limit: self.limit,
            follow: self.tail,
        }
    }
}

fn parse_tail(text: &str) -> Result<bool, Error> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(Error::invalid(format!("tail must be true or false (got {:?})", start_of(text)))),
    }
}

fn parse_time(name: &str, text: &str) -> Result<Timestamp, Error> {
    text.parse().map_err(|_| {
        let got = start_of(text);
        Error::invalid(format!("{name} must be a time such as 2026-01-31T12:00:00Z (got {got:?})"))
    })
}

fn parse_text(text: &str) -> Result<String, Error> {
    if text.contains(['\r', '\n', '\0']) {
        return Err(Error::invalid("q must be text within one line, without CR, LF or NUL"));
    }
    Ok(text.to_owned())
}

fn parse_sources(text: &str) -> Result<Vec<Source>, Error> {
    let mut sources = Vec::new();
    for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        let source = name.parse().map_err(|_| {
            let known = Source::ALL.map(Source::as_str).join(", ");
            Error::invalid(format!("source {:?} is not one of {known}", start_of(name)))
        })?;
        if !sources.contains(&source) {
            sources.push(source);
        }
    }
    Ok(sources)
}

fn parse_limit(text: &str) -> Result<u32, Error> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // More digits than a number holds are more rows than anybody gets.
    let number = if digits { text.parse().unwrap_or(u32::MAX) } else { 0 };
    if number == 0 {
        let got = start_of(text);
        return Err(Error::invalid(format!(
            "limit must be a number of rows, from 1 to {MAX_LIMIT} (got {got:?})"
        )));
    }
    Ok(number.min(MAX_LIMIT))
}

/// As much of a value as belongs into a message.
fn start_of(text: &str) -> &str {
    &text[..text.floor_char_boundary(60)]
}

// === impl App ===

impl App {
    /// Opens the log of a sandbox in any state but stopped. It is not woken by that, and not kept awake.
    pub(crate) async fn read_logs(
        &self,
        caller: &Caller,
        id: &SandboxId,
        request: LogRequest,
    ) -> Result<LogStream, Error> {
        let found = self.store.find_sandbox(caller.org(), id).await?.ok_or_else(sandbox_not_found)?;
        match found.observed {
            SandboxState::Running | SandboxState::Hibernated | SandboxState::Error => {}
            SandboxState::Creating => {
                return Err(Error::unavailable(format!(
                    "sandbox {id} is still being made; try again in a moment"
                )));
            }
            SandboxState::Stopped => return Err(has_been_stopped(id)),
        }
        let body = self.node.read_logs(id, &request.query(found.created_at)).await.map_err(from_node)?;
        Ok(LogStream::new(id.clone(), body))
    }
}

// === impl LogStream ===

impl LogStream {
    fn new(sandbox: SandboxId, body: Body) -> Self {
        Self { sandbox, body, pending: BytesMut::new(), is_live: false, failed: None }
    }

    /// The next rows that came together, perhaps none; `None` at the proper end. What a guest sends that is no row ends
    /// the stream with an error. Nothing is lost when this is not waited for to its end.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<LogRow>>, Error> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        match self.body.frame().await {
            Some(Ok(frame)) => {
                if let Ok(bytes) = frame.into_data() {
                    self.pending.extend_from_slice(&bytes);
                }
                Ok(Some(self.take_rows()))
            }
            Some(Err(error)) => Err(lost(&error)),
            None if self.pending.is_empty() => Ok(None),
            None => Err(lost(&"it ended in the middle of a row")),
        }
    }

    /// Whether the history is over.
    pub(crate) fn is_live(&self) -> bool {
        self.is_live
    }

    /// The whole rows among what has come.
    fn take_rows(&mut self) -> Vec<LogRow> {
        let mut rows = Vec::new();
        while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
            let line = self.pending.split_to(end + 1);
            match &line[..end] {
                [] => self.is_live = true,
                line => match parse_row(&self.sandbox, line) {
                    Ok(row) => rows.push(row),
                    Err(error) => {
                        self.failed = Some(error);
                        return rows;
                    }
                },
            }
        }
        if self.pending.len() > MAX_ROW_BYTES {
            self.failed = Some(lost(&"a row is too long"));
        }
        rows
    }
}

fn parse_row(sandbox: &SandboxId, line: &[u8]) -> Result<LogRow, Error> {
    if line.len() > MAX_ROW_BYTES {
        return Err(lost(&"a row is too long"));
    }
    view(sandbox, serde_json::from_slice(line).map_err(|error| lost(&error))?)
}

fn view(sandbox: &SandboxId, row: Row) -> Result<LogRow, Error> {
    Ok(LogRow {
        time: timestamp(row.time_ms)?,
        source: row.source.to_string(),
        line: row.line,
        sandbox_id: Some(sandbox.to_string()),
        path: row.path,
        exec_id: row.exec_id.map(|id| id.to_string()),
        command: row.command,
        argv: Some(row.argv).filter(|argv| !argv.is_empty()),
        exit_code: row.exit_code,
    })
}

fn lost(cause: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorKind::SandboxFailed, format!("the log of the sandbox was lost: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &[(&str, &str)]) -> Result<LogRequest, String> {
        let get = |name: &str| query.iter().find(|(found, _)| *found == name).map(|(_, value)| *value);
        LogRequest::parse(get).map_err(|error| error.message)
    }

    #[test]
    fn what_is_not_given_has_a_default() {
        let created = Timestamp::from_second(100).unwrap();
        let defaults = parse(&[]).unwrap();
        assert_eq!(
            parse(&[("since", ""), ("q", ""), ("limit", ""), ("source", ""), ("tail", "")]).unwrap(),
            defaults
        );
        let query = defaults.query(created);
        assert_eq!((query.limit, query.follow, query.filter.since_ms), (1000, true, Some(100_000)));
        let query =
            parse(&[("since", "1970-01-01T00:01:00.5+00:00"), ("until", "1960-01-01T00:00:00Z")]).unwrap();
        let query = query.query(created);
        assert_eq!((query.filter.since_ms, query.filter.until_ms), (Some(60_500), Some(0)));
        let sources = parse(&[("source", " exec_stdout, agent ,,agent")]).unwrap().sources;
        assert_eq!(sources, [Source::ExecStdout, Source::Agent]);
    }

    #[test]
    fn bad_parameters_say_what_is_wanted() {
        for (name, value, says) in [
            ("tail", "maybe", "true or false"),
            ("since", "yesterday", "2026-01-31T12:00:00Z"),
            ("until", "30m", "2026-01-31T12:00:00Z"),
            ("q", "a\nb", "one line"),
            ("q", "a\0b", "one line"),
            ("source", "exec", "exec_stdout, exec_stderr"),
            ("limit", "0", "from 1 to 10000"),
            ("limit", "-1", "from 1"),
            ("limit", "1.5", "from 1"),
            ("limit", "+5", "from 1"),
        ] {
            let message = parse(&[(name, value)]).unwrap_err();
            assert!(message.starts_with(name) && message.contains(says), "{message}");
        }
        let message = parse(&[("since", &"é".repeat(1000))]).unwrap_err();
        assert!(message.len() < 200, "{message}");
        assert_eq!(parse(&[("limit", "10001")]).unwrap().limit, 10_000);
        assert_eq!(parse(&[("limit", "99999999999999999999999")]).unwrap().limit, 10_000);
    }

    /// The rows in a stream, whether its history ended, and how it broke off.
    async fn read(text: &str) -> (Vec<LogRow>, bool, Option<String>) {
        let mut stream = LogStream::new("sb-00000001".parse().unwrap(), Body::from(text.to_owned()));
        let mut rows = Vec::new();
        let error = loop {
            match stream.next().await {
                Ok(Some(more)) => rows.extend(more),
                Ok(None) => break None,
                Err(error) => break Some(error.message),
            }
        };
        (rows, stream.is_live(), error)
    }

    #[tokio::test]
    async fn rows_of_a_guest_are_read_strictly() {
        let row = r#"{"time_ms":1000,"source":"exec_stdout","line":"hi","exec_id":"0123abcd","sandbox_id":"sb-ffffffff"}"#;
        let (rows, is_live, error) = read(&format!("{row}\n{row}\n")).await;
        assert_eq!((rows.len(), is_live, error), (2, false, None));
        assert_eq!(
            serde_json::to_string(&rows[0]).unwrap(),
            r#"{"_time":"1970-01-01T00:00:01Z","source":"exec_stdout","line":"hi","sandbox_id":"sb-00000001","exec_id":"0123abcd"}"#
        );
        for bad in [
            "{}\n".to_owned(),
            "garbage\n".to_owned(),
            row.replace("exec_stdout", "nonsense") + "\n",
            row.replace("1000", "18446744073709551615") + "\n",
            row.replace("0123abcd", "../../etc") + "\n",
            row.to_owned(),
            row.replace("hi", &"x".repeat(MAX_ROW_BYTES)) + "\n",
            "x".repeat(MAX_ROW_BYTES + 1),
        ] {
            let (rows, is_live, error) = read(&format!("{row}\n\n{bad}")).await;
            assert_eq!((rows.len(), is_live), (1, true), "what came before is kept");
            assert!(error.is_some_and(|error| error.contains("sandbox")), "{bad:.100}");
        }
    }
}
