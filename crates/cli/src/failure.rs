//! How a command fails: the error types a person meets, their hints, and the program's exit codes.
//!
//! | exit code | meaning |
//! | --- | --- |
//! | 0 | done |
//! | 1 | an error on this side: a file, the configuration, an answer that makes no sense |
//! | 2 | the command line is wrong |
//! | 3 | the server refused (any 4xx but 409) |
//! | 4 | the server reports a conflict (409) |
//! | 5 | the server failed (5xx), or could not be reached |
//! | 255 | `exec`: the connection ended and the command's exit code is not known |
//!
//! `exec` otherwise ends with the code of the command it ran, 130 after a detach, 141 when its own stdout was closed.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;

use crate::output::{Output, printable};

/// The same table, for `warren help`.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    an error on this side (a file, the configuration, an unreadable answer)
  2    the command line is wrong
  3    the server refused the request (4xx)
  4    the server reports a conflict (409)
  5    the server failed (5xx) or could not be reached
  `exec` ends with the code of the command it ran; 255 when that is lost, 130 after a detach.";

pub(crate) const LOCAL: u8 = 1;
pub(crate) const USAGE: u8 = 2;
pub(crate) const REFUSED: u8 = 3;
pub(crate) const CONFLICT: u8 = 4;
pub(crate) const SERVER: u8 = 5;
pub(crate) const DETACHED: u8 = 130;
pub(crate) const STDOUT_CLOSED: u8 = 141;
pub(crate) const LOST: u8 = 255;

/// The server answered, and the answer is no.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Refused {
    pub(crate) status: u16,
    pub(crate) message: String,
    pub(crate) retryable: bool,
    pub(crate) about: About,
}

/// What a request was about: says where to look for one that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum About {
    Sandbox,
    Snapshot,
    Image,
    /// Something in a sandbox, or what has a hint of its own.
    Other,
}

/// No answer: nothing listens, the name does not resolve, the connection broke.
#[derive(Debug, thiserror::Error)]
#[error("could not reach {url}: {reason}")]
pub(crate) struct Unreachable {
    pub(crate) url: String,
    pub(crate) reason: String,
    /// Whether the request may have had its effect although no answer came.
    pub(crate) maybe_done: bool,
}

/// A command line that parses and still cannot be meant.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// An error of this side with something to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Hinted {
    pub(crate) message: String,
    pub(crate) hint: String,
}

/// The output of a command that ran is incomplete and its exit code is not known.
#[derive(Debug, thiserror::Error)]
#[error("lost: {reason}")]
pub(crate) struct Lost {
    pub(crate) reason: String,
    pub(crate) hint: String,
}

/// What was followed is not to be followed any more: a connection that broke is not made again.
#[derive(Debug, thiserror::Error)]
#[error("it is not followed any more")]
pub(crate) struct Released;

/// Whoever read our stdout has gone. Ends the program without a word.
#[derive(Debug, thiserror::Error)]
#[error("stdout is closed")]
pub(crate) struct StdoutClosed;

/// Something was made, and its name could not be written to stdout.
#[derive(Debug, thiserror::Error)]
#[error("the {made} was made, but its name could not be told: {reason}")]
pub(crate) struct Untold {
    pub(crate) made: String,
    pub(crate) reason: String,
}

/// Several things were asked for and some failed; each failure has been printed already.
#[derive(Debug, thiserror::Error)]
#[error("{failed} of {total} failed")]
pub(crate) struct SomeFailed {
    pub(crate) failed: usize,
    pub(crate) total: usize,
    pub(crate) exit_code: u8,
}

/// Does the same to each of several things and says so; goes on after a failure, so that one that is stale does not hold up the others.
/// The first failure decides the exit code. `verb` and `done` are words as in `delete` and `deleted`.
pub(crate) async fn each<T: std::fmt::Display>(
    output: Output,
    (verb, done): (&str, &str),
    all: &[T],
    mut work: impl AsyncFnMut(&T) -> anyhow::Result<()>,
) -> anyhow::Result<ExitCode> {
    let (mut failed, mut first) = (0, None);
    for one in all {
        let name = printable(&one.to_string()).into_owned();
        match work(one).await.with_context(|| format!("could not {verb} {name}")) {
            Ok(()) => output.note(&format!("{done} {name}")),
            Err(error) => {
                report(&error);
                failed += 1;
                first.get_or_insert(exit_code(&error));
            }
        }
    }
    match first {
        None => Ok(ExitCode::SUCCESS),
        Some(exit_code) => Err(SomeFailed { failed, total: all.len(), exit_code }.into()),
    }
}

/// Joins an error and its causes, leaving out a cause that repeats what was just said.
pub(crate) fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

pub(crate) fn usage(message: impl Into<String>) -> anyhow::Error {
    Usage(message.into()).into()
}

pub(crate) fn hinted(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    Hinted { message: message.into(), hint: hint.into() }.into()
}

/// The exit code of the program when a command ends with this error.
pub(crate) fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<StdoutClosed>() {
        return 0;
    }
    if let Some(some) = error.downcast_ref::<SomeFailed>() {
        return some.exit_code;
    }
    if let Some(refused) = error.downcast_ref::<Refused>() {
        return match refused.status {
            409 => CONFLICT,
            400..=499 => REFUSED,
            500.. => SERVER,
            _ => LOCAL,
        };
    }
    if error.is::<Unreachable>() {
        return SERVER;
    }
    if error.is::<Usage>() {
        return USAGE;
    }
    if error.is::<Lost>() {
        return LOST;
    }
    LOCAL
}

/// What a person can do about it.
fn hint(error: &anyhow::Error) -> Option<String> {
    if let Some(hinted) = error.downcast_ref::<Hinted>() {
        return Some(hinted.hint.clone());
    }
    if let Some(lost) = error.downcast_ref::<Lost>() {
        return Some(lost.hint.clone());
    }
    if let Some(unreachable) = error.downcast_ref::<Unreachable>() {
        return Some(if unreachable.maybe_done {
            "the request may have been carried out; look before repeating it".to_owned()
        } else {
            "is the server running? `warren serve` starts one; `warren config show` says which address is used".to_owned()
        });
    }
    if error.is::<Usage>() {
        return Some("`warren --help` lists the commands, `warren COMMAND --help` explains one".to_owned());
    }
    let refused = error.downcast_ref::<Refused>()?;
    match refused.status {
        401 => Some(
            "give a key with --api-key or OPENCOMPUTER_API_KEY, or store one with `warren config set api-key -`; \
             `warren keys create --org NAME` on the server makes one"
                .to_owned(),
        ),
        403 => Some("this key may not do that; `warren config show` says which key is used".to_owned()),
        404 => match refused.about {
            About::Sandbox => Some("`warren ls` lists the sandboxes of this key".to_owned()),
            About::Snapshot => Some("`warren snapshots ls` lists the snapshots of this key".to_owned()),
            About::Image => Some("`warren images ls` lists the images of this key".to_owned()),
            About::Other => None,
        },
        410 => Some("a stopped sandbox cannot be used again; `warren create` makes a new one".to_owned()),
        429 => Some("`warren ls --status running` shows what is running; `warren kill ID` ends one".to_owned()),
        300..=399 => Some("point --api-url at the address the server redirects to".to_owned()),
        _ if refused.retryable => Some("the same command may succeed in a moment".to_owned()),
        _ => None,
    }
}

/// Prints an error, its causes and its hint.
pub(crate) fn report(error: &anyhow::Error) {
    if error.is::<StdoutClosed>() || error.is::<SomeFailed>() {
        return;
    }
    let mut text = format!("error: {}\n", crate::output::printable(&chain_of(error.as_ref())));
    if let Some(hint) = hint(error) {
        text.push_str(&format!("hint: {hint}\n"));
    }
    // Not eprint!: it panics when stderr is closed, and there is nobody left to tell.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_does_not_hide_the_exit_code() {
        let refused =
            || Refused { status: 409, message: "busy".to_owned(), retryable: false, about: About::Other };
        let error = anyhow::Error::from(refused()).context("could not kill sb-00000000");
        assert_eq!(exit_code(&error), CONFLICT);
        assert_eq!(chain_of(error.as_ref()), "could not kill sb-00000000: busy");
    }

    #[test]
    fn every_status_has_its_exit_code() {
        for (status, code) in
            [(302, LOCAL), (400, REFUSED), (404, REFUSED), (409, CONFLICT), (500, SERVER), (503, SERVER)]
        {
            let error = anyhow::Error::from(Refused {
                status,
                message: String::new(),
                retryable: false,
                about: About::Other,
            });
            assert_eq!(exit_code(&error), code, "{status}");
        }
    }
}
