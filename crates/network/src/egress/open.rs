//! The open connections of one sandbox, so that they can be closed.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

/// What is known of one.
#[derive(Debug, Clone)]
pub(crate) struct Open {
    pub(crate) host: Option<String>,
    pub(crate) address: Option<Ipv4Addr>,
    pub(crate) port: u16,
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Its first bytes are still to come.
    Undecided,
    /// Its requests are only told why they are refused.
    Refused,
    /// Every request is read.
    Inspected,
    /// A WebSocket that a request of this path became.
    Upgraded { path: String },
    /// Nothing is read.
    Raw { tls: bool },
}

#[derive(Default)]
pub(crate) struct OpenConnections {
    next: AtomicU64,
    all: Mutex<HashMap<u64, (Open, CancellationToken)>>,
}

/// One connection's place in the list, given up when dropped.
pub(crate) struct Held {
    id: u64,
    all: Arc<OpenConnections>,
    close: CancellationToken,
}

impl OpenConnections {
    pub(crate) fn add(self: &Arc<Self>, open: Open) -> Held {
        let (id, close) = (self.next.fetch_add(1, Ordering::Relaxed), CancellationToken::new());
        self.lock().insert(id, (open, close.clone()));
        Held { id, all: self.clone(), close }
    }

    pub(crate) fn change(&self, held: &Held, change: impl FnOnce(&mut Open)) {
        if let Some((open, _)) = self.lock().get_mut(&held.id) {
            change(open);
        }
    }

    pub(crate) fn close_unless(&self, keep: impl Fn(&Open) -> bool) {
        for (_, close) in self.lock().values().filter(|(open, _)| !keep(open)) {
            close.cancel();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, (Open, CancellationToken)>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Cancelled when the connection has to end, and when it has ended.
    pub(crate) fn close(&self) -> &CancellationToken {
        &self.close
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.all.lock().remove(&self.id);
        self.close.cancel();
    }
}
