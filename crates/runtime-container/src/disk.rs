//! A sandbox's writable image, attached to a loop device and mounted, and not yet in anybody's tree.
//!
//! Attaching and mounting wait for the drive, everything else of a launch does not. So the node does it, ahead of time
//! where it can, and hands the mount to the set-up process. The mount keeps the loop device, and the last descriptor of the
//! mount keeps both: when whoever holds it dies, the kernel takes everything back.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsPickFlags, MountAttrFlags};

use warren_runtime::{LaunchError, Result, Step, sys};

use crate::rootfs;

/// A mounted image. Dropping it lets go, unless a sandbox has it by then.
#[derive(Debug)]
pub struct Disk {
    device: String,
    mount: OwnedFd,
}

impl Disk {
    /// Attaches and mounts the ext4 `image`, which has the folders `upper` and `work`. Blocks for some milliseconds.
    ///
    /// Mounting writes the superblock, and with write barriers waits for the drive to have it: a third of a create on
    /// a quiet machine, far more on a busy one. It would protect nothing, because nobody has written anything yet. So there
    /// are no barriers until [`keep_order`].
    pub fn attach(image: &Path) -> Result<Self> {
        Self::attach_with(image, MountAttrFlags::MOUNT_ATTR_NODEV)
    }

    /// The same of an image that no sandbox has: nothing in it can be run.
    pub fn attach_sealed(image: &Path) -> Result<Self> {
        let no_programs = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        Self::attach_with(image, MountAttrFlags::MOUNT_ATTR_NODEV | no_programs)
    }

    fn attach_with(image: &Path, attributes: MountAttrFlags) -> Result<Self> {
        let (path, device, held) = attach_loop(image)?;
        // What is deleted inside gives its room back to the volume.
        let flags = ["noinit_itable", "nobarrier", "discard"];
        let mount =
            rootfs::file_system("ext4", &[("source", &path)], &flags, attributes).step("mount the disk")?;
        // The mount keeps the device from here on.
        drop(held);
        Ok(Self { device, mount })
    }

    /// Its loop device, as `major:minor`.
    #[must_use]
    pub fn device(&self) -> &str {
        &self.device
    }
}

impl AsFd for Disk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.mount.as_fd()
    }
}

/// The file system of a disk that a sandbox has mounted, held open: it stays mounted until this is dropped, so that whether all
/// of it came to the disk can still be asked when the sandbox has ended.
///
/// The overlay that a sandbox sees passes none of these errors on, so the disk itself is asked: the kernel has one file system
/// for each device, however often it is mounted.
#[derive(Debug)]
pub struct MountedDisk(OwnedFd);

impl MountedDisk {
    /// Of the loop device `major:minor`; may block.
    pub fn open(device: &str) -> io::Result<Self> {
        let uevent = std::fs::read_to_string(format!("/sys/dev/block/{device}/uevent"))?;
        let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="));
        let name = name.ok_or_else(|| io::Error::other("its device has no name"))?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let mount = rootfs::file_system("ext4", &[("source", &format!("/dev/{name}"))], &[], attributes)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::openat(&mount, ".", flags, Mode::empty())?))
    }

    /// Has everything written out that is in memory alone; blocks. An error is also what could not be written earlier, in the
    /// background; it is told once.
    pub fn write_out(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.0)?)
    }
}

/// Makes what is written to a mounted disk outlast a loss of power, from here on.
pub(crate) fn keep_order(mount: BorrowedFd<'_>) -> Result<()> {
    let step = "turn on the disk's write barriers";
    let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH;
    let picked = rustix::mount::fspick(mount, c"", flags).step(step)?;
    rustix::mount::fsconfig_set_flag(picked.as_fd(), "barrier").step(step)?;
    rustix::mount::fsconfig_reconfigure(picked.as_fd()).step(step)
}

/// Binds a free loop device to `image`: its path, its `major:minor`, and the descriptor that holds it for now.
fn attach_loop(image: &Path) -> Result<(String, String, File)> {
    let step = "attach the disk image to a loop device";
    let image = OpenOptions::new().read(true).write(true).open(image).step("open the disk image")?;
    let control =
        OpenOptions::new().read(true).write(true).open("/dev/loop-control").step("open /dev/loop-control")?;
    // Others take devices at the same time; whoever loses the race for one asks for the next.
    for _ in 0..1000 {
        let number = sys::free_loop_device(control.as_fd()).step(step)?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(&path).step(step)?;
        match sys::configure_loop_device(&device, &image) {
            Ok(()) => {
                let id = device.metadata().step(step)?.rdev();
                let id = format!("{}:{}", rustix::fs::major(id), rustix::fs::minor(id));
                return Ok((path.display().to_string(), id, device));
            }
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(LaunchError::new(step, error)),
        }
    }
    Err(LaunchError::new(step, "every free device was taken by somebody else, a thousand times over"))
}
