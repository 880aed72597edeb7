//! What is done to sandboxes, who did it and what came of it: append-only records, one chain for each organisation.
//!
//! ```text
//!   audit.around(note, work)   record "begun" ─┐ side by side ┌─ work
//!                              both are there ─┴──────────────┴─▶ record "done", "refused" or "failed" ─▶ answer
//!   audit.note(note)           one record, written when this returns
//!   audit.tell(note)           one record, on its way
//! ```
//!
//! The record of what was asked for is written before the answer is given; the one of what came of it is on its way by then and
//! is lost only if this process is killed in the next moment. Nobody is answered whose request could not be recorded.
//!
//! To record something: `app.audit.note(live.note(Kind::ToolCall).with("tool", name)).await?`.
//! What goes into a detail is for the owner of the sandbox and bounded ([`detail`]): names of variables and secrets, never values.

pub(crate) mod detail;
pub(crate) mod export;
pub(crate) mod fold;
pub(crate) mod keep;
mod kind;
pub(crate) mod network;
mod note;
pub(crate) mod read;
mod recorder;
mod walk;
mod writer;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use serde_json::{Map, Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use warren_types::{Error, ErrorKind, ExecId};

use super::auth::{Caller, Live};
use crate::audit::seal::Seal;
use crate::store::audit::AuditStore;
use fold::Folds;
pub(crate) use kind::Kind;
use note::Entry;
pub(crate) use note::{Note, Who};
pub(crate) use recorder::Recorder;
pub(crate) use recorder::RecorderError;
pub(crate) use writer::Ends;

/// Records on their way to the file. A full queue makes those who add to it wait.
const QUEUE: usize = 4096;
/// Commands whose end was recorded lately; an end that is seen twice is recorded once.
const MAX_ENDED: usize = 10_000;

#[derive(Debug)]
enum Job {
    Write(Entry, Option<oneshot::Sender<Option<i64>>>),
    /// Answered when everything before it is written.
    Flush(oneshot::Sender<Option<i64>>),
}

/// An error that says whether something was refused or went wrong.
pub(crate) trait Refusal {
    fn kind(&self) -> ErrorKind;
}

impl Refusal for Error {
    fn kind(&self) -> ErrorKind {
        self.kind
    }
}

pub(crate) struct Audit {
    jobs: mpsc::Sender<Job>,
    store: AuditStore,
    /// Told after each group that was written.
    written: watch::Receiver<()>,
    ends: Ends,
    folds: Folds,
    ended: Arc<Mutex<HashSet<String>>>,
    seal: Seal,
    /// Up to where each chain was sealed by this process.
    sealed: tokio::sync::Mutex<HashMap<String, i64>>,
    reads: bool,
}

impl Audit {
    /// Starts to write. Records end up in `store`; it goes on until nobody can add any more.
    pub(crate) fn start(store: AuditStore, ends: Ends, seal: Seal, reads: bool) -> Self {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (told, written) = watch::channel(());
        tokio::spawn(writer::run(store.clone(), seal.clone(), ends.clone(), queue, told));
        Self {
            jobs,
            store,
            written,
            ends,
            folds: Folds::default(),
            ended: Arc::default(),
            seal,
            sealed: tokio::sync::Mutex::default(),
            reads,
        }
    }

    /// Whether reads of files are recorded.
    pub(crate) fn records_reads(&self) -> bool {
        self.reads
    }

    /// Writes a record; its number.
    pub(crate) async fn note(&self, note: Note) -> Result<i64, Error> {
        self.write(note).await.await
    }

    /// Hands a record over without waiting until it is written.
    pub(crate) async fn tell(&self, note: Note) {
        drop(self.write(note).await);
    }

    /// The same where nothing can wait: a task waits when the queue is full.
    pub(crate) fn tell_now(&self, note: Note) {
        send_now(&self.jobs, note);
    }

    /// Records what is asked for while it is done, and then what came of it.
    pub(crate) async fn around<T, E>(
        &self,
        note: Note,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E>
    where
        E: From<Error> + Refusal,
    {
        self.around_with(note, work, |_| Map::new()).await
    }

    /// The same with facts from what it gave.
    pub(crate) async fn around_with<T, E>(
        &self,
        note: Note,
        work: impl Future<Output = Result<T, E>>,
        facts: impl FnOnce(&T) -> Map<String, Value>,
    ) -> Result<T, E>
    where
        E: From<Error> + Refusal,
    {
        let mut open = Open { audit: self, note: Some(note.clone()), seq: None };
        let written = self.write(note.with("outcome", "begun")).await;
        let (seq, done) = tokio::join!(written, work);
        open.seq = seq.as_ref().ok().copied();
        let (outcome, facts) = match &done {
            Ok(value) => ("done", facts(value)),
            Err(error) => outcome_of(error),
        };
        if let Some(note) = open.note.take() {
            self.tell(note.ended(open.seq, outcome, facts)).await;
        }
        match seq {
            Ok(_) => done,
            Err(error) => Err(error.into()),
        }
    }

    /// Records how a command ended, when that is seen, once.
    pub(crate) fn exit_of(&self, live: &Live, exec: &ExecId) -> Exit {
        Exit {
            jobs: self.jobs.clone(),
            ended: Arc::clone(&self.ended),
            exec: format!("{}/{exec}", live.id()),
            note: live.note(Kind::Exec).with("outcome", "ended").with("exec", exec.as_str()),
        }
    }

    /// Waits until everything is written, also what is still being counted.
    pub(crate) async fn flush(&self) {
        for (note, count) in self.folds.take_all() {
            self.tell(note.with("count", count)).await;
        }
        self.flush_order().await;
    }

    /// Waits until everything that was handed over is written.
    pub(crate) async fn flush_order(&self) {
        let (done, answer) = oneshot::channel();
        if self.jobs.send(Job::Flush(done)).await.is_ok() {
            let _ = answer.await;
        }
    }

    /// Hands a record over; what is returned waits until it is written.
    async fn write(&self, note: Note) -> impl Future<Output = Result<i64, Error>> + use<> {
        let (done, answer) = oneshot::channel();
        let sent = self.jobs.send(Job::Write(note.entry(), Some(done))).await;
        async move {
            let seq = if sent.is_ok() { answer.await.ok().flatten() } else { None };
            seq.ok_or_else(|| {
                Error::internal("the server could not write its audit record of this; its log says why")
            })
        }
    }
}

fn send_now(jobs: &mpsc::Sender<Job>, note: Note) {
    let job = Job::Write(note.entry(), None);
    if let Err(mpsc::error::TrySendError::Full(job)) = jobs.try_send(job) {
        let jobs = jobs.clone();
        tokio::spawn(async move { jobs.send(job).await.is_ok() });
    }
}

/// The end of a command, which whoever is attached to it sees.
#[derive(Debug)]
pub(crate) struct Exit {
    jobs: mpsc::Sender<Job>,
    ended: Arc<Mutex<HashSet<String>>>,
    exec: String,
    note: Note,
}

impl Exit {
    pub(crate) fn seen(self, code: i32) {
        {
            let mut ended = self.ended.lock().expect("nothing panics while it holds this lock");
            if ended.len() >= MAX_ENDED {
                ended.clear();
            }
            if !ended.insert(self.exec) {
                return;
            }
        }
        send_now(&self.jobs, self.note.with("exitCode", code));
    }
}

/// Facts of what came of something.
pub(crate) fn facts<const N: usize>(facts: [(&str, Value); N]) -> Map<String, Value> {
    facts.into_iter().map(|(name, value)| (name.to_owned(), detail::bounded(value))).collect()
}

/// Whether a failure is an answer, or a fault. Its text stays out: it may come from a guest.
pub(crate) fn outcome_of(error: &impl Refusal) -> (&'static str, Map<String, Value>) {
    let kind = error.kind();
    let outcome = match kind {
        ErrorKind::Invalid
        | ErrorKind::Unauthenticated
        | ErrorKind::Forbidden
        | ErrorKind::NotFound
        | ErrorKind::Gone
        | ErrorKind::Conflict
        | ErrorKind::TooLarge
        | ErrorKind::LimitReached
        | ErrorKind::Unsupported => "refused",
        ErrorKind::Unavailable | ErrorKind::SandboxFailed | ErrorKind::Internal => "failed",
    };
    let mut facts = Map::new();
    facts.insert("error".to_owned(), json!(kind));
    (outcome, facts)
}

/// A change that is under way. If whoever waits for it leaves, what comes of it is not known here, and the record says so.
struct Open<'a> {
    audit: &'a Audit,
    note: Option<Note>,
    seq: Option<i64>,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        if let Some(note) = self.note.take() {
            self.audit.tell_now(note.ended(self.seq, "unknown", Map::new()));
        }
    }
}

// === impl Caller, Live ===

impl Caller {
    pub(crate) fn note(&self, kind: Kind) -> Note {
        self.who().note(kind)
    }
}

impl Live {
    pub(crate) fn note(&self, kind: Kind) -> Note {
        self.who().note(kind).of(self.id())
    }
}
