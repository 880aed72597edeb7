//! Which web pages may speak MCP to this server: those of this machine, and those of the server's own address.
//!
//! Programs send no `Origin`. A page that got at a server on a private network by a name of its own (DNS rebinding) would still lack a
//! key; that it is refused at once is what the protocol asks for.

use http::request::Parts;
use http::{Uri, header};
use warren_types::{Error, ErrorKind};

use crate::app::App;

pub(super) fn check(parts: &Parts, app: &App) -> Result<(), Error> {
    let Some(origin) = parts.headers.get(header::ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or_default();
    if is_local(origin) || app.public_url.as_deref().is_some_and(|url| is_same(origin, url)) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Forbidden,
        "pages of this origin may not use MCP here; --public-url of the server says which origin may",
    ))
}

fn is_local(origin: &str) -> bool {
    let Ok(uri) = origin.parse::<Uri>() else { return false };
    uri.scheme().is_some() && matches!(uri.host(), Some("localhost" | "127.0.0.1" | "[::1]"))
}

fn is_same(origin: &str, url: &str) -> bool {
    let (Ok(origin), Ok(url)) = (origin.parse::<Uri>(), url.parse::<Uri>()) else { return false };
    let port = |uri: &Uri| {
        uri.port_u16().or_else(|| match uri.scheme_str() {
            Some("https") => Some(443),
            Some("http") => Some(80),
            _ => None,
        })
    };
    origin.scheme().is_some()
        && origin.scheme() == url.scheme()
        && origin.host().map(str::to_ascii_lowercase) == url.host().map(str::to_ascii_lowercase)
        && port(&origin) == port(&url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_compared_whole() {
        for local in ["http://localhost", "http://localhost:6274", "https://127.0.0.1:1", "http://[::1]:8080"]
        {
            assert!(is_local(local), "{local}");
        }
        for other in
            ["null", "", "localhost", "http://localhost.evil.example", "http://evil.example:7070", "file://"]
        {
            assert!(!is_local(other), "{other}");
        }
        assert!(is_same("https://Warren.example", "https://warren.example:443/"));
        assert!(!is_same("http://warren.example", "https://warren.example"));
        assert!(!is_same("https://warren.example:444", "https://warren.example"));
        assert!(!is_same("null", "https://warren.example"));
    }
}
