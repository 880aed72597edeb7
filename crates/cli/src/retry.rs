//! How often and how soon a broken connection is tried again.

use std::time::Duration;

use crate::failure::{Refused, Unreachable};

/// Together about nine seconds: longer than a server takes to restart.
const PAUSES_MS: [u64; 6] = [100, 300, 700, 1500, 3000, 3000];

/// Counts the attempts since something last worked.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    attempt: usize,
}

impl Backoff {
    /// How long to wait before the next attempt; none when it is time to give up.
    pub(crate) fn next_pause(&mut self) -> Option<Duration> {
        let pause = PAUSES_MS.get(self.attempt).copied()?;
        self.attempt += 1;
        Some(Duration::from_millis(pause))
    }

    pub(crate) fn reset(&mut self) {
        self.attempt = 0;
    }
}

/// Whether the same attempt may succeed in a moment.
pub(crate) fn worth_retrying(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<Refused>() {
        Some(refused) => refused.retryable || refused.status >= 500,
        None => error.is::<Unreachable>(),
    }
}
