//! Images from registries.
//!
//! Our own client on `reqwest`, a few requests of the distribution protocol, because of what goes round them: every
//! address that is connected to (the registry's, its token service's, each redirect's) is asked about before, in the
//! resolver and where the host is written as an address; redirects are followed by hand, so that each is checked and
//! none gets credentials that are another's; and every document, body and wait is bounded. `oci-client` lets one set
//! none of these.
//!
//! Credentials go to the registry and to the token service that it names, over TLS unless the operator has listed
//! the host. A registry that asks again after it was answered is refused.

mod auth;
mod challenge;
mod docker_config;
mod download;
mod guard;
mod patience;
mod session;

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use warren_types::Secret;

use self::docker_config::DockerConfig;
use self::guard::Guard;
use self::session::Session;
use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::manifest::{
    DOCKER_LIST, DOCKER_MANIFEST, Document, Manifest, NESTING, OCI_INDEX, OCI_MANIFEST, check_platform,
    choose,
};
use crate::{Config, ImageError, Limits, Reference, Source, Step};

/// Who asks a registry.
#[derive(Debug, Clone)]
pub struct Login {
    pub username: String,
    pub password: Secret<String>,
}

/// How registries are reached. Connections are kept and shared, so make it once.
#[derive(Clone)]
pub struct Registries {
    guard: Arc<Guard>,
    docker_config: Option<PathBuf>,
}

/// An image that a registry has, for this host's platform. Nothing large of it is here yet.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// Of the manifest for this platform, `sha256:…`.
    pub digest: String,
    pub reference: Reference,
    config: ImageConfig,
    manifest: Manifest,
    /// The registry, with what it has let us in with.
    session: Arc<Session>,
}

// === impl Registries ===

impl Registries {
    /// `reach` says which addresses may be connected to. Each host (with its port, where it is not 80) of `insecure` is
    /// spoken to without TLS and may be at any address. `docker_config` is a `config.json` with `auths`, read each time
    /// an image is asked for without a login.
    ///
    /// # Errors
    /// When a host of `insecure` is none, or `docker_config` is there and cannot be read.
    pub fn new(
        reach: Arc<dyn Fn(IpAddr) -> bool + Send + Sync>,
        insecure: Vec<String>,
        docker_config: Option<PathBuf>,
    ) -> Result<Self, ImageError> {
        if let Some(path) = &docker_config {
            DockerConfig::read(path)?;
        }
        Ok(Self { guard: Arc::new(Guard::new(reach, insecure)?), docker_config })
    }

    /// Finds out what a reference means now, for Linux on this host.
    ///
    /// # Errors
    /// In words for whoever asked: who refused what, what is broken, where we do not go.
    pub async fn resolve(
        &self,
        reference: &Reference,
        login: Option<&Login>,
    ) -> Result<Resolved, ImageError> {
        let limits = Limits::default();
        let login = match (login, &self.docker_config) {
            (Some(login), _) => Some(login.clone()),
            (None, Some(path)) => DockerConfig::read(path)?.login(reference.registry()),
            (None, None) => None,
        };
        let session = Arc::new(Session::new(self.guard.clone(), reference, login)?);
        let (digest, manifest) = find_manifest(&session, reference, &limits).await?;
        manifest.check(&limits)?;
        let blob = format!("blobs/{}", manifest.config.digest);
        let document = session.document(&blob, "", "its configuration", limits.config_bytes).await?;
        if document.body.len() as u64 != manifest.config.size
            || Digest::of(&document.body) != manifest.config.digest
        {
            return Err(ImageError::Broken(
                "its configuration does not have the digest it should".to_owned(),
            ));
        }
        let config = ImageConfig::parse(&document.body)?;
        check_platform(&config.os, &config.architecture)?;
        Ok(Resolved { digest: digest.to_string(), reference: reference.clone(), config, manifest, session })
    }

    /// Fetches the layers into files in `folder`, a few at a time.
    ///
    /// # Errors
    /// As [`Registries::resolve`], and when the image is beyond `limits` or does not fit. What is in `folder` then is of
    /// no use; something may still be written there for a moment when this is dropped.
    pub async fn fetch(
        &self,
        resolved: &Resolved,
        folder: &Path,
        limits: &Limits,
        progress: impl Fn(Step) + Send + Sync,
    ) -> Result<Source, ImageError> {
        resolved.manifest.check(limits)?;
        download::layers(&resolved.session, &resolved.manifest, folder, limits, &progress).await?;
        let layers = resolved.manifest.layers.iter();
        let files = layers.map(|layer| (download::file(folder, layer.digest), layer.size)).collect();
        let reference = Some(resolved.reference.to_string());
        let digest = resolved.digest.parse::<Digest>().map_err(ImageError::Broken)?;
        Source::new(digest, reference, resolved.config.clone(), files)
    }
}

impl fmt::Debug for Registries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registries").field("docker_config", &self.docker_config).finish_non_exhaustive()
    }
}

// === impl Resolved ===

impl Resolved {
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config.config
    }

    /// All layers as they are stored, in bytes.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.manifest.stored_bytes()
    }
}

async fn find_manifest(
    session: &Session,
    reference: &Reference,
    limits: &Limits,
) -> Result<(Digest, Manifest), ImageError> {
    let accept = [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST].join(", ");
    let mut wanted = reference.wanted_digest();
    let mut size = None;
    for _ in 0..=NESTING {
        let name = wanted.map(|digest| digest.to_string());
        let name = name.as_deref().or(reference.tag()).unwrap_or("latest");
        let path = format!("manifests/{name}");
        let document = session.document(&path, &accept, "its manifest", limits.manifest_bytes).await?;
        let digest = Digest::of(&document.body);
        let broken = |why: &str| Err(ImageError::Broken(format!("its manifest {why}")));
        if wanted.is_some_and(|wanted| wanted != digest) {
            return broken("does not have the digest it should");
        }
        // What the registry says it has sent; algorithms we do not know are its own affair.
        if document.digest.and_then(|said| said.parse().ok()).is_some_and(|said: Digest| said != digest) {
            return broken("does not have the digest that the registry says");
        }
        if size.is_some_and(|size| size != document.body.len() as u64) {
            return broken("does not have the size that its index says");
        }
        match Document::parse(&document.body, document.content_type.as_deref())? {
            Document::Manifest(manifest) => return Ok((digest, manifest)),
            Document::Index(index) => {
                let chosen = choose(&index)?;
                (wanted, size) = (Some(chosen.digest), Some(chosen.size));
            }
        }
    }
    Err(ImageError::Broken("its index names indexes without end".to_owned()))
}
