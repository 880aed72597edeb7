//! Templates: what disks are laid over. `base` is always there; the others are images of registries and archives.
//!
//! ```text
//!   <volume>/templates/<digest>.img            a file system that nobody writes to any more
//!                     /<digest>.json           of an image: what it is (`base` has none); see [`Manifest`]
//!                     /<name>.unfinished-<n>/  an import under way; removed at start
//!
//!   reference ▸ digest ─┬─ there ───────────────────────────────────────────────▸ answer
//!   archive ▸ digest ───┘    └─ not there ▸ layers ▸ file system ▸ prepared ▸ to the drive ▸ its name
//! ```
//!
//! - [`import`]: who waits for what; identical imports are one, and one that nobody waits for any more is called off.
//! - [`make`]: from an image to a file system. We make it ourselves and unpack into it: no file system that was made
//!   elsewhere is ever mounted.
//! - [`prepare`]: what a sandbox needs of it that an image does not have; [`tree`]: how that is written without leaving it.
//!
//! A manifest is written before its image gets its name, so an image that has its name is whole. Two images differ in their
//! digest, and so does one image prepared in two ways; a disk is therefore never laid over anything but what it was made on.
//! Nothing that a sandbox or a checkpoint is laid over is removed.

pub(crate) mod import;
mod make;
mod prepare;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tracing::{info, warn};
use warren_images::{Limits, Registries};
use warren_node_api::{ImageSettings, TemplateReport};
use warren_types::Error;

use crate::document::Kind;
use crate::template::BASE;
pub(crate) use prepare::Trusted;

const KIND: Kind = Kind { magic: "warren-template", format: 1 };
const UNFINISHED: &str = "unfinished";
/// Templates that are made at the same time; more wait their turn.
const MADE: usize = 2;
/// Digits of a name, behind its prefix.
const NAME_DIGITS: usize = 32;

/// What is kept of an image beside its file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    report: TemplateReport,
    /// What records and checkpoints call its file system.
    file_system: String,
    /// Length of the image.
    length: u64,
}

/// All templates of this node.
pub(crate) struct Templates {
    folder: PathBuf,
    base: TemplateReport,
    registries: Registries,
    limits: Limits,
    trusted: Trusted,
    entries: Mutex<BTreeMap<String, Manifest>>,
    /// Images that were prepared in another way than is done now: of use to what is laid over them, and to nobody else.
    outdated: Mutex<Vec<Manifest>>,
    imports: import::Imports,
    /// One's turn to make one: it takes the drive, a processor and space.
    making: tokio::sync::Semaphore,
    /// Held by whoever gives files their names or removes them.
    changing: tokio::sync::Mutex<()>,
}

/// The removal of a template. One that does not come to its end is taken back.
pub(crate) struct Changing<'a> {
    templates: &'a Templates,
    _turn: tokio::sync::MutexGuard<'a, ()>,
    forgotten: Option<Manifest>,
}

/// What templates are made with.
pub(crate) struct Means {
    pub(crate) registries: Registries,
    pub(crate) trusted: Trusted,
}

// === impl Templates ===

impl Templates {
    /// Reads what is there and removes what is half made. `base` is the digest of the usual template.
    pub(crate) fn open(folder: PathBuf, base: &str, means: Means) -> io::Result<Self> {
        let Means { registries, trusted } = means;
        let templates = Self {
            base: report_of_base(&folder, base)?,
            folder,
            registries,
            limits: Limits::default(),
            trusted,
            entries: Mutex::default(),
            outdated: Mutex::default(),
            imports: import::Imports::default(),
            making: tokio::sync::Semaphore::new(MADE),
            changing: tokio::sync::Mutex::default(),
        };
        templates.load()?;
        Ok(templates)
    }

    fn load(&self) -> io::Result<()> {
        for found in fs::read_dir(&self.folder)?.flatten() {
            let path = found.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            if name.contains(&format!(".{UNFINISHED}")) {
                info!(name, "removing what is left of a template that was half made");
                let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                if let Err(error) = removed {
                    warn!(%error, name, "could not remove what is left of a template");
                }
                continue;
            }
            let Some(file_system) = name.strip_suffix(".json") else { continue };
            match self.load_one(&path, file_system) {
                Ok(manifest) if manifest.file_system == self.file_system_of(&manifest.report.digest) => {
                    self.lock().insert(manifest.report.name.clone(), manifest);
                }
                Ok(manifest) => self.lock_outdated().push(manifest),
                Err(why) => warn!(name, why, "a template cannot be used"),
            }
        }
        Ok(())
    }

    fn load_one(&self, path: &Path, file_system: &str) -> Result<Manifest, String> {
        let manifest: Manifest = KIND.load(path).map_err(|error| error.to_string())?;
        if manifest.file_system != file_system {
            return Err(format!("its manifest is of {}", manifest.file_system));
        }
        let image = self.image(file_system);
        match fs::metadata(&image) {
            Ok(found) if found.len() == manifest.length => Ok(manifest),
            Ok(found) => Err(format!("its image has {} bytes instead of {}", found.len(), manifest.length)),
            Err(error) => {
                // An import that was cut off between the two.
                if error.kind() == io::ErrorKind::NotFound {
                    let _ = fs::remove_file(path);
                }
                Err(format!("its image cannot be opened: {error}"))
            }
        }
    }

    /// Removes images that were prepared in another way than is done now and that nothing is laid over.
    pub(crate) fn remove_outdated(&self, in_use: &BTreeSet<String>) {
        self.lock_outdated().retain(|manifest| {
            let file_system = &manifest.file_system;
            if in_use.contains(file_system) {
                return true;
            }
            info!(name = manifest.report.name, "removing a template that is prepared in another way now");
            let removed = remove_files(&self.folder, file_system);
            removed.inspect_err(|error| warn!(%error, "could not remove a template")).is_err()
        });
    }

    pub(crate) fn list(&self) -> Vec<TemplateReport> {
        let entries = self.lock();
        std::iter::once(&self.base)
            .chain(entries.values().map(|manifest| &manifest.report))
            .cloned()
            .collect()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        std::iter::once(BASE.to_owned()).chain(self.lock().keys().cloned()).collect()
    }

    /// What records call the file system of the template `name`, if there is one.
    pub(crate) fn find(&self, name: &str) -> Option<String> {
        if name == BASE {
            return Some(self.base.digest.clone());
        }
        self.lock().get(name).map(|manifest| manifest.file_system.clone())
    }

    /// What all file systems are called, with the names of their templates; those that are prepared in another way now
    /// included.
    pub(crate) fn file_systems(&self) -> BTreeMap<String, String> {
        let mut found = BTreeMap::from([(self.base.digest.clone(), BASE.to_owned())]);
        let outdated = |manifest: &Manifest| {
            (manifest.file_system.clone(), name_of_another(&manifest.report.name, &manifest.file_system))
        };
        found.extend(self.lock_outdated().iter().map(outdated));
        let current = |manifest: &Manifest| (manifest.file_system.clone(), manifest.report.name.clone());
        found.extend(self.lock().values().map(current));
        found
    }

    /// The same of all there are on the volume: earlier ones of `base` among them.
    pub(crate) fn all_file_systems(&self) -> BTreeMap<String, String> {
        let mut found = self.file_systems();
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let name = entry.file_name().into_string().unwrap_or_default();
            if let Some(file_system) = name.strip_suffix(".img") {
                let other = || name_of_another(BASE, file_system);
                found.entry(file_system.to_owned()).or_insert_with(other);
            }
        }
        found
    }

    /// One's turn to remove a template; none gets its name meanwhile.
    pub(crate) async fn change(&self) -> Changing<'_> {
        Changing { templates: self, _turn: self.changing.lock().await, forgotten: None }
    }

    fn image(&self, file_system: &str) -> PathBuf {
        self.folder.join(format!("{file_system}.img"))
    }

    /// What the file system of an image is called. Everything that is in it counts.
    fn file_system_of(&self, digest: &str) -> String {
        let mut hasher = Sha256::new();
        let mut add = |text: &str| {
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text);
        };
        add(&format!("warren image template, prepared in way {}", prepare::VERSION));
        add(digest);
        add(&self.trusted.authority.1);
        self.trusted.of_host.iter().for_each(|(name, pem)| {
            add(name);
            add(pem);
        });
        warren_types::hex(&hasher.finalize())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Manifest>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_outdated(&self) -> MutexGuard<'_, Vec<Manifest>> {
        self.outdated.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Changing ===

impl Changing<'_> {
    /// From here on no sandbox can be made from it.
    pub(crate) fn forget(&mut self, name: &str) {
        self.forgotten = self.templates.lock().remove(name);
    }

    /// Removes its files. It must not be mounted.
    pub(crate) async fn remove(mut self, file_system: &str) -> Result<(), Error> {
        let (folder, file_system) = (self.templates.folder.clone(), file_system.to_owned());
        let removed = tokio::task::spawn_blocking(move || remove_files(&folder, &file_system)).await;
        removed
            .map_err(io::Error::other)
            .flatten()
            .map_err(|error| Error::unavailable(format!("the template could not be removed: {error}")))?;
        self.forgotten = None;
        Ok(())
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        if let Some(manifest) = self.forgotten.take() {
            self.templates.lock().insert(manifest.report.name.clone(), manifest);
        }
    }
}

/// What the template of an image is called.
fn name_of(digest: &str) -> String {
    let digits = warren_types::hex(&Sha256::digest(digest));
    format!("oci-{}", &digits[..NAME_DIGITS])
}

/// What a template is called beside another of its name.
fn name_of_another(name: &str, file_system: &str) -> String {
    format!("{name}.{}", file_system.get(..8).unwrap_or(file_system))
}

fn remove_files(folder: &Path, file_system: &str) -> io::Result<()> {
    // The image first: a manifest without one is removed at the next start, an image without its manifest would stay.
    for extension in ["img", "json"] {
        match fs::remove_file(folder.join(format!("{file_system}.{extension}"))) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => removed?,
        }
    }
    File::open(folder)?.sync_all()
}

fn report_of_base(folder: &Path, digest: &str) -> io::Result<TemplateReport> {
    let metadata = fs::metadata(folder.join(format!("{digest}.img")))?;
    let made = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    let made = made.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok(TemplateReport {
        name: BASE.to_owned(),
        reference: None,
        digest: digest.to_owned(),
        settings: ImageSettings::default(),
        envs: BTreeMap::new(),
        entrypoint: Vec::new(),
        cmd: Vec::new(),
        size_bytes: metadata.blocks() * 512,
        created_at_ms: u64::try_from(made.as_millis()).unwrap_or(u64::MAX),
    })
}

#[cfg(test)]
mod tests;
