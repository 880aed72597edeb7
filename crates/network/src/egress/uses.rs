//! Which secret was put in for which host: counted until the control plane has taken it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tracing::warn;
use warren_node_api::{SecretUse, SecretUses, SecretUsesQuery};
use warren_types::SandboxId;

use super::now_ms;

/// Kinds that wait to be taken; when nobody takes them, further kinds are not noted.
const MAX_KINDS: usize = 10_000;

pub(crate) struct UseLog(Mutex<State>);

struct State {
    /// Of the batch that was given out last. Begins with the time, so that no batch of an earlier process has its number.
    batch: u64,
    given_out: Vec<SecretUse>,
    waiting: HashMap<(SandboxId, String, String), (u64, u64)>,
}

impl Default for UseLog {
    fn default() -> Self {
        Self(Mutex::new(State { batch: now_ms(), given_out: Vec::new(), waiting: HashMap::new() }))
    }
}

impl UseLog {
    pub(crate) fn note(&self, sandbox: &SandboxId, name: &str, host: &str) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let full = state.waiting.len() >= MAX_KINDS;
        let kind = (sandbox.clone(), name.to_owned(), host.to_owned());
        if full && !state.waiting.contains_key(&kind) {
            warn!(%sandbox, "uses of secrets are not taken by the control plane; some are not noted");
            return;
        }
        let (count, at_ms) = state.waiting.entry(kind).or_default();
        *count += 1;
        *at_ms = now_ms();
    }

    pub(crate) fn take(&self, query: SecretUsesQuery) -> SecretUses {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if query.acknowledged == state.batch {
            state.given_out.clear();
        }
        if state.given_out.is_empty() && !state.waiting.is_empty() {
            state.batch += 1;
            let waiting = std::mem::take(&mut state.waiting);
            state.given_out = waiting
                .into_iter()
                .map(|((sandbox, name, host), (count, at_ms))| SecretUse {
                    sandbox,
                    name,
                    host,
                    count,
                    at_ms,
                })
                .collect();
        }
        SecretUses { batch: state.batch, uses: state.given_out.clone() }
    }
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
}
