//! lxcfs: a kept program that answers `/proc/meminfo` and its like with a sandbox's own figures.
//!
//! It runs beside the server and outlives it, because sandboxes that outlive the server read through it. Without it
//! sandboxes see the host's figures; nothing else changes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;
use tracing::{info, warn};

const DEADLINE: Duration = Duration::from_secs(5);

/// Finds the lxcfs mounted at `folder`, or starts one there. `None` when this host has none.
pub(crate) async fn ensure(folder: &Path) -> Option<PathBuf> {
    if answers(folder) {
        return Some(folder.to_owned());
    }
    // What a killed lxcfs leaves behind answers with an error until it is unmounted.
    let _ = rustix::mount::unmount(folder, rustix::mount::UnmountFlags::DETACH);
    if let Err(error) = std::fs::create_dir_all(folder) {
        warn!(%error, folder = %folder.display(), "could not make the mount point of lxcfs");
        return None;
    }
    let mut command = Command::new("lxcfs");
    command
        .arg("--pidfile")
        .arg(folder.with_extension("pid"))
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
pub(crate) fn stop(folder: &Path) {
    let _ = rustix::mount::unmount(folder, rustix::mount::UnmountFlags::DETACH);
}

fn answers(folder: &Path) -> bool {
    std::fs::read_to_string(folder.join("proc/meminfo")).is_ok_and(|text| text.starts_with("MemTotal"))
}
