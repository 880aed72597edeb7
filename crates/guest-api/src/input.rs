//! Input of commands and terminals: a call of its own, with credit of its own.
//!
//! ```text
//!   sender ── request's body: Stdin, Stdin, …, StdinEnd ──▶ agent ── as it is read ──▶ command
//!          ◀── answer's body: InputTaken, InputTaken, … ───
//! ```
//!
//! The agent takes every byte off the wire as soon as it is there, so the body never stands still, however long the
//! command does not read: a sender that leaves is noticed at once, and its stream can always be ended. What bounds the
//! agent's memory is [`WINDOW`]: bytes of the body, frames' headers included, that a sender may be ahead of what the
//! command has taken. It may begin with that many, and each [`Frame::InputTaken`] allows it as many more as it says.
//! A sender that goes beyond breaks the contract: the agent breaks the answer off and forgets what it has not yet handed
//! on.
//!
//! The answer ends in order once all of the body has arrived, or as soon as no more input is wanted: after `StdinEnd`, when
//! the command has closed its input, or when it has ended. A sender that leaves ends its body and waits for that, which
//! takes no longer than the way there and back; from then on what it sent is the agent's to hand on, for as long as the
//! command runs. HTTP/2 throws away what is under way of a call that is given up.
//!
//! [`Frame::InputTaken`]: crate::frame::Frame::InputTaken

use crate::frame::{HEADER, MAX_PAYLOAD};

/// Bytes a sender may be ahead of the command: as many as the largest frame has, which is handed on as a whole.
pub const WINDOW: usize = HEADER + MAX_PAYLOAD;

/// The sender's side of the window.
#[derive(Debug)]
pub struct Credit {
    left: usize,
}

/// An agent that says it took what it was never sent.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} bytes of input are said to be taken, of {1} that were sent")]
pub struct BadGrant(u32, usize);

impl Default for Credit {
    fn default() -> Self {
        Self { left: WINDOW }
    }
}

impl Credit {
    /// Bytes that may be sent now.
    #[must_use]
    pub fn left(&self) -> usize {
        self.left
    }

    /// Takes credit for a piece of `wanted` bytes; how many of them may be sent.
    pub fn spend(&mut self, wanted: usize) -> usize {
        let spent = wanted.min(self.left);
        self.left -= spent;
        spent
    }

    /// The agent has taken that many.
    pub fn grant(&mut self, taken: u32) -> Result<(), BadGrant> {
        let under_way = WINDOW - self.left;
        match usize::try_from(taken) {
            Ok(bytes) if (1..=under_way).contains(&bytes) => {
                self.left += bytes;
                Ok(())
            }
            _ => Err(BadGrant(taken, under_way)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_is_what_was_granted_and_never_more_than_the_window() {
        let mut credit = Credit::default();
        assert_eq!(credit.grant(1), Err(BadGrant(1, 0)), "nothing was sent");
        assert_eq!(credit.spend(10), 10);
        assert_eq!(credit.spend(usize::MAX), WINDOW - 10);
        assert_eq!((credit.left(), credit.spend(1)), (0, 0));
        assert_eq!(credit.grant(0), Err(BadGrant(0, WINDOW)), "a grant of nothing is none");
        credit.grant(7).unwrap();
        assert_eq!(credit.left(), 7);
        assert!(credit.grant(u32::MAX).is_err());
        credit.grant(u32::try_from(WINDOW - 7).unwrap()).unwrap();
        assert_eq!(credit.left(), WINDOW);
    }
}
