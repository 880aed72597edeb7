//! Where we go: which hosts, at which addresses, and how.

use std::error::Error;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, ClientBuilder, Url, redirect};

use crate::ImageError;

type Reach = Arc<dyn Fn(IpAddr) -> bool + Send + Sync>;

const CONNECT: Duration = Duration::from_secs(10);

/// Hands out the client for an address, or says why there is none.
pub(super) struct Guard {
    reach: Reach,
    /// Hosts with their ports that the operator has listed.
    insecure: Vec<(String, u16)>,
    /// Connects to addresses that `reach` lets it only. Made when it is first used: a host without certificates of
    /// authorities can still have images of listed hosts.
    guarded: OnceLock<Client>,
    /// For listed hosts. It trusts nobody's certificate.
    open: Client,
}

/// An address that a name has, and that is not to be reached.
#[derive(Debug)]
pub(super) struct Blocked(IpAddr);

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "its address {} is private; the operator of this server can list the registry as one to be trusted",
            self.0
        )
    }
}

impl Error for Blocked {}

struct GuardedResolver(Reach);

// === impl Guard ===

impl Guard {
    pub(super) fn new(reach: Reach, insecure: Vec<String>) -> Result<Self, ImageError> {
        let insecure = insecure.into_iter().map(|entry| listed(&entry)).collect::<Result<_, _>>()?;
        let open = build(builder().tls_certs_only([]))?;
        Ok(Self { reach, insecure, guarded: OnceLock::new(), open })
    }

    /// Where a registry is: `host` or `host:port`.
    pub(super) fn registry(&self, host: &str) -> Result<Url, ImageError> {
        let wrong = || unreachable(host, "this is no host");
        let plain = Url::parse(&format!("http://{host}/")).map_err(|_| wrong())?;
        if self.is_listed(&plain) {
            return Ok(plain);
        }
        Url::parse(&format!("https://{host}/")).map_err(|_| wrong())
    }

    pub(super) fn client(&self, url: &Url) -> Result<&Client, ImageError> {
        let host = shown_host(url);
        if !url.username().is_empty() || url.password().is_some() {
            return Err(unreachable(&host, "its address has a login in it"));
        }
        if url.scheme() == "http" && self.is_listed(url) {
            return Ok(&self.open);
        }
        if url.scheme() != "https" {
            return Err(unreachable(
                &host,
                "only hosts that the operator of this server has listed are spoken to without TLS",
            ));
        }
        // The resolver is not asked about these.
        let written = url.host_str().unwrap_or_default();
        let written = written.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(written);
        if let Ok(address) = written.parse::<IpAddr>()
            && !may_reach(&self.reach, address)
        {
            return Err(unreachable(&host, &Blocked(address).to_string()));
        }
        if let Some(client) = self.guarded.get() {
            return Ok(client);
        }
        let client = build(builder().dns_resolver(Arc::new(GuardedResolver(self.reach.clone()))))?;
        Ok(self.guarded.get_or_init(|| client))
    }

    fn is_listed(&self, url: &Url) -> bool {
        match (url.host_str(), url.port_or_known_default()) {
            (Some(host), Some(port)) => {
                self.insecure.iter().any(|(name, number)| name == host && *number == port)
            }
            _ => false,
        }
    }
}

/// The system's proxies are for the host's programs: through one, no address could be checked.
fn builder() -> ClientBuilder {
    Client::builder()
        .no_proxy()
        .redirect(redirect::Policy::none())
        .referer(false)
        .retry(reqwest::retry::never())
        .connect_timeout(CONNECT)
        .user_agent(concat!("warren/", env!("CARGO_PKG_VERSION")))
}

fn build(builder: ClientBuilder) -> Result<Client, ImageError> {
    builder.build().map_err(|error| ImageError::io("prepare connections", std::io::Error::other(error)))
}

/// Host and port, for errors.
pub(super) fn shown_host(url: &Url) -> String {
    match (url.host_str().unwrap_or("?"), url.port()) {
        (host, None) => host.to_owned(),
        (host, Some(port)) => format!("{host}:{port}"),
    }
}

fn listed(entry: &str) -> Result<(String, u16), ImageError> {
    let parsed = Url::parse(&format!("http://{entry}/")).ok();
    let plain = parsed.filter(|url| {
        url.path() == "/" && url.query().is_none() && url.fragment().is_none() && !url.as_str().contains('@')
    });
    let host = plain.and_then(|url| Some((url.host_str()?.to_owned(), url.port_or_known_default()?)));
    host.ok_or_else(|| unreachable(entry, "this is no host; write host or host:port"))
}

/// An IPv4 address may be written as one of IPv6.
fn may_reach(reach: &Reach, address: IpAddr) -> bool {
    reach(address) && (address.to_canonical() == address || reach(address.to_canonical()))
}

fn unreachable(host: &str, why: &str) -> ImageError {
    ImageError::Unreachable { host: host.to_owned(), why: why.to_owned() }
}

// === impl GuardedResolver ===

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let reach = self.0.clone();
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let allowed: Vec<SocketAddr> =
                found.iter().copied().filter(|address| may_reach(&reach, address.ip())).collect();
            match (allowed.is_empty(), found.first()) {
                (true, Some(blocked)) => Err(Blocked(blocked.ip()).into()),
                _ => Ok(Box::new(allowed.into_iter()) as Addrs),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard() -> Guard {
        let reach: Reach =
            Arc::new(|address| !address.to_canonical().is_ipv4() || address == IpAddr::from([1, 1, 1, 1]));
        Guard::new(
            reach,
            vec!["localhost:5000".to_owned(), "Plain.Example".to_owned(), "[::1]:5000".to_owned()],
        )
        .unwrap()
    }

    #[test]
    fn listed_hosts_are_spoken_to_plainly_and_others_are_not() {
        let guard = guard();
        for (host, url) in [
            ("localhost:5000", "http://localhost:5000/"),
            ("plain.example", "http://plain.example/"),
            ("[::1]:5000", "http://[::1]:5000/"),
            ("localhost:5001", "https://localhost:5001/"),
            ("localhost", "https://localhost/"),
            ("plain.example:443", "https://plain.example/"),
        ] {
            assert_eq!(guard.registry(host).unwrap().as_str(), url);
        }
        for entry in ["", "a/b", "http://a", "u@a", "a:99999"] {
            assert!(listed(entry).is_err(), "{entry}");
        }
    }

    #[test]
    fn addresses_that_are_written_out_are_checked_too() {
        let guard = guard();
        for (url, is_allowed) in [
            ("https://1.1.1.1/", true),
            ("https://127.0.0.1/", false),
            ("https://0x7f.1/", false),
            ("https://2130706433/", false),
            ("https://[::ffff:10.0.0.1]/", false),
            ("https://[2606::1]/", true),
            ("http://1.1.1.1/", false),
            ("ftp://1.1.1.1/", false),
            ("https://u:p@1.1.1.1/", false),
            ("http://localhost:5000/x", true),
            ("http://localhost:5001/x", false),
        ] {
            assert_eq!(guard.client(&Url::parse(url).unwrap()).is_ok(), is_allowed, "{url}");
        }
    }
}
