//! The open connections of one sandbox, and the requests under way on them, so that they can be ended.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use http::Method;
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
    /// A request, until the last byte of its answer, or the end of the WebSocket that it became. `unread`: the answer could
    /// be read and is not, because no secret was meant for the host.
    Request { method: Method, path: String, unread: bool },
    /// Nothing is read.
    Raw { tls: bool },
}

#[derive(Default)]
pub(crate) struct OpenConnections {
    next: AtomicU64,
    all: Mutex<HashMap<u64, (Open, CancellationToken)>>,
}

/// A place in the list, given up when dropped.
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

    pub(crate) fn close_one_unless(&self, held: &Held, keep: impl Fn(&Open) -> bool) {
        if self.lock().get(&held.id).is_some_and(|(open, _)| !keep(open)) {
            held.close.cancel();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, (Open, CancellationToken)>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Cancelled when it has to end, and when it has ended.
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
