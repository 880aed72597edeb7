//! `/v1/files`.

use std::rc::Rc;

use bytes::Bytes;
use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use http::{HeaderValue, Method, StatusCode};
use warren_types::Error;
use warren_types::error::Result;

use super::{Answer, Call, no_such_path};
use crate::agent::Agent;
use crate::files::list::Listing;
use crate::files::read::{Asked, parse_range};
use crate::files::write::Upload;
use crate::files::{self, read, write};
use crate::paths::GuestPath;
use crate::reply::{self, Failure, Reply, ReplyBody};
use crate::request::{self, next_bytes, wrong_method};
use crate::workers::Workers;

/// Bytes of an upload that are written at a time, while the next ones arrive.
const WRITE: usize = 1024 * 1024;

pub(super) async fn route(agent: &Rc<Agent>, rest: &[&str], call: Call) -> Answer {
    let answer = dispatch(agent, rest, call).await;
    agent.rest.note_work();
    answer
}

async fn dispatch(agent: &Rc<Agent>, rest: &[&str], call: Call) -> Answer {
    match (rest, &call.method) {
        ([], &Method::GET | &Method::HEAD) => get(agent, &call).await,
        ([], &Method::PUT) => put(agent, call).await,
        ([], &Method::DELETE) => {
            let path = path(agent, &call)?;
            done(agent, move || files::remove(&path)).await
        }
        (["list"], &Method::GET) => {
            let path = path(agent, &call)?;
            let listing = on_worker(agent, move || Listing::read(&path)).await?;
            Ok(reply::stream(StatusCode::OK, agent.listings.hold(listing)?))
        }
        (["stat"], &Method::GET) => {
            let path = path(agent, &call)?;
            let follow = call.query.get("follow") == Some(&b"true"[..]);
            reply::json(StatusCode::OK, &on_worker(agent, move || files::stat(&path, follow)).await?)
        }
        (["mkdir"], &Method::POST) => {
            let (path, account) = (path(agent, &call)?, agent.account());
            let is_users = call.query.get("owner") == Some(&b"user"[..]);
            done(agent, move || files::make_folder(&path, &account, is_users)).await
        }
        (["move"], &Method::POST) => {
            let (asked, account) = (request::json(call.body).await?, agent.account());
            done(agent, move || files::apply_move(&asked, &account)).await
        }
        (["chmod"], &Method::POST) => {
            let (asked, account) = (request::json(call.body).await?, agent.account());
            done(agent, move || files::apply_chmod(&asked, &account)).await
        }
        (["archive"], &Method::GET) => {
            Ok(reply::stream(StatusCode::OK, agent.transfers.pack(path(agent, &call)?).await?))
        }
        (["archive"], &Method::PUT) => {
            agent.transfers.unpack(path(agent, &call)?, call.body, agent.account()).await?;
            Ok(reply::empty(StatusCode::NO_CONTENT))
        }
        ([] | ["list" | "stat" | "mkdir" | "move" | "chmod" | "archive"], _) => Err(wrong_method()),
        _ => Err(no_such_path()),
    }
}

fn path(agent: &Agent, call: &Call) -> Result<GuestPath> {
    GuestPath::below(
        &agent.account().user.home,
        call.query.get("path").ok_or_else(|| Error::invalid("path query parameter is required"))?,
    )
}

async fn on_worker<T: Send + 'static>(
    agent: &Agent,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let result = agent.files.run(work).await;
    result.unwrap_or_else(|_| Err(Error::internal("the work on the file was broken off")))
}

async fn done(agent: &Agent, work: impl FnOnce() -> Result<()> + Send + 'static) -> Answer {
    on_worker(agent, work).await?;
    Ok(reply::empty(StatusCode::NO_CONTENT))
}

async fn get(agent: &Agent, call: &Call) -> Answer {
    let path = path(agent, call)?;
    let opened = on_worker(agent, move || read::open(&path)).await?;
    let size = opened.size;
    let asked = parse_range(call.head.headers.get(RANGE).map(HeaderValue::as_bytes), size);
    let (status, range) = match asked {
        Asked::Everything => (StatusCode::OK, 0..size),
        Asked::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        Asked::Unsatisfiable => return Ok(unsatisfiable(size)),
    };
    let length = range.end - range.start;
    let content_range = format!("bytes {}-{}/{size}", range.start, range.end.saturating_sub(1));
    let mut reply = if length == 0 || call.method == Method::HEAD {
        reply::whole(status, Bytes::new())
    } else {
        reply::stream(status, opened.stream(range, agent.files.clone()))
    };
    if call.method == Method::HEAD {
        *reply.body_mut() = ReplyBody::Whole(None);
    }
    reply.headers_mut().insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if status == StatusCode::PARTIAL_CONTENT {
        set_content_range(&mut reply, &content_range);
    }
    Ok(reply::with_length(reply, length))
}

fn unsatisfiable(size: u64) -> Reply {
    let error = Error::invalid(format!("the range lies outside the file, which has {size} bytes"))
        .with_code("range_not_satisfiable");
    let mut reply = reply::failure(Failure { status: Some(StatusCode::RANGE_NOT_SATISFIABLE), error });
    set_content_range(&mut reply, &format!("bytes */{size}"));
    reply
}

fn set_content_range(reply: &mut Reply, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        reply.headers_mut().insert(CONTENT_RANGE, value);
    }
}

async fn put(agent: &Agent, mut call: Call) -> Answer {
    let (path, account) = (path(agent, &call)?, agent.account());
    let mode = call.query.get("mode").map(parse_mode).transpose()?;
    let length = call.head.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let upload = on_worker(agent, move || write::begin(path, mode, length, &account)).await?;
    let mut upload = Some(Held::new(upload, &agent.files));
    let mut writing = None;
    loop {
        // Collects the next pieces while the last ones are written.
        let (pieces, ended) = collect(&mut call.body).await?;
        if let Some(last) = writing.take() {
            upload = Some(written(last).await?);
        }
        let Some(mut held) = upload.take() else { return Err(Error::internal("an upload was lost").into()) };
        writing = Some(agent.files.run(move || held.write(&pieces).map(|()| held)));
        if ended {
            break;
        }
    }
    if let Some(last) = writing {
        let held = written(last).await?;
        on_worker(agent, move || held.complete()).await?;
    }
    Ok(reply::empty(StatusCode::NO_CONTENT))
}

async fn written(job: tokio::sync::oneshot::Receiver<Result<Held>>) -> Result<Held> {
    job.await.unwrap_or_else(|_| Err(Error::internal("the upload was broken off")))
}

/// The next pieces of a body, and whether they are the last.
async fn collect(body: &mut hyper::body::Incoming) -> Result<(Vec<Bytes>, bool)> {
    let mut pieces = Vec::new();
    let mut size = 0;
    while size < WRITE {
        match next_bytes(body).await {
            None => return Ok((pieces, true)),
            Some(Err(_)) => return Err(Error::invalid("the upload ended early; nothing was changed")),
            Some(Ok(bytes)) => {
                size += bytes.len();
                pieces.push(bytes);
            }
        }
    }
    Ok((pieces, false))
}

fn parse_mode(text: &[u8]) -> Result<u32> {
    let digits = text.iter().all(u8::is_ascii_digit);
    let mode =
        std::str::from_utf8(text).ok().filter(|_| digits).and_then(|text| u32::from_str_radix(text, 8).ok());
    let mode = mode.ok_or_else(|| Error::invalid("mode must be an octal number such as 644"))?;
    files::check_mode(mode)?;
    Ok(mode)
}

/// An upload that, if it is dropped unfinished, is taken back by a worker thread: removing a large file takes time.
struct Held {
    upload: Option<Upload>,
    workers: Workers,
}

impl Held {
    fn new(upload: Upload, workers: &Workers) -> Self {
        Self { upload: Some(upload), workers: workers.clone() }
    }

    fn write(&mut self, pieces: &[Bytes]) -> Result<()> {
        match &mut self.upload {
            Some(upload) => upload.write(pieces),
            None => Ok(()),
        }
    }

    fn complete(mut self) -> Result<()> {
        self.upload.take().map_or(Ok(()), Upload::complete)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(upload) = self.upload.take() {
            drop(self.workers.run(move || drop(upload)));
        }
    }
}
