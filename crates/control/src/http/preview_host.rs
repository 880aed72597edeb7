//! What is asked of a preview's host: who may, wake, pass on.
//!
//! ```text
//!   host ─▶ API, or a preview ─▶ sandbox? ─▶ may they? ─▶ wake ─▶ connection ─▶ program
//!            │                    404         401, 403     410, 502, 503   502
//!            └▶ neither: 400, 404
//! ```
//!
//! The host of a request alone decides where it goes ([`host`]): an API route is never reached under a preview's name, and a
//! preview under no other. What a program answers is a guest's: it cannot answer for another host ([`forward`]).

mod credentials;
mod forward;
mod host;
mod pages;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use warren_types::{Error, ErrorKind};

use super::errors::ApiError;
use super::headers::PublicBase;
use super::request_id::id_of;
use crate::app::App;
use crate::app::audit::Kind;
use crate::app::auth::Live;
use crate::app::previews::gate::Admitted;
use crate::app::previews::no_such_sandbox;
use crate::app::previews::open::Opened;
use crate::domain::CustomDomain;
use forward::Entry;
use host::{Addressed, Target};
use pages::Page;

/// How long a browser waits for a sandbox to wake before it gets a page to wait on.
const PATIENCE: Duration = Duration::from_secs(2);
/// Any page may ask, without what its browser knows of the preview: the same as for the API.
const ANY: HeaderValue = HeaderValue::from_static("*");

/// Why a request gets an answer of ours instead of a program's.
#[derive(Debug)]
enum Refused {
    Error(Error),
    /// It goes on waking.
    Waking,
    /// No program accepts connections there.
    NothingListens,
    /// A connection broke, or what came was no HTTP.
    BrokeOff(String),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// Sends each request to where its host says.
pub(super) async fn dispatch(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let api_host = app.public_url.as_deref().and_then(crate::domain::host_of);
    let custom = app.custom_domains.iter().map(CustomDomain::name);
    let domains: Vec<&str> = std::iter::once(app.sandbox_domain.name()).chain(custom).collect();
    match host::addressed(&request, &domains, api_host.as_deref()) {
        Ok(Addressed::Api) => next.run(request).await,
        Ok(Addressed::Preview(target)) => serve(&app, &target, request).await,
        Err(error) => ApiError::from(error).into_response(),
    }
}

async fn serve(app: &Arc<App>, target: &Target, request: Request) -> Response {
    if let Some(answer) = preflight(&request) {
        return answer;
    }
    let page = pages::wants_page(&request);
    let mut response = match answer(app, target, request, page).await {
        Ok(response) => response,
        Err(refused) => refused.into_response(target, page),
    };
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, ANY);
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, ANY);
    response
}

async fn answer(app: &Arc<App>, target: &Target, request: Request, page: bool) -> Result<Response, Refused> {
    let (mut parts, body) = request.into_parts();
    let base = PublicBase::of(&parts, app);
    let is_secure = base.0.starts_with("https://");
    let path = credentials::LinkedPath::of(&parts.uri);
    let shown = credentials::shown(&parts, &target.host, &path, is_secure);

    let opened = Opened { port: target.port, domain: target.domain.clone() };
    let open = app.open_previews.begin(&target.id, opened)?;
    let standing = app.preview_standing(&target.id).await?;
    if let Some(domain) = &target.domain
        && !app.is_preview_at(&standing, target.port, domain).await?
    {
        return Err(no_such_sandbox(&target.id).into());
    }
    let admitted = app.admit_and_note(&standing, target.port, &shown)?;
    let reads = matches!(parts.method, Method::GET | Method::HEAD);
    if let (true, Some(_)) = (reads, &shown.link) {
        return Ok(credentials::redirect(&path, &admitted, is_secure));
    }
    // The token is not the program's to see, also when something else opened the preview.
    let bearer_is_ours = admitted == Admitted::Bearer
        || shown.bearer.as_deref().is_some_and(|bearer| App::is_preview_token(&standing, bearer));
    credentials::remove_ours(&mut parts.headers, bearer_is_ours);
    if let Some(expires) = admitted.expires() {
        open.is_good_until(expires);
    }
    let seen = standing.generation;
    let live = app.reach_preview(standing, &admitted)?.in_request(id_of(&parts.extensions));
    app.audit.tell_folded(live.note(Kind::PreviewRequest).with("port", target.port));
    let entry = Entry { seen, base: base.0, open: Arc::clone(&open) };
    let passed_on = async {
        wake(app, &live, page && parts.method == Method::GET).await?;
        forward::forward(app, target, entry, &path.clean, parts, body).await
    };
    tokio::select! {
        answer = passed_on => answer,
        () = open.ended() => Err(no_longer_open().into()),
    }
}

/// What let a request in has ended before it was answered.
fn no_longer_open() -> Error {
    Error::new(ErrorKind::Unauthenticated, "what this preview was opened with is no longer good")
}

/// Wakes a sandbox that sleeps. Who looks at a browser gets a page when that takes a while; it wakes all the same.
async fn wake(app: &Arc<App>, live: &Live, page: bool) -> Result<(), Refused> {
    if !live.is_asleep() {
        return Ok(());
    }
    let (waking, woken) = (Arc::clone(app), live.clone());
    let task = app.tasks.spawn(async move { waking.wake_preview(&woken).await });
    let lost = |_| Error::internal("the server failed while it woke the sandbox; its log says why");
    if page {
        match tokio::time::timeout(PATIENCE, task).await {
            Ok(done) => done.map_err(lost)??,
            Err(_) => return Err(Refused::Waking),
        }
    } else {
        task.await.map_err(lost)??;
    }
    Ok(())
}

/// What browsers ask before a page of another host may send a request. Opens nothing and wakes nobody.
fn preflight(request: &Request) -> Option<Response> {
    let headers = request.headers();
    let method = headers.get(header::ACCESS_CONTROL_REQUEST_METHOD)?;
    if request.method() != Method::OPTIONS || !headers.contains_key(header::ORIGIN) {
        return None;
    }
    let mut answer = HeaderMap::new();
    answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, ANY);
    answer.insert(header::ACCESS_CONTROL_ALLOW_METHODS, method.clone());
    if let Some(wanted) = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        answer.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
    }
    answer.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    Some((StatusCode::NO_CONTENT, answer).into_response())
}

// === impl Refused ===

impl Refused {
    fn into_response(self, target: &Target, page: bool) -> Response {
        let id = &target.id;
        let unavailable = format!("sandbox {id}: upstream unavailable");
        let failed = |message: String| Error::new(ErrorKind::SandboxFailed, message);
        let (error, page_of) = match self {
            Self::Waking => {
                let error = Error::unavailable(format!("sandbox {id} is waking; try again in a moment"));
                (error, Page::waking())
            }
            Self::NothingListens => {
                let error = failed(unavailable).with_code(warren_guest_api::ports::CODE_NOTHING_LISTENING);
                (error, Page::nothing_listens(target.port))
            }
            Self::BrokeOff(reason) => {
                tracing::debug!(sandbox = %id, port = target.port, reason, "a program's answer is none");
                let error = failed(unavailable).with_code("answer_broke_off");
                (error, Page::broke_off(target.port))
            }
            Self::Error(error) => {
                let page = Page::refused(&error);
                (error, page)
            }
        };
        let asks_for_token = error.kind == ErrorKind::Unauthenticated;
        let refusal = ApiError::from(error);
        let mut response =
            if page { page_of.into_response(refusal.status()) } else { refusal.into_response() };
        let headers = response.headers_mut();
        if asks_for_token {
            let wanted = HeaderValue::from_static("Bearer realm=\"preview\"");
            headers.insert(header::WWW_AUTHENTICATE, wanted);
        }
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}
