//! Room for every sandbox to watch files.
//!
//! What watches files in a sandbox counts against the sandbox, which has limits of its own, and against root of the host,
//! who made its namespace and whose limit is 128 by default: enough for a desktop, not for sandboxes that each have an
//! agent. The limit that protects the host is the sandbox's.

use tracing::warn;

/// Of each, for some thousands of sandboxes that all go to their own limits. The memory is theirs.
const LIMITS: [(&str, u64); 2] = [
    ("/proc/sys/fs/inotify/max_user_instances", 512 * 1024),
    ("/proc/sys/fs/inotify/max_user_watches", 256 * 1024 * 1024),
];

/// Raises the host's limits where they are lower.
pub(crate) fn raise_limits() {
    for (path, wanted) in LIMITS {
        let now = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
        if now.is_some_and(|now| now < wanted)
            && let Err(error) = std::fs::write(path, wanted.to_string())
        {
            warn!(%error, path, "could not be raised: with many sandboxes, files under /var/log will not be logged in some");
        }
    }
}
