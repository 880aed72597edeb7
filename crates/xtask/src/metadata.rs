//! What `cargo metadata` says about the crates of the workspace.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, bail};
use serde::Deserialize;

#[derive(Deserialize)]
pub(crate) struct Metadata {
    /// The workspace's own.
    pub(crate) packages: Vec<Package>,
}

#[derive(Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    /// Set when it is a crate of this workspace.
    pub(crate) path: Option<String>,
}

impl Metadata {
    pub(crate) fn load(root: &Path) -> anyhow::Result<Self> {
        let output = crate::cargo(root)
            .args(["metadata", "--format-version", "1", "--no-deps"])
            .stderr(Stdio::inherit())
            .output()
            .context("could not start cargo metadata")?;
        if !output.status.success() {
            bail!("cargo metadata ended with {}", output.status);
        }
        serde_json::from_slice(&output.stdout).context("cargo metadata wrote something else than expected")
    }
}
