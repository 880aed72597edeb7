//! Cgroups: the same calls the runtime makes, on a group that is removed right after.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use warren_runtime::cgroup::{CONTROLLERS, Cgroup, Hierarchies, Limits};

use super::Check;

const NO_TREE: &str = "mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified";

pub(super) async fn tree() -> Check {
    Check::of(
        "cgroup tree",
        on_a_thread(|| {
            let found = Hierarchies::detect().map_err(|error| error.to_string())?;
            let older: Vec<&str> = found.legacy.keys().map(String::as_str).collect();
            let beside = if older.is_empty() {
                String::new()
            } else {
                format!(", version 1 for {}", older.join(", "))
            };
            Ok(format!("version 2 at {}{beside}", found.unified.display()))
        })
        .await,
        NO_TREE,
    )
}

pub(super) async fn limits() -> Check {
    let fix = "start Linux without cgroup_disable=…, with cgroup_enable=memory, and inside a container with the \
               host's cgroups writable";
    let tried = on_a_thread(|| {
        let hierarchies = Hierarchies::detect().map_err(|error| error.to_string())?;
        let missing: Vec<&str> = CONTROLLERS
            .into_iter()
            .filter(|name| {
                !hierarchies.legacy.contains_key(*name)
                    && !hierarchies.unified_controllers.iter().any(|has| has == name)
            })
            .collect();
        if !missing.is_empty() {
            return Err(format!("no controller for {}", missing.join(", ")));
        }
        let group = Group::make(&hierarchies)?;
        group.make_for_real()?;
        Ok(format!("{} can be set", CONTROLLERS.join(", ")))
    });
    Check::of("cgroup limits", tried.await, fix)
}

pub(super) async fn kill() -> Check {
    let tried = on_a_thread(|| {
        let hierarchies = Hierarchies::detect().map_err(|error| error.to_string())?;
        let group = Group::make(&hierarchies)?;
        group.make_for_real()?;
        let mut child = Victim::start().map_err(|error| format!("could not start a process: {error}"))?;
        let pid = i32::try_from(child.0.id()).map_err(|error| error.to_string())?;
        group.cgroup.admit(pid).map_err(|error| chain(&error))?;
        if !hierarchies.unified.join(&group.parent).join("check/cgroup.kill").exists() {
            return Err("this kernel has no cgroup.kill".to_owned());
        }
        group.cgroup.kill().map_err(|error| chain(&error))?;
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            match child.0.try_wait() {
                Ok(Some(_)) => return Ok("one write ends every process of a group".to_owned()),
                Ok(None) => std::thread::sleep(Duration::from_millis(2)),
                Err(error) => return Err(error.to_string()),
            }
        }
        Err("the process outlived its group".to_owned())
    });
    Check::of("cgroup kill", tried.await, "use Linux 5.19 or newer with a writable version 2 tree")
}

/// A group of its own for one check, removed when this is dropped.
struct Group {
    hierarchies: Hierarchies,
    cgroup: Cgroup,
    parent: String,
}

impl Group {
    fn make(hierarchies: &Hierarchies) -> Result<Self, String> {
        let parent = format!("warren-doctor-{}", std::process::id());
        let cgroup = hierarchies.group(&parent, "check");
        let group = Self { hierarchies: hierarchies.clone(), cgroup, parent };
        hierarchies.ensure_parent(&group.parent).map_err(|error| chain(&error))?;
        Ok(group)
    }

    fn make_for_real(&self) -> Result<(), String> {
        let limits = Limits {
            cpu_count: 1,
            cpus: vec![0],
            memory_bytes: 64 * 1024 * 1024,
            pids: 64,
            disk_device: a_disk(),
            io_bytes_per_second: 1024 * 1024 * 1024,
            io_operations_per_second: 100_000,
        };
        self.cgroup.create(&limits).map_err(|error| chain(&error))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A process that was ended a moment ago may still be leaving the group.
        for _ in 0..100 {
            if self.cgroup.remove().and_then(|()| self.hierarchies.remove_parent(&self.parent)).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        tracing::warn!(group = %self.parent, "could not remove the cgroup of the checks");
    }
}

/// A process to be ended; it is ended and collected in any case.
struct Victim(Child);

impl Victim {
    fn start() -> std::io::Result<Self> {
        let mut command = Command::new("sleep");
        command.arg("60").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().map(Self)
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Number of any block device of this host.
fn a_disk() -> Option<String> {
    let entries = std::fs::read_dir(Path::new("/sys/block")).ok()?;
    entries
        .flatten()
        .find_map(|entry| std::fs::read_to_string(entry.path().join("dev")).ok())
        .map(|text| text.trim().to_owned())
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

/// A thread of its own, so that a call that never returns holds up nobody but its check.
pub(super) async fn on_a_thread(
    work: impl FnOnce() -> Result<String, String> + Send + 'static,
) -> Result<String, String> {
    let (send, receive) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new().name("warren-doctor".to_owned());
    thread
        .spawn(move || drop(send.send(work())))
        .map_err(|error| format!("could not start a thread: {error}"))?;
    receive.await.map_err(|_| "the check ended without an answer".to_owned())?
}
