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
        let patching = self.lock().get(id).ok_or_else(|| not_found(id))?.patching.clone();
        let _turn = patching.lock().await;
        let (folder, kept) = (self.folder.join(id.as_str()), patches.clone());
        let saved = tokio::task::spawn_blocking(move || save(&folder, &kept)).await;
        saved.map_err(io::Error::other).flatten().map_err(|error| match error.kind() {
            // It was removed meanwhile, and its folder with it.
            io::ErrorKind::NotFound => not_found(id),
            _ => Error::unavailable(format!("the patches of checkpoint {id} could not be written: {error}")),
        })?;
        let mut entries = self.lock();
        let entry = entries.get_mut(id).ok_or_else(|| not_found(id))?;
        entry.report.patches = patches.iter().map(|patch| patch.sequence).collect();
        entry.patches = Arc::new(patches);
        Ok(())
    }

    /// The patches of a checkpoint, in order; `None` when it is gone.
    pub(crate) fn patches(&self, id: &CheckpointId) -> Option<Arc<Vec<Patch>>> {
        Some(self.lock().get(id)?.patches.clone())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn lists_that_are_sent_at_once_are_each_written_whole_and_the_last_counts() {
        let folder = std::env::temp_dir().join(format!("warren-patches-{}", std::process::id()));
        let id: CheckpointId = "11111111-2222-4333-8444-555555555555".parse().unwrap();
        fs::create_dir_all(folder.join(id.as_str())).unwrap();
        let checkpoints = Arc::new(Checkpoints::open(folder.clone(), |_| {}).unwrap());
        let sending: Vec<_> = (1..=24)
            .map(|count| {
                let (checkpoints, id) = (checkpoints.clone(), id.clone());
                let patch = |sequence| Patch { sequence, script: format!("echo {sequence}") };
                let patches = (1..=count).map(patch).collect();
                tokio::spawn(async move { checkpoints.set_patches(&id, patches).await })
            })
            .collect();
        for sent in sending {
            sent.await.unwrap().unwrap();
        }
        let counted: Vec<u32> =
            checkpoints.patches(&id).unwrap().iter().map(|patch| patch.sequence).collect();
        let written: Vec<u32> = load(&folder.join(id.as_str())).iter().map(|patch| patch.sequence).collect();
        assert_eq!(counted, written);
        fs::remove_dir_all(&folder).unwrap();
    }
}
