//! A bar on stderr for transfers that take over a second. Nothing is shown for the others, or when nobody would see it.

use std::io::IsTerminal as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::{Output, human_bytes};

const SHOWN_AFTER: Duration = Duration::from_secs(1);

/// Counts the bytes of one transfer. Shared with the thread that packs or unpacks.
pub(crate) struct Progress {
    start: Instant,
    done: AtomicU64,
    total: Option<u64>,
    wanted: bool,
    bar: Mutex<Option<ProgressBar>>,
}

impl Progress {
    /// `total` is none when it is not known beforehand.
    pub(crate) fn new(total: Option<u64>, output: Output) -> Self {
        let wanted = !output.quiet && std::io::stderr().is_terminal();
        Self { start: Instant::now(), done: AtomicU64::new(0), total, wanted, bar: Mutex::new(None) }
    }

    pub(crate) fn add(&self, bytes: usize) {
        let done = self.done.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        if !self.wanted || self.start.elapsed() < SHOWN_AFTER {
            return;
        }
        let mut bar = self.bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        bar.get_or_insert_with(|| new_bar(self.total, self.start.elapsed())).set_position(done);
    }

    pub(crate) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Takes the bar away and says what was moved, when that took a while.
    pub(crate) fn finish(&self, output: Output) {
        if let Some(bar) = self.bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take() {
            bar.finish_and_clear();
        }
        let elapsed = self.start.elapsed();
        if elapsed >= SHOWN_AFTER {
            let a_second = u128::from(self.done()) * 1000 / elapsed.as_millis().max(1);
            let a_second = human_bytes(u64::try_from(a_second).unwrap_or(u64::MAX));
            output.note(&format!(
                "{} in {:.1} s ({a_second}/s)",
                human_bytes(self.done()),
                elapsed.as_secs_f64()
            ));
        }
    }
}

fn new_bar(total: Option<u64>, elapsed: Duration) -> ProgressBar {
    let target = ProgressDrawTarget::stderr_with_hz(8);
    let (bar, template) = match total {
        Some(total) => (
            ProgressBar::with_draw_target(Some(total), target),
            "{bar:30} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}",
        ),
        None => {
            (ProgressBar::with_draw_target(None, target), "{spinner} {binary_bytes} {binary_bytes_per_sec}")
        }
    };
    let bar = bar.with_elapsed(elapsed);
    // The templates above are constants; should one be wrong, the plain bar does as well.
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
