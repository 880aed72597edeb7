//! The life of one command after its start: its output is taken in, its limits are kept, its end is noted.
//!
//! A command has ended when its own process has. What that wrote is in the pipes by then and is all taken in; what its
//! children still write is waited for a moment and thrown away after that, so that they neither hold up the end nor die
//! of a closed pipe.

use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::unix::pipe;
use warren_guest_api::exec::{EXIT_TIMED_OUT, Exit, ExitReason};

use super::Command;
use super::command::Pipes;
use crate::buffer::{self, Buffer};
use crate::log::Stream;
use crate::output::Output;
use crate::spawn::Ending;

/// How long children that hold the pipes may still add to the output.
const GRACE: Duration = Duration::from_millis(20);
/// Reads from this size on keep their buffer instead of being copied out of it.
const LARGE_READ: usize = 64 * 1024;
/// What a pipe is widened to once it was found full; it holds 64 KiB at first.
const WIDE_PIPE: usize = 1024 * 1024;

pub(super) async fn supervise(command: &Rc<Command>, pipes: Pipes) {
    let Some(process) = &command.process else { return };
    let taken = [Cell::new(0), Cell::new(0)];
    let mut drained = false;
    let exit = {
        let mut pumps = pin!(async {
            tokio::join!(
                pump(&command.output, &pipes.stdout, Stream::Stdout, &taken[0]),
                pump(&command.output, &pipes.stderr, Stream::Stderr, &taken[1]),
            )
        });
        let mut limits = pin!(limits(command));
        let mut killed_for = None;
        let ending = loop {
            tokio::select! {
                ending = process.wait() => break ending,
                _ = &mut pumps, if !drained => drained = true,
                reason = &mut limits, if killed_for.is_none() => {
                    killed_for = Some(reason);
                    process.kill_all();
                }
            }
        };
        if !drained {
            let due = [in_pipe(&pipes.stdout) + taken[0].get(), in_pipe(&pipes.stderr) + taken[1].get()];
            let rest = async {
                let is_there = || (taken[0].get() >= due[0] && taken[1].get() >= due[1]).then_some(());
                command.output.until(is_there).await;
                tokio::time::sleep(GRACE).await;
            };
            tokio::select! {
                _ = &mut pumps => drained = true,
                () = rest => {}
            }
        }
        exit(ending, killed_for)
    };
    command.finish(exit);
    if !drained {
        tokio::task::spawn_local(async move { tokio::join!(discard(&pipes.stdout), discard(&pipes.stderr)) });
    }
}

fn exit(ending: Ending, killed_for: Option<ExitReason>) -> Exit {
    match (ending, killed_for) {
        (Ending::Exited(code), _) => Exit { code, reason: ExitReason::Exited },
        (Ending::Signalled(_), Some(ExitReason::TimedOut)) => {
            Exit { code: EXIT_TIMED_OUT, reason: ExitReason::TimedOut }
        }
        (Ending::Signalled(signal), reason) => {
            Exit { code: 128 + signal, reason: reason.unwrap_or(ExitReason::Signalled) }
        }
        (Ending::Unknown, _) => Exit { code: -1, reason: ExitReason::Signalled },
    }
}

/// Waits for the moment at which a limit ends the command, and says which.
async fn limits(command: &Command) -> ExitReason {
    tokio::select! {
        () = after(command.timeout) => ExitReason::TimedOut,
        () = abandoned(&command.output, command.abandon_after) => ExitReason::Abandoned,
    }
}

async fn after(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

/// Waits until its last client has been gone for that long.
async fn abandoned(output: &Output, time: Option<Duration>) {
    match time {
        Some(time) => output.until_abandoned(time).await,
        None => std::future::pending().await,
    }
}

/// Takes in one stream until its end, as fast as the log has room.
async fn pump(output: &Rc<Output>, pipe: &pipe::Receiver, stream: Stream, taken: &Cell<u64>) {
    let mut widened = false;
    loop {
        output.until_room().await;
        if pipe.readable().await.is_err() {
            return;
        }
        let most = output.room().min(buffer::SIZE);
        if most == 0 {
            continue;
        }
        let mut buffer = Buffer::take();
        let count = match pipe.try_read(&mut buffer[..most]) {
            Ok(0) => return,
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(_) => return,
        };
        taken.set(taken.get() + count as u64);
        let is_large = count >= LARGE_READ;
        let bytes = if is_large { buffer.freeze(count) } else { Bytes::copy_from_slice(&buffer[..count]) };
        output.take_in(stream, bytes);
        if is_large {
            if !widened {
                widened = true;
                // Refused once the user has many wide pipes; then it stays narrow.
                let _ = rustix::pipe::fcntl_setpipe_size(pipe, WIDE_PIPE);
            }
            // Lets what was read be sent before more is read.
            tokio::task::yield_now().await;
            output.pace().await;
        }
    }
}

fn in_pipe(pipe: &pipe::Receiver) -> u64 {
    rustix::io::ioctl_fionread(pipe).unwrap_or(0)
}

/// Reads and forgets until the last holder of the other end has gone.
async fn discard(pipe: &pipe::Receiver) {
    loop {
        if pipe.readable().await.is_err() {
            return;
        }
        let mut buffer = Buffer::take();
        match pipe.try_read(&mut buffer) {
            Ok(0) => return,
            Ok(_) => tokio::task::yield_now().await,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}
