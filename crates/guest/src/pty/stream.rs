//! A terminal's output on its way to a client: scrollback, what follows, `Exit`.

use std::io;
use std::task::{Context, Poll, ready};

use crate::exec::{exit_chunk, to_chunk};
use crate::output::Reader;
use crate::reply::{Chunk, Source};

/// Dropping it detaches the client.
pub(crate) struct TerminalStream {
    reader: Reader,
    done: bool,
}

impl TerminalStream {
    pub(crate) fn new(reader: Reader) -> Self {
        Self { reader, done: false }
    }
}

impl Source for TerminalStream {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Chunk>>> {
        if self.done {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(match ready!(self.reader.poll_batch(u64::MAX, context)) {
            Some(batch) => batch.map(to_chunk),
            None => {
                self.done = true;
                match self.reader.output().exit() {
                    Some(exit) => Ok(exit_chunk(exit)),
                    None => Err(io::Error::other("the output ended before the shell")),
                }
            }
        }))
    }
}
