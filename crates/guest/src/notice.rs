//! Waking whoever waits for a change, on one thread.
//!
//! A waiter looks first and registers second; nothing can happen in between, because everything runs on the agent's
//! one thread. A waiter that leaves takes its registration with it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Something that changes.
#[derive(Default)]
pub(crate) struct Notice {
    wakers: RefCell<BTreeMap<u64, Waker>>,
    next_key: Cell<u64>,
}

/// A place in the line of those who are woken by a [`Notice`].
pub(crate) struct Waiter {
    notice: Rc<Notice>,
    key: u64,
}

impl Notice {
    /// Wakes everybody who registered since the last call.
    pub(crate) fn notify(&self) {
        for waker in std::mem::take(&mut *self.wakers.borrow_mut()).into_values() {
            waker.wake();
        }
    }

    pub(crate) fn waiter(self: &Rc<Self>) -> Waiter {
        let key = self.next_key.get();
        self.next_key.set(key + 1);
        Waiter { notice: Rc::clone(self), key }
    }

    /// Waits until `look` has an answer; it is asked again after each change.
    pub(crate) async fn until<T>(self: &Rc<Self>, mut look: impl FnMut() -> Option<T>) -> T {
        let waiter = self.waiter();
        poll_fn(|context| match look() {
            Some(answer) => Poll::Ready(answer),
            None => {
                waiter.register(context);
                Poll::Pending
            }
        })
        .await
    }
}

impl Waiter {
    pub(crate) fn register(&self, context: &mut Context<'_>) {
        self.notice.wakers.borrow_mut().insert(self.key, context.waker().clone());
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.notice.wakers.borrow_mut().remove(&self.key);
    }
}
