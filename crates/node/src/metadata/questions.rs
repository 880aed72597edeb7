//! What sandboxes ask that only the control plane can answer. A question is held here until it is answered or nobody waits
//! for it any more; whoever watches is told of each, and of all that are open when it begins to.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{broadcast, oneshot};
use tokio::time::Instant;
use warren_node_api::{Answer, Question, Subject};
use warren_types::{Error, ErrorKind, SandboxId};

use crate::checkpoint::make::now_ms;

/// Longest wait for an answer that only has to be looked up, and for a change of size.
const ABOUT_DEADLINE: Duration = Duration::from_secs(10);
const SCALE_DEADLINE: Duration = Duration::from_secs(130);
/// Questions of all sandboxes that are open at once.
const MOST: usize = 512;
/// Questions a slow watcher may be behind before it is told of all anew.
const BEHIND: usize = 64;

/// Changes of size that one sandbox may ask for at once, and how soon there is one more. Each is recorded, so they must not come
/// without end.
const SCALES: f64 = 20.0;
const ONE_MORE: Duration = Duration::from_secs(3);

pub(crate) struct Questions {
    state: Mutex<State>,
    asked: broadcast::Sender<Question>,
}

#[derive(Default)]
struct State {
    /// Distinct across restarts, so that a late answer does not meet another question.
    next: u64,
    open: BTreeMap<u64, (Question, oneshot::Sender<Answer>)>,
    /// What does not change for as long as a sandbox is on this node.
    known: HashMap<SandboxId, Answer>,
    /// How many changes each may ask for, as of when; those that may ask for all are not listed.
    scales: HashMap<SandboxId, (f64, Instant)>,
}

impl Default for Questions {
    fn default() -> Self {
        let state = State { next: now_ms() << 10, ..State::default() };
        Self { state: Mutex::new(state), asked: broadcast::channel(BEHIND).0 }
    }
}

impl Questions {
    /// Asks the control plane, and waits for what it says.
    pub(crate) async fn ask(&self, id: &SandboxId, subject: Subject) -> Result<Answer, Error> {
        let deadline = match subject {
            Subject::About => ABOUT_DEADLINE,
            Subject::Scale { .. } => SCALE_DEADLINE,
        };
        if subject == Subject::About
            && let Some(known) = self.lock().known.get(id)
        {
            return Ok(known.clone());
        }
        let (number, answered) = self.begin(id, subject)?;
        match tokio::time::timeout(deadline, answered).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) | Err(_) => {
                self.lock().open.remove(&number);
                Err(Error::unavailable("the control plane does not answer; try again shortly"))
            }
        }
    }

    /// A question stays open when whoever asked leaves: what it asks for goes on, and the next has to wait for that.
    fn begin(&self, id: &SandboxId, subject: Subject) -> Result<(u64, oneshot::Receiver<Answer>), Error> {
        let (sender, answered) = oneshot::channel();
        let mut state = self.lock();
        state.open.retain(|_, (question, sender)| question.subject != Subject::About || !sender.is_closed());
        if state.open.len() >= MOST {
            return Err(Error::unavailable("too much is asked at once; try again shortly"));
        }
        if let Subject::Scale { .. } = subject {
            let scales = |question: &Question| question.subject != Subject::About;
            if state.open.values().any(|(question, _)| question.sandbox_id == *id && scales(question)) {
                return Err(Error::conflict("this sandbox is being scaled; try again when that is done")
                    .with_code("operation_in_progress"));
            }
            state.take_scale(id)?;
        }
        let number = state.next;
        state.next += 1;
        let question = Question { number, sandbox_id: id.clone(), subject };
        state.open.insert(number, (question.clone(), sender));
        // Nobody may be watching at the moment; who begins to is told.
        let _ = self.asked.send(question);
        Ok((number, answered))
    }

    /// One that is not open any more has been answered, or nobody waits.
    pub(crate) fn answer(&self, number: u64, answer: Answer) {
        let mut state = self.lock();
        let Some((question, sender)) = state.open.remove(&number) else { return };
        if let Answer::About { .. } = &answer {
            state.known.insert(question.sandbox_id, answer.clone());
        }
        let _ = sender.send(answer);
    }

    /// Those from now on.
    pub(crate) fn watch(&self) -> broadcast::Receiver<Question> {
        self.asked.subscribe()
    }

    pub(crate) fn open(&self) -> Vec<Question> {
        self.lock().open.values().map(|(question, _)| question.clone()).collect()
    }

    /// Of a sandbox that is no more.
    pub(crate) fn forget(&self, id: &SandboxId) {
        let mut state = self.lock();
        state.known.remove(id);
        state.scales.remove(id);
        state.open.retain(|_, (question, _)| question.sandbox_id != *id);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take_scale(&mut self, id: &SandboxId) -> Result<(), Error> {
        let now = Instant::now();
        let (left, since) = self.scales.get(id).copied().unwrap_or((SCALES, now));
        let left = (left + (now - since).as_secs_f64() / ONE_MORE.as_secs_f64()).min(SCALES);
        if left < 1.0 {
            let message = format!("scaled too often; try again in {} seconds", ONE_MORE.as_secs());
            return Err(Error::new(ErrorKind::LimitReached, message));
        }
        self.scales.insert(id.clone(), (left - 1.0, now));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn id() -> SandboxId {
        "sb-0a1b2c3d".parse().unwrap()
    }

    fn about() -> Answer {
        Answer::About { region: "here".into(), template: "base".into() }
    }

    const SCALE: Subject = Subject::Scale { memory_mb: Some(4096) };

    /// Answers everything the same.
    fn answering(questions: &Arc<Questions>, answer: Answer) -> tokio::task::JoinHandle<()> {
        let (questions, mut asked) = (questions.clone(), questions.watch());
        tokio::spawn(async move {
            while let Ok(question) = asked.recv().await {
                questions.answer(question.number, answer.clone());
            }
        })
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_change_is_asked_once() {
        let questions = Arc::new(Questions::default());
        let answering = answering(&questions, about());
        assert_eq!(questions.ask(&id(), Subject::About).await.unwrap(), about());
        answering.abort();
        assert_eq!(questions.ask(&id(), Subject::About).await.unwrap(), about());
        questions.forget(&id());
        assert_eq!(questions.ask(&id(), Subject::About).await.unwrap_err().kind, ErrorKind::Unavailable);
        assert!(questions.open().is_empty(), "nobody waits for it any more");
    }

    #[tokio::test(start_paused = true)]
    async fn one_change_at_a_time_and_not_without_end() {
        let questions = Arc::new(Questions::default());
        let asking = questions.clone();
        let left = tokio::spawn(async move { asking.ask(&id(), SCALE).await });
        tokio::task::yield_now().await;
        left.abort();
        let refused = questions.ask(&id(), SCALE).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Conflict, "what was asked for goes on without whoever asked");
        let open = questions.open();
        assert_eq!(open.len(), 1);
        let scaled = Answer::Scaled { memory_mb: 4096, cpu_percent: 100 };
        questions.answer(open[0].number, scaled.clone());
        let _answering = answering(&questions, scaled);
        let mut done = 1;
        while questions.ask(&id(), SCALE).await.is_ok() {
            done += 1;
        }
        assert_eq!(done, 20);
        assert_eq!(questions.ask(&id(), SCALE).await.unwrap_err().kind, ErrorKind::LimitReached);
        questions.ask(&"sb-0a1b2c3e".parse().unwrap(), SCALE).await.unwrap();
        tokio::time::advance(ONE_MORE).await;
        questions.ask(&id(), SCALE).await.unwrap();
    }
}
