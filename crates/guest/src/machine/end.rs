//! Bringing a machine to rest before it is ended or its disk is taken alone.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// More than anybody has to wait for.
const MAX_GRACE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Asks everything to end, if it gets a while for that, and writes the disk out; blocks.
pub(crate) fn rest(grace: Option<Duration>) {
    if let Some(grace) = grace {
        let deadline = Instant::now() + grace.min(MAX_GRACE);
        let asked = others();
        for pid in &asked {
            let _ = rustix::process::kill_process(*pid, Signal::TERM);
        }
        while Instant::now() < deadline && others().iter().any(|pid| asked.contains(pid)) {
            std::thread::sleep(LOOK_AGAIN);
        }
    }
    rustix::fs::sync();
}

/// Processes that are neither ours nor the kernel's.
fn others() -> Vec<Pid> {
    let own = rustix::process::getpid();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
    pids.filter(|pid| !pid.is_init() && *pid != own && has_program(*pid)).collect()
}

/// Threads of the kernel have none, and neither has a process that has ended.
fn has_program(pid: Pid) -> bool {
    fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).is_ok_and(|line| !line.is_empty())
}
