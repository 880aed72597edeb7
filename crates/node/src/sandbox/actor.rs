//! The owner of one sandbox.
//!
//! A task with a mailbox: requests are taken one at a time, so whatever is asked during a start, a capture or a restore
//! waits for its end, and a thousand callers of a sleeping sandbox share one wake. Every change of state is written to the
//! record first and published after. The task ends when the sandbox is deleted, when making it failed, or when the
//! node stops; the sandbox itself goes on in the last case.
//!
//! Two things go on beside the mailbox, because they may take long: patches of a sandbox that has just started (who wants
//! to use it waits, who wants to know or delete it does not), and the reading of a disk that has just hibernated.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{Instrument, info, info_span, warn};
use warren_network::Session;
use warren_node_api::{Report, SandboxSpec, Wake};
use warren_runtime::process::Exit;
use warren_types::{EgressPolicy, Error, ErrorKind, Isolation, SandboxId, SandboxState, Size};

use super::activity::{Activity, Call};
use super::capture::Taken;
use super::hibernate::Measuring;
use super::log::{self, Log};
use super::machine::{Machine, Target, Unwritten};
use super::patch::Patching;
use super::record::Record;
use super::restore::Order;
use crate::guest::Guest;
use crate::metadata::Meter;
use crate::registry::Host;

/// Requests that may wait; callers of a sandbox with more wait for room.
const MAILBOX: usize = 64;
/// An idle time-out is looked at again this much later when a call was under way.
const RECHECK: Duration = Duration::from_secs(1);

/// Longest time between the last word of an agent and word of its end.
const END_IS_HEARD: Duration = Duration::from_millis(300);

/// What can be done about one that has failed.
pub(crate) const DISK_IS_KEPT: &str =
    "its disk is kept: wake or reboot it to start it from that, or restore a checkpoint";

pub(super) type Answer<T> = oneshot::Sender<Result<T, Error>>;
/// The right to change the whole sandbox. Given back before the answer, so that who asks in turn is never refused.
pub(super) type Changing = tokio::sync::OwnedMutexGuard<()>;

pub(super) enum Request {
    /// The gate: makes it run, and hands out the connection to its agent.
    Use(Answer<(Guest, Call)>),
    /// The gate, for who only wants it to run.
    Wake(Wake, Answer<Report>),
    /// Answered when it is as it was asked to be, patches included; wakes nothing.
    Settled(Answer<Report>),
    /// A call has failed: finds out whether the agent still speaks the protocol.
    Doubt,
    Report(Answer<Report>),
    /// Who knows what it has logged. Neither wakes it nor counts as use.
    Log(Answer<Log>),
    Hibernate(Answer<Report>),
    SetTimeout(u32, Answer<Report>),
    SetEgress(EgressPolicy, Answer<Report>),
    Resize(Size, Answer<Report>),
    Begin(Order, Changing, Answer<Report>),
    /// What could be written out before a capture, while it runs.
    Unwritten(Answer<Option<Unwritten>>),
    /// Some of it could not be written out; of the processes that began at that time.
    NotWritten {
        processes_since_ms: Option<u64>,
    },
    Capture(Target, Answer<Taken>),
    /// Where to read what it uses, while it runs.
    Meter(Answer<Option<Meter>>),
    Delete(Answer<()>),
}

/// How to reach the actor of a sandbox.
#[derive(Clone)]
pub(crate) struct Handle {
    mailbox: mpsc::Sender<Request>,
    pub(crate) activity: Arc<Activity>,
    /// What the gateway knows of it, whether it runs or not.
    pub(crate) session: Arc<Session>,
    /// The template that its disk is laid over; for all its life the same.
    pub(crate) template_digest: Arc<str>,
    /// As it was last published.
    latest: watch::Receiver<Report>,
    /// Held by a change of the whole sandbox until it is answered; a second one is refused meanwhile.
    changing: Arc<tokio::sync::Mutex<()>>,
}

impl Handle {
    /// Makes the sandbox run and returns the connection to its agent. A hibernation waits a while for the end of the call.
    pub(crate) async fn use_guest(&self) -> Result<(Guest, Call), Error> {
        self.ask(Request::Use).await
    }

    pub(crate) async fn wake(&self, wake: Wake) -> Result<Report, Error> {
        self.ask(|answer| Request::Wake(wake, answer)).await
    }

    pub(crate) async fn settled(&self) -> Result<Report, Error> {
        self.ask(Request::Settled).await
    }

    /// Has the agent looked at after a call has failed.
    pub(crate) async fn doubt(&self) {
        // A sandbox that is gone is past doubting.
        let _ = self.mailbox.send(Request::Doubt).await;
    }

    /// What was last published of it; waits for nothing, so it may be a moment behind [`Self::report`].
    pub(crate) fn latest(&self) -> Report {
        self.latest.borrow().clone()
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

    /// Changes what it may reach.
    pub(crate) async fn set_egress(&self, policy: EgressPolicy) -> Result<Report, Error> {
        self.ask(|answer| Request::SetEgress(policy, answer)).await
    }

    pub(crate) async fn resize(&self, size: Size) -> Result<Report, Error> {
        self.ask(|answer| Request::Resize(size, answer)).await
    }

    /// Has it started anew. Refused while another such change is asked for and not answered. The answer of a restore comes
    /// when it is certain to happen, that of a reboot when it has happened; what is asked for after either waits for its end.
    pub(crate) async fn begin(&self, order: Order) -> Result<Report, Error> {
        let changing = self.changing.clone().try_lock_owned().map_err(|_| {
            Error::conflict("another operation is in progress on this sandbox; try again shortly")
                .with_code("operation_in_progress")
        })?;
        self.ask(|answer| Request::Begin(order, changing, answer)).await
    }

    pub(super) async fn unwritten(&self) -> Result<Option<Unwritten>, Error> {
        self.ask(Request::Unwritten).await
    }

    pub(super) async fn not_written(&self, processes_since_ms: Option<u64>) {
        // A sandbox that is gone has lost everything.
        let _ = self.mailbox.send(Request::NotWritten { processes_since_ms }).await;
    }

    pub(super) async fn take(&self, target: Target) -> Result<Taken, Error> {
        self.ask(|answer| Request::Capture(target, answer)).await
    }

    /// Where to read what it uses, while it runs.
    pub(crate) async fn meter(&self) -> Result<Option<Meter>, Error> {
        self.ask(Request::Meter).await
    }

    /// Returns once nothing of it is left.
    pub(crate) async fn delete(&self) -> Result<(), Error> {
        self.ask(Request::Delete).await
    }

    async fn ask<T>(&self, request: impl FnOnce(Answer<T>) -> Request) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        self.mailbox.send(request(answer)).await.map_err(|_| no_longer_there())?;
        answered.await.map_err(|_| no_longer_there())?
    }
}

pub(super) struct Actor {
    pub(super) host: Arc<Host>,
    pub(super) folder: PathBuf,
    pub(super) record: Record,
    /// Present exactly while the state is `Running`.
    pub(super) machine: Option<Machine>,
    pub(super) activity: Arc<Activity>,
    pub(super) session: Arc<Session>,
    latest: watch::Sender<Report>,
    /// Patches that run before anybody may use it.
    pub(super) patching: Patching,
    /// The reading of its disk, after it has hibernated.
    pub(super) measuring: Measuring,
    /// Processes from before a restore that may still be ending.
    dying: Option<JoinHandle<()>>,
    /// A hibernation failed; the next one of its own accord is not before this.
    pub(super) hibernate_not_before: Option<Instant>,
    /// It stands still for want of room, and this is when to look whether there is some.
    pub(super) look_for_room: Option<Instant>,
    /// When it was last looked whether it stands still, of its own accord.
    pub(super) glanced: Instant,
    /// At that time.
    pub(super) there_was_little_room: bool,
    mailbox: mpsc::Receiver<Request>,
}

/// Starts the actor of a sandbox that is to be made, over the template `template_digest`. `on_end` runs when the sandbox is no more.
pub(crate) fn create(
    host: Arc<Host>,
    id: SandboxId,
    spec: SandboxSpec,
    template_digest: String,
    on_end: impl FnOnce() + Send + 'static,
) -> Handle {
    let folder = host.disks.sandbox_dir(&id);
    let record = Record::new(id, spec, template_digest);
    let session = host.session(&record.id, &record.spec);
    spawn(host, folder, record, session, None, on_end)
}

/// Starts the actor of a sandbox that was there before this start, with its processes if they run.
pub(crate) fn resume(
    host: Arc<Host>,
    folder: PathBuf,
    record: Record,
    session: Arc<Session>,
    machine: Option<Machine>,
    on_end: impl FnOnce() + Send + 'static,
) -> Handle {
    spawn(host, folder, record, session, machine, on_end)
}

fn spawn(
    host: Arc<Host>,
    folder: PathBuf,
    record: Record,
    session: Arc<Session>,
    machine: Option<Machine>,
    on_end: impl FnOnce() + Send + 'static,
) -> Handle {
    let (sender, mailbox) = mpsc::channel(MAILBOX);
    let activity = Activity::new();
    let latest = watch::Sender::new(record.report());
    let handle = Handle {
        mailbox: sender,
        activity: activity.clone(),
        session: session.clone(),
        template_digest: record.template_digest.as_str().into(),
        latest: latest.subscribe(),
        changing: Arc::default(),
    };
    // Not a part of the request that happened to start it.
    let span = info_span!(parent: None, "sandbox", id = %record.id);
    let mut actor = Actor {
        host,
        folder,
        record,
        machine,
        activity,
        session,
        latest,
        patching: Patching::default(),
        measuring: Measuring::default(),
        dying: None,
        hibernate_not_before: None,
        look_for_room: None,
        glanced: Instant::now(),
        there_was_little_room: true,
        mailbox,
    };
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
        if self.record.state == SandboxState::Creating {
            if let Err(error) = self.make().await {
                warn!(%error, "a sandbox could not be made");
                self.mailbox.close();
                while let Some(request) = self.mailbox.recv().await {
                    refuse(request, &error);
                }
                return Ended::Deleted;
            }
        } else {
            self.go_on().await;
        }
        self.run().await
    }

    async fn run(&mut self) -> Ended {
        loop {
            let (idle, glance) = (self.idle_deadline(), self.next_glance());
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
                // Whether there is some is all that matters here.
                () = sleep_until(self.look_for_room) => drop(self.check_room().await),
                () = sleep_until(glance) => self.glance_at_room().await,
                run = self.patching.ended() => self.on_patch_ended(run).await,
                digest = self.measuring.ended() => self.on_measured(digest),
            }
        }
    }

    async fn serve(&mut self, request: Request) {
        match request {
            Request::Use(answer) => self.let_in(answer).await,
            Request::Wake(wake, answer) => self.wake(wake, answer).await,
            Request::Settled(answer) => match self.patching.is_running() {
                true => self.patching.wait(answer),
                false => self.answer_report(answer),
            },
            Request::Doubt => self.check_agent().await,
            Request::NotWritten { processes_since_ms } => self.on_not_written(processes_since_ms),
            Request::Report(answer) => self.answer_report(answer),
            Request::Log(answer) => {
                let running = self.record.state == SandboxState::Running;
                let guest = if running { self.ensure_running().await.ok() } else { None };
                let _ = answer.send(Ok(guest.map_or_else(|| Log::Copy(self.folder.clone()), Log::Agent)));
            }
            Request::Hibernate(answer) => self.hibernate(answer).await,
            Request::SetTimeout(seconds, answer) => {
                let before = std::mem::replace(&mut self.record.spec.timeout_seconds, seconds);
                self.activity.touch();
                let saved = self.save().inspect_err(|_| self.record.spec.timeout_seconds = before);
                let _ = answer.send(saved.map(|()| self.record.report()));
            }
            Request::SetEgress(policy, answer) => {
                let changed = self.set_egress(policy).await;
                let _ = answer.send(changed.map(|()| self.record.report()));
            }
            Request::Resize(size, answer) => {
                let resized = self.resize(size).await;
                let _ = answer.send(resized.map(|()| self.record.report()));
            }
            Request::Begin(order, changing, answer) => self.begin(order, changing, answer).await,
            Request::Unwritten(answer) => {
                let _ = answer.send(self.unwritten());
            }
            Request::Capture(target, answer) if self.patching.is_running() => {
                self.patching.wait_to_capture(target, answer);
            }
            Request::Capture(target, answer) => {
                let _ = answer.send(self.take(&target).await);
            }
            Request::Meter(answer) => {
                let _ = answer.send(Ok(self.machine.as_ref().map(|machine| machine.meter(&self.host))));
            }
            Request::Delete(_) => unreachable!("deletion is served by the loop"),
        }
    }

    /// Tells who watches what has just been written down.
    pub(super) fn publish(&self) {
        let report = self.record.report();
        self.latest.send_replace(report.clone());
        self.host.publish(report);
    }

    pub(super) fn answer_report(&self, answer: Answer<Report>) {
        let _ = answer.send(Ok(self.record.report()));
    }

    async fn check_agent(&mut self) {
        if let Some(machine) = &self.machine
            && machine.guest.check().await.is_err()
            && self.check_room().await.is_ok()
        {
            self.reconnect().await;
        }
    }

    /// Connects to the agent anew; one that cannot be talked to ends the sandbox.
    pub(super) async fn reconnect(&mut self) {
        if let Some(machine) = &mut self.machine
            && let Err(error) = machine.reconnect(&self.folder).await
        {
            if error.kind == ErrorKind::Unavailable {
                // It may be as well as ever; the next use tries again.
                warn!(id = %self.record.id, %error, "a sandbox's agent cannot be reached for want of something here");
                return;
            }
            // That its agent is silent can be noticed before its end is, which says more.
            if tokio::time::timeout(END_IS_HEARD, machine.ended()).await.is_ok() {
                return self.on_end().await;
            }
            self.fail(format!("its agent stopped answering, or answers nonsense: {}", error.message)).await;
        }
    }

    async fn on_end(&mut self) {
        let starved = self.machine.as_ref().is_some_and(|machine| machine.out_of_memory_kills() > 0);
        let exit = match (&self.machine, self.record.spec.isolation) {
            (Some(machine), Isolation::Vm) => machine.exit().await,
            _ => None,
        };
        let how = match (self.record.spec.isolation, starved, exit) {
            (Isolation::Container, true, _) => {
                "its guest agent ended after the sandbox ran out of memory".into()
            }
            (Isolation::Container, false, _) => {
                "its guest agent ended: it was killed from inside, or failed".into()
            }
            (Isolation::Vm, true, _) => "its virtual machine ended for want of memory on its host".into(),
            // Its memory is a file: a page that the volume has no room for ends whoever touches it.
            (Isolation::Vm, false, Some(Exit::Killed(signal))) if signal == Signal::BUS.as_raw() => {
                let free = self.host.disks.free_bytes() >> 20;
                format!(
                    "its virtual machine was ended, because its memory could not be kept on the node's volume ({free} MiB free)"
                )
            }
            (Isolation::Vm, false, Some(Exit::Killed(signal))) => {
                format!("its virtual machine ended by signal {signal}, which came from its host")
            }
            (Isolation::Vm, false, Some(Exit::Code(0))) => {
                "its virtual machine ended: it was turned off from inside".into()
            }
            (Isolation::Vm, false, Some(Exit::Code(code))) => {
                format!("its virtual machine ended with code {code}: it failed")
            }
            (Isolation::Vm, false, None) => "its virtual machine ended: from inside, or it failed".into(),
        };
        self.fail(how).await;
    }

    /// Ends what runs and keeps the disk; the reason is there to read.
    async fn fail(&mut self, how: String) {
        let reason = format!("{how}; {DISK_IS_KEPT}");
        info!(reason, "failed");
        log::note_failure(&self.folder, &reason).await;
        self.end_machine().await;
        self.record.machine = None;
        if let Err(error) = self.become_state(SandboxState::Error, Some(reason)) {
            warn!(%error, "the end of a sandbox could not be written down");
        }
        self.patching.call_off(&self.gone());
    }

    async fn delete(&mut self) {
        self.stop_measuring();
        self.end_machine().await;
        self.record.machine = None;
        self.remove_folder().await;
        self.record.become_state(SandboxState::Stopped, None);
        self.publish();
        self.patching.call_off(&self.gone());
    }

    /// Ends what runs, if anything does. Its disk is written out and no longer attached afterwards; what could not be is in the
    /// record, which whoever called this writes down.
    pub(super) async fn end_machine(&mut self) {
        if let Some(machine) = self.machine.take()
            && let Err(error) = machine.end(&self.host, &self.folder).await
        {
            // Nobody has asked since they were lost, and nobody can any more.
            self.record.note_lost_writes(&error);
        }
        self.wait_for_the_dying().await;
    }

    /// Stops what runs, for good, so that something else can take its place at once. It is to be given to [`Self::abandon`].
    pub(super) async fn set_machine_aside(&mut self) -> Option<Machine> {
        self.wait_for_the_dying().await;
        self.machine.take().inspect(Machine::set_aside)
    }

    /// Ends what was set aside, and does not wait for what it still writes: that is for a disk nobody will look at again.
    pub(super) fn abandon(&mut self, machine: Machine) {
        machine.kill();
        let host = self.host.clone();
        self.dying = Some(tokio::spawn(async move { machine.end_without_disk(&host).await }));
    }

    pub(super) async fn wait_for_the_dying(&mut self) {
        if let Some(dying) = self.dying.take() {
            let _ = dying.await;
        }
    }

    pub(super) async fn remove_folder(&self) {
        let folder = self.folder.clone();
        let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(folder)).await;
        match removed.map_err(std::io::Error::other).flatten() {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                warn!(%error, folder = %self.folder.display(), "could not remove what is left of a sandbox");
            }
            _ => {}
        }
    }

    pub(super) fn become_state(&mut self, state: SandboxState, reason: Option<String>) -> Result<(), Error> {
        self.record.become_state(state, reason);
        let saved = self.save();
        self.publish();
        saved
    }

    /// Says something about it that is not a change of state.
    pub(super) fn note(&mut self) {
        self.record.note();
        if let Err(error) = self.save() {
            warn!(%error, "what there is to know of a sandbox could not be written down");
        }
        self.publish();
    }

    pub(super) fn save(&self) -> Result<(), Error> {
        self.record.save(&self.folder).map_err(|error| {
            Error::unavailable(format!("the sandbox's record could not be written: {error}"))
        })
    }

    pub(super) fn gone(&self) -> Error {
        let id = &self.record.id;
        let message = match &self.record.reason {
            Some(reason) => format!("sandbox {id} has been stopped: {reason}"),
            None => format!("sandbox {id} has been stopped"),
        };
        Error::new(ErrorKind::Gone, message)
    }

    /// When to look whether it is idle; `None` when it never is.
    pub(super) fn idle_deadline(&self) -> Option<Instant> {
        let seconds = self.record.spec.timeout_seconds;
        if seconds == 0 || self.record.state != SandboxState::Running || self.patching.is_running() {
            return None;
        }
        let timeout = Duration::from_secs(seconds.into());
        let idle = self.activity.idle_at(timeout).unwrap_or_else(|| Instant::now() + RECHECK);
        Some(self.hibernate_not_before.map_or(idle, |earliest| idle.max(earliest)))
    }
}

fn no_longer_there() -> Error {
    Error::not_found("this sandbox is no longer on its node")
}

fn refuse(request: Request, error: &Error) {
    let error = error.clone();
    match request {
        Request::Use(answer) => drop(answer.send(Err(error))),
        Request::Log(answer) => drop(answer.send(Err(error))),
        Request::Report(answer)
        | Request::Settled(answer)
        | Request::Wake(_, answer)
        | Request::Hibernate(answer)
        | Request::SetTimeout(_, answer)
        | Request::SetEgress(_, answer)
        | Request::Resize(_, answer) => drop(answer.send(Err(error))),
        Request::Begin(_, changing, answer) => {
            drop(changing);
            let _ = answer.send(Err(error));
        }
        Request::Unwritten(answer) => drop(answer.send(Err(error))),
        Request::Capture(_, answer) => drop(answer.send(Err(error))),
        Request::Meter(answer) => drop(answer.send(Err(error))),
        // There is nothing of it; that is what was asked for.
        Request::Delete(answer) => drop(answer.send(Ok(()))),
        Request::Doubt | Request::NotWritten { .. } => {}
    }
}

async fn ended(machine: Option<&Machine>) {
    match machine {
        Some(machine) => machine.ended().await,
        None => std::future::pending().await,
    }
}

pub(super) async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
