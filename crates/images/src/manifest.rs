//! Manifests and indexes, of OCI and of Docker, and the choice of a platform.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::digest::Digest;
use crate::error::shown;
use crate::{ImageError, Limits};

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const SCHEMA_1: &[&str] = &[
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
];

const CONFIGS: &[&str] =
    &["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// How a layer is packed is seen from its first bytes; these say only that it is a layer.
const LAYERS: &[&str] = &[
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
];

/// Names under which tools keep an image's name in an index, the most telling first.
const NAMES: &[&str] = &["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// An index may name indexes; none that is honest goes deeper.
pub(crate) const NESTING: usize = 3;

#[derive(Debug, Clone)]
pub(crate) enum Document {
    Index(Vec<Descriptor>),
    Manifest(Manifest),
}

#[derive(Debug, Clone)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    /// Bottom first.
    pub(crate) layers: Vec<Descriptor>,
}

#[derive(Debug, Clone)]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    platform: Option<Platform>,
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    #[serde(default)]
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    config: Option<RawDescriptor>,
    #[serde(default)]
    layers: Option<Vec<RawDescriptor>>,
    #[serde(default)]
    manifests: Option<Vec<RawDescriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

// === impl Document ===

impl Document {
    /// `content_type` is what the registry says the document is; it counts where the document itself says nothing.
    pub(crate) fn parse(json: &[u8], content_type: Option<&str>) -> Result<Self, ImageError> {
        let broken = |why: String| ImageError::Broken(format!("its manifest cannot be read: {why}"));
        let raw: RawDocument = serde_json::from_slice(json).map_err(|error| broken(error.to_string()))?;
        let said = raw.media_type.as_deref().or(content_type).unwrap_or_default();
        if raw.schema_version == 1 || SCHEMA_1.contains(&said) {
            return Err(ImageError::Unsupported(
                "its manifest is of Docker's schema 1, which is no longer used; push it again with a newer client"
                    .to_owned(),
            ));
        }
        if raw.schema_version != 2 {
            return Err(broken(format!("schemaVersion is {}, not 2", raw.schema_version)));
        }
        if let Some(said) = &raw.media_type {
            let known = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];
            if !known.contains(&said.as_str()) {
                return Err(unsupported("its manifest", said));
            }
        }
        let is_index = matches!(raw.media_type.as_deref(), Some(OCI_INDEX | DOCKER_LIST));
        let is_manifest = matches!(raw.media_type.as_deref(), Some(OCI_MANIFEST | DOCKER_MANIFEST));
        match (raw.manifests, raw.config, raw.layers) {
            (Some(manifests), None, None) if !is_manifest => {
                let descriptors = manifests.into_iter().map(Descriptor::read).collect::<Result<_, _>>();
                Ok(Self::Index(descriptors.map_err(broken)?))
            }
            (None, Some(config), Some(layers)) if !is_index => {
                let config = Descriptor::read(config).map_err(broken)?;
                let layers = layers.into_iter().map(Descriptor::read).collect::<Result<_, _>>();
                Ok(Self::Manifest(Manifest { config, layers: layers.map_err(broken)? }))
            }
            // One that is both would be read differently by different clients.
            _ => Err(broken("it is neither a manifest nor an index".to_owned())),
        }
    }
}

// === impl Manifest ===

impl Manifest {
    pub(crate) fn check(&self, limits: &Limits) -> Result<(), ImageError> {
        if !CONFIGS.contains(&self.config.media_type.as_str()) {
            return Err(unsupported("its configuration", &self.config.media_type));
        }
        if self.config.size > limits.config_bytes {
            return Err(ImageError::TooLarge(format!("its configuration has {} bytes", self.config.size)));
        }
        if self.layers.len() > limits.layers {
            let (layers, most) = (self.layers.len(), limits.layers);
            return Err(ImageError::TooLarge(format!("it has {layers} layers, {most} are taken")));
        }
        for layer in &self.layers {
            if !LAYERS.contains(&layer.media_type.as_str()) {
                return Err(unsupported("a layer", &layer.media_type));
            }
            if layer.size > limits.blob_bytes {
                let (size, most) = (layer.size, limits.blob_bytes);
                return Err(ImageError::TooLarge(format!("a layer has {size} bytes, {most} are taken")));
            }
        }
        let total = self.stored_bytes();
        if total > limits.stored_bytes {
            let most = limits.stored_bytes;
            return Err(ImageError::TooLarge(format!("its layers have {total} bytes, {most} are taken")));
        }
        Ok(())
    }

    pub(crate) fn stored_bytes(&self) -> u64 {
        self.layers.iter().fold(0, |sum, layer| sum.saturating_add(layer.size))
    }
}

fn unsupported(what: &str, media_type: &str) -> ImageError {
    match media_type {
        "" => ImageError::Unsupported(format!("{what} has no media type")),
        _ => ImageError::Unsupported(format!("{what} has the media type {}", shown(media_type.as_bytes()))),
    }
}

// === impl Descriptor ===

impl Descriptor {
    fn read(raw: RawDescriptor) -> Result<Self, String> {
        Ok(Self {
            media_type: raw.media_type,
            digest: raw.digest.parse()?,
            size: raw.size,
            platform: raw.platform,
            annotations: raw.annotations.unwrap_or_default(),
        })
    }

    /// What the image is called, where an archive says. A tag alone is no name.
    pub(crate) fn name(&self) -> Option<&str> {
        let names = NAMES.iter().filter_map(|name| self.annotations.get(*name));
        names.map(String::as_str).find(|name| name.contains(['/', ':']))
    }
}

/// This host's architecture, as images name it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The one for Linux on this host. Several only where an archive holds several images.
pub(crate) fn choose(index: &[Descriptor]) -> Result<&Descriptor, ImageError> {
    let ours = |descriptor: &&Descriptor| match &descriptor.platform {
        Some(platform) => platform.os == "linux" && platform.architecture == architecture(),
        None => true,
    };
    let mut matching: Vec<&Descriptor> = index.iter().filter(ours).collect();
    // A platform that is said is worth more than one that is not; the plain variant runs everywhere.
    let rank = |descriptor: &&Descriptor| match &descriptor.platform {
        None => 2,
        Some(Platform { variant: None, .. }) => 0,
        Some(Platform { variant: Some(variant), .. }) => {
            u8::from(!matches!(variant.as_str(), "" | "v1" | "v8"))
        }
    };
    matching.sort_by_key(rank);
    let Some(first) = matching.first() else {
        let platforms = index.iter().filter_map(|descriptor| descriptor.platform.as_ref());
        let mut has: Vec<String> = platforms
            .filter(|platform| platform.os != "unknown")
            .map(|platform| shown(format!("{}/{}", platform.os, platform.architecture).as_bytes()))
            .collect();
        has.dedup();
        has.truncate(20);
        let has = if has.is_empty() { "nothing".to_owned() } else { has.join(", ") };
        return Err(ImageError::Unsupported(format!(
            "it has nothing for linux/{}, only {has}",
            architecture()
        )));
    };
    let equal = matching.iter().filter(|other| rank(other) == rank(first) && other.digest != first.digest);
    let others: Vec<&&Descriptor> =
        equal.filter(|other| other.platform.is_none() || other.name() != first.name()).collect();
    if !others.is_empty() {
        let named = |descriptor: &Descriptor| descriptor.name().map(|name| shown(name.as_bytes()));
        let mut names: Vec<String> =
            std::iter::once(first).chain(others).filter_map(|one| named(one)).collect();
        names.truncate(20);
        let names = if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) };
        return Err(ImageError::Unsupported(format!("there are several images in it{names}; give one")));
    }
    Ok(first)
}

/// An image for another machine would fail only when something is started in it.
pub(crate) fn check_platform(os: &str, architecture_said: &str) -> Result<(), ImageError> {
    let fits =
        matches!(os, "" | "linux") && (architecture_said.is_empty() || architecture_said == architecture());
    if fits {
        return Ok(());
    }
    let said = shown(format!("{os}/{architecture_said}").as_bytes());
    Err(ImageError::Unsupported(format!("it is for {said}, this host is linux/{}", architecture())))
}
