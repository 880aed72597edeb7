//! TLS at both ends: as the host a sandbox asked for, and as a client of that host.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ServerSessionMemoryCache;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tracing::warn;

use super::authority::Authority;
use super::client_hello::ClientHello;
use super::io::Io;

pub(crate) const HTTP_2: &[u8] = b"h2";
pub(crate) const HTTP_1: &[u8] = b"http/1.1";
const SESSIONS: usize = 4096;
/// Bytes that are encrypted before they are sent. More than a piece of a body with the length before it, which would go out
/// in two otherwise, the second of a few bytes.
const SEND_BUFFER: usize = 512 * 1024;
/// The same for a sandbox with many connections, whose pieces are small.
const SEND_BUFFER_OF_MANY: usize = 64 * 1024;

pub(crate) struct Tls {
    authority: Authority,
    server: ServerConfig,
    /// Offers HTTP/2 and HTTP/1.1.
    both: Arc<ClientConfig>,
    http_1: Arc<ClientConfig>,
    http_2: Arc<ClientConfig>,
}

impl Tls {
    pub(crate) fn new(authority: Authority, extra_roots: Option<&Path>) -> io::Result<Self> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let client = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots(extra_roots)?)
            .with_no_client_auth();
        let offering = |protocols: &[&[u8]]| {
            let mut config = client.clone();
            config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
            Arc::new(config)
        };
        Ok(Self {
            server: server_config(&provider)?,
            both: offering(&[HTTP_2, HTTP_1]),
            http_1: offering(&[HTTP_1]),
            http_2: offering(&[HTTP_2]),
            authority,
        })
    }

    /// Is the host for a client, speaking one of `protocols`; none of them when the client asks for none. `of_many`: its sandbox
    /// has many connections.
    pub(crate) async fn accept<S: Io>(
        &self,
        stream: S,
        host: &str,
        protocols: &[&[u8]],
        of_many: bool,
    ) -> io::Result<server::TlsStream<S>> {
        let leaf = self.authority.leaf(host)?;
        let mut config = self.server.clone();
        config.cert_resolver = Arc::new(SingleCertAndKey::from(leaf));
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let mut stream = TlsAcceptor::from(Arc::new(config)).accept(stream).await?;
        stream.get_mut().1.set_buffer_limit(Some(if of_many { SEND_BUFFER_OF_MANY } else { SEND_BUFFER }));
        Ok(stream)
    }

    /// Is a client of the host, speaking what the sandbox's own client offered.
    pub(crate) async fn connect<S: Io>(
        &self,
        stream: S,
        host: &str,
        protocols: Protocols,
    ) -> io::Result<client::TlsStream<S>> {
        let config = match protocols {
            Protocols::Both => &self.both,
            Protocols::Http1 => &self.http_1,
            Protocols::Http2 => &self.http_2,
        };
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        TlsConnector::from(config.clone()).connect(name, stream).await
    }
}

/// What a host is asked to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocols {
    Both,
    Http1,
    Http2,
}

impl Protocols {
    pub(crate) fn of(hello: &ClientHello) -> Self {
        let offers = |wanted: &[u8]| hello.protocols.iter().any(|protocol| protocol == wanted);
        match (offers(HTTP_2), offers(HTTP_1)) {
            (true, true) => Self::Both,
            (true, false) => Self::Http2,
            (false, _) => Self::Http1,
        }
    }
}

fn server_config(provider: &Arc<CryptoProvider>) -> io::Result<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(rustls::server::ResolvesServerCertUsingSni::new()));
    config.session_storage = ServerSessionMemoryCache::new(SESSIONS);
    Ok(config)
}

/// The host's authorities and those of the file. One of the host's that cannot be read is left out.
fn roots(extra: Option<&Path>) -> io::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        warn!(%error, "an authority of this host could not be read");
    }
    roots.add_parsable_certificates(native.certs);
    if let Some(path) = extra {
        let named = |error: &dyn std::fmt::Display| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display()))
        };
        for certificate in CertificateDer::pem_file_iter(path).map_err(|error| named(&error))? {
            roots.add(certificate.map_err(|error| named(&error))?).map_err(|error| named(&error))?;
        }
    }
    Ok(roots)
}
