//! Templates, and the space that they and checkpoints take.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::{HeaderValue, StatusCode, header};
use warren_images::{ImageError, Login, Reference};
use warren_node_api::{ImageLookup, RegistryAuth, ResolvedImage, TemplateImport, TemplateLine};
use warren_types::Error;

use super::{Result, Shared, decode, json};
use crate::templates::import::Wanted;

pub(super) async fn list(State(registry): Shared) -> Response {
    json(StatusCode::OK, &registry.templates().list())
}

/// Answers in lines, the last of which says how it ended: an import takes longer than a client waits for nothing.
pub(super) async fn import(State(registry): Shared, body: Body) -> Result<Response> {
    let TemplateImport { reference, digest, auth } = decode(body).await?;
    let (reference, login) = asked_for(&reference, auth)?;
    Ok(lines(registry.import(Wanted::Registry { reference, digest, login })?))
}

pub(super) async fn resolve(State(registry): Shared, body: Body) -> Result<Response> {
    let ImageLookup { reference, auth } = decode(body).await?;
    let (reference, login) = asked_for(&reference, auth)?;
    let digest = registry.templates().resolve(&reference, login.as_ref()).await?;
    Ok(json(StatusCode::OK, &ResolvedImage { digest }))
}

fn asked_for(reference: &str, auth: Option<RegistryAuth>) -> Result<(Reference, Option<Login>)> {
    let reference = reference.parse().map_err(|error: ImageError| Error::invalid(error.to_string()))?;
    Ok((reference, auth.map(|auth| Login { username: auth.username, password: auth.password })))
}

pub(super) async fn import_archive(State(registry): Shared, body: Body) -> Result<Response> {
    Ok(lines(registry.import(Wanted::Archive(body))?))
}

pub(super) async fn remove(State(registry): Shared, Path(name): Path<String>) -> Result<StatusCode> {
    registry.remove_template(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn space(State(registry): Shared) -> Result<Response> {
    Ok(json(StatusCode::OK, &registry.space().await?))
}

fn lines(lines: impl Stream<Item = TemplateLine> + Send + 'static) -> Response {
    let lines = lines.map(|line| {
        let mut text = serde_json::to_vec(&line)?;
        text.push(b'\n');
        Ok::<_, serde_json::Error>(Bytes::from(text))
    });
    let mut response = Response::new(Body::from_stream(lines));
    let json_lines = HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(header::CONTENT_TYPE, json_lines);
    response
}
