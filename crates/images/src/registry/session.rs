//! Requests to one registry about one repository.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE};
use http::{HeaderValue, StatusCode};
use reqwest::{Response, Url};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

use super::guard::{Blocked, Guard, shown_host};
use super::patience::Patience;
use super::{Login, auth, challenge};
use crate::error::shown;
use crate::{ImageError, Limits, Reference};

const MOST_REDIRECTS: usize = 5;
/// For a document as a whole. One that comes byte by byte never stalls.
const DOCUMENT: Duration = Duration::from_secs(60);
const LARGEST_ERROR: u64 = 64 << 10;

pub(super) struct Session {
    guard: Arc<Guard>,
    /// Of the registry.
    url: Url,
    registry: String,
    repository: String,
    /// What was asked for, for errors.
    image: String,
    login: Option<Login>,
    /// What the registry lets us in with.
    authorization: Mutex<Option<HeaderValue>>,
}

/// How long to wait: for the next byte, and for everything.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timed {
    pub(super) stall: Duration,
    pub(super) deadline: Option<Instant>,
}

pub(super) struct Fetched {
    pub(super) body: Vec<u8>,
    pub(super) content_type: Option<String>,
    pub(super) digest: Option<String>,
}

// === impl Timed ===

impl Timed {
    pub(super) async fn wait<T>(&self, host: &str, what: impl Future<Output = T>) -> Result<T, ImageError> {
        let stalled = Instant::now() + self.stall;
        let until = self.deadline.map_or(stalled, |deadline| deadline.min(stalled));
        timeout_at(until, what).await.map_err(|_| {
            let seconds = self.stall.as_secs();
            if until == stalled {
                ImageError::Stalled { host: host.to_owned(), seconds }
            } else {
                let why = format!("it took longer than {} s for a small document", DOCUMENT.as_secs());
                ImageError::Network { host: host.to_owned(), why }
            }
        })
    }
}

// === impl Session ===

impl Session {
    pub(super) fn new(
        guard: Arc<Guard>,
        reference: &Reference,
        login: Option<Login>,
    ) -> Result<Self, ImageError> {
        let url = guard.registry(reference.host())?;
        Ok(Self {
            guard,
            url,
            registry: reference.registry().to_owned(),
            repository: reference.repository().to_owned(),
            image: reference.to_string(),
            login,
            authorization: Mutex::new(None),
        })
    }

    /// A small document of the repository, `path` being relative to it. Whoever cannot answer for the moment is asked again.
    pub(super) async fn document(
        &self,
        path: &str,
        accept: &str,
        what: &str,
        most: u64,
    ) -> Result<Fetched, ImageError> {
        let deadline = Instant::now() + DOCUMENT;
        let timed = Timed { stall: Limits::default().stall, deadline: Some(deadline) };
        let mut patience = Patience::until(deadline);
        loop {
            match self.document_once(path, accept, (what, most), timed).await {
                Err(error) => patience.after(error, path, false).await?,
                document => return document,
            }
        }
    }

    async fn document_once(
        &self,
        path: &str,
        accept: &str,
        (what, most): (&str, u64),
        timed: Timed,
    ) -> Result<Fetched, ImageError> {
        let response = self.get(path, accept, timed).await?;
        let header = |name: &str| {
            let value = response.headers().get(name)?.to_str().ok()?;
            Some(value.to_owned())
        };
        let content_type = header(CONTENT_TYPE.as_str());
        let content_type =
            content_type.map(|value| value.split(';').next().unwrap_or_default().trim().to_owned());
        let digest = header("docker-content-digest");
        let host = shown_host(response.url());
        let body = body(response, &host, what, most, timed).await?;
        Ok(Fetched { body, content_type, digest })
    }

    /// A successful answer, the body of which is still to be read.
    pub(super) async fn get(&self, path: &str, accept: &str, timed: Timed) -> Result<Response, ImageError> {
        self.get_from(path, accept, 0, timed).await
    }

    /// The same from a byte on, or, of a server that does not know of parts, all of it.
    pub(super) async fn get_from(
        &self,
        path: &str,
        accept: &str,
        from: u64,
        timed: Timed,
    ) -> Result<Response, ImageError> {
        let path = format!("v2/{}/{path}", self.repository);
        let wrong =
            |_| ImageError::Reference { text: self.image.clone(), wrong: "it makes no address".to_owned() };
        let url = self.url.join(&path).map_err(wrong)?;
        let used = self.authorization.lock().await.clone();
        let (response, is_own) = self.follow(&url, (accept, from), used.as_ref(), timed).await?;
        if response.status() != StatusCode::UNAUTHORIZED || !is_own {
            return self.check(response, from, timed).await;
        }
        let answer = self.answer(&response, used.as_ref(), timed).await?;
        let (response, _) = self.follow(&url, (accept, from), Some(&answer), timed).await?;
        self.check(response, from, timed).await
    }

    /// Asks, and follows redirects. Whether the answer is the registry's own.
    async fn follow(
        &self,
        url: &Url,
        (accept, from): (&str, u64),
        authorization: Option<&HeaderValue>,
        timed: Timed,
    ) -> Result<(Response, bool), ImageError> {
        let mut url = url.clone();
        let mut is_own = true;
        for _ in 0..=MOST_REDIRECTS {
            let host = shown_host(&url);
            let mut request = self.guard.client(&url)?.get(url.clone());
            if !accept.is_empty() {
                request = request.header(ACCEPT, accept);
            }
            if from > 0 {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            // Once away from the registry, nothing that comes back to it is asked in our name.
            if let Some(authorization) = authorization.filter(|_| is_own) {
                request = request.header(AUTHORIZATION, authorization);
            }
            let response =
                timed.wait(&host, request.send()).await?.map_err(|error| network(&host, &error))?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok((response, is_own));
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let next = location.and_then(|location| url.join(location).ok());
            url = next
                .ok_or_else(|| ImageError::Registry { host, why: "it redirects to no address".to_owned() })?;
            is_own &= url.origin() == self.url.origin();
        }
        Err(self.wrong(format!("it redirects more than {MOST_REDIRECTS} times")))
    }

    /// Lets us in, once. Of several requests that are refused at once, the first does it for all.
    async fn answer(
        &self,
        response: &Response,
        used: Option<&HeaderValue>,
        timed: Timed,
    ) -> Result<HeaderValue, ImageError> {
        let mut authorization = self.authorization.lock().await;
        if let Some(newer) = authorization.as_ref()
            && Some(newer) != used
        {
            return Ok(newer.clone());
        }
        let challenge = challenge::read(response.headers());
        let challenge = challenge.ok_or_else(|| self.denied("it does not say what login it wants"))?;
        let answer =
            auth::answer(&self.guard, &challenge, self.login.as_ref(), &self.repository, timed).await;
        let answer = answer.map_err(|error| match error {
            ImageError::Denied { why, .. } => self.denied(&why),
            other => other,
        })?;
        Ok(authorization.insert(answer).clone())
    }

    async fn check(&self, response: Response, from: u64, timed: Timed) -> Result<Response, ImageError> {
        let status = response.status();
        if status == StatusCode::OK {
            return Ok(response);
        }
        let host = shown_host(response.url());
        if status == StatusCode::PARTIAL_CONTENT {
            let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
            let is_asked_for = range.is_some_and(|range| range.starts_with(&format!("bytes {from}-")));
            return match from > 0 && is_asked_for {
                true => Ok(response),
                false => Err(ImageError::Registry {
                    host,
                    why: "it sent another part than was asked for".to_owned(),
                }),
            };
        }
        let said = said(response, &host, timed).await;
        Err(match status {
            StatusCode::NOT_FOUND => ImageError::NotFound { what: format!("the image {}{said}", self.image) },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let why = if self.login.is_some() {
                    "the login may not read it, or is wrong"
                } else {
                    "it wants a login, and none was given"
                };
                self.denied(&format!("{why}{said}"))
            }
            StatusCode::TOO_MANY_REQUESTS => {
                let or = if self.login.is_some() { "" } else { ", or with a login" };
                ImageError::Busy { registry: self.registry.clone(), or, said }
            }
            status if is_down(status) => ImageError::Down { host, status, said },
            _ => ImageError::Registry { host, why: format!("it answered {status}{said}") },
        })
    }

    /// The registry's, for errors.
    pub(super) fn host(&self) -> String {
        shown_host(&self.url)
    }

    fn denied(&self, why: &str) -> ImageError {
        ImageError::Denied { registry: self.registry.clone(), what: self.image.clone(), why: why.to_owned() }
    }

    fn wrong(&self, why: String) -> ImageError {
        ImageError::Registry { host: self.host(), why }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("image", &self.image).finish_non_exhaustive()
    }
}

/// Whether whoever answers that has a trouble of its own, and may have none a moment later.
pub(super) fn is_down(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::INTERNAL_SERVER_ERROR
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

/// A whole body, if it is no larger.
pub(super) async fn body(
    mut response: Response,
    host: &str,
    what: &str,
    most: u64,
    timed: Timed,
) -> Result<Vec<u8>, ImageError> {
    let too_large = || ImageError::TooLarge(format!("{what} has more than {most} bytes"));
    if response.content_length().is_some_and(|length| length > most) {
        return Err(too_large());
    }
    let mut body = Vec::new();
    while let Some(piece) =
        timed.wait(host, response.chunk()).await?.map_err(|error| network(host, &error))?
    {
        if (body.len() + piece.len()) as u64 > most {
            return Err(too_large());
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

/// The words of a registry's error document, in brackets, if it has any.
async fn said(response: Response, host: &str, timed: Timed) -> String {
    #[derive(serde::Deserialize)]
    struct Document {
        errors: Vec<Entry>,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(json) = body(response, host, "an error", LARGEST_ERROR, timed).await else { return String::new() };
    let Ok(document) = serde_json::from_slice::<Document>(&json) else { return String::new() };
    let first = document
        .errors
        .first()
        .map(|entry| if entry.message.is_empty() { &entry.code } else { &entry.message });
    first.map(|words| format!(" (it says {})", shown(words.as_bytes()))).unwrap_or_default()
}

/// What went wrong with a connection. The address that was asked is left out: what is signed is in it.
pub(super) fn network(host: &str, error: &reqwest::Error) -> ImageError {
    let host = host.to_owned();
    let mut cause: &dyn Error = error;
    while let Some(source) = cause.source() {
        cause = source;
        if let Some(blocked) = cause.downcast_ref::<Blocked>() {
            return ImageError::Unreachable { host, why: blocked.to_string() };
        }
    }
    let is_cut_off =
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::UnexpectedEof);
    let why = match cause.source().is_none() && std::ptr::addr_eq(cause, error) {
        true => "the connection failed".to_owned(),
        false if is_cut_off => "the connection was cut off".to_owned(),
        false => cause.to_string(),
    };
    ImageError::Network { host, why }
}
