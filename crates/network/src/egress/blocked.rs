//! What was refused to one sandbox of late.

use std::sync::{Mutex, PoisonError};

use warren_node_api::{Blocked, EgressReport};

use super::now_ms;

const MAX_KINDS: usize = 100;
/// Bytes of a host; a guest chooses it.
const MAX_HOST: usize = 253;

/// Newest last.
#[derive(Default)]
pub(crate) struct BlockedLog(Mutex<Vec<Blocked>>);

impl BlockedLog {
    pub(crate) fn note(&self, host: &str, port: u16, reason: &str) {
        let host: String = host.chars().filter(|letter| !letter.is_control()).take(MAX_HOST).collect();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known =
            all.iter().position(|kind| kind.host == host && kind.port == port && kind.reason == reason);
        let count = known.map_or(0, |place| all.remove(place).count);
        if all.len() >= MAX_KINDS {
            all.remove(0);
        }
        all.push(Blocked { host, port, reason: reason.to_owned(), count: count + 1, at_ms: now_ms() });
    }

    pub(crate) fn report(&self) -> EgressReport {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        EgressReport { blocked: all.iter().rev().cloned().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_kind_is_counted_together_newest_first_and_bounded() {
        let log = BlockedLog::default();
        log.note("a.example", 443, "host not in allowlist");
        log.note("b.example", 443, "host not in allowlist");
        log.note("a.example", 443, "host not in allowlist");
        let blocked = log.report().blocked;
        let seen: Vec<_> = blocked.iter().map(|kind| (kind.host.as_str(), kind.count)).collect();
        assert_eq!(seen, [("a.example", 2), ("b.example", 1)]);
        for host in 0..150 {
            log.note(&format!("h{host}"), 443, "x");
        }
        let blocked = log.report().blocked;
        assert_eq!((blocked.len(), blocked[0].host.as_str()), (MAX_KINDS, "h149"));
    }
}
