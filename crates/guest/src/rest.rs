//! What to do once nothing is going on: give back the memory that work has left behind.
//!
//! One timer at a time, set by work and never by idleness.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use crate::{buffer, sys};

const QUIET: Duration = Duration::from_secs(2);

#[derive(Default)]
pub(crate) struct Rest {
    worked: Cell<bool>,
    waiting: Cell<bool>,
}

impl Rest {
    /// Something has just ended that may have left memory behind.
    pub(crate) fn note_work(self: &Rc<Self>) {
        self.worked.set(true);
        if self.waiting.replace(true) {
            return;
        }
        let rest = Rc::clone(self);
        tokio::task::spawn_local(async move {
            while rest.worked.replace(false) {
                tokio::time::sleep(QUIET).await;
            }
            buffer::trim();
            sys::release_free_memory();
            rest.waiting.set(false);
        });
    }
}
