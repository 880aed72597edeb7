//! The output of one command or terminal, while it grows: its log, who reads it, and how it ended.
//!
//! ```text
//!   pump ──take_in──▶ whole characters ──▶ log ──poll_batch──▶ readers
//!     ▲                                     │ spill
//!     └── room ─────────────────────────────┴──▶ a worker thread and the file
//! ```
//!
//! A reader is registered with the log from its first byte to its last, so between what it replays and what it sees
//! live nothing is lost and nothing doubled.

use std::cell::{Cell, RefCell};
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;
use warren_guest_api::exec::Exit;

use crate::characters::Characters;
use crate::journal::CommandLog;
use crate::log::{Batch, Limits, Log, Read, ReaderId, Stream};
use crate::notice::{Notice, Waiter};
use crate::workers::Workers;

/// Finished logs up to this size may stay in memory.
const SMALL_LOG: usize = 64 * 1024;

/// A reader this close behind is served from memory; one further behind is waited for this long after each large read.
const CLOSE: u64 = 768 * 1024;
const PACE: Duration = Duration::from_millis(5);
/// How long the beginning of a character waits for its rest, at least; twice that at most. A writer that was stopped in the
/// middle of one by a full pipe has to get its turn on a busy machine meanwhile.
const HOLD: Duration = Duration::from_millis(250);

pub(crate) struct Output {
    characters: RefCell<Characters>,
    /// A task looks after what `characters` holds.
    releasing: Cell<bool>,
    log: RefCell<Log>,
    /// Grew or ended.
    changed: Rc<Notice>,
    /// The log may have room again.
    room: Rc<Notice>,
    clients: Cell<u32>,
    /// When a client last left.
    last_left: Cell<Option<Instant>>,
    clients_changed: Rc<Notice>,
    exit: Cell<Option<Exit>>,
    workers: Workers,
    /// Logs what comes, besides.
    logged: Option<Rc<CommandLog>>,
}

/// Takes output from some offset on. Dropping it leaves.
pub(crate) struct Reader {
    output: Rc<Output>,
    id: ReaderId,
    at: u64,
    is_client: bool,
    changed: Waiter,
    /// A stretch on its way from the file.
    coming: Option<oneshot::Receiver<io::Result<Batch>>>,
}

impl Output {
    pub(crate) fn new(
        limits: Limits,
        spill_path: PathBuf,
        workers: Workers,
        logged: Option<Rc<CommandLog>>,
    ) -> Rc<Self> {
        Rc::new(Self {
            characters: RefCell::default(),
            releasing: Cell::new(false),
            log: RefCell::new(Log::new(limits, spill_path)),
            changed: Rc::default(),
            room: Rc::default(),
            clients: Cell::new(0),
            last_left: Cell::new(None),
            clients_changed: Rc::default(),
            exit: Cell::new(None),
            workers,
            logged,
        })
    }

    /// One whose first `start` bytes are not there any more, and whose rest is about to be taken in.
    pub(crate) fn continued(limits: Limits, spill_path: PathBuf, workers: Workers, start: u64) -> Rc<Self> {
        let output = Self::new(limits, spill_path, workers, None);
        output.log.borrow_mut().start_at(start);
        output
    }

    pub(crate) fn start(&self) -> u64 {
        self.log.borrow().start()
    }

    pub(crate) fn end(&self) -> u64 {
        self.log.borrow().end()
    }

    /// Where a replay of the newest `most` bytes begins, or a little later: between two characters.
    pub(crate) fn replay_start(&self, most: u64) -> u64 {
        self.log.borrow().seam(self.end().saturating_sub(most))
    }

    pub(crate) fn memory(&self) -> usize {
        self.log.borrow().memory()
    }

    pub(crate) fn file_size(&self) -> u64 {
        self.log.borrow().file_size()
    }

    /// How many bytes may be taken in now.
    pub(crate) fn room(&self) -> usize {
        self.log.borrow().room()
    }

    /// Waits until at least one byte may be taken in.
    pub(crate) async fn until_room(&self) {
        self.room.until(|| (self.room() > 0).then_some(())).await;
    }

    /// Gives readers a moment to catch up, so that they are served from memory and not from the file. One that has
    /// stopped reading delays the command a little until the log is full.
    pub(crate) async fn pace(&self) {
        let is_close = || (self.log.borrow().lag() <= CLOSE).then_some(());
        if is_close().is_none() {
            let _ = tokio::time::timeout(PACE, self.room.until(is_close)).await;
        }
    }

    /// Waits until `look` has an answer, asking again whenever output came or the end was reached.
    pub(crate) async fn until<T>(&self, look: impl FnMut() -> Option<T>) -> T {
        self.changed.until(look).await
    }

    /// Adds output; at most [`Output::room`] bytes.
    pub(crate) fn take_in(self: &Rc<Self>, stream: Stream, bytes: Bytes) {
        if let Some(logged) = &self.logged {
            logged.take(stream, &bytes);
        }
        let mut characters = self.characters.borrow_mut();
        characters.pass(stream, bytes, |bytes| self.log.borrow_mut().append(stream, bytes));
        if characters.held().is_some() && !self.releasing.replace(true) {
            let output = Rc::clone(self);
            tokio::task::spawn_local(async move { output.release_in_time().await });
        }
        drop(characters);
        self.changed.notify();
        self.spill();
    }

    /// Lets go of beginnings of characters whose rest does not come, until none is held.
    async fn release_in_time(self: &Rc<Self>) {
        loop {
            let Some(held) = self.characters.borrow().held() else { break };
            tokio::time::sleep(HOLD).await;
            if let Some((stream, bytes)) = self.characters.borrow_mut().release(held) {
                self.log.borrow_mut().append(stream, bytes);
                self.changed.notify();
                self.spill();
            }
        }
        self.releasing.set(false);
    }

    pub(crate) fn exit(&self) -> Option<Exit> {
        self.exit.get()
    }

    /// There will be no more output.
    pub(crate) fn finish(self: &Rc<Self>, exit: Exit) {
        if let Some(logged) = &self.logged {
            logged.finish(exit);
        }
        self.exit.set(Some(exit));
        {
            let mut log = self.log.borrow_mut();
            let mut characters = self.characters.borrow_mut();
            while let Some((stream, bytes)) = characters.held().and_then(|held| characters.release(held)) {
                log.append(stream, bytes);
            }
            if log.memory() > SMALL_LOG {
                log.flush();
            }
        }
        self.changed.notify();
        self.spill();
    }

    pub(crate) fn clients(&self) -> u32 {
        self.clients.get()
    }

    /// Waits until the last client has been gone for that long. One that nobody has attached to has no last client.
    pub(crate) async fn until_abandoned(&self, time: Duration) {
        loop {
            let gone = || self.last_left.get().filter(|_| self.clients.get() == 0);
            let left = self.clients_changed.until(gone).await;
            tokio::select! {
                () = tokio::time::sleep_until(left + time) => return,
                () = self.clients_changed.until(|| (gone() != Some(left)).then_some(())) => {}
            }
        }
    }

    /// A reader from `offset` on, or from the nearest there is.
    pub(crate) fn reader(self: &Rc<Self>, offset: u64, is_client: bool) -> Reader {
        let (id, at) = self.log.borrow_mut().attach(offset);
        if is_client {
            self.clients.set(self.clients.get() + 1);
            self.clients_changed.notify();
        }
        Reader { output: Rc::clone(self), id, at, is_client, changed: self.changed.waiter(), coming: None }
    }

    /// Starts moving older output to the file, if that is due and not under way.
    fn spill(self: &Rc<Self>) {
        let Some(mut job) = self.log.borrow_mut().take_spill() else { return };
        let done = self.workers.run(move || {
            let result = job.run();
            (job, result)
        });
        let output = Rc::clone(self);
        tokio::task::spawn_local(async move {
            if let Ok((job, result)) = done.await {
                output.log.borrow_mut().spilled(job, &result);
                output.room.notify();
                output.spill();
            }
        });
    }
}

impl Reader {
    /// Offset of the next byte.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    pub(crate) fn output(&self) -> &Rc<Output> {
        &self.output
    }

    /// The next stretch of output before `to`; `None` when that or the end is reached.
    pub(crate) fn poll_batch(
        &mut self,
        to: u64,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Batch>>> {
        if self.coming.is_none() {
            let log = self.output.log.borrow();
            let batch = match log.read(self.at, to) {
                Read::Now(batch) => Some(batch),
                Read::Later(job) => {
                    self.coming = Some(self.output.workers.run(move || job.run()));
                    None
                }
                Read::Nothing if self.at >= to || self.output.exit.get().is_some() => {
                    return Poll::Ready(None);
                }
                Read::Nothing => {
                    self.changed.register(context);
                    return Poll::Pending;
                }
            };
            drop(log);
            if let Some(batch) = batch {
                self.advance(batch.output());
                return Poll::Ready(Some(Ok(batch)));
            }
        }
        let Some(coming) = &mut self.coming else { return Poll::Pending };
        let result = ready!(Pin::new(coming).poll(context));
        self.coming = None;
        let result = result.unwrap_or_else(|_| Err(io::Error::other("the kept output could not be read")));
        if let Ok(batch) = &result {
            self.advance(batch.output());
        }
        Poll::Ready(Some(result))
    }

    fn advance(&mut self, count: u64) {
        self.at += count;
        self.output.log.borrow_mut().advance(self.id, self.at);
        self.output.room.notify();
        self.output.spill();
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.output.log.borrow_mut().detach(self.id);
        if self.is_client {
            self.output.clients.set(self.output.clients.get().saturating_sub(1));
            self.output.last_left.set(Some(Instant::now()));
            self.output.clients_changed.notify();
        }
        self.output.room.notify();
        self.output.spill();
    }
}
