//! Creates under way in this process.
//!
//! While an id is in here its row and its sandbox belong to the create alone: the reconciler keeps off, and reports
//! about it wait here until the create has settled its row. An id leaves after its row is settled, never before.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};

use warren_node_api::Report;
use warren_types::{CheckpointId, SandboxId};

/// Checkpoints under way in this process: between their row and their node's first word of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct CheckpointsInFlight(Arc<Mutex<HashSet<CheckpointId>>>);

/// One of them; dropping it ends that.
#[derive(Debug)]
pub(crate) struct CheckpointFlight {
    all: CheckpointsInFlight,
    id: CheckpointId,
}

type Held = HashMap<SandboxId, Option<Report>>;

#[derive(Debug, Clone, Default)]
pub(crate) struct InFlight(Arc<Mutex<Held>>);

/// One create under way; dropping it ends that.
#[derive(Debug)]
pub(crate) struct Flight {
    all: InFlight,
    id: SandboxId,
}

// === impl InFlight ===

impl InFlight {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }

    /// `None` when a create of that id is under way already.
    pub(crate) fn begin(&self, id: &SandboxId) -> Option<Flight> {
        let mut held = self.held();
        if held.contains_key(id) {
            return None;
        }
        held.insert(id.clone(), None);
        Some(Flight { all: self.clone(), id: id.clone() })
    }

    pub(crate) fn contains(&self, id: &SandboxId) -> bool {
        self.held().contains_key(id)
    }

    /// Keeps a report for the create it concerns; false when there is none.
    pub(crate) fn keep(&self, report: &Report) -> bool {
        match self.held().get_mut(&report.id) {
            Some(kept) => {
                if kept.as_ref().is_none_or(|kept| kept.generation < report.generation) {
                    *kept = Some(report.clone());
                }
                true
            }
            None => false,
        }
    }
}

// === impl Flight ===

impl Flight {
    pub(crate) fn id(&self) -> &SandboxId {
        &self.id
    }

    /// Ends it; the newest report that came meanwhile is the caller's to apply.
    pub(crate) fn land(self) -> Option<Report> {
        self.all.held().remove(&self.id).flatten()
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.all.held().remove(&self.id);
    }
}

// === impl CheckpointsInFlight ===

impl CheckpointsInFlight {
    pub(crate) fn begin(&self, id: &CheckpointId) -> CheckpointFlight {
        self.held().insert(id.clone());
        CheckpointFlight { all: self.clone(), id: id.clone() }
    }

    pub(crate) fn contains(&self, id: &CheckpointId) -> bool {
        self.held().contains(id)
    }

    fn held(&self) -> MutexGuard<'_, HashSet<CheckpointId>> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }
}

impl Drop for CheckpointFlight {
    fn drop(&mut self) {
        self.all.held().remove(&self.id);
    }
}
