//! Which host a request is for.
//!
//! A request names its host in `Host`, in an absolute URL, or in `:authority`. Where it does so twice, both must say the same;
//! where a name has more than one spelling, only the letters' case may differ. Whatever is below the domain of previews and is
//! not the name of one leads nowhere.

use axum::body::Body;
use http::{Request, Version, header};
use warren_types::{Error, SandboxId};

use crate::app::previews::parse_label;

const MAX_NAME_BYTES: usize = 253;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Addressed {
    Api,
    Preview(Target),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub id: SandboxId,
    pub port: u16,
    /// Of an organisation, when the name is below that.
    pub domain: Option<String>,
    /// As the client wrote it, with a port if it wrote one: what the program sees.
    pub host: String,
}

/// `domains` are that of all previews and then those of organisations; they and `api_host` are in lower case and have no port.
pub(super) fn addressed(
    request: &Request<Body>,
    domains: &[&str],
    api_host: Option<&str>,
) -> Result<Addressed, Error> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (host, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err(Error::invalid("a request names its host once; this one has several Host headers"));
    }
    let host = host.map(|host| host.to_str().map_err(|_| bad_host())).transpose()?;
    let authority = request.uri().authority().map(http::uri::Authority::as_str);
    let named = match (host, authority) {
        (Some(host), Some(authority)) if !host.eq_ignore_ascii_case(authority) => {
            return Err(Error::invalid("the Host header and the URL name different hosts"));
        }
        (Some(host), _) => host,
        // RFC 9112, 3.2: whatever the URL says.
        (None, _) if request.version() == Version::HTTP_11 => {
            return Err(Error::invalid("a request of HTTP/1.1 names its host; send a Host header"));
        }
        (None, Some(authority)) => authority,
        // Of old clients, which never mean a preview.
        (None, None) => return Ok(Addressed::Api),
    };
    resolve(named, domains, api_host)
}

fn resolve(named: &str, domains: &[&str], api_host: Option<&str>) -> Result<Addressed, Error> {
    if named.starts_with('[') {
        return if is_address(named) { Ok(Addressed::Api) } else { Err(bad_host()) };
    }
    let (name, port) = match named.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (named, None),
    };
    let is_name = !name.is_empty()
        && name.len() <= MAX_NAME_BYTES
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
    if !is_name || !port.is_none_or(is_port) {
        return Err(bad_host());
    }
    let name = name.to_ascii_lowercase();
    if api_host == Some(name.as_str()) {
        return Ok(Addressed::Api);
    }
    let without_dot = name.trim_end_matches('.');
    let below = |domain: &&str| without_dot.strip_suffix(*domain).and_then(|label| label.strip_suffix('.'));
    let found = domains.iter().enumerate().find_map(|(place, domain)| Some((place, domain, below(domain)?)));
    let Some((place, domain, label)) = found else { return Ok(Addressed::Api) };
    // A name with a dot at its end is the same to a resolver and another to a browser, which would keep two sets of cookies.
    if without_dot.len() != name.len() {
        return Err(Error::invalid("the name of a preview has no dot at its end"));
    }
    match parse_label(label) {
        Some((id, port)) => {
            let domain = (place > 0).then(|| (*domain).to_owned());
            Ok(Addressed::Preview(Target { id, port, domain, host: named.to_owned() }))
        }
        None => Err(Error::not_found(format!(
            "this is no preview's name; one is {{sandboxID}}-p{{port}}.{domain}, such as sb-0123abcd-p3000.{domain}"
        ))),
    }
}

fn is_port(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 5
        && text.bytes().all(|byte| byte.is_ascii_digit())
        && !text.starts_with('0')
}

/// An IPv6 address in brackets, perhaps with a port.
fn is_address(text: &str) -> bool {
    let Some((address, rest)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) else {
        return false;
    };
    let port = rest.strip_prefix(':');
    address.parse::<std::net::Ipv6Addr>().is_ok() && (rest.is_empty() || port.is_some_and(is_port))
}

fn bad_host() -> Error {
    Error::invalid("the host of a request is a name or an address, perhaps with a port")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DOMAIN: &str = "preview.example.com";

    fn resolved(named: &str) -> Result<Addressed, Error> {
        resolve(named, &[DOMAIN, "acme.example"], Some("api.preview.example.com"))
    }

    fn preview(host: &str) -> Result<Addressed, Error> {
        let id = "sb-0123abcd".parse().unwrap();
        Ok(Addressed::Preview(Target { id, port: 3000, domain: None, host: host.to_owned() }))
    }

    #[test]
    fn a_preview_has_one_name() {
        for host in [
            "sb-0123abcd-p3000.preview.example.com",
            "sb-0123abcd-p3000.preview.example.com:7070",
            "SB-0123ABCD-P3000.Preview.Example.COM",
        ] {
            assert_eq!(resolved(host), preview(host), "{host}");
        }
        for api in [
            "localhost",
            "localhost.",
            "127.0.0.1:7070",
            "[::1]",
            "[::1]:7070",
            "example.com",
            "preview.example.com",
            "preview.example.com.",
            "api.preview.example.com",
            "API.preview.example.com:443",
            "sb-0123abcd-p3000.example.com",
            "sb-0123abcd-p3000.preview.example.com.evil.org",
            "sb-0123abcd-p3000.notpreview.example.com",
            "sb-0123abcd-p3000preview.example.com",
        ] {
            assert_eq!(resolved(api), Ok(Addressed::Api), "{api}");
        }
        for nowhere in [
            "x.preview.example.com",
            "sb-0123abcd.preview.example.com",
            "sb-0123abcd-p0.preview.example.com",
            "sb-0123abcd-p03000.preview.example.com",
            "sb-0123abcd-p65536.preview.example.com",
            "a.sb-0123abcd-p3000.preview.example.com",
            "sb-0123abcd-p3000..preview.example.com",
            ".preview.example.com",
            "sb-0123abcd-p3000.api.preview.example.com",
            "api.api.preview.example.com",
            "sb-0123abcd_p3000.preview.example.com",
        ] {
            assert_eq!(resolved(nowhere).unwrap_err().kind, warren_types::ErrorKind::NotFound, "{nowhere}");
        }
        for bad in [
            "",
            ":80",
            "sb-0123abcd-p3000.preview.example.com.",
            "sb-0123abcd-p3000.preview.example.com..",
            "user@sb-0123abcd-p3000.preview.example.com",
            "sb-0123abcd-p3000.preview.example.com:",
            "sb-0123abcd-p3000.preview.example.com:080",
            "sb-0123abcd-p3000.preview.example.com:80:80",
            "sb-0123abcd-p3000.preview.example.com:99999999",
            "sb-0123abcd-p3000.preview.example.com:x",
            "sb-0123abcd-p3000.preview.example.com/x",
            "sb-0123abcd-p3000.preview.example.com,localhost",
            "localhost sb-0123abcd-p3000.preview.example.com",
            "[::1",
            "[::1]x",
            "[::1].preview.example.com",
            "sb-0123abcd-p3000%2epreview.example.com",
        ] {
            assert_eq!(resolved(bad).unwrap_err().kind, warren_types::ErrorKind::Invalid, "{bad}");
        }
    }

    #[test]
    fn an_organisations_domain_has_previews_too() {
        let id = "sb-0123abcd".parse().unwrap();
        let (domain, host) =
            (Some("acme.example".to_owned()), "sb-0123abcd-p3000.Acme.example:80".to_owned());
        assert_eq!(
            resolved(&host),
            Ok(Addressed::Preview(Target { id, port: 3000, domain, host: host.clone() }))
        );
        assert_eq!(resolved("acme.example"), Ok(Addressed::Api));
        assert_eq!(resolved("www.acme.example").unwrap_err().kind, warren_types::ErrorKind::NotFound);
    }

    #[test]
    fn where_a_host_is_named_twice_both_say_the_same() {
        let preview = "sb-0123abcd-p3000.preview.example.com";
        let asked_over = |version, uri: &str, hosts: &[&str]| {
            let mut request = Request::builder().version(version).uri(uri);
            for host in hosts {
                request = request.header("host", *host);
            }
            addressed(&request.body(Body::empty()).unwrap(), &[DOMAIN], None)
        };
        let asked = |uri: &str, hosts: &[&str]| asked_over(Version::HTTP_11, uri, hosts);
        let upper = preview.to_uppercase();
        let absolute = format!("http://{preview}/x");
        for (uri, hosts) in
            [("/x", vec![preview]), (absolute.as_str(), vec![preview]), (&absolute, vec![&upper])]
        {
            assert!(matches!(asked(uri, &hosts), Ok(Addressed::Preview(_))), "{uri} {hosts:?}");
        }
        for (uri, hosts) in [
            ("/x", vec![preview, preview]),
            ("/x", vec!["localhost", preview]),
            (absolute.as_str(), vec!["localhost"]),
            ("http://localhost/api", vec![preview]),
            (&absolute, vec!["sb-0123abcd-p3000.preview.example.com:80"]),
            ("http://localhost@sb-0123abcd-p3000.preview.example.com/x", vec![]),
        ] {
            assert!(asked(uri, &hosts).is_err(), "{uri} {hosts:?}");
        }
        for (version, uri) in [(Version::HTTP_2, absolute.as_str()), (Version::HTTP_10, &absolute)] {
            assert!(matches!(asked_over(version, uri, &[]), Ok(Addressed::Preview(_))), "{version:?}");
        }
        // Only HTTP/1.1 has to name one.
        assert_eq!(asked_over(Version::HTTP_10, "/x", &[]), Ok(Addressed::Api));
        for uri in ["/x", &absolute] {
            assert!(asked(uri, &[]).is_err(), "{uri}");
        }
    }

    proptest! {
        #[test]
        fn below_the_domain_there_is_nothing_but_previews(label in "[a-zA-Z0-9.:@_-]{0,40}") {
            let named = format!("{label}.{DOMAIN}");
            if resolve(&named, &[DOMAIN], None) == Ok(Addressed::Api) {
                prop_assert!(false, "{} leads to the API", named);
            }
        }
    }
}
