//! What the sandbox has logged: the lines of its commands, how they ended, the text files under `/var/log`. Terminals are
//! not logged.
//!
//! ```text
//!   commands ──▶ intake ─┐                                      ┌─▶ history ─┐
//!                        ├─▶ pending ──▶ store, on a thread ──▶ files        ├─▶ stream
//!   /var/log ──▶ intake ─┘              within FLUSH            └─▶ live ────┘
//! ```
//!
//! Rows are written a moment after they came and always before anybody reads, so readers need nothing but the files: one
//! that is slow, or late, reads the same rows. What is logged is bounded three times: what one source may log in a time
//! ([`intake`]), what may wait in memory ([`MAX_PENDING`]), what is kept ([`store`]). What falls out is counted, and a row
//! says so. Nothing here holds up a command or fails one, and nothing happens while nothing is logged.

mod command;
mod intake;
mod store;
mod stream;
pub(crate) mod var_log;

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use warren_guest_api::logs::Source;

pub(crate) use self::command::CommandLog;
use self::store::{Batch, Entry, FILE_BYTES, Origin, Position, Store};
use crate::clock::now_ms;
use crate::notice::Notice;
use crate::workers::Workers;

/// Rows are written this long after the first of them came, and sooner while somebody follows.
const FLUSH: Duration = Duration::from_millis(200);
const FLUSH_FOLLOWED: Duration = Duration::from_millis(20);
/// Bytes of rows that are written without waiting longer, and that may wait at all.
const WRITE_AT: usize = 256 * 1024;
const MAX_PENDING: usize = 4 * 1024 * 1024;
/// What a row takes besides its line.
const ENTRY_BYTES: usize = size_of::<Entry>();

pub(crate) struct Journal {
    folder: PathBuf,
    store: Arc<Mutex<Store>>,
    /// Writes. One thread, so that rows stay in order.
    keeper: Workers,
    /// Read.
    readers: Workers,
    pending: RefCell<Batch>,
    pending_bytes: Cell<usize>,
    scheduled: Cell<bool>,
    writing: Cell<bool>,
    /// Counts what was asked to be written, and of that what was.
    asked: Cell<u64>,
    done: Cell<u64>,
    /// Up to here somebody waits.
    wanted: Cell<u64>,
    end: Cell<Position>,
    /// Something was written.
    changed: Rc<Notice>,
    streams: Rc<Cell<usize>>,
    followers: Rc<Cell<usize>>,
}

impl Journal {
    pub(crate) fn new(folder: PathBuf, keeper: Workers, readers: Workers) -> Rc<Self> {
        Rc::new(Self {
            store: Arc::new(Mutex::new(Store::new(folder.clone(), FILE_BYTES))),
            folder,
            keeper,
            readers,
            pending: RefCell::default(),
            pending_bytes: Cell::new(0),
            scheduled: Cell::new(false),
            writing: Cell::new(false),
            asked: Cell::new(0),
            done: Cell::new(0),
            wanted: Cell::new(0),
            end: Cell::default(),
            changed: Rc::default(),
            streams: Rc::default(),
            followers: Rc::default(),
        })
    }

    /// Adds a row; it is dropped, and counted, if too many wait.
    fn add(self: &Rc<Self>, entry: Entry) {
        let bytes = entry.line.len() + ENTRY_BYTES;
        let mut pending = self.pending.borrow_mut();
        if self.pending_bytes.get() + bytes > MAX_PENDING {
            pending.overrun += 1;
        } else {
            self.pending_bytes.set(self.pending_bytes.get() + bytes);
            pending.entries.push(entry);
        }
        drop(pending);
        self.ask();
    }

    /// Adds a row about the journal itself.
    fn note(self: &Rc<Self>, line: String) {
        let (time_ms, line) = (now_ms(), line.into_bytes());
        self.add(Entry { time_ms, source: Source::Agent, line, origin: Origin::Journal, exit_code: None });
    }

    /// Has this written down once the rows added so far are written.
    fn save_positions(self: &Rc<Self>, positions: Vec<u8>) {
        self.pending.borrow_mut().positions = Some(positions);
        self.ask();
    }

    fn ask(self: &Rc<Self>) {
        self.asked.set(self.asked.get() + 1);
        self.schedule();
    }

    fn schedule(self: &Rc<Self>) {
        if self.pending_bytes.get() >= WRITE_AT {
            self.write();
        } else if !self.writing.get() && !self.scheduled.replace(true) {
            let delay = if self.followers.get() > 0 { FLUSH_FOLLOWED } else { FLUSH };
            let journal = Rc::clone(self);
            tokio::task::spawn_local(async move {
                tokio::time::sleep(delay).await;
                journal.scheduled.set(false);
                journal.write();
            });
        }
    }

    /// Starts writing what waits, unless that is under way.
    fn write(self: &Rc<Self>) {
        if self.done.get() == self.asked.get() || self.writing.replace(true) {
            return;
        }
        let batch = self.pending.take();
        self.pending_bytes.set(0);
        let asked = self.asked.get();
        let store = Arc::clone(&self.store);
        let written = self.keeper.run(move || {
            // A store is whole after any panic: it looks at its file before it writes.
            store.lock().unwrap_or_else(PoisonError::into_inner).write(&batch)
        });
        let journal = Rc::clone(self);
        tokio::task::spawn_local(async move {
            if let Ok(end) = written.await {
                journal.end.set(end);
            }
            journal.writing.set(false);
            journal.done.set(asked);
            journal.changed.notify();
            if journal.done.get() < journal.wanted.get() || journal.pending_bytes.get() >= WRITE_AT {
                journal.write();
            } else if journal.done.get() < journal.asked.get() {
                journal.schedule();
            }
        });
    }

    /// Writes everything that was added before this call, and what could not be written before; where the journal ends
    /// then.
    async fn written(self: &Rc<Self>) -> Position {
        self.asked.set(self.asked.get() + 1);
        let goal = self.asked.get();
        self.wanted.set(goal);
        self.write();
        self.changed.until(|| (self.done.get() >= goal).then(|| self.end.get())).await
    }
}
