//! The life of a sandbox.
//!
//! ```text
//!   Creating ──▶ Running ──▶ Hibernated
//!      │         │  ▲ ▲          │
//!      │         │  │ └──────────┘ wake
//!      ▼         ▼  │
//!        Error ─────┘ when told to      any ──▶ Stopped
//! ```

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a sandbox is in its life, as its node has seen it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxState {
    /// Being made; no caller has been told of it yet.
    Creating,
    /// Its agent answers.
    Running,
    /// Its disk is kept and the next use starts it again.
    Hibernated,
    /// Deleted by its owner. Final.
    Stopped,
    /// Ended by a fault; the reason is reported beside it. Its disk is kept: a wake, a reboot or a restore that is asked for
    /// starts it again, a mere use does not.
    Error,
}

impl SandboxState {
    pub const ALL: [Self; 5] = [Self::Creating, Self::Running, Self::Hibernated, Self::Stopped, Self::Error];

    #[must_use]
    pub fn can_become(self, next: Self) -> bool {
        use SandboxState::{Creating, Error, Hibernated, Running, Stopped};
        match (self, next) {
            (Creating, Running | Error)
            | (Running, Hibernated | Error)
            | (Hibernated, Running | Error)
            | (Error, Running) => true,
            (Creating | Running | Hibernated | Error, Stopped) => true,
            (_, Creating | Running | Hibernated | Stopped | Error) => false,
        }
    }

    /// Whether a data-plane call may reach it, waking it if need be.
    #[must_use]
    pub fn is_usable(self) -> bool {
        match self {
            Self::Running | Self::Hibernated => true,
            Self::Creating | Self::Stopped | Self::Error => false,
        }
    }

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Hibernated => "hibernated",
            Self::Stopped => "stopped",
            Self::Error => "error",
        }
    }
}

impl fmt::Display for SandboxState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for SandboxState {
    type Err = UnknownState;

    fn from_str(text: &str) -> Result<Self, UnknownState> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| UnknownState(text.to_owned()))
    }
}

#[derive(Debug, thiserror::Error)]
#[error("unknown sandbox state {0:?}: expected creating, running, hibernated, stopped or error")]
pub struct UnknownState(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stopped_is_final_and_nothing_returns_to_creating() {
        for from in SandboxState::ALL {
            assert!(!SandboxState::Stopped.can_become(from));
            assert!(!from.can_become(SandboxState::Creating));
            assert!(!from.can_become(from), "{from} to itself is not a transition");
            assert_eq!(from.can_become(SandboxState::Stopped), from != SandboxState::Stopped);
        }
    }

    #[test]
    fn a_state_reads_back_from_its_text() {
        for state in SandboxState::ALL {
            assert_eq!(state.as_str().parse::<SandboxState>().unwrap(), state);
            assert_eq!(serde_json::to_string(&state).unwrap(), format!("\"{state}\""));
        }
    }
}
