//! Disks.
//!
//! ```text
//!   <volume>/templates/<digest>.img      read-only ext4, mounted once, shared by all its sandboxes
//!   <volume>/blanks/<MiB>-<format>.img   an empty writable image of each size that was asked for
//!   <volume>/stock/<n>.img               reflinks of the usual blank one, mounted ahead of their use
//!   <volume>/stock/<checkpoint>-<n>.img  reflinks of checkpoints' that were lately forked, the same
//!   <volume>/sandboxes/<id>/disk.img     a reflink of a blank one, or of a checkpoint's; mounted while the sandbox runs
//!   <volume>/checkpoints/<id>/disk.img   see `crate::checkpoint`
//!   <volume>/machines/<kind>/            see `crate::vm`
//! ```
//!
//! The volume is a file system with reflinks: the data directory itself, or an XFS in a file of it. An image is never
//! attached twice: [`wait_released`] holds back whoever wants it before the kernel has let go of it.

mod blank;
pub(crate) mod digest;
#[cfg(test)]
pub(crate) mod scratch;
pub(crate) mod trust;
pub(crate) mod verified;
mod volume;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::OnceCell;
use warren_network::Authority;
use warren_runtime_container::Disk;
use warren_types::SandboxId;

use crate::config::{Config, StartError};
use crate::template::Template;

pub(crate) use volume::run_command;

/// Longest wait for the kernel to write a disk out and let go of it.
const RELEASE_DEADLINE: Duration = Duration::from_secs(120);
const UNMOUNT_DEADLINE: Duration = Duration::from_secs(10);

/// Where this node keeps images.
pub(crate) struct Disks {
    volume: PathBuf,
    blanks: blank::Blanks,
    /// Where templates are mounted, each under its digest.
    template_roots: PathBuf,
    /// Digest of the template that new sandboxes start from.
    template: String,
    /// By digest; a cell is filled by the first who asks.
    mounts: Mutex<BTreeMap<String, Arc<OnceCell<PathBuf>>>>,
    /// Set when the volume is a file of ours that was mounted, not the data directory itself.
    mounted: Option<PathBuf>,
}

impl Disks {
    /// Prepares the volume and mounts the template, with the gateway's authority in it.
    pub(crate) async fn start(config: &Config, authority: &Authority) -> Result<Self, StartError> {
        let (volume, mounted) = volume::ensure(&config.data_dir, config.volume_size_bytes).await?;
        for name in ["templates", "blanks", "sandboxes"] {
            create_folder("a folder of the volume", &volume.join(name))?;
        }
        let stock = volume.join("stock");
        // Of an earlier run: whatever was mounted went with it.
        let _ = std::fs::remove_dir_all(&stock);
        create_folder("a folder of the volume", &stock)?;
        let template_roots = config.data_dir.join("run").join("template");
        let template = import_template(&volume, &template_roots, &config.template, authority).await?;
        let blanks = blank::Blanks::new(volume.join("blanks"));
        let disks = Self { volume, blanks, template_roots, template, mounts: Mutex::default(), mounted };
        disks.template_root(&disks.template).await?;
        Ok(disks)
    }

    /// Digest of the template that new sandboxes start from.
    pub(crate) fn template(&self) -> &str {
        &self.template
    }

    /// Where the template `digest` is mounted. A sandbox stays with the template it was made from, whatever has become
    /// the newest since.
    pub(crate) async fn template_root(&self, digest: &str) -> Result<PathBuf, StartError> {
        let cell = {
            let mut mounts = self.mounts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            mounts.entry(digest.to_owned()).or_default().clone()
        };
        cell.get_or_try_init(async || {
            let root = self.template_roots.join(digest);
            mount_template(&template_image(&self.volume, digest), &root).await.map(|()| root)
        })
        .await
        .cloned()
    }

    /// Lets go of a template that nobody uses any more.
    pub(crate) async fn unmount_template(&self, digest: &str) {
        self.mounts.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(digest);
        let root = self.template_roots.join(digest);
        if volume::is_mount_point(&root) {
            unmount(&root).await;
        }
        let _ = std::fs::remove_dir(&root);
    }

    pub(crate) fn templates_dir(&self) -> PathBuf {
        self.volume.join("templates")
    }

    /// Folder of everything kept of one sandbox.
    pub(crate) fn sandbox_dir(&self, id: &SandboxId) -> PathBuf {
        self.sandboxes_dir().join(id.as_str())
    }

    pub(crate) fn sandboxes_dir(&self) -> PathBuf {
        self.volume.join("sandboxes")
    }

    pub(crate) fn checkpoints_dir(&self) -> PathBuf {
        self.volume.join("checkpoints")
    }

    pub(crate) fn volume(&self) -> &Path {
        &self.volume
    }

    /// Where images are kept that no sandbox has yet.
    pub(crate) fn stock_dir(&self) -> PathBuf {
        self.volume.join("stock")
    }

    /// An image of a template.
    pub(crate) fn template_image(&self, digest: &str) -> PathBuf {
        template_image(&self.volume, digest)
    }

    /// The empty image of that size.
    pub(crate) async fn blank(&self, disk_mb: u32) -> io::Result<PathBuf> {
        self.blanks.ensure(disk_mb).await.map_err(io::Error::other)
    }

    /// An empty disk of that size in the file `to`, mounted.
    pub(crate) async fn make(&self, disk_mb: u32, to: PathBuf) -> io::Result<Disk> {
        let blank = self.blank(disk_mb).await?;
        self.make_from(File::open(blank)?, to).await
    }

    /// A disk with the content of `from` in the file `to`, mounted.
    pub(crate) async fn make_from(&self, from: File, to: PathBuf) -> io::Result<Disk> {
        on_a_thread(move || {
            reflink(&from, &to)?;
            Disk::attach(&to).map_err(io::Error::other)
        })
        .await
    }

    /// A disk of that size with the content of a container's smaller one, in the file `to`; mounted.
    pub(crate) async fn make_larger(&self, from: File, disk_mb: u32, to: PathBuf) -> io::Result<Disk> {
        let image = to.clone();
        on_a_thread(move || reflink_larger(&from, disk_mb, &image)).await?;
        // What is still in its journal is not written by who makes it larger.
        settle(&to).await?;
        // Forced, or it asks for a check of what was never unmounted. The kernel does this too, for who has CAP_SYS_RESOURCE.
        let args = [OsStr::new("-f"), to.as_os_str()];
        run_command("resize2fs", "e2fsprogs", &args).await.map_err(io::Error::other)?;
        self.attach(to).await
    }

    /// Mounts the disk of a sandbox that is not running.
    pub(crate) async fn attach(&self, image: PathBuf) -> io::Result<Disk> {
        on_a_thread(move || Disk::attach(&image).map_err(io::Error::other)).await
    }

    /// Bytes free on the volume.
    pub(crate) fn free_bytes(&self) -> u64 {
        let free = rustix::fs::statvfs(&self.volume).map_or(0, |stat| stat.f_bavail * stat.f_frsize);
        match &self.mounted {
            Some(volume) => free.min(volume::backed_bytes(volume).unwrap_or(free)),
            None => free,
        }
    }

    /// Makes all records and images of the volume outlast a loss of power. What sandboxes have written without asking for
    /// it to be kept is not among them: that is still in their own file systems.
    pub(crate) fn sync(&self) -> io::Result<()> {
        let volume = File::open(&self.volume)?;
        rustix::fs::syncfs(&volume).map_err(Into::into)
    }

    /// Unmounts what was mounted. No sandbox may be running.
    pub(crate) async fn stop(&self) {
        for entry in std::fs::read_dir(&self.template_roots).into_iter().flatten().flatten() {
            if volume::is_mount_point(&entry.path()) {
                unmount(&entry.path()).await;
            }
        }
        if let Some(volume) = &self.mounted
            && !unmount(volume).await
        {
            // Another process has a copy of a mount on it, with the mount namespace it was in. The device goes with that process;
            // until then a server that is started again finds and uses it.
            let _ = rustix::mount::unmount(volume, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// Unmounts a file system; whether that was possible. The last processes and loop devices that used it may still be going.
async fn unmount(path: &Path) -> bool {
    let started = tokio::time::Instant::now();
    while let Err(error) = rustix::mount::unmount(path, rustix::mount::UnmountFlags::empty()) {
        if error != rustix::io::Errno::BUSY || started.elapsed() > UNMOUNT_DEADLINE {
            tracing::warn!(%error, path = %path.display(), "could not unmount");
            return false;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    true
}

/// Work that waits for the drive.
async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Makes `to` share all blocks of `from`.
pub(crate) fn reflink(from: &File, to: &Path) -> io::Result<()> {
    let target = OpenOptions::new().write(true).create(true).truncate(true).open(to)?;
    rustix::fs::ioctl_ficlone(&target, from).map_err(Into::into)
}

/// The same with a hole behind them, up to that size. The file system in it is as large as it was.
pub(crate) fn reflink_larger(from: &File, disk_mb: u32, to: &Path) -> io::Result<()> {
    reflink(from, to)?;
    OpenOptions::new().write(true).open(to)?.set_len(u64::from(disk_mb) << 20)
}

/// Whether the file system in an image can be grown by a kernel that has it mounted: not one that was made before
/// [`blank`] saw to that.
pub(crate) fn grows_while_mounted(image: &File) -> io::Result<bool> {
    /// Blocks set aside for descriptors, which all change at once; a journal of 16 MiB takes 1024 blocks at once.
    const MOST_RESERVED: u16 = 512;
    let mut reserved = [0; 2];
    image.read_exact_at(&mut reserved, 1024 + 0xCE)?;
    Ok(u16::from_le_bytes(reserved) <= MOST_RESERVED)
}

/// Has what is in a file read into the host's cache, up to `most` bytes of it; blocks. Its blocks may lie all over the drive.
pub(crate) fn read_ahead(file: &File, most: u64) -> io::Result<()> {
    let length = file.metadata()?.len();
    let (mut position, mut read) = (0, 0);
    while read < most
        && let Some((start, end)) = digest::next_data(file, position, length)?
    {
        let piece = (end - start).min(most - read);
        rustix::fs::fadvise(file, start, std::num::NonZero::new(piece), rustix::fs::Advice::WillNeed)?;
        read += piece;
        position = end;
    }
    Ok(())
}

/// Brings the file system of an image that was taken while it was mounted to rest, so that whoever mounts it next finds
/// nothing to put in order. Nobody else may have the image.
pub(crate) async fn settle(image: &Path) -> io::Result<()> {
    let path = image.to_owned();
    let attached = on_a_thread(move || {
        let disk = Disk::attach(&path).map_err(io::Error::other)?;
        Ok(disk.device().to_owned())
    });
    wait_released(&attached.await?, image).await
}

/// Waits until the loop device `major:minor` no longer has `image`.
pub(crate) async fn wait_released(device: &str, image: &Path) -> io::Result<()> {
    let started = tokio::time::Instant::now();
    while is_attached(device, image) {
        if started.elapsed() > RELEASE_DEADLINE {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the kernel still writes the disk out"));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// Whether the loop device `major:minor` has `image`.
pub(crate) fn is_attached(device: &str, image: &Path) -> bool {
    std::fs::read(format!("/sys/dev/block/{device}/loop/backing_file"))
        .is_ok_and(|attached| names(&attached, image))
}

/// Whether that is the name under which the kernel has `image`: from the root of the volume, because the sandbox's
/// mounts are not the host's, so only its last two parts can be compared. They hold the sandbox's id.
fn names(attached: &[u8], image: &Path) -> bool {
    let Ok(attached) = std::str::from_utf8(attached) else { return false };
    // The name of a file that was replaced or deleted meanwhile has a suffix; another may have its place by now.
    let attached = Path::new(attached.trim_end_matches('\n'));
    attached.file_name() == image.file_name()
        && attached.parent().and_then(Path::file_name) == image.parent().and_then(Path::file_name)
}

/// Like [`wait_released`], when it is not known which device has it.
pub(crate) async fn wait_released_by_all(image: &Path) -> io::Result<()> {
    let Ok(entries) = std::fs::read_dir("/sys/block") else { return Ok(()) };
    for entry in entries.flatten() {
        if let Ok(device) = std::fs::read_to_string(entry.path().join("dev")) {
            wait_released(device.trim(), image).await?;
        }
    }
    Ok(())
}

pub(crate) fn create_folder(what: &'static str, path: &Path) -> Result<(), StartError> {
    std::fs::create_dir_all(path).map_err(|source| StartError::Folder { what, path: path.into(), source })
}

fn template_image(volume: &Path, digest: &str) -> PathBuf {
    volume.join("templates").join(format!("{digest}.img"))
}

/// Brings a template's image onto the volume, as one of this installation, and returns the digest it is known by.
async fn import_template(
    volume: &Path,
    template_roots: &Path,
    template: &Template,
    authority: &Authority,
) -> Result<String, StartError> {
    let digest = trust::digest_with(&template.digest, authority.certificate_pem());
    let image = template_image(volume, &digest);
    if image.exists() {
        return Ok(digest);
    }
    let unfinished = image.with_extension("unfinished");
    // Shares blocks where the file systems allow, and keeps holes where not.
    let args = ["--reflink=auto", "--sparse=always"].map(OsStr::new);
    let paths = [template.image.as_os_str(), unfinished.as_os_str()];
    run_command("cp", "coreutils", &[args, paths].concat())
        .await
        .map_err(|source| StartError::Command { what: "copy the template to the volume".into(), source })?;
    let mount_at = template_roots.join(&digest);
    create_folder("the template's mount point", &mount_at)?;
    if volume::is_mount_point(&mount_at) {
        // Of a start that was cut off here.
        unmount(&mount_at).await;
    }
    trust::install(&unfinished, &mount_at, Authority::NAME, authority.certificate_pem()).await?;
    std::fs::rename(&unfinished, &image).map_err(|source| StartError::Folder {
        what: "the template",
        path: image,
        source,
    })?;
    Ok(digest)
}

/// Mounts a template, once for all its sandboxes.
async fn mount_template(image: &Path, root: &Path) -> Result<(), StartError> {
    create_folder("the template's mount point", root)?;
    if volume::is_mount_point(root) {
        return Ok(());
    }
    let args = ["-t", "ext4", "-o", "loop,ro,noload,noatime,nodev"].map(OsStr::new);
    run_command("mount", "mount", &[&args[..], &[image.as_os_str(), root.as_os_str()]].concat())
        .await
        .map_err(|source| StartError::Command { what: "mount the template".into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_known_by_whichever_name_the_kernel_has_for_it() {
        let image = Path::new("/data/volume/sandboxes/sb-01234567/disk.img");
        for attached in ["/sandboxes/sb-01234567/disk.img\n", "/data/volume/sandboxes/sb-01234567/disk.img"] {
            assert!(names(attached.as_bytes(), image), "{attached}");
        }
        for other in
            ["", "/sandboxes/sb-01234567/disk.img (deleted)\n", "/sandboxes/sb-76543210/disk.img", "disk.img"]
        {
            assert!(!names(other.as_bytes(), image), "{other}");
        }
    }
}
