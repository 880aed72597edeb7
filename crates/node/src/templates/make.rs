//! From an image to a file system that sandboxes start from.
//!
//! ```text
//!   <name>.unfinished-<n>/layers/    as the image has them
//!                        /image      an empty ext4; mounted by us alone, unpacked into, prepared
//!                   ▸ written out ▸ let go of ▸ to the drive ▸ <digest>.json ▸ <digest>.img
//! ```
//!
//! The mount is in nobody's tree: it is a descriptor of ours, and ends with it, or with us.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::{debug, warn};
use warren_images::{ImageError, Limits, Source, find_user};
use warren_node_api::{ImageSettings, TemplateReport};
use warren_runtime_container::Disk;
use warren_types::Error;

use super::import::{Meter, Origin, Signal, explain, no_folder};
use super::prepare::{Trusted, prepare};
use super::{KIND, Manifest, Templates, UNFINISHED, name_of};
use crate::checkpoint::make::now_ms;
use crate::disk::{self, run_command};

/// What a file system takes beside the files in it: tables, folders, the rest of each last block.
const OVERHEAD: u64 = 4 << 30;
/// Bytes that must be free on the volume for an import to begin.
const MIN_FREE_BYTES: u64 = 1 << 30;

/// A folder of an import. Removed when it is dropped.
pub(super) struct Work {
    path: PathBuf,
}

impl Work {
    pub(super) fn begin(folder: &Path, name: &str) -> io::Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let work = Self { path: folder.join(format!("{name}.{UNFINISHED}-{number}")) };
        let _ = fs::remove_dir_all(&work.path);
        fs::DirBuilder::new().mode(0o700).create(&work.path)?;
        fs::create_dir(work.layers())?;
        Ok(work)
    }

    pub(super) fn layers(&self) -> PathBuf {
        self.path.join("layers")
    }

    fn image(&self) -> PathBuf {
        self.path.join("image")
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.path);
        // Large files take a while; and what was fetching may put a last piece there.
        let remove = move || {
            for _ in 0..20 {
                match fs::remove_dir_all(&path) {
                    Ok(()) => return,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return,
                    Err(error) => debug!(%error, path = %path.display(), "an import is not removed yet"),
                }
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
            warn!(path = %path.display(), "what is left of an import stays until the next start");
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

impl Templates {
    /// Makes the template `name`. What is made on the way goes when that fails.
    pub(super) async fn make(
        &self,
        name: &str,
        origin: Origin,
        signal: &Signal,
        meter: &Meter,
    ) -> Result<TemplateReport, Error> {
        if self.making.available_permits() == 0 {
            meter.say("waiting for other imports");
        }
        let turn = signal.cancelled.run_until_cancelled(self.making.acquire()).await;
        let _turn = turn.ok_or_else(|| explain(ImageError::CalledOff))?;
        self.check_volume()?;
        let (source, work) = match origin {
            Origin::Archive(source, work) => (*source, work),
            Origin::Registry(resolved) => {
                let work = Work::begin(&self.folder, name).map_err(|error| no_folder(&error))?;
                let layers = work.layers();
                let fetch = self.registries.fetch(&resolved, &layers, &self.limits, |step| meter.tell(step));
                let fetched = signal.cancelled.run_until_cancelled(fetch).await;
                (fetched.unwrap_or(Err(ImageError::CalledOff)).map_err(explain)?, work)
            }
        };
        let image = work.image();
        make_file_system(&image, &self.limits).await?;
        let unpacking = Unpacking {
            image: image.clone(),
            source,
            limits: self.limits.clone(),
            trusted: self.trusted.clone(),
            signal: signal.clone(),
            meter: meter.clone(),
        };
        let unpacked = tokio::task::spawn_blocking(move || unpacking.run()).await;
        let (settings, source, device) =
            unpacked.map_err(|error| Error::internal(format!("an import was cut off: {error}")))??;
        disk::wait_released(&device, &image).await.map_err(|error| unwritten(&error))?;
        if signal.called_off.load(Ordering::Relaxed) {
            return Err(explain(ImageError::CalledOff));
        }
        meter.say("writing it to the drive");
        self.publish(&image, settings, source).await
    }

    fn check_volume(&self) -> Result<(), Error> {
        let free = rustix::fs::statvfs(&self.folder).map_or(0, |stat| stat.f_bavail * stat.f_frsize);
        if free < MIN_FREE_BYTES {
            let text = format!(
                "the node's volume is nearly full ({} MiB free); remove what is not used",
                free >> 20
            );
            return Err(Error::unavailable(text));
        }
        Ok(())
    }

    /// Gives a finished image its name.
    async fn publish(
        &self,
        image: &Path,
        settings: ImageSettings,
        source: Source,
    ) -> Result<TemplateReport, Error> {
        let _changing = self.changing.lock().await;
        let file_system = self.file_system_of(&source.digest);
        let (folder, from, to) = (self.folder.clone(), image.to_owned(), self.image(&file_system));
        let placed = tokio::task::spawn_blocking(move || {
            fs::set_permissions(&from, Permissions::from_mode(0o444))?;
            let file = File::open(&from)?;
            file.sync_all()?;
            let metadata = file.metadata()?;
            let report = TemplateReport {
                name: name_of(&source.digest),
                reference: source.reference,
                digest: source.digest,
                settings,
                envs: source.config.env,
                entrypoint: source.config.entrypoint,
                cmd: source.config.cmd,
                size_bytes: metadata.blocks() * 512,
                created_at_ms: now_ms(),
            };
            let manifest = Manifest { report, file_system, length: metadata.len() };
            keep_manifest(&folder, &manifest)?;
            fs::rename(from, to)?;
            File::open(folder)?.sync_all()?;
            Ok(manifest)
        });
        let manifest = placed.await.map_err(io::Error::other).flatten().map_err(|error| unwritten(&error))?;
        let report = manifest.report.clone();
        self.lock().insert(report.name.clone(), manifest);
        Ok(report)
    }
}

/// Writes a manifest into its place; blocks.
fn keep_manifest(folder: &Path, manifest: &Manifest) -> io::Result<()> {
    let unfinished = folder.join(format!("{}.{UNFINISHED}.json", manifest.file_system));
    KIND.save(&unfinished, manifest)?;
    fs::rename(unfinished, folder.join(format!("{}.json", manifest.file_system)))?;
    File::open(folder)?.sync_all()
}

/// Makes an empty file system with room for whatever an image may have; what is not written takes no space.
async fn make_file_system(image: &Path, limits: &Limits) -> Result<(), Error> {
    let failed = |error: &dyn std::fmt::Display| {
        Error::unavailable(format!("no file system could be made for the image: {error}"))
    };
    File::create_new(image)
        .and_then(|file| file.set_len(limits.unpacked_bytes + OVERHEAD))
        .map_err(|error| failed(&error))?;
    let inodes = limits.entries.to_string();
    let features =
        ["-q", "-F", "-t", "ext4", "-L", "warren-image", "-O", "^has_journal", "-m", "0", "-b", "4096"];
    let layout = ["-I", "256", "-N", &inodes, "-E", "lazy_itable_init=1,root_owner=0:0,nodiscard"];
    let args: Vec<&OsStr> =
        features.iter().chain(&layout).map(OsStr::new).chain([image.as_os_str()]).collect();
    run_command("mke2fs", "e2fsprogs", &args).await.map_err(|error| failed(&error))
}

/// What waits for the drive and the processor, in one go.
struct Unpacking {
    image: PathBuf,
    source: Source,
    limits: Limits,
    trusted: Trusted,
    signal: Signal,
    meter: Meter,
}

impl Unpacking {
    /// Fills the image. Returns what it says of its commands, and the loop device that is about to let go of it.
    fn run(self) -> Result<(ImageSettings, Source, String), Error> {
        let Self { image, source, limits, trusted, signal, meter } = self;
        let disk = Disk::attach_sealed(&image).map_err(|error| unwritten(&io::Error::other(error)))?;
        let device = disk.device().to_owned();
        // A name for our own descriptor; nobody else can reach what is mounted there. With the dot it is the folder, without
        // it a link to it.
        let root = PathBuf::from(format!("/proc/self/fd/{}/.", disk.as_fd().as_raw_fd()));
        remove_lost_and_found(&disk);
        source.unpack(&root, &limits, &signal.called_off, &|step| meter.tell(step)).map_err(explain)?;
        let user = find_user(&root, &source.config.user).map_err(explain)?;
        meter.say("preparing it for sandboxes");
        let folder = rustix::fs::openat(
            disk.as_fd(),
            ".",
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
        .map_err(|error| unwritten(&error.into()))?;
        let settings = ImageSettings { user: Some(user), workdir: source.config.workdir.clone() };
        prepare(folder.as_fd(), &settings, &trusted).map_err(|error| unprepared(&error))?;
        rustix::fs::syncfs(&folder).map_err(|error| unwritten(&error.into()))?;
        Ok((settings, source, device))
    }
}

/// A new ext4 has it; an image has none unless it brings one.
fn remove_lost_and_found(disk: &Disk) {
    let _ = rustix::fs::unlinkat(disk.as_fd(), "lost+found", rustix::fs::AtFlags::REMOVEDIR);
}

/// What of an image is in the way is the image's fault, anything else this host's.
fn unprepared(error: &io::Error) -> Error {
    let in_the_way = matches!(
        error.kind(),
        io::ErrorKind::IsADirectory | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidFilename
    ) || error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error());
    if !in_the_way {
        return unwritten(error);
    }
    Error::invalid(format!(
        "this image cannot be prepared for sandboxes: something in it is in the way: {error}"
    ))
}

fn unwritten(error: &io::Error) -> Error {
    Error::unavailable(format!("the image could not be written to the volume: {error}"))
}
