//! Limits of the host's kernel that count what all sandboxes have together.
//!
//! Each of these is small on many machines and no part of a sandbox's namespaces: one sandbox that takes all of it leaves the
//! others none. They are raised to where a sandbox runs into its own limits first: of memory, which all of these things
//! take, of processes, of terminals, of watches. Beside them this process has a limit of its own, of open files.

use std::io;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;
use warren_network::SLOTS;
use warren_runtime_container::MAX_TERMINALS;

struct Limit {
    path: &'static str,
    wanted: u64,
    /// What may be when it stays as it is.
    otherwise: &'static str,
}

const LIMITS: [Limit; 6] = [
    // What watches files in a sandbox counts against root of the host too, who made its namespace, and who has 128 by default.
    Limit {
        path: "/proc/sys/fs/inotify/max_user_instances",
        wanted: 512 * 1024,
        otherwise: "with many sandboxes, files under /var/log will not be logged in some",
    },
    Limit {
        path: "/proc/sys/fs/inotify/max_user_watches",
        wanted: 256 * 1024 * 1024,
        otherwise: "with many sandboxes, files under /var/log will not be logged in some",
    },
    Limit {
        path: "/proc/sys/kernel/pty/max",
        // The kernel keeps 1024 back for the host.
        wanted: SLOTS as u64 * MAX_TERMINALS as u64 + 4096,
        otherwise: "some sandboxes can take all terminals from the others",
    },
    Limit {
        path: "/proc/sys/kernel/pid_max",
        wanted: 4 * 1024 * 1024,
        otherwise: "some sandboxes can take all process numbers from the others",
    },
    Limit {
        path: "/proc/sys/fs/file-max",
        wanted: 1 << 40,
        otherwise: "some sandboxes can keep the others from opening files",
    },
    Limit {
        path: "/proc/sys/fs/aio-max-nr",
        wanted: 1 << 30,
        otherwise: "some sandboxes can keep the others from asynchronous I/O, as databases use it",
    },
];

/// Files this process may have open. Each sandbox takes some eight, each connection one or two; where people log in, and for
/// services, the limit is usually 1024. It is as much as kernels allow unless they are told otherwise.
const OPEN_FILES: u64 = 1024 * 1024;
/// What sandboxes in all slots take, and as much for connections.
const ENOUGH_FILES: u64 = SLOTS as u64 * 16;

/// Raises them where they are lower.
pub(crate) fn raise() {
    let open_files = raise_open_files();
    if open_files < ENOUGH_FILES {
        warn!(
            open_files,
            "could not be raised further: with many sandboxes or connections, some will be refused"
        );
    }
    for Limit { path, wanted, otherwise } in LIMITS {
        let now = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
        if now.is_some_and(|now| now < wanted)
            && let Err(error) = std::fs::write(path, wanted.to_string())
        {
            warn!(%error, path, "could not be raised: {otherwise}");
        }
    }
}

/// Raises how many files this process may have open: to as many as is wanted, or else to what it may allow itself. How many
/// that is.
pub fn raise_open_files() -> u64 {
    let now = getrlimit(Resource::Nofile);
    let is_enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= OPEN_FILES);
    if is_enough(now.current) {
        return OPEN_FILES;
    }
    let hard = if is_enough(now.maximum) { now.maximum } else { Some(OPEN_FILES) };
    for wanted in
        [Rlimit { current: Some(OPEN_FILES), maximum: hard }, Rlimit { current: now.maximum, ..now }]
    {
        if setrlimit(Resource::Nofile, wanted).is_ok() {
            break;
        }
    }
    getrlimit(Resource::Nofile).current.unwrap_or(OPEN_FILES)
}

/// Whether something failed for want of what this process or its host may have of something at all, and says nothing of the thing
/// it was tried on: the same may work a moment later.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(code, Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS | Errno::AGAIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_short_is_told_from_what_is_not_there() {
        for (errno, short) in
            [(Errno::MFILE, true), (Errno::NOMEM, true), (Errno::NOENT, false), (Errno::SRCH, false)]
        {
            assert_eq!(is_shortage(&errno.into()), short, "{errno}");
        }
        assert!(!is_shortage(&io::Error::other("of ours")));
    }
}
