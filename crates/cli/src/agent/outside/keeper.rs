//! The parent of an agent on this machine, in a process of its own: when the agent ends, or the command that started it, nothing of it
//! is left.
//!
//! ```text
//!   warren agent run ──▶ warren agent keep ──▶ the agent ──▶ the tools' server, daemons, …
//! ```
//!
//! Agents start programs that leave their group and outlive them. The kernel gives such orphans to the keeper, so that all there is of an
//! agent is below it. It is told to end by SIGTERM, and by the kernel when the command that started it dies, of whatever. Then all are
//! asked to end, and ended after a while; the terminal is given back as it was, and the agent's folder, which has keys in it, goes.
//!
//! A keeper that is killed itself can do none of that. Then the kernel ends the agent, which asked for it before it became the agent
//! ([`leash`]), and gives what the agent has started to the command that started the keeper, which ends it ([`end_orphans`]).

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use rustix::process::{
    Pid, Signal, WaitOptions, getpid, getppid, kill_process, set_child_subreaper,
    set_parent_process_death_signal, waitpid,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep};

use super::Scratch;
use crate::endings::Endings;
use crate::terminal::{self, Before};

/// For an agent to end after it was asked to, and for what it leaves behind.
pub(super) const GRACE: Duration = Duration::from_secs(5);
const GRACE_OF_THE_REST: Duration = Duration::from_secs(1);
/// For what the kernel ends.
const LAST: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(20);

#[derive(Args)]
pub(crate) struct KeepArgs {
    /// The process that started this one
    #[arg(long)]
    parent: i32,
    /// Goes with the agent
    #[arg(long)]
    scratch: PathBuf,
    #[arg(last = true, required = true)]
    program: Vec<OsString>,
}

#[derive(Args)]
pub(crate) struct LeashArgs {
    /// The process that started this one
    #[arg(long)]
    parent: i32,
    #[arg(last = true, required = true)]
    program: Vec<OsString>,
}

/// A process, as the kernel tells it.
struct Process {
    pid: Pid,
    parent: i32,
    is_zombie: bool,
}

/// The arguments that make this program a keeper.
pub(super) fn arguments(scratch: &Path, program: &Path) -> Vec<OsString> {
    let parent = getpid().as_raw_nonzero().to_string();
    let mut words: Vec<OsString> =
        ["agent", "keep", "--parent", &parent, "--scratch"].map(OsString::from).into();
    words.extend([scratch.as_os_str().to_owned(), "--".into(), program.as_os_str().to_owned()]);
    words
}

pub(crate) async fn keep(args: KeepArgs) -> anyhow::Result<ExitCode> {
    let mut endings = Endings::catch()?;
    let mut quit = signal(SignalKind::quit())?;
    let mut children = signal(SignalKind::child())?;
    inherit_orphans()?;
    set_parent_process_death_signal(Some(Signal::TERM)).context("could not become the keeper of an agent")?;
    let _scratch = Gone(args.scratch);
    // It may have died before the kernel knew that we want to hear of it.
    if getppid().map(Pid::as_raw_pid) != Some(args.parent) {
        return Ok(ExitCode::FAILURE);
    }
    let before = Before::of_terminal();
    let ourselves = std::env::current_exe().context("could not find this program's own file")?;
    let us = getpid().as_raw_nonzero().to_string();
    let mut child = tokio::process::Command::new(ourselves)
        .args(["agent", "leash", "--parent", &us, "--"])
        .args(&args.program)
        .spawn()
        .context("could not start the agent")?;
    let agent = child.id().and_then(|id| i32::try_from(id).ok());
    let ended = loop {
        tokio::select! {
            status = child.wait() => break Ok(code_of(status.context("could not wait for the agent")?)),
            // On a terminal Ctrl-C is the agent's own affair.
            code = endings.next() => if before.is_none() || code != 130 { break Err(code) },
            _ = quit.recv() => if before.is_none() { break Err(131) },
            _ = children.recv() => reap(agent),
        }
    };
    end_all(if ended.is_ok() { GRACE_OF_THE_REST } else { GRACE }, &mut child).await;
    if ended.is_err()
        && let Some(before) = before
    {
        before.restore();
        terminal::leave_modes();
    }
    Ok(ExitCode::from(match ended {
        Ok(code) | Err(code) => code,
    }))
}

/// Becomes a program that the kernel ends with the keeper, whatever ends that.
pub(crate) fn leash(args: &LeashArgs) -> anyhow::Result<ExitCode> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("could not tie the agent to its keeper")?;
    if getppid().map(Pid::as_raw_pid) != Some(args.parent) {
        return Ok(ExitCode::FAILURE);
    }
    let (program, arguments) = args.program.split_first().context("there is no program to become")?;
    let error = std::process::Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("could not start {}", program.display()))
}

/// Has this process get what a keeper leaves behind that is killed.
pub(super) fn inherit_orphans() -> anyhow::Result<()> {
    set_child_subreaper(Some(getpid())).context("could not become the keeper of an agent")
}

/// Ends what a keeper that was killed has left to us.
pub(super) async fn end_orphans() {
    let until = Instant::now() + LAST;
    loop {
        reap(None);
        let left = below_us();
        if left.is_empty() || Instant::now() > until {
            return;
        }
        for pid in left {
            let _ = kill_process(pid, Signal::KILL);
        }
        sleep(LOOK).await;
    }
}

/// Asks everything below us to end, and ends what has not.
async fn end_all(grace: Duration, child: &mut tokio::process::Child) {
    for (signal, patience) in [(Signal::TERM, grace), (Signal::KILL, LAST)] {
        let until = Instant::now() + patience;
        let mut told = BTreeSet::new();
        loop {
            // Tokio's own child is its to reap.
            let _ = child.try_wait();
            reap(child.id().and_then(|id| i32::try_from(id).ok()));
            let left = below_us();
            if left.is_empty() {
                return;
            }
            for pid in left {
                if told.insert(pid.as_raw_nonzero()) {
                    let _ = kill_process(pid, signal);
                }
            }
            if Instant::now() > until {
                break;
            }
            sleep(LOOK).await;
        }
    }
}

/// Orphans that were given to us and have ended.
fn reap(agent: Option<i32>) {
    let us = getpid().as_raw_pid();
    for process in processes() {
        if process.is_zombie && process.parent == us && Some(process.pid.as_raw_pid()) != agent {
            let _ = waitpid(Some(process.pid), WaitOptions::NOHANG);
        }
    }
}

/// All that there is below this process, until it is reaped.
fn below_us() -> Vec<Pid> {
    let all = processes();
    let mut above = vec![getpid().as_raw_pid()];
    let mut below = Vec::new();
    while let Some(parent) = above.pop() {
        for process in all.iter().filter(|process| process.parent == parent) {
            above.push(process.pid.as_raw_pid());
            below.push(process.pid);
        }
    }
    below
}

fn processes() -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let read = entries.filter_map(|entry| {
        let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        // A program's name may have anything in it.
        let (_, rest) = stat.rsplit_once(") ")?;
        let mut fields = rest.split(' ');
        let (state, parent) = (fields.next()?, fields.next()?.parse().ok()?);
        Some(Process { pid, parent, is_zombie: matches!(state, "Z" | "X") })
    });
    read.collect()
}

/// As a shell says it.
pub(super) fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

/// A folder that goes with this value, if it is one that was made for an agent.
struct Gone(PathBuf);

impl Drop for Gone {
    fn drop(&mut self) {
        if Scratch::is_one(&self.0) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}
