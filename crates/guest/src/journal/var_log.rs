//! Text files under `/var/log`, as far down as `/var/log/folder/file`: what is added to them is logged.
//!
//! What they held when the sandbox was made came with its template and is no history of this sandbox. Afterwards a new
//! file counts from its beginning, and one that was there from where it was left. The kernel tells what changes, so a
//! sandbox that logs nothing pays nothing; all looking at files is done on a thread, since a file may keep one waiting.

mod tails;
mod watch;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::inotify;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use warren_guest_api::logs::Source;

use self::tails::Tails;
use self::watch::Watch;
use super::intake::{REFILL, Taken};
use super::store::{Entry, Origin, positions_path};
use super::{Journal, now_ms};
use crate::spawn::describe;
use crate::sys;
use crate::workers::Workers;

/// Changes are collected for this long before the files are looked at.
const GATHER: Duration = Duration::from_millis(50);

/// What is done on a thread.
struct Follower {
    watch: Watch,
    tails: Tails,
}

struct Found {
    rows: Vec<(Arc<str>, Taken)>,
    /// How far files are taken in, when that has changed.
    positions: Option<Vec<u8>>,
}

/// Follows the files in `folder` until the agent ends.
pub(crate) fn start(folder: &Path, journal: &Rc<Journal>, workers: &Workers) {
    let flags = inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC;
    let opened = inotify::init(flags).and_then(|fd| Ok((rustix::io::fcntl_dupfd_cloexec(&fd, 0)?, fd)));
    let opened = opened.map_err(std::io::Error::from).and_then(|(fd, copy)| {
        let events = sys::watch(fd, Interest::READABLE)?;
        Ok((events, copy))
    });
    let (events, inotify) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            let reason = describe(&error);
            return journal.note(format!("files under {} are not logged: {reason}", folder.display()));
        }
    };
    let (watch, files) = Watch::start(folder, inotify);
    let tails = Tails::open(files, &positions_path(&journal.folder));
    let follower = Follower { watch, tails };
    tokio::task::spawn_local(follow(events, follower, Rc::clone(journal), workers.clone()));
}

async fn follow(events: AsyncFd<OwnedFd>, mut follower: Follower, journal: Rc<Journal>, workers: Workers) {
    // What is due at the start can wait: a sandbox that was just made has better things to do.
    let mut due = follower.tails.is_due();
    loop {
        tokio::select! {
            ready = events.readable() => match ready {
                Ok(mut ready) => ready.clear_ready(),
                Err(_) => return,
            },
            () = tokio::time::sleep(REFILL), if due => {}
        }
        tokio::time::sleep(GATHER).await;
        let looked = workers.run(move || {
            let found = follower.look(Instant::now());
            (follower, found)
        });
        let Ok((returned, found)) = looked.await else { return };
        follower = returned;
        due = follower.tails.is_due();
        let time = now_ms();
        for (path, taken) in found.rows {
            journal.add(row(path, taken, time));
        }
        if let Some(positions) = found.positions {
            journal.save_positions(positions);
        }
    }
}

fn row(path: Arc<str>, taken: Taken, time_ms: u64) -> Entry {
    let line = match taken {
        Taken::Line(line) => line,
        Taken::LeftOut(bytes) => {
            format!("{bytes} bytes of this file are not logged here: they came too fast").into_bytes()
        }
    };
    Entry { time_ms, source: Source::VarLog, line, origin: Origin::File(path), exit_code: None }
}

// === impl Follower ===

impl Follower {
    fn look(&mut self, now: Instant) -> Found {
        let changed = self.watch.changed();
        let mut rows = Vec::new();
        self.tails.look(changed, now, &mut |path, taken| rows.push((Arc::clone(path), taken)));
        Found { rows, positions: self.tails.take_positions() }
    }
}
