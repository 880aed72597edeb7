//! Whom a request is for, when all places that say so agree.

use http::header::HOST;
use http::uri::Scheme;
use http::{Method, Request, Version};
use warren_types::egress::normal_host;

/// Where a request says it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) host: String,
    /// As it was given; without one, the connection's is meant.
    pub(crate) port: Option<u16>,
    /// Both, as they were written.
    pub(crate) authority: String,
}

/// How a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Inside TLS.
    Tls,
    /// To the host, without TLS.
    Plain,
    /// To the explicit proxy: its target is a whole address.
    Proxied,
}

/// What is wrong, for who wrote the program, when it cannot be told.
pub(crate) fn target<B>(request: &Request<B>, way: Way) -> Result<Target, &'static str> {
    let uri = request.uri();
    let is_http_2 = request.version() == Version::HTTP_2;
    let mut hosts = request.headers().get_all(HOST).iter();
    let (host, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err("a request has one Host header; this one has several");
    }
    if host.is_none() && !is_http_2 {
        return Err("the request has no Host header");
    }
    let host = host.map(|host| host.to_str().map_err(|_| "the Host header is not ASCII")).transpose()?;
    let host = host.map(|host| authority(host).ok_or("the Host header is no host")).transpose()?;
    let whole = uri.authority().map(http::uri::Authority::as_str);
    let whole = whole
        .map(|whole| authority(whole).ok_or("the address of the request has no valid host"))
        .transpose()?;
    if (way == Way::Proxied || is_http_2) && whole.is_none() {
        return Err("this is a proxy; the request has to name a whole address, like http://example.com/");
    }
    if let (Some(host), Some(whole)) = (&host, &whole) {
        let default = if way == Way::Tls { 443 } else { 80 };
        let port = |target: &Target| target.port.unwrap_or(default);
        if host.host != whole.host || port(host) != port(whole) {
            return Err("the Host header and the address of the request name different hosts");
        }
    }
    let scheme = if way == Way::Tls { Scheme::HTTPS } else { Scheme::HTTP };
    if uri.scheme().is_some_and(|given| *given != scheme) {
        return Err("the scheme of the address is not that of the connection");
    }
    let is_path = uri.path().starts_with('/') || (uri.path() == "*" && request.method() == Method::OPTIONS);
    if !is_path {
        return Err("the path of a request begins with /");
    }
    whole.or(host).ok_or("the request names no host")
}

/// `host` or `host:port`, and nothing else: no user, no IPv6.
pub(crate) fn authority(text: &str) -> Option<Target> {
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => {
            let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
            (host, Some(port.parse().ok().filter(|port| digits && *port != 0)?))
        }
        None => (text, None),
    };
    Some(Target { host: normal_host(host)?, port, authority: text.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uri: &str, hosts: &[&str], version: Version) -> Request<()> {
        let mut request = Request::builder().uri(uri).version(version);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        request.body(()).unwrap()
    }

    #[test]
    fn a_request_names_one_host() {
        let of = |uri: &str, hosts: &[&str], way| target(&request(uri, hosts, Version::HTTP_11), way);
        assert_eq!(of("/", &["A.example.:443"], Way::Tls).unwrap().host, "a.example");
        assert_eq!(of("https://a.example/x", &["a.example:443"], Way::Tls).unwrap().host, "a.example");
        assert_eq!(of("http://a.example:81/x", &["a.example:81"], Way::Proxied).unwrap().port, Some(81));
        for (uri, hosts, way) in [
            ("/", &[][..], Way::Tls),
            ("/", &["a.example", "a.example"], Way::Tls),
            ("/", &["a.example@b.example"], Way::Tls),
            ("/", &["a.example:"], Way::Tls),
            ("/", &["a.example:+80"], Way::Plain),
            ("/", &["a.example:0"], Way::Tls),
            ("/", &["a b"], Way::Tls),
            ("/", &[""], Way::Plain),
            ("/", &["[::1]"], Way::Plain),
            ("/", &["127.1"], Way::Plain),
            ("https://b.example/", &["a.example"], Way::Tls),
            ("https://a.example:444/", &["a.example"], Way::Tls),
            ("https://u@a.example/", &["a.example"], Way::Tls),
            ("http://a.example/", &["a.example"], Way::Tls),
            ("https://a.example/", &["a.example"], Way::Proxied),
            ("/", &["a.example"], Way::Proxied),
            ("*", &["a.example"], Way::Tls),
        ] {
            assert!(of(uri, hosts, way).is_err(), "{uri} {hosts:?}");
        }
    }

    #[test]
    fn the_authority_of_http_2_has_to_be_there_and_agree() {
        let of = |uri: &str, hosts: &[&str]| target(&request(uri, hosts, Version::HTTP_2), Way::Tls);
        assert_eq!(of("https://a.example/", &[]).unwrap().host, "a.example");
        assert!(of("https://a.example/", &["a.example"]).is_ok());
        assert!(of("https://a.example/", &["b.example"]).is_err());
        assert!(of("/", &["a.example"]).is_err());
    }
}
