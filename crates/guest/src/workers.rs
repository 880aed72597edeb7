//! Threads for work that may wait for a disk, so that the agent's one thread never does.
//!
//! One thread is always there, asleep; more come when work piles up and leave when there is none. A sandbox that has no
//! room for another thread goes on with those it has.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

/// How long an additional thread waits for more work.
const LINGER: Duration = Duration::from_secs(1);
const STACK_BYTES: usize = 256 * 1024;

type Job = Box<dyn FnOnce() + Send>;

/// A handle; clones share the threads.
#[derive(Clone)]
pub(crate) struct Workers(Arc<Shared>);

struct Shared {
    name: &'static str,
    most: usize,
    state: Mutex<State>,
    more: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

impl Workers {
    /// At most `most` threads; the first one is started now.
    pub(crate) fn start(name: &'static str, most: usize) -> io::Result<Self> {
        let shared = Shared { name, most, state: Mutex::default(), more: Condvar::new() };
        let workers = Self(Arc::new(shared));
        workers.0.state().threads = 1;
        workers.add_thread(true)?;
        Ok(workers)
    }

    /// Runs `work` on another thread. It is run to its end even if nobody waits for the result any more.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (sender, receiver) = oneshot::channel();
        let job = Box::new(move || {
            let _ = sender.send(work());
        });
        let mut state = self.0.state();
        state.jobs.push_back(job);
        let grow = state.jobs.len() > state.idle && state.threads < self.0.most;
        if grow {
            state.threads += 1;
        }
        drop(state);
        self.0.more.notify_one();
        if grow && self.add_thread(false).is_err() {
            self.0.state().threads -= 1;
        }
        receiver
    }

    fn add_thread(&self, permanent: bool) -> io::Result<()> {
        let shared = Arc::clone(&self.0);
        let builder = std::thread::Builder::new().name(self.0.name.to_owned()).stack_size(STACK_BYTES);
        builder.spawn(move || shared.work(permanent)).map(drop)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Jobs run outside the lock, so the state is whole whatever they do.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, permanent: bool) {
        let mut state = self.state();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                job();
                state = self.state();
                continue;
            }
            state.idle += 1;
            let timed_out;
            (state, timed_out) = if permanent {
                (self.more.wait(state).unwrap_or_else(PoisonError::into_inner), false)
            } else {
                let (state, result) =
                    self.more.wait_timeout(state, LINGER).unwrap_or_else(PoisonError::into_inner);
                (state, result.timed_out())
            };
            state.idle -= 1;
            if timed_out && state.jobs.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_hangs_does_not_hold_up_the_others() {
        let workers = Workers::start("test", 3).unwrap();
        let (release, wait) = std::sync::mpsc::channel::<()>();
        let stuck = workers.run(move || wait.recv().is_ok());
        let others: Vec<_> = (0..50).map(|number| workers.run(move || number)).collect();
        for (number, other) in others.into_iter().enumerate() {
            assert_eq!(other.blocking_recv(), Ok(number));
        }
        release.send(()).unwrap();
        assert_eq!(stuck.blocking_recv(), Ok(true));
    }
}
