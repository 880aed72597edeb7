//! How far a build is. Steps report what they know; where they know nothing, time passed is the estimate.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Packages the tree holds in the end, and bytes of them downloaded on the way; only for the estimate.
const EXPECTED_PACKAGES: f64 = 605.0;
const EXPECTED_DOWNLOAD_BYTES: f64 = 240e6;

/// Where a build is, for a person who waits.
#[derive(Debug, Clone)]
pub struct Progress {
    /// What is being done, in a few words.
    pub step: &'static str,
    /// The last thing a program said about it; may be empty.
    pub detail: String,
    /// From 0 to 1, never falling.
    pub fraction: f64,
    pub elapsed: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Wait,
    Check,
    Index,
    Fetch,
    Unpack,
    Install,
    Packages,
    Clean,
    Customise,
    Pack,
    Digest,
    Done,
}

/// Label, fraction at its end, seconds it usually takes.
type Line = (&'static str, f64, f64);

impl Step {
    fn line(self) -> Line {
        match self {
            Self::Wait => ("waiting for another server that builds the base template", 0.0, 90.0),
            Self::Check => ("checking what a build needs", 0.01, 1.0),
            Self::Index => ("fetching Debian's package lists", 0.04, 4.0),
            Self::Fetch => ("downloading the core packages", 0.07, 3.0),
            Self::Unpack => ("unpacking the core packages", 0.09, 3.0),
            Self::Install => ("installing the core packages", 0.16, 7.0),
            Self::Packages => ("installing Python, Node.js, compilers and tools", 0.80, 60.0),
            Self::Clean => ("cleaning up package files", 0.82, 1.0),
            Self::Customise => ("setting up the machine", 0.87, 5.0),
            Self::Pack => ("writing the disk image", 0.95, 9.0),
            Self::Digest => ("computing the image's digest", 0.99, 6.0),
            Self::Done => ("the base template is ready", 1.0, 1.0),
        }
    }
}

#[cfg(test)]
impl Step {
    pub(super) fn label(self) -> &'static str {
        self.line().0
    }
}

/// Shared between the build, which writes, and the ticker, which reads.
pub(super) struct Meter {
    started: Instant,
    state: Mutex<State>,
}

struct State {
    step: Step,
    since: Instant,
    from: f64,
    highest: f64,
    detail: String,
    tree: Option<PathBuf>,
}

impl Meter {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        let state = State {
            step: Step::Check,
            since: now,
            from: 0.0,
            highest: 0.0,
            detail: String::new(),
            tree: None,
        };
        Self { started: now, state: Mutex::new(state) }
    }

    pub(super) fn enter(&self, step: Step) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.step == step {
            return;
        }
        // Waiting for somebody else counts for nothing of our own work.
        state.from = if state.step == Step::Wait { state.from } else { state.step.line().1 };
        state.step = step;
        state.since = Instant::now();
        state.detail.clear();
    }

    pub(super) fn say(&self, detail: &str) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).detail = detail.chars().take(200).collect();
    }

    /// Lets the estimate look at how much of the tree is there.
    pub(super) fn watch(&self, tree: Option<PathBuf>) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).tree = tree;
    }

    pub(super) async fn read(&self) -> Progress {
        let tree = {
            let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.step == Step::Packages { state.tree.clone() } else { None }
        };
        let seen = match tree {
            Some(tree) => Some(super::blocking(move || packages_done(&tree)).await),
            None => None,
        };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (step, end, usual) = state.step.line();
        let guess = 1.0 - (-state.since.elapsed().as_secs_f64() / usual).exp();
        let inside = seen.unwrap_or(guess).clamp(0.0, 1.0);
        let now = state.from + (end - state.from).max(0.0) * inside;
        state.highest = if state.step == Step::Done { 1.0 } else { state.highest.max(now) };
        Progress {
            step,
            detail: state.detail.clone(),
            fraction: state.highest,
            elapsed: self.started.elapsed(),
        }
    }
}

/// The download is the first third of this step, the rest is what dpkg has recorded.
fn packages_done(tree: &std::path::Path) -> f64 {
    let archives = tree.join("var/cache/apt/archives");
    let bytes: u64 = [archives.join("partial"), archives]
        .iter()
        .filter_map(|directory| std::fs::read_dir(directory).ok())
        .flatten()
        .flatten()
        .filter_map(|entry| entry.metadata().ok())
        .map(|metadata| metadata.len())
        .sum();
    let names = std::fs::read_dir(tree.join("var/lib/dpkg/info"))
        .map(|entries| {
            entries.flatten().filter(|entry| entry.path().extension().is_some_and(|e| e == "list")).count()
        })
        .unwrap_or(0);
    let downloaded = (bytes as f64 / EXPECTED_DOWNLOAD_BYTES).min(1.0);
    let unpacked = (names as f64 / EXPECTED_PACKAGES).min(1.0);
    0.3 * downloaded.max(if unpacked > 0.3 { 1.0 } else { 0.0 }) + 0.65 * unpacked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_fraction_never_falls_and_ends_at_one() {
        let meter = Meter::new();
        let mut last = 0.0;
        for step in
            [Step::Wait, Step::Check, Step::Index, Step::Packages, Step::Pack, Step::Digest, Step::Done]
        {
            meter.enter(step);
            let progress = meter.read().await;
            assert!(progress.fraction >= last, "{step:?}");
            assert!(progress.fraction <= 1.0);
            last = progress.fraction;
        }
        assert!((last - 1.0).abs() < f64::EPSILON);
    }
}
