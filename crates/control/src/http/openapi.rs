//! `/openapi.json`: made from the handlers, rendered once.

use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use bytes::Bytes;
use http::{HeaderValue, header};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ComponentsBuilder, InfoBuilder, OpenApi, OpenApiBuilder};

use crate::app::App;

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

pub(super) fn routes(document: &OpenApi) -> Router<Arc<App>> {
    let json = document.to_pretty_json().expect("the document is made of strings, lists and maps");
    let json = Bytes::from(json);
    let headers = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    Router::new().route("/openapi.json", get(async move || (headers, json)))
}
