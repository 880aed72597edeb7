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
use std::path::Path;
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
            let image = place(&whole.image, &written, &at, &folder)?;
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
fn place(from: &File, manifest: &Manifest, unfinished: &Path, folder: &Path) -> io::Result<File> {
    let image = new_image(unfinished)?;
    rustix::fs::ioctl_ficlone(&image, from)?;
    image.sync_all()?;
    manifest.save(unfinished)?;
    File::open(unfinished)?.sync_all()?;
    fs::rename(unfinished, folder.join(manifest.id.as_str()))?;
    File::open(folder)?.sync_all()?;
    // Opened anew: from here on nobody has it for writing.
    File::open(folder.join(manifest.id.as_str()).join(IMAGE))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::AtomicBool;

    use warren_node_api::{Holds, ImageSettings};
    use warren_types::{EgressPolicy, ErrorKind, Isolation, SandboxId, Size};

    use super::*;
    use crate::checkpoint::manifest::{DiskPart, Lineage};
    use crate::disk::scratch::Scratch;
    use crate::space;

    fn spec(template: &str) -> SandboxSpec {
        SandboxSpec {
            template: template.into(),
            isolation: Isolation::Vm,
            size: Size { cpu_count: 1, memory_mb: 4096, disk_mb: 1 },
            envs: [("A".to_owned(), template.to_owned())].into(),
            timeout_seconds: 0,
            egress: EgressPolicy::default(),
            sealed: false,
            start_commands: Vec::new(),
            from_checkpoint: None,
            image: ImageSettings { user: None, workdir: Some(format!("/{template}")) },
        }
    }

    /// All checkpoints of a folder with one in it, and that one's manifest.
    fn with_original(folder: &Path) -> (Arc<Checkpoints>, Manifest) {
        let id = CheckpointId::generate();
        let own = folder.join(id.as_str());
        fs::create_dir_all(&own).unwrap();
        let image = File::create_new(own.join(IMAGE)).unwrap();
        image.set_len(64 << 20).unwrap();
        for piece in 0..16 {
            image.write_all_at(&[7; 1 << 16], piece * (1 << 21)).unwrap();
        }
        image.sync_all().unwrap();
        let digest =
            crate::disk::digest::of_image(&File::open(own.join(IMAGE)).unwrap(), &AtomicBool::new(false));
        let manifest = Manifest {
            id,
            sandbox_id: SandboxId::generate(),
            created_at_ms: 1,
            runtime: Isolation::Container,
            template_digest: "ab".repeat(32),
            disk: DiskPart { size_bytes: 64 << 20, data_bytes: 1 << 20, digest: digest.unwrap() },
            vm: None,
            agent_version: "0.1.0".into(),
            consistency: Consistency::Quiesced,
            pause_us: Some(9),
            spec: SandboxSpec { isolation: Isolation::Container, ..spec("original") },
            lineage: Some(Lineage { checkpoint: CheckpointId::generate(), patches_applied: 3 }),
            writes_lost: false,
        };
        manifest.save(&own).unwrap();
        (Arc::new(Checkpoints::open(folder.to_owned(), |_| {}).unwrap()), manifest)
    }

    #[tokio::test]
    async fn one_that_is_deleted_while_it_is_opened_is_not_called_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let (checkpoints, original) = with_original(folder.path());
        let checking = checkpoints.lock().get(&original.id).unwrap().checking.clone();
        let turn = checking.lock().await;
        let opening = async {
            let opened = checkpoints.open_whole(&original.id).await;
            opened.err().expect("there is nothing to open")
        };
        let removing = async {
            checkpoints.remove(&original.id).await.unwrap();
            drop(turn);
        };
        let (error, ()) = tokio::join!(opening, removing);
        assert_eq!(error.kind, ErrorKind::NotFound, "{}", error.message);
    }

    #[tokio::test]
    async fn a_copy_has_the_disk_of_the_original_and_settings_of_its_own() {
        let Some(scratch) = Scratch::make() else { return };
        let (checkpoints, original) = with_original(&scratch.path().join("checkpoints"));
        let id = CheckpointId::generate();
        let copy = CheckpointCopy { checkpoint_id: original.id.clone(), spec: spec("other") };
        let report = checkpoints.ensure_copy(id.clone(), copy.clone()).await.unwrap();
        assert_eq!((report.state, report.holds), (CheckpointState::Ready, Holds::Disk));
        let made = report.origin.clone().unwrap().spec;
        assert_eq!((made.template.as_str(), made.isolation), ("original", Isolation::Container));
        assert_eq!(made.size, Size { disk_mb: original.spec.size.disk_mb, ..spec("").size });
        assert_eq!((made.envs, made.image), (spec("other").envs, spec("other").image));
        let whole = checkpoints.open_whole(&id).await.unwrap();
        assert_eq!(whole.manifest.lineage, original.lineage);
        assert_eq!(whole.manifest.template_digest, original.template_digest);
        assert_eq!(checkpoints.template_of(&id).as_ref(), Some(&original.template_digest));
        let unread = AtomicBool::new(true);
        assert!(checkpoints.verified.check(&whole.image, &original.disk.digest, &unread).unwrap());

        // Asked for again it is as it is, whatever the settings; and it outlasts the original and the node.
        let other = CheckpointCopy { spec: spec("third"), ..copy };
        assert_eq!(checkpoints.ensure_copy(id.clone(), other).await.unwrap().origin, report.origin);
        checkpoints.remove(&original.id).await.unwrap();
        let again = Checkpoints::open(scratch.path().join("checkpoints"), |_| {}).unwrap();
        assert!(again.open_whole(&id).await.is_ok());
        assert_eq!(again.list().len(), 1);
    }

    #[tokio::test]
    async fn a_copy_of_what_is_not_there_leaves_nothing_and_can_be_asked_for_again() {
        let Some(scratch) = Scratch::make() else { return };
        let (checkpoints, original) = with_original(&scratch.path().join("checkpoints"));
        let id = CheckpointId::generate();
        let copy = |from: &CheckpointId| CheckpointCopy { checkpoint_id: from.clone(), spec: spec("other") };
        let none = checkpoints.ensure_copy(id.clone(), copy(&CheckpointId::generate())).await;
        assert_eq!(none.unwrap_err().kind, ErrorKind::NotFound);
        // In the way of the folder it would have.
        let blocked = scratch.path().join("checkpoints").join(format!("{id}.{UNFINISHED}"));
        fs::create_dir(&blocked).unwrap();
        assert!(checkpoints.ensure_copy(id.clone(), copy(&original.id)).await.is_err());
        assert_eq!(checkpoints.list().len(), 1);
        let all = [0; 3].map(|_| checkpoints.ensure_copy(id.clone(), copy(&original.id)));
        for made in futures_util::future::join_all(all).await {
            assert_eq!(made.unwrap().state, CheckpointState::Ready);
        }
        assert_eq!(checkpoints.list().len(), 2);
    }

    #[tokio::test]
    async fn what_is_being_removed_is_not_there_rather_than_damaged() {
        let Some(scratch) = Scratch::make() else { return };
        let (checkpoints, original) = with_original(&scratch.path().join("checkpoints"));
        let id = original.id.clone();
        checkpoints.lock()[&id].called_off.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(checkpoints.open_whole(&id).await.is_ok(), "as long as it is there it can be used");
        fs::remove_dir_all(checkpoints.folder.join(id.as_str())).unwrap();
        let error = checkpoints.open_whole(&id).await.err().unwrap();
        assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
        assert_eq!(checkpoints.set_patches(&id, Vec::new()).await.unwrap_err().kind, ErrorKind::NotFound);
        assert_eq!(checkpoints.get(&id).unwrap().state, CheckpointState::Ready);

        checkpoints.lock()[&id].called_off.store(false, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(checkpoints.open_whole(&id).await.err().unwrap().kind, ErrorKind::Conflict);
        assert_eq!(checkpoints.get(&id).unwrap().state, CheckpointState::Failed, "nobody has removed it");
    }

    #[tokio::test]
    async fn shared_blocks_count_once() {
        let Some(scratch) = Scratch::make() else { return };
        let (checkpoints, original) = with_original(&scratch.path().join("checkpoints"));
        let count = || {
            let files = checkpoints.files();
            space::Files { volume: scratch.path(), templates: [].into(), checkpoints: files }.count().unwrap()
        };
        let alone = count();
        let held = alone.checkpoints[&original.id];
        assert!(held.bytes >= 1 << 20, "{held:?}");
        assert_eq!((held.own_bytes, alone.used_bytes), (held.bytes, held.bytes));

        let id = CheckpointId::generate();
        let copy = CheckpointCopy { checkpoint_id: original.id.clone(), spec: spec("other") };
        checkpoints.ensure_copy(id.clone(), copy).await.unwrap();
        let both = count();
        assert_eq!(both.used_bytes, alone.used_bytes, "the same blocks");
        assert_eq!(both.checkpoints.values().map(|held| held.bytes).sum::<u64>(), 2 * held.bytes);
        assert!(both.checkpoints.values().all(|held| held.own_bytes == 0));

        checkpoints.remove(&original.id).await.unwrap();
        // The file system takes blocks back a moment after their file is gone.
        let begun = std::time::Instant::now();
        while count().checkpoints[&id].own_bytes != held.bytes {
            assert!(begun.elapsed().as_secs() < 30, "they are its own now");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert_eq!(count().used_bytes, held.bytes);
    }
}
