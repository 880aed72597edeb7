//! The root file system of a sandbox in small: two id-mapped ext4 folders under one overlay, written to as the user
//! that root inside a sandbox is outside.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, open_tree,
};

use super::cgroups::on_a_thread;
use super::{Check, sys};

/// Host id of root inside, for the check.
const BASE: u32 = 100_000;

pub(super) async fn check(folder: &Path) -> Check {
    let folder = folder.join("idmap");
    Check::of(
        "id-mapped overlay",
        on_a_thread(move || try_it(&folder)).await,
        "use Linux 5.19 or newer with overlay built in or loaded: modprobe overlay",
    )
}

/// The mounts belong to the thread this runs on and go with it.
fn try_it(folder: &Path) -> Result<String, String> {
    let names = ["disk", "lower", "upper", "root"];
    let [disk, lower, upper, root] = names.map(|name| folder.join(name));
    let on = |what: &'static str| move |error: io::Error| format!("could not {what}: {error}");
    for path in [&disk, &lower, &upper, &root] {
        std::fs::create_dir_all(path).map_err(on("make a folder"))?;
    }
    sys::own_mounts().map_err(on("get mounts of our own"))?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(|error| on("keep mounts to ourselves")(error.into()))?;
    let image = folder.join("image");
    std::fs::File::create(&image)
        .and_then(|file| file.set_len(16 * 1024 * 1024))
        .map_err(on("make an image"))?;
    run(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(&image))?;
    run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&disk))?;
    for path in ["lower/inside", "upper/upper", "upper/work"] {
        std::fs::create_dir_all(disk.join(path)).map_err(on("make a folder on ext4"))?;
    }
    let namespace = UserNamespace::make().map_err(on("make a user namespace"))?;
    map(&disk.join("lower"), &lower, &namespace).map_err(on("map the owners of a lower layer"))?;
    map(&disk.join("upper"), &upper, &namespace).map_err(on("map the owners of an upper layer"))?;
    overlay(&lower, &upper, &root).map_err(on("mount an overlay of id-mapped layers"))?;
    let owner = std::fs::metadata(root.join("inside")).map_err(on("look into the overlay"))?.uid();
    if owner != BASE {
        return Err(format!("a file of root inside should be {BASE}'s outside, but is {owner}'s"));
    }
    let id = BASE.to_string();
    // From within: nobody but root gets through a data directory, and through what is above it.
    run(Command::new("setpriv")
        .args(["--reuid", &id, "--regid", &id, "--clear-groups", "touch", "new"])
        .current_dir(root.join("inside")))?;
    let owner =
        std::fs::metadata(disk.join("upper/upper/inside/new")).map_err(on("find what was written"))?.uid();
    if owner != 0 {
        return Err(format!("what root inside writes should be root's on the disk, but is {owner}'s"));
    }
    Ok("overlay of id-mapped ext4 layers, read and written".to_owned())
}

fn map(source: &Path, target: &Path, namespace: &UserNamespace) -> io::Result<()> {
    let mount = open_tree(CWD, source, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    sys::idmap_mount(mount.as_fd(), namespace.file.as_fd())?;
    move_mount(mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

fn overlay(lower: &Path, upper: &Path, root: &Path) -> io::Result<()> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let set = |key: &str, value: PathBuf| fsconfig_set_string(context.as_fd(), key, value.as_path());
    set("lowerdir", lower.to_owned())?;
    set("upperdir", upper.join("upper"))?;
    set("workdir", upper.join("work"))?;
    fsconfig_create(context.as_fd())?;
    let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    move_mount(mount, "", CWD, root, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

fn run(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output =
        command.stdin(Stdio::null()).output().map_err(|error| format!("could not run {program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said: String = String::from_utf8_lossy(&output.stderr).chars().take(500).collect();
    Err(format!("{program} failed ({}): {}", output.status, said.trim()))
}

/// A user namespace that maps root to [`BASE`]; held by a descriptor.
struct UserNamespace {
    file: OwnedFd,
}

impl UserNamespace {
    fn make() -> io::Result<Self> {
        // It waits for the end of its input, which comes when we drop it.
        let mut child = Command::new("unshare")
            .args(["--user", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let made = Self::of(&child);
        let _ = child.kill();
        let _ = child.wait();
        made
    }

    fn of(child: &Child) -> io::Result<Self> {
        let process = PathBuf::from(format!("/proc/{}", child.id()));
        let ours = std::fs::read_link("/proc/self/ns/user")?;
        let deadline = Instant::now() + Duration::from_secs(5);
        while std::fs::read_link(process.join("ns/user"))? == ours {
            if Instant::now() > deadline {
                return Err(io::Error::other("`unshare --user` made none"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        // The host's root has a place in it too, past the ids a sandbox has: the overlay makes its own files as
        // whoever mounts it, and is read-only when the upper layer cannot store that owner.
        for name in ["uid_map", "gid_map"] {
            std::fs::write(process.join(name), format!("0 {BASE} 65536\n65536 0 1\n"))?;
        }
        Ok(Self { file: std::fs::File::open(process.join("ns/user"))?.into() })
    }
}
