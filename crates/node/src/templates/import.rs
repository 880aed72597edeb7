//! Who waits for which import.
//!
//! ```text
//!   follower ─ ask for it, or read the archive ─┬─ it is there ──────────────────────────▸ template
//!   follower ─ …                                └─ joined ▸ one import ▸ lines of how far ▸ template, or error
//! ```
//!
//! A follower is a request: what it waits for is dropped with it. The import itself is a task that lives for as long as
//! somebody holds its [`Ticket`].

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use axum::body::Body;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use tokio::sync::{mpsc, watch};
use tokio_util::io::StreamReader;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, info, info_span};
use warren_images::{ImageError, Login, Reference, Resolved, Source, Step, read_archive};
use warren_node_api::{Import, TemplateLine, TemplateReport};
use warren_types::{Error, ErrorKind};

use super::make::Work;
use super::{Templates, name_of};

/// Lines that a client may be behind.
const LINES: usize = 4;
/// Between two lines of how far it is.
const LINE_EVERY: Duration = Duration::from_millis(150);

/// What is to be brought here.
pub(crate) enum Wanted {
    Registry {
        reference: Reference,
        /// What the reference was found to stand for.
        digest: String,
        login: Option<Login>,
    },
    /// A tar stream.
    Archive(Body),
}

/// Where an image comes from that is not here.
pub(super) enum Origin {
    Registry(Box<Resolved>),
    /// Its layers are in this folder.
    Archive(Box<Source>, Work),
}

/// Imports under way, by name of the template.
#[derive(Default)]
pub(super) struct Imports(Mutex<HashMap<String, Running>>);

struct Running {
    progress: watch::Receiver<Progress>,
    ticket: Weak<Ticket>,
}

/// What those who wait are told.
#[derive(Debug, Clone)]
enum Progress {
    Step(Import),
    Done(Result<Box<TemplateReport>, Error>),
}

/// Somebody waits. The last one to leave calls the import off.
pub(super) struct Ticket(Signal);

/// How the maker of a template is told to give up, and tells how far it is.
#[derive(Clone)]
pub(super) struct Signal {
    pub(super) called_off: Arc<AtomicBool>,
    pub(super) cancelled: CancellationToken,
}

/// Tells how far an import is.
#[derive(Clone)]
pub(super) struct Meter(watch::Sender<Progress>);

impl Templates {
    /// Brings an image here, and tells how far that is. Dropping the stream calls it off, unless somebody else waits for
    /// the same image.
    pub(crate) fn import(self: &Arc<Self>, wanted: Wanted) -> impl Stream<Item = TemplateLine> + use<> {
        let (lines, receiver) = mpsc::channel(LINES);
        let templates = self.clone();
        let follower = tokio::spawn(async move {
            let last = match templates.follow(wanted, &lines).await {
                Ok(report) => TemplateLine::Template(report),
                Err(error) => TemplateLine::Error(error),
            };
            let _ = lines.send(last).await;
        });
        let state = (receiver, AbortOnDropHandle::new(follower));
        stream::unfold(state, async |(mut receiver, follower)| {
            let line = receiver.recv().await?;
            Some((line, (receiver, follower)))
        })
    }

    /// Digest of what a reference stands for now.
    pub(crate) async fn resolve(
        &self,
        reference: &Reference,
        login: Option<&Login>,
    ) -> Result<String, Error> {
        self.registries.resolve(reference, login).await.map(|resolved| resolved.digest).map_err(explain)
    }

    async fn follow(
        self: &Arc<Self>,
        wanted: Wanted,
        lines: &mpsc::Sender<TemplateLine>,
    ) -> Result<Box<TemplateReport>, Error> {
        if let Wanted::Registry { digest, .. } = &wanted
            && let Some(report) = self.report_of(&name_of(digest))
        {
            return Ok(report);
        }
        let (digest, origin) = self.open_origin(wanted, lines).await?;
        let name = name_of(&digest);
        if let Some(report) = self.report_of(&name) {
            return Ok(report);
        }
        let (mut progress, _ticket) = self.join(&name, origin);
        let mut told = None;
        loop {
            let now = progress.borrow_and_update().clone();
            match now {
                Progress::Done(outcome) => return outcome,
                // One that does not keep up is told less.
                Progress::Step(step) if told.as_ref() != Some(&step) => {
                    let _ = lines.try_send(TemplateLine::Progress(step.clone()));
                    told = Some(step);
                }
                Progress::Step(_) => {}
            }
            // The end is told at once, what comes before only so often.
            let ended = progress.wait_for(|progress| matches!(progress, Progress::Done(_)));
            if let Ok(Err(_)) = tokio::time::timeout(LINE_EVERY, ended).await {
                return Err(Error::internal("an import was cut off"));
            }
        }
    }

    /// The digest of what is wanted, and how to have all of it.
    async fn open_origin(
        &self,
        wanted: Wanted,
        lines: &mpsc::Sender<TemplateLine>,
    ) -> Result<(String, Origin), Error> {
        match wanted {
            Wanted::Registry { reference, digest, login } => {
                let message = format!("asking for {reference}");
                let first = Import { message, done_bytes: 0, total_bytes: None };
                let _ = lines.send(TemplateLine::Progress(first)).await;
                let exact = reference.at(&digest).map_err(explain)?;
                let mut resolved = self.registries.resolve(&exact, login.as_ref()).await.map_err(explain)?;
                resolved.reference = reference;
                Ok((resolved.digest.clone(), Origin::Registry(Box::new(resolved))))
            }
            Wanted::Archive(body) => {
                let work = Work::begin(&self.folder, "archive").map_err(|error| no_folder(&error))?;
                let bytes = body.into_data_stream().map_err(io::Error::other);
                let told = |step: Step| drop(lines.try_send(TemplateLine::Progress(import_of(step))));
                let (stream, layers) = (StreamReader::new(bytes.boxed()), work.layers());
                let source = read_archive(stream, &layers, &self.limits, told).await.map_err(explain)?;
                Ok((source.digest.clone(), Origin::Archive(Box::new(source), work)))
            }
        }
    }

    fn report_of(&self, name: &str) -> Option<Box<TemplateReport>> {
        self.lock().get(name).map(|manifest| Box::new(manifest.report.clone()))
    }

    /// Waits for the import of that name; begins it if there is none.
    fn join(self: &Arc<Self>, name: &str, origin: Origin) -> (watch::Receiver<Progress>, Arc<Ticket>) {
        let mut imports = self.imports.lock();
        if let Some(running) = imports.get(name)
            && let Some(ticket) = running.ticket.upgrade()
        {
            return (running.progress.clone(), ticket);
        }
        let begun = Import { message: "beginning".into(), done_bytes: 0, total_bytes: None };
        let (sender, progress) = watch::channel(Progress::Step(begun));
        let ticket =
            Arc::new(Ticket(Signal { called_off: Arc::default(), cancelled: CancellationToken::new() }));
        let signal = ticket.0.clone();
        let running = Running { progress: progress.clone(), ticket: Arc::downgrade(&ticket) };
        imports.insert(name.to_owned(), running);
        drop(imports);
        let (templates, name) = (self.clone(), name.to_owned());
        let span = info_span!(parent: None, "import", name);
        let making = async move {
            let meter = Meter(sender);
            let made = templates.make(&name, origin, &signal, &meter).await;
            match &made {
                Ok(report) => info!(bytes = report.size_bytes, "a template was made"),
                Err(error) => info!(%error, "a template could not be made"),
            }
            templates.imports.end(&name, &signal);
            let _ = meter.0.send(Progress::Done(made.map(Box::new)));
        };
        tokio::spawn(making.instrument(span));
        (progress, ticket)
    }
}

impl Imports {
    /// Takes out an import that has ended, if it is still the one of that name.
    fn end(&self, name: &str, signal: &Signal) {
        let mut imports = self.lock();
        let is_this = |running: &Running| {
            let ticket = running.ticket.upgrade();
            ticket.is_none_or(|ticket| Arc::ptr_eq(&ticket.0.called_off, &signal.called_off))
        };
        if imports.get(name).is_some_and(is_this) {
            imports.remove(name);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Running>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.called_off.store(true, Ordering::Relaxed);
        self.0.cancelled.cancel();
    }
}

impl Meter {
    pub(super) fn tell(&self, step: Step) {
        self.0.send_replace(Progress::Step(import_of(step)));
    }

    /// The same where nothing is counted.
    pub(super) fn say(&self, message: &str) {
        self.tell(Step { message: message.to_owned(), done_bytes: 0, total_bytes: None });
    }
}

fn import_of(Step { message, done_bytes, total_bytes }: Step) -> Import {
    Import { message, done_bytes, total_bytes }
}

pub(super) fn no_folder(error: &io::Error) -> Error {
    Error::unavailable(format!("there is no place to import an image to: {error}"))
}

/// What became of an image, for whoever asked for it.
#[expect(clippy::needless_pass_by_value, reason = "it is what a failed call hands over")]
pub(super) fn explain(error: ImageError) -> Error {
    let kind = match &error {
        ImageError::Reference { .. }
        | ImageError::Denied { .. }
        | ImageError::Unreachable { .. }
        | ImageError::Unsupported(_)
        | ImageError::Broken(_) => ErrorKind::Invalid,
        ImageError::NotFound { .. } => ErrorKind::NotFound,
        ImageError::TooLarge(_) | ImageError::NoSpace(_) => ErrorKind::TooLarge,
        ImageError::Network { .. }
        | ImageError::Stalled { .. }
        | ImageError::Busy { .. }
        | ImageError::Down { .. }
        | ImageError::Registry { .. }
        | ImageError::CalledOff
        | ImageError::Io { .. } => ErrorKind::Unavailable,
    };
    let text = match &error {
        ImageError::Io { source, .. } => format!("{error}: {source}"),
        _ => error.to_string(),
    };
    Error::new(kind, text)
}
