//! How often a registry that cannot answer for the moment is asked again, and when.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::ImageError;

/// Requests in turn that may bring nothing, after the first.
const MOST_IN_VAIN: u32 = 4;
/// Before one is asked again, doubled each time in vain.
const PAUSE: Duration = Duration::from_millis(100);

/// With one document, or one layer.
#[derive(Debug, Default)]
pub(super) struct Patience {
    in_vain: u32,
    deadline: Option<Instant>,
}

impl Patience {
    /// Nothing is asked again once that is past.
    pub(super) fn until(deadline: Instant) -> Self {
        Self { in_vain: 0, deadline: Some(deadline) }
    }

    /// Returns when it is time to ask again after a request that ended in `error` and has `brought` something or nothing. `Err` is the
    /// error itself where that would be no use, or was tried often enough.
    pub(super) async fn after(
        &mut self,
        error: ImageError,
        what: &str,
        brought: bool,
    ) -> Result<(), ImageError> {
        self.in_vain = if brought { 0 } else { self.in_vain + 1 };
        if !error.may_pass() || self.in_vain > MOST_IN_VAIN {
            return Err(error);
        }
        let pause = PAUSE * (1 << self.in_vain);
        if self.deadline.is_some_and(|deadline| Instant::now() + pause >= deadline) {
            return Err(error);
        }
        tracing::debug!(%error, what, "asking a registry again");
        sleep(pause).await;
        Ok(())
    }
}
