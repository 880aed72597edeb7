//! `/openapi.json`: made from the handlers, rendered once.

use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use bytes::Bytes;
use http::{HeaderValue, header};
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, ContentBuilder, InfoBuilder, OpenApi, OpenApiBuilder, Ref, RefOr, ResponseBuilder,
};

use crate::app::App;

/// Where files are read.
const FILES: &str = "/api/sandboxes/{id}/files";

pub(super) fn about() -> OpenApi {
    let info = InfoBuilder::new().title("Warren").version(env!("CARGO_PKG_VERSION")).description(Some(
        "Computers for AI agents. Compatible with the OpenComputer API. The routes of the tags exec, agents, pty and files are \
         also served without the prefix /api.",
    ));
    let key = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-API-Key")));
    let token = SecurityScheme::Http(
        HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("A sandbox's own token, from `token` of the sandbox"))
            .build(),
    );
    let components = ComponentsBuilder::new()
        .security_scheme("api_key", key)
        .security_scheme("sandbox_token", token)
        .build();
    OpenApiBuilder::new().info(info.build()).components(Some(components)).build()
}

/// Adds what holds for every operation and is not said at each: what a status means, that credentials are asked for, that
/// anything else is an error of the usual form, and that files answer `HEAD`.
pub(super) fn complete(document: &mut OpenApi) {
    for item in document.paths.paths.values_mut() {
        let operations =
            [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch, &mut item.head];
        for operation in operations.into_iter().flatten() {
            complete_operation(operation);
        }
    }
    if let Some(files) = document.paths.paths.get_mut(FILES) {
        files.head = files.get.as_ref().map(head_of);
    }
}

fn complete_operation(operation: &mut Operation) {
    let responses = &mut operation.responses.responses;
    let error = || {
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorBody"))).build();
        RefOr::T(ResponseBuilder::new().content("application/json", content).build())
    };
    if operation.security.as_ref().is_some_and(|security| !security.is_empty()) {
        responses.entry("401".to_owned()).or_insert_with(error);
    }
    responses.entry("default".to_owned()).or_insert_with(error);
    for (status, response) in responses {
        if let RefOr::T(response) = response
            && response.description.is_empty()
        {
            meaning(status).clone_into(&mut response.description);
        }
    }
}

/// The same without content.
fn head_of(get: &Operation) -> Operation {
    let mut head = get.clone();
    head.operation_id = Some("file_head".to_owned());
    head.summary = Some("Tells the size of a file.".to_owned());
    head.description = None;
    for response in head.responses.responses.values_mut() {
        if let RefOr::T(response) = response {
            response.content.clear();
        }
    }
    head
}

/// What a status says wherever it is not said more exactly.
fn meaning(status: &str) -> &'static str {
    match status {
        "101" => "The connection is a WebSocket from here on",
        "200" => "Done",
        "201" => "Made",
        "202" => "Under way",
        "204" => "Done; there is nothing to say",
        "206" => "The part that was asked for",
        "400" => "The request cannot work as it is",
        "401" => "No credential, or one that is not known",
        "403" => "Not allowed",
        "404" => "Not there, or somebody else's",
        "409" => "It clashes with something that is there or under way",
        "410" => "The sandbox has ended",
        "413" => "Larger than is allowed, or than there is room for",
        "416" => "The range lies outside the file",
        "426" => "Only for WebSockets",
        "429" => "A limit is reached",
        "502" => "The sandbox failed; the request may succeed later",
        "503" => "The server cannot do it at the moment",
        _ => "Any other error",
    }
}

pub(super) fn routes(document: &OpenApi) -> Router<Arc<App>> {
    let json = document.to_pretty_json().expect("the document is made of strings, lists and maps");
    let json = Bytes::from(json);
    let headers = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    Router::new().route("/openapi.json", get(async move || (headers, json)))
}
