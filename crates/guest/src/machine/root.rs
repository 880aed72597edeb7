//! The root file system: the same overlay of template and writable disk that a container has.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode};
use rustix::mount::MountFlags;
use warren_guest_api::machine::{PLAIN_FOLDERS, TEMPLATE_DISK, WRITABLE_DISK};

use super::{doing, wait_for};
use crate::sys;

const NEW_ROOT: &str = "/root";
const TEMPLATE: &str = "/template";
const DISK: &str = "/disk";
/// What one group of blocks of an ext4 covers.
const GROUP_BYTES: u64 = 128 << 20;

/// The kernel's own list of devices, for finding disks and the port before the sandbox's `/dev` is made.
pub(super) fn mount_devices() -> io::Result<()> {
    for folder in ["/dev", "/proc", "/sys", NEW_ROOT, TEMPLATE, DISK] {
        fs::create_dir_all(folder)?;
    }
    mount("devtmpfs", "/dev", MountFlags::NOSUID, None)?;
    mount("proc", "/proc", MountFlags::empty(), None)?;
    mount("sysfs", "/sys", MountFlags::empty(), None)
}

/// Mounts disks and overlay, and fills `/dev`, `/proc`, `/sys` and `/run` of it.
pub(super) fn assemble(deadline: Duration) -> io::Result<()> {
    wait_for(Path::new(TEMPLATE_DISK), deadline)?;
    wait_for(Path::new(WRITABLE_DISK), deadline)?;
    let quiet = MountFlags::NOATIME | MountFlags::NODEV;
    mount_from(TEMPLATE_DISK, TEMPLATE, "ext4", quiet | MountFlags::RDONLY, Some(c"noload"))?;
    // What is deleted gives its room back to the host.
    mount_from(WRITABLE_DISK, DISK, "ext4", MountFlags::NODEV, Some(c"noinit_itable,discard"))?;
    doing("grow the file system of the disk", fill(Path::new(WRITABLE_DISK), Path::new(DISK)))?;
    // Without `redirect_dir` a folder of the template cannot be renamed.
    let layers = c"lowerdir=/template,upperdir=/disk/upper,workdir=/disk/work,redirect_dir=on";
    mount_from("sandbox", NEW_ROOT, "overlay", MountFlags::NODEV, Some(layers))?;
    plain_folders()?;

    let inside = |path: &str| format!("{NEW_ROOT}{path}");
    let (nosuid, nodev, noexec) = (MountFlags::NOSUID, MountFlags::NODEV, MountFlags::NOEXEC);
    mount("tmpfs", &inside("/dev"), nosuid | noexec, Some(c"mode=0755,size=1m"))?;
    doing("fill /dev", devices(Path::new(&inside("/dev"))))?;
    mount("tmpfs", &inside("/dev/shm"), nosuid | nodev, Some(c"mode=1777,size=50%"))?;
    mount("tmpfs", &inside("/run"), nosuid | nodev, Some(c"mode=0755,size=10%"))?;
    mount("devpts", &inside("/dev/pts"), nosuid | noexec, Some(c"ptmxmode=0666,mode=0620,gid=5"))?;
    mount("proc", &inside("/proc"), nosuid | nodev | noexec, None)?;
    mount("sysfs", &inside("/sys"), nosuid | nodev | noexec, None)?;
    mount("cgroup2", &inside("/sys/fs/cgroup"), nosuid | nodev | noexec, None)
}

/// Makes the file system of `disk`, mounted at `at`, as large as the disk is: one that was made from a smaller disk is not.
fn fill(disk: &Path, at: &Path) -> io::Result<()> {
    let mut device = File::open(disk)?;
    let bytes = device.seek(SeekFrom::End(0))?;
    let mut superblock = [0; 1024];
    device.read_exact_at(&mut superblock, 1024)?;
    let (blocks, block) = extent(&superblock);
    // A last group that is too small to hold anything is left out when the file system is made.
    if bytes.saturating_sub(blocks.saturating_mul(block)) < GROUP_BYTES {
        return Ok(());
    }
    sys::grow_ext4(File::open(at)?, bytes / block)
}

/// Blocks that an ext4 has by its superblock, and the bytes of one.
fn extent(superblock: &[u8; 1024]) -> (u64, u64) {
    let number = |at: usize| {
        let bytes = superblock[at..at + 4].try_into().expect("four bytes are four bytes");
        u64::from(u32::from_le_bytes(bytes))
    };
    (number(0x150) << 32 | number(4), 1024 << number(0x18).min(6))
}

/// Makes the assembled root the root and lets go of the initramfs.
pub(super) fn enter() -> io::Result<()> {
    for hidden in ["/dev", "/sys", "/proc"] {
        let detach = rustix::mount::UnmountFlags::DETACH;
        doing(&format!("unmount {hidden}"), rustix::mount::unmount(hidden, detach))?;
    }
    // It lies in memory.
    let _ = fs::remove_file("/init");
    std::env::set_current_dir(NEW_ROOT)?;
    doing("move the root", rustix::mount::mount_move(".", "/"))?;
    doing("enter the root", rustix::process::chroot("."))?;
    std::env::set_current_dir("/")
}

/// Folders for programs that make overlays themselves: straight on the writable disk.
fn plain_folders() -> io::Result<()> {
    for path in PLAIN_FOLDERS {
        let name = path.rsplit('/').next().expect("a split has at least one part");
        let (source, target) = (format!("{DISK}/plain/{name}"), format!("{NEW_ROOT}{path}"));
        fs::create_dir_all(&source)?;
        // Nothing of a template may stand in the way of starting.
        if fs::create_dir_all(&target).is_ok() {
            doing(&format!("place {path}"), rustix::mount::mount_bind(&source, &target))?;
        }
    }
    Ok(())
}

fn devices(dev: &Path) -> io::Result<()> {
    let all = Mode::from_raw_mode(0o666);
    for (name, major, minor) in [
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
        ("fuse", 10, 229),
    ] {
        let path = dev.join(name);
        rustix::fs::mknodat(CWD, &path, FileType::CharacterDevice, all, rustix::fs::makedev(major, minor))?;
        rustix::fs::chmod(&path, all)?;
    }
    for (name, target) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlink(target, dev.join(name))?;
    }
    for name in ["pts", "shm", "net"] {
        fs::create_dir(dev.join(name))?;
    }
    let tun = dev.join("net/tun");
    rustix::fs::mknodat(CWD, &tun, FileType::CharacterDevice, all, rustix::fs::makedev(10, 200))?;
    rustix::fs::chmod(&tun, all).map_err(Into::into)
}

fn mount(kind: &str, path: &str, flags: MountFlags, options: Option<&CStr>) -> io::Result<()> {
    mount_from(kind, path, kind, flags, options)
}

fn mount_from(
    source: &str,
    path: &str,
    kind: &str,
    flags: MountFlags,
    options: Option<&CStr>,
) -> io::Result<()> {
    doing(&format!("mount {kind} on {path}"), rustix::mount::mount(source, path, kind, flags, options))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_superblock_says_how_large_its_file_system_is() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("disk.img");
        File::create(&image).unwrap().set_len(200 << 20).unwrap();
        let made = std::process::Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-O", "64bit"])
            .arg(&image)
            .status();
        let Ok(true) = made.map(|status| status.success()) else {
            eprintln!("SKIP: this test makes a file system and needs mke2fs");
            return;
        };
        let mut superblock = [0; 1024];
        File::open(&image).unwrap().read_exact_at(&mut superblock, 1024).unwrap();
        assert_eq!(extent(&superblock), ((200 << 20) / 4096, 4096));
    }
}
