//! What a build says, for everybody who listens: those who come late get it from the beginning. Nobody holds the build up:
//! lines are kept here, as many as fit, and a reader that is slower than that hears how many it missed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::watch;
use warren_api::images::BuildLog;
use warren_types::Error;

use super::Build;

/// Kept of one build, in bytes of messages.
const KEPT_BYTES: usize = 4 * 1024 * 1024;
/// Besides its message, what a line takes.
const LINE_BYTES: usize = 64;

#[derive(Debug)]
pub(crate) struct BuildStream {
    said: Mutex<Said>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Said {
    lines: VecDeque<BuildLog>,
    /// Number of the first line that is still kept.
    first: u64,
    bytes: usize,
    end: Option<Result<(), Error>>,
}

/// Who listens to a build.
#[derive(Debug)]
pub(crate) struct Reader {
    build: Arc<Build>,
    changed: watch::Receiver<()>,
    next: u64,
}

/// What comes next.
#[derive(Debug)]
pub(crate) enum Next {
    Lines(Vec<BuildLog>),
    End(Result<(), Error>),
}

// === impl BuildStream ===

impl Default for BuildStream {
    fn default() -> Self {
        Self { said: Mutex::default(), changed: watch::Sender::new(()) }
    }
}

impl BuildStream {
    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().expect("nothing panics while it holds this lock")
    }

    pub(crate) fn say(&self, step: usize, kind: &str, message: impl Into<String>) {
        let line = BuildLog {
            step: u32::try_from(step).unwrap_or(u32::MAX),
            kind: kind.to_owned(),
            message: message.into(),
        };
        {
            let mut said = self.said();
            said.bytes += line.message.len() + LINE_BYTES;
            said.lines.push_back(line);
            while said.bytes > KEPT_BYTES {
                let Some(oldest) = said.lines.pop_front() else { break };
                said.bytes -= oldest.message.len() + LINE_BYTES;
                said.first += 1;
            }
        }
        self.changed.send_replace(());
    }

    /// Nothing is said after it.
    pub(in crate::app::images) fn end(&self, end: Result<(), Error>) {
        self.said().end.get_or_insert(end);
        self.changed.send_replace(());
    }
}

// === impl Reader ===

impl Reader {
    pub(crate) fn new(build: Arc<Build>) -> Self {
        let changed = build.log.changed.subscribe();
        Self { build, changed, next: 0 }
    }

    /// Losing interest half-way loses nothing.
    pub(crate) async fn next(&mut self) -> Next {
        loop {
            self.changed.mark_unchanged();
            if let Some(next) = self.look() {
                return next;
            }
            // The sender lives as long as the build, which is held here.
            let _ = self.changed.changed().await;
        }
    }

    fn look(&mut self) -> Option<Next> {
        let said = self.build.log.said();
        let end = said.first + said.lines.len() as u64;
        if self.next == end {
            return said.end.clone().map(Next::End);
        }
        let missed = said.first.saturating_sub(self.next);
        let skip = usize::try_from(self.next.saturating_sub(said.first)).unwrap_or(usize::MAX);
        let mut lines = Vec::with_capacity(said.lines.len() - skip + 1);
        if missed > 0 {
            lines.push(BuildLog {
                step: 0,
                kind: "build".to_owned(),
                message: format!("[{missed} lines are missing here]"),
            });
        }
        lines.extend(said.lines.iter().skip(skip).cloned());
        drop(said);
        self.next = end;
        Some(Next::Lines(lines))
    }

    /// Waits for the end without listening.
    pub(crate) async fn ended(mut self) -> Result<(), Error> {
        loop {
            if let Next::End(end) = self.next().await {
                return end;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::images::build::Builds;

    #[tokio::test]
    async fn everybody_hears_everything_and_the_end() {
        let build = Builds::default().begin("one".into());
        build.log.say(0, "build", "first");
        let mut late = Reader::new(Arc::clone(&build));
        let listening = tokio::spawn(async move {
            let mut heard = Vec::new();
            loop {
                match late.next().await {
                    Next::Lines(lines) => heard.extend(lines.into_iter().map(|line| line.message)),
                    Next::End(end) => return (heard, end),
                }
            }
        });
        tokio::task::yield_now().await;
        build.log.say(1, "run", "second");
        build.log.end(Ok(()));
        let (heard, end) = listening.await.unwrap();
        assert_eq!(heard, ["first", "second"]);
        assert_eq!(end, Ok(()));
        assert_eq!(Reader::new(build).ended().await, Ok(()));
    }

    #[tokio::test]
    async fn what_is_kept_is_bounded_and_what_is_missing_is_said() {
        let build = Builds::default().begin("one".into());
        let line = "x".repeat(8192);
        for _ in 0..1000 {
            build.log.say(1, "run", line.clone());
        }
        let Next::Lines(lines) = Reader::new(build).next().await else { panic!("it has said something") };
        let missing = 1000 - (lines.len() - 1);
        assert_eq!(lines[0].message, format!("[{missing} lines are missing here]"));
        assert!(lines.len() < 520 && lines.len() > 400, "{}", lines.len());
    }
}
