//! Copying a checkpoint: the same disk, a sandbox's settings of its own.
//!
//! ```text
//!   original opened and compared ▸ <id>.unfinished/disk.img shares its blocks ▸ manifest ▸ to the drive ▸ rename to <id>/
//! ```
//!
//! The original is compared with its digest before, so the copy's content is known and nothing is read for it. Like the
//! making of any checkpoint it goes on when who asked has left. One that fails leaves nothing, and may be asked for again.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::{info, warn};
use warren_node_api::{CheckpointCopy, CheckpointReport, CheckpointState, Consistency, SandboxSpec};
use warren_types::{CheckpointId, Error};

use super::make::{new_image, now_ms};
use super::manifest::Manifest;
use super::{Checkpoints, Entry, IMAGE, Progress, UNFINISHED, Whole, not_found};

impl Checkpoints {
    /// Makes a checkpoint with the disk of another, unless it is there, and returns once it is ready.
    pub(crate) async fn ensure_copy(
        self: &Arc<Self>,
        id: CheckpointId,
        copy: CheckpointCopy,
    ) -> Result<CheckpointReport, Error> {
        loop {
            let mut changed = {
                let entries = self.lock();
                let Some(entry) = entries.get(&id) else { break };
                if entry.report.state != CheckpointState::Processing {
                    return Ok(entry.report.clone());
                }
                entry.changed.subscribe()
            };
            // Somebody else is making it. The sender goes with the entry when that fails.
            let _ = changed.changed().await;
        }
        let whole = self.open_whole(&copy.checkpoint_id).await?;
        if !self.begin(&id, &copy.checkpoint_id)? {
            return Box::pin(self.ensure_copy(id, copy)).await;
        }
        let checkpoints = self.clone();
        let copied = tokio::spawn(async move { checkpoints.copy(&id, whole, copy.spec).await });
        copied.await.unwrap_or_else(|error| Err(Error::internal(format!("a copy was cut off: {error}"))))
    }

    /// Makes an entry of that id; whether there was none. While the original is there its template is, and from here on
    /// the copy keeps it.
    fn begin(&self, id: &CheckpointId, original: &CheckpointId) -> Result<bool, Error> {
        let mut entries = self.lock();
        if entries.contains_key(id) {
            return Ok(false);
        }
        let template = entries.get(original).and_then(|entry| entry.template_digest.clone());
        let begun = Entry::begun(id.clone(), template.ok_or_else(|| not_found(original))?);
        entries.insert(id.clone(), begun);
        Ok(true)
    }

    async fn copy(
        &self,
        id: &CheckpointId,
        whole: Whole,
        spec: SandboxSpec,
    ) -> Result<CheckpointReport, Error> {
        let unfinished = self.folder.join(format!("{id}.{UNFINISHED}"));
        let manifest = Arc::new(manifest_of_copy(id, &whole.manifest, spec));
        let (verified, folder) = (self.verified.clone(), self.folder.clone());
        let (written, at) = (manifest.clone(), unfinished.clone());
        let placed = tokio::task::spawn_blocking(move || {
            let image = place(&whole.image, &written, at, &folder)?;
            verified.know(&image, &written.disk.digest)
        });
        match placed.await.map_err(io::Error::other).flatten() {
            Ok(()) => {
                info!(checkpoint = %id, "a checkpoint was copied");
                self.change(id, |entry| {
                    entry.report.finish(&manifest);
                    entry.manifest = Some(manifest);
                });
                self.get(id)
            }
            Err(error) => {
                if let Err(error) = fs::remove_dir_all(&unfinished)
                    && error.kind() != io::ErrorKind::NotFound
                {
                    warn!(%error, "what is left of a checkpoint could not be removed");
                }
                self.lock().remove(id);
                Err(Error::unavailable(format!("the checkpoint could not be copied: {error}")))
            }
        }
    }
}

fn manifest_of_copy(id: &CheckpointId, original: &Manifest, spec: SandboxSpec) -> Manifest {
    let mut spec = SandboxSpec {
        template: original.spec.template.clone(),
        isolation: original.spec.isolation,
        from_checkpoint: original.spec.from_checkpoint.clone(),
        ..spec
    };
    spec.size.disk_mb = original.spec.size.disk_mb;
    Manifest {
        id: id.clone(),
        created_at_ms: now_ms(),
        // A disk without the memory that went with it is as after a loss of power.
        consistency: match &original.vm {
            Some(_) => Consistency::Crash,
            None => original.consistency,
        },
        pause_us: None,
        vm: None,
        spec,
        ..original.clone()
    }
}

/// Blocks; returns the image in its place.
fn place(from: &File, manifest: &Manifest, unfinished: PathBuf, folder: &Path) -> io::Result<File> {
    let image = new_image(&unfinished)?;
    rustix::fs::ioctl_ficlone(&image, from)?;
    image.sync_all()?;
    manifest.save(&unfinished)?;
    File::open(&unfinished)?.sync_all()?;
    fs::rename(&unfinished, folder.join(manifest.id.as_str()))?;
    File::open(folder)?.sync_all()?;
    // Opened anew: from here on nobody has it for writing.
    File::open(folder.join(manifest.id.as_str()).join(IMAGE))
}
