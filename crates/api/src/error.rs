//! The one error document.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use warren_types::{Error, ErrorKind};

/// Body of every answer that is not a success.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What is wrong and what to do, for a person.
    pub error: String,
    /// A name for programs, where they tell cases apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Figures for programs, where a sentence is not enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<BTreeMap<String, u64>>,
    /// Present and true when the same request may succeed later.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub retryable: bool,
    /// When a limit of the organisation is reached: how many count against it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<u32>,
    /// When a limit of the organisation is reached: that limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

impl From<Error> for ErrorBody {
    fn from(error: Error) -> Self {
        Self {
            retryable: error.kind.retryable(),
            error: error.message,
            code: error.code,
            details: error.details,
            active: None,
            limit: None,
        }
    }
}

/// Status of an error at the public edge.
#[must_use]
pub fn status_of(kind: ErrorKind) -> u16 {
    match kind {
        ErrorKind::Invalid => 400,
        ErrorKind::Unauthenticated => 401,
        ErrorKind::Forbidden => 403,
        ErrorKind::NotFound => 404,
        ErrorKind::Conflict => 409,
        ErrorKind::Gone => 410,
        ErrorKind::TooLarge => 413,
        ErrorKind::LimitReached => 429,
        ErrorKind::Internal => 500,
        ErrorKind::Unsupported => 501,
        ErrorKind::SandboxFailed => 502,
        ErrorKind::Unavailable => 503,
    }
}
