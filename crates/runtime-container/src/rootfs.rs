//! The root file system of a sandbox: an overlay of the read-only template and its own writable image, with the
//! virtual file systems a Linux program expects.
//!
//! Everything is mounted by host root in the set-up process's own mount namespace, which the sandbox's user namespace
//! does not own. Both layers are id-mapped, so that on disk root is 0 whichever host ids the sandbox runs with.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{chown, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};

use warren_runtime::{LaunchError, Result, Step, sys};

use crate::plan::Preparation;

/// Host group that `tty` (5) of the sandbox maps to: terminals belong to it.
const TTY_GROUP: u32 = 5;
/// Pseudo-terminals of one sandbox; the kernel counts those of all together.
pub const MAX_TERMINALS: u32 = 256;

/// Folders of the root whose content is not on a disk.
const VIRTUAL: [&str; 3] = ["dev", "run", "sys"];
/// What is mounted where on the stage.
const STAGE_FOLDERS: [&str; 6] = ["template", "disk", "root", "dev", "run", "sys"];

/// Names of the files an lxcfs answers in place of the kernel's.
const LXCFS_FILES: [&str; 6] = ["cpuinfo", "diskstats", "meminfo", "stat", "swaps", "uptime"];

/// Files of `/proc` that tell about the host or reach into it; they read as empty.
const HIDDEN_PROC_FILES: [&str; 7] =
    ["kcore", "keys", "key-users", "kallsyms", "timer_list", "latency_stats", "sysrq-trigger"];
const HIDDEN_PROC_FOLDERS: [&str; 5] = ["acpi", "scsi", "asound", "irq", "bus"];
/// Folders of `/sys` that list the host's devices.
const HIDDEN_SYS_FOLDERS: [&str; 5] = ["block", "dev", "firmware", "class/block", "devices/virtual/block"];

/// Cuts this process's mounts off from the host's, both ways.
pub(crate) fn own_mounts() -> Result<()> {
    sys::unshare(libc::CLONE_NEWNS).step("make a mount namespace")?;
    rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .step("cut mounts off from the host's")
}

/// Makes a stage with the template on it this process's root and lets go of the host's mounts, all of which this process
/// would otherwise keep from being taken away for as long as it waits. From here on paths are those of the stage.
pub(crate) fn enter_stage(preparation: &Preparation, user_namespace: BorrowedFd<'_>) -> Result<()> {
    let stage_dir = &preparation.stage_dir;
    let settings = [("mode", "0755"), ("size", "64k")];
    let stage = file_system("tmpfs", &settings, &[], MountAttrFlags::MOUNT_ATTR_NODEV);
    stage.and_then(|stage| place(stage.as_fd(), stage_dir)).step("mount the stage")?;
    for name in STAGE_FOLDERS {
        fs::create_dir(stage_dir.join(name)).step("make the stage's folders")?;
    }
    let template = rustix::mount::open_tree(
        CWD,
        &preparation.template_root,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )
    .step("open the template")?;
    attach(template.as_fd(), user_namespace, &stage_dir.join("template")).step("mount the template")?;
    enter(stage_dir)
}

/// Mounts the disk and the overlay of template and disk, gives it what [`populate`] has made, and makes it this process's
/// root. The stage goes.
pub(crate) fn assemble(id_base: u32, disk: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>) -> Result<()> {
    attach(disk, user_namespace, Path::new("/disk")).step("place the disk")?;

    // The overlay writes to its upper layer with the ids it was mounted with. Host root has no place in that layer's
    // mapping; root of the sandbox has.
    let root = sys::as_file_owner(id_base, || {
        file_system(
            "overlay",
            &[
                ("source", "sandbox"),
                ("lowerdir", "/template"),
                ("upperdir", "/disk/upper"),
                ("workdir", "/disk/work"),
                // Without it a folder of the template cannot be renamed.
                ("redirect_dir", "on"),
            ],
            &[],
            MountAttrFlags::MOUNT_ATTR_NODEV,
        )
    })
    .step("take on the sandbox's ids")?
    .step("mount the overlay of template and disk")?;
    let place_of_root = Path::new("/root");
    place(root.as_fd(), place_of_root).step("place the root")?;
    for name in VIRTUAL {
        let (from, to) = (Path::new("/").join(name), place_of_root.join(name));
        rustix::mount::move_mount(CWD, &from, CWD, &to, MoveMountFlags::empty())
            .step(&format!("move /{name} into the root"))?;
    }
    enter(place_of_root)
}

/// Makes what will be `/dev`, `/run` and `/sys` of the root, on the stage. The network namespace must be the sandbox's own.
pub(crate) fn populate(base: u32) -> Result<()> {
    let root = Path::new("/");
    let owner = [("uid", base.to_string()), ("gid", base.to_string())];
    let owned = |mode: &'static str, size: &'static str| {
        [("mode", mode), ("uid", owner[0].1.as_str()), ("gid", owner[1].1.as_str()), ("size", size)]
    };

    let tmpfs = |path: &str, mode, size, attributes| -> Result<()> {
        let mount =
            file_system("tmpfs", &owned(mode, size), &[], attributes).step(&format!("mount {path}"))?;
        place(mount.as_fd(), &root.join(&path[1..])).step(&format!("place {path}"))
    };
    let no_programs = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    tmpfs("/dev", "0755", "1m", no_programs)?;
    devices(&root.join("dev"), base).step("fill /dev")?;
    tmpfs("/dev/shm", "1777", "50%", MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV)?;
    tmpfs("/run", "0755", "10%", MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV)?;

    let (group, most) = ((base + TTY_GROUP).to_string(), MAX_TERMINALS.to_string());
    let terminals = [("ptmxmode", "0666"), ("mode", "0620"), ("gid", group.as_str()), ("max", &most)];
    let mount = file_system("devpts", &terminals, &["newinstance"], no_programs).step("mount /dev/pts")?;
    place(mount.as_fd(), &root.join("dev/pts")).step("place /dev/pts")?;

    let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV | no_programs;
    let mount = file_system("sysfs", &[], &[], read_only).step("mount /sys")?;
    place(mount.as_fd(), &root.join("sys")).step("place /sys")?;
    HIDDEN_SYS_FOLDERS.iter().try_for_each(|name| hide_folder(&root.join("sys").join(name)))
}

/// Mounts the cgroup tree below `/sys`. The cgroup namespace must be the sandbox's own.
pub(crate) fn mount_cgroups() -> Result<()> {
    let attributes = MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let groups = file_system("cgroup2", &[], &[], attributes).step("mount /sys/fs/cgroup")?;
    place(groups.as_fd(), Path::new("/sys/fs/cgroup")).step("place /sys/fs/cgroup")
}

/// Makes what is mounted there this process's root and lets go of the one it had.
fn enter(root: &Path) -> Result<()> {
    let step = "enter a root";
    std::env::set_current_dir(root).step(step)?;
    rustix::process::pivot_root(".", ".").step(step)?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).step("leave the root before")?;
    std::env::set_current_dir("/").step(step)
}

/// Opens the lxcfs files before the host's root is left; placed by [`mount_proc`].
pub(crate) fn open_lxcfs(folder: &Path) -> Vec<(&'static str, OwnedFd)> {
    let open = |name| {
        rustix::mount::open_tree(
            CWD,
            folder.join("proc").join(name),
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
        )
    };
    // An lxcfs that has died leaves a broken mount; the sandbox then sees the kernel's own figures.
    LXCFS_FILES.into_iter().filter_map(|name| Some((name, open(name).ok()?))).collect()
}

/// Mounts `/proc` for the PID namespace of this process and takes from it what is the host's.
pub(crate) fn mount_proc(lxcfs: &[(&'static str, OwnedFd)]) -> Result<()> {
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let proc = file_system("proc", &[], &[], attributes).step("mount /proc")?;
    place(proc.as_fd(), Path::new("/proc")).step("place /proc")?;

    let step = "make /proc/sys read-only";
    rustix::mount::mount_bind("/proc/sys", "/proc/sys").step(step)?;
    let flags =
        MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount_remount("/proc/sys", flags, c"").step(step)?;

    for name in HIDDEN_PROC_FILES {
        let path = Path::new("/proc").join(name);
        if path.exists() {
            rustix::mount::mount_bind("/dev/null", &path).step(&format!("hide {}", path.display()))?;
        }
    }
    HIDDEN_PROC_FOLDERS.iter().try_for_each(|name| hide_folder(&Path::new("/proc").join(name)))?;
    for (name, mount) in lxcfs {
        // That of an lxcfs that has ended cannot be placed. The node gives the sandbox another as soon as there is one.
        let _ = place(mount.as_fd(), &Path::new("/proc").join(name));
    }
    Ok(())
}

/// Replaces the lxcfs files in the `/proc` of a running sandbox by those of the lxcfs at `folder`, and moves this process into
/// the sandbox's mount namespace for that. Nothing inside can have put something else there: none of its mounts are its own.
pub(crate) fn renew_lxcfs(folder: &Path, mount_namespace: BorrowedFd<'_>) -> Result<()> {
    let files = open_lxcfs(folder);
    if files.is_empty() {
        return Err(LaunchError::new("open the files of lxcfs", "it does not answer"));
    }
    sys::join_namespace(mount_namespace, libc::CLONE_NEWNS).step("enter the sandbox's mounts")?;
    files.iter().try_for_each(|(name, mount)| {
        let path = Path::new("/proc").join(name);
        // Until what is there is the kernel's own.
        while rustix::mount::unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_ok() {}
        place(mount.as_fd(), &path).step(&format!("place /proc/{name}"))
    })
}

/// Puts an empty read-only folder in front of one of the host's.
fn hide_folder(path: &Path) -> Result<()> {
    if !path.is_dir() {
        return Ok(());
    }
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    file_system("tmpfs", &[("mode", "0555"), ("size", "4k")], &[], attributes)
        .and_then(|empty| place(empty.as_fd(), path))
        .step(&format!("hide {}", path.display()))
}

/// Makes a mounted, not yet placed, file system.
pub(crate) fn file_system(
    kind: &str,
    settings: &[(&str, &str)],
    flags: &[&str],
    attributes: MountAttrFlags,
) -> rustix::io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in settings {
        rustix::mount::fsconfig_set_string(context.as_fd(), *key, *value)?;
    }
    for flag in flags {
        rustix::mount::fsconfig_set_flag(context.as_fd(), *flag)?;
    }
    rustix::mount::fsconfig_create(context.as_fd())?;
    rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

fn place(mount: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<()> {
    rustix::mount::move_mount(mount, c"", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

fn attach(mount: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>, path: &Path) -> std::io::Result<()> {
    sys::idmap_mount(mount, user_namespace)?;
    place(mount, path).map_err(Into::into)
}

fn devices(dev: &Path, base: u32) -> std::io::Result<()> {
    let all = Mode::from_raw_mode(0o666);
    for (name, major, minor) in
        [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)]
    {
        let path = dev.join(name);
        rustix::fs::mknodat(CWD, &path, FileType::CharacterDevice, all, rustix::fs::makedev(major, minor))?;
        rustix::fs::chmod(&path, all)?;
        chown(&path, Some(base), Some(base))?;
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
    for name in ["pts", "shm"] {
        fs::create_dir(dev.join(name))?;
    }
    Ok(())
}
