//! Making a checkpoint.
//!
//! ```text
//!   <id>.unfinished/disk.img ▸ sandbox writes out ▸ capture ▸ journal replayed ▸ read to its end ▸ to the drive ▸ rename to <id>/
//!                                                     │                                                                     │
//!                                                 `captured`                                                             `ready`
//! ```
//!
//! Runs as a task of its own: who asked may have left. Until the rename nothing of it is a checkpoint, and a start of the
//! node finds nothing but a folder to remove.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use tracing::{Instrument, info, info_span, warn};
use warren_node_api::{
    CAPTURE_WAIT_SECONDS, CheckpointCreate, CheckpointOrigin, CheckpointReport, CheckpointState, Holds,
};
use warren_types::{CheckpointId, Error, Isolation};

use super::manifest::{DiskPart, Manifest, VmPart};
use super::{Checkpoints, Entry, IMAGE, Progress, UNFINISHED};
use crate::disk::{self, digest};
use crate::sandbox::capture::Taken;
use crate::sandbox::machine::Target;
use crate::sandbox::record::Suspended;
use crate::sandbox::{Handle, MEMORY, STATE};

/// A capture that takes longer is given up.
const DEADLINE: Duration = Duration::from_secs(20 * 60);
const CALLED_OFF: &str = "it was deleted while it was made";

impl Checkpoints {
    /// Makes a checkpoint of a sandbox unless it is there, and returns once it is captured, has failed, or a while has
    /// passed.
    pub(crate) async fn ensure(
        self: &Arc<Self>,
        id: CheckpointId,
        create: CheckpointCreate,
        sandbox: Handle,
    ) -> Result<CheckpointReport, Error> {
        let (mut changed, called_off) = {
            let mut entries = self.lock();
            let is_new = !entries.contains_key(&id);
            let entry = entries
                .entry(id.clone())
                .or_insert_with(|| Entry::begun(id.clone(), sandbox.template_digest.to_string()));
            (entry.changed.subscribe(), is_new.then(|| entry.called_off.clone()))
        };
        if let Some(called_off) = called_off {
            let span = info_span!(parent: None, "checkpoint", %id, sandbox = %create.sandbox_id);
            let (checkpoints, id) = (self.clone(), id.clone());
            tokio::spawn(
                async move { checkpoints.make(&id, create, &sandbox, &called_off).await }.instrument(span),
            );
        }
        let captured = async {
            loop {
                let report = self.get(&id)?;
                if report.captured || report.state != CheckpointState::Processing {
                    return Ok(report);
                }
                if changed.changed().await.is_err() {
                    return Err(super::not_found(&id));
                }
            }
        };
        match tokio::time::timeout(Duration::from_secs(CAPTURE_WAIT_SECONDS), captured).await {
            Ok(report) => report,
            Err(_) => self.get(&id),
        }
    }

    async fn make(
        self: &Arc<Self>,
        id: &CheckpointId,
        create: CheckpointCreate,
        sandbox: &Handle,
        called_off: &Arc<AtomicBool>,
    ) {
        let unfinished = self.folder.join(format!("{id}.{UNFINISHED}"));
        let made = self.try_make(id, create, sandbox, &unfinished, called_off).await;
        match made {
            Ok(manifest) => {
                info!(bytes = manifest.disk.data_bytes, pause_us = manifest.pause_us, "checkpoint ready");
                self.change(id, |entry| {
                    entry.report.finish(&manifest);
                    entry.manifest = Some(Arc::new(manifest));
                });
            }
            Err(why) => {
                let folder = unfinished.clone();
                let removed = tokio::task::spawn_blocking(move || fs::remove_dir_all(folder)).await;
                if let Err(error) = removed.map_err(io::Error::other).flatten()
                    && error.kind() != io::ErrorKind::NotFound
                {
                    warn!(%error, "what is left of a checkpoint could not be removed");
                }
                info!(why, "a checkpoint could not be made");
                self.change(id, |entry| entry.report.fail(why));
            }
        }
    }

    async fn try_make(
        self: &Arc<Self>,
        id: &CheckpointId,
        create: CheckpointCreate,
        sandbox: &Handle,
        unfinished: &Path,
        called_off: &Arc<AtomicBool>,
    ) -> Result<Manifest, String> {
        let target = new_image(unfinished).map_err(|error| format!("no image could be made: {error}"))?;
        let target =
            Target { disk: Arc::new(target), folder: unfinished.to_owned(), disk_only: create.disk_only };
        let taken = tokio::time::timeout(DEADLINE, sandbox.capture(target.clone()))
            .await
            .map_err(|_| "the disk was not written out in time".to_owned())?
            .map_err(|error| error.message)?;
        let origin = CheckpointOrigin { sandbox_id: create.sandbox_id.clone(), spec: taken.spec.clone() };
        self.change(id, |entry| {
            entry.report.capture(origin);
            entry.report.consistency = Some(taken.consistency);
            entry.report.pause_us = taken.pause_us;
            entry.report.holds = if taken.suspended.is_some() { Holds::Memory } else { Holds::Disk };
        });

        let _turn = self.reading.acquire().await.map_err(|error| error.to_string())?;
        settle(&taken, unfinished).await?;
        let (checkpoints, id, sandbox_id) = (self.clone(), id.clone(), create.sandbox_id);
        let called_off = called_off.clone();
        let finished = tokio::task::spawn_blocking(move || {
            checkpoints.finish(id, sandbox_id, taken, &target, &called_off)
        });
        finished.await.unwrap_or_else(|error| Err(format!("the server failed while it made it: {error}")))
    }

    /// Brings what was taken to the drive and gives it its name.
    fn finish(
        &self,
        id: CheckpointId,
        sandbox_id: warren_types::SandboxId,
        taken: Taken,
        target: &Target,
        called_off: &AtomicBool,
    ) -> Result<Manifest, String> {
        let (image, unfinished) = (&*target.disk, &target.folder);
        let failed = |what: &str, error: &io::Error| match error.kind() {
            io::ErrorKind::Interrupted => CALLED_OFF.to_owned(),
            _ => format!("{what}: {error}"),
        };
        image.sync_all().map_err(|error| failed("its image could not be brought to the drive", &error))?;
        let digest = self
            .verified
            .measure(image, called_off)
            .map_err(|error| failed("its image could not be read", &error))?;
        if taken.digest.is_some_and(|expected| expected != digest) {
            return Err("the sandbox's disk is not what was written when it hibernated".into());
        }
        let memory = match taken.suspended {
            None => None,
            Some(suspended) => Some(
                self.finish_memory(suspended, unfinished, called_off)
                    .map_err(|error| failed("its memory could not be brought to the drive", &error))?,
            ),
        };
        let metadata = image.metadata().map_err(|error| failed("its image could not be read", &error))?;
        let manifest = Manifest {
            id,
            sandbox_id,
            created_at_ms: now_ms(),
            runtime: taken.spec.isolation,
            template_digest: taken.template_digest,
            disk: DiskPart { size_bytes: metadata.len(), data_bytes: metadata.blocks() * 512, digest },
            vm: memory,
            agent_version: env!("CARGO_PKG_VERSION").into(),
            consistency: taken.consistency,
            pause_us: taken.pause_us,
            spec: taken.spec,
            lineage: taken.lineage,
            writes_lost: taken.writes_lost,
        };
        if called_off.load(Ordering::Relaxed) {
            return Err(CALLED_OFF.into());
        }
        let named = || {
            manifest.save(unfinished)?;
            File::open(unfinished)?.sync_all()?;
            fs::rename(unfinished, self.folder.join(manifest.id.as_str()))?;
            File::open(&self.folder)?.sync_all()
        };
        named().map_err(|error| failed("it could not be brought to the drive", &error))?;
        Ok(manifest)
    }
}

/// Puts the file system of a disk in order that was taken while it was mounted: once here instead of at the start of each
/// sandbox made from it. Not that of a virtual machine, which nothing on this host reads: it can hold anything, and has to
/// stay what its memory believes it is.
async fn settle(taken: &Taken, folder: &Path) -> Result<(), String> {
    if taken.spec.isolation != Isolation::Container || taken.pause_us.is_none() {
        return Ok(());
    }
    disk::settle(&folder.join(IMAGE))
        .await
        .map_err(|error| format!("its file system could not be put in order: {error}"))
}

impl Checkpoints {
    /// Brings memory and state to the drive, and says what they hold.
    fn finish_memory(
        &self,
        suspended: Suspended,
        folder: &Path,
        called_off: &AtomicBool,
    ) -> io::Result<VmPart> {
        let memory = File::open(folder.join(MEMORY))?;
        memory.sync_all()?;
        File::open(folder.join(STATE))?.sync_all()?;
        let not_kept = || io::Error::other("it is not what was kept when the sandbox hibernated");
        if digest::of_bytes(&fs::read(folder.join(STATE))?) != suspended.state_digest {
            return Err(not_kept());
        }
        let found = self.verified.measure(&memory, called_off)?;
        if suspended.memory_digest.as_ref().is_some_and(|expected| *expected != found) {
            return Err(not_kept());
        }
        let memory_bytes = memory.metadata()?.blocks() * 512;
        Ok(VmPart { suspended: Suspended { memory_digest: Some(found), ..suspended }, memory_bytes })
    }
}

pub(super) fn new_image(unfinished: &Path) -> io::Result<File> {
    fs::create_dir(unfinished)?;
    OpenOptions::new().read(true).write(true).create_new(true).open(unfinished.join(IMAGE))
}

pub(crate) fn now_ms() -> u64 {
    let elapsed = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}
