//! Where previews are: `{sandbox id}-p{port}.` and a domain.

use std::fmt;
use std::str::FromStr;

/// A domain all of whose names lead to this server, with a port where URLs need one that cannot be told otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxDomain {
    name: String,
    port: Option<u16>,
}

/// A domain of an organisation, all of whose names lead to this server, as its operator says: previews that ask for it have a
/// second name there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CustomDomain {
    /// The organisation's name.
    pub org: String,
    name: String,
}

/// Text that is no such thing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} does not say whose domain it is; give ORG=DOMAIN, such as acme=preview.acme.example")]
pub struct ParseCustomDomainError(String);

/// Text that is no such domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a domain; give a name such as preview.example.com, without `*.`, whose every subdomain leads here"
)]
pub struct ParseDomainError(String);

/// A name, its host labels and the dots between them, may have this many bytes. Two labels of ours come before it.
const MAX_NAME_BYTES: usize = 200;
const MAX_LABEL_BYTES: usize = 63;

impl SandboxDomain {
    /// Browsers look every name below it up as the machine they run on, without asking anybody.
    #[must_use]
    pub fn localhost() -> Self {
        Self { name: "localhost".to_owned(), port: None }
    }

    /// In lower case.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The same with another name.
    pub(crate) fn named(&self, name: &str) -> Self {
        Self { name: name.to_owned(), port: self.port }
    }

    /// Whether a name below one of the two may be below the other.
    #[must_use]
    pub fn overlaps(&self, custom: &CustomDomain) -> bool {
        overlap(&self.name, &custom.name)
    }

    /// With the port that clients need in URLs: its own, or that of the URL by which they reach this server.
    pub(crate) fn shown(&self, base: &str) -> String {
        match self.port.or_else(|| port_of(base)) {
            Some(port) => format!("{}:{port}", self.name),
            None => self.name.clone(),
        }
    }
}

impl CustomDomain {
    /// In lower case.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether a name below one of the two may be below the other.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        overlap(&self.name, &other.name)
    }
}

fn overlap(one: &str, other: &str) -> bool {
    let is_below = |inner: &str, outer: &str| {
        inner.strip_suffix(outer).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    is_below(one, other) || is_below(other, one)
}

/// The port a URL without a path names.
fn port_of(base: &str) -> Option<u16> {
    let (_, authority) = base.split_once("://")?;
    let authority = authority.split('/').next()?;
    let (_, port) = authority.rsplit_once(':')?;
    port.parse().ok()
}

/// The host a URL names, in lower case and without its port.
pub(crate) fn host_of(base: &str) -> Option<String> {
    let (_, authority) = base.split_once("://")?;
    let authority = authority.split('/').next()?;
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    };
    (!host.is_empty()).then(|| host.to_ascii_lowercase())
}

impl FromStr for SandboxDomain {
    type Err = ParseDomainError;

    fn from_str(text: &str) -> Result<Self, ParseDomainError> {
        let refused = || ParseDomainError(text.to_owned());
        let (name, port) = match text.split_once(':') {
            Some((name, port)) => {
                let port: u16 = port.parse().map_err(|_| refused())?;
                (name, Some(port).filter(|port| *port != 0).ok_or_else(refused)?.into())
            }
            None => (text, None),
        };
        let name = name.to_ascii_lowercase();
        let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let is_label = |label: &str| {
            !label.is_empty()
                && label.len() <= MAX_LABEL_BYTES
                && label.bytes().all(legal)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        // All digits would be an address, which has no names below it.
        let is_address = name.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        if name.len() > MAX_NAME_BYTES || is_address || !name.split('.').all(is_label) {
            return Err(refused());
        }
        Ok(Self { name, port })
    }
}

impl FromStr for CustomDomain {
    type Err = ParseCustomDomainError;

    fn from_str(text: &str) -> Result<Self, ParseCustomDomainError> {
        let refused = || ParseCustomDomainError(text.to_owned());
        let (org, domain) = text.rsplit_once('=').filter(|(org, _)| !org.is_empty()).ok_or_else(refused)?;
        match domain.parse() {
            Ok(SandboxDomain { name, port: None }) => Ok(Self { org: org.to_owned(), name }),
            _ => Err(refused()),
        }
    }
}

impl fmt::Display for SandboxDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_custom_domain_is_somebodys_and_overlaps_no_other() {
        let custom = |text: &str| text.parse::<CustomDomain>();
        let acme = custom("acme=Preview.Acme.example").unwrap();
        assert_eq!((acme.org.as_str(), acme.name()), ("acme", "preview.acme.example"));
        for bad in
            ["", "acme", "=a.example", "acme=", "acme=*.a.example", "acme=a.example:80", "acme=10.0.0.1"]
        {
            assert!(custom(bad).is_err(), "{bad}");
        }
        for (other, overlaps) in [
            ("x=preview.acme.example", true),
            ("x=acme.example", true),
            ("x=a.preview.acme.example", true),
            ("x=apreview.acme.example", false),
            ("x=other.example", false),
        ] {
            let other = custom(other).unwrap();
            assert_eq!((acme.overlaps(&other), other.overlaps(&acme)), (overlaps, overlaps), "{other:?}");
        }
        assert!("example".parse::<SandboxDomain>().unwrap().overlaps(&acme));
        assert!(!SandboxDomain::localhost().overlaps(&acme));
    }

    #[test]
    fn a_domain_is_a_name_and_perhaps_a_port() {
        for (text, shown) in [
            ("localhost", "localhost"),
            ("Preview.Example.COM", "preview.example.com"),
            ("a.example:8443", "a.example:8443"),
        ] {
            assert_eq!(text.parse::<SandboxDomain>().unwrap().to_string(), shown);
        }
        for bad in [
            "",
            ".",
            "*.example.com",
            "example.com.",
            ".example.com",
            "a..b",
            "http://a",
            "a/b",
            "a:0",
            "a:x",
            "a b",
            "10.0.0.1",
            "-a.b",
            "a-.b",
            "[::1]",
            "é.example",
            "user@example.com",
        ] {
            assert!(bad.parse::<SandboxDomain>().is_err(), "{bad}");
        }
    }

    #[test]
    fn it_is_shown_with_the_port_that_urls_need() {
        let localhost = SandboxDomain::localhost();
        assert_eq!(localhost.shown("http://127.0.0.1:7070"), "localhost:7070");
        assert_eq!(localhost.shown("http://[::1]:7070"), "localhost:7070");
        assert_eq!(localhost.shown("https://warren.example.com"), "localhost");
        let fixed: SandboxDomain = "p.example.com:8443".parse().unwrap();
        assert_eq!(fixed.shown("http://127.0.0.1:7070"), "p.example.com:8443");
        assert_eq!(host_of("https://Warren.example.com:1/x").as_deref(), Some("warren.example.com"));
        assert_eq!(host_of("https://warren.example.com").as_deref(), Some("warren.example.com"));
    }
}
