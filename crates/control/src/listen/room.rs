//! Connections that ask for nothing at the moment: how many there may be.
//!
//! Each one costs a descriptor and nothing says whether it will ever ask. When there are too many, the one that has been quiet for
//! longest is asked to leave: whoever fills the room pushes out its own, and a client that says its request at once is served.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// A connection is not asked to leave before that: its request may be on its way, behind others that came with it.
const COURTESY: Duration = Duration::from_secs(1);

pub(super) struct Room {
    most: usize,
    courtesy: Duration,
    quiet: Mutex<Quiet>,
    /// Told when one has left.
    left: Notify,
}

#[derive(Default)]
struct Quiet {
    next: u64,
    /// By age: when each became quiet, and how it is told to leave.
    places: BTreeMap<u64, (Instant, Arc<Notify>)>,
}

impl Room {
    pub(super) fn new(most: usize) -> Self {
        Self { most, courtesy: COURTESY, quiet: Mutex::default(), left: Notify::new() }
    }

    /// Waits until one more may come. Whoever must leave for that is told.
    pub(super) async fn place(&self) {
        while let Some(wait) = self.is_full_for() {
            let _ = tokio::time::timeout(wait, self.left.notified()).await;
        }
    }

    fn is_full_for(&self) -> Option<Duration> {
        let mut quiet = self.lock();
        if quiet.places.len() < self.most {
            return None;
        }
        let oldest = quiet.places.first_entry()?;
        let wait = self.courtesy.saturating_sub(oldest.get().0.elapsed());
        if !wait.is_zero() {
            return Some(wait);
        }
        oldest.remove().1.notify_one();
        None
    }

    /// Takes a place, above the number too: only who is about to come waits.
    pub(super) fn enter(&self, leave: &Arc<Notify>) -> u64 {
        let mut quiet = self.lock();
        let number = quiet.next;
        quiet.next += 1;
        quiet.places.insert(number, (Instant::now(), Arc::clone(leave)));
        number
    }

    pub(super) fn leave(&self, number: u64) {
        if self.lock().places.remove(&number).is_some() {
            self.left.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Quiet> {
        self.quiet.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(50);

    fn room(most: usize, courtesy: Duration) -> Room {
        Room { courtesy, ..Room::new(most) }
    }

    #[tokio::test]
    async fn who_has_been_quiet_for_longest_leaves_when_another_comes() {
        let room = room(2, SOON);
        let told: Vec<_> = (0..3).map(|_| Arc::new(Notify::new())).collect();
        let begun = Instant::now();
        let first = room.enter(&told[0]);
        room.place().await;
        room.enter(&told[1]);
        room.place().await;
        assert!(begun.elapsed() >= SOON, "nobody is told to leave at once");
        told[0].notified().await;
        room.enter(&told[2]);
        room.leave(first);
        room.place().await;
        told[1].notified().await;
    }

    #[tokio::test]
    async fn who_asks_for_something_makes_room() {
        let room = Arc::new(room(1, Duration::MAX));
        let number = room.enter(&Arc::new(Notify::new()));
        let waiting = tokio::spawn({
            let room = Arc::clone(&room);
            async move { room.place().await }
        });
        tokio::task::yield_now().await;
        room.leave(number);
        waiting.await.unwrap();
    }
}
