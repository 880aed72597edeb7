//! What a person sees of a build.
//!
//! On a terminal the step under way, how long it has taken and its last line of output stand at the bottom, and steps that are
//! done above. Elsewhere every line is written as it comes. Nothing is written when asked to be quiet, but for the output of
//! the step that failed.

use std::collections::VecDeque;
use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::de::DeserializeOwned;
use warren_api::images::BuildLog;

use crate::client::{Answer, Ended, EventStream};
use crate::output::{Output, human_bytes, printable};
use crate::terminal::WindowSize;

/// What is kept of a step's output, to be shown should it fail.
const KEPT_LINES: usize = 60;
const KEPT_CHARACTERS: usize = 2000;
/// Between two pictures.
const TICK: Duration = Duration::from_millis(120);
/// Between two lines about an import where lines are not replaced.
const PULL_LINES: Duration = Duration::from_secs(2);

pub(crate) struct BuildView {
    shown: Shown,
    begun: Instant,
    step: Option<Step>,
    /// Last lines of the output of the step under way.
    kept: VecDeque<String>,
    pulled: Option<Instant>,
    /// Bytes of an archive that is being sent, and how many there are.
    sent: Option<(Arc<AtomicU64>, Option<u64>)>,
}

enum Shown {
    Nothing,
    Lines,
    Live(ProgressBar),
}

/// What is being done.
struct Step {
    number: u32,
    title: String,
    begun: Instant,
}

/// A build that went wrong, with what its server says of it.
#[derive(Debug, thiserror::Error)]
#[error("the build failed: {0}")]
pub(crate) struct BuildFailed(String);

// === impl BuildView ===

impl BuildView {
    pub(crate) fn new(output: Output) -> Self {
        let shown = match (output.quiet, std::io::stderr().is_terminal()) {
            (true, _) => Shown::Nothing,
            (false, false) => Shown::Lines,
            (false, true) => Shown::Live(new_bar()),
        };
        Self { shown, begun: Instant::now(), step: None, kept: VecDeque::new(), pulled: None, sent: None }
    }

    /// Shows how much of something has been sent, until the server says what it does.
    pub(crate) fn sending(&mut self, total: Option<u64>) -> Arc<AtomicU64> {
        let sent = Arc::new(AtomicU64::new(0));
        self.sent = Some((Arc::clone(&sent), total));
        sent
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Waits for something and shows meanwhile that time goes by.
    pub(crate) async fn meanwhile<T>(&mut self, what: impl Future<Output = T>) -> T {
        tokio::pin!(what);
        let mut ticks = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                done = &mut what => return done,
                _ = ticks.tick() => self.draw(),
            }
        }
    }

    /// Shows a build to its end; its result.
    pub(crate) async fn follow<T: DeserializeOwned>(
        &mut self,
        events: &mut EventStream<'_>,
    ) -> anyhow::Result<Answer<T>> {
        loop {
            match self.meanwhile(events.next()).await? {
                Ended::NotYet(log) => self.log(&log),
                Ended::Done(answer) => {
                    self.clear();
                    return Ok(answer);
                }
                Ended::Failed(error) => return Err(self.failed(&error)),
            }
        }
    }

    fn log(&mut self, log: &BuildLog) {
        let message = printable_line(&log.message);
        self.sent = None;
        if log.kind == "pull" && matches!(self.shown, Shown::Lines) {
            if self.pulled.is_some_and(|last| last.elapsed() < PULL_LINES) {
                return;
            }
            self.pulled = Some(Instant::now());
        }
        let is_known = self.step.as_ref().is_some_and(|step| step.number == log.step && log.step > 0);
        if is_known && is_end(&log.message, log.step) {
            self.end_step();
        } else if is_known {
            self.line_of_output(&message);
        } else {
            self.begin_step(log, message);
        }
        self.draw();
    }

    fn begin_step(&mut self, log: &BuildLog, message: String) {
        self.kept.clear();
        match &self.shown {
            Shown::Lines => say(&message),
            // What needed no work is over already.
            Shown::Live(bar) if log.kind == "cache_hit" => bar.println(&message),
            Shown::Live(_) | Shown::Nothing => {}
        }
        let is_same = self.step.as_ref().is_some_and(|step| step.number == log.step);
        match &mut self.step {
            // Progress of the same thing.
            Some(step) if is_same => step.title = message,
            step => *step = Some(Step { number: log.step, title: message, begun: Instant::now() }),
        }
    }

    fn line_of_output(&mut self, line: &str) {
        if matches!(self.shown, Shown::Lines) {
            say(&format!("  {line}"));
        }
        if self.kept.len() == KEPT_LINES {
            self.kept.pop_front();
        }
        self.kept.push_back(line.chars().take(KEPT_CHARACTERS).collect());
    }

    fn end_step(&mut self) {
        let Some(step) = self.step.take() else { return };
        let done = format!("{} ({})", step.title, seconds(step.begun.elapsed()));
        match &self.shown {
            Shown::Live(bar) => bar.println(done),
            Shown::Lines => say(&format!("  done in {}", seconds(step.begun.elapsed()))),
            Shown::Nothing => {}
        }
        self.kept.clear();
    }

    fn draw(&self) {
        let Shown::Live(bar) = &self.shown else { return };
        let (title, since) = match (&self.step, &self.sent) {
            (_, Some((sent, total))) => {
                let sent = human_bytes(sent.load(Ordering::Relaxed));
                let of = total.map(|total| format!(" of {}", human_bytes(total))).unwrap_or_default();
                (format!("Sending the archive: {sent}{of}"), self.begun)
            }
            (Some(step), None) => (step.title.clone(), step.begun),
            (None, None) => ("Waiting for the server".to_owned(), self.begun),
        };
        // A line that is too long would be two, and the next picture would stand below.
        let width = usize::from(WindowSize::current().cols).saturating_sub(4);
        let text = format!("{}  {title}", seconds(since.elapsed()));
        bar.set_prefix(text.chars().take(width).collect::<String>());
        bar.set_message(self.kept.back().cloned().unwrap_or_default());
        bar.tick();
    }

    /// Takes away what stands at the bottom.
    pub(crate) fn clear(&self) {
        if let Shown::Live(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }

    /// Shows what the failed step wrote, unless it stands there already.
    fn failed(&self, error: &str) -> anyhow::Error {
        self.clear();
        if !matches!(self.shown, Shown::Lines) {
            if let Some(step) = self.step.as_ref().filter(|_| !self.kept.is_empty()) {
                say(&step.title);
            }
            for line in &self.kept {
                say(&format!("  {line}"));
            }
        }
        // The rest of it is that output.
        let first = error.lines().next().unwrap_or("the server gives no reason").trim_end();
        BuildFailed(first.to_owned()).into()
    }
}

/// Whether this is what the server says when a step is over.
fn is_end(message: &str, number: u32) -> bool {
    let words = message.strip_prefix("Step ").and_then(|rest| rest.strip_suffix(" completed"));
    let numbers = words.and_then(|words| words.split_once('/'));
    numbers.is_some_and(|(which, of)| which.parse() == Ok(number) && of.parse::<u32>().is_ok())
}

/// A line that cannot steer a terminal. Of one that was overwritten (progress of pip) the last state is left.
fn printable_line(text: &str) -> String {
    let text = text.trim_end();
    let last = text.rsplit('\r').find(|part| !part.trim().is_empty()).unwrap_or(text);
    last.split('\t').map(|part| printable(part).into_owned()).collect::<Vec<_>>().join("    ")
}

/// Not eprintln!: it panics when stderr is closed, and a build goes on without being watched.
fn say(line: &str) {
    use std::io::Write as _;
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

pub(crate) fn seconds(time: Duration) -> String {
    match time.as_secs() {
        0..60 => format!("{:.1} s", time.as_secs_f64()),
        whole => format!("{} min {} s", whole / 60, whole % 60),
    }
}

fn new_bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(8));
    // The template is a constant; should it be wrong, the plain bar does as well.
    match ProgressStyle::with_template("{spinner} {prefix}\n  {wide_msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_servers_own_words_end_a_step() {
        assert!(is_end("Step 2/5 completed", 2));
        for other in [
            "Step 2/5 completed",
            "Step 3/5: completed",
            "Step 3/5 completed.",
            "completed",
            "Step 3/x completed",
        ] {
            assert!(!is_end(other, 3), "{other}");
        }
    }

    #[test]
    fn output_cannot_steer_the_terminal() {
        assert_eq!(printable_line("a\tb\x1b[2J"), "a    b\\u{1b}[2J");
        assert_eq!(printable_line(" 10%\r 50%\r100%\r\n"), "100%");
        assert_eq!(printable_line("\r\n"), "");
    }

    #[test]
    fn times_are_short() {
        let shown: Vec<_> = [40, 12_340, 61_000].map(|ms| seconds(Duration::from_millis(ms))).into();
        assert_eq!(shown, ["0.0 s", "12.3 s", "1 min 1 s"]);
    }
}
