//! One running sandbox, as the gateway and the resolver see it: its policy, its secrets, the addresses its names stood
//! for, its open connections, and what was refused to it.
//!
//! Policy and secrets are replaced whole. A connection or a request that the new ones do not allow as it is is ended; every
//! request is judged by those in force when it begins, and tokens and values are looked for in bodies by those of the moment.

use std::net::Ipv4Addr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use http::Method;
use tokio::sync::{Notify, Semaphore};
use warren_node_api::{EgressReport, NetworkEventKind, SecretGrant};
use warren_types::{EgressMode, EgressPolicy, SandboxId};

use super::blocked::BlockedLog;
use super::budget::Budget;
use super::events::EventLog;
use super::meter::Meter;
use super::now_ms;
use super::open::{Held, Kind, Open, OpenConnections};
use super::pins::Pins;
use super::secrets::{Former, GRACE, Secrets};
use crate::slots::Limits;

/// Open connections of one sandbox.
const MAX_CONNECTIONS: usize = 1024;
/// With more of them open each has less memory.
const CROWD: usize = 32;
const WEB_PORTS: [u16; 2] = [80, 443];

/// Shared by gateway and resolver.
pub struct Session {
    id: SandboxId,
    policy: ArcSwap<EgressPolicy>,
    /// The sandbox holds tokens, whether or not their values are known yet.
    sealed: bool,
    /// None until the first grant.
    secrets: ArcSwapOption<Secrets>,
    granted: Notify,
    pins: Pins,
    blocked: BlockedLog,
    events: OnceLock<Arc<EventLog>>,
    open: Arc<OpenConnections>,
    pub(crate) places: Arc<Semaphore>,
    most: usize,
    pub(crate) meter: Arc<Meter>,
    /// Memory for bodies that are held whole.
    pub(crate) bodies: Arc<Semaphore>,
}

impl Session {
    /// `sealed`: the sandbox has secrets; until [`Self::set_grant`] is called nothing sealed goes out.
    #[must_use]
    pub fn new(id: SandboxId, policy: EgressPolicy, sealed: bool, limits: Limits) -> Arc<Self> {
        let connections = usize::try_from(limits.connections).unwrap_or(usize::MAX);
        Arc::new(Self {
            id,
            policy: ArcSwap::from_pointee(policy),
            sealed,
            secrets: ArcSwapOption::empty(),
            granted: Notify::new(),
            pins: Pins::default(),
            blocked: BlockedLog::default(),
            events: OnceLock::new(),
            open: Arc::default(),
            places: Arc::new(Semaphore::new(connections.min(MAX_CONNECTIONS))),
            most: connections.min(MAX_CONNECTIONS),
            meter: Meter::new(limits.megabytes_per_second),
            bodies: Budget::of_one(),
        })
    }

    /// Counts at once; open connections that are no longer allowed are closed.
    pub fn set_policy(&self, policy: EgressPolicy) {
        self.policy.store(Arc::new(policy));
        self.close_what_is_not_allowed();
    }

    /// Counts at once, in bodies and WebSockets that are under way too. What is passed through unread from a host that now has
    /// a secret is ended, so that it comes again.
    pub fn set_grant(&self, grant: SecretGrant) {
        let granted: Vec<_> = grant.secrets.into_iter().map(Arc::new).collect();
        let (now, time) = (Instant::now(), now_ms());
        let former = grant.former.into_iter().map(|former| Former {
            secret: Arc::new(former.secret),
            until: now + Duration::from_millis(former.until_ms.saturating_sub(time)).min(GRACE),
        });
        let former: Vec<_> = former.collect();
        self.secrets
            .rcu(|before| Some(Arc::new(Secrets::new(granted.clone(), &former, before.as_deref(), now))));
        self.granted.notify_waiters();
        self.close_what_is_not_allowed();
    }

    pub fn policy(&self) -> Arc<EgressPolicy> {
        self.policy.load_full()
    }

    /// Whether its connections have to come through the gateway.
    pub fn is_gated(&self) -> bool {
        let secrets = self.sealed || self.secrets.load().as_ref().is_some_and(|secrets| !secrets.is_empty());
        secrets || self.policy.load().mode == EgressMode::Allowlist
    }

    /// Says which addresses a name stands for, before its sandbox is told. Kept for `ttl`, and 10 minutes at least.
    pub fn pin(&self, name: &str, addresses: &[Ipv4Addr], ttl: Duration) {
        self.pins.add(name, addresses, ttl);
    }

    /// `port` is 0 for a question for a name.
    pub fn note_blocked(&self, host: &str, port: u16, reason: &str) {
        self.note_event(NetworkEventKind::Refused { rule: reason.to_owned() }, host, port);
        self.blocked.note(host, port, reason);
    }

    pub fn report(&self) -> EgressReport {
        self.blocked.report()
    }

    /// Where its events go from now on.
    pub(crate) fn tell(&self, events: Arc<EventLog>) {
        // One that was attached before keeps the log of the same gateway.
        let _ = self.events.set(events);
    }

    /// `method`: of a request that was read.
    pub(crate) fn note_allowed(&self, host: &str, port: u16, method: Option<&Method>) {
        let method = method.map(|method| word_of(method).to_owned());
        self.note_event(NetworkEventKind::Allowed { method }, host, port);
    }

    pub(crate) fn note_event(&self, kind: NetworkEventKind, host: &str, port: u16) {
        if let Some(events) = self.events.get() {
            events.note(&self.id, kind, host, port);
        }
    }

    /// Whether it has many connections open.
    pub(crate) fn is_crowded(&self) -> bool {
        self.connections() > CROWD
    }

    /// How many it has open.
    pub(crate) fn connections(&self) -> usize {
        self.most.saturating_sub(self.places.available_permits())
    }

    pub fn id(&self) -> &SandboxId {
        &self.id
    }

    pub(crate) fn is_pinned(&self, name: &str, address: Ipv4Addr) -> bool {
        self.pins.has(name, address)
    }

    /// None while the values are not known.
    pub(crate) fn secrets(&self) -> Option<Arc<Secrets>> {
        self.secrets.load_full()
    }

    /// Whether other secrets are in force than the `known` ones, which become those.
    pub(crate) fn renew(&self, known: &mut Option<Arc<Secrets>>) -> bool {
        let now = self.secrets.load();
        let same = match (&*now, &*known) {
            (Some(now), Some(known)) => Arc::ptr_eq(now, known),
            (now, known) => now.is_none() && known.is_none(),
        };
        if !same {
            known.clone_from(&now);
        }
        !same
    }

    /// Its tokens mean something that is not known yet.
    pub(crate) fn waits_for_grant(&self) -> bool {
        self.sealed && self.secrets.load().is_none()
    }

    /// Whether its tokens mean something that is known, after waiting for that for `patience` at most.
    pub(crate) async fn is_granted_within(&self, patience: Duration) -> bool {
        let told = self.granted.notified();
        // A grant between the two is not missed: who waits has said so before the look.
        if self.waits_for_grant() {
            let _ = tokio::time::timeout(patience, told).await;
        }
        !self.waits_for_grant()
    }

    /// Whether requests to that host have to be read.
    pub(crate) fn has_secrets_for(&self, host: &str) -> bool {
        self.waits_for_grant() || self.has_known_secrets_for(host)
    }

    fn has_known_secrets_for(&self, host: &str) -> bool {
        self.secrets.load().as_ref().is_some_and(|secrets| secrets.apply_to(host))
    }

    /// Whether bytes that nobody reads may go there under an allowlist: a rule has to name that port, and must not be
    /// about requests. `host` is what the client said, if it did.
    pub(crate) fn allows_raw(
        &self,
        policy: &EgressPolicy,
        host: Option<&str>,
        address: Option<Ipv4Addr>,
        port: u16,
    ) -> bool {
        let mut rules = policy.allow.iter().filter(|rule| {
            !WEB_PORTS.contains(&port) && rule.ports.contains(&port) && !rule.is_about_requests()
        });
        match (host, address) {
            (Some(host), _) => rules.any(|rule| rule.host.matches(host)),
            (None, Some(address)) => {
                let mut names = self.pins.names_of(address);
                names.push(address.to_string());
                rules.any(|rule| names.iter().any(|name| rule.host.matches(name)))
            }
            (None, None) => false,
        }
    }

    /// Takes note of something open; until the guard is dropped it is closed when it is no longer allowed.
    pub(crate) fn hold(&self, open: Open) -> Held {
        let held = self.open.add(open);
        // The policy may have changed between the decision and now.
        self.recheck(&held);
        held
    }

    /// Says more about something open.
    pub(crate) fn decide(&self, held: &Held, change: impl FnOnce(&mut Open)) {
        self.open.change(held, change);
        self.recheck(held);
    }

    pub(crate) fn close_all(&self) {
        self.open.close_unless(|_| false);
    }

    fn recheck(&self, held: &Held) {
        let policy = self.policy.load();
        self.open.close_one_unless(held, |open| self.is_kept(&policy, open));
    }

    fn close_what_is_not_allowed(&self) {
        let policy = self.policy.load_full();
        self.open.close_unless(|open| self.is_kept(&policy, open));
    }

    fn is_kept(&self, policy: &EgressPolicy, open: &Open) -> bool {
        let host = open.host.as_deref();
        match (policy.mode, &open.kind) {
            (EgressMode::None, _) => false,
            (_, Kind::Request { unread: true, .. }) | (EgressMode::Open, Kind::Raw { tls: true })
                if host.is_some_and(|host| self.has_known_secrets_for(host)) =>
            {
                false
            }
            (EgressMode::Open, _) | (_, Kind::Undecided | Kind::Refused) => true,
            (EgressMode::Allowlist, Kind::Raw { .. }) => {
                self.allows_raw(policy, host, open.address, open.port)
            }
            // Without a host each request names its own and is judged by itself.
            (EgressMode::Allowlist, Kind::Inspected) => {
                host.is_none_or(|host| policy.allows(host, open.port))
            }
            (EgressMode::Allowlist, Kind::Request { method, path, .. }) => {
                host.is_some_and(|host| policy.allows_request(host, open.port, method.as_str(), path))
            }
        }
    }
}

/// A method as it is told: a guest can make up as many as it likes.
fn word_of(method: &Method) -> &str {
    const KNOWN: [Method; 8] = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
        Method::OPTIONS,
        Method::CONNECT,
    ];
    if KNOWN.contains(method) { method.as_str() } else { "other" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_connections_of_a_sandbox_have_less_memory_each() {
        let session = Session::new(SandboxId::generate(), EgressPolicy::default(), false, Limits::default());
        let _few = session.places.try_acquire_many(32).unwrap();
        assert!(!session.is_crowded());
        let _one_more = session.places.try_acquire().unwrap();
        assert!(session.is_crowded());
    }
}
