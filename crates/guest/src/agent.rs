//! The agent as a whole: what its requests share.

use std::cell::Cell;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use warren_guest_api::Status;
use warren_guest_api::boot::{Boot, CGROUP_DIR};
use warren_guest_api::machine::{Renew, Renewed};
use warren_types::{Error, ErrorKind, ExecId};

use crate::account::Account;
use crate::archive::Transfers;
use crate::cgroup::Cgroups;
use crate::environment::Environment;
use crate::exec::Commands;
use crate::files::fresh;
use crate::files::list::Listings;
use crate::journal::{Journal, var_log};
use crate::machine::{end, renew};
use crate::ports::Ports;
use crate::pty::Terminals;
use crate::rest::Rest;
use crate::workers::Workers;

/// Threads that wait for files. One that hangs, say on a file system made by a program, must not stop the others.
const FILE_THREADS: usize = 4;

/// Places the agent uses; they differ only in tests.
#[derive(Debug, Clone)]
pub struct Places {
    /// The sandbox's own cgroup.
    pub cgroup: PathBuf,
    /// Where the output of commands is kept.
    pub output: PathBuf,
    /// Where the journal is kept.
    pub journal: PathBuf,
    /// The text files to be logged.
    pub var_log: PathBuf,
    /// The file with the id of the machine; none where it is somebody else's.
    pub machine_id: Option<PathBuf>,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            cgroup: CGROUP_DIR.into(),
            output: "/var/lib/warren/exec".into(),
            journal: "/var/lib/warren/journal".into(),
            var_log: "/var/log".into(),
            machine_id: Some("/etc/machine-id".into()),
        }
    }
}

pub(crate) struct Agent {
    pub(crate) commands: Rc<Commands>,
    pub(crate) terminals: Rc<Terminals>,
    pub(crate) files: Workers,
    pub(crate) journal: Rc<Journal>,
    pub(crate) transfers: Transfers,
    pub(crate) listings: Listings,
    pub(crate) ports: Ports,
    pub(crate) rest: Rc<Rest>,
    environment: Rc<Environment>,
    owner: Cell<Owner>,
    started: Instant,
}

/// Whose the agent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// A container's, for all its life.
    Container,
    /// A virtual machine's that belongs to no sandbox yet.
    Nobody,
    /// A virtual machine's that has been renewed for a sandbox.
    Machine,
}

impl Agent {
    /// The agent of a container, or with no `boot` that of a virtual machine.
    pub(crate) fn new(boot: Option<Boot>, places: &Places) -> io::Result<Rc<Self>> {
        let owner = if boot.is_some() { Owner::Container } else { Owner::Nobody };
        if boot.is_some() {
            open_randomness();
        }
        let environment = Rc::new(Environment::new(boot));
        let cgroups = Cgroups::new(&places.cgroup);
        let rest = Rc::<Rest>::default();
        // Where that is not possible, files can be had all the same.
        let _ = fresh::tidy_up(&places.journal.with_file_name("unfinished"));
        // Its own thread, so that no file can keep the output of commands waiting.
        let keeper = Workers::start("output", 1)?;
        let files = Workers::start("files", FILE_THREADS)?;
        let journal = Journal::new(places.journal.clone(), keeper.clone(), files.clone());
        var_log::start(&places.var_log, &journal, &files);
        let commands = Commands::new(
            Rc::clone(&environment),
            Rc::clone(&cgroups),
            places.output.clone(),
            keeper.clone(),
            Rc::clone(&journal),
            Rc::clone(&rest),
        );
        Ok(Rc::new(Self {
            commands,
            terminals: Terminals::new(Rc::clone(&environment), cgroups, keeper, Rc::clone(&rest)),
            files,
            journal,
            transfers: Transfers::default(),
            listings: Listings::default(),
            ports: Ports::new(Rc::clone(&rest)),
            rest,
            environment,
            owner: Cell::new(owner),
            started: Instant::now(),
        }))
    }

    /// Whose commands and files are.
    pub(crate) fn account(&self) -> Arc<Account> {
        self.environment.account()
    }

    /// Whether commands and files can be asked for: a machine that has not been renewed has no right to its randomness.
    pub(crate) fn check_owned(&self) -> Result<(), Error> {
        match self.owner.get() {
            Owner::Container | Owner::Machine => Ok(()),
            Owner::Nobody => {
                let message = "this machine belongs to no sandbox yet; renew it first";
                Err(Error::new(ErrorKind::Unavailable, message))
            }
        }
    }

    /// Makes this machine a sandbox's own.
    pub(crate) async fn renew(&self, wanted: Renew) -> Result<Renewed, Error> {
        if self.owner.get() == Owner::Container {
            return Err(Error::not_found("a container is not renewed; its host's kernel is"));
        }
        let boot = wanted.boot.clone();
        let done = self.files.run(move || renew::renew(&wanted));
        let renewed = done.await.map_err(|_| Error::internal("the renewal was cut off"))??;
        self.environment.renew(boot);
        open_randomness();
        self.owner.set(Owner::Machine);
        Ok(renewed)
    }

    /// Writes the machine's disk out; after everything in it has ended, if it is given a while for that in milliseconds.
    pub(crate) async fn rest_machine(&self, grace_ms: Option<u64>) -> Result<(), Error> {
        if self.owner.get() == Owner::Container {
            return Err(Error::not_found("what a container has written is its host's to write out"));
        }
        let done = self.files.run(move || end::rest(grace_ms.map(Duration::from_millis)));
        done.await.map_err(|_| Error::internal("it was cut off"))
    }

    pub(crate) fn status(&self) -> Status {
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Status {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            execs_running: count(self.commands.running()),
            ptys_running: count(self.terminals.running()),
        }
    }
}

/// Draws from the source of ids, which it opens the first time: a command may have removed it from `/dev` by the time of the next.
fn open_randomness() {
    let _ = ExecId::generate();
}
