//! Where clients reach this server, as they see it.

use std::sync::Arc;

use axum::extract::{ConnectInfo, FromRequestParts};
use http::request::Parts;
use http::{HeaderMap, header};

use super::errors::ApiError;
use crate::app::App;
use crate::listen::Peer;

const MAX_HOST_BYTES: usize = 255;

/// Scheme and host, without a path: from the configuration, else from what the request was sent to.
#[derive(Debug, Clone)]
pub(super) struct PublicBase(pub String);

impl FromRequestParts<Arc<App>> for PublicBase {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        Ok(Self::of(parts, app))
    }
}

impl PublicBase {
    pub(super) fn of(parts: &Parts, app: &App) -> Self {
        if let Some(url) = &app.public_url {
            return Self(url.trim_end_matches('/').to_owned());
        }
        let scheme = scheme(parts);
        let host = first(&parts.headers, "x-forwarded-host")
            .or_else(|| first(&parts.headers, header::HOST.as_str()))
            .or_else(|| parts.uri.authority().map(http::uri::Authority::as_str))
            .filter(|host| is_host(host))
            .unwrap_or("localhost");
        Self(format!("{scheme}://{host}"))
    }
}

/// How the client speaks to this server, or to the proxy in front of it.
fn scheme(parts: &Parts) -> &'static str {
    let tls = parts.extensions.get::<ConnectInfo<Peer>>().is_some_and(|peer| peer.0.tls);
    match first(&parts.headers, "x-forwarded-proto") {
        _ if tls => "https",
        Some("https") => "https",
        _ => "http",
    }
}

/// Of a header that proxies append to: what the first of them saw.
fn first<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let value = headers.get(name)?.to_str().ok()?;
    value.split(',').next().map(str::trim).filter(|value| !value.is_empty())
}

fn is_host(text: &str) -> bool {
    let legal =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'[' | b']');
    text.len() <= MAX_HOST_BYTES && text.bytes().all(legal)
}
