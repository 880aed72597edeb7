//! What a sandbox has logged: rows, and how to ask for them.
//!
//! `POST /v1/logs` with a [`Query`] answers JSON lines: [`Row`]s, the newest [`Query::limit`] that match, oldest first.
//! A blank line ends this history. With [`Query::follow`] the rows that are logged from then on come after it, none lost
//! and none twice, until the caller leaves; without, the answer ends there. An answer that breaks off before the blank
//! line is not the whole history.
//!
//! The agent keeps rows in a [`journal`] on the sandbox's disk.

pub mod journal;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use warren_types::ExecId;

/// Most rows of history in one answer.
pub const MAX_LIMIT: u32 = 10_000;
/// Longest line of one row, in bytes as they were written. A longer one becomes several rows.
pub const MAX_LINE_BYTES: usize = 16 * 1024;
/// Latest time a row may have, on the last days of the year 9999: later ones cannot be written in every time zone.
pub const MAX_TIME_MS: u64 = 253_402_207_200_000;
/// Longest row as JSON: every byte of its line written as `\u0000`, and room for the rest.
pub const MAX_ROW_BYTES: usize = 128 * 1024;

/// Where a row comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A text file under `/var/log`.
    VarLog,
    /// Standard output of a command, and its end.
    ExecStdout,
    /// Standard error of a command.
    ExecStderr,
    /// The journal about itself: what it could not keep.
    Agent,
}

/// One line that was logged, or the end of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// When it was observed, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    pub source: Source,
    /// Without its line break; what was not UTF-8 is replaced.
    pub line: String,
    /// Of [`Source::VarLog`]: the file, absolute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The command it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec_id: Option<ExecId>,
    /// That command as it was asked for, cut where it is long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// The program and its arguments, where there are arguments; cut where they are long.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub argv: Vec<String>,
    /// Marks the end of the command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
}

/// Which rows are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// First moment, in milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<u64>,
    /// Last moment, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<u64>,
    /// Text that the line contains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Any of these; all when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Source>,
}

/// A question for rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Query {
    pub filter: Filter,
    /// Most rows of history; [`MAX_LIMIT`] at most. Not a limit of what is followed.
    pub limit: u32,
    /// Goes on with live rows after the history. [`Filter::until_ms`] then means nothing.
    #[serde(default)]
    pub follow: bool,
}

// === impl Source ===

impl Source {
    pub const ALL: [Self; 4] = [Self::VarLog, Self::ExecStdout, Self::ExecStderr, Self::Agent];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::VarLog => "var_log",
            Self::ExecStdout => "exec_stdout",
            Self::ExecStderr => "exec_stderr",
            Self::Agent => "agent",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Debug, thiserror::Error)]
#[error("unknown source {0:?}: expected var_log, exec_stdout, exec_stderr or agent")]
pub struct UnknownSource(String);

impl FromStr for Source {
    type Err = UnknownSource;

    fn from_str(text: &str) -> Result<Self, UnknownSource> {
        let found = Self::ALL.into_iter().find(|source| source.as_str() == text);
        found.ok_or_else(|| UnknownSource(text.to_owned()))
    }
}

// === impl Filter ===

impl Filter {
    /// Whether a row with these properties is wanted.
    #[must_use]
    pub fn matches(&self, time_ms: u64, source: Source, line: &str) -> bool {
        self.since_ms.is_none_or(|since| since <= time_ms)
            && self.until_ms.is_none_or(|until| time_ms <= until)
            && (self.sources.is_empty() || self.sources.contains(&source))
            && self.text.as_ref().is_none_or(|text| line.contains(text))
    }
}

// === impl Query ===

impl Query {
    /// As it is carried out: within the limit, and without an end where live rows follow.
    #[must_use]
    pub fn checked(mut self) -> Self {
        self.limit = self.limit.min(MAX_LIMIT);
        if self.follow {
            self.filter.until_ms = None;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_the_same_words_everywhere() {
        for source in Source::ALL {
            assert_eq!(source.as_str().parse::<Source>().unwrap(), source);
            assert_eq!(serde_json::to_string(&source).unwrap(), format!("\"{source}\""));
        }
        assert!("exec".parse::<Source>().is_err());
    }

    #[test]
    fn a_filter_wants_what_fits_all_of_it() {
        let filter = Filter {
            since_ms: Some(10),
            until_ms: Some(20),
            text: Some("error".to_owned()),
            sources: vec![Source::ExecStderr, Source::VarLog],
        };
        assert!(filter.matches(10, Source::VarLog, "an error"));
        assert!(filter.matches(20, Source::ExecStderr, "error"));
        assert!(!filter.matches(9, Source::VarLog, "error"));
        assert!(!filter.matches(21, Source::VarLog, "error"));
        assert!(!filter.matches(15, Source::ExecStdout, "error"));
        assert!(!filter.matches(15, Source::VarLog, "Error"), "case counts");
        assert!(Filter::default().matches(0, Source::Agent, ""));
    }

    #[test]
    fn the_longest_row_fits() {
        let row = Row {
            time_ms: u64::MAX,
            source: Source::ExecStdout,
            line: "\u{1}".repeat(MAX_LINE_BYTES),
            path: Some("\u{1}".repeat(1024)),
            exec_id: Some("0123abcd".parse().unwrap()),
            command: Some("\u{1}".repeat(700)),
            argv: vec!["\u{1}".repeat(700)],
            exit_code: Some(i32::MIN),
        };
        assert!(serde_json::to_vec(&row).unwrap().len() < MAX_ROW_BYTES);
    }
}
