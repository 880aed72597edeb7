//! What a sandbox may reach, and the secrets that are put in for it on the way.
//!
//! ```text
//!   request ─▶ own policy, a store's name ─┐
//!   checkpoint ─▶ what a fork inherits ────┴▶ prepare ─▶ tokens, policy ─▶ row and node
//!   a store, a secret or a policy changes ──▶ push ────▶ node, now or by the sweep
//! ```
//!
//! What is stored counts: the node is told what follows from it, whole each time, and in order ([`Changes::turn`]), so
//! that telling it once more is never wrong. A token belongs to one secret and ends with it. A sandbox gets its tokens
//! when it is made and no more later; values, hosts and lists of stores are as they are now.

mod environment;
pub(crate) mod policy;
pub(crate) mod prepare;
pub(crate) mod push;
pub(crate) mod request;
mod view;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::MutexGuard;
use warren_types::{OrgId, SandboxId};

pub(crate) use environment::{add_gateway, remove_given};

/// Sandboxes are told one at a time within each of these.
const LANES: usize = 64;

/// Which of the two the node is to be told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Told {
    pub secrets: bool,
    pub policy: bool,
}

/// What nodes have not been told yet, and the order in which they are.
#[derive(Debug)]
pub(crate) struct Changes {
    /// Grows with every change of stores and secrets, after it is stored.
    made: AtomicU64,
    untold: Mutex<HashMap<SandboxId, (OrgId, Told)>>,
    lanes: [tokio::sync::Mutex<()>; LANES],
}

// === impl Told ===

impl Told {
    pub(crate) const SECRETS: Self = Self { secrets: true, policy: false };
    pub(crate) const POLICY: Self = Self { secrets: false, policy: true };
    pub(crate) const BOTH: Self = Self { secrets: true, policy: true };
}

// === impl Changes ===

impl Default for Changes {
    fn default() -> Self {
        Self {
            made: AtomicU64::new(0),
            untold: Mutex::default(),
            lanes: [const { tokio::sync::Mutex::const_new(()) }; LANES],
        }
    }
}

impl Changes {
    pub(crate) fn now(&self) -> u64 {
        self.made.load(Ordering::SeqCst)
    }

    /// To be called when a change is stored, before anybody looks for the sandboxes it concerns.
    pub(crate) fn count(&self) {
        self.made.fetch_add(1, Ordering::SeqCst);
    }

    /// The turn of whoever reads what a sandbox is to have and tells its node: who comes later has read later.
    async fn turn(&self, id: &SandboxId) -> MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        id.hash(&mut hasher);
        let lane = usize::try_from(hasher.finish() % LANES as u64).unwrap_or(0);
        self.lanes[lane].lock().await
    }

    fn put_off(&self, org: &OrgId, id: &SandboxId, told: Told) {
        let mut untold = self.untold.lock().expect("nothing panics while it holds this lock");
        let (_, all) = untold.entry(id.clone()).or_insert_with(|| (org.clone(), Told::default()));
        *all = Told { secrets: all.secrets || told.secrets, policy: all.policy || told.policy };
    }

    /// What is to be told, which then counts as told.
    fn take(&self, id: &SandboxId) -> Told {
        let mut untold = self.untold.lock().expect("nothing panics while it holds this lock");
        untold.remove(id).map(|(_, told)| told).unwrap_or_default()
    }

    fn is_untold(&self, id: &SandboxId) -> bool {
        self.untold.lock().expect("nothing panics while it holds this lock").contains_key(id)
    }

    fn all_untold(&self) -> Vec<(OrgId, SandboxId)> {
        let untold = self.untold.lock().expect("nothing panics while it holds this lock");
        untold.iter().map(|(id, (org, _))| (org.clone(), id.clone())).collect()
    }
}
