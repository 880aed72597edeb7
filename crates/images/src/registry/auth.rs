//! One round of credentials.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::AUTHORIZATION;
use http::{HeaderValue, StatusCode};
use reqwest::Url;
use serde::Deserialize;
use warren_types::Secret;

use super::Login;
use super::challenge::Challenge;
use super::guard::{Guard, shown_host};
use super::session::{Timed, body, is_down, network};
use crate::ImageError;

const LARGEST_TOKEN: u64 = 256 << 10;

#[derive(Deserialize)]
struct TokenReply {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

/// What to send to the registry in answer to its challenge. `Err` holds why there is nothing.
pub(super) async fn answer(
    guard: &Guard,
    challenge: &Challenge,
    login: Option<&Login>,
    repository: &str,
    timed: Timed,
) -> Result<HeaderValue, ImageError> {
    match (challenge, login) {
        (Challenge::Basic, Some(login)) => basic(login),
        (Challenge::Basic, None) => Err(denied("it wants a login, and none was given")),
        (Challenge::Bearer { realm, service, scope }, login) => {
            let mut url =
                Url::parse(realm).map_err(|_| denied("it names a token service that has no address"))?;
            url.set_fragment(None);
            let own_scope = format!("repository:{repository}:pull");
            {
                let mut query = url.query_pairs_mut();
                if let Some(service) = service {
                    query.append_pair("service", service);
                }
                query.append_pair("scope", scope.as_deref().unwrap_or(&own_scope));
            }
            token(guard, url, login, timed).await
        }
    }
}

/// Redirects are not followed: whoever they lead to would be asked for a token in the service's name.
async fn token(
    guard: &Guard,
    url: Url,
    login: Option<&Login>,
    timed: Timed,
) -> Result<HeaderValue, ImageError> {
    let host = shown_host(&url);
    let mut request = guard.client(&url)?.get(url.clone());
    if let Some(login) = login {
        request = request.header(AUTHORIZATION, basic(login)?);
    }
    let response = timed.wait(&host, request.send()).await?.map_err(|error| network(&host, &error))?;
    let status = response.status();
    let wrong = |why: String| ImageError::Registry { host: host.clone(), why };
    match status {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            let why = if login.is_some() {
                "the login was refused"
            } else {
                "it wants a login, and none was given"
            };
            return Err(denied(why));
        }
        StatusCode::TOO_MANY_REQUESTS => {
            let or = if login.is_some() { "" } else { ", or with a login" };
            return Err(ImageError::Busy { registry: host, or, said: String::new() });
        }
        _ if is_down(status) => return Err(ImageError::Down { host, status, said: String::new() }),
        _ => return Err(wrong(format!("asked for a token, it answered {status}"))),
    }
    let json = Secret::new(body(response, &host, "a token", LARGEST_TOKEN, timed).await?);
    let unusable = || wrong("its token cannot be used".to_owned());
    let reply: TokenReply = serde_json::from_slice(json.expose()).map_err(|_| unusable())?;
    let token = reply.token.or(reply.access_token).filter(|token| !token.is_empty()).ok_or_else(unusable)?;
    sensitive(&Secret::new(format!("Bearer {token}")), &unusable)
}

fn basic(login: &Login) -> Result<HeaderValue, ImageError> {
    let pair = Secret::new(format!("{}:{}", login.username, login.password.expose()));
    let value = Secret::new(format!("Basic {}", BASE64_STANDARD.encode(pair.expose())));
    sensitive(&value, &|| denied("the login cannot be sent"))
}

fn sensitive(value: &Secret<String>, wrong: &dyn Fn() -> ImageError) -> Result<HeaderValue, ImageError> {
    let mut value = HeaderValue::from_str(value.expose()).map_err(|_| wrong())?;
    value.set_sensitive(true);
    Ok(value)
}

/// The registry and what it refused are filled in by [`super::session`].
fn denied(why: &str) -> ImageError {
    ImageError::Denied { registry: String::new(), what: String::new(), why: why.to_owned() }
}
