//! Warren's base template as a folder, so that the other systems start from the same files.
//!
//! Owns a read-only loop mount of the cached image; dropped, the mount is gone.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context as _, ensure};

const CACHE_ENV: &str = "WARREN_TEMPLATE_CACHE";
const DEFAULT_CACHE: &str = "/var/cache/warren/templates";

pub(crate) struct Mounted {
    at: PathBuf,
}

fn cache() -> PathBuf {
    let cache = std::env::var_os(CACHE_ENV).filter(|value| !value.is_empty());
    cache.map_or_else(|| PathBuf::from(DEFAULT_CACHE), PathBuf::from)
}

/// Where Warren keeps what virtual machines are booted with: beside the templates.
pub(crate) fn cache_of_machines() -> PathBuf {
    let templates = cache();
    match templates.parent() {
        Some(parent) if templates.ends_with("templates") => parent.to_owned(),
        _ => templates,
    }
}

/// The template made last in Warren's cache.
pub(crate) fn newest() -> anyhow::Result<PathBuf> {
    let cache = cache();
    let entries = std::fs::read_dir(&cache);
    let entries =
        entries.with_context(|| format!("could not list the template cache {}", cache.display()))?;
    let made = |image: &PathBuf| -> Option<SystemTime> {
        // Only an image with its manifest is complete.
        image.with_extension("json").metadata().and_then(|metadata| metadata.modified()).ok()
    };
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "ext4"))
        .filter_map(|image| Some((made(&image)?, image)))
        .max()
        .map(|(_, image)| image)
        .with_context(|| format!("no template in {}: start `warren serve` once", cache.display()))
}

// === impl Mounted ===

impl Mounted {
    pub(crate) fn new(image: &Path, at: PathBuf) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&at).with_context(|| format!("could not make {}", at.display()))?;
        let output = Command::new("mount").args(["-o", "loop,ro"]).arg(image).arg(&at).output();
        let output = output.context("could not start mount")?;
        let words = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "could not mount {}: {}", image.display(), words.trim());
        Ok(Self { at })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.at
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = rustix::mount::unmount(&self.at, rustix::mount::UnmountFlags::DETACH) {
            eprintln!("could not unmount {}: {error}", self.at.display());
        }
    }
}
