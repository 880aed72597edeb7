//! The log of a sandbox, without waking it: from its agent while it runs, else from the copy of its journal.
//!
//! The copy is taken when a sandbox hibernates, after its commands have ended and before its agent does, and replaces the
//! one before. So a sandbox that hibernates shows all there is; one that has failed shows what it had logged when it last
//! hibernated and a row that says so, since nothing of its disk is read on the host. Like everything of a guest's, the
//! copy is bounded and may hold anything; the reader passes over what is no row.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use jiff::Timestamp;
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;
use tracing::{info, warn};
use warren_guest_api::logs::journal::{HEADER, History, NewRow, Part};
use warren_guest_api::logs::{Query, Source};
use warren_types::Error;

use crate::guest::Guest;

const FILE: &str = "log.journal";
const UNFINISHED: &str = "log.unfinished";
/// Longest copy: two files of an agent's, and what their last rows may be over.
const MAX_BYTES: u64 = 40 * 1024 * 1024;
/// How long taking over may hold up a hibernation.
const DEADLINE: Duration = Duration::from_secs(5);
/// Bytes of rows in one piece of an answer.
const PIECE_BYTES: usize = 256 * 1024;
/// Copies that are searched at once; more wait. A search takes a tenth of a second of the host's time at worst.
static SEARCHES: Semaphore = Semaphore::const_new(2);

/// Who knows what a sandbox has logged.
pub(crate) enum Log {
    /// It runs.
    Agent(Guest),
    /// It does not; this is its folder.
    Copy(PathBuf),
}

/// Copies the journal of a sandbox that is about to end. What cannot be copied is told of in the copy there is; the
/// rows are still on the sandbox's disk.
pub(crate) async fn take_over(guest: &Guest, folder: &Path) {
    let copied = tokio::time::timeout(DEADLINE, copy(guest, folder)).await;
    let reason = match copied {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("it took longer than {} s", DEADLINE.as_secs()),
    };
    info!(reason, "the log of a sandbox could not be copied");
    note_missing(folder).await;
}

async fn copy(guest: &Guest, folder: &Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut answer = guest.call(request(Method::GET, Body::empty())?, "/v1/logs/journal").await?;
    if answer.status() == StatusCode::NOT_FOUND {
        // An agent from before there were journals.
        return Ok(());
    }
    if !answer.status().is_success() {
        return Err(format!("its agent answered {}", answer.status()).into());
    }
    let unfinished = folder.join(UNFINISHED);
    let mut file = tokio::fs::File::create(&unfinished).await?;
    let mut size = 0;
    while let Some(frame) = answer.body_mut().frame().await {
        let Ok(bytes) = frame?.into_data() else { continue };
        size += bytes.len() as u64;
        if size > MAX_BYTES {
            return Err(format!("it is larger than {MAX_BYTES} bytes").into());
        }
        file.write_all(&bytes).await?;
    }
    file.flush().await?;
    tokio::fs::rename(unfinished, folder.join(FILE)).await?;
    Ok(())
}

/// Says in the copy that the sandbox ended without another one being made.
pub(crate) async fn note_failure(folder: &Path, reason: &str) {
    let line = format!(
        "the sandbox has failed: {reason}; what it logged since it last hibernated cannot be read any more"
    );
    note(folder, &line).await;
}

/// Says in the copy that the sandbox hibernated without another one being made.
pub(crate) async fn note_missing(folder: &Path) {
    let line = "what was logged last could not be copied and is missing here until the sandbox runs again";
    note(folder, line).await;
}

/// Adds a row to the copy.
async fn note(folder: &Path, line: &str) {
    let (path, line) = (folder.join(FILE), line.to_owned());
    let added = tokio::task::spawn_blocking(move || add(&path, &line)).await;
    if let Err(error) = added.map_err(io::Error::other).flatten() {
        warn!(%error, "a row could not be added to the copy of a sandbox's log");
    }
}

fn add(path: &Path, line: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).create(true).open(path)?;
    let size = file.metadata()?.len();
    // What was copied may end in the middle of a row.
    let mut text = if size == 0 { HEADER.to_vec() } else { b"\n".to_vec() };
    let time_ms = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default();
    NewRow { time_ms, source: Source::Agent, line, path: None, command: None, exit_code: None }
        .write(&mut text);
    if size < MAX_BYTES { file.write_all(&text) } else { Ok(()) }
}

/// Asks the agent. `None` where it knows nothing of logs.
pub(crate) async fn of_agent(guest: &Guest, query: &Query) -> Result<Option<http::Response<Body>>, Error> {
    let json = serde_json::to_vec(query).map_err(|error| Error::internal(error.to_string()))?;
    let answer = guest.call(request(Method::POST, Body::from(json))?, "/v1/logs").await?;
    Ok(Some(answer).filter(|answer| answer.status() != StatusCode::NOT_FOUND))
}

fn request(method: Method, body: Body) -> Result<Request<Body>, Error> {
    Request::builder().method(method).body(body).map_err(|error| Error::internal(error.to_string()))
}

/// Answers from the copy: history and its end.
pub(crate) async fn of_copy(folder: &Path, query: &Query) -> Result<Body, Error> {
    let (path, filter) = (folder.join(FILE), query.filter.clone());
    let limit = usize::try_from(query.limit).unwrap_or(usize::MAX);
    let search = move || {
        let part = match File::open(path) {
            Ok(file) => Some(Part { length: file.metadata()?.len().min(2 * MAX_BYTES), file }),
            // It never hibernated, or logged nothing.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        History::find(part.into_iter().collect(), &filter, limit)
    };
    let _turn = SEARCHES.acquire().await.map_err(|error| Error::internal(error.to_string()))?;
    let unreadable = |error: io::Error| Error::internal(format!("the log could not be read: {error}"));
    let history =
        tokio::task::spawn_blocking(search).await.map_err(io::Error::other).flatten().map_err(unreadable)?;
    Ok(Body::from_stream(futures_util::stream::unfold(Some(history), next_piece)))
}

async fn next_piece(history: Option<History>) -> Option<(io::Result<Bytes>, Option<History>)> {
    let mut history = history?;
    let read = tokio::task::spawn_blocking(move || {
        let lines = history.next_lines(PIECE_BYTES)?;
        Ok((lines, history))
    });
    match read.await.map_err(io::Error::other).flatten() {
        // The end of the history, and of the answer.
        Ok((lines, _)) if lines.is_empty() => Some((Ok(Bytes::from_static(b"\n")), None)),
        Ok((lines, history)) => Some((Ok(lines.into()), Some(history))),
        Err(error) => Some((Err(error), None)),
    }
}

#[cfg(test)]
mod tests {
    use warren_guest_api::logs::{Filter, Row};

    use super::*;

    fn everything() -> Query {
        Query { filter: Filter::default(), limit: 100, follow: true }
    }

    async fn lines(folder: &Path) -> Vec<String> {
        let body = of_copy(folder, &everything()).await.unwrap().collect().await.unwrap().to_bytes();
        let text = std::str::from_utf8(&body).unwrap();
        let text = text.strip_suffix('\n').expect("a blank line ends the history");
        text.lines().map(|line| serde_json::from_str::<Row>(line).unwrap().line).collect()
    }

    #[tokio::test]
    async fn a_copy_is_read_and_added_to() {
        let folder = tempfile::tempdir().unwrap();
        assert!(lines(folder.path()).await.is_empty(), "no copy, no rows");
        let mut text = HEADER.to_vec();
        let row = |line: &str, text: &mut Vec<u8>| {
            let row = NewRow {
                time_ms: 1,
                source: Source::ExecStdout,
                line,
                path: None,
                command: None,
                exit_code: None,
            };
            row.write(text);
        };
        row("one", &mut text);
        row("cut off", &mut text);
        text.truncate(text.len() - 4);
        std::fs::write(folder.path().join(FILE), text).unwrap();
        note(folder.path(), "a note").await;
        assert_eq!(lines(folder.path()).await, ["one", "a note"]);
    }

    #[tokio::test]
    async fn a_note_needs_no_copy() {
        let folder = tempfile::tempdir().unwrap();
        note(folder.path(), "first").await;
        note(folder.path(), "second").await;
        assert_eq!(lines(folder.path()).await, ["first", "second"]);
    }
}
