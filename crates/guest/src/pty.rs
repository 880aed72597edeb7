//! All terminals of the sandbox.
//!
//! ```text
//!   start ──▶ open ──▶ shell ended: clients get `Exit`, the terminal is forgotten
//!                └───▶ deleted: hang-up, then everything it started is killed
//! ```
//!
//! A client that leaves changes nothing for the shell. Every client gets all output, from the scrollback on; one that is
//! slower than [`SCROLLBACK_BYTES`] holds the terminal back.

mod stream;
mod terminal;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use warren_guest_api::pty::{DEFAULT_COLS, DEFAULT_ROWS, Pty, PtyStart, Resize, SCROLLBACK_BYTES};
use warren_types::error::Result;
use warren_types::{Error, ErrorKind, PtyId};

pub(crate) use self::stream::TerminalStream;
pub(crate) use self::terminal::Terminal;
use crate::cgroup::Cgroups;
use crate::environment::Environment;
use crate::log::Limits;
use crate::output::Reader;
use crate::rest::Rest;
use crate::workers::Workers;

const MAX_TERMINALS: usize = 64;
const MAX_CLIENTS: u32 = 64;
/// What a shell has for its farewell after the hang-up.
const FAREWELL: Duration = Duration::from_millis(200);

const SEGMENT: usize = SCROLLBACK_BYTES / 4;
const LOG_LIMITS: Limits = Limits { segment: SEGMENT, in_memory: 3, pending: 0, slots: 0 };

pub(crate) struct Terminals {
    environment: Rc<Environment>,
    cgroups: Rc<Cgroups>,
    workers: Workers,
    rest: Rc<Rest>,
    terminals: RefCell<BTreeMap<PtyId, Rc<Terminal>>>,
}

impl Terminals {
    pub(crate) fn new(
        environment: Rc<Environment>,
        cgroups: Rc<Cgroups>,
        workers: Workers,
        rest: Rc<Rest>,
    ) -> Rc<Self> {
        Rc::new(Self { environment, cgroups, workers, rest, terminals: RefCell::default() })
    }

    /// Opens a terminal; it stays open if the caller does not wait for the answer.
    pub(crate) async fn start(self: &Rc<Self>, start: PtyStart) -> Result<Rc<Terminal>> {
        if self.terminals.borrow().len() >= MAX_TERMINALS {
            let message = format!("{MAX_TERMINALS} terminals are open already; close one and try again");
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
        let size =
            Resize { cols: start.cols.unwrap_or(DEFAULT_COLS), rows: start.rows.unwrap_or(DEFAULT_ROWS) };
        check_size(&size)?;
        let terminals = Rc::clone(self);
        let task = tokio::task::spawn_local(async move { terminals.launch(size, start.shell).await });
        task.await.unwrap_or_else(|_| Err(Error::internal("the terminal's start was broken off")))
    }

    async fn launch(self: &Rc<Self>, size: Resize, shell: Option<String>) -> Result<Rc<Terminal>> {
        let id = self.new_id();
        let output =
            crate::output::Output::new(LOG_LIMITS, std::path::PathBuf::new(), self.workers.clone(), None);
        let terminal = Terminal::launch(id, size, shell, output, &self.environment, &self.cgroups).await?;
        self.terminals.borrow_mut().insert(terminal.id.clone(), Rc::clone(&terminal));
        let terminals = Rc::clone(self);
        let supervised = Rc::clone(&terminal);
        tokio::task::spawn_local(async move {
            supervised.supervise().await;
            terminals.terminals.borrow_mut().remove(&supervised.id);
            terminals.rest.note_work();
        });
        Ok(terminal)
    }

    fn new_id(&self) -> PtyId {
        loop {
            let id = PtyId::generate();
            if !self.terminals.borrow().contains_key(&id) {
                return id;
            }
        }
    }

    pub(crate) fn get(&self, id: &str) -> Result<Rc<Terminal>> {
        let unknown = || Error::not_found(format!("no terminal {id:?} is open here"));
        let id = id.parse().map_err(|_| unknown())?;
        self.terminals.borrow().get(&id).cloned().ok_or_else(unknown)
    }

    pub(crate) fn list(&self) -> Vec<Pty> {
        let mut list: Vec<_> = self.terminals.borrow().values().map(|terminal| terminal.view()).collect();
        list.sort_by(|a, b| (a.started_at_ms, &a.id).cmp(&(b.started_at_ms, &b.id)));
        list
    }

    pub(crate) fn running(&self) -> usize {
        self.terminals.borrow().len()
    }

    pub(crate) fn attach(&self, id: &str) -> Result<Reader> {
        let terminal = self.get(id)?;
        if terminal.output.clients() >= MAX_CLIENTS {
            let message = format!("{MAX_CLIENTS} clients are attached to this terminal already");
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
        Ok(terminal.output.reader(0, true))
    }

    pub(crate) fn resize(&self, id: &str, size: &Resize) -> Result<()> {
        check_size(size)?;
        self.get(id)?.resize(size)
    }

    /// Hangs up, and kills what is left a moment later.
    pub(crate) fn delete(&self, id: &str) -> Result<()> {
        let terminal = self.get(id)?;
        self.terminals.borrow_mut().remove(&terminal.id);
        terminal.hang_up();
        tokio::task::spawn_local(async move {
            let _ = tokio::time::timeout(FAREWELL, terminal.output.until(|| terminal.output.exit())).await;
            terminal.kill();
        });
        Ok(())
    }
}

fn check_size(size: &Resize) -> Result<()> {
    if size.cols == 0 || size.rows == 0 {
        return Err(Error::invalid("cols and rows must be at least 1"));
    }
    Ok(())
}
