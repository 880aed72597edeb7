//! URLs that read or write one file without another credential, for browsers: made here, and used here.
//!
//! What is not signed is not listened to: a mode in the query of an upload has no effect.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::{Extensions, HeaderMap, HeaderValue, Method, StatusCode, header};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use warren_api::ErrorBody;
use warren_api::files::{FileUrl, FileUrlCreate};
use warren_types::Error;

use super::body::{Body as JsonBody, JsonObject};
use super::errors::ApiError;
use super::files;
use super::headers::PublicBase;
use super::params::SandboxPath;
use super::query::Query;
use super::request_id::id_of;
use crate::app::App;
use crate::app::auth::{Caller, Live};
use crate::app::files::FilePath;
use crate::app::signed::{FileUse, whole_number};

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(file_download_url))
        .routes(routes!(file_upload_url))
        .routes(routes!(file_download))
        .routes(routes!(file_upload))
}

/// A URL that reads one file, for whoever has it, until it expires.
#[utoipa::path(
    post, path = "/sandboxes/{id}/files/download-url", tag = "files", security(("api_key" = [])),
    params(("id" = String, Path)), request_body = FileUrlCreate,
    responses((status = 200, body = FileUrl), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 410, body = ErrorBody))
)]
async fn file_download_url(
    State(app): State<Arc<App>>,
    caller: Caller,
    SandboxPath(id): SandboxPath,
    PublicBase(base): PublicBase,
    JsonObject(body): JsonBody<FileUrlCreate>,
) -> Result<Json<FileUrl>, ApiError> {
    Ok(Json(app.sign_file_url(&caller, &id, FileUse::Download, body, &base).await?))
}

/// A URL that writes one file, for whoever has it, until it expires.
#[utoipa::path(
    post, path = "/sandboxes/{id}/files/upload-url", tag = "files", security(("api_key" = [])),
    params(("id" = String, Path)), request_body = FileUrlCreate,
    responses((status = 200, body = FileUrl), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 410, body = ErrorBody))
)]
async fn file_upload_url(
    State(app): State<Arc<App>>,
    caller: Caller,
    SandboxPath(id): SandboxPath,
    PublicBase(base): PublicBase,
    JsonObject(body): JsonBody<FileUrlCreate>,
) -> Result<Json<FileUrl>, ApiError> {
    Ok(Json(app.sign_file_url(&caller, &id, FileUse::Upload, body, &base).await?))
}

/// Reads the file of a signed URL, or a range of it. `HEAD` tells its size.
#[utoipa::path(
    get, path = "/sandboxes/{id}/files/download", tag = "files",
    params(("id" = String, Path), ("path" = String, Query), ("expires" = String, Query), ("signature" = String, Query),
        ("Range" = Option<String>, Header)),
    responses((status = 200, content_type = "application/octet-stream", body = Vec<u8>),
        (status = 206, content_type = "application/octet-stream", body = Vec<u8>),
        (status = 400, body = ErrorBody), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 410, body = ErrorBody), (status = 416, body = ErrorBody))
)]
async fn file_download(
    State(app): State<Arc<App>>,
    SandboxPath(id): SandboxPath,
    method: Method,
    query: Query,
    extensions: Extensions,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let (live, path) = admit(&app, &id, &query, FileUse::Download).await?;
    let live = live.in_request(id_of(&extensions));
    let name = disposition(&path);
    let mut response =
        files::read(&app, &live, method, &FilePath::from_query(Some(path.into_bytes()))?, &headers).await?;
    response.headers_mut().insert(header::CONTENT_DISPOSITION, name);
    Ok(response)
}

/// Writes the file of a signed URL whole. Nothing changes unless all of it arrives.
#[utoipa::path(
    put, path = "/sandboxes/{id}/files/upload", tag = "files",
    params(("id" = String, Path), ("path" = String, Query), ("expires" = String, Query), ("signature" = String, Query)),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 204), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 410, body = ErrorBody), (status = 413, body = ErrorBody))
)]
async fn file_upload(
    State(app): State<Arc<App>>,
    SandboxPath(id): SandboxPath,
    query: Query,
    extensions: Extensions,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let (live, path) = admit(&app, &id, &query, FileUse::Upload).await?;
    let live = live.in_request(id_of(&extensions));
    files::write(&app, &live, &FilePath::from_query(Some(path.into_bytes()))?, None, &headers, body).await
}

async fn admit(
    app: &App,
    id: &warren_types::SandboxId,
    query: &Query,
    use_: FileUse,
) -> Result<(Live, String), ApiError> {
    let given = |name: &str| {
        let value = query.get(name).filter(|value| !value.is_empty());
        value.ok_or_else(|| Error::invalid(format!("{name} query parameter is required")))
    };
    let (path, expires, signature) = (given("path")?, given("expires")?, given("signature")?);
    let expires = whole_number(expires)
        .ok_or_else(|| Error::invalid("expires must be a whole number: seconds since 1970"))?;
    let live = app.reach_signed(id, path, use_, expires, signature).await?;
    Ok((live, path.to_owned()))
}

/// The name under which a browser keeps the file. Everything but letters, digits and a few signs is encoded.
fn disposition(path: &str) -> HeaderValue {
    use std::fmt::Write;
    let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let encoded = name.bytes().take(255).fold(String::new(), |mut text, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' => text.push(char::from(byte)),
            _ => write!(text, "%{byte:02X}").expect("a String takes everything"),
        }
        text
    });
    let value = format!("attachment; filename*=UTF-8''{encoded}");
    HeaderValue::try_from(value).unwrap_or(HeaderValue::from_static("attachment"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_keeps_its_name() {
        assert_eq!(disposition("/a/b c\"é.txt"), "attachment; filename*=UTF-8''b%20c%22%C3%A9.txt");
        assert_eq!(disposition("x\r\ny"), "attachment; filename*=UTF-8''x%0D%0Ay");
    }
}
