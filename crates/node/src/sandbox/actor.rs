//! The owner of one sandbox.
//!
//! A task with a mailbox: requests are taken one at a time, so whatever is asked during a start or a hibernation waits
//! for its end, and a thousand callers of a sleeping sandbox share one wake. Every change of state is written to the
//! record first and published after. The task ends when the sandbox is deleted, when making it failed, or when the
//! node stops; the sandbox itself goes on in the last case.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::{Instrument, info, info_span, warn};
use warren_node_api::{Report, SandboxSpec};
use warren_types::{Error, ErrorKind, SandboxId, SandboxState};

use super::activity::{Activity, Call};
use super::log::{self, Log};
use super::machine::{self, Machine};
use super::record::Record;
use crate::disk;
use crate::guest::Guest;
use crate::registry::Host;

/// Requests that may wait; callers of a sandbox with more wait for room.
const MAILBOX: usize = 64;
/// An idle time-out is looked at again this much later when a call was under way.
const RECHECK: Duration = Duration::from_secs(1);
/// How long a hibernation waits for calls under way.
const LAST_CALLS: Duration = Duration::from_secs(2);
/// Bytes that must be free on the volume for a sandbox to be made or woken.
const MIN_FREE_BYTES: u64 = 1 << 30;

type Answer<T> = oneshot::Sender<Result<T, Error>>;

enum Request {
    /// The gate: makes it run, and hands out the connection to its agent.
    Use(Answer<(Guest, Call)>),
    /// A call has failed: finds out whether the agent still speaks the protocol.
    Doubt,
    Report(Answer<Report>),
    /// Who knows what it has logged. Neither wakes it nor counts as use.
    Log(Answer<Log>),
    Hibernate(Answer<Report>),
    SetTimeout(u32, Answer<Report>),
    Delete(Answer<()>),
}

/// How to reach the actor of a sandbox.
#[derive(Clone)]
pub(crate) struct Handle {
    mailbox: mpsc::Sender<Request>,
    pub(crate) activity: Arc<Activity>,
}

impl Handle {
    /// Makes the sandbox run and returns the connection to its agent. A hibernation waits a while for the end of the call.
    pub(crate) async fn use_guest(&self) -> Result<(Guest, Call), Error> {
        self.ask(Request::Use).await
    }

    /// Has the agent looked at after a call has failed.
    pub(crate) async fn doubt(&self) {
        // A sandbox that is gone is past doubting.
        let _ = self.mailbox.send(Request::Doubt).await;
    }

    pub(crate) async fn report(&self) -> Result<Report, Error> {
        self.ask(Request::Report).await
    }

    /// Who knows what it has logged, as things stand.
    pub(crate) async fn log(&self) -> Result<Log, Error> {
        self.ask(Request::Log).await
    }

    pub(crate) async fn hibernate(&self) -> Result<Report, Error> {
        self.ask(Request::Hibernate).await
    }

    pub(crate) async fn set_timeout(&self, seconds: u32) -> Result<Report, Error> {
        self.ask(|answer| Request::SetTimeout(seconds, answer)).await
    }

    /// Returns once nothing of it is left.
    pub(crate) async fn delete(&self) -> Result<(), Error> {
        self.ask(Request::Delete).await
    }

    async fn ask<T>(&self, request: impl FnOnce(Answer<T>) -> Request) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        let gone = || Error::not_found("this sandbox is no longer on its node");
        self.mailbox.send(request(answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

struct Actor {
    host: Arc<Host>,
    folder: PathBuf,
    record: Record,
    /// Present exactly while the state is `Running`.
    machine: Option<Machine>,
    activity: Arc<Activity>,
    mailbox: mpsc::Receiver<Request>,
}

/// Starts the actor of a sandbox that is to be made. `on_end` runs when the sandbox is no more.
pub(crate) fn create(
    host: Arc<Host>,
    id: SandboxId,
    spec: SandboxSpec,
    on_end: impl FnOnce() + Send + 'static,
) -> Handle {
    let folder = host.disks.sandbox_dir(&id);
    let record = Record::new(id, spec, host.disks.template().to_owned());
    spawn(host, folder, record, None, on_end)
}

/// Starts the actor of a sandbox that was there before this start, with its processes if they run.
pub(crate) fn resume(
    host: Arc<Host>,
    folder: PathBuf,
    record: Record,
    machine: Option<Machine>,
    on_end: impl FnOnce() + Send + 'static,
) -> Handle {
    spawn(host, folder, record, machine, on_end)
}

fn spawn(
    host: Arc<Host>,
    folder: PathBuf,
    record: Record,
    machine: Option<Machine>,
    on_end: impl FnOnce() + Send + 'static,
) -> Handle {
    let (sender, mailbox) = mpsc::channel(MAILBOX);
    let activity = Activity::new();
    let handle = Handle { mailbox: sender, activity: activity.clone() };
    // Not a part of the request that happened to start it.
    let span = info_span!(parent: None, "sandbox", id = %record.id);
    let mut actor = Actor { host, folder, record, machine, activity, mailbox };
    let life = async move {
        if let Ended::Deleted = actor.live().await {
            on_end();
        }
    };
    tokio::spawn(life.instrument(span));
    handle
}

/// Why an actor's task has ended.
enum Ended {
    Deleted,
    NodeStopping,
}

impl Actor {
    async fn live(&mut self) -> Ended {
        if self.record.state == SandboxState::Creating
            && let Err(error) = self.make().await
        {
            warn!(%error, "a sandbox could not be made");
            self.mailbox.close();
            while let Some(request) = self.mailbox.recv().await {
                refuse(request, &error);
            }
            return Ended::Deleted;
        }
        self.run().await
    }

    async fn run(&mut self) -> Ended {
        loop {
            let idle = self.idle_deadline();
            tokio::select! {
                request = self.mailbox.recv() => match request {
                    None => return Ended::NodeStopping,
                    Some(Request::Delete(answer)) => {
                        self.delete().await;
                        let _ = answer.send(Ok(()));
                        return Ended::Deleted;
                    }
                    Some(request) => self.serve(request).await,
                },
                () = ended(self.machine.as_ref()) => self.on_end().await,
                () = sleep_until(idle) => self.on_idle().await,
            }
        }
    }

    async fn serve(&mut self, request: Request) {
        match request {
            Request::Use(answer) => {
                let guest = self.ensure_running().await;
                let _ = answer.send(guest.map(|guest| (guest, self.activity.begin_call())));
            }
            Request::Doubt => self.check_agent().await,
            Request::Report(answer) => {
                let _ = answer.send(Ok(self.record.report()));
            }
            Request::Log(answer) => {
                let running = self.record.state == SandboxState::Running;
                let guest = if running { self.ensure_running().await.ok() } else { None };
                let _ = answer.send(Ok(guest.map_or_else(|| Log::Copy(self.folder.clone()), Log::Agent)));
            }
            Request::Hibernate(answer) => {
                let result = self.ensure_hibernated().await;
                let _ = answer.send(result.map(|()| self.record.report()));
            }
            Request::SetTimeout(seconds, answer) => {
                self.record.spec.timeout_seconds = seconds;
                self.activity.touch();
                let saved = self.save();
                let _ = answer.send(saved.map(|()| self.record.report()));
            }
            Request::Delete(_) => unreachable!("deletion is served by the loop"),
        }
    }

    /// Makes the disk and starts the sandbox for the first time. Leaves nothing behind when that fails.
    async fn make(&mut self) -> Result<(), Error> {
        let made = async {
            self.check_volume()?;
            let blank = self.host.disks.blank(self.record.spec.size.disk_mb).await;
            let blank =
                blank.map_err(|error| Error::unavailable(format!("no disk could be made: {error}")))?;
            let folder = self.folder.clone();
            tokio::task::spawn_blocking(move || {
                std::fs::create_dir(&folder)?;
                disk::reflink(&blank, &folder.join("disk.img"))
            })
            .await
            .map_err(std::io::Error::other)
            .flatten()
            .map_err(|error| Error::unavailable(format!("no disk could be made: {error}")))?;
            self.start().await
        };
        let result = made.await;
        if result.is_err() {
            self.remove_folder().await;
        }
        result
    }

    async fn start(&mut self) -> Result<(), Error> {
        let machine = machine::start(&self.host, &mut self.record, &self.folder).await?;
        self.machine = Some(machine);
        self.activity.touch();
        self.become_state(SandboxState::Running, None)
    }

    /// The gate that every use of a sandbox passes.
    async fn ensure_running(&mut self) -> Result<Guest, Error> {
        match self.record.state {
            SandboxState::Running => {}
            SandboxState::Hibernated => {
                self.check_volume()?;
                self.start().await?;
                info!("woken");
            }
            SandboxState::Error | SandboxState::Stopped | SandboxState::Creating => return Err(self.gone()),
        }
        let Some(machine) = &mut self.machine else {
            return Err(Error::internal("a running sandbox has no processes"));
        };
        if !machine.guest.is_closed() {
            return Ok(machine.guest.clone());
        }
        self.reconnect().await;
        match &self.machine {
            Some(machine) => Ok(machine.guest.clone()),
            None => Err(self.gone()),
        }
    }

    async fn check_agent(&mut self) {
        if let Some(machine) = &self.machine
            && machine.guest.check().await.is_err()
        {
            self.reconnect().await;
        }
    }

    /// Connects to the agent anew; one that cannot be talked to ends the sandbox.
    async fn reconnect(&mut self) {
        if let Some(machine) = &mut self.machine
            && let Err(error) = machine.reconnect(&self.folder).await
        {
            self.fail(format!("its agent stopped answering, or answers nonsense: {}", error.message)).await;
        }
    }

    async fn ensure_hibernated(&mut self) -> Result<(), Error> {
        match self.record.state {
            SandboxState::Hibernated => return Ok(()),
            SandboxState::Running => {}
            SandboxState::Error | SandboxState::Stopped | SandboxState::Creating => return Err(self.gone()),
        }
        // Calls that were let in get to end; those that come now wait for the wake.
        let deadline = Instant::now() + LAST_CALLS;
        while self.activity.has_calls() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        // Written down first: from here on there is no way back to running but through a wake.
        self.record.hibernating = true;
        if let Err(error) = self.save() {
            self.record.hibernating = false;
            return Err(error);
        }
        if let Some(machine) = self.machine.take() {
            machine.ask_to_end().await;
            log::take_over(&machine.guest, &self.folder).await;
            machine.end(&self.host, &self.folder).await;
        }
        self.record.machine = None;
        self.become_state(SandboxState::Hibernated, None)?;
        info!("hibernated");
        Ok(())
    }

    async fn on_idle(&mut self) {
        if self.idle_deadline().is_none_or(|deadline| deadline > Instant::now()) {
            return;
        }
        if let Err(error) = self.ensure_hibernated().await {
            warn!(%error, "an idle sandbox could not be hibernated");
        }
    }

    async fn on_end(&mut self) {
        let starved = self.machine.as_ref().is_some_and(|machine| machine.out_of_memory_kills() > 0);
        let reason = if starved {
            "its guest agent ended after the sandbox ran out of memory"
        } else {
            "its guest agent ended: it was killed from inside, or failed"
        };
        self.fail(reason.into()).await;
    }

    /// Ends what runs and keeps the disk; the reason is there to read.
    async fn fail(&mut self, reason: String) {
        info!(reason, "failed");
        log::note_failure(&self.folder, &reason).await;
        if let Some(machine) = self.machine.take() {
            machine.end(&self.host, &self.folder).await;
        }
        self.record.machine = None;
        if let Err(error) = self.become_state(SandboxState::Error, Some(reason)) {
            warn!(%error, "the end of a sandbox could not be written down");
        }
    }

    async fn delete(&mut self) {
        if let Some(machine) = self.machine.take() {
            machine.end(&self.host, &self.folder).await;
        }
        self.record.machine = None;
        self.remove_folder().await;
        self.record.become_state(SandboxState::Stopped, None);
        self.host.publish(self.record.report());
    }

    async fn remove_folder(&self) {
        let folder = self.folder.clone();
        let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(folder)).await;
        match removed.map_err(std::io::Error::other).flatten() {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                warn!(%error, folder = %self.folder.display(), "could not remove what is left of a sandbox");
            }
            _ => {}
        }
    }

    fn become_state(&mut self, state: SandboxState, reason: Option<String>) -> Result<(), Error> {
        self.record.become_state(state, reason);
        let saved = self.save();
        self.host.publish(self.record.report());
        saved
    }

    fn save(&self) -> Result<(), Error> {
        self.record.save(&self.folder).map_err(|error| {
            Error::unavailable(format!("the sandbox's record could not be written: {error}"))
        })
    }

    fn check_volume(&self) -> Result<(), Error> {
        let free = self.host.disks.free_bytes();
        if free >= MIN_FREE_BYTES {
            return Ok(());
        }
        Err(Error::unavailable(format!(
            "the node's volume is nearly full ({} MiB free); delete sandboxes or enlarge it",
            free >> 20
        )))
    }

    fn gone(&self) -> Error {
        let id = &self.record.id;
        let message = match &self.record.reason {
            Some(reason) => format!("sandbox {id} has been stopped: {reason}"),
            None => format!("sandbox {id} has been stopped"),
        };
        Error::new(ErrorKind::Gone, message)
    }

    /// When to look whether it is idle; `None` when it never is.
    fn idle_deadline(&self) -> Option<Instant> {
        let seconds = self.record.spec.timeout_seconds;
        if seconds == 0 || self.record.state != SandboxState::Running {
            return None;
        }
        let timeout = Duration::from_secs(seconds.into());
        Some(self.activity.idle_at(timeout).unwrap_or_else(|| Instant::now() + RECHECK))
    }
}

fn refuse(request: Request, error: &Error) {
    let error = error.clone();
    match request {
        Request::Use(answer) => drop(answer.send(Err(error))),
        Request::Log(answer) => drop(answer.send(Err(error))),
        Request::Report(answer) | Request::Hibernate(answer) | Request::SetTimeout(_, answer) => {
            drop(answer.send(Err(error)));
        }
        // There is nothing of it; that is what was asked for.
        Request::Delete(answer) => drop(answer.send(Ok(()))),
        Request::Doubt => {}
    }
}

async fn ended(machine: Option<&Machine>) {
    match machine {
        Some(machine) => machine.ended().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
