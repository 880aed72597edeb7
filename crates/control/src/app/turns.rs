//! One after the other: who wants the same thing waits for its turn; who wants another does not.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex};

use tokio::sync::OwnedMutexGuard;

type Lock = Arc<tokio::sync::Mutex<()>>;

/// One lock for each name that is in use right now.
#[derive(Debug)]
pub(crate) struct Turns<N>(Arc<Mutex<HashMap<N, Lock>>>);

/// Somebody's turn. Dropping it lets the next one in.
#[derive(Debug)]
pub(crate) struct Turn<N: Hash + Eq> {
    turns: Turns<N>,
    name: N,
    guard: Option<OwnedMutexGuard<()>>,
}

// === impl Turns ===

impl<N: Hash + Eq + Clone> Turns<N> {
    pub(crate) async fn turn(&self, name: &N) -> Turn<N> {
        let lock = {
            let mut locks = self.0.lock().expect("nothing panics while it holds this lock");
            Arc::clone(locks.entry(name.clone()).or_default())
        };
        // Made before waiting: who gives up in the queue must tidy up as well.
        let mut turn = Turn { turns: self.clone(), name: name.clone(), guard: None };
        turn.guard = Some(lock.lock_owned().await);
        turn
    }
}

impl<N> Clone for Turns<N> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<N> Default for Turns<N> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

// === impl Turn ===

impl<N: Hash + Eq> Drop for Turn<N> {
    fn drop(&mut self) {
        self.guard.take();
        let mut locks = self.turns.0.lock().expect("nothing panics while it holds this lock");
        if locks.get(&self.name).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            locks.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn turns_come_one_after_the_other_and_leave_nothing_behind() {
        let turns = Turns::default();
        let first = turns.turn(&"k").await;
        let other = turns.turn(&"other").await;
        let waiting = tokio::spawn({
            let turns = turns.clone();
            async move { turns.turn(&"k").await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(first);
        drop(waiting.await.unwrap());
        drop(other);
        assert!(turns.0.lock().unwrap().is_empty());
    }
}
