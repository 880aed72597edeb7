//! The figures, one module each. Every row takes turns between Warren and the others, so that what else the machine does
//! at that moment falls on all of them, and stops taking samples when its time is up; the table shows how many it has.

mod burst;
mod checkpoint;
mod create;
mod exec;
mod files;
mod fork;
mod forks;
mod gateway;
mod hibernate;
mod idle;
mod images;
mod machine;
mod stream;
mod terminal;
mod tools;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::docker::Docker;
use crate::qemu::Qemu;
use crate::report::{Line, Unit, WARREN};
use crate::runc::Runc;
use crate::trace::Trace;
use crate::warren::Warren;

/// After a sandbox or container was removed, before the next is timed: removing goes on for a moment after the answer.
const SETTLE: Duration = Duration::from_millis(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Row {
    /// Create to the first output of a command, one at a time
    Create,
    /// Many creates at once, each to its first output
    Burst,
    /// A command in a sandbox that runs
    Exec,
    /// A tool call through MCP, beside the same command
    Tools,
    /// A keystroke in a terminal and back
    Terminal,
    /// Output of a command, streamed
    Stream,
    /// A large file up and down
    Files,
    /// What idle sandboxes hold and use
    Idle,
    /// How long a sandbox stands still for a checkpoint
    Checkpoint,
    /// Fork of a checkpoint, and restore in place, to the first output of a command
    Fork,
    /// Many forks of one checkpoint at once
    Forks,
    /// To rest, and back to the first output of a command
    Hibernate,
    /// Virtual machines: made, booted, taken, forked, brought to rest
    Machine,
    /// Requests and transfers through the egress gateway, with a server of its own
    Gateway,
    /// Images: creates from snapshots, builds that find their steps done, imports, what many share
    Images,
}

/// Another system, or why it cannot be measured.
pub(crate) type Peer<T> = Result<T, String>;

/// What the rows work with.
pub(crate) struct Bench {
    pub(crate) warren: Warren,
    pub(crate) docker: Peer<Docker>,
    pub(crate) docker_home: Home,
    pub(crate) runc: Peer<Runc>,
    pub(crate) qemu: Peer<Qemu>,
    pub(crate) server: Option<Home>,
    pub(crate) sizes: Sizes,
    pub(crate) trace: Trace,
}

/// Where a system's own processes are to be found.
#[derive(Debug, Clone, Default)]
pub(crate) struct Home {
    pub(crate) pids: Vec<u32>,
    /// Named in the command lines of its helpers.
    pub(crate) folder: Option<PathBuf>,
}

/// How much of everything.
#[derive(Debug, Clone)]
pub(crate) struct Sizes {
    pub(crate) creates: usize,
    pub(crate) peer_creates: usize,
    pub(crate) burst: usize,
    pub(crate) peer_burst: usize,
    pub(crate) execs: usize,
    pub(crate) peer_execs: usize,
    pub(crate) keystrokes: usize,
    pub(crate) stream_bytes: u64,
    pub(crate) peer_stream_bytes: u64,
    pub(crate) file_bytes: u64,
    pub(crate) rounds: usize,
    pub(crate) idle: usize,
    pub(crate) peer_idle: usize,
    pub(crate) idle_time: Duration,
    pub(crate) checkpoints: usize,
    pub(crate) peer_checkpoints: usize,
    /// Of the disk that is taken.
    pub(crate) checkpoint_bytes: u64,
    pub(crate) forks: usize,
    pub(crate) peer_forks: usize,
    pub(crate) forks_at_once: usize,
    /// Longest one row goes on taking samples.
    pub(crate) row_time: Duration,
}

/// Time of one row.
pub(crate) struct Clock(Instant);

// === impl Sizes ===

impl Sizes {
    pub(crate) fn full() -> Self {
        Self {
            creates: 100,
            peer_creates: 20,
            burst: 100,
            peer_burst: 100,
            execs: 500,
            peer_execs: 20,
            keystrokes: 300,
            stream_bytes: 2 << 30,
            peer_stream_bytes: 500_000_000,
            file_bytes: 1 << 30,
            rounds: 3,
            idle: 200,
            peer_idle: 20,
            idle_time: Duration::from_secs(20),
            checkpoints: 100,
            peer_checkpoints: 5,
            checkpoint_bytes: 500_000_000,
            forks: 100,
            peer_forks: 10,
            forks_at_once: 20,
            row_time: Duration::from_secs(110),
        }
    }

    pub(crate) fn quick() -> Self {
        Self {
            creates: 40,
            peer_creates: 8,
            peer_burst: 30,
            execs: 200,
            peer_execs: 8,
            keystrokes: 100,
            stream_bytes: 512 << 20,
            peer_stream_bytes: 100_000_000,
            file_bytes: 256 << 20,
            rounds: 2,
            peer_idle: 10,
            idle_time: Duration::from_secs(5),
            checkpoints: 40,
            peer_checkpoints: 2,
            checkpoint_bytes: 100_000_000,
            forks: 40,
            peer_forks: 4,
            row_time: Duration::from_secs(20),
            ..Self::full()
        }
    }

    fn is_quick(&self) -> bool {
        self.creates < Self::full().creates
    }
}

// === impl Clock ===

impl Clock {
    fn start(bench: &Bench) -> Self {
        Self(Instant::now() + bench.sizes.row_time)
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.0
    }
}

// === impl Row ===

impl Row {
    /// Measures this row. What cannot be measured is a line that says why.
    pub(crate) async fn measure(self, bench: &mut Bench) -> Vec<Line> {
        let measured = match self {
            Self::Create => create::measure(bench).await,
            Self::Burst => burst::measure(bench).await,
            Self::Exec => exec::measure(bench).await,
            Self::Tools => tools::measure(bench).await,
            Self::Terminal => terminal::measure(bench).await,
            Self::Stream => stream::measure(bench).await,
            Self::Files => files::measure(bench).await,
            Self::Idle => idle::measure(bench).await,
            Self::Checkpoint => checkpoint::measure(bench).await,
            Self::Fork => fork::measure(bench).await,
            Self::Forks => forks::measure(bench).await,
            Self::Hibernate => hibernate::measure(bench).await,
            Self::Machine => machine::measure(bench).await,
            Self::Gateway => gateway::measure(bench).await,
            Self::Images => images::measure(bench).await,
        };
        measured.unwrap_or_else(|error| {
            let (figure, unit) = self.title();
            vec![Line::skipped(figure, WARREN, unit, &format!("{error:#}"))]
        })
    }

    pub(crate) fn title(self) -> (&'static str, Unit) {
        match self {
            Self::Create => (create::FIGURE, Unit::Milliseconds),
            Self::Burst => (burst::FIGURE, Unit::Milliseconds),
            Self::Exec => (exec::FIGURE, Unit::Milliseconds),
            Self::Tools => (tools::FIGURE, Unit::Milliseconds),
            Self::Terminal => (terminal::FIGURE, Unit::Milliseconds),
            Self::Stream => (stream::FIGURE, Unit::Speed),
            Self::Files => (files::FIGURE, Unit::Speed),
            Self::Idle => (idle::FIGURE, Unit::Megabytes),
            Self::Checkpoint => (checkpoint::FIGURE, Unit::Milliseconds),
            Self::Fork => (fork::FIGURE, Unit::Milliseconds),
            Self::Forks => (forks::FIGURE, Unit::Milliseconds),
            Self::Hibernate => (hibernate::FIGURE, Unit::Milliseconds),
            Self::Machine => (machine::FIGURE, Unit::Milliseconds),
            Self::Gateway => (gateway::FIGURE, Unit::Milliseconds),
            Self::Images => (images::FIGURE, Unit::Milliseconds),
        }
    }
}

/// Keeps a measured value; a peer that fails is left out from then on, with its words in the table.
fn keep<T, V>(peer: &mut Peer<T>, values: &mut Vec<V>, measured: anyhow::Result<V>) {
    match measured {
        Ok(value) => values.push(value),
        Err(error) => *peer = Err(format!("{error:#}")),
    }
}

/// A peer's line, with the reason where it has fewer values than it should or none.
fn peer_line<T>(figure: &str, system: &str, unit: Unit, peer: &Peer<T>, values: Vec<f64>) -> Line {
    match peer {
        Ok(_) => Line::new(figure, system, unit, values),
        Err(reason) if values.is_empty() => Line::skipped(figure, system, unit, reason),
        Err(reason) => Line::new(figure, system, unit, values).note(format!("stopped early: {reason}")),
    }
}

/// How many of `total` fall on this one of `rounds`, so that they add up.
fn share(total: usize, rounds: usize, round: usize) -> usize {
    total * (round + 1) / rounds - total * round / rounds
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Millions of bytes a second.
fn speed(bytes: u64, taken: Duration) -> f64 {
    bytes as f64 / 1e6 / taken.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_and_differ_by_one_at_most() {
        for (total, rounds) in [(100, 20), (500, 20), (7, 3), (2, 5), (0, 4)] {
            let shares: Vec<usize> = (0..rounds).map(|round| share(total, rounds, round)).collect();
            assert_eq!(shares.iter().sum::<usize>(), total);
            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            assert!(most - least <= 1, "{shares:?}");
        }
    }
}
