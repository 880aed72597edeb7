//! The rows of one command.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use warren_guest_api::exec::{Exit, ExitReason};
use warren_guest_api::logs::Source;
use warren_types::ExecId;

use super::Journal;
use super::intake::{Bucket, Intake, REFILL, Taken};
use super::store::{CommandOrigin, Entry, Origin};
use crate::clock::now_ms;
use crate::log::Stream;

/// Takes what a command writes. Costs next to nothing for output beyond what is logged.
pub(crate) struct CommandLog {
    journal: Rc<Journal>,
    origin: Arc<CommandOrigin>,
    state: RefCell<State>,
}

struct State {
    bucket: Bucket,
    stdout: Intake,
    stderr: Intake,
    /// Somebody sees to it that what is left out is told of, should no more come.
    attended: bool,
}

impl CommandLog {
    /// `command` and `arguments` are what is shown of it in every row.
    pub(crate) fn new(journal: &Rc<Journal>, id: ExecId, command: &str, arguments: &[String]) -> Rc<Self> {
        let argv = match arguments {
            // What a shell reads has no words yet.
            [] => Vec::new(),
            _ => std::iter::once(command)
                .chain(arguments.iter().map(String::as_str))
                .map(str::to_owned)
                .collect(),
        };
        let state = State {
            bucket: Bucket::new(Instant::now()),
            stdout: Intake::default(),
            stderr: Intake::default(),
            attended: false,
        };
        Rc::new(Self {
            journal: Rc::clone(journal),
            origin: CommandOrigin::new(id, command.to_owned(), argv),
            state: RefCell::new(state),
        })
    }

    pub(crate) fn take(self: &Rc<Self>, stream: Stream, bytes: &[u8]) {
        let state = &mut *self.state.borrow_mut();
        let intake = match stream {
            Stream::Stdout => &mut state.stdout,
            Stream::Stderr => &mut state.stderr,
        };
        let (now, time) = (Instant::now(), now_ms());
        intake.take(bytes, &mut state.bucket, now, &mut |taken| self.add(source_of(stream), taken, time));
        if intake.owes_word() && !std::mem::replace(&mut state.attended, true) {
            self.attend();
        }
    }

    /// The command has ended.
    pub(crate) fn finish(&self, exit: Exit) {
        let time = now_ms();
        {
            let state = &mut *self.state.borrow_mut();
            state.stdout.finish(&mut |taken| self.add(Source::ExecStdout, taken, time));
            state.stderr.finish(&mut |taken| self.add(Source::ExecStderr, taken, time));
        }
        self.journal.add(Entry {
            time_ms: time,
            source: Source::ExecStdout,
            line: describe(exit).into_bytes(),
            origin: Origin::Command(Arc::clone(&self.origin)),
            exit_code: Some(exit.code),
        });
    }

    /// A command that has flooded and falls silent has no next line to say it before.
    fn attend(self: &Rc<Self>) {
        let log = Rc::downgrade(self);
        tokio::task::spawn_local(async move {
            loop {
                // A next line would have been taken by then, and said it.
                tokio::time::sleep(REFILL + REFILL / 2).await;
                let Some(log) = log.upgrade() else { return };
                let state = &mut *log.state.borrow_mut();
                if state.bucket.is_filled(Instant::now()) {
                    let time = now_ms();
                    state.stdout.tell(&mut |taken| log.add(Source::ExecStdout, taken, time));
                    state.stderr.tell(&mut |taken| log.add(Source::ExecStderr, taken, time));
                    state.attended = false;
                    return;
                }
            }
        });
    }

    fn add(&self, source: Source, taken: Taken, time_ms: u64) {
        let line = match taken {
            Taken::Line(line) => line,
            Taken::LeftOut(bytes) => {
                format!("{bytes} bytes of output are not logged here: they came too fast").into_bytes()
            }
        };
        let origin = Origin::Command(Arc::clone(&self.origin));
        self.journal.add(Entry { time_ms, source, line, origin, exit_code: None });
    }
}

fn source_of(stream: Stream) -> Source {
    match stream {
        Stream::Stdout => Source::ExecStdout,
        Stream::Stderr => Source::ExecStderr,
    }
}

fn describe(exit: Exit) -> String {
    let code = exit.code;
    match exit.reason {
        ExitReason::Exited => format!("exited with code {code}"),
        ExitReason::Signalled if code > 128 => format!("ended by signal {} (code {code})", code - 128),
        ExitReason::Signalled => format!("ended by a signal (code {code})"),
        ExitReason::TimedOut => format!("ended by its time limit (code {code})"),
        ExitReason::Abandoned => {
            format!("ended because nobody was attached to it for too long (code {code})")
        }
    }
}
