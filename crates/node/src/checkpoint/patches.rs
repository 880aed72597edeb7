//! Patches of a checkpoint, as the control plane last sent them: `patches.json` in its folder. They run in each sandbox made
//! from the checkpoint, whenever it starts; see [`crate::sandbox::patch`].

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use tracing::warn;
use warren_node_api::Patch;
use warren_types::{CheckpointId, Error};

use super::{Checkpoints, not_found};

const FILE: &str = "patches.json";

impl Checkpoints {
    /// Replaces the patches of a checkpoint.
    pub(crate) async fn set_patches(&self, id: &CheckpointId, mut patches: Vec<Patch>) -> Result<(), Error> {
        patches.sort_by_key(|patch| patch.sequence);
        self.get(id)?;
        let (folder, kept) = (self.folder.join(id.as_str()), patches.clone());
        let saved = tokio::task::spawn_blocking(move || save(&folder, &kept)).await;
        saved.map_err(io::Error::other).flatten().map_err(|error| {
            Error::unavailable(format!("the patches of checkpoint {id} could not be written: {error}"))
        })?;
        let mut entries = self.lock();
        let entry = entries.get_mut(id).ok_or_else(|| not_found(id))?;
        entry.report.patches = patches.iter().map(|patch| patch.sequence).collect();
        entry.patches = Arc::new(patches);
        Ok(())
    }

    /// The first patch of a checkpoint after `applied`. A checkpoint that is gone has none.
    pub(crate) fn next_patch(&self, id: &CheckpointId, applied: u32) -> Option<Patch> {
        let patches = self.lock().get(id)?.patches.clone();
        patches.iter().find(|patch| patch.sequence > applied).cloned()
    }
}

fn save(folder: &Path, patches: &[Patch]) -> io::Result<()> {
    let unfinished = folder.join("patches.unfinished");
    let mut file = File::create(&unfinished)?;
    file.write_all(&serde_json::to_vec(patches)?)?;
    file.sync_all()?;
    fs::rename(unfinished, folder.join(FILE))
}

/// What cannot be read counts as nothing: the control plane compares and sends its own again.
pub(super) fn load(folder: &Path) -> Vec<Patch> {
    match fs::read(folder.join(FILE)) {
        Ok(json) => serde_json::from_slice(&json).unwrap_or_else(|error| {
            warn!(%error, folder = %folder.display(), "the patches of a checkpoint cannot be read");
            Vec::new()
        }),
        Err(_) => Vec::new(),
    }
}
