//! What goes on for as long as a node runs.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use warren_types::{Isolation, Size};

use super::{Host, Registry};
use crate::checkpoint::Checkpoints;
use crate::lxcfs;
use crate::vm::{Vms, waiting};

/// A change is on the drive at most this much later, and the time that takes.
const SYNC_AFTER: Duration = Duration::from_millis(500);
/// When it is looked, after an lxcfs was started, which sandboxes do not read through it yet: those that were being made last.
const RENEW_AFTER: [Duration; 3] = [Duration::ZERO, Duration::from_secs(2), Duration::from_secs(20)];
/// Pause after lxcfs has ended and cannot be started.
const REVIVE_AGAIN: Duration = Duration::from_secs(10);
/// Between two sweeps for what is left of checkpoints.
const SWEEP_EVERY: Duration = Duration::from_secs(10 * 60);

/// Syncs the volume soon after each change, once for all that come together. A crash of the server loses nothing
/// either way; this is for the loss of power, and not in the path of any request.
pub(super) async fn keep_synced(host: Arc<Host>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = host.changes.unsynced.notified() => {}
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(SYNC_AFTER) => {}
        }
        let disks = host.clone();
        match tokio::task::spawn_blocking(move || disks.disks.sync())
            .await
            .map_err(std::io::Error::other)
            .flatten()
        {
            Ok(()) => {}
            Err(error) => warn!(%error, "the volume could not be synced"),
        }
    }
}

/// Keeps machines ready for sandboxes; where virtual machines are the rule, from the start on.
pub(super) async fn keep_machines_waiting(host: Arc<Host>, vms: Arc<Vms>, stop: CancellationToken) {
    if host.isolation == Isolation::Vm
        && let Ok(size) = Size::resolve(None, None, None)
    {
        vms.waiting.expect(size, host.disks.template());
    }
    waiting::fill(host, vms, stop).await;
}

/// Removes what is left of checkpoints that were being made or removed when something failed.
pub(super) async fn keep_swept(checkpoints: Arc<Checkpoints>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SWEEP_EVERY) => {}
        }
        let checkpoints = checkpoints.clone();
        let swept = tokio::task::spawn_blocking(move || checkpoints.sweep()).await;
        if let Err(error) = swept.map_err(std::io::Error::other).flatten() {
            warn!(%error, "checkpoints could not be swept");
        }
    }
}

/// Keeps an lxcfs running, and sandboxes reading through the one that runs.
pub(super) async fn keep_figures(registry: Arc<Registry>) {
    let (host, stop) = (&registry.host, &registry.stop);
    let Some(lxcfs) = &host.lxcfs else { return };
    let kept = async {
        // It may have ended while no node was there.
        loop {
            tokio::select! {
                () = renew_figures(&registry) => lxcfs.ended().await,
                () = lxcfs.ended() => {}
            }
            if stop.is_cancelled() {
                return;
            }
            warn!("lxcfs has ended, or does not answer; starting another");
            while !lxcfs.revive(&host.hierarchies, &host.cgroup_parent).await {
                tokio::time::sleep(REVIVE_AGAIN).await;
            }
        }
    };
    stop.run_until_cancelled(kept).await;
}

async fn renew_figures(registry: &Registry) {
    let Some(lxcfs) = &registry.host.lxcfs else { return };
    for pause in RENEW_AFTER {
        tokio::time::sleep(pause).await;
        for pid in registry.containers().await {
            let renewed = match registry.host.launcher() {
                Ok(launcher) => lxcfs::renew(&launcher, &lxcfs.folder, pid).await,
                Err(error) => Err(error),
            };
            // One that has ended meanwhile has no figures.
            if let Err(error) = renewed {
                debug!(%error, pid, "a sandbox does not read its figures through lxcfs");
            }
        }
    }
}
