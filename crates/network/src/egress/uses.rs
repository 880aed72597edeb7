//! Which secret was put in for which host: counted until the control plane has taken it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use tracing::warn;
use warren_node_api::{SecretUse, SecretUses, SecretUsesQuery};
use warren_types::SandboxId;

use super::journal::Journal;
use super::now_ms;

/// Kinds that wait to be taken; when nobody takes them, further kinds are not noted.
const MAX_KINDS: usize = 10_000;

pub(crate) struct UseLog(Mutex<State>);

struct State {
    /// Of the batch that was given out last. Begins with the time, so that no batch of an earlier process has its number.
    batch: u64,
    given_out: Vec<SecretUse>,
    waiting: Waiting,
    journal: Journal<SecretUse>,
}

/// How often, and when last, by sandbox, name and host.
type Waiting = HashMap<(SandboxId, String, String), (u64, u64)>;

impl Default for UseLog {
    fn default() -> Self {
        let (given_out, waiting, journal) = Default::default();
        Self(Mutex::new(State { batch: now_ms(), given_out, waiting, journal }))
    }
}

impl UseLog {
    /// With what a process before this one noted and nobody has taken. What was given out is given out again as it was, so
    /// that whoever has taken it knows it.
    pub(crate) fn open(folder: &Path) -> Self {
        let (journal, left) = Journal::open(folder, "uses");
        let mut batch = now_ms();
        let given_out = listed(&counted(left.given));
        batch += u64::from(!given_out.is_empty());
        Self(Mutex::new(State { batch, given_out, waiting: counted(left.new), journal }))
    }

    /// Is kept over a kill of this process when it returns.
    pub(crate) fn note(&self, sandbox: &SandboxId, name: &str, host: &str) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let full = state.waiting.len() >= MAX_KINDS;
        let kind = (sandbox.clone(), name.to_owned(), host.to_owned());
        if full && !state.waiting.contains_key(&kind) {
            warn!(%sandbox, "uses of secrets are not taken by the control plane; some are not noted");
            return;
        }
        let at_ms = now_ms();
        let (sandbox, name, host) = kind.clone();
        state.journal.add(&SecretUse { sandbox, name, host, count: 1, at_ms });
        let (count, last) = state.waiting.entry(kind).or_default();
        *count += 1;
        *last = at_ms;
        if state.journal.is_long() {
            let lines = listed(&state.waiting);
            state.journal.replace(&lines);
        }
    }

    pub(crate) fn take(&self, query: SecretUsesQuery) -> SecretUses {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if query.acknowledged == state.batch && !state.given_out.is_empty() {
            state.given_out.clear();
            state.journal.taken();
        }
        if state.given_out.is_empty() && !state.waiting.is_empty() {
            state.batch += 1;
            state.given_out = listed(&std::mem::take(&mut state.waiting));
            state.journal.hand_over(&[]);
        }
        SecretUses { batch: state.batch, uses: state.given_out.clone() }
    }
}

fn counted(lines: Vec<SecretUse>) -> Waiting {
    let mut waiting = Waiting::new();
    for SecretUse { sandbox, name, host, count, at_ms } in lines {
        let (all, last) = waiting.entry((sandbox, name, host)).or_default();
        *all += count;
        *last = at_ms.max(*last);
    }
    waiting
}

fn listed(waiting: &Waiting) -> Vec<SecretUse> {
    let uses = waiting.iter().map(|((sandbox, name, host), (count, at_ms))| SecretUse {
        sandbox: sandbox.clone(),
        name: name.clone(),
        host: host.clone(),
        count: *count,
        at_ms: *at_ms,
    });
    uses.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_the_same_until_it_is_acknowledged() {
        let (log, sandbox) = (UseLog::default(), SandboxId::generate());
        let take = |acknowledged| log.take(SecretUsesQuery { acknowledged });
        assert!(take(0).uses.is_empty());
        log.note(&sandbox, "KEY", "a.example");
        log.note(&sandbox, "KEY", "a.example");
        let first = take(0);
        assert_eq!((first.uses.len(), first.uses[0].count), (1, 2));
        log.note(&sandbox, "OTHER", "a.example");
        assert_eq!(take(0).uses, first.uses);
        let second = take(first.batch);
        assert_eq!((second.uses.len(), second.uses[0].name.as_str()), (1, "OTHER"));
        assert!(take(second.batch).uses.is_empty());
        assert!(take(second.batch).uses.is_empty());
    }

    #[test]
    fn what_was_noted_is_kept_over_a_kill_and_given_out_as_before() {
        let (folder, sandbox) = (tempfile::tempdir().unwrap(), SandboxId::generate());
        let open = || UseLog::open(folder.path());
        let take = |log: &UseLog, acknowledged| log.take(SecretUsesQuery { acknowledged });
        let log = open();
        log.note(&sandbox, "KEY", "a.example");
        log.note(&sandbox, "KEY", "a.example");
        // Given out, and perhaps written down there; then more.
        let first = take(&log, 0);
        log.note(&sandbox, "KEY", "a.example");
        let again = open();
        assert_eq!(take(&again, 0).uses, first.uses);
        assert_eq!(take(&again, 0).uses[0].count, 2);
        let second = take(&again, take(&again, 0).batch);
        assert_eq!(second.uses[0].count, 1);
        assert!(take(&again, second.batch).uses.is_empty());
        assert!(take(&open(), 0).uses.is_empty(), "all was taken");
    }
}
