//! Builds under way in this process. Each is one task that everybody who wants its image waits for; the first one starts it,
//! and that they all leave does not end it.
//!
//! ```text
//!   begin ─▶ running ─▶ ended: its row is `ready` or `failed`, and then it is no longer here
//!               └─ cancelled: its last name was deleted and nobody is [`Waiting`] for the image itself, or the image was
//!                  deleted, or the server stops (the row stays `building` for the next start)
//! ```

mod base;
mod failure;
mod import;
mod keys;
mod layers;
mod lines;
pub(crate) mod log;
mod places;
mod run;
mod steps;
mod workshop;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio_util::sync::CancellationToken;
use warren_types::CheckpointId;

pub(in crate::app::images) use import::follow as follow_import;
use log::BuildStream;
use places::Places;

use super::uploads::Uploads;

/// One build.
#[derive(Debug)]
pub(crate) struct Build {
    /// Of its row.
    pub image_id: String,
    pub log: BuildStream,
    pub cancel: CancellationToken,
    waiting: AtomicUsize,
    /// Checkpoints that it has taken; none once it has ended and was cleared up after.
    taken: Mutex<Option<Vec<CheckpointId>>>,
}

/// Somebody who waits for an image whatever it is called: the names that others give to it and take from it do not end the
/// build.
#[derive(Debug)]
pub(crate) struct Waiting(Arc<Build>);

/// Something that must not be removed while a build needs it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Needed {
    Template(String),
    Checkpoint(CheckpointId),
}

type Counts = Arc<Mutex<HashMap<Needed, usize>>>;

#[derive(Debug, Default)]
pub(crate) struct Builds {
    running: Mutex<HashMap<String, Arc<Build>>>,
    places: Places,
    pub(in crate::app::images) uploads: Uploads,
    needed: Counts,
}

/// Keeps things from being removed until it is dropped.
#[derive(Debug)]
pub(crate) struct Need {
    counts: Counts,
    all: Vec<Needed>,
}

// === impl Builds ===

impl Builds {
    fn running(&self) -> MutexGuard<'_, HashMap<String, Arc<Build>>> {
        self.running.lock().expect("nothing panics while it holds this lock")
    }

    pub(crate) fn find(&self, image_id: &str) -> Option<Arc<Build>> {
        self.running().get(image_id).cloned()
    }

    /// The build of an image; it is in here until [`Builds::end`].
    pub(crate) fn begin(&self, image_id: String) -> Arc<Build> {
        let build = Arc::new(Build::new(image_id.clone()));
        self.running().insert(image_id, Arc::clone(&build));
        build
    }

    fn end(&self, build: &Arc<Build>) {
        let mut running = self.running();
        if running.get(&build.image_id).is_some_and(|found| Arc::ptr_eq(found, build)) {
            running.remove(&build.image_id);
        }
    }

    pub(crate) fn need(&self) -> Need {
        Need { counts: Arc::clone(&self.needed), all: Vec::new() }
    }

    pub(crate) fn is_needed(&self, thing: &Needed) -> bool {
        self.needed.lock().expect("nothing panics while it holds this lock").contains_key(thing)
    }
}

// === impl Build ===

impl Build {
    pub(in crate::app::images) fn new(image_id: String) -> Self {
        Self {
            image_id,
            log: BuildStream::default(),
            cancel: CancellationToken::new(),
            waiting: AtomicUsize::new(0),
            taken: Mutex::new(Some(Vec::new())),
        }
    }

    fn taken(&self) -> MutexGuard<'_, Option<Vec<CheckpointId>>> {
        self.taken.lock().expect("nothing panics while it holds this lock")
    }

    /// Remembers a checkpoint, to be cleared up with the build; false when that is over.
    fn note_taken(&self, checkpoint: &CheckpointId) -> bool {
        self.taken().as_mut().map(|all| all.push(checkpoint.clone())).is_some()
    }

    pub(in crate::app::images) fn is_waited_for(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }
}

// === impl Waiting ===

impl Waiting {
    pub(in crate::app::images) fn begin(build: Arc<Build>) -> Self {
        build.waiting.fetch_add(1, Ordering::SeqCst);
        Self(build)
    }

    pub(in crate::app::images) fn build(&self) -> &Arc<Build> {
        &self.0
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

// === impl Need ===

impl Need {
    pub(crate) fn add(&mut self, thing: Needed) {
        let mut counts = self.counts.lock().expect("nothing panics while it holds this lock");
        *counts.entry(thing.clone()).or_default() += 1;
        self.all.push(thing);
    }
}

impl Drop for Need {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().expect("nothing panics while it holds this lock");
        for thing in self.all.drain(..) {
            if let Some(count) = counts.get_mut(&thing) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&thing);
                }
            }
        }
    }
}
