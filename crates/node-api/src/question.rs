//! What a sandbox asks about itself that only the control plane can answer, by way of its node.

use serde::{Deserialize, Serialize};
use warren_types::{Error, SandboxId};

/// A line of the stream of questions. The same one comes again after the stream broke off, until it is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// What its answer is sent to.
    pub number: u64,
    pub sandbox_id: SandboxId,
    pub subject: Subject,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// Answered with [`Answer::About`].
    About,
    /// A program in it asks for another size. Answered with [`Answer::Scaled`].
    Scale {
        /// As it was asked for, if it was.
        memory_mb: Option<i64>,
    },
}

/// An answer to a [`Question`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    About { region: String, template: String },
    Scaled { memory_mb: u32, cpu_percent: u32 },
    Refused(Error),
}
