//! lxcfs: a kept program that answers `/proc/meminfo` and its like with a sandbox's own figures.
//!
//! It runs beside the server and outlives it, because sandboxes that outlive the server read through it. Without it
//! sandboxes see the host's figures; nothing else changes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;
use tracing::{info, warn};
use warren_runtime::cgroup::{Cgroup, Hierarchies};

const DEADLINE: Duration = Duration::from_secs(5);
/// Name of its group beside those of sandboxes.
pub(crate) const CGROUP: &str = "lxcfs";

/// Finds the lxcfs mounted at `folder`, or starts one there. `None` when this host has none. It lives in a group below
/// `parent`: a service manager that stops the server ends whatever is in the server's.
pub(crate) async fn ensure(folder: &Path, hierarchies: &Hierarchies, parent: &str) -> Option<PathBuf> {
    let found = if answers(folder) {
        Some(folder.to_owned())
    } else {
        with_options_kept(hierarchies, start(folder)).await
    };
    let cgroup = hierarchies.group(parent, CGROUP);
    if found.is_some()
        && let Some(pid) = pid_of(folder)
        && !cgroup.contains(pid)
        && let Err(error) = cgroup.shelter(pid)
    {
        warn!(%error, "lxcfs stays in the server's cgroup and may end with it");
    }
    found
}

/// Does something that starts an lxcfs. Most versions of it mount the host's version 2 tree for themselves, without its options,
/// and so take them from everybody (`nsdelegate`, `memory_recursiveprot`).
pub(crate) async fn with_options_kept<T>(hierarchies: &Hierarchies, work: impl Future<Output = T>) -> T {
    let before = hierarchies.options();
    let done = work.await;
    if let Err(error) = before.and_then(|options| hierarchies.keep_options(&options)) {
        warn!(%error, "lxcfs has changed the options of the cgroup tree, and they cannot be changed back");
    }
    done
}

async fn start(folder: &Path) -> Option<PathBuf> {
    // What a killed lxcfs leaves behind answers with an error until it is unmounted.
    let _ = rustix::mount::unmount(folder, rustix::mount::UnmountFlags::DETACH);
    if let Err(error) = std::fs::create_dir_all(folder) {
        warn!(%error, folder = %folder.display(), "could not make the mount point of lxcfs");
        return None;
    }
    let mut command = Command::new("lxcfs");
    command
        .arg("--pidfile")
        .arg(pid_file(folder))
        .arg(folder)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .process_group(0);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            info!(%error, "lxcfs is not installed: sandboxes will see the host's memory in /proc/meminfo");
            return None;
        }
    };
    let started = tokio::time::Instant::now();
    while started.elapsed() < DEADLINE {
        if answers(folder) {
            // It is the parent of nobody and outlives us; collect it should it end before we do.
            tokio::spawn(async move { child.wait().await });
            return Some(folder.to_owned());
        }
        if let Ok(Some(status)) = child.try_wait()
            && !status.success()
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    warn!("lxcfs does not start: sandboxes will see the host's memory in /proc/meminfo");
    None
}

/// Ends the lxcfs mounted at `folder`; no sandbox may be running.
pub(crate) async fn stop(folder: &Path, cgroup: &Cgroup) {
    let _ = rustix::mount::unmount(folder, rustix::mount::UnmountFlags::DETACH);
    let asked = tokio::time::Instant::now();
    // It ends by itself once nothing is mounted; its group can be removed when it has.
    while let Err(error) = cgroup.remove() {
        if asked.elapsed() > DEADLINE {
            warn!(%error, "lxcfs does not end");
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn pid_file(folder: &Path) -> PathBuf {
    folder.with_extension("pid")
}

/// The process that says it serves `folder`, if it is an lxcfs still.
fn pid_of(folder: &Path) -> Option<i32> {
    let pid = std::fs::read_to_string(pid_file(folder)).ok()?.trim().parse().ok()?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    (name.trim() == "lxcfs").then_some(pid)
}

fn answers(folder: &Path) -> bool {
    std::fs::read_to_string(folder.join("proc/meminfo")).is_ok_and(|text| text.starts_with("MemTotal"))
}
