//! Checkpoints: sandboxes as they were, disk and memory, kept to go back to and to make sandboxes from.
//!
//! ```text
//!   <volume>/checkpoints/<id>.unfinished/   being made; removed at start
//!   <volume>/checkpoints/<id>/manifest.json what it is; see [`manifest`]
//!                            /disk.img      a reflink of the sandbox's disk
//!                            /memory, state of a virtual machine; of the same moment
//!                            /patches.json  scripts for the sandboxes made from it
//!   <volume>/checkpoints/<id>.removed/      being removed; removed at start
//! ```
//!
//! A folder gets its name when everything in it is on the drive, so a checkpoint is there in full or not at all. Images
//! share their blocks with the disks they were taken from and with those that were made from them; the file system counts
//! who has which block, so removing one never harms another, and the space comes back with the last.
//!
//! What is in a folder is not believed: an image is compared with its digest before it is used, once for each start of the
//! node ([`crate::disk::verified`]). One that does not match is never run, is `failed` from then on, and stays until it is
//! deleted by whoever owns it.
//!
//! The control plane knows which checkpoints there are meant to be and removes the others; nothing here removes a whole one.

mod copy;
pub(crate) mod make;
pub(crate) mod manifest;
pub(crate) mod patches;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tracing::{info, warn};
use warren_node_api::{
    CODE_CHECKPOINT_DAMAGED, Change, CheckpointOrigin, CheckpointReport, CheckpointState, Holds, Patch,
};
use warren_types::{CheckpointId, Error, SandboxId};

use crate::disk::verified::Verified;
use crate::disk::{self, digest};
use crate::sandbox::record::Suspended;
use crate::sandbox::{Files, MEMORY, STATE};
use manifest::{Manifest, VmPart};

pub(crate) const IMAGE: &str = "disk.img";
const UNFINISHED: &str = "unfinished";
const REMOVED: &str = "removed";
/// More than the state of any machine.
const MAX_STATE_BYTES: u64 = 64 << 20;

/// All checkpoints of this node.
pub(crate) struct Checkpoints {
    folder: PathBuf,
    pub(crate) verified: Arc<Verified>,
    entries: Mutex<BTreeMap<CheckpointId, Entry>>,
    /// Told of each change; the node's own stream.
    publish: Box<dyn Fn(Change) + Send + Sync>,
    /// Images read to the end at the same time; more wait their turn.
    reading: tokio::sync::Semaphore,
}

struct Entry {
    report: CheckpointReport,
    /// Present once it is ready.
    manifest: Option<Arc<Manifest>>,
    /// The template that its disk is laid over, from the beginning on; absent of one that is damaged.
    template_digest: Option<String>,
    patches: Arc<Vec<Patch>>,
    /// It is to be removed; its maker, if there is one, is to give up.
    called_off: Arc<AtomicBool>,
    /// Counts the changes of its state.
    changed: watch::Sender<u64>,
    /// Held by whoever compares it with its digest; the others then find that done.
    checking: Arc<tokio::sync::Mutex<()>>,
    /// Held by whoever writes its patches down, until they are what counts.
    patching: Arc<tokio::sync::Mutex<()>>,
}

/// A checkpoint that was compared with its digest.
pub(crate) struct Whole {
    pub(crate) manifest: Arc<Manifest>,
    /// Open, so that it can be used even if it is deleted meanwhile.
    pub(crate) image: File,
    /// Memory and state.
    machine: Option<(File, File)>,
    /// Likewise.
    pub(crate) patches: Arc<Vec<Patch>>,
}

impl Whole {
    /// The memory that goes with the disk.
    pub(crate) fn suspended(&self) -> Option<Suspended> {
        self.manifest.vm.as_ref().map(|vm| vm.suspended.clone())
    }

    /// Makes files of a sandbox's folder share all blocks of it; blocks.
    pub(crate) fn share(&self, folder: &Path, files: Files) -> io::Result<()> {
        if let Some((memory, state)) = &self.machine {
            disk::reflink(memory, &folder.join(files.memory))?;
            disk::reflink(state, &folder.join(files.state))?;
        }
        disk::reflink(&self.image, &folder.join(files.disk))
    }
}

// === impl Checkpoints ===

impl Checkpoints {
    /// Reads what is there and removes what is half made or half removed.
    pub(crate) fn open(
        folder: PathBuf,
        publish: impl Fn(Change) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        let checkpoints = Self {
            folder,
            verified: Arc::default(),
            entries: Mutex::default(),
            publish: Box::new(publish),
            reading: tokio::sync::Semaphore::new(1),
        };
        checkpoints.sweep()?;
        for found in fs::read_dir(&checkpoints.folder)?.flatten() {
            if let Some(id) = found.file_name().to_str().and_then(|name| name.parse().ok()) {
                let entry = load(id, &found.path());
                checkpoints.lock().insert(entry.report.checkpoint_id.clone(), entry);
            }
        }
        Ok(checkpoints)
    }

    /// Removes folders that belong to no checkpoint: of makers and removals that were cut off. Returns their names.
    pub(crate) fn sweep(&self) -> io::Result<Vec<String>> {
        let mut removed = Vec::new();
        for found in fs::read_dir(&self.folder)?.flatten() {
            let Ok(name) = found.file_name().into_string() else { continue };
            let id = name.split_once('.').map_or(name.as_str(), |(id, _)| id);
            let busy = id.parse().is_ok_and(|id| self.lock().contains_key(&id));
            if busy || name.parse::<CheckpointId>().is_ok() {
                continue;
            }
            info!(folder = %found.path().display(), "removing what is left of a checkpoint");
            match fs::remove_dir_all(found.path()) {
                Ok(()) => removed.push(name),
                Err(error) => warn!(%error, name, "could not remove what is left of a checkpoint"),
            }
        }
        Ok(removed)
    }

    /// Every checkpoint, without what it was made of.
    pub(crate) fn list(&self) -> Vec<CheckpointReport> {
        self.lock().values().map(|entry| summary(&entry.report)).collect()
    }

    pub(crate) fn get(&self, id: &CheckpointId) -> Result<CheckpointReport, Error> {
        self.lock().get(id).map(|entry| entry.report.clone()).ok_or_else(|| not_found(id))
    }

    /// The template that the disk of a checkpoint is laid over.
    pub(crate) fn template_of(&self, id: &CheckpointId) -> Option<String> {
        self.lock().get(id)?.template_digest.clone()
    }

    /// How many checkpoints are laid over each template.
    pub(crate) fn count_by_template(&self) -> BTreeMap<String, u32> {
        let mut counts = BTreeMap::new();
        for digest in self.lock().values().filter_map(|entry| entry.template_digest.clone()) {
            *counts.entry(digest).or_default() += 1;
        }
        counts
    }

    /// The files of each.
    pub(crate) fn files(&self) -> BTreeMap<CheckpointId, Vec<PathBuf>> {
        let files = |id: &CheckpointId| {
            [IMAGE, MEMORY, STATE].map(|name| self.folder.join(id.as_str()).join(name)).into()
        };
        self.lock().keys().map(|id| (id.clone(), files(id))).collect()
    }

    /// Opens a checkpoint for use, after comparing it with its digest.
    pub(crate) async fn open_whole(&self, id: &CheckpointId) -> Result<Whole, Error> {
        let (report, manifest, patches, checking) = {
            let entries = self.lock();
            let entry = entries.get(id).ok_or_else(|| not_found(id))?;
            (entry.report.clone(), entry.manifest.clone(), entry.patches.clone(), entry.checking.clone())
        };
        let manifest = match (report.state, manifest) {
            (CheckpointState::Ready, Some(manifest)) => manifest,
            (CheckpointState::Failed, _) => {
                let why = report.error.unwrap_or_else(|| "it failed".into());
                return Err(Error::conflict(format!("checkpoint {id} cannot be used: {why}"))
                    .with_code(CODE_CHECKPOINT_DAMAGED));
            }
            _ => return Err(Error::unavailable(format!("checkpoint {id} is still being made"))),
        };
        let _turn = checking.lock().await;
        let (verified, folder) = (self.verified.clone(), self.folder.join(id.as_str()));
        let checked =
            tokio::task::spawn_blocking(move || open_checked(&folder, manifest, patches, &verified));
        match checked.await.map_err(io::Error::other).flatten() {
            Ok(Some(whole)) => Ok(whole),
            Ok(None) => Err(self.damaged(id, "its content is not what was written")),
            Err(error) => Err(self.unreadable(id, "it cannot be read", &error)),
        }
    }

    /// An image that is gone, or that the drive cannot read, is damaged; for want of descriptors, say, it is not.
    fn unreadable(&self, id: &CheckpointId, what: &str, error: &io::Error) -> Error {
        if error.kind() == io::ErrorKind::NotFound && self.is_leaving(id) {
            return not_found(id);
        }
        let of_the_drive = error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error());
        if of_the_drive || matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) {
            return self.damaged(id, &format!("{what}: {error}"));
        }
        Error::unavailable(format!("checkpoint {id} cannot be used now: {what}: {error}"))
    }

    /// Whether it is being removed, or was.
    fn is_leaving(&self, id: &CheckpointId) -> bool {
        self.lock().get(id).is_none_or(|entry| entry.called_off.load(Ordering::Relaxed))
    }

    /// Says that a checkpoint can no longer be used, and what else there is.
    fn damaged(&self, id: &CheckpointId, why: &str) -> Error {
        warn!(checkpoint = %id, why, "a checkpoint is damaged and will not be used");
        self.change(id, |entry| entry.report.fail(why.to_owned()));
        let other = match self.newest_good(id) {
            Some(other) => format!("the newest good one of the same sandbox is {other}"),
            None => "there is no other good one of the same sandbox".to_owned(),
        };
        Error::conflict(format!("checkpoint {id} is damaged and was not used: {why}; {other}"))
            .with_code(CODE_CHECKPOINT_DAMAGED)
    }

    fn newest_good(&self, beside: &CheckpointId) -> Option<CheckpointId> {
        let entries = self.lock();
        let sandbox = entries.get(beside)?.sandbox_id()?;
        self.newest_of(&entries, &sandbox)
    }

    /// The newest checkpoint of a sandbox that can be used.
    pub(crate) fn newest_good_of(&self, sandbox: &SandboxId) -> Option<CheckpointId> {
        self.newest_of(&self.lock(), sandbox)
    }

    fn newest_of(
        &self,
        entries: &BTreeMap<CheckpointId, Entry>,
        sandbox: &SandboxId,
    ) -> Option<CheckpointId> {
        entries
            .values()
            .filter(|entry| entry.report.state == CheckpointState::Ready)
            .filter_map(|entry| entry.manifest.as_ref())
            .filter(|manifest| manifest.sandbox_id == *sandbox)
            .max_by_key(|manifest| manifest.created_at_ms)
            .map(|manifest| manifest.id.clone())
    }

    /// Removes a checkpoint; returns once nothing of it is left. What was made from it stays.
    pub(crate) async fn remove(&self, id: &CheckpointId) -> Result<(), Error> {
        loop {
            let mut changed = {
                let entries = self.lock();
                let Some(entry) = entries.get(id) else { return Ok(()) };
                entry.called_off.store(true, Ordering::Relaxed);
                if entry.report.state != CheckpointState::Processing {
                    break;
                }
                entry.changed.subscribe()
            };
            // Its maker cleans up first. The sender goes with the entry.
            let _ = changed.changed().await;
        }
        let (folder, gone) = (self.folder.join(id.as_str()), self.folder.join(format!("{id}.{REMOVED}")));
        let removed = tokio::task::spawn_blocking(move || {
            match fs::rename(&folder, &gone) {
                // What was never finished has no folder.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                done => done?,
            }
            fs::remove_dir_all(&gone)
        });
        removed.await.map_err(io::Error::other).flatten().map_err(|error| {
            Error::unavailable(format!("checkpoint {id} could not be removed from its node: {error}"))
        })?;
        self.lock().remove(id);
        Ok(())
    }

    /// Changes an entry, publishes its new state, and wakes who waits for it.
    fn change(&self, id: &CheckpointId, change: impl FnOnce(&mut Entry)) {
        let mut entries = self.lock();
        let Some(entry) = entries.get_mut(id) else { return };
        change(entry);
        let report = summary(&entry.report);
        let changed = entry.changed.clone();
        drop(entries);
        (self.publish)(Change::Checkpoint(Box::new(report)));
        changed.send_modify(|count| *count += 1);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<CheckpointId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Entry ===

impl Entry {
    fn new(report: CheckpointReport, manifest: Option<Manifest>, patches: Vec<Patch>) -> Self {
        Self {
            template_digest: manifest.as_ref().map(|manifest| manifest.template_digest.clone()),
            report: CheckpointReport {
                patches: patches.iter().map(|patch| patch.sequence).collect(),
                ..report
            },
            manifest: manifest.map(Arc::new),
            patches: Arc::new(patches),
            called_off: Arc::default(),
            changed: watch::Sender::new(0),
            checking: Arc::default(),
            patching: Arc::default(),
        }
    }

    /// One that is being made.
    fn begun(id: CheckpointId, template_digest: String) -> Self {
        Self { template_digest: Some(template_digest), ..Self::new(processing(id), None, Vec::new()) }
    }

    fn sandbox_id(&self) -> Option<SandboxId> {
        self.manifest.as_ref().map(|manifest| manifest.sandbox_id.clone())
    }
}

/// What a change of state does to a report. Each state has a generation of its own, because none is ever left for an
/// earlier one.
trait Progress {
    fn capture(&mut self, origin: CheckpointOrigin);
    fn finish(&mut self, manifest: &Manifest);
    fn fail(&mut self, why: String);
}

impl Progress for CheckpointReport {
    fn capture(&mut self, origin: CheckpointOrigin) {
        self.origin = Some(origin);
        self.captured = true;
        self.generation = 2;
    }

    fn finish(&mut self, manifest: &Manifest) {
        *self = CheckpointReport { patches: std::mem::take(&mut self.patches), ..ready(manifest) };
    }

    fn fail(&mut self, why: String) {
        self.state = CheckpointState::Failed;
        self.generation = 4;
        self.error = Some(why);
    }
}

fn processing(id: CheckpointId) -> CheckpointReport {
    CheckpointReport {
        checkpoint_id: id,
        state: CheckpointState::Processing,
        generation: 1,
        origin: None,
        captured: false,
        consistency: None,
        pause_us: None,
        holds: Holds::Disk,
        size_bytes: 0,
        patches: Vec::new(),
        error: None,
    }
}

fn ready(manifest: &Manifest) -> CheckpointReport {
    CheckpointReport {
        state: CheckpointState::Ready,
        generation: 3,
        origin: Some(CheckpointOrigin {
            sandbox_id: manifest.sandbox_id.clone(),
            spec: manifest.spec.clone(),
        }),
        captured: true,
        consistency: Some(manifest.consistency),
        pause_us: manifest.pause_us,
        holds: if manifest.vm.is_some() { Holds::Memory } else { Holds::Disk },
        size_bytes: manifest.disk.data_bytes + manifest.vm.as_ref().map_or(0, |vm| vm.memory_bytes),
        ..processing(manifest.id.clone())
    }
}

/// A report without what it was made of: that can be large, and who lists many does not need it.
fn summary(report: &CheckpointReport) -> CheckpointReport {
    CheckpointReport { origin: None, ..report.clone() }
}

/// Opens all files of a checkpoint; `None` when one of them is not what was written.
fn open_checked(
    folder: &Path,
    manifest: Arc<Manifest>,
    patches: Arc<Vec<Patch>>,
    verified: &Verified,
) -> io::Result<Option<Whole>> {
    let same = |file: &File, digest: &str| verified.check(file, digest, &AtomicBool::new(false));
    let image = File::open(folder.join(IMAGE))?;
    if !same(&image, &manifest.disk.digest)? {
        return Ok(None);
    }
    let machine = match &manifest.vm {
        None => None,
        Some(VmPart { suspended, .. }) => {
            let (memory, state) = (File::open(folder.join(MEMORY))?, File::open(folder.join(STATE))?);
            let Some(memory_digest) = &suspended.memory_digest else { return Ok(None) };
            if !same(&memory, memory_digest)?
                || digest::of_bytes(&read_small(&state)?) != suspended.state_digest
            {
                return Ok(None);
            }
            Some((memory, state))
        }
    };
    Ok(Some(Whole { manifest, image, machine, patches }))
}

fn read_small(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(MAX_STATE_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The checkpoint in `folder` as it was left. One that cannot be used is kept and says why.
fn load(id: CheckpointId, folder: &Path) -> Entry {
    let patches = patches::load(folder);
    match whole(&id, folder) {
        Ok(manifest) => Entry::new(ready(&manifest), Some(manifest), patches),
        Err(why) => {
            warn!(checkpoint = %id, why, "a checkpoint cannot be used");
            let mut report = processing(id);
            report.fail(why);
            Entry::new(report, None, patches)
        }
    }
}

fn whole(id: &CheckpointId, folder: &Path) -> Result<Manifest, String> {
    let manifest = Manifest::load(folder).map_err(|error| error.to_string())?;
    if manifest.id != *id {
        return Err(format!("its folder holds another one, {}", manifest.id));
    }
    match fs::metadata(folder.join(IMAGE)) {
        Ok(image) if image.len() == manifest.disk.size_bytes => Ok(manifest),
        Ok(image) => {
            Err(format!("its image has {} bytes instead of {}", image.len(), manifest.disk.size_bytes))
        }
        Err(error) => Err(format!("its image cannot be opened: {error}")),
    }
}

fn not_found(id: &CheckpointId) -> Error {
    Error::not_found(format!("checkpoint {id} is not on this node"))
}
