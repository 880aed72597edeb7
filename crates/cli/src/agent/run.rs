//! A run: a tree goes in, a program works on it, what it changed comes back.
//!
//! ```text
//!   prepare ──▶ record ──▶ session ──▶ ended, timed out, stopped ──▶ finish: patch, then the sandbox goes
//!                             └──────▶ left (second Ctrl-C, the terminal closed, no connection): all is kept
//! ```
//!
//! A run is recorded before its program starts. Whatever becomes of this process, `warren agent ls` shows it.

pub(crate) mod finish;
pub(crate) mod fork;
pub(crate) mod headless;
pub(crate) mod keys;
pub(crate) mod lines;
pub(crate) mod prepare;
pub(crate) mod record;
pub(crate) mod session;
pub(crate) mod terminal;
pub(crate) mod turn;
pub(crate) mod upload;

use anyhow::Context as _;

/// How a program's session ended for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Exit(i32),
    TimedOut,
    /// By our Ctrl-C.
    Stopped,
    /// It goes on without us; we end with this code.
    Left(u8),
}

/// As `timeout` does.
pub(crate) const TIMED_OUT: u8 = 124;

impl Ended {
    /// The exit code that says it; a command's code that does not fit is 255.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Exit(code) => u8::try_from(code).unwrap_or(crate::failure::LOST),
            Self::TimedOut => TIMED_OUT,
            Self::Stopped => crate::failure::DETACHED,
            Self::Left(code) => code,
        }
    }
}

pub(crate) fn random() -> anyhow::Result<u64> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .context("this machine gives no random numbers")?;
    Ok(u64::from_ne_bytes(bytes))
}

/// A word as a shell reads it back.
pub(crate) fn shell_word(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
