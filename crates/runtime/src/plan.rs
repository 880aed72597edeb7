//! What every request to the launcher has: a size it keeps to, and reasons why it failed.

use std::time::Instant;

use serde::{Deserialize, Serialize};

/// Largest request, in bytes; paths are the large part.
pub const MAX_REQUEST_BYTES: usize = 64 * 1024;

#[derive(Debug, Clone, Serialize, Deserialize, thiserror::Error)]
#[error("could not {step}: {message}")]
pub struct LaunchError {
    /// What was being done.
    pub step: String,
    pub message: String,
}

impl LaunchError {
    pub fn new(step: impl Into<String>, cause: impl std::fmt::Display) -> Self {
        Self { step: step.into(), message: cause.to_string() }
    }
}

pub type Result<T> = std::result::Result<T, LaunchError>;

/// Says what was being done when something failed.
pub trait Step<T> {
    fn step(self, what: &str) -> Result<T>;
}

impl<T, E: std::fmt::Display> Step<T> for std::result::Result<T, E> {
    fn step(self, what: &str) -> Result<T> {
        self.map_err(|error| LaunchError::new(what, error))
    }
}

/// Times the steps of a set-up.
#[derive(Debug)]
pub struct Clock {
    last: Instant,
    /// Microseconds spent on each.
    pub steps: Vec<(String, u32)>,
}

impl Clock {
    #[must_use]
    pub fn start() -> Self {
        Self { last: Instant::now(), steps: Vec::new() }
    }

    pub fn lap(&mut self, step: &str) {
        let micros = u32::try_from(self.last.elapsed().as_micros()).unwrap_or(u32::MAX);
        self.steps.push((step.to_owned(), micros));
        self.last = Instant::now();
    }
}
