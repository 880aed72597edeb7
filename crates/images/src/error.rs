//! What can go wrong with an image, as sentences for whoever asked for it.

use std::io;
use std::path::Path;

use rustix::io::Errno;

/// Why an image could not be had. Its text never holds a password, a token or the query of a signed address.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("{text:?} is no image reference: {wrong}")]
    Reference { text: String, wrong: String },
    #[error("{what} was not found")]
    NotFound { what: String },
    /// The registry wants a login, or another one.
    #[error("{registry} refused {what}: {why}")]
    Denied { registry: String, what: String, why: String },
    /// It has answered enough for now.
    #[error("{registry} answers no more for now: too much was asked of it; try again later{or}{said}")]
    Busy {
        registry: String,
        /// What else may help.
        or: &'static str,
        said: String,
    },
    /// We do not go there.
    #[error("{host} is not to be reached: {why}")]
    Unreachable { host: String, why: String },
    /// The connection could not be made, or broke.
    #[error("could not talk to {host}: {why}")]
    Network { host: String, why: String },
    #[error("{host} sent nothing for {seconds} s")]
    Stalled { host: String, seconds: u64 },
    /// It, or what it sends us to, has a trouble of its own.
    #[error("{host} cannot answer now: it answered {status}{said}; try again later")]
    Down { host: String, status: http::StatusCode, said: String },
    /// The registry answered what no registry should.
    #[error("{host} did not answer as a registry does: {why}")]
    Registry { host: String, why: String },
    /// A fine image, but none that a sandbox can be made from.
    #[error("this image cannot be used: {0}")]
    Unsupported(String),
    /// Not what its digests, its manifest or the formats say.
    #[error("the image is broken: {0}")]
    Broken(String),
    #[error("the image is too large: {0}")]
    TooLarge(String),
    #[error("the image does not fit: no space is left {0}")]
    NoSpace(String),
    #[error("the import was called off")]
    CalledOff,
    #[error("could not {action}")]
    Io { action: String, source: io::Error },
}

// === impl ImageError ===

impl ImageError {
    /// An error of the host's file system, in which a full disk is told apart.
    pub(crate) fn io(action: impl Into<String>, source: impl Into<io::Error>) -> Self {
        let (action, source) = (action.into(), source.into());
        match Errno::from_io_error(&source) {
            Some(Errno::NOSPC | Errno::DQUOT) => Self::NoSpace(format!("to {action}")),
            _ => Self::Io { action, source },
        }
    }

    /// Whether the same request may well be answered a moment later.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Self::Network { .. } | Self::Busy { .. } | Self::Down { .. })
    }

    pub(crate) fn file(verb: &str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::io(format!("{verb} {}", path.display()), source)
    }
}

/// A name of the image for an error: what cannot be printed is escaped, what is long is cut.
pub(crate) fn shown(name: &[u8]) -> String {
    const LONGEST: usize = 200;
    let cut = name.len() > LONGEST;
    let text: String = String::from_utf8_lossy(&name[..name.len().min(LONGEST)])
        .chars()
        .flat_map(char::escape_debug)
        .collect();
    format!("`{text}{}`", if cut { "…" } else { "" })
}
