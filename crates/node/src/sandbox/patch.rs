//! Patches of the checkpoint a sandbox came from, and its own start commands: what runs whenever it begins to run.
//!
//! ```text
//!   start ▸ patch n+1 ▸ patch n+2 ▸ … ▸ callers are let in ▸ start commands
//!               └─ fails: the rest waits for the next start; the reason is in the report
//! ```
//!
//! Each patch is an ordinary command of the agent, in order, each once. Which one is to run, and under which id, is written
//! down before it is asked for, and the agent starts an id once: a node that is killed at any point asks again and gets the
//! command that runs already, or word that it has run. For the same reason no checkpoint holds half a patch: a capture waits
//! for the end of them. Nobody waits for start commands, and they are started once for each start of the sandbox.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use tokio::task::JoinHandle;
use tracing::{info, warn};
use warren_guest_api::exec::{Exec, ExecStart, ExitReason};
use warren_node_api::{Patch, PatchRun, Report};
use warren_types::{Error, ErrorKind, ExecId};

use super::activity::Call;
use super::actor::{Actor, Answer};
use super::capture::Taken;
use super::machine::Target;
use super::record::StartedPatch;
use crate::checkpoint::make::now_ms;
use crate::checkpoint::manifest::Lineage;
use crate::guest::Guest;

/// Longest run of one patch.
const LIMIT: Duration = Duration::from_secs(300);
/// What the agent gets beyond that to say how it ended.
const GRACE: Duration = Duration::from_secs(30);
/// One turn of waiting for a patch to end.
const TURN_MS: u64 = 20_000;
/// Bytes of each stream that are kept of a run: the newest.
const KEPT_OUTPUT: usize = 16 * 1024;
/// Runs that are kept: the newest.
const KEPT_RUNS: usize = 50;
/// Bytes of a patch's complaint in its error.
const MAX_REASON: usize = 500;
const FILE: &str = "patches.json";

/// The patch that runs, and who waits for the last of them.
#[derive(Default)]
pub(crate) struct Patching {
    task: Option<JoinHandle<PatchRun>>,
    waiters: Vec<Waiter>,
    /// Those that its checkpoint had when it was forked: they are owed even if the checkpoint goes.
    owed: Arc<Vec<Patch>>,
}

enum Waiter {
    Use(Answer<(Guest, Call)>),
    Report(Answer<Report>),
    Capture(Target, Answer<Taken>),
}

impl Patching {
    pub(super) fn is_running(&self) -> bool {
        self.task.is_some()
    }

    pub(super) fn owe(&mut self, patches: Arc<Vec<Patch>>) {
        self.owed = patches;
    }

    pub(super) fn wait(&mut self, answer: Answer<Report>) {
        self.waiters.push(Waiter::Report(answer));
    }

    pub(super) fn wait_for_use(&mut self, answer: Answer<(Guest, Call)>) {
        self.waiters.push(Waiter::Use(answer));
    }

    pub(super) fn wait_to_capture(&mut self, target: Target, answer: Answer<Taken>) {
        self.waiters.push(Waiter::Capture(target, answer));
    }

    /// How the patch that runs has ended.
    pub(super) async fn ended(&mut self) -> PatchRun {
        let Some(task) = &mut self.task else { return std::future::pending().await };
        let run = task.await;
        self.task = None;
        run.unwrap_or_else(|error| failed_run(0, &format!("the server failed while it ran: {error}")))
    }

    /// Stops waiting for it; what runs ends with its sandbox.
    pub(super) fn call_off(&mut self, error: &Error) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
        for waiter in std::mem::take(&mut self.waiters) {
            match waiter {
                Waiter::Use(answer) => drop(answer.send(Err(error.clone()))),
                Waiter::Report(answer) => drop(answer.send(Err(error.clone()))),
                Waiter::Capture(_, answer) => drop(answer.send(Err(error.clone()))),
            }
        }
    }
}

impl Actor {
    /// Runs what the sandbox has not had yet, and then lets its callers in.
    async fn begin_patches(&mut self) {
        if !self.begin_next_patch().await {
            self.end_patches().await;
        }
    }

    /// Goes on with what a start of the sandbox had left to do when the node was killed.
    pub(super) async fn resume_patches(&mut self) {
        if self.record.settling {
            return self.go_on_with_patches().await;
        }
        // Those that have begun do not begin again.
        if let Some(machine) = self.machine.as_ref().filter(|machine| machine.guest.takes_chosen_ids()) {
            self.begin_start_commands(machine.guest.clone());
        }
    }

    /// A patch that has begun, in memory that was kept or before the node was killed, is waited for and not begun again.
    pub(super) async fn go_on_with_patches(&mut self) {
        match (self.record.patch.clone(), &self.machine) {
            (Some(started), Some(machine)) => {
                let known = self.patches_due();
                let patch = known.iter().find(|patch| patch.sequence == started.sequence).cloned();
                self.patching.task = Some(tokio::spawn(go_on(machine.guest.clone(), started, patch)));
            }
            _ => self.begin_patches().await,
        }
    }

    /// Patches of the checkpoint it came from.
    fn patches_due(&self) -> Arc<Vec<Patch>> {
        let of_checkpoint = |lineage: &Lineage| self.host.checkpoints.patches(&lineage.checkpoint);
        self.record.lineage.as_ref().and_then(of_checkpoint).unwrap_or_else(|| self.patching.owed.clone())
    }

    /// Whether there was one, and it runs.
    async fn begin_next_patch(&mut self) -> bool {
        let (Some(lineage), Some(machine)) = (&self.record.lineage, &self.machine) else { return false };
        let patches = self.patches_due();
        let Some(patch) = patches.iter().find(|patch| patch.sequence > lineage.patches_applied) else {
            if self.record.patch_error.take().is_some() {
                self.note();
            }
            return false;
        };
        let (guest, patch) = (machine.guest.clone(), patch.clone());
        let started = StartedPatch { sequence: patch.sequence, exec: ExecId::generate(), at_ms: now_ms() };
        self.record.patch = Some(started.clone());
        if let Err(error) = self.record.save_durably(&self.folder) {
            // Begun without that it might run twice.
            let why = format!("that it begins could not be written down, so it was not begun: {error}");
            self.take_run(failed_run(patch.sequence, &why));
            return false;
        }
        self.patching.task = Some(tokio::spawn(run(guest, started, patch)));
        true
    }

    pub(super) async fn on_patch_ended(&mut self, run: PatchRun) {
        if !self.take_run(run) || !self.begin_next_patch().await {
            self.end_patches().await;
        }
    }

    /// Keeps a run that came to no end, of a patch whose processes are gone. It begins anew with the next start.
    pub(super) fn give_up_patch(&mut self) {
        let Some(started) = self.record.patch.take() else { return };
        let run = ended_unseen(&started, "the sandbox was hibernated, or started anew, while it ran");
        if let Err(error) = keep(&self.folder, run) {
            warn!(%error, "that a patch was interrupted could not be kept");
        }
    }

    /// Writes down how a patch went; whether well.
    fn take_run(&mut self, run: PatchRun) -> bool {
        self.record.patch = None;
        let went_well = run.error.is_none();
        info!(sequence = run.sequence, exit_code = run.exit_code, error = run.error, "a patch has run");
        self.record.patch_error.clone_from(&run.error);
        if let Some(lineage) = self.record.lineage.as_mut().filter(|_| went_well) {
            lineage.patches_applied = run.sequence;
        }
        if let Err(error) = keep(&self.folder, run) {
            warn!(%error, "the output of a patch could not be kept");
        }
        self.note();
        went_well
    }

    async fn end_patches(&mut self) {
        let begun = std::mem::take(&mut self.record.settling);
        let resumed = self.record.machine.as_ref().is_some_and(|machine| machine.resumed);
        if begun && !resumed {
            self.record.begun = self.record.spec.start_commands.iter().map(|_| ExecId::generate()).collect();
        }
        if begun && let Err(error) = self.save() {
            warn!(%error, "that a sandbox has started could not be written down");
        }
        let Some(guest) = self.machine.as_ref().map(|machine| machine.guest.clone()) else { return };
        for waiter in std::mem::take(&mut self.patching.waiters) {
            match waiter {
                Waiter::Use(answer) => {
                    let _ = answer.send(Ok((guest.clone(), self.activity.begin_call())));
                }
                Waiter::Report(answer) => self.answer_report(answer),
                Waiter::Capture(target, answer) => {
                    let _ = answer.send(self.take(&target).await);
                }
            }
        }
        if begun {
            self.begin_start_commands(guest);
        }
    }

    fn begin_start_commands(&self, guest: Guest) {
        let commands = self.record.spec.start_commands.iter().cloned();
        let commands: Vec<_> = commands.zip(self.record.begun.iter().cloned()).collect();
        if !commands.is_empty() {
            tokio::spawn(start_all(guest, commands));
        }
    }
}

/// Starts a script in bash, or where an image has none in the shell that it has.
async fn start_script(
    guest: &Guest,
    script: &str,
    timeout_ms: Option<u64>,
    id: ExecId,
) -> Result<Exec, Error> {
    let start = async |shell: &str| {
        let (args, id) = (vec!["-c".into(), script.into()], Some(id.clone()));
        let start = ExecStart { cmd: shell.into(), args, timeout_ms, id, once: true, ..ExecStart::default() };
        guest.json::<Exec>(Method::POST, "/v1/exec", Some(&start)).await
    };
    match start("bash").await {
        Err(error) if error.kind == ErrorKind::Invalid => start("/bin/sh").await,
        started => started,
    }
}

/// Runs a patch under the id that is written down; one that has begun under it goes on.
async fn run(guest: Guest, started: StartedPatch, patch: Patch) -> PatchRun {
    let limit = u64::try_from(LIMIT.as_millis()).unwrap_or(u64::MAX);
    match start_script(&guest, &patch.script, Some(limit), started.exec.clone()).await {
        // An agent of before ids could be chosen has chosen one itself.
        Ok(exec) => follow(guest, StartedPatch { exec: exec.id, ..started }).await,
        Err(error) => ended_unseen(&started, &error.message),
    }
}

/// Goes on with a patch that was to begin when the node was killed, or its sandbox hibernated with its memory.
async fn go_on(guest: Guest, started: StartedPatch, patch: Option<Patch>) -> PatchRun {
    let path = format!("/v1/exec/{}", started.exec);
    match guest.json::<Exec>(Method::GET, &path, None::<&()>).await {
        Ok(_) => follow(guest, started).await,
        Err(error) if error.kind != ErrorKind::NotFound => ended_unseen(&started, &error.message),
        Err(_) => match patch.filter(|_| guest.takes_chosen_ids()) {
            Some(patch) => run(guest, started, patch).await,
            None => ended_unseen(
                &started,
                "the server was started anew when it was to begin, and whether it has run, and how it ended, is not known",
            ),
        },
    }
}

async fn start_all(guest: Guest, commands: Vec<(String, ExecId)>) {
    for (command, id) in commands {
        match start_script(&guest, &command, None, id).await {
            // It has run before the node was killed.
            Err(error) if error.kind == ErrorKind::Gone => {}
            Err(error) => warn!(%error, "a start command could not be started"),
            Ok(_) => {}
        }
    }
}

/// Waits for the end of a patch.
async fn follow(guest: Guest, started: StartedPatch) -> PatchRun {
    let failed = |why: &str| ended_unseen(&started, why);
    let exec = match tokio::time::timeout(LIMIT + GRACE, wait(&guest, &started)).await {
        Ok(Ok(exec)) => exec,
        Ok(Err(error)) => return failed(&error.message),
        Err(_) => return failed("the sandbox does not say how it ended"),
    };
    let Some(exit) = exec.exit else { return failed("the sandbox does not know how it ended") };
    let (stdout, stderr) = (tail(&guest, &started, "stdout").await, tail(&guest, &started, "stderr").await);
    let why = match (exit.reason, exit.code) {
        (ExitReason::TimedOut, _) => Some(format!("it ran for more than {} seconds", LIMIT.as_secs())),
        (_, 0) => None,
        (_, code) => Some(format!("exit code {code}")),
    };
    let error = why.map(|why| {
        let said = last(stderr.trim(), MAX_REASON);
        let said = if said.is_empty() { String::new() } else { format!(": {said}") };
        format!("patch {} failed ({why}){said}", started.sequence)
    });
    PatchRun {
        sequence: started.sequence,
        exit_code: Some(exit.code),
        stdout,
        stderr,
        started_at_ms: started.at_ms,
        error,
    }
}

async fn wait(guest: &Guest, started: &StartedPatch) -> Result<Exec, Error> {
    let path = format!("/v1/exec/{}/wait?ms={TURN_MS}", started.exec);
    loop {
        let asked = tokio::time::Instant::now();
        let exec: Exec = guest.json(Method::GET, &path, None::<&()>).await?;
        if !exec.running {
            return Ok(exec);
        }
        if asked.elapsed() < Duration::from_millis(TURN_MS / 2) {
            // An agent that does not wait must not make us spin.
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }
}

/// The end of one of its streams; empty when it cannot be had.
async fn tail(guest: &Guest, started: &StartedPatch, stream: &str) -> String {
    let path = format!("/v1/exec/{}/output?stream={stream}", started.exec);
    let bytes = tokio::time::timeout(GRACE, guest.tail(&path, KEPT_OUTPUT)).await;
    String::from_utf8_lossy(&bytes.ok().and_then(Result::ok).unwrap_or_default()).into_owned()
}

/// One that was begun, or was to be, and whose end nobody has seen.
fn ended_unseen(started: &StartedPatch, why: &str) -> PatchRun {
    PatchRun { started_at_ms: started.at_ms, ..failed_run(started.sequence, why) }
}

fn failed_run(sequence: u32, why: &str) -> PatchRun {
    PatchRun {
        sequence,
        exit_code: None,
        stdout: String::new(),
        stderr: String::new(),
        started_at_ms: now_ms(),
        error: Some(format!("patch {sequence} failed: {}", last(why, MAX_REASON))),
    }
}

/// The end of a text, without a cut character.
fn last(text: &str, bytes: usize) -> &str {
    &text[text.ceil_char_boundary(text.len().saturating_sub(bytes))..]
}

/// How patches went in a sandbox, oldest first.
pub(crate) fn runs(folder: &Path) -> Vec<PatchRun> {
    fs::read(folder.join(FILE)).ok().and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default()
}

fn keep(folder: &Path, run: PatchRun) -> std::io::Result<()> {
    let mut runs = runs(folder);
    // A node that was killed after this, and before the record said so, sees the same end again.
    let same = |kept: &PatchRun| (kept.sequence, kept.started_at_ms) == (run.sequence, run.started_at_ms);
    match runs.iter().position(same) {
        Some(at) => runs[at] = run,
        None => runs.push(run),
    }
    runs.drain(..runs.len().saturating_sub(KEPT_RUNS));
    let unfinished = folder.join("patches.unfinished");
    fs::write(&unfinished, serde_json::to_vec(&runs)?)?;
    fs::rename(unfinished, folder.join(FILE))
}
