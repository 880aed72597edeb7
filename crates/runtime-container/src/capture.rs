//! Taking the disk of a running sandbox: everything stands still, what it has written is written out, the image is
//! shared, everything goes on.
//!
//! ```text
//!   launcher ──fork──▶ watcher ──fork──▶ worker    freeze ▸ sync ▸ reflink ▸ thaw ▸ answer
//!                         └─ waits for the worker's end, and thaws when it died or takes too long
//! ```
//!
//! The processes are stopped by their cgroup, not the file system by `FIFREEZE`: a file system freezes only when every
//! write under way has ended, and a program that splices from an empty pipe into a file keeps one under way for as long as
//! it likes, with everybody else's writes waiting behind it. The cgroup interrupts such a call, and it can be thawed at any
//! moment, by anybody, however far it got.
//!
//! The worker does not depend on the node: a node that is killed half-way leaves nothing frozen. A worker that is killed
//! is thawed by its watcher; should both be killed at once, the next start of the node thaws whatever it adopts.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags};

use warren_runtime::cgroup::{Cgroup, Hierarchies};
use warren_runtime::launcher::Answer;
use warren_runtime::sys::{self, Fork};
use warren_runtime::{LaunchError, Result, Step};

use crate::plan::{Capture, Captured};

/// Between two looks at whether everything stands still.
const LOOK: Duration = Duration::from_micros(50);

/// Descriptors that come with a [`Capture`].
pub(crate) struct Descriptors {
    /// A folder of the sandbox's root file system.
    pub(crate) root: OwnedFd,
    /// The image it writes to.
    pub(crate) source: OwnedFd,
    /// An empty file, to become the same.
    pub(crate) target: OwnedFd,
}

/// Takes the disk and answers. The life of the watcher.
pub(crate) fn run(capture: &Capture, descriptors: &Descriptors, answer: Answer) {
    // Without them a sandbox would stand still: last to go when memory is short. Costs nothing if it is not allowed.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    let outcome = Hierarchies::detect()
        .step("find the cgroup hierarchies")
        .map(|hierarchies| hierarchies.group(&capture.cgroup_parent, &capture.cgroup_name))
        .and_then(|cgroup| watch(capture, &cgroup, descriptors, &answer));
    if let Err(error) = outcome {
        answer.send::<Captured>(&Err(error));
    }
}

fn watch(capture: &Capture, cgroup: &Cgroup, descriptors: &Descriptors, answer: &Answer) -> Result<()> {
    let step = "start the process that takes the disk";
    let workers = answer.try_clone().step(step)?;
    let pid = match sys::fork(0).step(step)? {
        Fork::Parent(pid) => Pid::from_raw(pid).ok_or_else(|| LaunchError::new(step, "it has no pid"))?,
        Fork::Child => {
            // A node that has gone removes what is half made when it is back.
            workers.send(&take(capture, cgroup, descriptors));
            sys::exit_now(0);
        }
    };
    drop(workers);
    let ended = rustix::process::pidfd_open(pid, PidfdFlags::empty()).step("watch that process")?;
    let patience = Duration::from_millis(capture.rest_within_ms.saturating_add(capture.rest_at_most_ms));
    if !has_ended(ended.as_fd(), patience) {
        let _ = cgroup.thaw();
        has_ended(ended.as_fd(), Duration::MAX);
    }
    // A worker that came to its own end has thawed; for any other this is the last chance.
    let _ = cgroup.thaw();
    Ok(())
}

fn has_ended(process: std::os::fd::BorrowedFd<'_>, within: Duration) -> bool {
    let timeout = rustix::time::Timespec::try_from(within).ok();
    loop {
        let mut polled = [PollFd::from_borrowed_fd(process, PollFlags::IN)];
        match rustix::event::poll(&mut polled, timeout.as_ref()) {
            Ok(count) => return count > 0,
            Err(rustix::io::Errno::INTR) => {}
            // Nothing to wait with; whoever asks thaws.
            Err(_) => return false,
        }
    }
}

fn take(capture: &Capture, cgroup: &Cgroup, descriptors: &Descriptors) -> Result<Captured> {
    let begun = Instant::now();
    cgroup.freeze().step("stop the sandbox")?;
    let rests = wait_for_rest(cgroup, Duration::from_millis(capture.rest_within_ms));
    let taken = if rests.is_ok_and(|rests| rests) {
        let taken = sync(descriptors).and_then(|()| reflink(descriptors));
        // Whoever lost patience with us has let it go on: then the image is of a sandbox that was not at rest.
        taken.map(|()| cgroup.is_frozen().unwrap_or(false))
    } else {
        // It does not come to rest. Its journal makes sense of an image taken in full flight, as after a loss of power.
        cgroup.thaw().step("let the sandbox go on")?;
        reflink(descriptors).map(|()| false)
    };
    cgroup.thaw().step("let the sandbox go on")?;
    let pause_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    taken.map(|quiesced| Captured { quiesced, pause_us })
}

fn wait_for_rest(cgroup: &Cgroup, within: Duration) -> Result<bool> {
    let begun = Instant::now();
    loop {
        if cgroup.is_frozen().step("see whether the sandbox rests")? {
            return Ok(true);
        }
        if begun.elapsed() >= within {
            return Ok(false);
        }
        std::thread::sleep(LOOK);
    }
}

fn sync(descriptors: &Descriptors) -> Result<()> {
    rustix::fs::syncfs(&descriptors.root).step("write the disk out")
}

fn reflink(descriptors: &Descriptors) -> Result<()> {
    rustix::fs::ioctl_ficlone(&descriptors.target, &descriptors.source).step("share the disk's blocks")
}
