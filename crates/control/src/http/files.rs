//! Files. Contents stream through, as fast as the slower end takes them; nothing is held here.
//!
//! Of a guest's answer only the headers in [`PASSED_BACK`] go on, and the content type is always ours: a guest must
//! not be able to make a browser run what it serves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use warren_api::ErrorBody;
use warren_api::files::{FileChmod, FileEntry, FileMove, FileStat};
use warren_types::{Error, ErrorKind};

use super::body::{Body as JsonBody, JsonObject};
use super::errors::ApiError;
use super::file_list;
use super::query::Query;
use crate::app::App;
use crate::app::auth::Live;
use crate::app::files::{FileMode, FilePath};

/// Largest file that can be written in one call.
const MAX_FILE_BYTES: u64 = 2 * 1024 * 1024 * 1024;
/// The code of a guest's error about a range outside the file.
const RANGE_NOT_SATISFIABLE: &str = "range_not_satisfiable";
const BYTES: HeaderValue = HeaderValue::from_static("application/octet-stream");
const TAR: HeaderValue = HeaderValue::from_static("application/x-tar");
const PASSED_ON: [HeaderName; 1] = [header::RANGE];
/// Of writes, that would be ignored.
const CONDITIONS: [HeaderName; 3] = [header::IF_MATCH, header::IF_NONE_MATCH, header::IF_UNMODIFIED_SINCE];
const PASSED_BACK: [HeaderName; 4] =
    [header::CONTENT_LENGTH, header::CONTENT_RANGE, header::ACCEPT_RANGES, header::LAST_MODIFIED];

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(file_read, file_write, file_delete))
        .routes(routes!(file_list))
        .routes(routes!(file_mkdir))
        .routes(routes!(file_stat))
        .routes(routes!(file_move))
        .routes(routes!(file_chmod))
        .routes(routes!(archive_read, archive_write))
}

/// Reads a file, or a range of it. `HEAD` tells its size.
#[utoipa::path(
    get, path = "/sandboxes/{id}/files", tag = "files", security(("api_key" = []), ("sandbox_token" = [])),
    params(("id" = String, Path), ("path" = String, Query), ("Range" = Option<String>, Header)),
    responses((status = 200, content_type = "application/octet-stream", body = Vec<u8>),
        (status = 206, content_type = "application/octet-stream", body = Vec<u8>),
        (status = 400, body = ErrorBody), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody), (status = 410, body = ErrorBody),
        (status = 416, body = ErrorBody))
)]
async fn file_read(
    State(app): State<Arc<App>>,
    live: Live,
    method: Method,
    query: Query,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    read(&app, &live, method, &FilePath::from_query(query.into_path())?, &headers).await
}

pub(super) async fn read(
    app: &App,
    live: &Live,
    method: Method,
    path: &FilePath,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    // A range is of the file that `If-Range` names. Files have nothing to be named by, so that is never certain: all of it is sent.
    let passed: &[HeaderName] = if headers.contains_key(header::IF_RANGE) { &[] } else { &PASSED_ON };
    match app.guest_file(live, method, "files", path, only(headers, passed), Body::empty()).await {
        Ok(answer) => Ok(content(answer, BYTES)),
        Err(error) if error.code.as_deref() == Some(RANGE_NOT_SATISFIABLE) => {
            unsatisfiable(app, live, path, error).await
        }
        Err(error) => Err(error.into()),
    }
}

/// Writes a file whole, and the folders above it. Nothing changes unless all of it arrives.
///
/// Without `mode` a new file gets 0644, and one that is there keeps its own.
#[utoipa::path(
    put, path = "/sandboxes/{id}/files", tag = "files", security(("api_key" = []), ("sandbox_token" = [])),
    params(
        ("id" = String, Path), ("path" = String, Query),
        ("mode" = Option<String>, Query, description = "Octal permission bits such as 0755")
    ),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 204), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 410, body = ErrorBody), (status = 413, body = ErrorBody))
)]
async fn file_write(
    State(app): State<Arc<App>>,
    live: Live,
    query: Query,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let mode = query.get("mode").map(FileMode::parse).transpose()?;
    let path = FilePath::from_query(query.into_path())?;
    write(&app, &live, &path, mode, &headers, body).await
}

pub(super) async fn write(
    app: &App,
    live: &Live,
    path: &FilePath,
    mode: Option<FileMode>,
    headers: &HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    plain(headers)?;
    if declared(headers).is_some_and(|length| length > MAX_FILE_BYTES) {
        return Err(too_large().into());
    }
    let headers = only(headers, &[header::CONTENT_LENGTH]);
    let (body, exceeded) = limited(body, MAX_FILE_BYTES);
    match app.write_file(live, path, mode, headers, body).await {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        // Whatever the node made of a body that was cut off.
        Err(_) if exceeded.load(Ordering::Relaxed) => Err(too_large().into()),
        Err(error) => Err(error.into()),
    }
}

/// Removes a file or a whole folder; what is not there is fine.
#[utoipa::path(
    delete, path = "/sandboxes/{id}/files", tag = "files", security(("api_key" = []), ("sandbox_token" = [])),
    params(("id" = String, Path), ("path" = String, Query)),
    responses((status = 204), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 410, body = ErrorBody))
)]
async fn file_delete(State(app): State<Arc<App>>, live: Live, query: Query) -> Result<StatusCode, ApiError> {
    let path = FilePath::from_query(query.into_path())?;
    app.guest_file(&live, Method::DELETE, "files", &path, HeaderMap::new(), Body::empty()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What is in a folder, by name; `/` when no path is given.
///
/// A folder with more than 250,000 entries is refused.
#[utoipa::path(
    get, path = "/sandboxes/{id}/files/list", tag = "files", security(("api_key" = []), ("sandbox_token" = [])),
    params(("id" = String, Path), ("path" = Option<String>, Query)),
    responses((status = 200, body = [FileEntry]), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 410, body = ErrorBody), (status = 413, body = ErrorBody), (status = 429, body = ErrorBody))
)]
async fn file_list(State(app): State<Arc<App>>, live: Live, query: Query) -> Result<Response, ApiError> {
    let path = query.into_path().filter(|path| !path.is_empty()).unwrap_or_else(|| b"/".to_vec());
    let listing = app.list_files(&live, &FilePath::from_query(Some(path))?).await?;
    Ok(file_list::answer(listing).await?)
}

/// Makes a folder and those above it; one that is there is fine.
#[utoipa::path(
    post, path = "/sandboxes/{id}/files/mkdir", tag = "files", security(("api_key" = []), ("sandbox_token" = [])),
    params(("id" = String, Path), ("path" = String, Query)),
    responses((status = 204), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 410, body = ErrorBody))
)]
async fn file_mkdir(State(app): State<Arc<App>>, live: Live, query: Query) -> Result<StatusCode, ApiError> {
    let path = FilePath::from_query(query.into_path())?;
    app.guest_file(&live, Method::POST, "files/mkdir", &path, HeaderMap::new(), Body::empty()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What a path is; a symlink is described itself, unless `follow` asks for what it leads to.
#[utoipa::path(
    get, path = "/sandboxes/{id}/files/stat", tag = "files", security(("api_key" = []), ("sandbox_token" = [])),
    params(
        ("id" = String, Path), ("path" = String, Query),
        ("follow" = Option<bool>, Query, description = "true: what a symlink leads to instead of itself")
    ),
    responses((status = 200, body = FileStat), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 410, body = ErrorBody))
)]
async fn file_stat(
    State(app): State<Arc<App>>,
    live: Live,
    query: Query,
) -> Result<Json<FileStat>, ApiError> {
    let follow = query.get("follow") == Some("true");
    Ok(Json(app.stat_file(&live, &FilePath::from_query(query.into_path())?, follow).await?))
}

/// Renames, replacing what is at the new name. What is on another file system, or a folder of the template, cannot be renamed: 409.
#[utoipa::path(
    post, path = "/sandboxes/{id}/files/move", tag = "files", security(("api_key" = []), ("sandbox_token" = [])),
    params(("id" = String, Path)), request_body = FileMove,
    responses((status = 204), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 410, body = ErrorBody))
)]
async fn file_move(
    State(app): State<Arc<App>>,
    live: Live,
    JsonObject(body): JsonBody<FileMove>,
) -> Result<StatusCode, ApiError> {
    app.move_file(&live, body).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Changes permission bits.
#[utoipa::path(
    post, path = "/sandboxes/{id}/files/chmod", tag = "files", security(("api_key" = []), ("sandbox_token" = [])),
    params(("id" = String, Path)), request_body = FileChmod,
    responses((status = 204), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 410, body = ErrorBody))
)]
async fn file_chmod(
    State(app): State<Arc<App>>,
    live: Live,
    JsonObject(body): JsonBody<FileChmod>,
) -> Result<StatusCode, ApiError> {
    app.chmod_file(&live, body).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A folder as a tar stream.
#[utoipa::path(
    get, path = "/sandboxes/{id}/files/archive", tag = "files", security(("api_key" = []), ("sandbox_token" = [])),
    params(("id" = String, Path), ("path" = String, Query)),
    responses((status = 200, content_type = "application/x-tar", body = Vec<u8>), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 410, body = ErrorBody))
)]
async fn archive_read(State(app): State<Arc<App>>, live: Live, query: Query) -> Result<Response, ApiError> {
    let path = FilePath::from_query(query.into_path())?;
    let answer =
        app.guest_file(&live, Method::GET, "files/archive", &path, HeaderMap::new(), Body::empty()).await?;
    Ok(content(answer, TAR))
}

/// Unpacks a tar stream into a folder.
#[utoipa::path(
    put, path = "/sandboxes/{id}/files/archive", tag = "files", security(("api_key" = []), ("sandbox_token" = [])),
    params(("id" = String, Path), ("path" = String, Query)),
    request_body(content = Vec<u8>, content_type = "application/x-tar"),
    responses((status = 204), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 410, body = ErrorBody), (status = 413, body = ErrorBody))
)]
async fn archive_write(
    State(app): State<Arc<App>>,
    live: Live,
    query: Query,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let path = FilePath::from_query(query.into_path())?;
    plain(&headers)?;
    let headers = only(&headers, &[header::CONTENT_LENGTH]);
    app.guest_file(&live, Method::PUT, "files/archive", &path, headers, body).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Refuses what would have to be honoured: content that is only a part, is encoded, or is to be written under a condition.
fn plain(headers: &HeaderMap) -> Result<(), ApiError> {
    if let Some(name) = CONDITIONS.iter().find(|name| headers.contains_key(*name)) {
        return Err(Error::invalid(format!("a write has no conditions; leave out {name}")).into());
    }
    if headers.contains_key(header::CONTENT_RANGE) {
        return Err(Error::invalid("a file is written whole; leave out Content-Range").into());
    }
    let only = |name: HeaderName, coding: &str| {
        headers.get_all(name).iter().all(|found| found.as_bytes().eq_ignore_ascii_case(coding.as_bytes()))
    };
    if !only(header::CONTENT_ENCODING, "identity") {
        let refused = Error::invalid("content is kept as it comes; send it without Content-Encoding");
        return Err(ApiError::from(refused).with_status(StatusCode::UNSUPPORTED_MEDIA_TYPE));
    }
    if !only(header::TRANSFER_ENCODING, "chunked") {
        let refused = Error::invalid("chunked is the only transfer coding there is");
        return Err(ApiError::from(refused).with_status(StatusCode::NOT_IMPLEMENTED));
    }
    Ok(())
}

/// The answer to a range outside the file. A `HEAD` tells the size of what a read would open, symlinks followed.
async fn unsatisfiable(app: &App, live: &Live, path: &FilePath, error: Error) -> Result<Response, ApiError> {
    let head = app.guest_file(live, Method::HEAD, "files", path, HeaderMap::new(), Body::empty()).await?;
    let mut response = ApiError::from(error).with_status(StatusCode::RANGE_NOT_SATISFIABLE).into_response();
    let size =
        declared(head.headers()).and_then(|size| HeaderValue::try_from(format!("bytes */{size}")).ok());
    if let Some(size) = size {
        response.headers_mut().insert(header::CONTENT_RANGE, size);
    }
    Ok(response)
}

fn declared(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn too_large() -> Error {
    Error::new(ErrorKind::TooLarge, "a file that is written may have at most 2 GiB; write it in parts")
}

/// A body that breaks off once it is longer than `max`, and whether it has.
fn limited(body: Body, max: u64) -> (Body, Arc<AtomicBool>) {
    let exceeded = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&exceeded);
    let body = Limited::new(body, usize::try_from(max).unwrap_or(usize::MAX)).map_err(move |error| {
        if error.is::<LengthLimitError>() {
            told.store(true, Ordering::Relaxed);
        }
        error
    });
    (Body::new(body), exceeded)
}

fn only(headers: &HeaderMap, names: &[HeaderName]) -> HeaderMap {
    names.iter().filter_map(|name| Some((name.clone(), headers.get(name)?.clone()))).collect()
}

/// A guest's bytes under our own head.
fn content(answer: Response, content_type: HeaderValue) -> Response {
    let (parts, body) = answer.into_parts();
    let status = match parts.status {
        StatusCode::PARTIAL_CONTENT => StatusCode::PARTIAL_CONTENT,
        _ => StatusCode::OK,
    };
    let mut headers = only(&parts.headers, &PASSED_BACK);
    headers.insert(header::CONTENT_TYPE, content_type);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    (status, headers, body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_without_a_length_is_cut_off_at_the_limit() {
        for (length, cut) in [(10, false), (11, true)] {
            let pieces = (0..length).map(|_| Ok::<_, std::convert::Infallible>("x"));
            let (body, exceeded) = limited(Body::from_stream(futures_util::stream::iter(pieces)), 10);
            assert_eq!(body.collect().await.is_err(), cut, "{length}");
            assert_eq!(exceeded.load(Ordering::Relaxed), cut, "{length}");
        }
    }
}
