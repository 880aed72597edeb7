//! Contents by their hash: what came back, and what went in.
//!
//! What went in is, in this order, the file here while it is still the same, a copy that was kept when it was sent, or the file in
//! a fork of the checkpoint, fetched beforehand. Whatever it comes from, its hash decides.

use std::fs;
use std::path::{Path, PathBuf};

use super::collect::{MAX_FILE, read_file};
use super::diff::Contents;
use super::{Change, Content};
use crate::agent::tree::hash_of;
use crate::agent::tree::root::Root;
use crate::client::Client;
use warren_api::checkpoints::Fork;
use warren_types::{CheckpointId, SandboxId};

/// A folder with one file for each content.
pub(crate) struct Blobs(pub(crate) PathBuf);

impl Blobs {
    pub(crate) fn put(&self, content: &[u8]) -> anyhow::Result<String> {
        let hash = hash_of(content);
        let path = self.0.join(&hash);
        if !path.exists() {
            crate::agent::tree::cache::write(&path, content)?;
        }
        Ok(hash)
    }

    pub(crate) fn get(&self, hash: &str) -> Option<Vec<u8>> {
        fs::read(self.0.join(hash)).ok().filter(|content| hash_of(content) == hash)
    }
}

/// Both sides of changes to a folder.
pub(crate) struct Sides<'a> {
    /// None when the folder is gone.
    pub(crate) root: Option<&'a Root>,
    pub(crate) blobs: &'a Blobs,
}

impl Contents for Sides<'_> {
    fn before(&self, change: &Change) -> Option<Vec<u8>> {
        let hash = change.before.as_ref()?.hash()?;
        let here = self
            .root
            .and_then(|root| root.read(&change.name, MAX_FILE).ok())
            .filter(|content| hash_of(content) == hash);
        here.or_else(|| self.blobs.get(hash))
    }

    fn after(&self, change: &Change) -> Option<Vec<u8>> {
        self.blobs.get(change.after.as_ref()?.hash()?)
    }
}

/// Brings what went in and is not here any more from the checkpoint. What cannot be had stays away; it is a conflict then.
pub(crate) async fn fetch_missing(
    client: &Client,
    sides: &Sides<'_>,
    changes: &[Change],
    (checkpoint, folder): (&str, &str),
) {
    let is_missing = |change: &&Change| {
        matches!(change.before, Some(Content::File { .. })) && sides.before(change).is_none()
    };
    let missing: Vec<&Change> = changes.iter().filter(is_missing).collect();
    let Some(checkpoint) = checkpoint.parse::<CheckpointId>().ok().filter(|_| !missing.is_empty()) else {
        return;
    };
    // Should we be cut off, it sleeps.
    let body = Fork { timeout: Some(60), ..Fork::default() };
    let Ok(fork) = client.fork_checkpoint(&checkpoint, &body, None).await else { return };
    let Ok(id) = fork.value.sandbox_id.parse::<SandboxId>() else { return };
    for change in missing {
        let path = format!("{folder}/{}", change.name);
        if let Ok(content) = read_file(client, &id, &path, MAX_FILE).await
            && change.before.as_ref().and_then(Content::hash) == Some(hash_of(&content).as_str())
        {
            let _ = sides.blobs.put(&content);
        }
    }
    let _ = client.kill_sandbox(&id).await;
}

pub(crate) fn blobs_of(run: &Path) -> anyhow::Result<Blobs> {
    let folder = run.join("blobs");
    crate::agent::tree::cache::make_private(&folder)?;
    Ok(Blobs(folder))
}
