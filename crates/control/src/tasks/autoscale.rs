//! Sandboxes that scale by themselves: up one tier when they need memory, down one when they have not for a long time.
//!
//! | | when | not before |
//! | --- | --- | --- |
//! | up | more than 75 % in use over a minute | a minute after the last change |
//! | down | less than 25 % over one, five and fifteen minutes | five minutes after the last change |
//!
//! What was used is remembered in memory only: after a restart nothing shrinks before fifteen minutes are known again. A
//! size that is refused (something else needs the memory, or the sandbox went to sleep) is tried again at the next look.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use warren_types::size::Direction;
use warren_types::{Error, SandboxId, Size};

use crate::app::App;

/// The windows that are looked at, in minutes.
const WINDOWS: [u32; 3] = [1, 5, 15];
const UP_ABOVE: f64 = 0.75;
const DOWN_BELOW: f64 = 0.25;
/// Minutes after a change.
const UP_COOLDOWN: u32 = 1;
const DOWN_COOLDOWN: u32 = 5;

/// What one sandbox has used, as shares of its memory.
#[derive(Debug)]
struct History {
    minute: Duration,
    /// Oldest first.
    samples: VecDeque<(Instant, f64)>,
    changed: Option<Instant>,
}

impl History {
    fn new(minute: Duration) -> Self {
        Self { minute, samples: VecDeque::new(), changed: None }
    }

    fn add(&mut self, at: Instant, share: f64) {
        self.samples.push_back((at, share));
        // One sample from before the longest window says that the window is full.
        while self.samples.get(1).is_some_and(|(second, _)| at - *second >= self.minute * WINDOWS[2]) {
            self.samples.pop_front();
        }
    }

    /// Mean share over the time before `now`; `None` when not all of it is known.
    fn average(&self, now: Instant, window: Duration) -> Option<f64> {
        let (first, _) = self.samples.front()?;
        if now - *first < window {
            return None;
        }
        let within: Vec<f64> =
            self.samples.iter().filter(|(at, _)| now - *at <= window).map(|(_, share)| *share).collect();
        let count = u32::try_from(within.len()).ok().filter(|count| *count > 0)?;
        Some(within.iter().sum::<f64>() / f64::from(count))
    }

    fn decide(&self, now: Instant) -> Option<Direction> {
        let rested = |minutes: u32| self.changed.is_none_or(|changed| now - changed >= self.minute * minutes);
        let minute = self.average(now, self.minute)?;
        if minute > UP_ABOVE {
            return rested(UP_COOLDOWN).then_some(Direction::Up);
        }
        let calm = WINDOWS
            .into_iter()
            .all(|minutes| self.average(now, self.minute * minutes).is_some_and(|share| share < DOWN_BELOW));
        (calm && rested(DOWN_COOLDOWN)).then_some(Direction::Down)
    }

    /// Shares of another size say nothing about this one.
    fn change(&mut self, now: Instant) {
        self.samples.clear();
        self.changed = Some(now);
    }
}

pub(super) async fn autoscale(app: Arc<App>) {
    let mut histories = HashMap::new();
    loop {
        tokio::time::sleep(app.autoscale.every).await;
        if let Err(error) = look(&app, &mut histories).await {
            tracing::warn!(%error, "sandboxes could not be scaled; trying again soon");
        }
    }
}

async fn look(app: &App, histories: &mut HashMap<SandboxId, History>) -> Result<(), Error> {
    let scaled = app.store.list_autoscaled().await?;
    histories.retain(|id, _| scaled.iter().any(|row| row.id == *id));
    if scaled.is_empty() {
        return Ok(());
    }
    let usage: HashMap<SandboxId, u64> = app
        .node
        .list_usage()
        .await?
        .into_iter()
        .filter(|usage| !usage.with_caches)
        .map(|usage| (usage.id, usage.memory_bytes))
        .collect();
    let now = Instant::now();
    for row in scaled {
        let Some(used) = usage.get(&row.id) else { continue };
        let history = histories.entry(row.id.clone()).or_insert_with(|| History::new(app.autoscale.minute));
        history.add(now, *used as f64 / (f64::from(row.memory_mb) * 1_048_576.0));
        let size = Size { cpu_count: 1, memory_mb: row.memory_mb, disk_mb: 0 };
        let next = history.decide(now).and_then(|direction| size.next_tier(direction));
        let Some(memory_mb) = next.filter(|memory| (row.min_mb..=row.max_mb).contains(memory)) else {
            continue;
        };
        match app.resize(&row.id, size.with_memory(memory_mb.into())?).await {
            Ok(size) => {
                tracing::info!(sandbox = %row.id, from = row.memory_mb, to = size.memory_mb, "scaled by itself");
                history.change(now);
            }
            Err(error) => tracing::info!(sandbox = %row.id, %error, "a sandbox could not be scaled"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_secs(30);

    /// Feeds samples half a minute apart, and says when it decides what first.
    fn first_decision(history: &mut History, start: Instant, shares: &[f64]) -> Option<(u32, Direction)> {
        let mut now = start;
        for (index, share) in (0..).zip(shares) {
            history.add(now, *share);
            if let Some(direction) = history.decide(now) {
                return Some((index, direction));
            }
            now += STEP;
        }
        None
    }

    #[test]
    fn a_minute_of_need_is_enough_to_grow() {
        let start = Instant::now();
        let mut history = History::new(Duration::from_secs(60));
        assert_eq!(first_decision(&mut history, start, &[0.9, 0.9, 0.9]), Some((2, Direction::Up)));
        assert_eq!(
            first_decision(&mut History::new(Duration::from_secs(60)), start, &[0.9, 0.9]),
            None,
            "not known for a minute"
        );
        let mut spike = vec![0.3; 20];
        spike[10] = 1.0;
        assert_eq!(
            first_decision(&mut History::new(Duration::from_secs(60)), start, &spike),
            None,
            "one spike is no need"
        );
    }

    #[test]
    fn only_a_long_calm_shrinks() {
        let start = Instant::now();
        let calm = vec![0.1; 40];
        assert_eq!(
            first_decision(&mut History::new(Duration::from_secs(60)), start, &calm),
            Some((30, Direction::Down))
        );
        let mut broken = vec![0.1; 34];
        broken[2..12].fill(0.7);
        assert_eq!(first_decision(&mut History::new(Duration::from_secs(60)), start, &broken), None);
        assert_eq!(first_decision(&mut History::new(Duration::from_secs(60)), start, &vec![0.5; 100]), None);
    }

    #[test]
    fn it_rests_after_a_change() {
        let start = Instant::now();
        let mut history = History::new(Duration::from_secs(60));
        history.change(start);
        history.samples.extend((0..100).map(|n| (start + n * Duration::from_secs(1), 0.9)));
        assert_eq!(history.decide(start + Duration::from_secs(59)), None);
        let mut history = History::new(Duration::from_secs(60));
        history.change(start);
        assert_eq!(first_decision(&mut history, start, &[0.9; 10]), Some((2, Direction::Up)));
    }

    #[test]
    fn the_past_is_forgotten() {
        let start = Instant::now();
        let mut history = History::new(Duration::from_secs(60));
        for n in 0..1000 {
            history.add(start + n * STEP, 0.5);
        }
        assert!(history.samples.len() <= 32, "{}", history.samples.len());
    }
}
