//! What was allowed and refused to sandboxes, and where their secrets went: counted until the control plane has taken it.
//!
//! The first of a kind in a minute can be taken at once. What repeats it is counted and can be taken when the minute is over, so
//! that a sandbox which asks a thousand times a second is told of twice a minute. A sandbox has room for [`MAX_KINDS`] kinds at a
//! time; what is beyond is counted together.
//!
//! Uses of secrets, and the first of any other kind, are kept over a kill of this process. What is recorded in the moment before
//! one is told again.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;
use warren_node_api::{NetworkEvent, NetworkEventKind, NetworkEvents, NetworkEventsQuery};
use warren_types::SandboxId;

use super::journal::Journal;
use super::now_ms;

const MINUTE: Duration = Duration::from_secs(60);
/// Kinds of one sandbox, in a minute.
const MAX_KINDS: usize = 300;
/// Of all sandboxes; beyond that nothing new is noted until some are taken.
const MAX_ALL: usize = 50_000;
/// Events of one batch.
const MAX_BATCH: usize = 2000;
/// Bytes of a host; a guest chooses it.
const MAX_HOST: usize = 253;

type Key = (NetworkEventKind, String, u16);

#[derive(Default)]
struct Counted {
    /// Not taken yet.
    count: u64,
    /// When it was taken last.
    taken: Option<Instant>,
    folded: bool,
}

pub(crate) struct EventLog(Mutex<State>);

struct State {
    /// Of the batch that was given out last. Begins with the time, so that no batch of an earlier process has its number.
    batch: u64,
    given_out: Vec<NetworkEvent>,
    kinds: HashMap<SandboxId, HashMap<Key, Counted>>,
    all: usize,
    journal: Journal<NetworkEvent>,
}

impl Default for EventLog {
    fn default() -> Self {
        Self(Mutex::new(State {
            batch: now_ms(),
            given_out: Vec::new(),
            kinds: HashMap::new(),
            all: 0,
            journal: Journal::default(),
        }))
    }
}

impl EventLog {
    /// With what a process before this one kept and nobody has taken.
    pub(crate) fn open(folder: &Path) -> Self {
        let (journal, left) = Journal::<NetworkEvent>::open(folder, "events");
        let log = Self::default();
        let mut state = log.0.lock().unwrap_or_else(PoisonError::into_inner);
        for event in left.given.into_iter().chain(left.new) {
            let kinds = state.kinds.entry(event.sandbox).or_default();
            let counted = kinds.entry((event.kind, event.host, event.port)).or_default();
            counted.count += event.count;
            counted.folded = event.folded;
        }
        state.all = state.kinds.values().map(HashMap::len).sum();
        state.journal = journal;
        let lines = state.kept();
        state.journal.replace(&lines);
        state.journal.taken();
        drop(state);
        log
    }

    pub(crate) fn note(&self, sandbox: &SandboxId, kind: NetworkEventKind, host: &str, port: u16) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let State { kinds, all, journal, .. } = &mut *state;
        let kinds = kinds.entry(sandbox.clone()).or_default();
        let host: String = host.chars().filter(|letter| !letter.is_control()).take(MAX_HOST).collect();
        let mut key = (kind, host, port);
        let mut folded = false;
        if kinds.len() >= MAX_KINDS && !kinds.contains_key(&key) {
            folded = true;
            key = match key.0 {
                NetworkEventKind::Allowed { .. } => {
                    (NetworkEventKind::Allowed { method: None }, "*".to_owned(), 0)
                }
                NetworkEventKind::Refused { .. } => {
                    (NetworkEventKind::Refused { rule: "various".to_owned() }, "*".to_owned(), 0)
                }
                // As many as there are secrets and hosts for them: the owner's doing.
                NetworkEventKind::SecretUse { name } => {
                    (NetworkEventKind::SecretUse { name }, "*".to_owned(), 0)
                }
            };
        }
        if *all >= MAX_ALL && !kinds.contains_key(&key) {
            warn!(%sandbox, "events of the network are not taken by the control plane; some are not noted");
            return;
        }
        if matches!(key.0, NetworkEventKind::SecretUse { .. }) || !kinds.contains_key(&key) {
            let (kind, host, port) = key.clone();
            journal.add(&NetworkEvent { sandbox: sandbox.clone(), kind, host, port, count: 1, folded });
        }
        let counted = kinds.entry(key).or_insert_with(|| {
            *all += 1;
            Counted { folded, ..Counted::default() }
        });
        counted.count += 1;
        if state.journal.is_long() {
            let lines = state.kept();
            state.journal.replace(&lines);
        }
    }

    pub(crate) fn take(&self, query: NetworkEventsQuery) -> NetworkEvents {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if query.acknowledged == state.batch && !state.given_out.is_empty() {
            state.given_out.clear();
            state.journal.taken();
        }
        if state.given_out.is_empty() {
            let events = state.collect(query.all);
            if !events.is_empty() {
                state.batch += 1;
                state.given_out = events;
                let rest = state.kept();
                state.journal.hand_over(&rest);
            }
        }
        NetworkEvents { batch: state.batch, events: state.given_out.clone() }
    }
}

impl State {
    /// What was not taken yet and is kept.
    fn kept(&self) -> Vec<NetworkEvent> {
        let all = self.kinds.iter().flat_map(|(sandbox, kinds)| {
            let noted = kinds.iter().filter(|((kind, ..), counted)| {
                let is_use = matches!(kind, NetworkEventKind::SecretUse { .. });
                counted.count > 0 && (is_use || counted.taken.is_none())
            });
            noted.map(|((kind, host, port), counted)| NetworkEvent {
                sandbox: sandbox.clone(),
                kind: kind.clone(),
                host: host.clone(),
                port: *port,
                count: counted.count,
                folded: counted.folded,
            })
        });
        all.collect()
    }

    /// What can be taken now; what has not happened again for a minute is forgotten.
    fn collect(&mut self, all: bool) -> Vec<NetworkEvent> {
        let mut events = Vec::new();
        let over = |taken: Instant| taken.elapsed() >= MINUTE;
        self.kinds.retain(|sandbox, kinds| {
            kinds.retain(|(kind, host, port), counted| {
                let is_due = all || counted.taken.is_none_or(over);
                if !is_due || events.len() >= MAX_BATCH {
                    return true;
                }
                if counted.count == 0 {
                    return false;
                }
                events.push(NetworkEvent {
                    sandbox: sandbox.clone(),
                    kind: kind.clone(),
                    host: host.clone(),
                    port: *port,
                    count: std::mem::take(&mut counted.count),
                    folded: counted.folded,
                });
                counted.taken = Some(Instant::now());
                true
            });
            !kinds.is_empty()
        });
        self.all = self.kinds.values().map(HashMap::len).sum();
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> NetworkEventKind {
        NetworkEventKind::Refused { rule: "host not in allowlist".into() }
    }

    #[test]
    fn the_first_is_told_at_once_and_repetitions_are_counted() {
        let (log, sandbox) = (EventLog::default(), SandboxId::generate());
        let take = |acknowledged, all| log.take(NetworkEventsQuery { acknowledged, all });
        log.note(&sandbox, refused(), "a.example", 443);
        log.note(&sandbox, refused(), "a.example", 443);
        let first = take(0, false);
        assert_eq!((first.events.len(), first.events[0].count), (1, 2));
        log.note(&sandbox, refused(), "a.example", 443);
        assert_eq!(take(0, false).events, first.events, "not acknowledged yet");
        assert!(take(first.batch, false).events.is_empty(), "the minute is not over");
        log.note(&sandbox, refused(), "b.example", 443);
        let second = take(first.batch, false);
        assert_eq!((second.events.len(), second.events[0].host.as_str()), (1, "b.example"));
        let last = take(second.batch, true);
        assert_eq!(
            (last.events.len(), last.events[0].host.as_str(), last.events[0].count),
            (1, "a.example", 1)
        );
    }

    #[test]
    fn a_sandbox_that_makes_up_hosts_takes_no_more_than_its_room() {
        let (log, wild, calm) = (EventLog::default(), SandboxId::generate(), SandboxId::generate());
        for host in 0..10_000 {
            log.note(&wild, refused(), &format!("h{host}.example"), 443);
        }
        log.note(&calm, refused(), "a.example", 443);
        let events = log.take(NetworkEventsQuery { acknowledged: 0, all: false }).events;
        assert_eq!(events.iter().filter(|event| event.sandbox == calm).count(), 1);
        let folded: Vec<_> = events.iter().filter(|event| event.folded).collect();
        assert_eq!((folded.len(), folded[0].count), (1, 10_000 - MAX_KINDS as u64));
        assert_eq!(events.iter().map(|event| event.count).sum::<u64>(), 10_001, "none is lost");
    }

    #[test]
    fn uses_of_secrets_and_what_is_new_are_kept_over_a_kill() {
        let (folder, sandbox) = (tempfile::tempdir().unwrap(), SandboxId::generate());
        let open = || EventLog::open(folder.path());
        let take = |log: &EventLog, acknowledged| log.take(NetworkEventsQuery { acknowledged, all: false });
        let used = || NetworkEventKind::SecretUse { name: "KEY".into() };
        let log = open();
        log.note(&sandbox, used(), "a.example", 443);
        log.note(&sandbox, refused(), "b.example", 443);
        let first = take(&log, 0);
        assert_eq!(first.events.len(), 2);
        // Counted until its minute is over, beside what was given out and is not acknowledged.
        log.note(&sandbox, used(), "a.example", 443);
        log.note(&sandbox, refused(), "b.example", 443);
        let log = open();
        let mut all = take(&log, 0);
        all.events.sort_by_key(|event| event.count);
        let counts: Vec<_> = all.events.iter().map(|event| (event.count, event.kind.clone())).collect();
        assert_eq!(counts, [(1, refused()), (2, used())]);
        assert!(take(&log, all.batch).events.is_empty());
        log.note(&sandbox, used(), "a.example", 443);
        assert!(take(&log, 0).events.is_empty(), "the minute is not over");
        assert_eq!(take(&open(), 0).events[0].count, 1);
    }
}
