//! Agents that work in a sandbox on a tree of the user's.
//!
//! ```text
//!   folder here ──▶ tree ──▶ checkpoint ──fork──▶ sandbox: the program works in /workspace/NAME
//!        ▲                                              │
//!        └── apply ◀── what may be written here ◀── patch: what changed, by content
//! ```
//!
//! `tree` knows what goes in, `patch` what comes back, `run` what happens between; [`launch::Launch`] is all that is known of the
//! program. Nothing that comes out of a sandbox is believed.

pub(crate) mod kinds;
pub(crate) mod launch;
pub(crate) mod outside;
pub(crate) mod patch;
pub(crate) mod program;
pub(crate) mod run;
pub(crate) mod tasks;
pub(crate) mod tree;
