//! The application error: what went wrong, in words for the caller, free of any transport.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What kind of failure it is; the HTTP edge turns it into a status, clients into an exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request can never work as it is.
    Invalid,
    /// No credential, or one that is not known.
    Unauthenticated,
    /// A known credential without the right.
    Forbidden,
    /// It does not exist, or belongs to somebody else.
    NotFound,
    /// It existed and has ended.
    Gone,
    /// It clashes with something that is there or under way.
    Conflict,
    /// A body, a file or a disk would be larger than allowed.
    TooLarge,
    /// A limit of the organisation is reached.
    LimitReached,
    /// The named ability is not there on this server.
    Unsupported,
    /// Nothing wrong with the request; the server cannot serve it at the moment.
    Unavailable,
    /// The sandbox could not be made or woken, or its agent broke the protocol.
    SandboxFailed,
    /// A fault of ours.
    Internal,
}

impl ErrorKind {
    /// Whether the same request may succeed later without being changed.
    #[must_use]
    pub fn retryable(self) -> bool {
        match self {
            Self::Unavailable | Self::SandboxFailed | Self::LimitReached => true,
            Self::Invalid
            | Self::Unauthenticated
            | Self::Forbidden
            | Self::NotFound
            | Self::Gone
            | Self::Conflict
            | Self::TooLarge
            | Self::Unsupported
            | Self::Internal => false,
        }
    }
}

/// An error as the caller may read it. What only an operator may know goes to the log where it is handled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    pub kind: ErrorKind,
    /// One sentence that says what to do.
    pub message: String,
    /// A machine-readable name, where clients tell cases apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Figures for programs, where a sentence is not enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<BTreeMap<String, u64>>,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), code: None, details: None }
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Conflict, message)
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    #[must_use]
    pub fn with_code(mut self, code: &str) -> Self {
        self.code = Some(code.to_owned());
        self
    }

    #[must_use]
    pub fn with_details<const N: usize>(mut self, details: [(&str, u64); N]) -> Self {
        self.details = Some(details.into_iter().map(|(name, value)| (name.to_owned(), value)).collect());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
