//! The server's certificate, read anew when its files change.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, SupportedProtocolVersion};

use super::TlsFiles;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(10);
const VERSIONS: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];

#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("the certificate {path} cannot be read; it is to be a chain in PEM, the server's own first")]
    Certificate { path: PathBuf, source: rustls::pki_types::pem::Error },
    #[error("there is no certificate in {path}")]
    Empty { path: PathBuf },
    #[error("the key {path} cannot be read; it is to be a private key in PEM, without a password")]
    Key { path: PathBuf, source: rustls::pki_types::pem::Error },
    #[error("the certificate {certificate} and the key {key} do not go together")]
    Mismatch { certificate: PathBuf, key: PathBuf, source: rustls::Error },
    #[error("TLS cannot be served")]
    Tls(#[source] rustls::Error),
    #[error("the listener has no address")]
    Listen(#[source] io::Error),
}

/// What a file was when it was read.
type Mark = Option<(SystemTime, u64)>;

pub(super) struct Certificate {
    files: TlsFiles,
    read: (Mark, Mark),
    provider: Arc<CryptoProvider>,
    current: Arc<Current>,
    config: Arc<ServerConfig>,
}

/// What handshakes use.
#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().expect("nothing panics while it holds this lock")))
    }
}

impl Certificate {
    pub(super) fn open(files: TlsFiles) -> Result<Self, CertificateError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let read = marks(&files);
        let current = Arc::new(Current(RwLock::new(Arc::new(load(&files, &provider)?))));
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&VERSIONS)
            .map_err(CertificateError::Tls)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&current) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { files, read, provider, current, config: Arc::new(config) })
    }

    pub(super) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    /// Reads the files again whenever they change. Runs for ever.
    pub(super) async fn keep_fresh(mut self) {
        loop {
            tokio::time::sleep(LOOK).await;
            self.refresh();
        }
    }

    fn refresh(&mut self) {
        let now = marks(&self.files);
        if now == self.read {
            return;
        }
        // What cannot be used, perhaps because it is half written, is looked at again when it changes again.
        self.read = now;
        match load(&self.files, &self.provider) {
            Ok(fresh) => {
                *self.current.0.write().expect("nothing panics while it holds this lock") = Arc::new(fresh);
                tracing::info!(file = %self.files.certificate.display(), "the new certificate is in use");
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the new certificate cannot be used; the old one stays"
                );
            }
        }
    }
}

fn marks(files: &TlsFiles) -> (Mark, Mark) {
    let mark = |path: &Path| {
        let data = std::fs::metadata(path).ok()?;
        Some((data.modified().ok()?, data.len()))
    };
    (mark(&files.certificate), mark(&files.key))
}

fn load(files: &TlsFiles, provider: &CryptoProvider) -> Result<CertifiedKey, CertificateError> {
    let path = || files.certificate.clone();
    let unreadable = |source| CertificateError::Certificate { path: path(), source };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&files.certificate)
        .map_err(unreadable)?
        .collect::<Result<_, _>>()
        .map_err(unreadable)?;
    if chain.is_empty() {
        return Err(CertificateError::Empty { path: path() });
    }
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|source| CertificateError::Key { path: files.key.clone(), source })?;
    CertifiedKey::from_der(chain, key, provider).map_err(|source| CertificateError::Mismatch {
        certificate: path(),
        key: files.key.clone(),
        source,
    })
}
