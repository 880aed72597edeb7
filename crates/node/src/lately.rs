//! What is kept ready for the checkpoints that were lately forked.
//!
//! ```text
//!   asked for the first time ▸ one is made ▸ asked for again ▸ one more is kept ▸ … ▸ as many as are kept of one checkpoint
//!   not asked for in a while, or too many others were since, or it is gone ▸ all of them are let go of
//! ```
//!
//! So a checkpoint that is forked once costs one that is made for nothing, and one that is forked all the time has enough.
//! Which checkpoints those are outlasts the node ([`Remembered`]), so that one that starts again has them ready as before.
//! Only says what is to be made and let go of: who makes it ([`crate::sandbox::stock`] and [`crate::vm::waiting`]) asks.

use std::collections::VecDeque;
use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use warren_types::CheckpointId;

/// How much is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Checkpoints that something is kept for.
    pub(crate) checkpoints: usize,
    /// Kept for each of them.
    pub(crate) each: usize,
    /// Kept for this long after it was last asked for.
    pub(crate) patience: Duration,
}

pub(crate) struct Lately<T> {
    limits: Limits,
    state: Mutex<State<T>>,
}

struct State<T> {
    /// That of the checkpoint that was asked for last comes first.
    shelves: Vec<Shelf<T>>,
    /// To be let go of.
    surplus: Vec<T>,
}

struct Shelf<T> {
    checkpoint: CheckpointId,
    ready: VecDeque<T>,
    /// As many as there are to be.
    wanted: usize,
    asked_at: Instant,
    /// Cancelled with the shelf.
    gone: CancellationToken,
}

/// One that is to be made.
pub(crate) struct Missing {
    pub(crate) checkpoint: CheckpointId,
    /// Cancelled when it is not wanted any more.
    pub(crate) gone: CancellationToken,
}

/// The checkpoints that something was kept for when this node last ran.
pub(crate) struct Remembered {
    file: PathBuf,
    written: Vec<CheckpointId>,
}

impl<T> Lately<T> {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, state: Mutex::new(State { shelves: Vec::new(), surplus: Vec::new() }) }
    }

    /// One of that checkpoint, if there is one. From now on one more is kept.
    pub(crate) fn take(&self, checkpoint: &CheckpointId) -> Option<T> {
        let mut state = self.lock();
        let shelf = state.ask_for(checkpoint, self.limits);
        shelf.wanted = (shelf.wanted + 1).min(self.limits.each);
        shelf.ready.pop_front()
    }

    /// That checkpoint will be asked for: as many as can be are kept from now on.
    pub(crate) fn expect(&self, checkpoint: &CheckpointId) {
        self.lock().ask_for(checkpoint, self.limits).wanted = self.limits.each;
    }

    /// Those that something is kept for, sorted.
    pub(crate) fn checkpoints(&self) -> Vec<CheckpointId> {
        let mut all: Vec<_> = self.lock().shelves.iter().map(|shelf| shelf.checkpoint.clone()).collect();
        all.sort_unstable();
        all
    }

    /// What to make next: of the checkpoint that has the fewest, and among those of the one that was asked for last.
    pub(crate) fn missing(&self) -> Option<Missing> {
        let state = self.lock();
        let short = state.shelves.iter().filter(|shelf| shelf.ready.len() < shelf.wanted);
        short
            .min_by_key(|shelf| shelf.ready.len())
            .map(|shelf| Missing { checkpoint: shelf.checkpoint.clone(), gone: shelf.gone.clone() })
    }

    /// Adds what was made for `missing`; gives it back when it is not wanted any more.
    pub(crate) fn put(&self, missing: &Missing, made: T) -> Result<(), T> {
        let mut state = self.lock();
        match state.shelves.iter_mut().find(|shelf| shelf.checkpoint == missing.checkpoint) {
            // Another shelf may have been set up since, for a checkpoint that was found damaged meanwhile.
            Some(shelf) if !missing.gone.is_cancelled() => {
                shelf.ready.push_back(made);
                Ok(())
            }
            _ => Err(made),
        }
    }

    /// Keeps nothing of that checkpoint any more. What there was has to be let go of.
    #[must_use]
    pub(crate) fn forget(&self, checkpoint: &CheckpointId) -> Vec<T> {
        let mut state = self.lock();
        let found = state.shelves.iter().position(|shelf| shelf.checkpoint == *checkpoint);
        found.map(|at| state.shelves.remove(at).close()).unwrap_or_default()
    }

    /// The same of the checkpoint of `missing`, which could not be made; unless it has gone and come back since.
    #[must_use]
    pub(crate) fn give_up(&self, missing: &Missing) -> Vec<T> {
        match missing.gone.is_cancelled() {
            true => Vec::new(),
            false => self.forget(&missing.checkpoint),
        }
    }

    /// Whether nothing is kept of any.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().shelves.iter().all(|shelf| shelf.ready.is_empty())
    }

    /// What has to be let go of by now.
    #[must_use]
    pub(crate) fn surplus(&self) -> Vec<T> {
        let mut state = self.lock();
        let (now, patience) = (Instant::now(), self.limits.patience);
        state.close_if(|shelf| shelf.asked_at + patience <= now);
        std::mem::take(&mut state.surplus)
    }

    /// Keeps nothing of any checkpoint. What there was has to be let go of.
    #[must_use]
    pub(crate) fn clear(&self) -> Vec<T> {
        let mut state = self.lock();
        state.close_if(|_| true);
        std::mem::take(&mut state.surplus)
    }

    /// Returns when something has to be let go of for want of use.
    pub(crate) async fn expired(&self) {
        let first = self.lock().shelves.iter().map(|shelf| shelf.asked_at).min();
        match first {
            Some(asked_at) => tokio::time::sleep_until(asked_at + self.limits.patience).await,
            None => std::future::pending().await,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Remembered {
    /// What a node that ran before has written to `file`. Only what it prepares depends on it, so what cannot be read is not
    /// there.
    pub(crate) fn read(file: PathBuf) -> Self {
        let text = fs::read_to_string(&file).unwrap_or_default();
        let mut written: Vec<_> = text.lines().filter_map(|line| line.parse().ok()).collect();
        written.sort_unstable();
        Self { file, written }
    }

    pub(crate) fn checkpoints(&self) -> &[CheckpointId] {
        &self.written
    }

    /// Writes down which they are now, if they are others.
    pub(crate) fn keep(&mut self, checkpoints: Vec<CheckpointId>) {
        if checkpoints == self.written {
            return;
        }
        let text: String = checkpoints.iter().map(|id| format!("{id}\n")).collect();
        if let Err(error) = fs::write(&self.file, text) {
            debug!(%error, "what is kept ready could not be written down");
        }
        self.written = checkpoints;
    }
}

impl<T> State<T> {
    /// The shelf of that checkpoint, now the first. Another may have to go for it.
    fn ask_for(&mut self, checkpoint: &CheckpointId, limits: Limits) -> &mut Shelf<T> {
        let asked_at = Instant::now();
        let found = self.shelves.iter().position(|shelf| shelf.checkpoint == *checkpoint);
        let shelf = match found {
            Some(at) => Shelf { asked_at, ..self.shelves.remove(at) },
            None => Shelf {
                checkpoint: checkpoint.clone(),
                ready: VecDeque::new(),
                wanted: 0,
                asked_at,
                gone: CancellationToken::new(),
            },
        };
        self.shelves.insert(0, shelf);
        for beyond in self.shelves.drain(limits.checkpoints.min(self.shelves.len())..) {
            self.surplus.extend(beyond.close());
        }
        &mut self.shelves[0]
    }

    fn close_if(&mut self, is_over: impl Fn(&Shelf<T>) -> bool) {
        for shelf in self.shelves.extract_if(.., |shelf| is_over(shelf)) {
            self.surplus.extend(shelf.close());
        }
    }
}

impl<T> Shelf<T> {
    fn close(self) -> Vec<T> {
        self.gone.cancel();
        self.ready.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { checkpoints: 2, each: 3, patience: Duration::from_secs(60) };

    /// Makes what is missing until nothing is; how many that were.
    fn fill(lately: &Lately<u32>, from: u32) -> u32 {
        let mut made = 0;
        while let Some(missing) = lately.missing() {
            lately.put(&missing, from + made).unwrap();
            made += 1;
        }
        made
    }

    fn ids<const N: usize>() -> [CheckpointId; N] {
        std::array::from_fn(|_| CheckpointId::generate())
    }

    #[tokio::test]
    async fn each_use_keeps_one_more_up_to_the_limit() {
        let lately = Lately::new(LIMITS);
        let [id] = ids();
        assert!(lately.missing().is_none(), "nobody has asked for anything");
        assert_eq!(lately.take(&id), None);
        assert_eq!(fill(&lately, 10), 1);
        assert_eq!(lately.take(&id), Some(10));
        assert_eq!(fill(&lately, 20), 2);
        assert_eq!(lately.take(&id), Some(20), "the oldest first");
        assert_eq!(lately.take(&id), Some(21));
        assert_eq!(lately.take(&id), None);
        assert_eq!(fill(&lately, 30), 3);
        assert!(lately.surplus().is_empty());
    }

    #[tokio::test]
    async fn what_is_expected_is_made_at_once() {
        let lately = Lately::new(LIMITS);
        let [id] = ids();
        lately.expect(&id);
        assert_eq!(fill(&lately, 0), 3);
        assert_eq!(lately.take(&id), Some(0));
    }

    #[tokio::test]
    async fn one_of_each_comes_before_a_second_of_any() {
        let lately = Lately::new(LIMITS);
        let [one, two] = ids();
        lately.expect(&one);
        lately.put(&lately.missing().unwrap(), 1).unwrap();
        lately.expect(&two);
        assert_eq!(lately.missing().unwrap().checkpoint, two);
        lately.put(&lately.missing().unwrap(), 2).unwrap();
        let missing = lately.missing().unwrap();
        assert_eq!(missing.checkpoint, two, "the one asked for last");
    }

    #[tokio::test]
    async fn the_one_that_was_not_asked_for_for_longest_makes_room() {
        let lately = Lately::new(LIMITS);
        let [one, two, three] = ids();
        lately.expect(&one);
        fill(&lately, 10);
        lately.expect(&two);
        fill(&lately, 20);
        assert_eq!(lately.take(&one), Some(10));
        lately.expect(&three);
        assert_eq!(lately.surplus(), [20, 21, 22]);
        assert_eq!(lately.take(&one), Some(11));
        assert_eq!(lately.take(&two), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_used_is_let_go_of() {
        let lately = Lately::new(LIMITS);
        let [one, two] = ids();
        lately.expect(&one);
        tokio::time::advance(LIMITS.patience / 2).await;
        lately.expect(&two);
        fill(&lately, 0);
        let begun = Instant::now();
        lately.expired().await;
        assert!(begun.elapsed() >= LIMITS.patience / 2);
        assert_eq!(lately.surplus().len(), 3);
        assert!(lately.missing().is_none(), "and not made again");
        assert!(lately.take(&two).is_some());
        lately.expired().await;
        assert_eq!(lately.surplus().len(), 2);
    }

    #[tokio::test]
    async fn what_was_being_made_of_a_checkpoint_that_has_gone_is_given_back() {
        let lately = Lately::new(LIMITS);
        let [id] = ids();
        lately.expect(&id);
        lately.put(&lately.missing().unwrap(), 1).unwrap();
        let missing = lately.missing().unwrap();
        assert_eq!(lately.forget(&id), [1]);
        assert!(missing.gone.is_cancelled());
        assert_eq!(lately.put(&missing, 2), Err(2));
        // A fork that had opened it before asks once more.
        assert_eq!(lately.take(&id), None);
        assert_eq!(lately.put(&missing, 3), Err(3), "made of what there was before");
        assert!(lately.clear().is_empty());
        assert!(lately.missing().is_none());
    }

    #[test]
    fn what_was_kept_is_known_to_the_next_node() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("forked");
        let lately = Lately::<u32>::new(LIMITS);
        let mut remembered = Remembered::read(file.clone());
        assert!(remembered.checkpoints().is_empty());
        for _ in 0..3 {
            lately.expect(&CheckpointId::generate());
        }
        remembered.keep(lately.checkpoints());
        assert_eq!(Remembered::read(file.clone()).checkpoints(), lately.checkpoints());
        assert_eq!(lately.checkpoints().len(), LIMITS.checkpoints);
        fs::write(&file, b"\xff\nnothing\n").unwrap();
        assert!(Remembered::read(file).checkpoints().is_empty());
    }
}
