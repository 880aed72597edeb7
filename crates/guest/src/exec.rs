//! All commands of the sandbox: started here, found here, forgotten here.
//!
//! ```text
//!   start ──▶ running ──▶ finished ──▶ forgotten
//!                │            ├─ kept for the next agent, see `kept`
//!                │            └─ after RETENTION_SECONDS, or sooner when there are many
//!                └─ supervised by one task each, see `supervise`
//! ```
//!
//! Refused are more than [`MAX_RUNNING`] commands at once and more than [`MAX_CLIENTS`] clients on one.

mod command;
mod input;
mod kept;
mod stream;
mod supervise;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use warren_guest_api::exec::{self as api, ExecStart, LOG_BYTES, RETENTION_SECONDS};
use warren_types::error::Result;
use warren_types::{Error, ErrorKind, ExecId};

pub(crate) use self::command::Command;
pub(crate) use self::input::Input;
pub(crate) use self::stream::{Course, ExecStream, SingleStream, exit_chunk, to_chunk};
use crate::cgroup::Cgroups;
use crate::environment::Environment;
use crate::journal::Journal;
use crate::log::Limits;
use crate::output::Reader;
use crate::rest::Rest;
use crate::workers::Workers;

const MAX_RUNNING: usize = 512;
/// Between two looks at whether a command has begun that somebody else has asked for.
const BEGINS_WITHIN: Duration = Duration::from_millis(2);
const MAX_FINISHED: usize = 256;
/// Memory and disk that the output of finished commands may take.
const MAX_FINISHED_MEMORY: usize = 16 * 1024 * 1024;
const MAX_FINISHED_FILES: u64 = 1024 * 1024 * 1024;
/// As many commands as are kept may have this much each without anybody counting.
const SMALL_OUTPUT: u64 = (MAX_FINISHED_MEMORY / MAX_FINISHED) as u64;
const MAX_CLIENTS: u32 = 64;

const SEGMENT: usize = 256 * 1024;
const IN_MEMORY: usize = 4;
const PENDING: usize = 4;
/// Together with what is in memory these make up [`LOG_BYTES`].
const SLOTS: usize = LOG_BYTES as usize / SEGMENT - IN_MEMORY - PENDING - 1;
const LOG_LIMITS: Limits =
    Limits { segment: SEGMENT, in_memory: IN_MEMORY, pending: PENDING, slots: SLOTS as u32 };

pub(crate) struct Commands {
    environment: Rc<Environment>,
    cgroups: Rc<Cgroups>,
    /// Where the logs' files go.
    folder: PathBuf,
    workers: Workers,
    journal: Rc<Journal>,
    rest: Rc<Rest>,
    commands: RefCell<BTreeMap<ExecId, Rc<Command>>>,
    /// Ids of commands that are beginning, of those whose id was chosen, and, as begun, of those that are started once for all.
    chosen: RefCell<BTreeMap<ExecId, bool>>,
    /// Oldest first.
    finished: RefCell<VecDeque<(Instant, Rc<Command>)>>,
    starting: Cell<usize>,
    sweeping: Cell<bool>,
}

impl Commands {
    pub(crate) fn new(
        environment: Rc<Environment>,
        cgroups: Rc<Cgroups>,
        folder: PathBuf,
        workers: Workers,
        journal: Rc<Journal>,
        rest: Rc<Rest>,
    ) -> Rc<Self> {
        Rc::new(Self {
            environment,
            cgroups,
            folder,
            workers,
            journal,
            rest,
            commands: RefCell::default(),
            chosen: RefCell::default(),
            finished: RefCell::default(),
            starting: Cell::new(0),
            sweeping: Cell::new(false),
        })
    }

    /// Starts a command; with `attach` together with a client that gets all of its output. It goes on if the caller
    /// does not wait for the answer. One that was started under its id before is found, not started.
    pub(crate) async fn start(
        self: &Rc<Self>,
        start: ExecStart,
        attach: bool,
    ) -> Result<(Rc<Command>, Option<Reader>)> {
        if let Some(id) = &start.id
            && let Some(command) = self.find_begun(id).await?
        {
            let reader = attach.then(|| command.output.reader(0, true));
            return Ok((command, reader));
        }
        if self.running() + self.starting.get() >= MAX_RUNNING {
            let message = format!("{MAX_RUNNING} commands are running already; end one and try again");
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
        self.starting.set(self.starting.get() + 1);
        let (chosen, once) = (start.id.clone(), start.once);
        if let Some(id) = &chosen {
            self.chosen.borrow_mut().insert(id.clone(), false);
        }
        let commands = Rc::clone(self);
        let task = tokio::task::spawn_local(async move {
            let result = commands.launch(start, attach).await;
            commands.starting.set(commands.starting.get() - 1);
            if let Some(id) = chosen {
                let mut chosen = commands.chosen.borrow_mut();
                chosen.remove(&id);
                // What could not be started may be tried again, with another program say.
                if result.is_ok() && once {
                    chosen.insert(id, true);
                }
            }
            result
        });
        task.await.unwrap_or_else(|_| Err(Error::internal("the command's start was broken off")))
    }

    async fn launch(
        self: &Rc<Self>,
        start: ExecStart,
        attach: bool,
    ) -> Result<(Rc<Command>, Option<Reader>)> {
        let id = start.id.clone().unwrap_or_else(|| self.new_id());
        let log = self.folder.join(format!("{id}.log"));
        let limits = if start.unkept { Limits { slots: 0, ..LOG_LIMITS } } else { LOG_LIMITS };
        let (command, pipes) = Command::launch(
            id,
            start,
            &self.environment,
            &self.cgroups,
            &self.journal,
            (limits, log, self.workers.clone()),
        )
        .await?;
        let reader = attach.then(|| command.output.reader(0, true));
        self.commands.borrow_mut().insert(command.id.clone(), Rc::clone(&command));
        let commands = Rc::clone(self);
        let supervised = Rc::clone(&command);
        tokio::task::spawn_local(async move {
            supervise::supervise(&supervised, pipes).await;
            commands.note_finished(supervised);
        });
        Ok((command, reader))
    }

    /// The command that was started under an id of the caller's choice, as soon as it has begun.
    async fn find_begun(&self, id: &ExecId) -> Result<Option<Rc<Command>>> {
        let begun = || self.chosen.borrow().get(id).copied();
        while begun() == Some(false) {
            tokio::time::sleep(BEGINS_WITHIN).await;
        }
        let known = self.commands.borrow().get(id).cloned();
        if known.is_none() && begun().is_some() {
            let message = format!("command {id} has run, and how it ended is not known here any more");
            return Err(Error::new(ErrorKind::Gone, message));
        }
        Ok(known)
    }

    fn new_id(&self) -> ExecId {
        loop {
            let id = ExecId::generate();
            if !self.commands.borrow().contains_key(&id) && !self.chosen.borrow().contains_key(&id) {
                return id;
            }
        }
    }

    pub(crate) fn get(&self, id: &str) -> Result<Rc<Command>> {
        self.forget_old();
        let id = id.parse().map_err(|_| unknown(id))?;
        self.commands.borrow().get(&id).cloned().ok_or_else(|| unknown(id.as_str()))
    }

    /// All that are known, oldest first.
    pub(crate) fn list(&self) -> Vec<api::Exec> {
        self.forget_old();
        let mut list: Vec<_> = self.commands.borrow().values().map(|command| command.view()).collect();
        list.sort_by(|a, b| (a.started_at_ms, &a.id).cmp(&(b.started_at_ms, &b.id)));
        list
    }

    pub(crate) fn running(&self) -> usize {
        self.commands.borrow().len().saturating_sub(self.finished.borrow().len())
    }

    /// A client that reads from `offset`, by default the newest output, up to [`api::REPLAY_BYTES`].
    pub(crate) fn attach(&self, id: &str, offset: Option<u64>) -> Result<(Rc<Command>, Reader)> {
        let command = self.get(id)?;
        if command.output.clients() >= MAX_CLIENTS {
            let message = format!("{MAX_CLIENTS} clients are attached to this command already");
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
        let offset = offset.unwrap_or_else(|| command.output.replay_start(api::REPLAY_BYTES));
        let reader = command.output.reader(offset, true);
        Ok((command, reader))
    }

    /// A reader of the newest output that is not a client.
    pub(crate) fn replay(&self, id: &str) -> Result<(Rc<Command>, Reader)> {
        let command = self.get(id)?;
        let reader = command.output.reader(command.output.replay_start(api::REPLAY_BYTES), false);
        Ok((command, reader))
    }

    /// What they have come to, for the agent that comes after this one.
    pub(crate) async fn kept(&self) -> Bytes {
        self.forget_old();
        let mut commands: Vec<_> = self.commands.borrow().values().cloned().collect();
        commands.sort_by_key(|command| command.view().started_at_ms);
        kept::encode(&commands).await
    }

    /// Knows again what an earlier agent has told.
    pub(crate) fn take_kept(self: &Rc<Self>, text: Bytes) -> Result<()> {
        let kept = kept::decode(text)
            .ok_or_else(|| Error::invalid("this is not what an agent has told of its commands"))?;
        for kept in kept {
            if self.commands.borrow().contains_key(&kept.exec.id) {
                continue;
            }
            let log = self.folder.join(format!("{}.log", kept.exec.id));
            let command = Command::kept(kept, (LOG_LIMITS, log, self.workers.clone()));
            self.commands.borrow_mut().insert(command.id.clone(), Rc::clone(&command));
            self.note_finished(command);
        }
        Ok(())
    }

    fn note_finished(self: &Rc<Self>, command: Rc<Command>) {
        let is_large = command.output.end() > SMALL_OUTPUT;
        self.finished.borrow_mut().push_back((Instant::now(), command));
        self.forget_old();
        if is_large {
            self.forget_large();
        }
        self.rest.note_work();
        if !self.sweeping.replace(true) {
            let commands = Rc::clone(self);
            tokio::task::spawn_local(async move { commands.sweep().await });
        }
    }

    /// Forgets finished commands when their time has come; ends when there are none.
    async fn sweep(&self) {
        loop {
            let Some(oldest) = self.finished.borrow().front().map(|(at, _)| *at) else { break };
            tokio::time::sleep_until(oldest + Duration::from_secs(RETENTION_SECONDS)).await;
            self.forget_old();
        }
        self.sweeping.set(false);
        self.rest.note_work();
    }

    /// Forgets those whose time has come, and the oldest where there are too many.
    fn forget_old(&self) {
        let retention = Duration::from_secs(RETENTION_SECONDS);
        self.forget_while(|finished| {
            finished.len() > MAX_FINISHED || finished.front().is_some_and(|(at, _)| at.elapsed() >= retention)
        });
    }

    /// Forgets the oldest where together they take too much room.
    fn forget_large(&self) {
        self.forget_while(|finished| {
            let memory: usize = finished.iter().map(|(_, command)| command.output.memory()).sum();
            let files: u64 = finished.iter().map(|(_, command)| command.output.file_size()).sum();
            finished.len() > 1 && (memory > MAX_FINISHED_MEMORY || files > MAX_FINISHED_FILES)
        });
    }

    fn forget_while(&self, too_much: impl Fn(&VecDeque<(Instant, Rc<Command>)>) -> bool) {
        let mut finished = self.finished.borrow_mut();
        while too_much(&finished)
            && let Some((_, oldest)) = finished.pop_front()
        {
            self.commands.borrow_mut().remove(&oldest.id);
        }
    }
}

fn unknown(id: &str) -> Error {
    Error::not_found(format!(
        "no command {id:?} is known here; finished ones are kept for {RETENTION_SECONDS} s"
    ))
}
