//! lxcfs: a kept program that answers `/proc/meminfo` and its like with a sandbox's own figures.
//!
//! It runs beside the server and outlives it, because sandboxes that outlive the server read through it. Without it
//! sandboxes see the host's figures; nothing else changes. When it ends, what they read through it answers with errors for ever:
//! another is started then, and put in its place in every sandbox that runs. One that is there and does not answer (stopped, or stuck)
//! is worse, since whoever asks it waits until it does: it is ended, and so replaced like one that has.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::process::Command;
use tracing::{info, warn};
use warren_runtime::Launcher;
use warren_runtime::cgroup::{Cgroup, Hierarchies};
use warren_runtime::process::Watched;

/// How long it has to answer, and to start.
const DEADLINE: Duration = Duration::from_secs(5);
/// How often it is asked whether it answers.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long it has to end by itself.
const ENDS_BY_ITSELF: Duration = Duration::from_millis(500);
/// Name of its group beside those of sandboxes.
pub(crate) const CGROUP: &str = "lxcfs";

/// Of the file systems that are a program's, `FUSE_SUPER_MAGIC`.
const FUSE: u64 = 0x6573_5546;
/// For want of memory on the host others go first: all sandboxes read through this one.
const OUT_OF_MEMORY_SCORE: &str = "-900";

/// The lxcfs of a node.
pub(crate) struct Lxcfs {
    pub(crate) folder: PathBuf,
    /// How many there have been: a root that was prepared with one before has no use for its files.
    count: AtomicU64,
}

impl Lxcfs {
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Returns when it has ended, or does not answer.
    pub(crate) async fn ended(&self) {
        let process = pid_of(&self.folder).and_then(|pid| Watched::new(pid).ok());
        let ends = async {
            match &process {
                Some(process) => process.ended().await,
                // Nobody knows which process it is.
                None => std::future::pending().await,
            }
        };
        let falls_silent = async {
            while answers(&self.folder).await {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::select! {
            () = ends => {}
            () = falls_silent => {}
        }
    }

    /// Starts another when this one does not answer; whether one does now.
    pub(crate) async fn revive(&self, hierarchies: &Hierarchies, parent: &str) -> bool {
        let answers =
            answers(&self.folder).await || ensure(&self.folder, hierarchies, parent).await.is_some();
        if answers {
            self.count.fetch_add(1, Ordering::Release);
        }
        answers
    }
}

/// Finds the lxcfs mounted at `folder`, or starts one there. `None` when this host has none. It lives in a group below
/// `parent`: a service manager that stops the server ends whatever is in the server's.
pub(crate) async fn ensure(folder: &Path, hierarchies: &Hierarchies, parent: &str) -> Option<Lxcfs> {
    if !answers(folder).await {
        with_options_kept(hierarchies, start(folder)).await?;
    }
    let cgroup = hierarchies.group(parent, CGROUP);
    if let Some(pid) = pid_of(folder) {
        if !cgroup.contains(pid)
            && let Err(error) = cgroup.shelter(pid)
        {
            warn!(%error, "lxcfs stays in the server's cgroup and may end with it");
        }
        // Costs nothing if it is not allowed.
        let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), OUT_OF_MEMORY_SCORE);
    }
    Some(Lxcfs { folder: folder.to_owned(), count: AtomicU64::new(0) })
}

/// Has the container whose first process that is tell its figures through the lxcfs at `folder`, if it does not already.
pub(crate) async fn renew(launcher: &Launcher, folder: &Path, pid: i32) -> std::io::Result<()> {
    let seen = format!("/proc/{pid}/root/proc/uptime");
    let is_told = tokio::task::spawn_blocking(move || rustix::fs::statfs(seen)).await?;
    if is_told.is_ok_and(|found| u64::try_from(found.f_type) == Ok(FUSE)) {
        return Ok(());
    }
    let mounts = File::open(format!("/proc/{pid}/ns/mnt"))?;
    let renewed = warren_runtime_container::renew_figures(launcher, folder, mounts.as_fd()).await;
    renewed.map_err(std::io::Error::other)
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

async fn start(folder: &Path) -> Option<()> {
    if let Some(pid) = pid_of(folder).and_then(rustix::process::Pid::from_raw) {
        warn!(
            pid = pid.as_raw_nonzero(),
            "lxcfs does not answer within {DEADLINE:?}: it is ended and another takes its place"
        );
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    // What a killed lxcfs leaves behind answers with an error until it is unmounted. By force, so that nobody waits for it any more.
    let all = rustix::mount::UnmountFlags::DETACH | rustix::mount::UnmountFlags::FORCE;
    let _ = rustix::mount::unmount(folder, all);
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
        if answers(folder).await {
            // It is the parent of nobody and outlives us; collect it should it end before we do.
            tokio::spawn(async move { child.wait().await });
            return Some(());
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
    let mut killed = false;
    // Its group can be removed when it has ended.
    while let Err(error) = cgroup.remove() {
        if asked.elapsed() > DEADLINE {
            warn!(%error, "lxcfs does not end");
            return;
        }
        // By itself it ends once nothing is mounted. Another process may have taken a copy of the mount, with the mount
        // namespace it was in: then it would end with that process.
        if asked.elapsed() > ENDS_BY_ITSELF && !std::mem::replace(&mut killed, true) {
            let _ = cgroup.kill();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn pid_file(folder: &Path) -> PathBuf {
    folder.with_extension("pid")
}

/// The process that says it serves `folder`, if it is an lxcfs still, and that one.
fn pid_of(folder: &Path) -> Option<i32> {
    let pid = std::fs::read_to_string(pid_file(folder)).ok()?.trim().parse().ok()?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let is_ours = command.split(|byte| *byte == 0).any(|word| word == folder.as_os_str().as_bytes());
    (name.trim() == "lxcfs" && is_ours).then_some(pid)
}

/// The process that serves `folder` and does not answer.
pub(crate) async fn stuck(folder: &Path) -> Option<i32> {
    let pid = pid_of(folder)?;
    (!answers(folder).await).then_some(pid)
}

/// Whether the lxcfs at `folder` answers in time. It is asked on a thread that nothing waits for: a question to one that is stuck ends
/// when that does.
async fn answers(folder: &Path) -> bool {
    let (file, (said, answer)) = (folder.join("proc/meminfo"), tokio::sync::oneshot::channel());
    let asking = std::thread::Builder::new().name("lxcfs".to_owned()).spawn(move || {
        let text = std::fs::read_to_string(file);
        let _ = said.send(text.is_ok_and(|text| text.starts_with("MemTotal")));
    });
    // For want of a thread nothing is known, and nothing is ended for that.
    asking.is_err() || tokio::time::timeout(DEADLINE, answer).await.is_ok_and(|answer| answer == Ok(true))
}
