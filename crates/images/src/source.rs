//! An image that is here, not yet unpacked.

use std::path::PathBuf;

use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::manifest::check_platform;
use crate::{Config, ImageError};

/// An image whose layers lie in a folder. It is of use for as long as the folder is left alone.
#[derive(Debug, Clone)]
pub struct Source {
    /// Of the manifest, `sha256:…`; of the configuration where `docker save` wrote no manifest. Equal digests are equal
    /// images.
    pub digest: String,
    /// What it was asked for as, or what an archive calls it.
    pub reference: Option<String>,
    pub config: Config,
    /// Bottom first.
    pub(crate) layers: Vec<Layer>,
}

#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub(crate) file: PathBuf,
    /// As it is stored.
    pub(crate) size: u64,
    /// Digest with the compression undone. Checked while it is unpacked.
    pub(crate) diff_id: Digest,
}

// === impl Source ===

impl Source {
    pub(crate) fn new(
        digest: Digest,
        reference: Option<String>,
        config: ImageConfig,
        files: Vec<(PathBuf, u64)>,
    ) -> Result<Self, ImageError> {
        check_platform(&config.os, &config.architecture)?;
        if config.diff_ids.len() != files.len() {
            return Err(ImageError::Broken(format!(
                "it has {} layers, its configuration says {}",
                files.len(),
                config.diff_ids.len()
            )));
        }
        let layers = files.into_iter().zip(config.diff_ids);
        let layers = layers.map(|((file, size), diff_id)| Layer { file, size, diff_id }).collect();
        Ok(Self { digest: digest.to_string(), reference, config: config.config, layers })
    }

    /// All layers as they are stored, in bytes.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.size).sum()
    }

    #[must_use]
    pub fn layers(&self) -> usize {
        self.layers.len()
    }
}
