//! From the credentials of a request to a typed proof.
//!
//! | credential | where | good for |
//! | --- | --- | --- |
//! | API key | header `X-API-Key` | everything of its organisation |
//! | API key | `Authorization: Bearer`, on the routes of tools only | the same |
//! | API key | query `api_key`, on WebSocket upgrades only | the same |
//! | token of a key | `Authorization: Bearer`, `X-API-Key`; query `token` or `api_key` on WebSocket upgrades only | the same, but no tokens |
//! | sandbox token | `Authorization: Bearer`, `X-API-Key`, query `token` or `api_key` | its sandbox's data plane |
//!
//! The first one present counts. Credentials in queries are for clients that cannot set headers; they are never logged.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use http::request::Parts;
use http::{HeaderMap, header};
use warren_api::API_KEY_HEADER;
use warren_types::Error;

use super::errors::ApiError;
use super::params::SandboxPath;
use super::query::Query;
use super::request_id::id_of;
use crate::app::App;
use crate::app::auth::{Caller, Identity, Live, no_credential};

/// A token has dots, an API key has none.
fn is_token(credential: &str) -> bool {
    credential.contains('.')
}

fn in_headers(headers: &HeaderMap) -> Option<String> {
    let text = |value: &http::HeaderValue| value.to_str().ok().map(str::trim).map(str::to_owned);
    if let Some(key) = headers.get(API_KEY_HEADER).filter(|key| !key.is_empty()) {
        return text(key);
    }
    let bearer = headers.get(header::AUTHORIZATION).and_then(text)?;
    let (scheme, token) = bearer.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") && is_token(token)).then(|| token.trim().to_owned())
}

/// The same for clients of tools, which show API keys as bearers too.
pub(super) fn of_tools(headers: &HeaderMap) -> Option<String> {
    in_headers(headers).or_else(|| {
        let bearer = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
        let (scheme, key) = bearer.trim().split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim().to_owned())
    })
}

fn is_websocket(parts: &Parts) -> bool {
    let upgrade = parts.headers.get(header::UPGRADE);
    upgrade.is_some_and(|upgrade| upgrade.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Who shows a credential in a query. What opens a whole organisation is not to be in URLs that are copied and kept.
pub(super) async fn of_query(parts: &Parts, app: &App) -> Result<Identity, ApiError> {
    let identity = app.authenticate(&in_query(parts).ok_or_else(no_credential)?).await?;
    match identity {
        Identity::Org(_) if !is_websocket(parts) => Err(no_credential().into()),
        identity => Ok(identity),
    }
}

fn in_query(parts: &Parts) -> Option<String> {
    // A query that cannot be decoded holds no credential; what is wrong with it is for those to hear who have one.
    let query = Query::parse(parts.uri.query()).ok()?;
    if let Some(token) = query.get("token").filter(|token| is_token(token)) {
        return Some(token.to_owned());
    }
    query.get("api_key").filter(|key| is_websocket(parts) || is_token(key)).map(str::to_owned)
}

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let credential = in_headers(&parts.headers).ok_or_else(no_credential)?;
        let identity = app.authenticate(&credential).await?;
        Ok(Self::try_from(identity)?.in_request(id_of(&parts.extensions)))
    }
}

impl FromRequestParts<Arc<App>> for Live {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let identity = match in_headers(&parts.headers) {
            Some(credential) => app.authenticate(&credential).await?,
            None => of_query(parts, app).await?,
        };
        let SandboxPath(id) = SandboxPath::from_request_parts(parts, app).await?;
        let live = app.reach(&identity, &id).await.map_err(|error: Error| ApiError::from(error))?;
        Ok(live.in_request(id_of(&parts.extensions)))
    }
}
